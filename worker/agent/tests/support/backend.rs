//! The backend of the agent's tests: runs the steps that a task's parameters write down. Never a real prover.

mod steps;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use prover_backend::protocol::{
    BackendDescription, DeviceClass, ExecutionReport, FailureClass, Lane, Resources, TaskSubmission, TaskType,
};
use prover_backend::{
    Attempt, Backend, Completed, TaskError, Verified, VerifyFailure, VerifyRequest, async_trait,
};
use rustix::process::{Signal, getpid, kill_process};
use steps::Step;

struct TestBackend;

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

#[async_trait]
impl Backend for TestBackend {
    fn describe(&self) -> BackendDescription {
        let task_type = |name: &str, lane: Lane| TaskType {
            name: name.to_owned(),
            stage: name.to_owned(),
            lane: lane.into(),
            ..TaskType::default()
        };
        BackendDescription {
            name: "test".to_owned(),
            version: "1".to_owned(),
            attempts_at_once: number("TEST_ATTEMPTS_AT_ONCE", 1),
            task_types: vec![task_type("work", Lane::Device), task_type("plan", Lane::Control)],
            hang_after_ms: u64::from(number("TEST_HANG_AFTER_MS", 0)),
            emulated: true,
            withheld: Vec::new(),
            ..BackendDescription::default()
        }
    }

    async fn run(&self, attempt: Attempt) -> Result<Completed, TaskError> {
        let steps: Vec<Step> = serde_json::from_slice(attempt.parameters())
            .map_err(|error| TaskError::fatal("MalformedSteps", error.to_string()))?;
        for step in steps {
            take(&attempt, step).await?;
        }
        let result = format!("result of attempt {}", attempt.id()).into_bytes();
        let execution = (attempt.task_type() == "plan").then(|| ExecutionReport {
            segments: 3,
            ..ExecutionReport::default()
        });
        Ok(Completed {
            result,
            execution,
            ..Completed::default()
        })
    }

    fn verify_file(&self, _: &VerifyRequest) -> Result<Verified, VerifyFailure> {
        Err(VerifyFailure::refused("the test backend proves nothing"))
    }
}

async fn wait_for(path: &std::path::Path) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn local(error: &std::io::Error) -> TaskError {
    TaskError::retryable("FileError", error.to_string())
}

