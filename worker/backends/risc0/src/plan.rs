//! The planner: executes the program and submits the tasks that prove it while it executes.
//!
//! The executor stands still while a segment is uploaded or too many tasks are in flight, so that at most
//! a handful of segments exist outside the store. A planner that runs again (its worker died) makes the same
//! segments under the same names and uploads only what is not there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prover_backend::protocol::{DeviceClass, ExecutionReport, JobPlan};
use prover_backend::{Attempt, CallError, Completed, InFlight, TaskError};
use risc0_zkvm::InnerAssumptionReceipt;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use crate::execute::{self, DEFAULT_MAX_CYCLES, ExecuteError, Execution, SegmentBytes};
use crate::graph::{
    DECISION, Ending, JOURNAL, MAX_ASSUMPTIONS, MAX_COMPOSITE_SEGMENTS, MAX_SEGMENTS, TaskGraph,
    segment_artifact,
};
use crate::input::standard_input;
use crate::program::Program;
use crate::prover;
use crate::sizing::{self, ProofKind, SizeError, SizeRequest};

/// Progress is reported at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Everything that is checked before the program runs.
struct Prepared {
    kind: ProofKind,
    program: Program,
    input: Vec<u8>,
    assumptions: Vec<Given>,
    decision: Decision,
    max_cycles: u64,
}

/// An assumption of the job.
struct Given {
    artifact: String,
    sha256: String,
    receipt: InnerAssumptionReceipt,
}

/// Runs the task `plan`.
pub async fn run(attempt: Attempt) -> Result<Completed, TaskError> {
    let plan = attempt.require_plan()?.clone();
    let prepared = prepare(&attempt, &plan).await?;
    let started = Instant::now();
    let state = attempt.clone();
    let executed = attempt
        .blocking(move || Planner::new(state, plan, prepared).execute())
        .await;
    executed.map(|report| Completed {
        execution: Some(report),
        device_time: started.elapsed(),
        ..Completed::default()
    })
}

async fn prepare(attempt: &Attempt, plan: &JobPlan) -> Result<Prepared, TaskError> {
    let kind = ProofKind::from_name(&plan.kind).ok_or_else(|| kind_not_offered(&plan.kind))?;
    let bytes = attempt.read_input(&plan.program).await?;
    let program = Program::parse(&bytes)
        .map_err(|error| TaskError::invalid_input(error.category(), error.to_string()))?;
    let image_id = hex::encode(program.image_id());
    let expected = plan
        .expected_program_id
        .trim_start_matches("0x")
        .to_ascii_lowercase();
    if !expected.is_empty() && expected != image_id {
        return Err(TaskError::invalid_input(
            "ProgramIdMismatch",
            format!("the program has the image id {image_id}, but the manifest expects {expected}"),
        ));
    }
    // A job without an input gets an empty one.
    let input = match attempt.inputs().iter().any(|input| input.name == plan.input) {
        true => attempt.read_input(&plan.input).await?,
        false => Vec::new(),
    };
    let input = standard_input(plan.input_format(), input)
        .map_err(|error| TaskError::invalid_input(error.category(), error.to_string()))?;
    let chosen = sizing::choose(SizeRequest {
        asked: plan.segment_po2,
        reduction: plan.segment_po2_reduction,
        memory_bytes: memory_of_smallest(plan),
    })
    .map_err(|error| match error {
        SizeError::OutOfRange { .. } | SizeError::Wasteful => {
            TaskError::invalid_input(error.category(), error.to_string())
        }
        SizeError::NothingSmaller { .. } => TaskError::fatal(error.category(), error.to_string()),
    })?;
    let assumptions = read_assumptions(attempt, plan, kind).await?;
    let max_cycles = if plan.max_cycles == 0 {
        DEFAULT_MAX_CYCLES
    } else {
        plan.max_cycles
    };
    let decision = settle(attempt, chosen).await?;
    Ok(Prepared {
        kind,
        program,
        input,
        assumptions,
        decision,
        max_cycles,
    })
}

fn kind_not_offered(kind: &str) -> TaskError {
    let advice = if kind == "Groth16" {
        "RISC Zero makes Groth16 proofs with a separate prover that is not part of this backend: ask for Succinct, and \
         turn it into Groth16 elsewhere"
    } else {
        "It makes Composite and Succinct proofs, and ExecuteOnly"
    };
    TaskError::invalid_input(
        "ProofKindNotOffered",
        format!("the risc0 backend makes no {kind} proofs. {advice}"),
    )
}

fn memory_of_smallest(plan: &JobPlan) -> u64 {
    if plan.device_class() == DeviceClass::Gpu {
        plan.smallest_vram_bytes
    } else {
        plan.smallest_worker_memory_bytes
    }
}

