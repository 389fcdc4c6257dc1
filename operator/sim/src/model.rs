//! The jobs that users submit and what proving them means: which tasks a planner submits, and what comes out of them.
//!
//! An artifact of the simulation is what it proves: which segments of which execution. So whether a proof has all
//! of its segments can be seen from the artifact itself, whatever the coordinator believes.

use std::sync::Arc;

use prost::Message as _;
use prover_backend::protocol::{
    BackendDescription, DeviceClass, Lane, ProofOffer, Resources, TaskSubmission, TaskType,
};

use crate::random::Random;

pub(crate) const GIB: u64 = 1 << 30;

/// Proof system and kinds that the simulated backend offers: one with small leaves, one with large ones.
pub(crate) const SYSTEM: &str = "risc0";
pub(crate) const SMALL: &str = "Composite";
pub(crate) const LARGE: &str = "Succinct";

/// Memory that a planner holds.
const PLANNER_MEMORY: u64 = GIB;
/// Artifact that a job leaves behind.
pub(crate) const PROOF: &str = "proof";
/// Marker that the last segment of some jobs completes.
pub(crate) const MARKER: &str = "last-segment";
/// Most segments of a plan: they are counted in the bits of one number.
pub(crate) const MOST_SEGMENTS: u32 = 128;

/// What a job is, as only the simulation knows it.
#[derive(Clone, Debug)]
pub(crate) struct JobModel {
    pub(crate) uid: Arc<str>,
    pub(crate) tenant: Arc<str>,
    /// Jobs of one program prove the same, so that the action cache may answer one from the other.
    pub(crate) program: u32,
    pub(crate) large: bool,
    /// Segments of the first plan; each reduction of the segment doubles them.
    pub(crate) segments: u32,
    /// Segments that the planner submits at once.
    pub(crate) batch: u32,
    pub(crate) execute_milliseconds: u64,
    pub(crate) prove_milliseconds: u64,
    pub(crate) cacheable: bool,
    /// Receipts that one join takes.
    pub(crate) fan_in: u32,
    /// The planner waits for its segments before it submits the joins, through a marker that completes last.
    pub(crate) waits: bool,
    /// This segment kills every child that proves it.
    pub(crate) poison: Option<u32>,
    /// Device memory that this segment really needs in the first plan.
    pub(crate) hungry: Option<(u32, u64)>,
    pub(crate) retry_limit: u32,
}

impl JobModel {
    pub(crate) fn draw(random: &mut Random, index: usize, poison: bool, hungry: bool) -> JobModel {
        let segments = match random.below(8) {
            0 => 1,
            1 => random.between(17, 40) as u32,
            _ => random.between(2, 16) as u32,
        };
        let pick = |random: &mut Random| random.below(u64::from(segments)) as u32;
        JobModel {
            uid: format!("job-{index}").into(),
            tenant: (*random.pick(&["red", "green", "blue"])).into(),
            program: random.below(3) as u32 * 100 + segments,
            large: random.chance(250),
            segments,
            batch: random.between(1, 6) as u32,
            execute_milliseconds: random.between(10, 800),
            prove_milliseconds: *random.pick(&[50, 200, 800, 3_000, 12_000]),
            cacheable: random.chance(400),
            fan_in: random.between(2, 4) as u32,
            waits: random.chance(300),
            poison: (poison && random.chance(400)).then(|| pick(random)),
            hungry: (hungry && random.chance(500)).then(|| {
                let segment = pick(random);
                (segment, random.between(6, 40) * GIB)
            }),
            retry_limit: 1_000,
        }
    }

