//! What the kernel counts for this container: memory, kills for lack of it, processor time.
//!
//! Sources: `Documentation/admin-guide/cgroup-v2.rst` (memory.max, memory.current, memory.peak, memory.events,
//! cpu.stat) and `cgroup-v1/memory.rst`, `cgroup-v1/cpuacct.rst` (memory.limit_in_bytes, memory.usage_in_bytes,
//! memory.max_usage_in_bytes, memory.oom_control, cpuacct.usage) of Linux.

use std::fs;
use std::path::{Path, PathBuf};

/// A limit of cgroup v1 above this is none: the kernel writes the largest page-aligned number.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// The control groups of this container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ControlGroups {
    /// Folder and version of the memory controller.
    memory: Option<(PathBuf, Version)>,
    /// Folder and version of the one that counts processor time.
    cpu: Option<(PathBuf, Version)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// One reading. What can't be read is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) out_of_memory_kills: u64,
    pub(crate) memory_bytes: u64,
    /// Highest use since the container began.
    pub(crate) peak_memory_bytes: u64,
    pub(crate) cpu_milliseconds: u64,
}

impl ControlGroups {
    /// Of this process.
    pub(crate) fn detect() -> Self {
        Self::below(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"))
    }

    fn below(membership: &Path, root: &Path) -> Self {
        let mut groups = Self::default();
        for line in fs::read_to_string(membership).unwrap_or_default().lines() {
            let mut parts = line.splitn(3, ':');
            let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            // Inside a container the path may be that of the host, while the mount shows only its own.
            let own = |mount: PathBuf, file: &str| {
                [mount.join(path.trim_start_matches('/')), mount]
                    .into_iter()
                    .find(|folder| folder.join(file).exists())
            };
            for controller in controllers.split(',') {
                match controller {
                    "memory" => {
                        let folder = own(root.join("memory"), "memory.oom_control");
                        groups.memory = folder.map(|folder| (folder, Version::One)).or(groups.memory);
                    }
                    "cpuacct" => {
                        let folder = own(root.join("cpuacct"), "cpuacct.usage");
                        let folder = folder.or_else(|| own(root.join("cpu,cpuacct"), "cpuacct.usage"));
                        groups.cpu = folder.map(|folder| (folder, Version::One)).or(groups.cpu);
                    }
                    "" => {
                        let folder = own(root.to_owned(), "memory.events");
                        groups.memory = groups.memory.or(folder.map(|folder| (folder, Version::Two)));
                        let folder = own(root.to_owned(), "cpu.stat");
                        groups.cpu = groups.cpu.or(folder.map(|folder| (folder, Version::Two)));
                    }
                    _ => {}
                }
            }
        }
        groups
    }

    /// Memory limit of the container in bytes; 0 where there is none.
    pub(crate) fn memory_limit_bytes(&self) -> u64 {
        let limit = match &self.memory {
            Some((folder, Version::One)) => number(&folder.join("memory.limit_in_bytes")),
            Some((folder, Version::Two)) => number(&folder.join("memory.max")),
            None => None,
        };
        limit.filter(|limit| *limit < NO_LIMIT_BYTES).unwrap_or_default()
    }

    pub(crate) fn read(&self) -> Reading {
        let mut reading = Reading::default();
        match &self.memory {
            Some((folder, Version::One)) => {
                reading.out_of_memory_kills = field(&folder.join("memory.oom_control"), "oom_kill");
                reading.memory_bytes = number(&folder.join("memory.usage_in_bytes")).unwrap_or_default();
                reading.peak_memory_bytes =
                    number(&folder.join("memory.max_usage_in_bytes")).unwrap_or_default();
            }
            Some((folder, Version::Two)) => {
                reading.out_of_memory_kills = field(&folder.join("memory.events"), "oom_kill");
                reading.memory_bytes = number(&folder.join("memory.current")).unwrap_or_default();
                reading.peak_memory_bytes = number(&folder.join("memory.peak")).unwrap_or_default();
            }
            None => {}
        }
        reading.cpu_milliseconds = match &self.cpu {
            Some((folder, Version::One)) => {
                number(&folder.join("cpuacct.usage")).unwrap_or_default() / 1_000_000
            }
            Some((folder, Version::Two)) => field(&folder.join("cpu.stat"), "usage_usec") / 1_000,
            None => 0,
        };
        reading
    }
}

/// The figures of one run of the prover, made from readings of a container that has run others before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunFigures {
    at_start: Reading,
    peak_memory_bytes: u64,
}

