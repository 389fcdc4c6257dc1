//! An attempt's way through the agent: fetch, run, store, report; prefetch, recall, stop.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prover_agent::Departure;
use prover_artifacts::{
    ArtifactStore, Condition, Counters, Key, Listing, ObjectInfo, Prefix, StoreCapabilities, StoreError,
};
use prover_wire::protocol::{Assign, FailureClass};
use tokio::sync::Semaphore;

use crate::support::steps::Step;
use crate::support::{Bench, PREFIX, file, mk_assign, mk_plan, within, write};

/// A store whose uploads and downloads wait until a test lets them through.
#[derive(Debug)]
struct GatedStore {
    inner: Arc<dyn ArtifactStore>,
    uploads: Semaphore,
    downloads: Semaphore,
    /// Answer of every upload, instead of storing anything.
    full: bool,
}

impl GatedStore {
    fn mk(bench: &Bench, uploads: usize, downloads: usize) -> Arc<Self> {
        let (uploads, downloads) = (Semaphore::new(uploads), Semaphore::new(downloads));
        Arc::new(Self {
            inner: bench.store.clone(),
            uploads,
            downloads,
            full: false,
        })
    }
}

#[tonic::async_trait]
impl ArtifactStore for GatedStore {
    async fn put_file(&self, key: &Key, path: &Path, condition: Condition) -> Result<ObjectInfo, StoreError> {
        if self.full {
            let (key, store) = (key.to_string(), "file:///full".to_owned());
            return Err(StoreError::StoreFull {
                key,
                store,
                source: "no space left on device".into(),
            });
        }
        self.uploads.acquire().await.unwrap().forget();
        self.inner.put_file(key, path, condition).await
    }
    async fn get_file(&self, key: &Key, expected: &ObjectInfo, to: &Path) -> Result<(), StoreError> {
        self.downloads.acquire().await.unwrap().forget();
        self.inner.get_file(key, expected, to).await
    }
    async fn put_bytes(
        &self,
        key: &Key,
        content: Bytes,
        condition: Condition,
    ) -> Result<ObjectInfo, StoreError> {
        self.inner.put_bytes(key, content, condition).await
    }
    async fn get_bytes(
        &self,
        key: &Key,
        expected: Option<&ObjectInfo>,
        max: u64,
    ) -> Result<Bytes, StoreError> {
        self.inner.get_bytes(key, expected, max).await
    }
    async fn stat(&self, key: &Key) -> Result<ObjectInfo, StoreError> {
        self.inner.stat(key).await
    }
    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }
    async fn delete_prefix(&self, prefix: &Prefix) -> Result<u64, StoreError> {
        self.inner.delete_prefix(prefix).await
    }
    async fn list_after(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        self.inner.list_after(prefix, after, limit).await
    }
    async fn probe(&self) -> Result<StoreCapabilities, StoreError> {
        self.inner.probe().await
    }
    fn counters(&self) -> &Counters {
        self.inner.counters()
    }
    fn location(&self) -> &str {
        self.inner.location()
    }
}

