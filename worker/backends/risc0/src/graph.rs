//! The tasks of a job: their names, what they read and write, and how they depend on each other. Pure.
//!
//! A planner that runs again makes the same names for the same segments, so what was submitted before is found.

use std::collections::BTreeMap;

use prover_backend::protocol::{DeviceClass, Resources, TaskSubmission};
use prover_backend::{Join, JoinTree, Node};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::sizing::{self, ProofKind};

/// Most segments of a Composite proof: its last task reads a receipt for each.
pub const MAX_COMPOSITE_SEGMENTS: u64 = 2048;

/// Most segments of any job.
pub const MAX_SEGMENTS: u64 = 1 << 20;

/// Most assumptions of one job.
pub const MAX_ASSUMPTIONS: usize = 64;

/// Artifact of the planner: what the program made public.
pub const JOURNAL: &str = "journal";

/// Artifact of the planner: what it decided, for planners that run after it.
pub const DECISION: &str = "decision";

/// Task types.
pub mod task_type {
    /// Executes the program and submits everything else.
    pub const PLAN: &str = "plan";
    /// Proves a segment.
    pub const PROVE: &str = "prove";
    /// Makes a segment's receipt joinable.
    pub const LIFT: &str = "lift";
    /// Joins two neighbours.
    pub const JOIN: &str = "join";
    /// Replaces an assumption by its proof.
    pub const RESOLVE: &str = "resolve";
    /// Makes the receipt that the user gets.
    pub const FINALIZE: &str = "finalize";
    /// Verifies it.
    pub const VERIFY: &str = "verify";
}

/// Parameters of `resolve`, `finalize` and `verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parameters {
    /// Kind of the proof.
    #[serde(default)]
    pub kind: String,
    /// Image id in hexadecimal.
    #[serde(default)]
    pub image_id: String,
    /// Artifacts of assumptions that are used, in order of use.
    #[serde(default)]
    pub assumptions: Vec<String>,
}

impl Parameters {
    fn encode(&self) -> Vec<u8> {
        // A structure of strings always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Artifact of a segment.
#[must_use]
pub fn segment_artifact(index: u64) -> String {
    format!("segment-{index}")
}

/// Artifact of a segment's own receipt.
#[must_use]
pub fn segment_receipt_artifact(index: u64) -> String {
    format!("segment-receipt-{index}")
}

/// Artifact of the receipt for the segments of a subtree.
#[must_use]
pub fn receipt_artifact(node: Node) -> String {
    format!("receipt-{}", node.label())
}

fn resolved_artifact(number: usize) -> String {
    format!("resolved-{number}")
}

/// Request id of the task that proves a segment.
#[must_use]
pub fn prove_request(index: u64) -> String {
    format!("prove-{index}")
}

fn receipt_request(node: Node) -> String {
    if node.is_leaf() {
        format!("lift-{}", node.label())
    } else {
        format!("join-{}", node.label())
    }
}

fn resolve_request(number: usize) -> String {
    format!("resolve-{number}")
}

/// What the last tasks need to know.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Image id in hexadecimal.
    pub image_id: String,
    /// Artifact of the program as it was submitted.
    pub program: String,
    /// Artifact name of the proof.
    pub proof: String,
    /// Artifact name of the public values.
    pub public_values: String,
    /// Artifact names and SHA-256 of the assumptions that are used, in the order in which they are resolved.
    pub assumptions: Vec<(String, String)>,
}

/// Makes the tasks of one job, segment by segment.
pub struct TaskGraph {
    kind: ProofKind,
    device_class: DeviceClass,
    tree: JoinTree,
    // Canonical identities of what is not joined yet, by artifact: what the action cache is asked for.
    identities: BTreeMap<String, [u8; 32]>,
    segments: u64,
}

impl TaskGraph {
    /// No tasks yet.
    #[must_use]
    pub fn new(kind: ProofKind, device_class: DeviceClass) -> Self {
        let (tree, identities) = (JoinTree::new(), BTreeMap::new());
        Self {
            kind,
            device_class,
            tree,
            identities,
            segments: 0,
        }
    }

