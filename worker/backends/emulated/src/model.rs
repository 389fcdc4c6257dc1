//! The model of a job: the JSON document that is the job's input, and what is handed to each task of it.

use prover_backend::TaskError;
use serde::{Deserialize, Serialize};

/// Most segments of one model.
const MAX_SEGMENTS: u64 = 1_000_000;
/// Longest task, in milliseconds: a day.
const MAX_MILLISECONDS: u64 = 24 * 60 * 60 * 1000;
/// Largest artifact in bytes.
const MAX_ARTIFACT_BYTES: u64 = 1024 * 1024 * 1024;
/// Most failures of one model.
const MAX_FAILURES: usize = 64;

/// A job as a model. Unknown fields are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Model {
    /// How many segments the program has at the largest segment size.
    pub(crate) segments: u64,
    /// Cycles of one segment, for the report. 65536 where it is not given.
    #[serde(default = "cycles_per_segment")]
    pub(crate) cycles_per_segment: u64,
    /// How fast the planner cuts segments; as fast as it can where it is not given.
    #[serde(default)]
    pub(crate) segments_per_second: Option<f64>,
    /// Everything that varies varies by it: the same model does the same again.
    #[serde(default)]
    pub(crate) seed: u64,
    /// How long tasks take.
    #[serde(default)]
    pub(crate) durations: Durations,
    /// How large artifacts are.
    #[serde(default)]
    pub(crate) sizes: Sizes,
    /// What each task asks for.
    #[serde(default)]
    pub(crate) resources: ModelResources,
    /// What goes wrong.
    #[serde(default)]
    pub(crate) failures: Vec<Failure>,
}

fn cycles_per_segment() -> u64 {
    65_536
}

/// How long each type of task takes.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Durations {
    pub(crate) prove: Span,
    pub(crate) lift: Span,
    pub(crate) join: Span,
    pub(crate) finalize: Span,
    pub(crate) verify: Span,
}

/// Milliseconds, fixed or drawn evenly from a range: `50` or `{"from": 40, "to": 60}`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Span {
    Fixed(u64),
    Range(SpanRange),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpanRange {
    from: u64,
    to: u64,
}

impl Default for Span {
    fn default() -> Self {
        Self::Fixed(0)
    }
}

impl Span {
    fn longest(self) -> u64 {
        match self {
            Self::Fixed(milliseconds) => milliseconds,
            Self::Range(SpanRange { from, to }) => from.max(to),
        }
    }

    /// The task of this name always draws the same.
    pub(crate) fn draw(self, seed: u64, task: &str) -> u64 {
        match self {
            Self::Fixed(milliseconds) => milliseconds,
            Self::Range(SpanRange { from, to }) => {
                let width = u128::from(to.saturating_sub(from)) + 1;
                // The high bits of a product spread evenly without a division.
                let offset = (u128::from(scramble(seed, task)) * width) >> 64;
                from + u64::try_from(offset).unwrap_or(0)
            }
        }
    }
}

/// A number that looks random and depends on the seed and the name alone (FNV-1a, then SplitMix64's finalizer).
pub(crate) fn scramble(seed: u64, name: &str) -> u64 {
    let mut value = 0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in name.bytes() {
        value = (value ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Bytes of each kind of artifact.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Sizes {
    pub(crate) segment: u64,
    pub(crate) receipt: u64,
    pub(crate) proof: u64,
    pub(crate) public_values: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            segment: 1024,
            receipt: 1024,
            proof: 1024,
            public_values: 32,
        }
    }
}

/// What tasks ask of a worker.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ModelResources {
    pub(crate) host_memory_bytes: u64,
    pub(crate) vram_bytes: u64,
}

impl Default for ModelResources {
    fn default() -> Self {
        Self {
            host_memory_bytes: LEAF_MEMORY_BYTES,
            vram_bytes: 0,
        }
    }
}

/// Host memory that a task asks for where the model does not say.
pub(crate) const LEAF_MEMORY_BYTES: u64 = 32 * 1024 * 1024;

