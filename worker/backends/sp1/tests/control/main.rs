//! SP1's executor and the root of a job against an agent in this process: real programs, no proving keys.

mod device;
mod fake_agent;

use std::collections::BTreeSet;

use prover_backend::protocol::{DeviceClass, FailureClass, JobPlan, RunAttempt, TaskSubmission};
use prover_backend_sp1::control_host::{BEGUN, JobTraits};
use prover_backend_sp1::graph::{Words, task_type};
use prover_backend_sp1::runtime::Engine;
use prover_backend_sp1::{Sp1, codec};
use prover_sp1_engine::Settings;
use sha2::{Digest as _, Sha256};
use sp1_core_machine::executor::ExecutionOutput;
use sp1_core_machine::io::SP1Stdin;
use sp1_core_machine::riscv::RiscvAir;
use sp1_prover::worker::{
    CommonProverInput, CoreExecuteTaskRequest, ProofData, ProofId, RequesterId, TaskContext,
};
use sp1_prover_types::Artifact;
use sp1_prover_types::network_base_types::ProofMode;

use fake_agent::FakeAgent;

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../target/programs/sp1");

fn program(name: &str) -> Vec<u8> {
    let path = format!("{PROGRAMS}/{name}.elf");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}: run tools/fetch-sp1-programs.sh"))
}

fn backend() -> Sp1 {
    let settings = Settings {
        element_threshold: 1 << 27,
        height_threshold: 1 << 22,
        executor_memory_bytes: 4 << 30,
        gpu: false,
    };
    Sp1::new(Engine::new(settings).expect("threads"))
}

fn fibonacci_input() -> SP1Stdin {
    let mut stdin = SP1Stdin::new();
    stdin.write(&500_u32);
    stdin
}