async fn read_assumptions(
    attempt: &Attempt,
    plan: &JobPlan,
    kind: ProofKind,
) -> Result<Vec<Given>, TaskError> {
    if plan.assumptions.len() > MAX_ASSUMPTIONS {
        return Err(TaskError::invalid_input(
            "TooManyAssumptions",
            format!(
                "spec.assumptions names {} receipts: at most {MAX_ASSUMPTIONS}",
                plan.assumptions.len()
            ),
        ));
    }
    let mut given = Vec::new();
    for assumption in &plan.assumptions {
        let artifact = assumption.proof.clone();
        let bytes = attempt.read_input(&artifact).await?;
        let receipt = prover::read_assumption(&bytes).map_err(|error| {
            TaskError::invalid_input(
                "AssumptionInvalid",
                format!("{artifact} (of spec.assumptions) is not a RISC Zero receipt that verifies: {error}"),
            )
        })?;
        if kind == ProofKind::Succinct && !execute::is_succinct(&receipt) {
            return Err(TaskError::invalid_input(
                "AssumptionNotSuccinct",
                format!(
                    "{artifact} (of spec.assumptions) is not a Succinct receipt, and only such can be resolved in a \
                     Succinct proof. Prove it with kind Succinct first"
                ),
            ));
        }
        given.push(Given {
            artifact,
            sha256: hex::encode(Sha256::digest(&bytes)),
            receipt,
        });
    }
    Ok(given)
}

/// What runs while the executor does.
struct Planner {
    attempt: Attempt,
    plan: JobPlan,
    prepared: Prepared,
    runtime: Handle,
    graph: TaskGraph,
    in_flight: InFlight,
    progress: Progress,
}

/// What the executor's callbacks count.
struct Progress {
    report: ExecutionReport,
    told: Instant,
}

impl Planner {
    /// To be called where a runtime is.
    fn new(attempt: Attempt, plan: JobPlan, prepared: Prepared) -> Self {
        let device_class = match plan.device_class() {
            DeviceClass::Gpu => DeviceClass::Gpu,
            DeviceClass::Cpu | DeviceClass::Unspecified => DeviceClass::Cpu,
        };
        let graph = TaskGraph::new(prepared.kind, device_class);
        let in_flight = InFlight::new(attempt.clone(), plan.max_in_flight);
        let report = ExecutionReport {
            program_id: hex::encode(prepared.program.image_id()),
            segment_po2: prepared.decision.segment_po2,
            ..ExecutionReport::default()
        };
        let progress = Progress {
            report,
            told: Instant::now(),
        };
        Self {
            attempt,
            plan,
            prepared,
            runtime: Handle::current(),
            graph,
            in_flight,
            progress,
        }
    }

    fn execute(self) -> Result<ExecutionReport, TaskError> {
        let Self {
            attempt,
            plan,
            prepared,
            runtime,
            graph,
            in_flight,
            progress,
        } = self;
        let Prepared {
            kind,
            program,
            input,
            assumptions,
            decision: Decision { segment_po2, seed },
            max_cycles,
        } = prepared;
        let receipts: Vec<_> = assumptions.iter().map(|given| given.receipt.clone()).collect();
        let request = execute::Request {
            program: &program,
            input,
            assumptions: &receipts,
            max_cycles,
            segment_po2,
        };
        let shared = Arc::new(Mutex::new((graph, in_flight, progress)));
        let executed = execute::execute(request, &|| Ok(seed), |segment| {
            // Only the executor's one thread for segments ever takes this lock while the program runs.
            let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let (graph, in_flight, progress) = &mut *state;
            runtime.block_on(take_segment(&attempt, kind, segment, graph, in_flight, progress))
        });
        let (graph, in_flight, progress) = match Arc::into_inner(shared) {
            Some(state) => state.into_inner().unwrap_or_else(PoisonError::into_inner),
            None => {
                return Err(TaskError::retryable(
                    "PlannerFault",
                    "the executor kept its state",
                ));
            }
        };
        let execution = executed.map_err(|error| failure(error, progress.report.clone()))?;
        let report = ExecutionReport {
            segments: execution.segments,
            user_cycles: execution.user_cycles,
            total_cycles: execution.total_cycles,
            ..progress.report
        };
        let ending = ending(&plan, &report, &execution, &assumptions);
        runtime.block_on(conclude(
            &attempt,
            &plan,
            kind,
            &execution.journal,
            graph.finish(&ending),
            in_flight,
        ))?;
        Ok(report)
    }
}

fn ending(plan: &JobPlan, report: &ExecutionReport, execution: &Execution, given: &[Given]) -> Ending {
    let used = execution.assumptions.iter().map(|index| &given[*index]);
    Ending {
        image_id: report.program_id.clone(),
        program: plan.program.clone(),
        proof: plan.proof_output.clone(),
        public_values: plan.public_values_output.clone(),
        assumptions: used
            .map(|given| (given.artifact.clone(), given.sha256.clone()))
            .collect(),
    }
}