    /// Tasks that the next segment makes possible. Its artifact must exist before they are submitted.
    pub fn segment(&mut self, po2: u32, sha256: [u8; 32]) -> Vec<TaskSubmission> {
        let index = self.segments;
        self.segments += 1;
        let mut tasks = vec![TaskSubmission {
            request_id: prove_request(index),
            task_type: task_type::PROVE.to_owned(),
            resources: self.device(sizing::prove_bytes(po2)),
            inputs: vec![segment_artifact(index)],
            outputs: vec![segment_receipt_artifact(index)],
            cache_key: cache_key(task_type::PROVE, sha256),
            estimated_device_seconds: sizing::prove_seconds(po2),
            ..TaskSubmission::default()
        }];
        if self.kind == ProofKind::Succinct {
            let (leaf, joins) = self.tree.push();
            tasks.push(TaskSubmission {
                depends_on: vec![prove_request(index)],
                inputs: vec![segment_receipt_artifact(index)],
                cache_key: cache_key(task_type::LIFT, sha256),
                ..self.recursion(task_type::LIFT, receipt_request(leaf), receipt_artifact(leaf))
            });
            self.identities.insert(receipt_artifact(leaf), sha256);
            tasks.extend(joins.into_iter().map(|join| self.join(join)));
        }
        tasks
    }

    /// Tasks that remain when all segments have come.
    pub fn finish(mut self, ending: &Ending) -> Vec<TaskSubmission> {
        let mut tasks = Vec::new();
        let (inputs, depends_on) = match self.kind {
            ProofKind::ExecuteOnly => return tasks,
            ProofKind::Composite => (0..self.segments)
                .map(|i| (segment_receipt_artifact(i), prove_request(i)))
                .unzip(),
            ProofKind::Succinct => {
                let (root, joins) = std::mem::take(&mut self.tree).finish();
                tasks.extend(joins.into_iter().map(|join| self.join(join)));
                let Some(root) = root else { return tasks };
                let (receipt, request) = self.resolve(root, ending, &mut tasks);
                (vec![receipt], vec![request])
            }
        };
        tasks.push(self.finalize(ending, inputs, depends_on));
        tasks.push(self.verify(ending));
        tasks
    }

    fn join(&mut self, join: Join) -> TaskSubmission {
        let sides = [join.left, join.right];
        let mut hasher = Sha256::new();
        hasher.update(task_type::JOIN);
        for side in sides {
            hasher.update(
                self.identities
                    .remove(&receipt_artifact(side))
                    .unwrap_or_default(),
            );
        }
        let identity: [u8; 32] = hasher.finalize().into();
        self.identities.insert(receipt_artifact(join.joined), identity);
        TaskSubmission {
            depends_on: sides.map(receipt_request).to_vec(),
            inputs: sides.map(receipt_artifact).to_vec(),
            cache_key: cache_key(task_type::JOIN, identity),
            ..self.recursion(
                task_type::JOIN,
                receipt_request(join.joined),
                receipt_artifact(join.joined),
            )
        }
    }

    /// One task for each assumption, one after another. Answers with the last receipt and its request.
    fn resolve(&self, root: Node, ending: &Ending, tasks: &mut Vec<TaskSubmission>) -> (String, String) {
        let mut receipt = (receipt_artifact(root), receipt_request(root));
        let mut identity = self.identities.get(&receipt.0).copied().unwrap_or_default();
        for (number, (assumption, sha256)) in ending.assumptions.iter().enumerate() {
            identity = Sha256::new()
                .chain_update(task_type::RESOLVE)
                .chain_update(identity)
                .chain_update(sha256)
                .finalize()
                .into();
            let parameters = Parameters {
                assumptions: vec![assumption.clone()],
                ..Parameters::default()
            };
            tasks.push(TaskSubmission {
                depends_on: vec![receipt.1],
                inputs: vec![receipt.0, assumption.clone()],
                parameters: parameters.encode(),
                cache_key: cache_key(task_type::RESOLVE, identity),
                ..self.recursion(
                    task_type::RESOLVE,
                    resolve_request(number),
                    resolved_artifact(number),
                )
            });
            receipt = (resolved_artifact(number), resolve_request(number));
        }
        receipt
    }

