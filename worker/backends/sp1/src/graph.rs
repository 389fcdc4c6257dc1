//! SP1's tasks as tasks of ours: types, lanes, memory, keys of the action cache. Pure.

use prover_backend::protocol::{DeviceClass, Lane, Resources, TaskType as Declared};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sp1_prover_types::TaskType;

/// Names of the task types.
pub mod task_type {
    /// The root: checks the job and runs SP1's controller.
    pub const CONTROL: &str = "control";
    /// Executes the program and submits its shards.
    pub const EXECUTE: &str = "execute";
    /// Executes the program once more for its gas.
    pub const GAS: &str = "gas";
    /// Makes the verifying key.
    pub const SETUP: &str = "setup";
    /// Traces and proves a shard, and lifts the proof unless the job's kind is Core.
    pub const SHARD: &str = "prove-shard";
    /// Joins up to four proofs.
    pub const REDUCE: &str = "reduce";
    /// Lifts a proof that the program verifies.
    pub const DEFERRED: &str = "deferred";
    /// Shrinks the last proof and wraps it for a circuit over BN254.
    pub const SHRINK_WRAP: &str = "shrink-wrap";
    /// Makes the Groth16 proof.
    pub const GROTH16: &str = "groth16";
    /// Makes the PLONK proof.
    pub const PLONK: &str = "plonk";
    /// Verifies what the user gets.
    pub const VERIFY: &str = "verify";
}

const GIB: u64 = 1 << 30;

/// Host memory of the root: the input, once as it is and once serialized, and the proof.
const CONTROL_BYTES: u64 = GIB / 4;

/// Host memory of an execution beside the executor's child process, which has a limit of its own.
const EXECUTE_BASE_BYTES: u64 = GIB;

/// Host memory of the tasks of a device, with the prover's keys, at SP1's own shard size (docs/sp1.md).
const SETUP_BYTES: u64 = 6 * GIB;
const SHARD_CORE_BYTES: u64 = 10 * GIB;
const SHARD_BYTES: u64 = 14 * GIB;
const RECURSION_BYTES: u64 = 14 * GIB;
const WRAP_BYTES: u64 = 20 * GIB;
const PLONK_BYTES: u64 = 60 * GIB;
const VERIFY_BYTES: u64 = 4 * GIB;

/// The names that SP1 gave to a task, in its own order. Among the inputs are words that are no artifacts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// Inputs.
    pub inputs: Vec<String>,
    /// Outputs.
    pub outputs: Vec<String>,
}

/// One task of SP1 as it is submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Our task type.
    pub name: &'static str,
    /// Inputs that are artifacts.
    pub artifacts: Vec<String>,
    /// The marker that it completes, if any.
    pub marker: Option<String>,
}

/// A task that SP1's components never submit, or with other inputs than we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("SP1 submitted a task {kind} with {inputs} inputs, which this version does not know")]
pub struct UnknownTask {
    /// SP1's name of it.
    pub kind: &'static str,
    /// How many inputs it has.
    pub inputs: usize,
}

/// Word that stands for "no marker" in SP1's inputs.
const NO_MARKER: &str = "dummy marker task";

/// Which of a task's inputs are artifacts, and which marker it completes.
pub fn shape(kind: TaskType, inputs: &[String]) -> Result<Shape, UnknownTask> {
    let unknown = || UnknownTask {
        kind: kind.as_str_name(),
        inputs: inputs.len(),
    };
    let of = |name, range: std::ops::Range<usize>, count: usize| {
        if inputs.len() != count {
            return Err(unknown());
        }
        Ok(Shape {
            name,
            artifacts: inputs[range].to_vec(),
            marker: None,
        })
    };
    match kind {
        TaskType::SetupVkey => of(task_type::SETUP, 0..1, 1),
        // Program, input, common input; then words.
        TaskType::CoreExecute => of(task_type::EXECUTE, 0..3, 4),
        // Program, common input, record; then the marker.
        TaskType::ProveShard => {
            let marker = inputs.get(3).filter(|word| *word != NO_MARKER).cloned();
            of(task_type::SHARD, 0..3, 4).map(|shape| Shape { marker, ..shape })
        }
        TaskType::RecursionDeferred => of(task_type::DEFERRED, 0..2, 2),
        // Whether it is the last one, the range of all; then range and proof of each.
        TaskType::RecursionReduce if inputs.len() >= 4 && inputs.len().is_multiple_of(2) => Ok(Shape {
            name: task_type::REDUCE,
            artifacts: inputs.iter().skip(3).step_by(2).cloned().collect(),
            marker: None,
        }),
        TaskType::ShrinkWrap => of(task_type::SHRINK_WRAP, 0..1, 1),
        TaskType::Groth16Wrap => of(task_type::GROTH16, 0..1, 1),
        TaskType::PlonkWrap => of(task_type::PLONK, 0..1, 1),
        _ => Err(unknown()),
    }
}