/// An attempt of the task `execute`, and its inputs.
fn execution() -> (RunAttempt, Vec<(&'static str, Vec<u8>)>) {
    // No shard is proved here, so that any verifying key will do.
    let common = CommonProverInput {
        vk: bincode::deserialize(&[0; 65536]).expect("a key of zeros"),
        mode: ProofMode::Core,
        deferred_digest: [0; 8],
        num_deferred_proofs: 0,
        nonce: [0; 4],
    };
    let request = CoreExecuteTaskRequest {
        elf: Artifact("program".to_owned()),
        stdin: Artifact("stdin".to_owned()),
        common_input: Artifact("common".to_owned()),
        execution_output: Artifact("execution".to_owned()),
        num_deferred_proofs: 0,
        cycle_limit: None,
        context: TaskContext {
            proof_id: ProofId::new("job"),
            parent_id: None,
            parent_context: None,
            requester_id: RequesterId::new("test"),
        },
        machine: RiscvAir::machine(),
        stdin_private: false,
    };
    let raw = request.into_raw().expect("a request");
    let job = JobTraits {
        kind: "Core".to_owned(),
        version: "test".to_owned(),
        device_class: DeviceClass::Cpu,
    };
    let words = Words {
        inputs: raw
            .inputs
            .into_iter()
            .map(Artifact::to_id)
            .chain(job.to_words())
            .collect(),
        outputs: vec!["execution".to_owned()],
    };
    let run = RunAttempt {
        task_type: task_type::EXECUTE.to_owned(),
        outputs: vec!["execution".to_owned()],
        parameters: serde_json::to_vec(&words).expect("words"),
        ..RunAttempt::default()
    };
    let packed = |bytes: Vec<u8>| codec::pack(&bytes).expect("packs");
    let inputs = vec![
        ("program", program("fibonacci")),
        (
            "stdin",
            packed(bincode::serialize(&fibonacci_input()).expect("a stdin")),
        ),
        (
            "common",
            packed(bincode::serialize(&common).expect("a common input")),
        ),
    ];
    (run, inputs)
}

async fn execute(
    agent: &mut FakeAgent,
) -> Result<prover_backend::protocol::AttemptCompleted, prover_backend::protocol::AttemptFailed> {
    let (run, inputs) = execution();
    let inputs: Vec<(&str, &[u8])> = inputs
        .iter()
        .map(|(name, bytes)| (*name, bytes.as_slice()))
        .collect();
    agent.run(run, &inputs).await
}

fn keys(tasks: &[&TaskSubmission]) -> BTreeSet<String> {
    tasks.iter().map(|task| task.cache_key.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_submits_its_shards_announces_each_and_asks_for_room() {
    let mut agent = FakeAgent::start(backend()).await;
    let completed = execute(&mut agent).await.expect("executes");
    let output = std::fs::read(&completed.outputs[0].path).expect("the output");
    let output = codec::unpack(&output).expect("unpacks");
    let output: ExecutionOutput = bincode::deserialize(&output).expect("decodes");
    assert!(output.cycles > 1000, "{} cycles", output.cycles);

    let seen = agent.seen();
    let shards = seen.of_type(task_type::SHARD);
    let markers = seen.tasks.iter().filter(|task| task.marker).count();
    assert_eq!(shards.len(), 2, "one of the program, one of its memory");
    assert_eq!(markers, 1, "only the program's shard defers");
    assert!(
        shards
            .iter()
            .all(|shard| shard.cache_key.starts_with("sp1-prove-shard-"))
    );
    assert_eq!(seen.messages[0], BEGUN);
    let announced: BTreeSet<String> = seen
        .messages
        .iter()
        .skip(1)
        .map(|message| bincode::deserialize::<ProofData>(message).expect("a shard"))
        .map(|shard| shard.task_id.to_string())
        .collect();
    let submitted = shards.iter().map(|shard| shard.request_id.clone()).collect();
    assert_eq!(announced, submitted);
    for shard in shards {
        let record = &shard.inputs[2];
        assert_eq!(seen.permits[record], seen.artifacts[record].len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_execution_asks_for_the_same_results_under_other_names() {
    let mut agent = FakeAgent::start(backend()).await;
    execute(&mut agent).await.expect("executes");
    let first = agent.forget();
    execute(&mut agent).await.expect("executes again");
    let second = agent.seen();
    assert_eq!(
        keys(&first.of_type(task_type::SHARD)),
        keys(&second.of_type(task_type::SHARD))
    );
    let names = |tasks: &[TaskSubmission]| -> BTreeSet<String> {
        tasks.iter().map(|task| task.request_id.clone()).collect()
    };
    assert!(names(&first.tasks).is_disjoint(&names(&second.tasks)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_from_the_action_cache_completes_the_marker() {
    let mut agent = FakeAgent::start(backend()).await;
    execute(&mut agent).await.expect("executes");
    let first = agent.forget();
    assert!(
        first.completed_by_backend.is_empty(),
        "a shard's own attempt does it"
    );
    agent.seen().cache = keys(&first.of_type(task_type::SHARD));
    execute(&mut agent).await.expect("executes again");
    let seen = agent.seen();
    let markers = seen.tasks.iter().filter(|task| task.marker);
    let markers: BTreeSet<String> = markers.map(|task| task.request_id.clone()).collect();
    assert_eq!(seen.completed_by_backend, markers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_and_a_coordinator_that_are_away_for_a_while_are_waited_for() {
    let mut agent = FakeAgent::start(backend()).await;
    {
        let mut seen = agent.seen();
        seen.puts_away = 2;
        seen.subscriptions_broken = 2;
    }
    execute(&mut agent).await.expect("executes");
    assert_eq!(agent.seen().puts_away, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn deferred_events_that_are_lost_fail_the_attempt_and_never_become_none() {
    let mut agent = FakeAgent::start(backend()).await;
    agent.seen().deferred_lost = true;
    let failed = execute(&mut agent).await.expect_err("the events are lost");
    assert_eq!(failed.class(), FailureClass::Artifact, "{failed:?}");
    assert!(failed.message.contains("could not read"), "{failed:?}");
}

fn job(kind: &str) -> RunAttempt {
    RunAttempt {
        task_type: task_type::CONTROL.to_owned(),
        plan: Some(JobPlan {
            system: "sp1".to_owned(),
            kind: kind.to_owned(),
            program: "program".to_owned(),
            input: "input".to_owned(),
            input_format: prover_backend::protocol::InputFormat::Stdin.into(),
            device_class: DeviceClass::Cpu.into(),
            proof_output: "proof".to_owned(),
            public_values_output: "public-values".to_owned(),
            max_in_flight: 64,
            execute_only: kind == "ExecuteOnly",
            ..JobPlan::default()
        }),
        ..RunAttempt::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn execute_only_tells_cycles_and_leaves_the_public_values() {
    let mut agent = FakeAgent::start(backend()).await;
    let mut stdin = SP1Stdin::new();
    stdin.write_slice(b"bytes");
    let input = bincode::serialize(&stdin).expect("a stdin");
    let program = program("sha2");
    let inputs = [("program", program.as_slice()), ("input", input.as_slice())];
    let completed = agent.run(job("ExecuteOnly"), &inputs).await.expect("executes");
    let report = completed.execution.expect("a report");
    assert!(report.total_cycles > 1000, "{report:?}");
    assert_eq!(report.exit_code, 0);
    let seen = agent.seen();
    // The program commits to the digest of what it read, as a vector: its length first.
    let digest = Sha256::digest(b"bytes");
    let committed = [&(digest.len() as u64).to_le_bytes()[..], &digest[..]].concat();
    assert_eq!(seen.artifacts["public-values"], committed);
    assert!(seen.tasks.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_panics_is_bad_input_with_and_without_a_proof() {
    let mut agent = FakeAgent::start(backend()).await;
    let program = program("fibonacci");
    // A byte is not the number that the program reads.
    let mut stdin = SP1Stdin::new();
    stdin.write_slice(&[0]);
    let stdin = bincode::serialize(&stdin).expect("a stdin");
    let inputs = [("program", program.as_slice()), ("input", stdin.as_slice())];
    let failed = agent.run(job("ExecuteOnly"), &inputs).await.expect_err("panics");
    assert_eq!(
        (failed.reason.as_str(), failed.class()),
        ("GuestPanicked", FailureClass::InvalidInput)
    );
    assert!(failed.message.contains("panicked at"), "{failed:?}");

    let (run, mut inputs) = execution();
    inputs[1].1 = codec::pack(&stdin).expect("packs");
    let inputs: Vec<(&str, &[u8])> = inputs
        .iter()
        .map(|(name, bytes)| (*name, bytes.as_slice()))
        .collect();
    let failed = agent.run(run, &inputs).await.expect_err("panics");
    assert_eq!(
        (failed.reason.as_str(), failed.class()),
        ("GuestPanicked", FailureClass::InvalidInput)
    );
    assert!(failed.message.contains("exit code 1"), "{failed:?}");
    assert!(failed.message.contains("panicked at"), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_jumps_to_where_it_has_no_instructions_is_bad_input_with_and_without_a_proof() {
    let mut agent = FakeAgent::start(backend()).await;
    let mut program = program("fibonacci");
    // The entry point in the header of an ELF file of 64 bits.
    program[0x18..0x20].copy_from_slice(&16u64.to_le_bytes());
    let stdin = bincode::serialize(&fibonacci_input()).expect("a stdin");
    let inputs = [("program", program.as_slice()), ("input", stdin.as_slice())];
    let (run, mut packed) = execution();
    packed[0].1.clone_from(&program);
    let packed: Vec<(&str, &[u8])> = packed
        .iter()
        .map(|(name, bytes)| (*name, bytes.as_slice()))
        .collect();
    for (run, inputs) in [(job("ExecuteOnly"), &inputs[..]), (run, &packed)] {
        let failed = agent.run(run, inputs).await.expect_err("dies");
        assert_eq!(
            (failed.reason.as_str(), failed.class()),
            ("ProgramFailed", FailureClass::InvalidInput),
            "{failed:?}"
        );
        assert!(failed.message.contains("cargo prove build"), "{failed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_program_are_refused_before_anything_is_proved() {
    let mut agent = FakeAgent::start(backend()).await;
    let stdin = bincode::serialize(&SP1Stdin::new()).expect("a stdin");
    let fibonacci = program("fibonacci");
    for kind in ["Core", "ExecuteOnly"] {
        for program in [&b"no ELF"[..], &fibonacci[..1000], &[]] {
            let inputs = [("program", program), ("input", stdin.as_slice())];
            let failed = agent.run(job(kind), &inputs).await.expect_err("is refused");
            assert_eq!(
                (failed.reason.as_str(), failed.class()),
                ("ProgramUnreadable", FailureClass::InvalidInput)
            );
            assert!(agent.seen().tasks.is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_can_not_be_done_here_is_refused_before_anything_is_proved() {
    let mut agent = FakeAgent::start(backend()).await;
    let program = program("fibonacci");
    let stdin = bincode::serialize(&SP1Stdin::new()).expect("a stdin");
    for (kind, input, reason) in [
        ("Groth16", stdin.as_slice(), "CircuitsMissing"),
        ("Succinct", stdin.as_slice(), "ProofKindNotOffered"),
        ("Core", &[255; 20], "InputMalformed"),
    ] {
        let inputs = [("program", program.as_slice()), ("input", input)];
        let failed = agent.run(job(kind), &inputs).await.expect_err("is refused");
        assert_eq!(failed.reason, reason, "{failed:?}");
        assert!(agent.seen().tasks.is_empty());
    }
}