    fn finalize(&self, ending: &Ending, mut inputs: Vec<String>, depends_on: Vec<String>) -> TaskSubmission {
        inputs.push(JOURNAL.to_owned());
        let mut assumptions = Vec::new();
        if self.kind == ProofKind::Composite {
            assumptions.extend(ending.assumptions.iter().map(|(name, _)| name.clone()));
            for name in &assumptions {
                if !inputs.contains(name) {
                    inputs.push(name.clone());
                }
            }
        }
        let (kind, image_id) = (self.kind.name().to_owned(), ending.image_id.clone());
        TaskSubmission {
            request_id: task_type::FINALIZE.to_owned(),
            task_type: task_type::FINALIZE.to_owned(),
            resources: self.host(sizing::assemble_bytes(inputs.len() as u64)),
            depends_on,
            inputs,
            outputs: vec![ending.proof.clone(), ending.public_values.clone()],
            parameters: Parameters {
                kind,
                image_id,
                assumptions,
            }
            .encode(),
            ..TaskSubmission::default()
        }
    }

    fn verify(&self, ending: &Ending) -> TaskSubmission {
        TaskSubmission {
            request_id: task_type::VERIFY.to_owned(),
            task_type: task_type::VERIFY.to_owned(),
            resources: self.host(sizing::VERIFY_BYTES),
            depends_on: vec![task_type::FINALIZE.to_owned()],
            inputs: vec![
                ending.program.clone(),
                ending.proof.clone(),
                ending.public_values.clone(),
            ],
            parameters: Parameters {
                kind: self.kind.name().to_owned(),
                ..Parameters::default()
            }
            .encode(),
            concludes_job: true,
            ..TaskSubmission::default()
        }
    }

    fn recursion(&self, kind: &str, request_id: String, output: String) -> TaskSubmission {
        TaskSubmission {
            request_id,
            task_type: kind.to_owned(),
            resources: self.device(sizing::recursion_bytes()),
            outputs: vec![output],
            estimated_device_seconds: sizing::recursion_seconds(),
            ..TaskSubmission::default()
        }
    }

    fn device(&self, bytes: u64) -> Option<Resources> {
        let on_gpu = self.device_class == DeviceClass::Gpu;
        let vram_bytes = if on_gpu { bytes } else { 0 };
        Some(Resources {
            device_class: self.device_class.into(),
            host_memory_bytes: bytes,
            vram_bytes,
        })
    }

