//! Makes a fixed number of decisions, for profilers: `decide WORKERS DECISIONS`. Prints what a decision took of the
//! processor, on average and in the fastest batch. Under `valgrind --tool=callgrind` it counts instructions, the same whatever else the machine does.

use std::time::Duration;

use prover_bench::{Cluster, Shape};

/// Decisions after which the queue is filled again.
const BATCH: u64 = 20_000;

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter_map(|text| text.parse::<u64>().ok());
    let workers = arguments.next().unwrap_or(1_000);
    let decisions = arguments.next().unwrap_or(1_000_000);
    let mut cluster = Cluster::new(Shape {
        workers,
        ..Shape::default()
    });
    let (mut measured, mut starts, mut done) = (Duration::ZERO, Duration::ZERO, 0);
    let (mut filled_at, mut filled_with, mut least) = (0, Duration::ZERO, f64::MAX);
    while done < decisions {
        let start = processor_time();
        done += cluster.decide(decisions - done);
        let middle = processor_time();
        cluster.start();
        measured += middle - start;
        starts += processor_time() - middle;
        if done - filled_at >= BATCH {
            least = least.min((measured - filled_with).as_nanos() as f64 / (done - filled_at) as f64);
            (filled_at, filled_with) = (done, measured);
            cluster.refill();
        }
    }
    let per = |time: Duration| time.as_nanos() as f64 / done as f64;
    println!(
        "decision {:.0} ns (fastest {BATCH}: {least:.0}), start {:.0} ns",
        per(measured),
        per(starts)
    );
}
