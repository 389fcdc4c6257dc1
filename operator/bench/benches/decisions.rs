//! Cost of a decision of the scheduling core under load, and of a sorted map beside it as a yardstick.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::collections::BTreeMap;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prover_bench::{Cluster, Shape};

/// Decisions after which the queue is filled again, outside of the measured time.
const BATCH: u64 = 20_000;

/// Time that this thread has had on a core: what others run on the machine does not count.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What reading the clock twice costs: more than a decision on some virtual machines.
fn clock_cost() -> Duration {
    let mut cost = Duration::ZERO;
    for _ in 0..10_000 {
        let start = processor_time();
        cost += processor_time() - start;
    }
    cost / 10_000
}

/// A completion and the dispatch that it causes. The starts come in between, outside of the measured time, and what
/// reading the clock costs is taken off.
fn decisions(criterion: &mut Criterion, parameter: &str, shape: Shape) {
    let clock = clock_cost();
    bench(criterion, "decision", parameter, shape, |cluster, decisions| {
        let mut measured = Duration::ZERO;
        let mut left = decisions;
        while left > 0 {
            let start = processor_time();
            let made = cluster.decide(left);
            measured += (processor_time() - start).saturating_sub(clock);
            cluster.start();
            left -= made;
        }
        measured
    });
}

/// A completion, the dispatch that it causes, and the start of what runs next.
fn decisions_with_start(criterion: &mut Criterion, parameter: &str, shape: Shape) {
    bench(
        criterion,
        "decision-with-start",
        parameter,
        shape,
        |cluster, decisions| {
            let start = processor_time();
            std::hint::black_box(cluster.decide_and_start(decisions));
            processor_time() - start
        },
    );
}

fn bench(
    criterion: &mut Criterion,
    name: &str,
    parameter: &str,
    shape: Shape,
    decide: impl Fn(&mut Cluster, u64) -> Duration,
) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1));
    let mut cluster = Cluster::new(shape);
    cluster.assert_loaded();
    group.bench_function(BenchmarkId::from_parameter(parameter), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut measured = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let batch = left.min(BATCH);
                measured += decide(&mut cluster, batch);
                left -= batch;
                cluster.refill();
            }
            measured
        });
    });
    cluster.assert_loaded();
    group.finish();
}

fn all(criterion: &mut Criterion) {
    for workers in [10, 100, 1_000, 10_000] {
        let shape = Shape {
            workers,
            ..Shape::default()
        };
        decisions(criterion, &format!("{workers}-workers"), shape);
        decisions_with_start(criterion, &format!("{workers}-workers"), shape);
    }
    decisions(
        criterion,
        "graph",
        Shape {
            graph: true,
            ..Shape::default()
        },
    );
    decisions(
        criterion,
        "64-classes",
        Shape {
            classes: 60,
            ..Shape::default()
        },
    );
    decisions(
        criterion,
        "100-tenants",
        Shape {
            tenants: 100,
            ..Shape::default()
        },
    );
}

fn yardstick(criterion: &mut Criterion) {
    let mut map: BTreeMap<(u64, u64), u64> = (0..100_000u64).map(|n| ((n * 7_919 % 100_000, n), n)).collect();
    let mut next = 100_000u64;
    criterion.bench_function("yardstick/sorted-map-pop-push", |bencher| {
        bencher.iter_custom(|iterations| {
            let start = processor_time();
            for _ in 0..iterations {
                let first = map.pop_first();
                next += 1;
                map.insert((next * 7_919 % 1_000_003, next), next);
                std::hint::black_box(first);
            }
            processor_time() - start
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
    targets = yardstick, all
}
criterion_main!(benches);
