//! An attempt's way through the agent: fetch, run, store, report; prefetch, recall, stop.

mod support;

use prover_wire::protocol::{Assign, FailureClass};
use support::steps::Step;
use support::{Bench, PREFIX, mk_assign, mk_plan, write};

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_reads_its_inputs_and_its_outputs_are_in_the_store_before_its_report() {
    let mut bench = Bench::mk().await;
    let inputs = vec![bench.source("a", "one ").await, bench.source("b", "two").await];
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    assert_eq!(session.hello.worker_id, "worker-1");
    assert_eq!(session.hello.backend.as_ref().unwrap().name, "test");
    assert_eq!(session.hello.devices.len(), 1);
    let steps = [Step::Join { name: "both".to_owned() }, Step::Burn(120)];
    session.assign(Assign { inputs, outputs: vec!["both".to_owned()], ..mk_assign(7, &steps) }).await;
    session.started(7).await;
    let succeeded = session.succeeded(7).await;
    assert_eq!(succeeded.outputs[0].key, format!("{PREFIX}/attempts/7/both"));
    assert_eq!(bench.content(&succeeded.outputs[0]).await, "one two");
    assert_eq!(succeeded.result, b"result of attempt 7");
    let usage = succeeded.usage.unwrap();
    assert!(usage.device_milliseconds >= 120, "{usage:?}");
    assert!(usage.peak_memory_bytes > 0, "{usage:?}");
    session.acknowledge(7).await;
    assert_eq!(agent.drained().await, prover_agent::Departure::Empty);
    assert!(!bench.path("work/attempts/7").exists());
}