/// Something that goes wrong, always in the same attempts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Failure {
    /// Type of the tasks that it strikes: `plan`, `prove`, `lift`, `join`, `finalize` or `verify`.
    pub(crate) task: String,
    /// Which of them: the segment, or a join's first segment. All of the type where it is not given.
    #[serde(default)]
    pub(crate) index: Option<u64>,
    /// Which attempts of the task, counted from 1. All of them where it is empty.
    #[serde(default)]
    pub(crate) attempts: Vec<u32>,
    /// Strikes only while the job was planned again for lack of memory fewer times than this.
    #[serde(default)]
    pub(crate) below_reduction: Option<u32>,
    /// How much of its time the attempt has done before, in milliseconds.
    #[serde(default)]
    pub(crate) after_milliseconds: u64,
    /// What happens.
    pub(crate) effect: Effect,
}

impl Failure {
    /// Whether it strikes this attempt. An attempt whose number is not known counts as the first.
    pub(crate) fn strikes(&self, task: &str, index: u64, attempt: u32, reduction: u32) -> bool {
        self.task == task
            && self.index.is_none_or(|wanted| wanted == index)
            && (self.attempts.is_empty() || self.attempts.contains(&attempt.max(1)))
            && self.below_reduction.is_none_or(|below| reduction < below)
    }
}

/// In which way an attempt goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Effect {
    /// The attempt fails, and may succeed later.
    Retryable,
    /// The attempt says that memory did not suffice.
    OutOfMemory,
    /// The attempt fails for good.
    Fatal,
    /// The attempt says that the user's input is at fault.
    InvalidInput,
    /// The attempt says that an artifact is damaged.
    Artifact,
    /// The backend's code panics.
    Panic,
    /// The process aborts.
    Abort,
    /// The process is struck by SIGSEGV.
    SegmentationFault,
    /// The process is struck by SIGKILL, as by the kernel when memory runs out.
    Kill,
    /// The process exits with this code.
    Exit(u8),
    /// The whole process stands still: no pulses any more.
    Hang,
    /// Takes this many bytes of memory and holds them for the attempt's duration; then the attempt fails as out of
    /// memory, unless the kernel was faster.
    Allocate(u64),
}

impl Model {
    /// Reads a model. The message tells the user where it is wrong.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, TaskError> {
        let model: Self = serde_json::from_slice(bytes).map_err(|error| {
            let message =
                format!("the input is not a model of an emulated job: {error}. See docs/backend-protocol.md");
            TaskError::invalid_input("InvalidModel", message)
        })?;
        model.check().map_err(|problem| {
            TaskError::invalid_input(
                "InvalidModel",
                format!("the model of the emulated job: {problem}"),
            )
        })?;
        Ok(model)
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=MAX_SEGMENTS).contains(&self.segments) {
            return Err(format!(
                "segments is {}, and must be 1 to {MAX_SEGMENTS}",
                self.segments
            ));
        }
        if let Some(pace) = self.segments_per_second
            && !(pace.is_finite() && pace > 0.0)
        {
            return Err(format!("segmentsPerSecond is {pace}, and must be larger than 0"));
        }
        self.check_durations()?;
        self.check_sizes()?;
        if self.failures.len() > MAX_FAILURES {
            return Err(format!(
                "failures has {} elements, and at most {MAX_FAILURES} are allowed",
                self.failures.len()
            ));
        }
        match self
            .failures
            .iter()
            .find(|failure| !TASKS.contains(&failure.task.as_str()))
        {
            Some(failure) => Err(format!(
                "failures: task {:?} is none of {}",
                failure.task,
                TASKS.join(", ")
            )),
            None => Ok(()),
        }
    }

    fn check_durations(&self) -> Result<(), String> {
        let Durations {
            prove,
            lift,
            join,
            finalize,
            verify,
        } = self.durations;
        for (name, span) in [
            ("prove", prove),
            ("lift", lift),
            ("join", join),
            ("finalize", finalize),
            ("verify", verify),
        ] {
            if span.longest() > MAX_MILLISECONDS {
                return Err(format!(
                    "durations.{name} is longer than {MAX_MILLISECONDS} milliseconds"
                ));
            }
            if let Span::Range(SpanRange { from, to }) = span
                && from > to
            {
                return Err(format!(
                    "durations.{name} goes from {from} to {to}: the range is empty"
                ));
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), String> {
        let Sizes {
            segment,
            receipt,
            proof,
            public_values,
        } = self.sizes;
        for (name, size) in [
            ("segment", segment),
            ("receipt", receipt),
            ("proof", proof),
            ("publicValues", public_values),
        ] {
            if size > MAX_ARTIFACT_BYTES {
                return Err(format!(
                    "sizes.{name} is {size}, and at most {MAX_ARTIFACT_BYTES} are allowed"
                ));
            }
        }
        Ok(())
    }
}

/// All types of tasks, in the order of their stages.
pub(crate) const TASKS: [&str; 6] = ["plan", "prove", "lift", "join", "finalize", "verify"];

/// What the planner hands to a task, as JSON.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TaskParameters {
    /// What failures choose by.
    pub(crate) index: u64,
    /// How long it takes.
    pub(crate) milliseconds: u64,
    /// Bytes of each output, in their order.
    pub(crate) output_bytes: Vec<u64>,
    /// Times that the job was planned again for lack of memory.
    pub(crate) reduction: u32,
    /// Identity of the program.
    pub(crate) program_id: String,
    /// What goes wrong in tasks of this type.
    pub(crate) failures: Vec<Failure>,
}

