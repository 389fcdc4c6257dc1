//! How large segments are, and what each task takes. Pure.
//!
//! The figures are measurements of this prover on CPUs (docs/benchmarks.md): memory doubles and time doubles with
//! each power of two of a segment, and the recursion tasks take the same whatever the size of the segment.

/// Smallest segment that RISC Zero can lift.
pub const MIN_SEGMENT_PO2: u32 = 14;

/// A size that can be proved but makes no sense: the executor keeps 25,000 cycles of each segment of 2^15 and more
/// free for the longest instruction, which leaves a quarter of this one. (At 2^14 it allows for short instructions
/// only and keeps 2,000 free.) A program of one segment at 2^16 makes 40 of them.
const WASTEFUL_PO2: u32 = 15;

/// Largest segment that RISC Zero's default verifier accepts (`risc0_zkvm::DEFAULT_MAX_PO2`).
pub const MAX_SEGMENT_PO2: u32 = 22;

/// Largest segment that is chosen automatically: RISC Zero's own default. Beyond it nothing is saved worth having,
/// while the last segment of a job keeps one device busy for twice as long.
pub const LARGEST_AUTOMATIC_PO2: u32 = 20;

/// Cost of a segment's proof at this size is known; other sizes are this doubled or halved.
const REFERENCE_PO2: u32 = 16;

/// Resident memory that a segment's proof takes beside what grows with it.
const PROVE_BASE_BYTES: u64 = 64 << 20;

/// Resident memory of proving a segment at the reference size.
const PROVE_REFERENCE_BYTES: u64 = 600_000_000;

/// Resident memory of lift, join and resolve.
const RECURSION_BYTES: u64 = 1_500_000_000;

/// Resident memory of a planner: the program's image, the segments on their way, and the executor.
pub const PLAN_BYTES: u64 = 512 << 20;

/// Resident memory of checking receipts.
pub const VERIFY_BYTES: u64 = 256 << 20;

/// Seconds on one core for a segment at the reference size, and for a recursion task.
const PROVE_REFERENCE_CORE_SECONDS: f64 = 49.0;
const RECURSION_CORE_SECONDS: f64 = 70.0;

/// Cores of the device for which times are estimated.
const REFERENCE_CORES: f64 = 2.0;

/// Kinds of proof, as far as sizes depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofKind {
    /// One receipt for each segment.
    Composite,
    /// One receipt for all.
    Succinct,
    /// No proof.
    ExecuteOnly,
}

impl ProofKind {
    /// Its name in `ProofJob.spec.proof.kind`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Composite => "Composite",
            Self::Succinct => "Succinct",
            Self::ExecuteOnly => "ExecuteOnly",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Composite, Self::Succinct, Self::ExecuteOnly]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// Memory of a device that proves a segment of this size, in bytes.
#[must_use]
pub fn prove_bytes(po2: u32) -> u64 {
    let grown = if po2 >= REFERENCE_PO2 {
        PROVE_REFERENCE_BYTES << (po2 - REFERENCE_PO2)
    } else {
        PROVE_REFERENCE_BYTES >> (REFERENCE_PO2 - po2)
    };
    PROVE_BASE_BYTES + grown
}

/// Memory of a device that lifts, joins or resolves, in bytes.
#[must_use]
pub fn recursion_bytes() -> u64 {
    RECURSION_BYTES
}

/// Memory of a Composite receipt's assembly: all segment receipts, decoded and encoded once more.
#[must_use]
pub fn assemble_bytes(segments: u64) -> u64 {
    const RECEIPT_BYTES: u64 = 300_000;
    VERIFY_BYTES + 3 * RECEIPT_BYTES * segments
}

/// Seconds that a segment's proof takes on the reference device. Never those of this machine: a planner that runs
/// again on another one must submit the very same tasks.
#[must_use]
pub fn prove_seconds(po2: u32) -> f64 {
    PROVE_REFERENCE_CORE_SECONDS * 2_f64.powi(po2 as i32 - REFERENCE_PO2 as i32) / REFERENCE_CORES
}

/// Seconds that a lift, join or resolve takes on the reference device.
#[must_use]
pub fn recursion_seconds() -> f64 {
    RECURSION_CORE_SECONDS / REFERENCE_CORES
}

/// What is known when a segment size is chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct SizeRequest {
    /// From the manifest; 0: automatic.
    pub asked: u32,
    /// Sizes to go down, because a segment did not fit.
    pub reduction: u32,
    /// Memory of the smallest worker: VRAM where the device is a GPU.
    pub memory_bytes: u64,
}

