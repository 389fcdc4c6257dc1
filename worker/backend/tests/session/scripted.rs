//! A backend whose attempts do what their parameters say.

use std::sync::Arc;

use futures::StreamExt;
use prover_backend::protocol::{
    BackendDescription, Device, DeviceClass, Lane, ProofOffer, Resources, TaskType,
};
use prover_backend::{
    Attempt, Backend, CallError, Completed, InFlight, TaskError, Verified, VerifyFailure, VerifyRequest,
    async_trait,
};
use tokio::sync::Semaphore;

/// What a test holds to steer the backend.
#[derive(Clone)]
pub(crate) struct Scripted {
    /// `prepare` takes one permit.
    pub(crate) prepare: Arc<Semaphore>,
    /// A blocking section takes one permit.
    pub(crate) blocking: Arc<Semaphore>,
    pub(crate) protocol_faults: bool,
}

impl Scripted {
    pub(crate) fn new() -> Self {
        let open = || Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self {
            prepare: open(),
            blocking: open(),
            protocol_faults: false,
        }
    }
}

pub(crate) fn task(request_id: &str) -> prover_backend::protocol::TaskSubmission {
    prover_backend::protocol::TaskSubmission {
        request_id: request_id.to_owned(),
        task_type: "work".to_owned(),
        resources: Some(resources()),
        ..Default::default()
    }
}

fn resources() -> Resources {
    Resources {
        device_class: DeviceClass::Cpu.into(),
        ..Resources::default()
    }
}

pub(crate) fn description() -> BackendDescription {
    let task_type = |name: &str, lane: Lane, verifies| TaskType {
        name: name.to_owned(),
        stage: name.to_owned(),
        lane: lane.into(),
        verifies,
        ..TaskType::default()
    };
    BackendDescription {
        name: "scripted".to_owned(),
        version: "1".to_owned(),
        attempts_at_once: 2,
        proofs: vec![ProofOffer {
            system: "scripted".to_owned(),
            kind: "Any".to_owned(),
            root_task_type: "plan".to_owned(),
            parent_chain: vec![resources()],
            largest_leaf: Some(resources()),
        }],
        task_types: vec![
            task_type("plan", Lane::Control, false),
            task_type("work", Lane::Device, false),
            task_type("verify", Lane::Device, true),
        ],
        hang_after_ms: 600,
        emulated: false,
        withheld: Vec::new(),
    }
}

#[async_trait]
impl Backend for Scripted {
    fn describe(&self) -> BackendDescription {
        let mut description = description();
        if self.protocol_faults {
            description.attempts_at_once = 0;
        }
        description
    }

    async fn prepare(&self, device: &Device) -> Result<(), TaskError> {
        assert_eq!(device.id, "cpu-0");
        self.prepare
            .acquire()
            .await
            .expect("the semaphore is open")
            .forget();
        Ok(())
    }

