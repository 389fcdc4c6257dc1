//! The SDK against an agent in the test's own process.

mod fake_agent;
mod scripted;

use std::sync::Arc;

use fake_agent::{FakeAgent, Session, welcome};
use prover_backend::protocol::backend_event::Event;
use prover_backend::protocol::{AttemptFailed, FailureClass, RunAttempt, Shutdown, StopAttempt};
use prover_backend::{CallError, ServeEnd, ServeError};
use scripted::{Scripted, description};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Lets nobody through until a permit is added.
fn closed() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(0))
}

/// Lets everybody through when the test ends, so that a failed test does not wait for a blocked thread.
struct OpenAtEnd(Arc<Semaphore>);

impl Drop for OpenAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Fixture {
    agent: FakeAgent,
    session: Session,
    served: JoinHandle<Result<ServeEnd, ServeError>>,
}

impl Fixture {
    async fn with(backend: Scripted) -> Self {
        let mut agent = FakeAgent::start();
        let served = agent.serve(backend);
        let (session, _) = agent.welcomed().await;
        Self {
            agent,
            session,
            served,
        }
    }

    async fn start() -> Self {
        Self::with(Scripted::new()).await
    }

    fn script(&self, attempt_id: u64, script: &str, outputs: &[&str]) -> RunAttempt {
        RunAttempt {
            parameters: script.as_bytes().to_vec(),
            ..self.agent.attempt(attempt_id, "work", outputs)
        }
    }

    /// Runs one attempt and answers how it ended.
    async fn run(&mut self, script: &str, outputs: &[&str]) -> Event {
        let run = self.script(1, script, outputs);
        self.session.send(run).await;
        self.session.event().await
    }

    async fn failure(&mut self, script: &str, outputs: &[&str]) -> AttemptFailed {
        match self.run(script, outputs).await {
            Event::Failed(failed) => failed,
            other => panic!("{script} did not fail: {other:?}"),
        }
    }

    async fn stop(&self, attempt_id: u64, only_if_not_started: bool) {
        self.session
            .send(StopAttempt {
                attempt_id,
                only_if_not_started,
            })
            .await;
    }

