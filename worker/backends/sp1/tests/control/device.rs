//! What a prover asks for while it proves a core shard, and a precompile shard, played by a backend of the test.

use std::sync::Arc;

use prover_backend::protocol::{BackendDescription, RunAttempt};
use prover_backend::{
    Attempt, Backend, Completed, TaskError, Verified, VerifyFailure, VerifyRequest, async_trait,
};
use prover_backend_sp1::codec;
use prover_backend_sp1::control_host::as_program;
use prover_backend_sp1::device_host::DeviceHost;
use prover_backend_sp1::graph::{self, Words, task_type};
use prover_backend_sp1::nested::{chunk_name, early};
use prover_backend_sp1::store::Store;
use prover_sp1_engine::Host;
use sp1_core_executor::SyscallCode;
use sp1_prover::worker::{DeferredEvents, PrecompileArtifactSlice, TraceData};
use sp1_prover_types::{Artifact, ArtifactType};

use crate::fake_agent::FakeAgent;

const PLAIN: ArtifactType = ArtifactType::UnspecifiedArtifactType;
const EVENTS: &[u8] = b"events of a shard";
const CODE: SyscallCode = SyscallCode::KECCAK_PERMUTE;

/// A backend that asks for what SP1's prover asks for, in its order, without proving.
#[derive(Default)]
struct Played {
    host: Arc<DeviceHost>,
}

fn slice(name: &str) -> PrecompileArtifactSlice {
    PrecompileArtifactSlice {
        artifact: Artifact(name.to_owned()),
        start_idx: 0,
        end_idx: 5,
    }
}

impl Played {
    async fn shard(&self, words: &Words) -> anyhow::Result<()> {
        let host = &self.host;
        let [program, _, record, marker] = words.inputs.as_slice() else {
            anyhow::bail!("four inputs");
        };
        assert_eq!(
            host.download(program, ArtifactType::Program).await?,
            as_program(b"ELF")
        );
        match bincode::deserialize(&host.download(record, PLAIN).await?)? {
            TraceData::Precompile(slices, code) => {
                assert_eq!(code, CODE);
                let chunk = slices[0].artifact.0.clone();
                assert_eq!(host.download(&chunk, PLAIN).await?, EVENTS);
                host.upload(&words.outputs[0], PLAIN, b"proof".to_vec()).await?;
                assert!(host.remove_reference(&chunk, "0_5").await?);
            }
            _ => {
                let chunk = host.create();
                host.upload(&chunk, PLAIN, EVENTS.to_vec()).await?;
                let events = DeferredEvents([(CODE, vec![slice(&chunk)])].into_iter().collect());
                host.upload(&words.outputs[1], PLAIN, bincode::serialize(&events)?)
                    .await?;
                host.complete(marker).await?;
                host.upload(&words.outputs[0], PLAIN, b"proof".to_vec()).await?;
            }
        }
        host.delete(vec![record.clone()]).await
    }
}

#[async_trait]
impl Backend for Played {
    fn describe(&self) -> BackendDescription {
        BackendDescription {
            name: "played".to_owned(),
            version: "1".to_owned(),
            attempts_at_once: 1,
            task_types: graph::declared(),
            ..BackendDescription::default()
        }
    }

    async fn run(&self, attempt: Attempt) -> Result<Completed, TaskError> {
        let words: Words = serde_json::from_slice(attempt.parameters()).expect("words");
        let admitted = self.host.admit(Store::new(attempt), words);
        let work = async { Ok(self.shard(&admitted.words).await?) };
        admitted.store.failure.guard(work).await?;
        Ok(Completed::default())
    }

    fn verify_file(&self, _: &VerifyRequest) -> Result<Verified, VerifyFailure> {
        Err(VerifyFailure::refused("no"))
    }
}

fn attempt(outputs: &[&str]) -> RunAttempt {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let all = Words {
        inputs: words(&["program", "common", "record", "marker-1"]),
        outputs: words(outputs),
    };
    RunAttempt {
        task_type: task_type::SHARD.to_owned(),
        outputs: all.outputs.clone(),
        parameters: serde_json::to_vec(&all).expect("words"),
        ..RunAttempt::default()
    }
}

fn packed(record: &TraceData) -> Vec<u8> {
    codec::pack(&bincode::serialize(record).expect("encodes")).expect("packs")
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_core_shard_are_found_under_names_of_their_content() {
    let mut agent = FakeAgent::start(Played::default()).await;
    let record = packed(&TraceData::Core(vec![1]));
    let inputs = [
        ("program", b"ELF".as_slice()),
        ("common", b"c"),
        ("record", &record),
    ];
    let completed = agent
        .run(attempt(&["proof", "deferred"]), &inputs)
        .await
        .expect("proves");
    let seen = agent.seen();
    assert!(seen.completed_by_backend.contains("marker-1"));
    // The name of the output itself is bound when the attempt ends, else the action cache would not take it.
    assert!(!seen.artifacts.contains_key("deferred"));
    let deferred = &seen.artifacts[&early("deferred")];
    let at_end = completed.outputs.iter().find(|output| output.name == "deferred");
    assert_eq!(
        deferred,
        &std::fs::read(&at_end.expect("an output").path).expect("a file")
    );
    let DeferredEvents(events) =
        bincode::deserialize(&codec::unpack(deferred).expect("unpacks")).expect("decodes");
    let chunk = &events[&CODE][0].artifact.0;
    assert_eq!(chunk, &chunk_name(EVENTS));
    assert_eq!(codec::unpack(&seen.artifacts[chunk]).expect("unpacks"), EVENTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_precompile_shard_reads_the_chunks_that_its_record_names() {
    let mut agent = FakeAgent::start(Played::default()).await;
    let chunk = chunk_name(EVENTS);
    let record = packed(&TraceData::Precompile(vec![slice(&chunk)], CODE));
    let events = codec::pack(EVENTS).expect("packs");
    let inputs = [
        ("program", b"ELF".as_slice()),
        ("common", b"c"),
        ("record", &record),
        (chunk.as_str(), &events),
    ];
    agent.run(attempt(&["proof"]), &inputs).await.expect("proves");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_lost_fails_the_attempt_with_the_words_of_the_store() {
    let mut agent = FakeAgent::start(Played::default()).await;
    let record = packed(&TraceData::Precompile(vec![slice(&chunk_name(EVENTS))], CODE));
    let inputs = [
        ("program", b"ELF".as_slice()),
        ("common", b"c"),
        ("record", &record),
    ];
    let failed = agent
        .run(attempt(&["proof"]), &inputs)
        .await
        .expect_err("is lost");
    assert_eq!(failed.reason, "NotFound", "{failed:?}");
    assert!(failed.message.contains(&chunk_name(EVENTS)), "{failed:?}");
}