fn mk_output(attempt: u64, steps: &[Step]) -> Assign {
    Assign {
        outputs: vec!["out".to_owned()],
        ..mk_assign(attempt, steps)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_reads_its_inputs_and_its_outputs_are_in_the_store_before_its_report() {
    let mut bench = Bench::mk().await;
    let inputs = vec![bench.source("a", "one ").await, bench.source("b", "two").await];
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    assert_eq!(session.hello.worker_id, "worker-1");
    assert_eq!(session.hello.backend.as_ref().unwrap().name, "test");
    assert_eq!(session.hello.devices.len(), 1);
    let steps = [
        Step::Join {
            name: "both".to_owned(),
        },
        Step::Burn(120),
    ];
    session
        .assign(Assign {
            inputs,
            outputs: vec!["both".to_owned()],
            ..mk_assign(7, &steps)
        })
        .await;
    session.started(7).await;
    let succeeded = session.succeeded(7).await;
    assert_eq!(succeeded.outputs[0].key, format!("{PREFIX}/attempts/7/both"));
    assert_eq!(bench.content(&succeeded.outputs[0]).await, "one two");
    assert_eq!(succeeded.result, b"result of attempt 7");
    let usage = succeeded.usage.unwrap();
    assert!(usage.device_milliseconds >= 120, "{usage:?}");
    assert!(usage.cpu_milliseconds > 0, "{usage:?}");
    assert!(usage.peak_memory_bytes > 0, "{usage:?}");
    session.acknowledge(7).await;
    assert_eq!(agent.drained().await, Departure::Empty);
    assert!(!bench.path("work/attempts/7").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_lane_runs_beside_a_busy_device_and_takes_no_device_time() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let pid = |name: &str| Step::ProcessId(bench.path(name));
    session
        .assign(mk_assign(1, &[pid("device"), bench.step_wait("gate")]))
        .await;
    session.started(1).await;
    session
        .assign(mk_plan(2, &[pid("control"), Step::Burn(50)]))
        .await;
    session.started(2).await;
    let planned = session.succeeded(2).await;
    assert_eq!(planned.usage.unwrap().device_milliseconds, 0);
    assert!(!planned.execution.is_empty());
    // A child of its own: a prover that crashes never takes the planner with it.
    assert_ne!(
        bench.process_id("device").await,
        bench.process_id("control").await
    );
    bench.open_gate("gate");
    session.succeeded(1).await;
    session.acknowledge(1).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetched_attempt_downloads_while_another_runs_and_starts_when_the_slot_is_free() {
    let mut bench = Bench::mk().await;
    let input = bench.source("input", "fetched ahead").await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session.assign(mk_assign(1, &[bench.step_wait("gate")])).await;
    session.started(1).await;
    let steps = [Step::Join {
        name: "out".to_owned(),
    }];
    session
        .assign(Assign {
            prefetch: true,
            inputs: vec![input],
            ..mk_output(2, &steps)
        })
        .await;
    file(&bench.path("work/attempts/2/inputs/input")).await;
    session.nothing_more().await;
    bench.open_gate("gate");
    // The place is free before the report of the first is out, so the order of these two may vary.
    let mut both = [session.next().await, session.next().await].map(|message| format!("{message:?}"));
    both.sort();
    assert!(
        both[0].starts_with("Started(AttemptStarted { attempt_id: 2"),
        "{both:?}"
    );
    assert!(
        both[1].starts_with("Succeeded(AttemptSucceeded { attempt_id: 1"),
        "{both:?}"
    );
    let succeeded = session.succeeded(2).await;
    assert_eq!(bench.content(&succeeded.outputs[0]).await, "fetched ahead");
    session.acknowledge(1).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_uploaded_while_the_next_attempt_runs_and_reported_only_afterwards() {
    let mut bench = Bench::mk().await;
    let store = GatedStore::mk(&bench, 0, 100);
    let agent = bench.run_over(store.clone());
    let mut session = bench.coordinator.welcomed(1).await;
    session.assign(mk_output(1, &[write("out", "first")])).await;
    session.started(1).await;
    session
        .assign(Assign {
            prefetch: true,
            ..mk_assign(2, &[Step::Touch(bench.path("second"))])
        })
        .await;
    session.started(2).await;
    file(&bench.path("second")).await;
    session.succeeded(2).await;
    session.nothing_more().await;
    store.uploads.add_permits(1);
    session.succeeded(1).await;
    session.acknowledge(1).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_must_be_alone_waits_for_the_device_and_lets_nobody_in() {
    let mut bench = Bench::mk().await;
    bench.environment("TEST_ATTEMPTS_AT_ONCE", "2");
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session.assign(mk_assign(1, &[bench.step_wait("first")])).await;
    session.started(1).await;
    session
        .assign(Assign {
            alone: true,
            ..mk_assign(2, &[bench.step_wait("second")])
        })
        .await;
    session.nothing_more().await;
    bench.open_gate("first");
    session.next().await;
    session.next().await;
    session.assign(mk_assign(3, &[])).await;
    session.nothing_more().await;
    bench.open_gate("second");
    let mut both = [session.next().await, session.next().await].map(|message| format!("{message:?}"));
    both.sort();
    assert!(
        both[0].starts_with("Started(AttemptStarted { attempt_id: 3"),
        "{both:?}"
    );
    assert!(
        both[1].starts_with("Succeeded(AttemptSucceeded { attempt_id: 2"),
        "{both:?}"
    );
    session.succeeded(3).await;
    for attempt in 1..=3 {
        session.acknowledge(attempt).await;
    }
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recall_gives_back_what_has_not_started_and_nothing_else() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session.assign(mk_assign(1, &[bench.step_wait("gate")])).await;
    session.started(1).await;
    session
        .assign(Assign {
            prefetch: true,
            ..mk_assign(2, &[Step::Touch(bench.path("ran"))])
        })
        .await;
    session.recall(2).await;
    assert!(session.recall_answered(2).await);
    session.recall(1).await;
    assert!(!session.recall_answered(1).await);
    // Neither is an attempt given back that nobody has.
    session.recall(99).await;
    assert!(!session.recall_answered(99).await);
    bench.open_gate("gate");
    session.succeeded(1).await;
    session.nothing_more().await;
    assert!(!bench.path("ran").exists());
    session.acknowledge(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_attempt_leaves_its_device_at_every_stage_and_its_result_is_discarded() {
    let mut bench = Bench::mk().await;
    let input = bench.source("input", "x").await;
    let store = GatedStore::mk(&bench, 0, 0);
    let agent = bench.run_over(store.clone());
    let mut session = bench.coordinator.welcomed(1).await;
    // While it fetches.
    session
        .assign(Assign {
            inputs: vec![input],
            ..mk_assign(1, &[])
        })
        .await;
    session.stop(1).await;
    session.stopped(1).await;
    // While it runs.
    session.assign(mk_assign(2, &[bench.step_wait("never")])).await;
    session.started(2).await;
    session.stop(2).await;
    session.stopped(2).await;
    // While it uploads.
    session
        .assign(mk_output(
            3,
            &[write("out", "x"), Step::Touch(bench.path("wrote"))],
        ))
        .await;
    session.started(3).await;
    file(&bench.path("wrote")).await;
    session.assign(mk_assign(4, &[])).await;
    session.started(4).await;
    session.succeeded(4).await;
    session.stop(3).await;
    session.stopped(3).await;
    // When it is reported.
    session.stop(4).await;
    session.stopped(4).await;
    // What is not here.
    session.stop(99).await;
    session.stopped(99).await;
    store.uploads.add_permits(10);
    session.nothing_more().await;
    assert_eq!(agent.drained().await, Departure::Empty);
    let listing = bench
        .store
        .list(&Prefix::new(format!("{PREFIX}/attempts")).unwrap(), 10)
        .await
        .unwrap();
    assert!(listing.objects.is_empty(), "{listing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_attempt_that_does_not_leave_has_its_child_killed_without_a_charge() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let steps = [
        Step::ProcessId(bench.path("pid")),
        Step::BlockFor(bench.path("never")),
    ];
    session.assign(mk_assign(1, &steps)).await;
    session.started(1).await;
    let process = bench.process_id("pid").await;
    session.stop(1).await;
    session.stopped(1).await;
    crate::support::process_gone(process).await;
    session.assign(mk_assign(2, &[])).await;
    session.started(2).await;
    session.succeeded(2).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_input_is_the_stores_fault_and_names_the_key() {
    let mut bench = Bench::mk().await;
    let mut damaged = bench.source("damaged", "as it was").await;
    std::fs::write(bench.path(&format!("store/{}", damaged.key)), "as it wasn").unwrap();
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session
        .assign(Assign {
            inputs: vec![damaged.clone()],
            ..mk_assign(1, &[])
        })
        .await;
    let failed = session.failed_with(1, FailureClass::Artifact).await;
    assert_eq!(failed.reason, "ArtifactDamaged");
    assert!(failed.message.contains(&damaged.key), "{}", failed.message);
    damaged.key = format!("{PREFIX}/sources/missing");
    session
        .assign(Assign {
            inputs: vec![damaged.clone()],
            ..mk_assign(2, &[])
        })
        .await;
    let failed = session.failed_with(2, FailureClass::Artifact).await;
    assert_eq!(failed.reason, "ArtifactNotFound");
    assert!(failed.message.contains(&damaged.key), "{}", failed.message);
    session.acknowledge(1).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_fails_the_job_with_a_reason_that_users_know() {
    let mut bench = Bench::mk().await;
    let store = GatedStore {
        inner: bench.store.clone(),
        uploads: Semaphore::new(0),
        downloads: Semaphore::new(0),
        full: true,
    };
    let agent = bench.run_over(Arc::new(store));
    let mut session = bench.coordinator.welcomed(1).await;
    session.assign(mk_output(1, &[write("out", "x")])).await;
    session.started(1).await;
    let failed = session.failed_with(1, FailureClass::Fatal).await;
    assert_eq!(failed.reason, "StoreFull");
    // The same through a call of the running attempt.
    let put = Step::Put {
        name: "early".to_owned(),
        text: "x".to_owned(),
    };
    session.assign(mk_assign(2, &[put])).await;
    session.started(2).await;
    let failed = session.failed_with(2, FailureClass::Fatal).await;
    assert_eq!(failed.reason, "StoreFull");
    session.acknowledge(1).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_backend_keeps_its_class_reason_and_message() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let backend_class = prover_backend::protocol::FailureClass::InvalidInput;
    let (class, reason, message) = (
        backend_class.into(),
        "GuestPanicked".to_owned(),
        "at line 7".to_owned(),
    );
    session
        .assign(mk_assign(
            1,
            &[Step::Fail {
                class,
                reason,
                message,
            }],
        ))
        .await;
    session.started(1).await;
    let failed = session.failed_with(1, FailureClass::InvalidInput).await;
    assert_eq!(
        (failed.reason.as_str(), failed.message.as_str()),
        ("GuestPanicked", "at line 7")
    );
    session.acknowledge(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_wait_until_the_work_directory_has_room_and_too_large_ones_are_refused() {
    let mut bench = Bench::mk().await;
    bench.config.work_directory_bytes = Some(10);
    let eight = bench.source("eight", "12345678").await;
    let eleven = bench.source("eleven", "12345678901").await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session
        .assign(Assign {
            inputs: vec![eleven],
            ..mk_assign(1, &[])
        })
        .await;
    let failed = session.failed_with(1, FailureClass::Retryable).await;
    assert_eq!(failed.reason, "WorkDirectoryTooSmall");
    session
        .assign(Assign {
            inputs: vec![eight.clone()],
            ..mk_assign(2, &[bench.step_wait("gate")])
        })
        .await;
    session.started(2).await;
    session
        .assign(Assign {
            prefetch: true,
            inputs: vec![eight],
            ..mk_assign(3, &[])
        })
        .await;
    session.nothing_more().await;
    assert!(!bench.path("work/attempts/3/inputs/eight").exists());
    bench.open_gate("gate");
    session.succeeded(2).await;
    session.started(3).await;
    session.succeeded(3).await;
    for attempt in 1..=3 {
        session.acknowledge(attempt).await;
    }
    assert_eq!(within("the agent's end", agent.drained()).await, Departure::Empty);
}