    fn host(&self, bytes: u64) -> Option<Resources> {
        Some(Resources {
            device_class: self.device_class.into(),
            host_memory_bytes: bytes,
            vram_bytes: 0,
        })
    }
}

/// Key of the action cache: what is done, and the content that it is done with. The backend's version is a part of
/// the identity of its tasks already.
fn cache_key(kind: &str, identity: [u8; 32]) -> String {
    format!("risc0/{kind}/{}", hex::encode(identity))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn ending(assumptions: &[&str]) -> Ending {
        Ending {
            image_id: "00".repeat(32),
            program: "program".to_owned(),
            proof: "proof".to_owned(),
            public_values: "public-values".to_owned(),
            assumptions: assumptions
                .iter()
                .map(|name| ((*name).to_owned(), format!("hash of {name}")))
                .collect(),
        }
    }

    fn all_tasks(kind: ProofKind, segments: u8, assumptions: &[&str]) -> Vec<TaskSubmission> {
        let mut graph = TaskGraph::new(kind, DeviceClass::Cpu);
        let mut tasks: Vec<_> = (0..segments).flat_map(|i| graph.segment(16, [i; 32])).collect();
        tasks.extend(graph.finish(&ending(assumptions)));
        tasks
    }

    fn count(tasks: &[TaskSubmission], kind: &str) -> usize {
        tasks.iter().filter(|task| task.task_type == kind).count()
    }

    /// What every graph must keep: dependencies come first, inputs are outputs of dependencies or given.
    fn check_order(tasks: &[TaskSubmission], given: &[&str]) {
        let mut known: BTreeSet<&str> = BTreeSet::new();
        let mut made: BTreeSet<String> = given.iter().map(|name| (*name).to_owned()).collect();
        for task in tasks {
            for dependency in &task.depends_on {
                assert!(
                    known.contains(dependency.as_str()),
                    "{} before {dependency}",
                    task.request_id
                );
            }
            for input in &task.inputs {
                let is_segment = input.starts_with("segment-") && !input.starts_with("segment-receipt");
                assert!(
                    is_segment || made.contains(input),
                    "{} reads {input}",
                    task.request_id
                );
            }
            assert!(known.insert(&task.request_id), "{} twice", task.request_id);
            for output in &task.outputs {
                assert!(made.insert(output.clone()), "{output} is written twice");
            }
        }
    }

    #[test]
    fn a_succinct_proof_is_a_tree_over_its_segments() {
        for segments in 1..40 {
            let tasks = all_tasks(ProofKind::Succinct, segments, &[]);
            check_order(&tasks, &["journal", "program"]);
            let n = usize::from(segments);
            assert_eq!(
                (
                    count(&tasks, "prove"),
                    count(&tasks, "lift"),
                    count(&tasks, "join")
                ),
                (n, n, n - 1)
            );
            assert_eq!(tasks.iter().filter(|task| task.concludes_job).count(), 1);
            assert_eq!(tasks.last().map(|task| task.request_id.as_str()), Some("verify"));
        }
    }

    #[test]
    fn a_composite_proof_has_nothing_between_segments_and_the_end() {
        let tasks = all_tasks(ProofKind::Composite, 3, &["assumption-0", "assumption-0"]);
        check_order(&tasks, &["journal", "program", "assumption-0"]);
        assert_eq!(tasks.len(), 5);
        assert_eq!(
            tasks[3].inputs.len(),
            5,
            "three receipts, the journal, the assumption once"
        );
        let parameters: Parameters = serde_json::from_slice(&tasks[3].parameters).expect("JSON");
        assert_eq!(parameters.assumptions, ["assumption-0", "assumption-0"]);
    }

    #[test]
    fn assumptions_are_resolved_one_after_another() {
        let tasks = all_tasks(ProofKind::Succinct, 2, &["assumption-1", "assumption-0"]);
        check_order(&tasks, &["journal", "program", "assumption-0", "assumption-1"]);
        let resolves: Vec<_> = tasks.iter().filter(|task| task.task_type == "resolve").collect();
        assert_eq!(resolves[0].inputs, ["receipt-0-1", "assumption-1"]);
        assert_eq!(resolves[1].inputs, ["resolved-0", "assumption-0"]);
    }

    #[test]
    fn names_and_cache_keys_are_the_same_each_time() {
        assert_eq!(
            all_tasks(ProofKind::Succinct, 9, &["a"]),
            all_tasks(ProofKind::Succinct, 9, &["a"])
        );
    }

    #[test]
    fn cache_keys_depend_on_content_and_differ_within_a_job() {
        let keys = |first: u8| -> Vec<String> {
            let mut graph = TaskGraph::new(ProofKind::Succinct, DeviceClass::Cpu);
            let mut tasks: Vec<_> = (0..4).flat_map(|i| graph.segment(16, [first + i; 32])).collect();
            tasks.extend(graph.finish(&ending(&["a"])));
            tasks
                .into_iter()
                .map(|task| task.cache_key)
                .filter(|key| !key.is_empty())
                .collect()
        };
        let (one, other): (BTreeSet<_>, BTreeSet<_>) =
            (keys(0).into_iter().collect(), keys(10).into_iter().collect());
        assert_eq!(one.len(), 4 + 4 + 3 + 1);
        assert!(one.is_disjoint(&other));
    }

    #[test]
    fn executing_only_makes_no_tasks() {
        let graph = TaskGraph::new(ProofKind::ExecuteOnly, DeviceClass::Cpu);
        assert_eq!(graph.finish(&ending(&[])), []);
    }
}