/// Uploads the journal and submits the last tasks. The job goes on without the planner then.
async fn conclude(
    attempt: &Attempt,
    plan: &JobPlan,
    kind: ProofKind,
    journal: &[u8],
    tasks: Vec<prover_backend::protocol::TaskSubmission>,
    mut in_flight: InFlight,
) -> Result<(), TaskError> {
    let name = if kind == ProofKind::ExecuteOnly {
        plan.public_values_output.as_str()
    } else {
        JOURNAL
    };
    put_once(attempt, name, journal).await?;
    if !tasks.is_empty() {
        in_flight.submit(tasks).await?;
    }
    Ok(())
}

async fn take_segment(
    attempt: &Attempt,
    kind: ProofKind,
    segment: SegmentBytes,
    graph: &mut TaskGraph,
    in_flight: &mut InFlight,
    progress: &mut Progress,
) -> Result<(), TaskError> {
    attempt.check_stopped()?;
    let index = u64::from(segment.index);
    let limit = if kind == ProofKind::Composite {
        MAX_COMPOSITE_SEGMENTS
    } else {
        MAX_SEGMENTS
    };
    if index >= limit {
        let po2 = progress.report.segment_po2;
        return Err(TaskError::invalid_input(
            "TooManySegments",
            format!(
                "the program makes more than {limit} segments of 2^{po2} cycles, the most of a {} proof. Take a larger \
                 spec.segmentPo2{}",
                kind.name(),
                if kind == ProofKind::Composite {
                    ", or kind Succinct"
                } else {
                    ""
                }
            ),
        ));
    }
    progress.report.segments = index + 1;
    progress.report.user_cycles += segment.user_cycles;
    progress.report.total_cycles += 1_u64 << segment.po2;
    if kind != ProofKind::ExecuteOnly {
        put_once(attempt, &segment_artifact(index), &segment.bytes).await?;
        let tasks = graph.segment(segment.po2, Sha256::digest(&segment.bytes).into());
        in_flight.submit(tasks).await?;
    }
    if progress.told.elapsed() >= PROGRESS_EVERY {
        progress.told = Instant::now();
        attempt.report_progress(None, Some(progress.report.clone())).await;
    }
    Ok(())
}

/// Uploads bytes under a name, unless an attempt before this one did. What is there must be the same.
async fn put_once(attempt: &Attempt, name: &str, bytes: &[u8]) -> Result<(), TaskError> {
    let sha256 = hex::encode(Sha256::digest(bytes));
    let before = if attempt.number() == 1 {
        None
    } else {
        attempt.stat_artifact(name).await?
    };
    let bound = match before {
        Some(info) => info,
        None => {
            let path = attempt.write_output(name, bytes).await?;
            let info = attempt.put_artifact(name, &path).await?;
            // The directory is memory in a pod, and the planner lives as long as the program runs.
            let removed = tokio::fs::remove_file(&path).await;
            removed.map_err(|error| TaskError::file("remove an uploaded file", &path, &error))?;
            info
        }
    };
    if bound.sha256 == sha256 {
        return Ok(());
    }
    Err(TaskError::fatal(
        "ExecutionNotReproducible",
        format!(
            "{name} differs from what an attempt before this one made (SHA-256 {sha256}, before {}): the program must \
             depend on nothing but its input",
            bound.sha256
        ),
    ))
}

/// What the first planner of a job decides and those after it keep: they must make the same segments, while the
/// smallest worker may be another one by then.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decision {
    segment_po2: u32,
    /// Where the program's randomness comes from.
    seed: [u8; 32],
}

/// The decision of the job: the first one that was stored.
async fn settle(attempt: &Attempt, segment_po2: u32) -> Result<Decision, TaskError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| {
        TaskError::retryable(
            "NoRandomness",
            format!("the system gave no random bytes: {error}"),
        )
    })?;
    let decision = Decision { segment_po2, seed };
    let damaged = |error: serde_json::Error| CallError::Damaged(format!("the planner's decision: {error}"));
    let bytes = serde_json::to_vec(&decision).map_err(damaged)?;
    let path = attempt.write_output(DECISION, &bytes).await?;
    let bound = attempt.put_artifact(DECISION, &path).await?;
    if bound.sha256 == hex::encode(Sha256::digest(&bytes)) {
        return Ok(decision);
    }
    let (path, _) = attempt.get_artifact(DECISION).await?;
    let bytes = tokio::fs::read(&path)
        .await
        .map_err(|error| TaskError::file("read the planner's decision", &path, &error))?;
    Ok(serde_json::from_slice(&bytes).map_err(damaged)?)
}

fn failure(error: ExecuteError<TaskError>, report: ExecutionReport) -> TaskError {
    let exit_code = match &error {
        ExecuteError::GuestFailed { code, .. } => i64::from(*code),
        _ => 0,
    };
    match error {
        ExecuteError::Caller(error) => error,
        error => TaskError::invalid_input(error.category(), error.to_string())
            .with_execution(ExecutionReport { exit_code, ..report }),
    }
}
