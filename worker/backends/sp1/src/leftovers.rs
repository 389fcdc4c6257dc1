//! What SP1's executor leaves behind when it can't clean up.
//!
//! Each execution has a child process and rings in shared memory, gigabytes of it, which only the drop of SP1's runner removes. A
//! process that is killed drops nothing, and one that ends while SP1's threads still run neither: the child would wait
//! for a reader for ever, and the memory would stay taken until the machine or the pod goes.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// Where shared memory has its names.
const SHARED_MEMORY: &str = "/dev/shm";

/// How the names of SP1's rings begin.
const RING: &str = "sp1_";

/// Around a ring's name in those of its two semaphores.
const SEMAPHORE: &str = "sem.";
const SEMAPHORES: [&str; 2] = ["_filled", "_empty"];

/// A ring younger than this may be one that its process has not opened yet.
const YOUNG: Duration = Duration::from_secs(60);

/// Removes rings of processes that are gone, now and once those are old enough that are too young now: a child that is
/// killed is followed by another one at once. To be called before this process makes any, and where all that may have made
/// some can be seen.
pub fn remove_abandoned() {
    // It ends with the process.
    drop(look_twice(Path::new(SHARED_MEMORY), YOUNG));
}

fn look_twice(folder: &Path, young: Duration) -> Option<JoinHandle<()>> {
    look(folder, young);
    let folder = folder.to_owned();
    let again = move || {
        std::thread::sleep(young);
        look(&folder, young);
    };
    let builder = std::thread::Builder::new().name("leftovers".to_owned());
    match builder.spawn(again) {
        Ok(thread) => Some(thread),
        Err(error) => {
            tracing::warn!(%error, "rings of the last minute stay until the next start");
            None
        }
    }
}

fn look(folder: &Path, young: Duration) {
    let old = |path: &Path| {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
        modified.is_ok_and(|modified| {
            SystemTime::now()
                .duration_since(modified)
                .is_ok_and(|age| age >= young)
        })
    };
    let used = mapped_by(&processes());
    remove(folder, |file, ring| old(file) && !used.contains(ring));
}

/// Ends the executors that this process has started and removes their rings. To be called at its very end.
pub fn end_executions() {
    let folder = Path::new(SHARED_MEMORY);
    let own = mapped_by(&["self".to_owned()]);
    for child in children() {
        if let Some(child) = rustix::process::Pid::from_raw(child) {
            let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        }
    }
    remove(folder, |_, ring| own.contains(ring));
}

// Which files of which rings: a semaphore goes with its ring, since what processes have mapped of it bears another name.
fn remove(folder: &Path, which: impl Fn(&Path, &Path) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(ring) = name.to_str().and_then(ring_of) else {
            continue;
        };
        let path = entry.path();
        // Another process may have been faster.
        if which(&path, &folder.join(ring)) && fs::remove_file(&path).is_ok() {
            tracing::info!(path = %path.display(), "removed shared memory that an execution left behind");
        }
    }
}

/// The ring that a file belongs to, where it is one of SP1's.
fn ring_of(name: &str) -> Option<&str> {
    let ring = match name.strip_prefix(SEMAPHORE) {
        Some(semaphore) => SEMAPHORES
            .iter()
            .find_map(|suffix| semaphore.strip_suffix(suffix))?,
        None => name,
    };
    ring.starts_with(RING).then_some(ring)
}

fn processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .collect()
}

/// Files below `/dev/shm` that these processes have mapped.
fn mapped_by(processes: &[String]) -> HashSet<PathBuf> {
    let maps = processes
        .iter()
        .filter_map(|process| fs::read_to_string(format!("/proc/{process}/maps")).ok());
    maps.flat_map(|maps| mapped(&maps)).collect()
}

/// The files below `/dev/shm` in the text of a `/proc/<process>/maps`.
fn mapped(maps: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        line.find(SHARED_MEMORY)
            .map(|start| PathBuf::from(&line[start..]))
    };
    maps.lines().filter_map(path).collect()
}

fn children() -> Vec<i32> {
    let own = std::process::id().to_string();
    let is_child = |process: &String| {
        let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else {
            return false;
        };
        let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest);
        after_name.and_then(|rest| rest.split(' ').nth(1)) == Some(own.as_str())
    };
    let children = processes().into_iter().filter(is_child);
    children.filter_map(|process| process.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rings_of_sp1_that_nobody_uses_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in [
            "sp1_a",
            "sem.sp1_a_filled",
            "sem.sp1_a_empty",
            "sp1_b",
            "sem.sp1_b_empty",
            "sem.sp1_c",
            "other",
        ] {
            fs::write(folder.path().join(name), b"x").expect("writes");
        }
        // Mapped semaphores bear the name of the file that they were first.
        let used = folder.path().join("sp1_b");
        remove(folder.path(), |_, ring| ring != used);
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .expect("reads")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["other", "sem.sp1_b_empty", "sem.sp1_c", "sp1_b"]);
    }

    #[test]
    fn what_is_too_young_at_the_start_is_removed_when_it_is_old_enough() {
        let folder = tempfile::tempdir().expect("a folder");
        let ring = folder.path().join("sp1_a");
        fs::write(&ring, b"x").expect("writes");
        look(folder.path(), Duration::from_secs(3600));
        assert!(ring.exists(), "its process may open it yet");
        let again = look_twice(folder.path(), Duration::from_millis(100)).expect("a thread");
        again.join().expect("ends");
        assert!(!ring.exists());
    }

    #[test]
    fn what_a_process_has_mapped_is_read_from_its_maps() {
        let maps = "7f1c40000000-7f1c5c000000 rw-s 00000000 00:19 41    /dev/shm/sp1_bu==_t\n\
                    7f1c5c000000-7f1c5d000000 r-xp 00000000 fe:00 1234  /usr/lib/libc.so.6\n";
        assert_eq!(mapped(maps), [PathBuf::from("/dev/shm/sp1_bu==_t")]);
    }

    #[test]
    fn a_child_of_this_process_is_found_and_a_stranger_is_not() {
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .expect("starts");
        let found = children();
        assert!(found.contains(&child.id().cast_signed()), "{found:?}");
        assert!(!found.contains(&1));
        child.kill().expect("kills");
        child.wait().expect("ends");
    }
}