#[cfg(test)]
mod tests {
    use prover_backend::protocol::FailureClass;

    use super::*;

    fn refusal(text: &str) -> String {
        let error = Model::parse(text.as_bytes()).expect_err("the model is wrong");
        assert_eq!(error.class, FailureClass::InvalidInput);
        error.message
    }

    #[test]
    fn the_smallest_model_needs_segments_only() {
        let model = Model::parse(br#"{"segments": 4}"#).expect("a good model");
        assert_eq!(model.durations.prove.draw(model.seed, "prove-0"), 0);
        assert_eq!(model.sizes.receipt, 1024);
    }

    #[test]
    fn unknown_fields_and_impossible_values_are_refused_by_name() {
        assert!(refusal(r#"{"segments": 4, "segmnts": 5}"#).contains("segmnts"));
        assert!(refusal(r#"{"segments": 0}"#).contains("segments is 0"));
        assert!(refusal(r#"{"segments": 4, "durations": {"prov": 1}}"#).contains("prov"));
        assert!(
            refusal(r#"{"segments": 4, "durations": {"prove": {"from": 9, "to": 1}}}"#).contains("9 to 1")
        );
        assert!(refusal(r#"{"segments": 4, "segmentsPerSecond": 0}"#).contains("segmentsPerSecond"));
        assert!(refusal(r#"{"segments": 4, "sizes": {"proof": 9999999999}}"#).contains("sizes.proof"));
        let failure = r#"{"segments": 4, "failures": [{"task": "proof", "effect": "abort"}]}"#;
        assert!(refusal(failure).contains("proof"));
        assert!(refusal("segments: 4").contains("not a model"));
    }

    #[test]
    fn drawn_durations_stay_in_their_range_and_repeat() {
        let span = Span::Range(SpanRange { from: 40, to: 60 });
        let drawn: Vec<u64> = (0..1000)
            .map(|task| span.draw(7, &format!("prove-{task}")))
            .collect();
        assert!(drawn.iter().all(|milliseconds| (40..=60).contains(milliseconds)));
        assert!(
            (40..=60).all(|milliseconds| drawn.contains(&milliseconds)),
            "some durations are never drawn"
        );
        assert_eq!(span.draw(7, "prove-3"), drawn[3]);
        assert_ne!(
            (0..9)
                .map(|task| span.draw(8, &format!("prove-{task}")))
                .collect::<Vec<_>>(),
            drawn[..9]
        );
    }

    #[test]
    fn a_failure_strikes_exactly_the_attempts_that_it_names() {
        let text = r#"{"task": "prove", "index": 3, "attempts": [1, 2], "belowReduction": 1, "effect": {"exit": 9}}"#;
        let failure: Failure = serde_json::from_str(text).expect("a good failure");
        assert_eq!(failure.effect, Effect::Exit(9));
        assert!(failure.strikes("prove", 3, 1, 0) && failure.strikes("prove", 3, 2, 0));
        assert!(
            failure.strikes("prove", 3, 0, 0),
            "an unknown attempt number counts as the first"
        );
        assert!(!failure.strikes("prove", 3, 3, 0));
        assert!(!failure.strikes("prove", 4, 1, 0));
        assert!(!failure.strikes("lift", 3, 1, 0));
        assert!(!failure.strikes("prove", 3, 1, 1));
    }
}
