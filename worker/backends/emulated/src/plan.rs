//! The planner: turns a model into the same graph of tasks as a real prover's, while it "executes".

use std::time::Duration;

use prover_backend::protocol::{
    DeviceClass, ExecutionReport, InputFormat, JobPlan, Resources, TaskSubmission,
};
use prover_backend::{Attempt, Completed, InFlight, Join, JoinTree, Node, TaskError};
use sha2::{Digest, Sha256};

use crate::model::{Failure, Model, Span, TaskParameters};
use crate::runner::emulated_bytes;

/// Tasks in flight where the job's plan sets no limit.
const DEFAULT_IN_FLIGHT: u32 = 256;
/// How often a planner tells how far it is, in segments.
const PROGRESS_EVERY: u64 = 16;
/// Size of a segment at the first planning, as a power of two of cycles; only for the report.
const SEGMENT_PO2: u32 = 16;

/// Identity of an emulated program: the hash of its file.
pub(crate) fn program_id(program: &[u8]) -> String {
    hex::encode(Sha256::digest(program))
}

/// Plans a job: everything about its tasks that does not need an agent.
pub(crate) struct Planner {
    model: Model,
    resources: Resources,
    reduction: u32,
    program_id: String,
    proof_output: String,
    public_values_output: String,
}

impl Planner {
    pub(crate) fn new(model: Model, plan: &JobPlan, program_id: String) -> Self {
        let device_class = match plan.device_class() {
            DeviceClass::Unspecified => DeviceClass::Cpu,
            class => class,
        };
        let resources = Resources {
            device_class: device_class.into(),
            host_memory_bytes: model.resources.host_memory_bytes,
            vram_bytes: model.resources.vram_bytes,
        };
        Self {
            model,
            resources,
            reduction: plan.segment_po2_reduction,
            program_id,
            proof_output: plan.proof_output.clone(),
            public_values_output: plan.public_values_output.clone(),
        }
    }

    /// Half the segment size makes twice as many segments.
    pub(crate) fn segments(&self) -> u64 {
        self.model
            .segments
            .saturating_mul(1_u64.checked_shl(self.reduction).unwrap_or(u64::MAX))
    }

    // A job that is planned again with smaller segments must not meet the names of the plan before.
    fn name(&self, kind: &str, label: &str) -> String {
        match self.reduction {
            0 => format!("{kind}-{label}"),
            reduction => format!("r{reduction}-{kind}-{label}"),
        }
    }

    pub(crate) fn segment_name(&self, segment: u64) -> String {
        self.name("segment", &segment.to_string())
    }

    // What a subtree is made by, and the name of its receipt: a lifted leaf or a join.
    fn made_by(&self, node: &Node) -> String {
        self.name(if node.is_leaf() { "lift" } else { "join" }, &node.label())
    }

    fn receipt(&self, node: &Node) -> String {
        self.name("receipt", &node.label())
    }

    fn task(
        &self,
        task_type: &str,
        label: &str,
        index: u64,
        span: Span,
        output_bytes: Vec<u64>,
    ) -> TaskSubmission {
        let request_id = self.name(task_type, label);
        let milliseconds = span.draw(self.model.seed, &request_id);
        let failures: Vec<Failure> = self
            .model
            .failures
            .iter()
            .filter(|failure| failure.task == task_type)
            .cloned()
            .collect();
        let parameters = TaskParameters {
            index,
            milliseconds,
            output_bytes,
            reduction: self.reduction,
            program_id: self.program_id.clone(),
            failures,
        };
        TaskSubmission {
            request_id,
            task_type: task_type.to_owned(),
            resources: Some(self.resources),
            // A struct of numbers and strings always has a JSON form.
            parameters: serde_json::to_vec(&parameters).unwrap_or_default(),
            estimated_device_seconds: Duration::from_millis(milliseconds).as_secs_f64(),
            ..TaskSubmission::default()
        }
    }

    /// Proving and lifting a segment, and the joins that it completes. Dependencies come first.
    pub(crate) fn segment_tasks(&self, leaf: &Node, joins: &[Join]) -> Vec<TaskSubmission> {
        let (label, sizes, durations) = (leaf.label(), self.model.sizes, self.model.durations);
        let raw_receipt = self.name("proven", &label);
        let prove = TaskSubmission {
            inputs: vec![self.segment_name(leaf.first)],
            outputs: vec![raw_receipt.clone()],
            ..self.task("prove", &label, leaf.first, durations.prove, vec![sizes.receipt])
        };
        let lift = TaskSubmission {
            depends_on: vec![prove.request_id.clone()],
            inputs: vec![raw_receipt],
            outputs: vec![self.receipt(leaf)],
            ..self.task("lift", &label, leaf.first, durations.lift, vec![sizes.receipt])
        };
        [prove, lift].into_iter().chain(self.join_tasks(joins)).collect()
    }