    /// A job that proves the same, so that what one made answers the other.
    pub(crate) fn mk_twin(&self, index: usize) -> JobModel {
        JobModel {
            uid: format!("job-{index}").into(),
            ..self.clone()
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        if self.large { LARGE } else { SMALL }
    }

    pub(crate) fn segments_of(&self, reduction: u32) -> u32 {
        (self.segments << reduction.min(5)).min(MOST_SEGMENTS)
    }

    /// Device memory that proving a range of segments really takes; none: no more than it declares.
    pub(crate) fn real_memory(&self, work: &Work) -> Option<u64> {
        let (segment, bytes) = self.hungry?;
        let at = (segment << work.reduction.min(5)).min(MOST_SEGMENTS - 1);
        (work.kind == Kind::Prove && work.low == at).then_some(bytes >> work.reduction.min(5))
    }

    pub(crate) fn kills(&self, work: &Work) -> bool {
        let Some(segment) = self.poison else { return false };
        let at = (segment << work.reduction.min(5)).min(MOST_SEGMENTS - 1);
        work.kind == Kind::Prove && work.low == at
    }

    pub(crate) fn milliseconds(&self, work: &Work) -> u64 {
        match work.kind {
            Kind::Plan => 0,
            Kind::Prove => (self.prove_milliseconds >> work.reduction.min(5)).max(20),
            Kind::Join => (self.prove_milliseconds / 4).max(10),
            Kind::Verify | Kind::Setup => 20,
        }
    }

    /// Everything that the planner does, in its order.
    pub(crate) fn plan(&self, reduction: u32) -> Vec<PlanStep> {
        let total = self.segments_of(reduction);
        let mut calls = Vec::new();
        let mut level: Vec<(u32, u32)> = Vec::new();
        let mut call = Vec::new();
        let mut awaited = Vec::new();
        if self.marks() {
            call.push(TaskSubmission {
                request_id: MARKER.to_owned(),
                task_type: "marker".to_owned(),
                marker: true,
                ..TaskSubmission::default()
            });
            awaited.push(MARKER.to_owned());
        }
        if self.cacheable {
            let work = Work {
                kind: Kind::Setup,
                reduction,
                low: 0,
                high: 0,
                total,
            };
            call.push(self.submission(&work, vec!["program".to_owned()]));
        }
        for segment in 0..total {
            let work = Work {
                kind: Kind::Prove,
                reduction,
                low: segment,
                high: segment + 1,
                total,
            };
            call.push(self.submission(&work, vec!["program".to_owned(), "input".to_owned()]));
            awaited.push(work.name());
            level.push((segment, segment + 1));
            if call.len() as u32 >= self.batch {
                calls.push(PlanStep::Submit(std::mem::take(&mut call)));
            }
        }
        if self.waits {
            calls.push(PlanStep::Submit(std::mem::take(&mut call)));
            calls.push(PlanStep::Await(awaited));
        }
        while level.len() > 1 {
            let mut next = Vec::new();
            for group in level.chunks(self.fan_in as usize) {
                let (low, high) = (group[0].0, group[group.len() - 1].1);
                if group.len() > 1 {
                    let work = Work {
                        kind: Kind::Join,
                        reduction,
                        low,
                        high,
                        total,
                    };
                    let inputs = group.iter().map(|(low, high)| receipt(*low, *high, total));
                    call.push(self.submission(&work, inputs.collect()));
                }
                next.push((low, high));
            }
            level = next;
        }
        let work = Work {
            kind: Kind::Verify,
            reduction,
            low: 0,
            high: total,
            total,
        };
        call.push(self.submission(&work, vec![PROOF.to_owned()]));
        calls.push(PlanStep::Submit(call));
        calls
    }

    /// Whether its last segment completes a marker that the planner waits for. An answer from the action cache would
    /// not complete it.
    pub(crate) fn marks(&self) -> bool {
        self.waits && !self.cacheable
    }

    fn submission(&self, work: &Work, inputs: Vec<String>) -> TaskSubmission {
        let cached = self.cacheable && work.kind != Kind::Verify;
        let (host, vram) = self.needs(work.kind);
        TaskSubmission {
            request_id: work.name(),
            task_type: work.kind.word(cached).to_owned(),
            resources: Some(resources(host, vram)),
            depends_on: Vec::new(),
            inputs,
            outputs: match work.kind {
                Kind::Verify | Kind::Plan | Kind::Setup => Vec::new(),
                Kind::Prove | Kind::Join => vec![receipt(work.low, work.high, work.total)],
            },
            parameters: work.encode(),
            cache_key: if work.kind == Kind::Setup {
                format!("{}-setup", self.program)
            } else if cached {
                format!("{}-{}-{}", self.program, work.reduction, work.name())
            } else {
                String::new()
            },
            estimated_device_seconds: self.milliseconds(work) as f64 / 1_000.0,
            concludes_job: work.kind == Kind::Verify,
            marker: false,
        }
    }

    /// Host and device memory that a task declares.
    fn needs(&self, kind: Kind) -> (u64, u64) {
        match (kind, self.large) {
            (Kind::Prove, true) => (6 * GIB, 12 * GIB),
            (Kind::Prove, false) => (2 * GIB, 4 * GIB),
            (Kind::Join, _) => (GIB, 2 * GIB),
            (Kind::Verify | Kind::Plan | Kind::Setup, _) => (GIB / 2, 0),
        }
    }
}

/// One thing that a planner does.
#[derive(Clone, Debug)]
pub(crate) enum PlanStep {
    /// Submits tasks in one call.
    Submit(Vec<TaskSubmission>),
    /// Waits until these have ended.
    Await(Vec<String>),
}

/// Name of what proves a range of segments; what proves all of them is the proof.
fn receipt(low: u32, high: u32, total: u32) -> String {
    if low == 0 && high == total {
        PROOF.to_owned()
    } else {
        format!("receipt-{low}-{high}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Plan,
    Prove,
    Join,
    Verify,
    /// Leaves nothing but a result, which serves later jobs of the program.
    Setup,
}

impl Kind {
    fn word(self, cached: bool) -> &'static str {
        match (self, cached) {
            (Kind::Plan, _) => "plan",
            (Kind::Prove, false) => "prove",
            (Kind::Prove, true) => "prove-cached",
            (Kind::Join, false) => "join",
            (Kind::Join, true) => "join-cached",
            (Kind::Verify, _) => "verify",
            (Kind::Setup, _) => "setup-cached",
        }
    }
}

/// What a task does: travels as its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Work {
    pub(crate) kind: Kind,
    pub(crate) reduction: u32,
    pub(crate) low: u32,
    pub(crate) high: u32,
    pub(crate) total: u32,
}

impl Work {
    pub(crate) fn name(&self) -> String {
        match self.kind {
            Kind::Plan => "plan".to_owned(),
            Kind::Prove => format!("prove-{}", self.low),
            Kind::Join => format!("join-{}-{}", self.low, self.high),
            Kind::Verify => "verify".to_owned(),
            Kind::Setup => "setup".to_owned(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        [self.kind as u32, self.reduction, self.low, self.high, self.total]
            .iter()
            .flat_map(|word| (*word as u16).to_le_bytes())
            .collect()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Work> {
        let words: Vec<u32> = bytes
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]])))
            .collect();
        let [kind, reduction, low, high, total] = words[..] else {
            return None;
        };
        let kind = match kind {
            1 => Kind::Prove,
            2 => Kind::Join,
            3 => Kind::Verify,
            4 => Kind::Setup,
            _ => return None,
        };
        Some(Work {
            kind,
            reduction,
            low,
            high,
            total,
        })
    }
}