async fn take(attempt: &Attempt, step: Step) -> Result<(), TaskError> {
    match step {
        Step::Touch(path) => std::fs::write(path, b"").map_err(|error| local(&error))?,
        Step::WaitFor(path) => wait_for(&path).await,
        Step::BlockFor(path) => {
            attempt
                .blocking(move || {
                    while !path.exists() {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                })
                .await;
        }
        Step::Write { name, text } => drop(attempt.write_output(&name, text.as_bytes()).await?),
        Step::Join { name } => {
            let mut all = Vec::new();
            for input in attempt.inputs() {
                all.extend(attempt.read_input(&input.name).await?);
            }
            attempt.write_output(&name, &all).await?;
        }
        Step::ProcessId(path) => {
            let written = path.with_extension("part");
            std::fs::write(&written, std::process::id().to_string()).map_err(|error| local(&error))?;
            std::fs::rename(written, path).map_err(|error| local(&error))?;
        }
        Step::Environment { output } => {
            let told: Vec<String> = std::env::vars()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            attempt.write_output(&output, told.join("\n").as_bytes()).await?;
        }
        Step::Print(line) => eprintln!("{line}"),
        Step::Signal(signal) => {
            let signal = Signal::from_named_raw(signal).expect("a signal");
            // The standard library takes the first SIGSEGV for a stack overflow and only then lets go of it.
            loop {
                kill_process(getpid(), signal).expect("a signal to oneself");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Step::Exit(code) => std::process::exit(code),
        Step::Burn(milliseconds) => {
            attempt
                .blocking(move || {
                    let until = std::time::Instant::now() + Duration::from_millis(milliseconds);
                    while std::time::Instant::now() < until {
                        std::hint::spin_loop();
                    }
                })
                .await;
        }
        Step::Fail {
            class,
            reason,
            message,
        } => {
            let class = FailureClass::try_from(class).expect("a class");
            return Err(TaskError {
                class,
                reason,
                message,
                execution: None,
            });
        }
        step => call(attempt, step).await?,
    }
    Ok(())
}

async fn call(attempt: &Attempt, step: Step) -> Result<(), TaskError> {
    match step {
        Step::Put { name, text } => {
            let path = attempt.directory().join(format!("put-{name}"));
            std::fs::write(&path, text).map_err(|error| local(&error))?;
            attempt.put_artifact(&name, &path).await?;
        }
        Step::Get { name, output } => {
            let told = match attempt.get_artifact(&name).await {
                Ok((path, _)) => std::fs::read(path).map_err(|error| local(&error))?,
                Err(error) => format!("{}: {error}", error.category()).into_bytes(),
            };
            attempt.write_output(&output, &told).await?;
        }
        Step::PutForeign { path, output } => {
            // Around the SDK, which would refuse it by itself.
            let told = put_around_the_sdk(attempt.id(), &path).await;
            attempt.write_output(&output, told.as_bytes()).await?;
        }
        Step::Submit { request_ids, output } => {
            let tasks = request_ids.into_iter().map(|request_id| TaskSubmission {
                request_id,
                task_type: "work".to_owned(),
                resources: Some(Resources {
                    device_class: DeviceClass::Cpu.into(),
                    ..Resources::default()
                }),
                ..TaskSubmission::default()
            });
            let answers = attempt.submit_tasks(tasks.collect()).await?;
            attempt
                .write_output(&output, format!("{answers:?}").as_bytes())
                .await?;
        }
        Step::Subscribe { request_ids, output } => {
            let mut results = attempt.subscribe_tasks(request_ids).await?;
            let mut told = String::new();
            while let Some(result) = futures::StreamExt::next(&mut results).await {
                let result = result?;
                told.push_str(&format!(
                    "{}={};",
                    result.request_id,
                    String::from_utf8_lossy(&result.result)
                ));
            }
            attempt.write_output(&output, told.as_bytes()).await?;
        }
        Step::CompleteMarker(request_id) => attempt.complete_marker(&request_id).await?,
        Step::Send(text) => attempt.send_channel_message(None, text.into_bytes()).await?,
        Step::ReadChannel { request_id, output } => {
            let mut messages = attempt.read_channel(&request_id, 0).await?;
            let mut told = String::new();
            while let Some(message) = futures::StreamExt::next(&mut messages).await {
                told.push_str(&String::from_utf8_lossy(&message?.payload));
            }
            attempt.write_output(&output, told.as_bytes()).await?;
        }
        Step::Reference { name, output } => {
            attempt.add_reference(&name, "reader").await?;
            let dropped = attempt.remove_reference(&name, "reader").await?;
            attempt
                .write_output(&output, format!("dropped={dropped}").as_bytes())
                .await?;
        }
        Step::Permit { name, bytes } => attempt.acquire_permit(&name, bytes).await?,
        Step::Progress(fraction) => attempt.report_progress(Some(fraction), None).await,
        step => unreachable!("{step:?} is no call"),
    }
    Ok(())
}

async fn put_around_the_sdk(attempt_id: u64, path: &std::path::Path) -> String {
    use prover_backend::protocol::{PutArtifactRequest, agent_service_client::AgentServiceClient};
    let socket = std::env::var(prover_backend::AGENT_SOCKET_VARIABLE).expect("a socket");
    let endpoint = tonic::transport::Endpoint::try_from(format!("unix://{socket}")).expect("an address");
    let mut client = AgentServiceClient::new(endpoint.connect().await.expect("an agent"));
    let path = path.to_string_lossy().into_owned();
    let request = PutArtifactRequest {
        attempt_id,
        name: "foreign".to_owned(),
        path,
    };
    match client.put_artifact(request).await {
        Ok(_) => "taken".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // The same role as the subcommand of prover-worker.
    if arguments
        .get(1)
        .is_some_and(|argument| argument == "launch-child")
    {
        let parent = arguments[3].to_string_lossy().parse().expect("a process id");
        let error = prover_agent::launch::become_child(parent, &arguments[5], &arguments[6..]);
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    if std::env::var_os("TEST_REFUSE_TO_START").is_some() {
        eprintln!("the test backend was told not to start");
        return ExitCode::from(9);
    }
    prover_backend::main(TestBackend)
}