    /// The given joins, in their order.
    pub(crate) fn join_tasks(&self, joins: &[Join]) -> impl Iterator<Item = TaskSubmission> {
        joins.iter().map(|join| TaskSubmission {
            depends_on: vec![self.made_by(&join.left), self.made_by(&join.right)],
            inputs: vec![self.receipt(&join.left), self.receipt(&join.right)],
            outputs: vec![self.receipt(&join.joined)],
            ..self.task(
                "join",
                &join.joined.label(),
                join.joined.first,
                self.model.durations.join,
                vec![self.model.sizes.receipt],
            )
        })
    }

    /// What follows the root of the tree: the result, and the task that judges it.
    pub(crate) fn last_tasks(&self, root: &Node) -> [TaskSubmission; 2] {
        let (sizes, durations) = (self.model.sizes, self.model.durations);
        let results = vec![self.proof_output.clone(), self.public_values_output.clone()];
        let finalize = TaskSubmission {
            depends_on: vec![self.made_by(root)],
            inputs: vec![self.receipt(root)],
            outputs: results.clone(),
            ..self.task(
                "finalize",
                "result",
                0,
                durations.finalize,
                vec![sizes.proof, sizes.public_values],
            )
        };
        let verify = TaskSubmission {
            depends_on: vec![finalize.request_id.clone()],
            inputs: results,
            concludes_job: true,
            ..self.task("verify", "result", 0, durations.verify, vec![])
        };
        [finalize, verify]
    }

    fn execution(&self, segments: u64) -> ExecutionReport {
        let cycles = (self.model.cycles_per_segment >> self.reduction.min(63))
            .max(1)
            .saturating_mul(segments);
        ExecutionReport {
            segments,
            user_cycles: cycles,
            total_cycles: cycles,
            program_id: self.program_id.clone(),
            exit_code: 0,
            segment_po2: SEGMENT_PO2.saturating_sub(self.reduction),
            ..ExecutionReport::default()
        }
    }
}

/// Runs the planner as an attempt.
pub(crate) async fn run(attempt: &Attempt) -> Result<Completed, TaskError> {
    let plan = attempt.require_plan()?;
    refuse_what_is_not_emulated(plan)?;
    let program_id = program_id(&attempt.read_input(&plan.program).await?);
    if !plan.expected_program_id.is_empty() && plan.expected_program_id != program_id {
        let message = format!(
            "the manifest expects program {}, but the program file is {program_id} (its SHA-256)",
            plan.expected_program_id
        );
        return Err(TaskError::invalid_input("ProgramIdMismatch", message));
    }
    let model = Model::parse(&attempt.read_input(&plan.input).await?)?;
    let (pace, segment_bytes) = (model.segments_per_second, model.sizes.segment);
    if let Some(failure) = crate::runner::striking(&model.failures, attempt, 0, plan.segment_po2_reduction) {
        tokio::time::sleep(Duration::from_millis(failure.after_milliseconds)).await;
        return Err(crate::failures::strike(failure, "the planner", Duration::ZERO).await);
    }
    let planner = Planner::new(model, plan, program_id);
    let total = planner.segments();
    refuse_too_many_cycles(&planner, plan, total)?;
    let in_flight = if plan.max_in_flight == 0 {
        DEFAULT_IN_FLIGHT
    } else {
        plan.max_in_flight
    };
    let mut in_flight = InFlight::new(attempt.clone(), in_flight);
    let mut tree = JoinTree::new();
    let started = tokio::time::Instant::now();
    for segment in 0..total {
        if let Some(pace) = pace {
            tokio::time::sleep_until(started + Duration::from_secs_f64(segment as f64 / pace)).await;
        }
        let name = planner.segment_name(segment);
        let path = attempt
            .write_output(&name, &emulated_bytes(&name, segment_bytes))
            .await?;
        attempt.put_artifact(&name, &path).await?;
        // The directory may lie in memory, and the store has the segment now.
        tokio::fs::remove_file(&path)
            .await
            .map_err(|error| TaskError::file("remove a segment that was uploaded", &path, &error))?;
        let (leaf, joins) = tree.push();
        in_flight.submit(planner.segment_tasks(&leaf, &joins)).await?;
        if segment % PROGRESS_EVERY == 0 {
            let fraction = (segment + 1) as f64 / total as f64;
            attempt
                .report_progress(Some(fraction), Some(planner.execution(segment + 1)))
                .await;
        }
    }
    let (root, joins) = tree.finish();
    let Some(root) = root else {
        return Err(TaskError::invalid_input(
            "NoSegments",
            "the program has no segments",
        ));
    };
    let last: Vec<_> = planner
        .join_tasks(&joins)
        .chain(planner.last_tasks(&root))
        .collect();
    attempt.submit_tasks(last).await?;
    attempt
        .report_progress(Some(1.0), Some(planner.execution(total)))
        .await;
    Ok(Completed {
        execution: Some(planner.execution(total)),
        ..Completed::default()
    })
}

