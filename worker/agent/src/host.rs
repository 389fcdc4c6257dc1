//! What the machine or container gives this process: its memory, and evidence of out-of-memory kills.
//!
//! Sources: `Documentation/admin-guide/cgroup-v2.rst` (memory.max, memory.current, memory.events) and
//! `cgroup-v1/memory.rst` (memory.limit_in_bytes, memory.usage_in_bytes, memory.oom_control) of Linux.

use std::path::{Path, PathBuf};

/// A limit of cgroup v1 above this is none: the kernel writes the largest page-aligned number.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// The files of this process's memory controller.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Controller {
    Version1(PathBuf),
    Version2(PathBuf),
    None,
}

/// Reads memory figures of this process's surroundings.
#[derive(Clone, Debug)]
pub struct Host {
    controller: Controller,
    proc: PathBuf,
    /// Folders above the process's own cgroup, up to the root, whose limits hold too.
    ancestors: Vec<PathBuf>,
}

/// How often the kernel has killed for memory, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutOfMemoryKills {
    /// In this process's cgroup.
    pub in_cgroup: u64,
    /// On the whole machine.
    pub on_machine: u64,
}

impl OutOfMemoryKills {
    /// What speaks for an out-of-memory kill since an earlier reading.
    #[must_use]
    pub fn evidence_since(self, earlier: Self) -> Option<&'static str> {
        if self.in_cgroup > earlier.in_cgroup {
            Some("its container's or control group's memory limit was reached")
        } else if self.on_machine > earlier.on_machine {
            Some("the kernel killed for memory on this machine at that moment")
        } else {
            None
        }
    }
}

impl Host {
    /// Of this process.
    #[must_use]
    pub fn detect() -> Self {
        Self::below(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
    }

    /// With other roots than the usual ones, for tests.
    fn below(proc: &Path, cgroups: &Path) -> Self {
        let membership = std::fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        let mut host = Self {
            controller: Controller::None,
            proc: proc.to_owned(),
            ancestors: Vec::new(),
        };
        for line in membership.lines() {
            let mut parts = line.splitn(3, ':');
            let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let relative = path.trim_start_matches('/');
            if controllers.split(',').any(|controller| controller == "memory") {
                let root = cgroups.join("memory");
                // Inside a container the path may be that of the host, while the mount shows only its own.
                let own = [root.join(relative), root.clone()];
                if let Some(own) = own
                    .into_iter()
                    .find(|folder| folder.join("memory.oom_control").exists())
                {
                    host.ancestors = ancestors(&own, &root);
                    host.controller = Controller::Version1(own);
                    return host;
                }
            } else if controllers.is_empty() {
                let own = [cgroups.join(relative), cgroups.to_owned()];
                if let Some(own) = own
                    .into_iter()
                    .find(|folder| folder.join("memory.events").exists())
                {
                    host.ancestors = ancestors(&own, cgroups);
                    host.controller = Controller::Version2(own);
                }
            }
        }
        host
    }

    /// Bytes of memory that this process and its children may use: the smallest limit of its control groups, at
    /// most what the machine has; 0 where neither is known.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let file = match &self.controller {
            Controller::Version1(_) => "memory.limit_in_bytes",
            Controller::Version2(_) => "memory.max",
            Controller::None => "",
        };
        let limits = self
            .ancestors
            .iter()
            .filter_map(|folder| number(&folder.join(file)));
        let limit = limits.filter(|limit| *limit < NO_LIMIT_BYTES).min();
        let machine = self.machine_memory("MemTotal:");
        match (limit, machine) {
            (Some(limit), Some(machine)) => limit.min(machine),
            (Some(bytes), None) | (None, Some(bytes)) => bytes,
            (None, None) => 0,
        }
    }

    /// Bytes of memory in use now, in the control group or on the machine; 0 where unknown.
    #[must_use]
    pub fn memory_used_bytes(&self) -> u64 {
        let in_cgroup = match &self.controller {
            Controller::Version1(folder) => number(&folder.join("memory.usage_in_bytes")),
            Controller::Version2(folder) => number(&folder.join("memory.current")),
            Controller::None => None,
        };
        let on_machine = || {
            let total = self.machine_memory("MemTotal:")?;
            Some(total.saturating_sub(self.machine_memory("MemAvailable:")?))
        };
        in_cgroup.or_else(on_machine).unwrap_or_default()
    }

    /// Counters of out-of-memory kills.
    #[must_use]
    pub fn out_of_memory_kills(&self) -> OutOfMemoryKills {
        let in_cgroup = match &self.controller {
            Controller::Version1(folder) => field(&folder.join("memory.oom_control"), "oom_kill"),
            Controller::Version2(folder) => field(&folder.join("memory.events"), "oom_kill"),
            Controller::None => None,
        };
        OutOfMemoryKills {
            in_cgroup: in_cgroup.unwrap_or_default(),
            on_machine: field(&self.proc.join("vmstat"), "oom_kill").unwrap_or_default(),
        }
    }

    /// Highest resident memory of a process in bytes, while it lives.
    #[must_use]
    pub fn peak_memory_bytes(&self, process: u32) -> Option<u64> {
        field(&self.proc.join(process.to_string()).join("status"), "VmHWM:").map(|kibibytes| kibibytes << 10)
    }

    /// Processor time that a process and its reaped children have used, in milliseconds, while it lives.
    #[must_use]
    pub fn cpu_milliseconds(&self, process: u32) -> Option<u64> {
        let stat = std::fs::read_to_string(self.proc.join(process.to_string()).join("stat")).ok()?;
        // The name in parentheses may have blanks: fields are counted after it. utime is field 14.
        let after_name = stat.rsplit_once(')')?.1;
        let ticks: u64 = after_name
            .split_whitespace()
            .skip(11)
            .take(4)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        Some(ticks.saturating_mul(1_000) / rustix::param::clock_ticks_per_second().max(1))
    }

    fn machine_memory(&self, name: &str) -> Option<u64> {
        field(&self.proc.join("meminfo"), name).map(|kibibytes| kibibytes << 10)
    }
}