    /// The process still takes and completes attempts.
    async fn still_works(&mut self) {
        let run = self.script(1_000, "complete", &[]);
        self.session.send(run).await;
        match self.session.event().await {
            Event::Completed(completed) => assert_eq!(completed.attempt_id, 1_000),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_backend_says_hello_first_and_ends_when_it_is_told_to() {
    let mut agent = FakeAgent::start();
    let served = agent.serve(Scripted::new());
    let (session, hello) = agent.welcomed().await;
    assert_eq!(hello.protocol_version, 1);
    assert_eq!(hello.backend, Some(description()));
    session.send(Shutdown {}).await;
    assert_eq!(
        served.await.expect("no panic").expect("a good end"),
        ServeEnd::Shutdown
    );
}

#[tokio::test]
async fn another_protocol_version_is_refused_with_both_versions() {
    let mut agent = FakeAgent::start();
    let served = agent.serve(Scripted::new());
    let session = agent.session().await;
    session.send(welcome(7)).await;
    let error = served.await.expect("no panic").expect_err("refused");
    assert!(matches!(error, ServeError::Version(_)));
    assert!(
        error.to_string().contains('7') && error.to_string().contains('1'),
        "{error}"
    );
}

#[tokio::test]
async fn a_wrong_description_is_refused_before_the_agent_sees_it() {
    let agent = FakeAgent::start();
    let served = agent.serve(Scripted {
        protocol_faults: true,
        ..Scripted::new()
    });
    let error = served.await.expect("no panic").expect_err("refused");
    assert!(error.to_string().contains("attempts_at_once is 0"), "{error}");
}

#[tokio::test]
async fn pulses_come_while_nothing_runs() {
    let mut fixture = Fixture::start().await;
    for _ in 0..3 {
        assert!(matches!(fixture.session.any_event().await, Some(Event::Pulse(_))));
    }
}

#[tokio::test]
async fn an_attempt_is_completed_with_its_outputs_and_result() {
    let mut fixture = Fixture::start().await;
    let Event::Completed(completed) = fixture.run("complete", &["b", "a"]).await else {
        panic!("not completed")
    };
    assert_eq!(completed.attempt_id, 1);
    assert_eq!(completed.result, b"done");
    let names: Vec<&str> = completed
        .outputs
        .iter()
        .map(|output| output.name.as_str())
        .collect();
    assert_eq!(
        names,
        ["b", "a"],
        "outputs come in the order of their declaration"
    );
    assert_eq!(std::fs::read(&completed.outputs[0].path).expect("the file"), b"b");
}

#[tokio::test]
async fn what_breaks_the_rules_fails_the_attempt_with_a_reason_and_nothing_else() {
    let mut fixture = Fixture::start().await;
    std::fs::write(fixture.agent.folder().join("secret"), "secret").expect("a file");
    let cases = [
        ("large result", &[] as &[&str], "TooLarge", "65537"),
        ("extra output", &[], "Undeclared", "extra"),
        ("no output", &["out"], "OutputMissing", "out"),
        ("outside output", &["out"], "OutputOutsideDirectory", "secret"),
        ("linked output", &["out"], "OutputOutsideDirectory", "out"),
        ("conclude wrongly", &[], "InvalidCall", "does not verify"),
        ("fail without a reason", &[], "Unnamed", "xxx"),
    ];
    for (attempt_id, (script, outputs, reason, word)) in (1..).zip(cases) {
        fixture
            .session
            .send(fixture.script(attempt_id, script, outputs))
            .await;
        let Event::Failed(failed) = fixture.session.event().await else {
            panic!("{script} did not fail")
        };
        assert_eq!(
            (failed.attempt_id, failed.class()),
            (attempt_id, FailureClass::Fatal),
            "{script}"
        );
        assert_eq!(failed.reason, reason, "{script}: {}", failed.message);
        assert!(failed.message.contains(word), "{script}: {}", failed.message);
        assert_eq!(prover_backend::validate::failed(&failed), Ok(()));
    }
    fixture.still_works().await;
}

#[tokio::test]
async fn a_verifying_task_without_a_proof_report_fails() {
    let mut fixture = Fixture::start().await;
    let run = RunAttempt {
        task_type: "verify".to_owned(),
        ..fixture.script(1, "complete", &[])
    };
    fixture.session.send(run).await;
    let Event::Failed(failed) = fixture.session.event().await else {
        panic!("it did not fail")
    };
    assert_eq!(failed.reason, "InvalidProofReport");
}

#[tokio::test]
async fn a_failure_keeps_its_class_and_words() {
    let mut fixture = Fixture::start().await;
    let failed = fixture.failure("fail", &[]).await;
    assert_eq!(failed.class(), FailureClass::OutOfMemory);
    assert_eq!(
        (failed.reason.as_str(), failed.message.as_str()),
        ("TooBig", "it does not fit")
    );
}

#[tokio::test]
async fn a_panic_fails_the_attempt_and_the_process_goes_on() {
    for script in ["panic", "panic in a blocking section"] {
        let mut fixture = Fixture::start().await;
        let failed = fixture.failure(script, &[]).await;
        assert_eq!(
            (failed.class(), failed.reason.as_str()),
            (FailureClass::Retryable, "BackendPanicked")
        );
        assert!(
            failed.message.contains("says so") || failed.message.contains("deep down"),
            "{}",
            failed.message
        );
        fixture.still_works().await;
    }
}

#[tokio::test]
async fn an_attempt_that_has_not_started_is_given_back() {
    let mut fixture = Fixture::with(Scripted {
        prepare: closed(),
        ..Scripted::new()
    })
    .await;
    fixture.session.send(fixture.script(1, "complete", &[])).await;
    fixture.stop(1, true).await;
    let Event::Stopped(stopped) = fixture.session.event().await else {
        panic!("not stopped")
    };
    assert_eq!((stopped.attempt_id, stopped.had_started), (1, false));
}

#[tokio::test]
async fn a_running_attempt_is_not_given_back_but_is_stopped() {
    let mut fixture = Fixture::start().await;
    assert!(matches!(fixture.run("wait", &[]).await, Event::Progress(_)));
    fixture.stop(1, true).await;
    // Commands are taken in order, so the next attempt's end shows that the first one was left alone.
    fixture.still_works().await;
    fixture.stop(1, false).await;
    let Event::Stopped(stopped) = fixture.session.event().await else {
        panic!("not stopped")
    };
    assert_eq!((stopped.attempt_id, stopped.had_started), (1, true));
}

#[tokio::test]
async fn a_stopped_attempt_holds_its_device_until_its_blocking_section_ends() {
    let backend = Scripted {
        blocking: closed(),
        ..Scripted::new()
    };
    let _open = OpenAtEnd(backend.blocking.clone());
    let mut fixture = Fixture::with(backend.clone()).await;
    assert!(matches!(fixture.run("block", &[]).await, Event::Progress(_)));
    fixture.stop(1, false).await;
    fixture.still_works().await;
    backend.blocking.add_permits(1);
    let Event::Stopped(stopped) = fixture.session.event().await else {
        panic!("not stopped")
    };
    assert_eq!((stopped.attempt_id, stopped.had_started), (1, true));
}

#[tokio::test]
async fn stopping_an_attempt_that_is_not_there_is_answered() {
    let mut fixture = Fixture::start().await;
    fixture.stop(9, false).await;
    let Event::Stopped(stopped) = fixture.session.event().await else {
        panic!("not answered")
    };
    assert_eq!((stopped.attempt_id, stopped.had_started), (9, false));
}

#[tokio::test]
async fn more_attempts_than_declared_are_refused_and_planners_take_no_slot() {
    let mut fixture = Fixture::start().await;
    let planner = RunAttempt {
        task_type: "plan".to_owned(),
        ..fixture.script(5, "wait", &[])
    };
    fixture.session.send(planner).await;
    assert!(matches!(fixture.session.event().await, Event::Progress(_)));
    for attempt_id in [1, 2] {
        fixture
            .session
            .send(fixture.script(attempt_id, "wait", &[]))
            .await;
        assert!(matches!(fixture.session.event().await, Event::Progress(_)));
    }
    fixture.session.send(fixture.script(3, "complete", &[])).await;
    let Event::Failed(failed) = fixture.session.event().await else {
        panic!("not refused")
    };
    assert_eq!((failed.attempt_id, failed.class()), (3, FailureClass::Retryable));
    assert_eq!(failed.reason, "BackendBusy");
    let planner = RunAttempt {
        task_type: "plan".to_owned(),
        ..fixture.script(4, "complete", &[])
    };
    fixture.session.send(planner).await;
    assert!(matches!(fixture.session.event().await, Event::Completed(_)));
    fixture.stop(1, false).await;
    assert!(matches!(fixture.session.event().await, Event::Stopped(_)));
    fixture.still_works().await;
}

#[tokio::test]
async fn an_unknown_task_type_is_refused() {
    let mut fixture = Fixture::start().await;
    let run = fixture.agent.attempt(1, "dance", &[]);
    fixture.session.send(run).await;
    let Event::Failed(failed) = fixture.session.event().await else {
        panic!("not refused")
    };
    assert_eq!(failed.reason, "UnknownTaskType");
}

#[tokio::test]
async fn every_call_reaches_the_agent_and_its_answer_comes_back() {
    let mut fixture = Fixture::start().await;
    for task in ["a", "b"] {
        fixture.agent.shared().finish_task(task, true);
    }
    let event = fixture.run("all calls", &[]).await;
    assert!(matches!(event, Event::Completed(_)), "{event:?}");
}

#[tokio::test]
async fn refused_calls_become_failures_of_the_right_class() {
    let text = || "no".to_owned();
    let cases = [
        (CallError::NotFound(text()), FailureClass::Artifact, "NotFound"),
        (
            CallError::InvalidArgument(text()),
            FailureClass::Fatal,
            "InvalidCall",
        ),
        (
            CallError::LimitExceeded(text()),
            FailureClass::Fatal,
            "LimitExceeded",
        ),
        (
            CallError::Unavailable(text()),
            FailureClass::Retryable,
            "Unavailable",
        ),
        (
            CallError::Damaged(text()),
            FailureClass::Artifact,
            "ArtifactDamaged",
        ),
        (
            CallError::Store("StoreFull: no space on /disk".to_owned()),
            FailureClass::Fatal,
            "StoreFull",
        ),
        (
            CallError::Store("the store said no".to_owned()),
            FailureClass::Fatal,
            "StoreRefused",
        ),
        (CallError::Internal(text()), FailureClass::Retryable, "AgentFault"),
    ];
    let mut fixture = Fixture::start().await;
    for (attempt_id, (error, class, reason)) in (1..).zip(cases) {
        fixture.agent.shared().refuse_calls = Some(error);
        fixture
            .session
            .send(fixture.script(attempt_id, "many tasks", &[]))
            .await;
        let Event::Failed(failed) = fixture.session.event().await else {
            panic!("{reason}: it did not fail")
        };
        assert_eq!((failed.class(), failed.reason.as_str()), (class, reason));
    }
}

#[tokio::test]
async fn a_lost_lease_ends_the_attempt_even_where_the_backend_ignores_it() {
    for script in ["many tasks", "swallow errors"] {
        let mut fixture = Fixture::start().await;
        fixture.agent.shared().refuse_calls = Some(CallError::LeaseLost("another worker has it".to_owned()));
        let Event::Stopped(stopped) = fixture.run(script, &[]).await else {
            panic!("{script}: not stopped")
        };
        assert_eq!((stopped.attempt_id, stopped.had_started), (1, true));
        fixture.still_works().await;
    }
}

#[tokio::test]
async fn large_submissions_are_split_and_keep_their_order() {
    let mut fixture = Fixture::start().await;
    let event = fixture.run("many tasks", &[]).await;
    assert!(matches!(event, Event::Completed(_)), "{event:?}");
    let shared = fixture.agent.shared();
    assert!(shared.submissions.len() > 1);
    let names: Vec<&str> = shared
        .submissions
        .iter()
        .flatten()
        .map(|task| task.request_id.as_str())
        .collect();
    let expected: Vec<String> = (0..100).map(|number| format!("task-{number}")).collect();
    assert_eq!(names, expected);
}

async fn a_planner_keeps_its_limit(limit: usize) {
    let mut fixture = Fixture::start().await;
    let run = fixture.script(1, &format!("in flight {limit}"), &[]);
    fixture.session.send(run).await;
    for number in 0..100 {
        let expected = (number + limit).min(100);
        fixture
            .agent
            .wait_until(|shared| shared.submissions.len() >= expected)
            .await;
        if expected < 100 {
            fixture
                .agent
                .wait_until(|shared| !shared.subscriptions.is_empty())
                .await;
            assert_eq!(
                fixture.agent.shared().submissions.len(),
                expected,
                "submitted beyond the limit"
            );
        }
        fixture
            .agent
            .shared()
            .finish_task(&format!("task-{number}"), true);
    }
    let event = fixture.session.event().await;
    assert!(matches!(event, Event::Completed(_)), "{event:?}");
}

#[tokio::test]
async fn a_planner_never_has_more_tasks_in_flight_than_allowed() {
    a_planner_keeps_its_limit(4).await;
}

#[tokio::test]
async fn a_planner_with_more_subscriptions_than_streams_hears_of_every_task() {
    a_planner_keeps_its_limit(40).await;
}

#[tokio::test]
async fn a_failed_task_ends_its_planner() {
    let mut fixture = Fixture::start().await;
    let run = fixture.script(1, "in flight 4", &[]);
    fixture.session.send(run).await;
    fixture
        .agent
        .wait_until(|shared| shared.submissions.len() == 4 && !shared.subscriptions.is_empty())
        .await;
    fixture.agent.shared().finish_task("task-2", false);
    let Event::Failed(failed) = fixture.session.event().await else {
        panic!("it did not fail")
    };
    assert_eq!(
        (failed.class(), failed.reason.as_str()),
        (FailureClass::Fatal, "TaskFailed")
    );
    assert!(
        failed.message.contains("task-2") && failed.message.contains("it broke"),
        "{}",
        failed.message
    );
}

#[tokio::test]
async fn a_closed_session_ends_the_process_though_an_attempt_runs() {
    let Fixture {
        agent,
        mut session,
        served,
    } = Fixture::start().await;
    let run = RunAttempt {
        parameters: b"wait".to_vec(),
        ..agent.attempt(1, "work", &[])
    };
    session.send(run).await;
    assert!(matches!(session.event().await, Event::Progress(_)));
    drop(session);
    let error = served.await.expect("no panic").expect_err("the agent is gone");
    assert!(matches!(error, ServeError::AgentGone(_)), "{error}");
}
