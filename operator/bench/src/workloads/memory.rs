//! W5: what a queued task costs in memory, and what a decision costs with so many of them.

use crate::{Cluster, Shape, processor_time};

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Tasks that were queued.
    pub queued: u64,
    /// Resident memory per task in bytes: what the process grew by, divided by the tasks.
    pub bytes_per_task: f64,
    /// Resident memory of the process in bytes.
    pub resident_bytes: u64,
    /// Processor time of a decision in nanoseconds, the start of the next attempt included.
    pub nanoseconds_per_decision: f64,
}

/// Queues so many tasks of so many jobs, in a graph in which every second task depends on the one before it and all
/// read and write artifacts, and makes decisions while they are queued.
#[must_use]
pub fn memory(jobs: u64, tasks: u64, decisions: u64) -> Memory {
    let before = resident_bytes();
    let mut cluster = Cluster::new(Shape {
        jobs,
        // What waits for another task comes on top: half as many again.
        queued: tasks * 2 / 3,
        tenants: 4,
        graph: true,
        ..Shape::default()
    });
    let after = resident_bytes();
    let queued = cluster.unfinished();
    let processor = processor_time();
    cluster.decide_and_start(decisions);
    let used = processor_time() - processor;
    Memory {
        queued,
        bytes_per_task: after.saturating_sub(before) as f64 / queued as f64,
        resident_bytes: after,
        nanoseconds_per_decision: used.as_nanos() as f64 / decisions as f64,
    }
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    match kibibytes {
        Some(kibibytes) => kibibytes * 1_024,
        None => panic!("the system does not tell the memory of this process"),
    }
}
