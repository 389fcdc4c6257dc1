//! What this process has used so far, as the kernel tells.

use std::time::{Duration, Instant};

/// Ticks of a second in /proc (USER_HZ, which Linux fixes for user space).
const TICKS_PER_SECOND: f64 = 100.0;

/// A measured piece of work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) wall: Duration,
    pub(crate) cpu_seconds: f64,
}

/// Runs work and measures it.
pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> (T, Measured) {
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let value = work();
    (
        value,
        Measured {
            wall: started.elapsed(),
            cpu_seconds: cpu_seconds() - cpu,
        },
    )
}

/// Processor time of all threads of this process so far.
pub(crate) fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name in parentheses and may hold spaces; user and system time are the 12th
    // and 13th after it (proc(5)).
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: f64 = after_name
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    ticks / TICKS_PER_SECOND
}

/// Largest resident memory of this process so far, in bytes.
pub(crate) fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}

/// Forgets the peak, so that the next one is that of the work that follows.
pub(crate) fn reset_peak() {
    // Where the kernel does not allow it the peak stays that of all work so far, which is told as such.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
