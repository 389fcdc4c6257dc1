//! Finds and ends processes of this run: whatever descends from this process, in whichever process group.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::process::{Pid, Signal};

/// Times that descendants are looked for and killed again, since one may start another meanwhile.
const KILL_ROUNDS: usize = 20;
/// Wait between two rounds.
const KILL_ROUND_WAIT: std::time::Duration = std::time::Duration::from_millis(25);

/// Makes orphans of this run children of this process, so that they are found when it ends.
pub(crate) fn adopt_orphans() {
    // Without it only the kernel's signal at the parent's death ends orphans, which is enough in most cases.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::warn!(%error, "orphaned processes can't be adopted");
    }
}

/// Sends a signal to a process group; a group that is gone is no error.
pub(crate) fn signal_group(leader: u32, signal: Signal) {
    if let Some(leader) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
        let _gone_already = rustix::process::kill_process_group(leader, signal);
    }
}

/// Kills every living descendant of this process and tells how many are left.
pub(crate) async fn kill_descendants() -> usize {
    kill_descendants_of(rustix::process::getpid().as_raw_nonzero().get()).await
}

async fn kill_descendants_of(root: i32) -> usize {
    let living = || descendants_of(root, &living_processes(Path::new("/proc")));
    let mut left = living();
    for _ in 0..KILL_ROUNDS {
        if left.is_empty() {
            return 0;
        }
        for pid in &left {
            if let Some(pid) = Pid::from_raw(*pid) {
                let _gone_already = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        tokio::time::sleep(KILL_ROUND_WAIT).await;
        left = living();
    }
    left.len()
}

/// Process id to parent's id, of all processes that are no zombies.
fn living_processes(proc: &Path) -> BTreeMap<i32, i32> {
    let Ok(entries) = std::fs::read_dir(proc) else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = parse_living_parent(&stat)?;
            Some((pid, parent))
        })
        .collect()
}

/// Parent's id from a line of /proc/PID/stat; none for a zombie. The name may hold spaces and brackets.
fn parse_living_parent(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.next()?.parse().ok(),
    }
}

fn descendants_of(root: i32, parents: &BTreeMap<i32, i32>) -> Vec<i32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(
            parents
                .iter()
                .filter(|(_, its_parent)| **its_parent == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found.remove(0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grandchildren_are_descendants_and_strangers_are_not() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (6, 5)]);
        assert_eq!(descendants_of(2, &parents), vec![3, 4]);
        assert!(descendants_of(6, &parents).is_empty());
    }

    #[test]
    fn a_name_with_brackets_does_not_confuse_the_parent() {
        assert_eq!(parse_living_parent("12 (a) b) c) S 7 12 12 0"), Some(7));
        assert_eq!(parse_living_parent("12 (gone) Z 7 12 12 0"), None);
    }

    #[tokio::test]
    async fn a_grandchild_in_a_group_of_its_own_is_killed() {
        // With job control a background process gets a group of its own.
        let mut child = tokio::process::Command::new("bash")
            .args(["-c", "set -m; sleep 1000 & echo started; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut first_line = [0; 8];
        tokio::io::AsyncReadExt::read_exact(child.stdout.as_mut().unwrap(), &mut first_line)
            .await
            .unwrap();
        let root = i32::try_from(child.id().unwrap()).unwrap();
        assert_eq!(kill_descendants_of(root).await, 0);
        // Its shell ends once the process that it waits for is gone.
        child.wait().await.unwrap();
    }
}
