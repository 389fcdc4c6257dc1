//! Whether the kernel has killed for lack of memory in this container.
//!
//! Sources: `Documentation/admin-guide/cgroup-v2.rst` (memory.events) and `cgroup-v1/memory.rst` (memory.oom_control)
//! of Linux. In a container both show its own control group.

/// How often it has killed so far; 0 where that is unknown.
pub(crate) fn out_of_memory_kills() -> u64 {
    [
        "/sys/fs/cgroup/memory.events",
        "/sys/fs/cgroup/memory/memory.oom_control",
    ]
    .into_iter()
    .find_map(|path| kills_in(&std::fs::read_to_string(path).ok()?))
    .unwrap_or_default()
}

fn kills_in(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        assert_eq!(kills_in("low 0\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"), Some(4));
        assert_eq!(kills_in("oom_kill_disable 0\n"), None);
    }
}
