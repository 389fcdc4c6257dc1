//! The binary as a process of its own, with an agent in the test's process.

#[allow(dead_code)]
#[path = "../../../../backend/tests/session/fake_agent.rs"]
mod fake_agent;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use fake_agent::{FakeAgent, Session};
use prover_backend::protocol::backend_event::Event;
use prover_backend::protocol::{
    AttemptCompleted, AttemptFailed, FailureClass, InputFile, JobPlan, RunAttempt, Shutdown, TaskSubmission,
};
use tokio::process::{Child, Command};

const BINARY: &str = env!("CARGO_BIN_EXE_prover-backend-emulated");
/// How long a test waits for a process to end.
const PATIENCE: Duration = Duration::from_secs(20);
const HANG_AFTER: Duration = Duration::from_millis(600);

struct Fixture {
    agent: FakeAgent,
    session: Session,
    child: Child,
    attempts: u64,
}

fn binary(agent: &FakeAgent) -> Command {
    let mut command = Command::new(BINARY);
    command
        .env("PROVER_AGENT_SOCKET", agent.socket())
        .env(
            "PROVER_EMULATED_HANG_AFTER_MS",
            HANG_AFTER.as_millis().to_string(),
        )
        .kill_on_drop(true);
    command
}

async fn end_of(child: &mut Child) -> ExitStatus {
    tokio::time::timeout(PATIENCE, child.wait())
        .await
        .expect("the process ends in time")
        .expect("its status")
}

impl Fixture {
    async fn start() -> Self {
        let mut agent = FakeAgent::start();
        let child = binary(&agent).spawn().expect("the binary starts");
        let (session, hello) = agent.welcomed().await;
        let description = hello.backend.expect("a description");
        assert!(description.emulated);
        assert_eq!(prover_backend::validate::description(&description), Ok(()));
        Self {
            agent,
            session,
            child,
            attempts: 0,
        }
    }

    fn input(&self, name: &str, bytes: &[u8]) -> InputFile {
        let path = self.agent.folder().join(name);
        std::fs::write(&path, bytes).expect("a file");
        let path = path.to_str().expect("UTF-8").to_owned();
        InputFile {
            name: name.to_owned(),
            path,
            size_bytes: bytes.len() as u64,
            sha256: String::new(),
        }
    }

    fn planning(&mut self, model: &str, plan: JobPlan) -> RunAttempt {
        self.attempts += 1;
        let plan = JobPlan {
            system: "emulated".to_owned(),
            kind: "Emulated".to_owned(),
            program: "program".to_owned(),
            input: "input".to_owned(),
            proof_output: "proof".to_owned(),
            public_values_output: "public-values".to_owned(),
            max_in_flight: 1_000,
            ..plan
        };
        RunAttempt {
            inputs: vec![
                self.input("program", b"any file"),
                self.input("input", model.as_bytes()),
            ],
            plan: Some(plan),
            ..self.agent.attempt(self.attempts, "plan", &[])
        }
    }

