//! Artifacts whose names lie inside others.
//!
//! A core shard leaves its precompile events in chunks; the names of the chunks are in its deferred output, and later in the
//! records of precompile shards. SP1 draws these names at random, so a second run would make other records of the same
//! events. Here a chunk is named by its content: the same events make the same record, and a record's hash says all of
//! what a shard's proof depends on.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use sp1_prover::worker::{DeferredEvents, FinalVmState, PrecompileArtifactSlice, TraceData};
use sp1_prover_types::Artifact;

/// Variant of `TraceData` that names chunks, as bincode writes it: a little-endian u32.
const PRECOMPILE: [u8; 4] = 1_u32.to_le_bytes();

/// Variant of `TraceData` of the program's memory.
const MEMORY: [u8; 4] = 2_u32.to_le_bytes();

/// The name of a chunk of events.
#[must_use]
pub fn chunk_name(bytes: &[u8]) -> String {
    format!("events-{}", hex::encode(Sha256::digest(bytes)))
}

/// Where the deferred output of a shard lies until the shard is proved. The executor reads it long before, and an output whose
/// name is bound early would not become an entry of the action cache.
#[must_use]
pub fn early(deferred_output: &str) -> String {
    format!("{deferred_output}.early")
}

/// SP1's word for a reference as the protocol takes it: its own ones begin with an underscore.
#[must_use]
pub fn reference(word: &str) -> String {
    format!("sp1{word}")
}

/// Chunks that a record reads.
pub fn chunks_of_record(record: &[u8]) -> Result<Vec<String>, bincode::Error> {
    if record.get(..PRECOMPILE.len()) != Some(&PRECOMPILE) {
        return Ok(Vec::new());
    }
    let TraceData::Precompile(slices, _) = bincode::deserialize(record)? else {
        return Ok(Vec::new());
    };
    Ok(slices.into_iter().map(|slice| slice.artifact.0).collect())
}

/// How the program ended, where the record says it: those of the program's memory do, which are cut when it has ended.
pub fn exit_code_of_record(record: &[u8]) -> Result<Option<u32>, bincode::Error> {
    if record.get(..MEMORY.len()) != Some(&MEMORY) {
        return Ok(None);
    }
    // The final state is the first of the shard's fields: the rest, which may be long, needn't be read.
    let state: FinalVmState = bincode::deserialize(&record[MEMORY.len()..])?;
    Ok(Some(state.exit_code))
}

/// A record with other names for the chunks that it reads. Records that read none stay as they are.
pub fn rename_in_record(record: Vec<u8>, rename: impl Fn(&str) -> String) -> Result<Vec<u8>, bincode::Error> {
    if record.get(..PRECOMPILE.len()) != Some(&PRECOMPILE) {
        return Ok(record);
    }
    let TraceData::Precompile(slices, code) = bincode::deserialize(&record)? else {
        return Ok(record);
    };
    let slices = slices.into_iter().map(|slice| renamed(slice, &rename)).collect();
    bincode::serialize(&TraceData::Precompile(slices, code))
}

fn renamed(mut slice: PrecompileArtifactSlice, rename: &impl Fn(&str) -> String) -> PrecompileArtifactSlice {
    slice.artifact = Artifact(rename(&slice.artifact.0));
    slice
}

/// The deferred output of a core shard, with chunks named by what `chunks` maps their present names to.
pub fn rename_in_deferred(
    deferred: &[u8],
    chunks: &BTreeMap<String, String>,
) -> Result<Vec<u8>, bincode::Error> {
    let DeferredEvents(events) = bincode::deserialize(deferred)?;
    let rename = |name: &str| chunks.get(name).cloned().unwrap_or_else(|| name.to_owned());
    let events = events
        .into_iter()
        .map(|(code, slices)| {
            (
                code,
                slices.into_iter().map(|slice| renamed(slice, &rename)).collect(),
            )
        })
        .collect();
    bincode::serialize(&DeferredEvents(events))
}