impl RunFigures {
    pub(crate) fn begin(reading: Reading) -> Self {
        Self {
            at_start: reading,
            peak_memory_bytes: reading.memory_bytes,
        }
    }

    /// Highest use since the start, and processor time since then in milliseconds.
    pub(crate) fn take(&mut self, reading: Reading) -> (u64, u64) {
        // Only a peak that has grown since the start is known to be of this run.
        let peak = if reading.peak_memory_bytes > self.at_start.peak_memory_bytes {
            reading.peak_memory_bytes
        } else {
            reading.memory_bytes
        };
        self.peak_memory_bytes = self.peak_memory_bytes.max(peak);
        let cpu = reading
            .cpu_milliseconds
            .saturating_sub(self.at_start.cpu_milliseconds);
        (self.peak_memory_bytes, cpu)
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        folder
    }

    fn detect(folder: &tempfile::TempDir) -> ControlGroups {
        ControlGroups::below(&folder.path().join("cgroup"), &folder.path().join("fs"))
    }

    #[test]
    fn version_2_in_a_container() {
        let folder = tree(&[
            ("cgroup", "0::/\n"),
            ("fs/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 1\n"),
            ("fs/memory.max", "1073741824\n"),
            ("fs/memory.current", "1000\n"),
            ("fs/memory.peak", "5000\n"),
            ("fs/cpu.stat", "usage_usec 2500000\nuser_usec 1\n"),
        ]);
        let groups = detect(&folder);
        assert_eq!(groups.memory_limit_bytes(), 1 << 30);
        let expected = Reading {
            out_of_memory_kills: 2,
            memory_bytes: 1000,
            peak_memory_bytes: 5000,
            cpu_milliseconds: 2500,
        };
        assert_eq!(groups.read(), expected);
    }

    #[test]
    fn version_1_whose_paths_are_those_of_the_host() {
        let folder = tree(&[
            (
                "cgroup",
                "4:memory:/kubepods/pod1/abc\n2:cpu,cpuacct:/kubepods/pod1/abc\n0::/\n",
            ),
            (
                "fs/memory/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
            ),
            ("fs/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("fs/memory/memory.usage_in_bytes", "10\n"),
            ("fs/memory/memory.max_usage_in_bytes", "20\n"),
            ("fs/cpu,cpuacct/cpuacct.usage", "3000000000\n"),
        ]);
        let groups = detect(&folder);
        assert_eq!(groups.memory_limit_bytes(), 0, "the largest number is no limit");
        let expected = Reading {
            out_of_memory_kills: 7,
            memory_bytes: 10,
            peak_memory_bytes: 20,
            cpu_milliseconds: 3000,
        };
        assert_eq!(groups.read(), expected);
    }

    #[test]
    fn without_control_groups_nothing_is_known() {
        let folder = tree(&[("cgroup", "")]);
        assert_eq!(detect(&folder).read(), Reading::default());
    }

    #[test]
    fn a_peak_of_the_run_before_is_not_told_again() {
        let before = Reading {
            memory_bytes: 100,
            peak_memory_bytes: 900,
            cpu_milliseconds: 50,
            ..Reading::default()
        };
        let mut figures = RunFigures::begin(before);
        let lower = Reading {
            memory_bytes: 400,
            cpu_milliseconds: 60,
            ..before
        };
        assert_eq!(figures.take(lower), (400, 10));
        let higher = Reading {
            memory_bytes: 300,
            peak_memory_bytes: 1000,
            ..lower
        };
        assert_eq!(figures.take(higher), (1000, 10));
    }
}