    /// Runs an attempt and answers with its end.
    async fn run(&mut self, run: RunAttempt) -> Result<AttemptCompleted, AttemptFailed> {
        self.session.send(run).await;
        loop {
            match self.session.event().await {
                Event::Completed(completed) => return Ok(completed),
                Event::Failed(failed) => return Err(failed),
                Event::Progress(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Plans a job whose tasks are only collected.
    async fn plan(&mut self, model: &str) -> Vec<TaskSubmission> {
        let planning = self.planning(model, JobPlan::default());
        self.run(planning).await.expect("it is planned");
        std::mem::take(&mut self.agent.shared().submissions)
            .into_iter()
            .flatten()
            .collect()
    }

    /// An attempt of a submitted task, with inputs from earlier ones.
    fn attempt(
        &mut self,
        task: &TaskSubmission,
        number: u32,
        artifacts: &BTreeMap<String, PathBuf>,
    ) -> RunAttempt {
        self.attempts += 1;
        let inputs = task.inputs.iter().map(|name| InputFile {
            name: name.clone(),
            path: artifacts[name].to_str().expect("UTF-8").to_owned(),
            size_bytes: std::fs::metadata(&artifacts[name]).expect("the file").len(),
            sha256: String::new(),
        });
        let outputs: Vec<&str> = task.outputs.iter().map(String::as_str).collect();
        RunAttempt {
            inputs: inputs.collect(),
            parameters: task.parameters.clone(),
            attempt_number: number,
            ..self.agent.attempt(self.attempts, &task.task_type, &outputs)
        }
    }

    /// Makes the first segment's proof task go wrong and answers how the process ends.
    async fn end_by(effect: &str) -> ExitStatus {
        let mut fixture = Self::start().await;
        let run = fixture.failing(effect).await;
        fixture.session.send(run).await;
        end_of(&mut fixture.child).await
    }

    async fn failing(&mut self, effect: &str) -> RunAttempt {
        let model = format!(r#"{{"segments": 1, "failures": [{{"task": "prove", "effect": {effect}}}]}}"#);
        let tasks = self.plan(&model).await;
        let task = TaskSubmission {
            inputs: vec![],
            ..tasks[0].clone()
        };
        self.attempt(&task, 1, &BTreeMap::new())
    }
}

#[tokio::test]
async fn a_whole_job_runs_to_a_conclusion_that_claims_no_proof() {
    let mut fixture = Fixture::start().await;
    let planning = fixture.planning(r#"{"segments": 5, "sizes": {"proof": 4096}}"#, JobPlan::default());
    // Segments are removed from the planner's directory when they are uploaded, so the agent keeps copies.
    let segments = fixture.input("segment", b"EMULATED, NOT A PROOF: segment\n").path;
    let planned = fixture.run(planning).await.expect("it is planned");
    let execution = planned.execution.expect("an execution");
    assert_eq!((execution.segments, execution.user_cycles), (5, 5 * 65_536));
    let tasks: Vec<TaskSubmission> = fixture.agent.shared().submissions.drain(..).flatten().collect();
    assert_eq!(tasks.len(), 5 + 5 + 4 + 2);
    let mut artifacts: BTreeMap<String, PathBuf> = (0..5)
        .map(|segment| (format!("segment-{segment}"), PathBuf::from(&segments)))
        .collect();
    let names: BTreeSet<String> = fixture.agent.shared().artifacts.keys().cloned().collect();
    assert_eq!(names, artifacts.keys().cloned().collect());
    let mut proof = None;
    for task in &tasks {
        assert!(proof.is_none(), "something runs after the conclusion");
        let attempt = fixture.attempt(task, 1, &artifacts);
        let completed = fixture.run(attempt).await.expect("it succeeds");
        artifacts.extend(
            completed
                .outputs
                .into_iter()
                .map(|output| (output.name, output.path.into())),
        );
        proof = completed.proof;
    }
    let proof = proof.expect("the last task concludes");
    assert_eq!(proof.verifier, "emulated (no proof)");
    assert_eq!(
        (proof.proof.as_str(), proof.public_values.as_str()),
        ("proof", "public-values")
    );
    assert_eq!(proof.proof_bytes, 4096);
    let bytes = std::fs::read(&artifacts["proof"]).expect("the file");
    assert!(bytes.starts_with(b"EMULATED, NOT A PROOF"));
    fixture.session.send(Shutdown {}).await;
    assert!(end_of(&mut fixture.child).await.success());
}

#[tokio::test]
async fn bad_input_is_told_as_such() {
    let mut fixture = Fixture::start().await;
    let cases = [
        (
            r#"{"segments": 1, "unknown": 1}"#,
            JobPlan::default(),
            "InvalidModel",
            "unknown",
        ),
        (
            r#"{"segments": 9}"#,
            JobPlan {
                max_cycles: 65_536,
                ..JobPlan::default()
            },
            "CycleLimitExceeded",
            "589824",
        ),
        (
            r#"{"segments": 1}"#,
            JobPlan {
                expected_program_id: "00".to_owned(),
                ..JobPlan::default()
            },
            "ProgramIdMismatch",
            "expects program 00",
        ),
        (
            r#"{"segments": 1}"#,
            JobPlan {
                input_format: 2,
                ..JobPlan::default()
            },
            "InputFormatNotSupported",
            "raw",
        ),
    ];
    for (model, plan, reason, word) in cases {
        let planning = fixture.planning(model, plan);
        let failed = fixture.run(planning).await.expect_err("it is refused");
        assert_eq!(
            (failed.class(), failed.reason.as_str()),
            (FailureClass::InvalidInput, reason)
        );
        assert!(failed.message.contains(word), "{}", failed.message);
    }
    assert!(fixture.agent.shared().submissions.is_empty());
}

#[tokio::test]
async fn failures_strike_the_attempts_that_the_model_names() {
    let mut fixture = Fixture::start().await;
    let model = r#"{"segments": 2, "failures": [
        {"task": "prove", "index": 1, "attempts": [1], "effect": "retryable"},
        {"task": "prove", "index": 0, "attempts": [1], "effect": "panic"},
        {"task": "lift", "effect": {"allocate": 50000000}}]}"#;
    let tasks = fixture.plan(model).await;
    let prove_tasks: Vec<_> = tasks.iter().filter(|task| task.task_type == "prove").collect();
    for (task, reason) in prove_tasks.into_iter().zip(["BackendPanicked", "Emulated"]) {
        let task = TaskSubmission {
            inputs: vec![],
            ..task.clone()
        };
        let first = fixture.attempt(&task, 1, &BTreeMap::new());
        let failed = fixture.run(first).await.expect_err("it fails");
        assert_eq!(
            (failed.class(), failed.reason.as_str()),
            (FailureClass::Retryable, reason)
        );
        let second = fixture.attempt(&task, 2, &BTreeMap::new());
        fixture.run(second).await.expect("it succeeds");
    }
    let lift = tasks
        .iter()
        .find(|task| task.task_type == "lift")
        .expect("a lift task");
    let lift = TaskSubmission {
        inputs: vec![],
        ..lift.clone()
    };
    let attempt = fixture.attempt(&lift, 1, &BTreeMap::new());
    let failed = fixture.run(attempt).await.expect_err("it fails");
    assert_eq!(failed.class(), FailureClass::OutOfMemory);
    assert!(failed.message.contains("50000000"), "{}", failed.message);
}

#[tokio::test]
async fn the_process_ends_in_the_way_that_the_model_says() {
    assert_eq!(Fixture::end_by(r#""abort""#).await.signal(), Some(6));
    assert_eq!(Fixture::end_by(r#""segmentationFault""#).await.signal(), Some(11));
    assert_eq!(Fixture::end_by(r#""kill""#).await.signal(), Some(9));
    assert_eq!(Fixture::end_by(r#"{"exit": 7}"#).await.code(), Some(7));
}

#[tokio::test]
async fn a_hanging_process_stops_its_pulses() {
    let mut fixture = Fixture::start().await;
    let run = fixture.failing(r#""hang""#).await;
    fixture.session.send(run).await;
    // Pulses that were under way may still come; then there is silence for longer than the declared time.
    let silence = async {
        while tokio::time::timeout(HANG_AFTER * 2, fixture.session.any_event())
            .await
            .is_ok()
        {}
    };
    tokio::time::timeout(PATIENCE, silence)
        .await
        .expect("the pulses stop");
    assert!(
        fixture.child.try_wait().expect("its status").is_none(),
        "it hangs and has not ended"
    );
    fixture.child.kill().await.expect("it is killed");
}

#[tokio::test]
async fn the_process_ends_when_its_agent_closes_the_session() {
    let Fixture {
        agent,
        session,
        mut child,
        ..
    } = Fixture::start().await;
    drop(session);
    assert_eq!(end_of(&mut child).await.code(), Some(3));
    drop(agent);
}

#[tokio::test]
async fn the_process_ends_when_its_parent_dies_though_the_session_is_open() {
    let mut agent = FakeAgent::start();
    // A shell stands for an agent that is killed while somebody else holds its socket.
    let mut parent = Command::new("sh")
        .args(["-c", &format!("{BINARY} & echo $!; wait")])
        .env("PROVER_AGENT_SOCKET", agent.socket())
        .env(
            "PROVER_EMULATED_HANG_AFTER_MS",
            HANG_AFTER.as_millis().to_string(),
        )
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("a shell");
    let (mut session, _) = agent.welcomed().await;
    parent.kill().await.expect("it is killed");
    let end = async { while session.any_event().await.is_some() {} };
    tokio::time::timeout(PATIENCE, end)
        .await
        .expect("the process ends in time");
}

#[tokio::test]
async fn without_an_agent_the_binary_says_who_starts_it() {
    let output = Command::new(BINARY)
        .env_remove("PROVER_AGENT_SOCKET")
        .output()
        .await
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("prover-worker"));
}

#[tokio::test]
async fn verify_never_accepts_and_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let proof = folder.path().join("proof");
    std::fs::write(&proof, "EMULATED, NOT A PROOF: proof\n").expect("a file");
    let verify = async |proof: PathBuf, program_id: &str| {
        let arguments = [
            "verify",
            "--output",
            "json",
            "--program-id",
            program_id,
            "--proof",
        ];
        let output = Command::new(BINARY)
            .args(arguments)
            .arg(proof)
            .output()
            .await
            .expect("it runs");
        let answer = String::from_utf8(output.stdout).expect("UTF-8");
        (output.status.code(), answer)
    };
    let (code, answer) = verify(proof.clone(), "0xAB").await;
    assert_eq!(code, Some(1));
    assert!(
        answer.contains(r#""accepted":false"#) && answer.contains(r#""emulated":true"#),
        "{answer}"
    );
    assert!(
        answer.contains("no proofs") && answer.contains(r#""programId":"ab""#),
        "{answer}"
    );
    let (code, answer) = verify(proof, "program").await;
    assert_eq!(code, Some(2));
    assert!(answer.contains("not hexadecimal"), "{answer}");
    let (code, answer) = verify(folder.path().join("nothing"), "ab").await;
    assert_eq!(code, Some(2));
    assert!(answer.contains("could not read"), "{answer}");
}