fn ancestors(own: &Path, root: &Path) -> Vec<PathBuf> {
    own.ancestors()
        .take_while(|folder| folder.starts_with(root))
        .map(Path::to_owned)
        .collect()
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number that follows a name at the beginning of a line.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn mk() -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            files.write(
                "proc/meminfo",
                "MemTotal:       1000 kB\nMemAvailable:    400 kB\n",
            );
            files.write("proc/vmstat", "pgfault 7\noom_kill 2\n");
            files
        }

        fn write(&self, path: &str, content: &str) {
            let path = self.0.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }

        fn host(&self) -> Host {
            Host::below(&self.0.path().join("proc"), &self.0.path().join("cgroup"))
        }
    }

    #[test]
    fn without_a_control_group_the_machine_counts() {
        let files = Files::mk();
        assert_eq!(files.host().memory_bytes(), 1000 << 10);
        assert_eq!(files.host().memory_used_bytes(), 600 << 10);
        assert_eq!(
            files.host().out_of_memory_kills(),
            OutOfMemoryKills {
                in_cgroup: 0,
                on_machine: 2
            }
        );
    }

    #[test]
    fn in_version_2_the_smallest_limit_of_all_ancestors_counts() {
        let files = Files::mk();
        files.write("proc/self/cgroup", "0::/pod/agent\n");
        files.write("cgroup/pod/agent/memory.events", "low 0\noom 4\noom_kill 3\n");
        files.write("cgroup/pod/agent/memory.max", "max\n");
        files.write("cgroup/pod/agent/memory.current", "77\n");
        files.write("cgroup/pod/memory.max", "5000\n");
        let host = files.host();
        assert_eq!(host.memory_bytes(), 5000);
        assert_eq!(host.memory_used_bytes(), 77);
        assert_eq!(host.out_of_memory_kills().in_cgroup, 3);
    }

    #[test]
    fn in_version_1_an_unlimited_group_falls_back_to_the_machine() {
        let files = Files::mk();
        files.write("proc/self/cgroup", "5:cpu:/a\n4:memory:/a\n");
        files.write(
            "cgroup/memory/a/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 9\n",
        );
        files.write("cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        files.write("cgroup/memory/a/memory.usage_in_bytes", "55\n");
        let host = files.host();
        assert_eq!(host.memory_bytes(), 1000 << 10);
        assert_eq!(host.memory_used_bytes(), 55);
        assert_eq!(host.out_of_memory_kills().in_cgroup, 9);
    }

    #[test]
    fn inside_a_container_of_version_1_the_mounts_root_is_the_own_group() {
        let files = Files::mk();
        files.write("proc/self/cgroup", "4:memory:/kubepods/burstable/pod1/abc\n");
        files.write("cgroup/memory/memory.oom_control", "oom_kill 1\n");
        files.write("cgroup/memory/memory.limit_in_bytes", "4096\n");
        assert_eq!(files.host().memory_bytes(), 4096);
        assert_eq!(files.host().out_of_memory_kills().in_cgroup, 1);
    }

    #[test]
    fn a_kill_is_for_memory_only_if_a_counter_has_risen() {
        let before = OutOfMemoryKills {
            in_cgroup: 1,
            on_machine: 5,
        };
        assert_eq!(before.evidence_since(before), None);
        let in_group = OutOfMemoryKills {
            in_cgroup: 2,
            on_machine: 6,
        };
        assert!(
            in_group
                .evidence_since(before)
                .unwrap()
                .contains("limit was reached")
        );
        let elsewhere = OutOfMemoryKills {
            in_cgroup: 1,
            on_machine: 6,
        };
        assert!(
            elsewhere
                .evidence_since(before)
                .unwrap()
                .contains("on this machine")
        );
    }

    #[test]
    fn processor_time_is_read_behind_a_name_with_blanks_and_parentheses() {
        let files = Files::mk();
        files.write(
            "proc/7/stat",
            "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 100 50 25 25 20 0 1 0 5 6 7\n",
        );
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(files.host().cpu_milliseconds(7), Some(200 * 1_000 / ticks));
    }

    #[test]
    fn the_memory_of_this_very_process_is_known() {
        let host = Host::detect();
        assert!(host.memory_bytes() > 0);
        assert!(host.peak_memory_bytes(std::process::id()).unwrap() > 0);
        assert!(host.cpu_milliseconds(std::process::id()).is_some());
    }
}