fn refuse_what_is_not_emulated(plan: &JobPlan) -> Result<(), TaskError> {
    if !matches!(plan.input_format(), InputFormat::Raw | InputFormat::Unspecified) {
        let message = "the input of an emulated job is a JSON model: set input.format to raw";
        return Err(TaskError::invalid_input("InputFormatNotSupported", message));
    }
    if !plan.assumptions.is_empty() {
        let message = "emulated jobs have no assumptions: remove spec.assumptions";
        return Err(TaskError::invalid_input("AssumptionsNotSupported", message));
    }
    Ok(())
}

fn refuse_too_many_cycles(planner: &Planner, plan: &JobPlan, segments: u64) -> Result<(), TaskError> {
    let execution = planner.execution(segments);
    if plan.max_cycles == 0 || execution.total_cycles <= plan.max_cycles {
        return Ok(());
    }
    let message = format!(
        "the program needs {} cycles, and maxCycles allows {}: raise maxCycles or choose a smaller input",
        execution.total_cycles, plan.max_cycles
    );
    Err(TaskError::invalid_input("CycleLimitExceeded", message).with_execution(execution))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn planner(segments: u64, reduction: u32) -> Planner {
        let model = Model::parse(format!(r#"{{"segments": {segments}}}"#).as_bytes()).expect("a good model");
        let plan = JobPlan {
            segment_po2_reduction: reduction,
            proof_output: "proof".to_owned(),
            public_values_output: "public-values".to_owned(),
            device_class: 1,
            ..JobPlan::default()
        };
        Planner::new(model, &plan, "00".to_owned())
    }

    fn whole_plan(planner: &Planner) -> Vec<TaskSubmission> {
        let mut tree = JoinTree::new();
        let mut tasks = Vec::new();
        for _ in 0..planner.segments() {
            let (leaf, joins) = tree.push();
            tasks.extend(planner.segment_tasks(&leaf, &joins));
        }
        let (root, joins) = tree.finish();
        tasks.extend(planner.join_tasks(&joins));
        tasks.extend(planner.last_tasks(&root.expect("there are segments")));
        tasks
    }

    proptest! {
        #[test]
        fn every_task_comes_after_its_dependencies_and_reads_what_they_wrote(
            segments in 1_u64..200, reduction in 0_u32..3,
        ) {
            let planner = planner(segments, reduction);
            let tasks = whole_plan(&planner);
            let leaves = segments << reduction;
            prop_assert_eq!(tasks.len() as u64, 2 * leaves + (leaves - 1) + 2);
            let mut submitted = BTreeSet::new();
            let mut written: BTreeSet<String> = (0..leaves).map(|leaf| planner.segment_name(leaf)).collect();
            for task in &tasks {
                prop_assert!(task.depends_on.iter().all(|needed| submitted.contains(needed)), "{:?}", task);
                prop_assert!(task.inputs.iter().all(|input| written.contains(input)), "{:?}", task);
                prop_assert!(submitted.insert(task.request_id.clone()), "{} twice", task.request_id);
                for output in &task.outputs {
                    prop_assert!(written.insert(output.clone()), "{} is written twice", output);
                }
                let submission = prover_backend::validate::submission(&crate::runner::description(), task);
                prop_assert_eq!(submission, Ok(()));
            }
            prop_assert_eq!(tasks.iter().filter(|task| task.concludes_job).count(), 1);
            prop_assert!(tasks.last().is_some_and(|task| task.concludes_job));
        }
    }

    #[test]
    fn a_plan_with_smaller_segments_shares_no_name_with_the_one_before() {
        let names = |reduction| -> BTreeSet<String> {
            let tasks = whole_plan(&planner(3, reduction));
            tasks
                .into_iter()
                .flat_map(|task| task.outputs.into_iter().chain([task.request_id]))
                .collect()
        };
        let common: Vec<String> = names(0).intersection(&names(1)).cloned().collect();
        assert_eq!(common, ["proof", "public-values"]);
    }
}