/// A segment size that can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The manifest asks for what RISC Zero does not prove.
    #[error(
        "spec.segmentPo2 is {asked}, but RISC Zero proves segments of {MIN_SEGMENT_PO2} to {MAX_SEGMENT_PO2}"
    )]
    OutOfRange {
        /// What was asked for.
        asked: u32,
    },
    /// The manifest asks for a size that makes many times as many segments as its neighbours.
    #[error(
        "spec.segmentPo2 is {WASTEFUL_PO2}, at which RISC Zero keeps three quarters of each segment free for its \
         longest instruction, so that a program is cut into several times as many segments. Take 14 or 16"
    )]
    Wasteful,
    /// Memory ran out at the smallest size too.
    #[error(
        "proving ran out of memory, and segments can't be made smaller than 2^{MIN_SEGMENT_PO2} cycles. Give the workers \
         more memory: {needed} bytes for the smallest segment, {recursion} for a Succinct proof's other tasks"
    )]
    NothingSmaller {
        /// Memory of the smallest segment.
        needed: u64,
        /// Memory of the recursion tasks.
        recursion: u64,
    },
}

impl SizeError {
    /// Label for metrics, and the reason that users see.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::OutOfRange { .. } => "SegmentPo2OutOfRange",
            Self::Wasteful => "SegmentPo2Wasteful",
            Self::NothingSmaller { .. } => "OutOfMemoryAtSmallestSegment",
        }
    }

    /// The manifest stays what it is.
    #[must_use]
    pub fn retry(&self) -> bool {
        false
    }
}

/// Chooses the segment size.
///
/// Automatic is the largest size whose proof takes at most half of the smallest worker's memory, at most
/// [`LARGEST_AUTOMATIC_PO2`]. Large, because each segment costs a lift and a join besides its own proof: at 2^16
/// cycles they are three quarters of all work, at 2^20 a seventh. Half, because inputs of the next task, the planner
/// and (in local mode) another worker live in the same memory. A job that should be spread over more workers than
/// that makes segments for names a smaller size in its manifest.
pub fn choose(request: SizeRequest) -> Result<u32, SizeError> {
    let chosen = match request.asked {
        0 => sizes_up_to(LARGEST_AUTOMATIC_PO2)
            .find(|po2| prove_bytes(*po2) <= request.memory_bytes / 2)
            .unwrap_or(MIN_SEGMENT_PO2),
        WASTEFUL_PO2 => return Err(SizeError::Wasteful),
        asked if (MIN_SEGMENT_PO2..=MAX_SEGMENT_PO2).contains(&asked) => asked,
        asked => return Err(SizeError::OutOfRange { asked }),
    };
    sizes_up_to(chosen)
        .nth(request.reduction as usize)
        .ok_or(SizeError::NothingSmaller {
            needed: prove_bytes(MIN_SEGMENT_PO2),
            recursion: RECURSION_BYTES,
        })
}

/// Sensible sizes, the largest first.
fn sizes_up_to(largest: u32) -> impl Iterator<Item = u32> {
    (MIN_SEGMENT_PO2..=largest)
        .rev()
        .filter(|po2| *po2 != WASTEFUL_PO2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn automatic(gib: u64) -> u32 {
        choose(SizeRequest {
            memory_bytes: gib << 30,
            ..SizeRequest::default()
        })
        .expect("there is a size")
    }

    #[test]
    fn more_memory_means_larger_segments_up_to_the_limit() {
        let sizes: Vec<u32> = [0, 1, 2, 4, 8, 16, 24, 64, 1024]
            .into_iter()
            .map(automatic)
            .collect();
        assert_eq!(sizes, [14, 14, 16, 17, 18, 19, 20, 20, 20]);
    }

    #[test]
    fn memory_doubles_with_each_power_of_two() {
        for po2 in MIN_SEGMENT_PO2..MAX_SEGMENT_PO2 {
            assert_eq!(
                prove_bytes(po2 + 1) - PROVE_BASE_BYTES,
                2 * (prove_bytes(po2) - PROVE_BASE_BYTES)
            );
        }
    }

    #[test]
    fn a_manifest_decides_within_what_can_be_proved() {
        let asked = |asked| {
            choose(SizeRequest {
                asked,
                ..SizeRequest::default()
            })
        };
        assert_eq!(asked(17), Ok(17));
        assert_eq!(asked(15), Err(SizeError::Wasteful));
        assert_eq!(asked(13), Err(SizeError::OutOfRange { asked: 13 }));
        assert_eq!(asked(23), Err(SizeError::OutOfRange { asked: 23 }));
    }

    #[test]
    fn running_out_of_memory_goes_down_until_nothing_is_smaller() {
        let reduced = |reduction| {
            choose(SizeRequest {
                asked: 16,
                reduction,
                memory_bytes: 0,
            })
        };
        assert_eq!((reduced(0), reduced(1)), (Ok(16), Ok(14)));
        assert_eq!(
            reduced(2).map_err(|error| error.category()),
            Err("OutOfMemoryAtSmallestSegment")
        );
        assert!(
            choose(SizeRequest {
                reduction: 99,
                ..SizeRequest::default()
            })
            .is_err()
        );
    }

    #[test]
    fn a_proof_kind_is_found_by_its_name() {
        for kind in [ProofKind::Composite, ProofKind::Succinct, ProofKind::ExecuteOnly] {
            assert_eq!(ProofKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(ProofKind::from_name("Groth16"), None);
    }
}