    async fn run(&self, attempt: Attempt) -> Result<Completed, TaskError> {
        let script = String::from_utf8(attempt.parameters().to_vec()).expect("UTF-8");
        match script.as_str() {
            "complete" => {
                for name in attempt.outputs() {
                    attempt.write_output(name, name.as_bytes()).await?;
                }
                Ok(Completed {
                    result: b"done".to_vec(),
                    ..Completed::default()
                })
            }
            "wait" => {
                attempt.report_progress(Some(0.5), None).await;
                std::future::pending().await
            }
            "block" => {
                let permits = self.blocking.clone();
                attempt.report_progress(None, None).await;
                let runtime = tokio::runtime::Handle::current();
                attempt
                    .blocking(move || {
                        runtime
                            .block_on(permits.acquire())
                            .map(tokio::sync::SemaphorePermit::forget)
                    })
                    .await
                    .expect("the semaphore is open");
                Ok(Completed::default())
            }
            "panic" => panic!("the script says so"),
            "panic in a blocking section" => attempt.blocking(|| panic!("deep down")).await,
            "fail" => Err(TaskError::out_of_memory("TooBig", "it does not fit")),
            "fail without a reason" => Err(TaskError::fatal("two words", "x".repeat(100_000))),
            "large result" => Ok(Completed {
                result: vec![0; 64 * 1024 + 1],
                ..Completed::default()
            }),
            "extra output" => {
                let path = attempt.write_output("extra", b"").await?;
                Ok(Completed {
                    outputs: [("extra".to_owned(), path)].into(),
                    ..Completed::default()
                })
            }
            "no output" => Ok(Completed::default()),
            "outside output" => outside(&attempt, "../secret"),
            "linked output" => {
                let link = attempt.output_path("out");
                std::os::unix::fs::symlink(attempt.directory().join("../secret"), &link).expect("a link");
                Ok(Completed::default())
            }
            "all calls" => Ok(all_calls(&attempt).await.map(|()| Completed::default())?),
            "swallow errors" => {
                let _ = attempt.submit_tasks(vec![task("a")]).await;
                Ok(Completed::default())
            }
            script if script.starts_with("in flight ") => {
                let limit = script["in flight ".len()..].parse().expect("a number");
                let mut in_flight = InFlight::new(attempt.clone(), limit);
                for number in 0..100 {
                    in_flight.submit(vec![task(&format!("task-{number}"))]).await?;
                }
                in_flight.finish().await?;
                Ok(Completed::default())
            }
            "many tasks" => {
                let filling = |number: u32| {
                    let mut task = task(&format!("task-{number}"));
                    task.parameters = vec![0; 60 * 1024];
                    task
                };
                attempt.submit_tasks((0..100).map(filling).collect()).await?;
                Ok(Completed::default())
            }
            "conclude wrongly" => {
                let concluding = prover_backend::protocol::TaskSubmission {
                    concludes_job: true,
                    ..task("a")
                };
                attempt.submit_tasks(vec![concluding]).await?;
                Ok(Completed::default())
            }
            other => Err(TaskError::fatal("UnknownScript", other)),
        }
    }

    fn verify_file(&self, _: &VerifyRequest) -> Result<Verified, VerifyFailure> {
        Err(VerifyFailure::refused("scripts prove nothing"))
    }
}

fn outside(attempt: &Attempt, path: &str) -> Result<Completed, TaskError> {
    let path = attempt.directory().join(path);
    Ok(Completed {
        outputs: [("out".to_owned(), path)].into(),
        ..Completed::default()
    })
}

async fn all_calls(attempt: &Attempt) -> Result<(), CallError> {
    let answers = attempt.submit_tasks(vec![task("a"), task("b")]).await?;
    assert_eq!(
        answers.iter().map(|answer| answer.task_id).collect::<Vec<_>>(),
        [1, 2]
    );
    attempt.complete_marker("marker").await?;
    let results: Vec<_> = attempt
        .subscribe_tasks(vec!["a".to_owned(), "b".to_owned()])
        .await?
        .collect()
        .await;
    assert!(
        results
            .iter()
            .all(|result| result.as_ref().is_ok_and(|result| result.succeeded)),
        "{results:?}"
    );
    assert_eq!(results.len(), 2);
    attempt.send_channel_message(None, b"message".to_vec()).await?;
    let too_large = attempt.send_channel_message(None, vec![0; 64 * 1024 + 1]).await;
    assert!(
        matches!(too_large, Err(CallError::InvalidArgument(_))),
        "{too_large:?}"
    );
    let messages: Vec<_> = attempt.read_channel("a", 1).await?.collect().await;
    let offsets: Vec<u64> = messages
        .iter()
        .map(|message| message.as_ref().expect("a message").offset)
        .collect();
    assert_eq!(offsets, [1, 2]);
    let path = attempt.write_output("file", b"bytes").await.expect("a file");
    assert_eq!(attempt.put_artifact("file", &path).await?.size_bytes, 5);
    let stolen = attempt
        .put_artifact("stolen", std::path::Path::new("/etc/hostname"))
        .await;
    assert!(matches!(stolen, Err(CallError::InvalidArgument(_))), "{stolen:?}");
    assert_eq!(attempt.get_artifact("file").await?.0, path);
    assert!(attempt.stat_artifact("file").await?.is_some());
    assert_eq!(attempt.stat_artifact("other").await?, None);
    assert!(matches!(
        attempt.get_artifact("other").await,
        Err(CallError::NotFound(_))
    ));
    attempt.add_reference("file", "mine").await?;
    assert!(attempt.remove_reference("file", "mine").await?);
    attempt.acquire_permit("file", 5).await?;
    attempt.delete_artifacts(vec!["file".to_owned()]).await
}
