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

/// Kills every living descendant of this process and tells how many there were in the end.
pub(crate) async fn kill_descendants() -> usize {
    let mut left = living_descendants();
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
        left = living_descendants();
    }
    left.len()
}

fn living_descendants() -> Vec<i32> {
    let parents = living_processes(Path::new("/proc"));
    descendants_of(rustix::process::getpid().as_raw_nonzero().get(), &parents)
}

/// Process id to parent's id, of all processes that are no zombies.
fn living_processes(proc: &Path) -> BTreeMap<i32, i32> {
    let Ok(entries) = std::fs::read_dir(proc) else { return BTreeMap::new() };
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
        found.extend(parents.iter().filter(|(_, its_parent)| **its_parent == parent).map(|(pid, _)| *pid));
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
    async fn a_child_in_a_group_of_its_own_is_killed() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        assert_eq!(kill_descendants().await, 0);
        assert!(!child.wait().await.unwrap().success());
    }
}