/// What an artifact is: the segments that it proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) program: u32,
    pub(crate) reduction: u32,
    pub(crate) total: u32,
    pub(crate) segments: u128,
}

impl Content {
    /// What a job was given.
    pub(crate) const SOURCE: Content = Content {
        program: 0,
        reduction: 0,
        total: 0,
        segments: 0,
    };

    pub(crate) fn all(total: u32) -> u128 {
        if total >= 128 {
            u128::MAX
        } else {
            (1u128 << total) - 1
        }
    }

    /// Stands for the hash of its bytes.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&self.program.to_le_bytes());
        hash[4..8].copy_from_slice(&self.reduction.to_le_bytes());
        hash[8..12].copy_from_slice(&self.total.to_le_bytes());
        hash[12..28].copy_from_slice(&self.segments.to_le_bytes());
        hash
    }
}

fn resources(host_memory_bytes: u64, vram_bytes: u64) -> Resources {
    Resources {
        device_class: DeviceClass::Gpu.into(),
        host_memory_bytes,
        vram_bytes,
    }
}

/// What the children of all workers say of themselves.
pub(crate) fn description(attempts_at_once: u32) -> BackendDescription {
    let task_type = |name: &str, stage: &str, stage_order, cacheable, lane: Lane| TaskType {
        name: name.to_owned(),
        stage: stage.to_owned(),
        stage_order,
        cacheable,
        verifies: name == "verify",
        lane: lane.into(),
    };
    let offer = |kind: &str, leaf| ProofOffer {
        system: SYSTEM.to_owned(),
        kind: kind.to_owned(),
        root_task_type: "plan".to_owned(),
        parent_chain: vec![resources(PLANNER_MEMORY, 0)],
        largest_leaf: Some(leaf),
    };
    BackendDescription {
        name: "sim".to_owned(),
        version: "1".to_owned(),
        attempts_at_once,
        proofs: vec![
            offer(SMALL, resources(2 * GIB, 4 * GIB)),
            offer(LARGE, resources(6 * GIB, 12 * GIB)),
        ],
        task_types: vec![
            task_type("plan", "Execute", 0, false, Lane::Control),
            task_type("prove", "Prove", 1, false, Lane::Device),
            task_type("prove-cached", "Prove", 1, true, Lane::Device),
            task_type("join", "Join", 2, false, Lane::Device),
            task_type("join-cached", "Join", 2, true, Lane::Device),
            task_type("verify", "Verify", 3, false, Lane::Device),
            task_type("setup-cached", "Setup", 4, true, Lane::Device),
        ],
        hang_after_ms: 0,
        emulated: false,
        withheld: Vec::new(),
    }
}

/// The description as it travels in a hello.
pub(crate) fn described(attempts_at_once: u32) -> prover_wire::protocol::BackendDescription {
    let description = description(attempts_at_once);
    prover_wire::protocol::BackendDescription {
        encoded: description.encode_to_vec(),
        name: description.name,
        version: description.version,
    }
}
