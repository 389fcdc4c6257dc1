//! How much memory workers may plan with, when the user does not say.

use std::path::Path;

/// Share of the free memory that is left to everything else.
const RESERVED_FRACTION: u64 = 10;
/// What is assumed where the kernel tells nothing.
const UNKNOWN_MEMORY_BYTES: u64 = 4 << 30;

/// Bytes for each of `workers`: what is free now in this machine and this control group, shared equally.
pub(crate) fn per_worker(workers: u16) -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| parse_available(&text));
    let free = match (machine, control_group_free(Path::new("/sys/fs/cgroup"))) {
        (Some(machine), Some(group)) => machine.min(group),
        (Some(free), None) | (None, Some(free)) => free,
        (None, None) => UNKNOWN_MEMORY_BYTES,
    };
    share(free, workers)
}

fn share(free: u64, workers: u16) -> u64 {
    (free - free / RESERVED_FRACTION) / u64::from(workers.max(1))
}

/// `MemAvailable` of /proc/meminfo in bytes.
fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What the control group still allows; none where it sets no limit. Version 2, else version 1.
fn control_group_free(root: &Path) -> Option<u64> {
    let read = |name: &str| {
        std::fs::read_to_string(root.join(name))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let free = |limit: &str, used: &str| Some(read(limit)?.saturating_sub(read(used)?));
    free("memory.max", "memory.current")
        .or_else(|| free("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        assert_eq!(
            parse_available("MemTotal: 100 kB\nMemAvailable:     2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(parse_available("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn a_tenth_stays_for_everything_else() {
        assert_eq!(share(1000, 2), 450);
    }

    #[test]
    fn the_control_group_of_either_version_is_respected() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(control_group_free(folder.path()), None);
        std::fs::create_dir(folder.path().join("memory")).unwrap();
        std::fs::write(folder.path().join("memory/memory.limit_in_bytes"), "1000\n").unwrap();
        std::fs::write(folder.path().join("memory/memory.usage_in_bytes"), "100\n").unwrap();
        assert_eq!(control_group_free(folder.path()), Some(900));
        std::fs::write(folder.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(control_group_free(folder.path()), Some(900));
        std::fs::write(folder.path().join("memory.max"), "500\n").unwrap();
        std::fs::write(folder.path().join("memory.current"), "600\n").unwrap();
        assert_eq!(control_group_free(folder.path()), Some(0));
    }
}
