//! The binary as a process of its own, with an agent in the test's process and small programs as provers.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[allow(dead_code)]
#[path = "../../../../backend/tests/session/fake_agent.rs"]
mod fake_agent;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fake_agent::{FakeAgent, Session};
use prover_backend::protocol::backend_event::Event;
use prover_backend::protocol::{
    AttemptCompleted, AttemptFailed, BackendDescription, FailureClass, InputFile, JobPlan, RunAttempt,
    StopAttempt, TaskSubmission,
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

const BINARY: &str = env!("CARGO_BIN_EXE_prover-backend-command");
/// A prover whose proof is the input, and a verifier that wants the proof to be the program.
const PROVE: [&str; 3] = ["/bin/cp", "{input}", "{proof}"];
const VERIFY: [&str; 3] = ["/usr/bin/cmp", "{program}", "{proof}"];

struct Fixture {
    agent: FakeAgent,
    session: Session,
    description: BackendDescription,
    _child: Child,
    attempts: u64,
    artifacts: BTreeMap<String, PathBuf>,
}

impl Fixture {
    async fn start(changes: &[(&str, Value)]) -> Self {
        let mut config = json!({ "backend": "groth16", "prove": PROVE, "verify": VERIFY });
        for (field, value) in changes {
            config[field] = value.clone();
        }
        let mut agent = FakeAgent::start();
        let child = Command::new(BINARY)
            .env("PROVER_AGENT_SOCKET", agent.socket())
            .env("PROVER_COMMAND_CONFIG", config.to_string())
            .env("KUBERNETES_SERVICE_HOST", "10.0.0.1")
            .env("FROM_IMAGE", "yes")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (session, hello) = agent.welcomed().await;
        let description = hello.backend.unwrap();
        assert_eq!(prover_backend::validate::description(&description), Ok(()));
        let mut fixture = Self {
            agent,
            session,
            description,
            _child: child,
            attempts: 0,
            artifacts: BTreeMap::new(),
        };
        fixture.artifact("program", b"circuit");
        fixture.artifact("input", b"circuit");
        fixture
    }

    fn artifact(&mut self, name: &str, bytes: &[u8]) {
        let path = self.agent.folder().join(name);
        std::fs::write(&path, bytes).unwrap();
        self.artifacts.insert(name.to_owned(), path);
    }

    fn inputs(&self, names: &[String]) -> Vec<InputFile> {
        let input = |name: &String| InputFile {
            name: name.clone(),
            path: self.artifacts[name].to_str().unwrap().to_owned(),
            size_bytes: std::fs::metadata(&self.artifacts[name]).unwrap().len(),
            sha256: String::new(),
        };
        names.iter().map(input).collect()
    }

    async fn plan_with(&mut self, plan: JobPlan) -> Result<AttemptCompleted, AttemptFailed> {
        self.attempts += 1;
        let plan = JobPlan {
            system: "command:groth16".to_owned(),
            kind: "Proof".to_owned(),
            program: "program".to_owned(),
            input: "input".to_owned(),
            proof_output: "proof".to_owned(),
            public_values_output: "public-values".to_owned(),
            max_in_flight: 32,
            smallest_worker_memory_bytes: 1 << 30,
            ..plan
        };
        let run = RunAttempt {
            inputs: self.inputs(&["program".to_owned(), "input".to_owned()]),
            plan: Some(plan),
            ..self.agent.attempt(self.attempts, "plan", &[])
        };
        self.run(run).await
    }

    /// The two tasks of a job.
    async fn plan(&mut self) -> [TaskSubmission; 2] {
        let completed = self.plan_with(JobPlan::default()).await.unwrap();
        let execution = completed.execution.unwrap();
        assert_eq!(execution.program_id.len(), 64);
        let submitted: Vec<TaskSubmission> = self.agent.shared().submissions.drain(..).flatten().collect();
        submitted.try_into().unwrap()
    }

    fn attempt(&mut self, task: &TaskSubmission) -> RunAttempt {
        self.attempts += 1;
        let outputs: Vec<&str> = task.outputs.iter().map(String::as_str).collect();
        RunAttempt {
            inputs: self.inputs(&task.inputs),
            parameters: task.parameters.clone(),
            ..self.agent.attempt(self.attempts, &task.task_type, &outputs)
        }
    }

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

    /// Runs the first task; its outputs become artifacts.
    async fn prove(&mut self) -> Result<AttemptCompleted, AttemptFailed> {
        let [prove, _] = self.plan().await;
        let attempt = self.attempt(&prove);
        let completed = self.run(attempt).await?;
        for output in &completed.outputs {
            self.artifacts
                .insert(output.name.clone(), PathBuf::from(&output.path));
        }
        Ok(completed)
    }

    async fn verify(&mut self) -> Result<AttemptCompleted, AttemptFailed> {
        let [_, verify] = self.plan().await;
        let attempt = self.attempt(&verify);
        self.run(attempt).await
    }

    fn text(&self, artifact: &str) -> String {
        std::fs::read_to_string(&self.artifacts[artifact]).unwrap()
    }
}

fn shell(script: &str) -> Value {
    json!(["/bin/sh", "-c", format!("{script} # {{proof}}")])
}

#[tokio::test]
async fn a_job_is_proved_verified_and_bound_to_its_program() {
    let mut fixture = Fixture::start(&[]).await;
    assert_eq!(fixture.description.name, "groth16");
    assert_eq!(fixture.description.proofs[0].system, "command:groth16");
    assert!(!fixture.description.emulated);
    let [prove, verify] = fixture.plan().await;
    assert_eq!(verify.depends_on, std::slice::from_ref(&prove.request_id));
    assert!(verify.concludes_job && !prove.concludes_job);
    assert_eq!(prove.resources.unwrap().host_memory_bytes, 1 << 30);
    let proved = fixture.prove().await.unwrap();
    assert!(proved.proof.is_none(), "only a verifier may claim a proof");
    assert_eq!(fixture.text("proof"), "circuit");
    assert_eq!(fixture.text("public-values"), "");
    let report = fixture.verify().await.unwrap().proof.unwrap();
    assert_eq!(report.proof_bytes, 7);
    let sha256 = <sha2::Sha256 as sha2::Digest>::digest(b"circuit");
    assert_eq!(report.program_id, hex::encode(sha256));
    assert!(report.verifier.starts_with("groth16 "), "{}", report.verifier);
}

#[tokio::test]
async fn public_values_are_what_the_command_writes() {
    let mut fixture = Fixture::start(&[
        ("prove", json!(["/usr/bin/tee", "{proof}", "{publicValues}"])),
        (
            "verify",
            json!(["/bin/true", "{program}", "{proof}", "{publicValues}"]),
        ),
    ])
    .await;
    let failed = fixture.prove().await.unwrap_err();
    assert_eq!(
        failed.reason, "OutputUnreadable",
        "standard input is empty: {failed:?}"
    );
    assert!(failed.message.contains("it is empty"));

    let mut fixture = Fixture::start(&[
        (
            "prove",
            json!(["/bin/sh", "-c", "echo p >{proof}; echo v >{publicValues}"]),
        ),
        (
            "verify",
            json!([
                "/usr/bin/grep",
                "--files-with-matches",
                "v",
                "{publicValues}",
                "{program}",
                "{proof}"
            ]),
        ),
    ])
    .await;
    fixture.prove().await.unwrap();
    assert_eq!(fixture.text("public-values"), "v\n");
    assert!(fixture.verify().await.is_ok());
}

#[tokio::test]
async fn a_proof_that_the_verifier_refuses_fails_the_job_with_its_words() {
    let mut fixture = Fixture::start(&[]).await;
    fixture.artifact("input", b"forged!");
    fixture.prove().await.unwrap();
    let failed = fixture.verify().await.unwrap_err();
    assert_eq!(
        (failed.class(), failed.reason.as_str()),
        (FailureClass::Fatal, "ProofRefused")
    );
    assert!(
        failed.message.contains("refused the proof with exit code 1"),
        "{}",
        failed.message
    );
    assert!(
        failed.message.contains("differ"),
        "cmp's own words: {}",
        failed.message
    );
}

#[tokio::test]
async fn a_prover_that_writes_no_proof_is_told_so() {
    let mut fixture = Fixture::start(&[("prove", json!(["/bin/echo", "done", "{proof}"]))]).await;
    let failed = fixture.prove().await.unwrap_err();
    assert_eq!(
        (failed.class(), failed.reason.as_str()),
        (FailureClass::Fatal, "ProofNotWritten")
    );
    assert!(failed.message.contains("wrote no file at {proof}") && failed.message.contains("done"));
}

#[tokio::test]
async fn exit_codes_signals_and_missing_programs_are_told_apart() {
    let cases = [
        (
            shell("echo why >&2; exit 3"),
            FailureClass::Retryable,
            "CommandFailed",
            "exit code 3",
        ),
        (
            shell("echo bad witness; exit 65"),
            FailureClass::InvalidInput,
            "CommandRefusedInput",
            "bad witness",
        ),
        (
            shell("kill -SEGV $$"),
            FailureClass::Retryable,
            "CommandCrashed",
            "signal 11",
        ),
        (
            json!(["/nowhere/prove", "{proof}"]),
            FailureClass::Fatal,
            "CommandNotRunnable",
            "/nowhere/prove",
        ),
        (
            shell("ln -s /etc/passwd {proof}"),
            FailureClass::Fatal,
            "OutputUnreadable",
            "symbolic link",
        ),
        (
            shell("mkdir {proof}"),
            FailureClass::Fatal,
            "OutputUnreadable",
            "no plain file",
        ),
        (
            shell("mkfifo {proof}"),
            FailureClass::Fatal,
            "OutputUnreadable",
            "no plain file",
        ),
    ];
    for (prove, class, reason, words) in cases {
        let mut fixture = Fixture::start(&[("prove", prove)]).await;
        let failed = fixture.prove().await.unwrap_err();
        assert_eq!(
            (failed.class(), failed.reason.as_str()),
            (class, reason),
            "{failed:?}"
        );
        assert!(failed.message.contains(words), "{}", failed.message);
    }
}

#[tokio::test]
async fn only_the_last_of_much_output_is_told() {
    let script = "i=0; while [ $i -lt 5000 ]; do echo line-$i; i=$((i+1)); done; head -c 1000000 /dev/zero | tr '\\0' x; exit 1";
    let mut fixture = Fixture::start(&[("prove", shell(script))]).await;
    let failed = fixture.prove().await.unwrap_err();
    assert!(failed.message.contains("line-4999") && !failed.message.contains("line-4000"));
    assert!(failed.message.len() < 4096, "{} bytes", failed.message.len());
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_its_children() {
    let script = "sleep 600 & echo $! >child; echo up; wait";
    let mut fixture = Fixture::start(&[("prove", shell(script)), ("timeoutSeconds", json!(1))]).await;
    let began = Instant::now();
    let failed = fixture.prove().await.unwrap_err();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(
        (failed.class(), failed.reason.as_str()),
        (FailureClass::Fatal, "CommandTimedOut")
    );
    assert!(failed.message.contains("1 s of command.timeoutSeconds") && failed.message.contains("up"));
    let child = child_of(&fixture.agent.folder().join("attempt-2/run/child"));
    assert!(!runs(child), "a child of the command lives on");
}

#[tokio::test]
async fn a_stopped_attempt_is_answered_once_the_command_is_gone() {
    let mut fixture = Fixture::start(&[("prove", shell("echo $$ >child; exec sleep 600"))]).await;
    let [prove, _] = fixture.plan().await;
    let attempt = fixture.attempt(&prove);
    let (id, file) = (
        attempt.attempt_id,
        Path::new(&attempt.directory).join("run/child"),
    );
    fixture.session.send(attempt).await;
    let started = async {
        while std::fs::read_to_string(&file).unwrap_or_default().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), started)
        .await
        .unwrap();
    let stop = StopAttempt {
        attempt_id: id,
        only_if_not_started: false,
    };
    fixture.session.send(stop).await;
    let Event::Stopped(stopped) = fixture.session.event().await else {
        panic!("it was not stopped")
    };
    assert!(stopped.had_started);
    assert!(!runs(child_of(&file)));
}

fn child_of(file: &Path) -> i32 {
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

/// Whether a process runs; one that nobody has waited for yet does not.
fn runs(process: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test]
async fn a_command_sees_the_images_variables_and_none_of_ours() {
    let mut fixture = Fixture::start(&[("prove", json!(["/bin/sh", "-c", "env >{proof}"]))]).await;
    fixture.prove().await.unwrap();
    let variables = fixture.text("proof");
    assert!(variables.contains("FROM_IMAGE=yes") && variables.contains("PATH="));
    for line in variables.lines() {
        assert!(
            !line.starts_with("PROVER_") && !line.starts_with("KUBERNETES_"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_program_of_another_identity_and_a_second_plan_are_refused() {
    let mut fixture = Fixture::start(&[]).await;
    let expected = JobPlan {
        expected_program_id: "00".repeat(32),
        ..JobPlan::default()
    };
    let failed = fixture.plan_with(expected).await.unwrap_err();
    assert_eq!(
        (failed.class(), failed.reason.as_str()),
        (FailureClass::InvalidInput, "ProgramIdMismatch")
    );
    let again = JobPlan {
        segment_po2_reduction: 1,
        ..JobPlan::default()
    };
    let failed = fixture.plan_with(again).await.unwrap_err();
    assert_eq!(
        (failed.class(), failed.reason.as_str()),
        (FailureClass::Fatal, "OutOfMemory")
    );
}

#[tokio::test]
async fn a_wrong_configuration_ends_the_process_with_words() {
    for (config, words) in [
        (None, "is not set"),
        (Some("{"), "is not what this backend reads"),
    ] {
        let mut command = Command::new(BINARY);
        command.env_remove("PROVER_COMMAND_CONFIG");
        if let Some(config) = config {
            command.env("PROVER_COMMAND_CONFIG", config);
        }
        let output = command.output().await.unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(words));
    }
}