/// Names of the chunks that a deferred output names.
pub fn chunks_of_deferred(deferred: &[u8]) -> Result<Vec<String>, bincode::Error> {
    let DeferredEvents(events) = bincode::deserialize(deferred)?;
    let names = events.into_values().flatten().map(|slice| slice.artifact.0);
    Ok(names.collect())
}

#[cfg(test)]
mod tests {
    use sp1_core_executor::SyscallCode;
    use sp1_prover::worker::GlobalMemoryShard;

    use super::*;

    fn slice(name: &str) -> PrecompileArtifactSlice {
        PrecompileArtifactSlice {
            artifact: Artifact(name.to_owned()),
            start_idx: 3,
            end_idx: 9,
        }
    }

    #[test]
    fn a_record_of_precompile_events_is_read_under_other_names() {
        let record = TraceData::Precompile(vec![slice("a"), slice("b")], SyscallCode::KECCAK_PERMUTE);
        let bytes = bincode::serialize(&record).expect("encodes");
        assert_eq!(chunks_of_record(&bytes).expect("decodes"), ["a", "b"]);
        let renamed = rename_in_record(bytes, |name| format!("@7@{name}")).expect("renames");
        let TraceData::Precompile(slices, code) = bincode::deserialize(&renamed).expect("decodes") else {
            panic!("another kind of record");
        };
        assert_eq!(code, SyscallCode::KECCAK_PERMUTE);
        let names: Vec<_> = slices.iter().map(|slice| slice.artifact.0.as_str()).collect();
        assert_eq!(names, ["@7@a", "@7@b"]);
        assert!(
            slices
                .iter()
                .all(|slice| (slice.start_idx, slice.end_idx) == (3, 9))
        );
    }

    #[test]
    fn a_record_without_nested_names_is_not_touched() {
        let bytes = bincode::serialize(&TraceData::Core(vec![1, 2, 3])).expect("encodes");
        assert!(chunks_of_record(&bytes).expect("passes").is_empty());
        let same = rename_in_record(bytes.clone(), |_| unreachable!("nothing is named")).expect("passes");
        assert_eq!(same, bytes);
    }

    #[test]
    fn a_record_of_memory_says_how_the_program_ended() {
        let state = FinalVmState {
            exit_code: 101,
            ..FinalVmState::default()
        };
        let shard = GlobalMemoryShard {
            final_state: state,
            initialize_events: Vec::new(),
            finalize_events: Vec::new(),
            page_prot_initialize_events: Vec::new(),
            page_prot_finalize_events: Vec::new(),
            previous_init_addr: 0,
            previous_finalize_addr: 0,
            previous_init_page_idx: 0,
            previous_finalize_page_idx: 0,
            last_init_addr: 0,
            last_finalize_addr: 0,
            last_init_page_idx: 0,
            last_finalize_page_idx: 0,
        };
        let record = bincode::serialize(&TraceData::Memory(Box::new(shard))).expect("encodes");
        assert_eq!(exit_code_of_record(&record).expect("decodes"), Some(101));
        let core = bincode::serialize(&TraceData::Core(vec![1])).expect("encodes");
        assert_eq!(exit_code_of_record(&core).expect("passes"), None);
    }

    #[test]
    fn the_same_events_get_the_same_names_in_two_runs() {
        let of_run = |name: &str| {
            let record = TraceData::Precompile(vec![slice(&chunk_name(b"events"))], SyscallCode::SHA_EXTEND);
            let random = DeferredEvents(
                [(SyscallCode::SHA_EXTEND, vec![slice(name)])]
                    .into_iter()
                    .collect(),
            );
            let deferred = bincode::serialize(&random).expect("encodes");
            let chunks = BTreeMap::from([(name.to_owned(), chunk_name(b"events"))]);
            let deferred = rename_in_deferred(&deferred, &chunks).expect("renames");
            (deferred, bincode::serialize(&record).expect("encodes"))
        };
        assert_eq!(of_run("artifact_1"), of_run("artifact_2"));
        let (deferred, _) = of_run("artifact_3");
        assert_eq!(
            chunks_of_deferred(&deferred).expect("decodes"),
            [chunk_name(b"events")]
        );
    }
}