/// SP1's kind of a task of ours that runs on a device.
#[must_use]
pub fn device_kind(name: &str) -> Option<TaskType> {
    Some(match name {
        task_type::SETUP => TaskType::SetupVkey,
        task_type::SHARD => TaskType::ProveShard,
        task_type::REDUCE => TaskType::RecursionReduce,
        task_type::DEFERRED => TaskType::RecursionDeferred,
        task_type::SHRINK_WRAP => TaskType::ShrinkWrap,
        task_type::GROTH16 => TaskType::Groth16Wrap,
        task_type::PLONK => TaskType::PlonkWrap,
        _ => return None,
    })
}

/// Whether a type's results are answered from the action cache.
#[must_use]
pub fn cacheable(name: &str) -> bool {
    matches!(
        name,
        task_type::SETUP | task_type::SHARD | task_type::REDUCE | task_type::DEFERRED
    )
}

/// Key of the action cache: everything that a result depends on, and nothing that differs between two runs. `hashes` are
/// those of the artifacts in their order; chunks inside records are named by their content, so a record's hash covers them.
/// Verifying keys are shared between jobs. Proofs are not: the deferred output of a core shard names chunks of its own job.
#[must_use]
pub fn cache_key(
    version: &str,
    job: &str,
    shape: &Shape,
    inputs: &[String],
    hashes: &[String],
) -> Option<String> {
    if !cacheable(shape.name) {
        return None;
    }
    let mut hasher = Sha256::new();
    let mut add = |word: &str| {
        hasher.update((word.len() as u64).to_le_bytes());
        hasher.update(word.as_bytes());
    };
    add(version);
    if shape.name != task_type::SETUP {
        add(job);
    }
    // The last join of all proves another statement than a join of the same proofs on the way.
    if shape.name == task_type::REDUCE {
        add(&inputs[0]);
    }
    // A core shard leaves deferred events, another one does not.
    if shape.name == task_type::SHARD {
        add(if shape.marker.is_some() { "defers" } else { "" });
    }
    hashes.iter().for_each(|hash| add(hash));
    Some(format!("sp1-{}-{}", shape.name, hex::encode(hasher.finalize())))
}

/// What a task takes.
#[must_use]
pub fn resources(
    name: &str,
    kind: &str,
    class: DeviceClass,
    executor_memory_bytes: u64,
    scale: MemoryScale,
) -> Resources {
    let (class, host_memory_bytes) = match name {
        task_type::CONTROL => (DeviceClass::Cpu, CONTROL_BYTES),
        task_type::EXECUTE | task_type::GAS => (DeviceClass::Cpu, EXECUTE_BASE_BYTES + executor_memory_bytes),
        task_type::SETUP => (class, SETUP_BYTES),
        task_type::SHARD if kind == "Core" => (class, scale.apply(SHARD_CORE_BYTES)),
        task_type::SHARD => (class, scale.apply(SHARD_BYTES).max(RECURSION_BYTES)),
        task_type::REDUCE | task_type::DEFERRED => (class, RECURSION_BYTES),
        task_type::PLONK => (DeviceClass::Cpu, PLONK_BYTES),
        task_type::SHRINK_WRAP => (class, WRAP_BYTES),
        task_type::GROTH16 => (DeviceClass::Cpu, WRAP_BYTES),
        _ => (class, VERIFY_BYTES),
    };
    Resources {
        device_class: class.into(),
        host_memory_bytes,
        vram_bytes: 0,
    }
}

/// How much larger or smaller shards are than SP1's own, in 1/256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryScale(pub u64);

impl MemoryScale {
    /// Elements of SP1's own shards.
    pub const REFERENCE_ELEMENTS: u64 = (1 << 28) + (1 << 27);

    /// Of shards with so many elements.
    #[must_use]
    pub fn of(element_threshold: u64) -> Self {
        Self((element_threshold * 256).div_ceil(Self::REFERENCE_ELEMENTS))
    }

    // Half of it is there whatever the shard's size: keys, and tables of a fixed height.
    fn apply(self, bytes: u64) -> u64 {
        bytes / 2 + bytes / 2 * self.0 / 256
    }
}

/// All task types.
#[must_use]
pub fn declared() -> Vec<Declared> {
    let task = |name: &str, stage: &str, stage_order, lane: Lane| Declared {
        name: name.to_owned(),
        stage: stage.to_owned(),
        stage_order,
        cacheable: cacheable(name),
        verifies: name == task_type::VERIFY,
        lane: lane.into(),
    };
    vec![
        task(task_type::CONTROL, "Control", 1, Lane::Control),
        task(task_type::SETUP, "Setup", 2, Lane::Device),
        task(task_type::EXECUTE, "Execute", 3, Lane::Control),
        task(task_type::SHARD, "Prove", 4, Lane::Device),
        task(task_type::DEFERRED, "Deferred", 5, Lane::Device),
        task(task_type::REDUCE, "Reduce", 6, Lane::Device),
        task(task_type::SHRINK_WRAP, "ShrinkWrap", 7, Lane::Device),
        task(task_type::GROTH16, "Groth16", 8, Lane::Device),
        task(task_type::PLONK, "Plonk", 9, Lane::Device),
        task(task_type::VERIFY, "Verify", 10, Lane::Device),
        task(task_type::GAS, "Gas", 11, Lane::Control),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn words_among_the_inputs_are_not_taken_for_artifacts() {
        let inputs = words(&["false", "{range}", "{r1}", "p1", "{r2}", "p2"]);
        let reduce = shape(TaskType::RecursionReduce, &inputs).expect("known");
        assert_eq!(reduce.artifacts, ["p1", "p2"]);
        let execute = shape(TaskType::CoreExecute, &words(&["elf", "stdin", "common", "{}"])).expect("known");
        assert_eq!(execute.artifacts, ["elf", "stdin", "common"]);
    }

    #[test]
    fn only_core_shards_have_a_marker() {
        let core = shape(
            TaskType::ProveShard,
            &words(&["elf", "common", "record", "marker-1"]),
        );
        assert_eq!(core.expect("known").marker.as_deref(), Some("marker-1"));
        let other = shape(
            TaskType::ProveShard,
            &words(&["elf", "common", "record", NO_MARKER]),
        );
        assert_eq!(other.expect("known").marker, None);
    }

    #[test]
    fn tasks_that_sp1_does_not_submit_today_are_refused() {
        assert!(shape(TaskType::UtilVkeyMapChunk, &[]).is_err());
        assert!(shape(TaskType::ProveShard, &words(&["elf"])).is_err());
        assert!(shape(TaskType::RecursionReduce, &words(&["true", "{}", "{}"])).is_err());
    }

    #[test]
    fn a_key_depends_on_contents_and_not_on_names_of_a_run() {
        let key = |marker: &str, hashes: &[&str]| {
            let inputs = words(&["elf", "common", "record", marker]);
            let shape = shape(TaskType::ProveShard, &inputs).expect("known");
            cache_key("v", "job", &shape, &inputs, &words(hashes)).expect("cacheable")
        };
        assert_eq!(
            key("marker-1", &["a", "b", "c"]),
            key("marker-2", &["a", "b", "c"])
        );
        assert_ne!(
            key("marker-1", &["a", "b", "c"]),
            key("marker-1", &["a", "b", "d"])
        );
        assert_ne!(
            key("marker-1", &["a", "b", "c"]),
            key(NO_MARKER, &["a", "b", "c"])
        );
        assert_ne!(
            key("marker-1", &["ab", "c", "d"]),
            key("marker-1", &["a", "bc", "d"])
        );
    }

    #[test]
    fn the_last_join_is_not_answered_with_one_on_the_way() {
        let key = |last: &str| {
            let inputs = words(&[last, "{range}", "{r}", "p"]);
            let shape = shape(TaskType::RecursionReduce, &inputs).expect("known");
            cache_key("v", "job", &shape, &inputs, &words(&["h"]))
        };
        assert_ne!(key("true"), key("false"));
    }

    #[test]
    fn jobs_share_verifying_keys_and_no_proofs() {
        let shared = |kind, inputs: &[&str]| {
            let inputs = words(inputs);
            let shape = shape(kind, &inputs).expect("known");
            let key = |job| cache_key("v", job, &shape, &inputs, &words(&["h"]));
            key("a") == key("b")
        };
        assert!(shared(TaskType::SetupVkey, &["elf"]));
        assert!(!shared(
            TaskType::ProveShard,
            &["elf", "common", "record", NO_MARKER]
        ));
        assert!(!shared(TaskType::RecursionReduce, &["true", "{}", "{}", "p"]));
    }

    #[test]
    fn parents_and_wraps_are_never_cached() {
        for kind in [TaskType::CoreExecute, TaskType::ShrinkWrap] {
            let inputs = words(&["a", "b", "c", "d"][..if kind == TaskType::CoreExecute { 4 } else { 1 }]);
            let shape = shape(kind, &inputs).expect("known");
            assert_eq!(cache_key("v", "job", &shape, &inputs, &[]), None);
        }
    }

    #[test]
    fn smaller_shards_take_less_memory_but_never_less_than_half() {
        let bytes = |elements| {
            let scale = MemoryScale::of(elements);
            resources(task_type::SHARD, "Core", DeviceClass::Cpu, 0, scale).host_memory_bytes
        };
        let reference = bytes(MemoryScale::REFERENCE_ELEMENTS);
        assert_eq!(reference, SHARD_CORE_BYTES);
        assert!(bytes(1 << 27) < reference && bytes(1 << 27) > reference / 2);
    }
}
