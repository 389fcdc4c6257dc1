//! The report of a job: the JSON object that `run` prints and writes, and the numbers that the text is made of.
//!
//! The schema is versioned by `apiVersion`; fields are added, never renamed. Times are RFC 3339 in UTC, spans are
//! seconds, sizes are bytes. The reference is `cli/report.schema.json`, which is written from these types.

use std::path::Path;
use std::time::Duration;

use prover_coordinator::{JobView, TaskState, TaskView};
use schemars::JsonSchema;
use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::files::{FileError, write_atomically};

/// Version of the schema.
pub(crate) const API_VERSION: &str = "proving.rs/v1alpha1";

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub(crate) enum Outcome {
    /// Proved and verified; executed, for ExecuteOnly; run through the model, for an emulated job.
    Succeeded,
    /// The proof could not be made.
    Failed,
    /// Something that the user gave is wrong.
    BadInput,
    /// SIGINT or SIGTERM.
    Interrupted,
}

impl From<Exit> for Outcome {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Success => Outcome::Succeeded,
            Exit::ProofFailed => Outcome::Failed,
            Exit::BadInput => Outcome::BadInput,
            Exit::Interrupted | Exit::Terminated => Outcome::Interrupted,
        }
    }
}

/// The whole report.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobReport {
    /// Version of this schema.
    pub(crate) api_version: &'static str,
    /// `ProofJobReport`.
    pub(crate) kind: &'static str,
    /// Version of kubectl-proof.
    pub(crate) tool_version: &'static str,
    /// Which job.
    pub(crate) metadata: Metadata,
    /// How the run ended.
    pub(crate) outcome: Outcome,
    /// Exit code of the command.
    pub(crate) exit_code: u8,
    /// Short CamelCase word; empty after success.
    pub(crate) reason: String,
    /// What was wrong, where, and what to do; empty after success.
    pub(crate) message: String,
    /// A verified proof was made and written.
    pub(crate) proved: bool,
    /// Results came from a model: no proof was made.
    pub(crate) emulated: bool,
    /// What was asked for; none where the manifest could not be read.
    pub(crate) proof: Option<ProofRequest>,
    /// What ran the tasks; none where no worker of the proof system came up.
    pub(crate) backend: Option<Backend>,
    /// What executing the program told, as far as it is known.
    pub(crate) execution: Option<Execution>,
    /// Who verified the proof; none where nothing was proved.
    pub(crate) verification: Option<Verification>,
    /// Files that were written.
    pub(crate) artifacts: Artifacts,
    /// When, and how fast.
    pub(crate) timing: Timing,
    /// The worker processes.
    pub(crate) workers: Workers,
    /// Tries of all tasks.
    pub(crate) attempts: Attempts,
    /// Times that the job was planned again with a smaller segment.
    pub(crate) replans: u32,
    /// Time on devices of all attempts, as the backend measured it.
    pub(crate) device_seconds: f64,
    /// Energy of all attempts; 0 where it can't be measured.
    pub(crate) energy_joules: f64,
    /// In the order in which they run.
    pub(crate) stages: Vec<Stage>,
    /// Sums per type of task.
    pub(crate) task_types: Vec<TaskType>,
    /// All tasks in the order of their submission.
    pub(crate) tasks: Vec<Task>,
    /// Folder with worker logs and intermediate artifacts, where it was kept.
    pub(crate) run_directory: Option<String>,
}

/// Which job.
#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    /// Name of the manifest; empty where it could not be read.
    pub(crate) name: String,
    /// Namespace of the manifest; empty where it names none.
    pub(crate) namespace: String,
    /// Identity of this run.
    pub(crate) uid: String,
    /// The manifest as it was named on the command line.
    pub(crate) manifest: String,
}

/// What was asked for.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProofRequest {
    /// Such as `risc0`.
    pub(crate) system: String,
    /// Such as `Succinct`.
    pub(crate) kind: String,
    /// Nothing was to be proved.
    pub(crate) execute_only: bool,
}

/// What ran the tasks.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Backend {
    /// Such as `risc0`.
    pub(crate) name: String,
    /// Version of everything that a proof depends on.
    pub(crate) version: String,
}

/// What executing the program told.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Execution {
    /// Segments (SP1: shards).
    pub(crate) segments: u64,
    /// Power of two of the cycles per segment.
    pub(crate) segment_po2: u32,
    /// Cycles of the program itself.
    pub(crate) user_cycles: u64,
    /// All cycles that are proved, padding and paging among them.
    pub(crate) total_cycles: u64,
    /// As the program ended.
    pub(crate) exit_code: i64,
    /// RISC Zero's image id, SP1's verifying key hash; hexadecimal.
    pub(crate) program_id: String,
    /// SP1's prover gas units (PGU); for ExecuteOnly and with spec.reportGas.
    pub(crate) gas: Option<u64>,
    /// SHA-256 of what the program made public, where the execution tells it.
    pub(crate) public_values_sha256: Option<String>,
}

/// Who verified the proof.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verification {
    /// As the backend's own verifier names itself and the kind of proof.
    pub(crate) verifier: String,
    /// What the proof was checked against: computed from the submitted program.
    pub(crate) program_id: String,
    /// Worker whose task verified it.
    pub(crate) worker: Option<String>,
}

/// Files that were written.
#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Artifacts {
    /// The proof; never there for emulated and ExecuteOnly jobs.
    pub(crate) proof: Option<WrittenFile>,
    /// What the program made public.
    pub(crate) public_values: Option<WrittenFile>,
    /// This report as a file.
    pub(crate) report: Option<String>,
}

/// A file that was written.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WrittenFile {
    /// As given with --output-directory.
    pub(crate) path: String,
    /// Size.
    pub(crate) bytes: u64,
    /// Hexadecimal.
    pub(crate) sha256: String,
}

/// When, and how fast.
#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Timing {
    /// When the coordinator took the job.
    pub(crate) submitted_at: Option<String>,
    /// When its first task was given to a worker.
    pub(crate) started_at: Option<String>,
    /// When it ended.
    pub(crate) finished_at: Option<String>,
    /// From the start of the first task to the end of the last.
    pub(crate) elapsed_seconds: f64,
    /// From the start of the command, workers and upload of the program included.
    pub(crate) command_seconds: f64,
    /// Total cycles per elapsed second.
    pub(crate) effective_hz: Option<f64>,
    /// Prover gas units (PGU) per second of elapsedSeconds, where the gas is known.
    pub(crate) pgu_per_second: Option<f64>,
}

/// The worker processes.
#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Workers {
    /// Worker processes.
    pub(crate) count: u16,
    /// Prover processes of each.
    pub(crate) devices_per_worker: u16,
    /// Threads of each prover process; none where the prover chooses.
    pub(crate) threads_per_device: Option<u16>,
    /// What each worker may plan with.
    pub(crate) memory_bytes_per_worker: u64,
    /// Processes that died and were started again.
    pub(crate) restarts: u32,
}

/// Tries of tasks.
#[derive(Clone, Debug, Default, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attempts {
    /// All.
    pub(crate) total: u64,
    /// Ended without a result.
    pub(crate) failed: u64,
}

/// One stage.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stage {
    /// Such as `Prove`.
    pub(crate) name: String,
    /// Tasks that have succeeded.
    pub(crate) done: u64,
    /// Tasks that are known.
    pub(crate) total: u64,
}

/// All tasks of one type.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TaskType {
    /// Such as `prove`.
    #[serde(rename = "type")]
    pub(crate) task_type: String,
    /// Stage that the type belongs to.
    pub(crate) stage: String,
    /// Tasks that have run to an end.
    pub(crate) count: u64,
    /// Tries of all of them.
    pub(crate) attempts: u64,
    /// Sum of their wall times.
    pub(crate) total_seconds: f64,
    /// Mean of their wall times.
    pub(crate) mean_seconds: f64,
    /// Longest wall time.
    pub(crate) max_seconds: f64,
}

/// One task.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Task {
    /// Unique within the run.
    pub(crate) id: u64,
    /// Such as `prove`.
    #[serde(rename = "type")]
    pub(crate) task_type: String,
    /// Stage that its type belongs to.
    pub(crate) stage: String,
    /// The planner's own name of it.
    pub(crate) request_id: String,
    /// Waiting, Ready, Assigned, Running, Retrying, Succeeded, Failed or Dropped.
    pub(crate) state: &'static str,
    /// When its last attempt started to run.
    pub(crate) started_at: Option<String>,
    /// When it became terminal.
    pub(crate) ended_at: Option<String>,
    /// Of its last attempt.
    pub(crate) wall_seconds: Option<f64>,
    /// Time on the device, as the backend measured it.
    pub(crate) device_seconds: f64,
    /// Tries so far.
    pub(crate) attempts: u32,
    /// Worker of its last attempt.
    pub(crate) worker: Option<String>,
    /// Words of its last failure.
    pub(crate) failure: Option<String>,
    /// Answered from what another task had made.
    pub(crate) from_cache: bool,
}

impl JobReport {
    /// A report of which nothing is known yet but the manifest's name.
    pub(crate) fn new(manifest: &Path) -> Self {
        JobReport {
            api_version: API_VERSION,
            kind: "ProofJobReport",
            tool_version: env!("CARGO_PKG_VERSION"),
            metadata: Metadata {
                manifest: manifest.display().to_string(),
                ..Metadata::default()
            },
            outcome: Outcome::Failed,
            exit_code: Exit::ProofFailed.code(),
            reason: String::new(),
            message: String::new(),
            proved: false,
            emulated: false,
            proof: None,
            backend: None,
            execution: None,
            verification: None,
            artifacts: Artifacts::default(),
            timing: Timing::default(),
            workers: Workers::default(),
            attempts: Attempts::default(),
            replans: 0,
            device_seconds: 0.0,
            energy_joules: 0.0,
            stages: Vec::new(),
            task_types: Vec::new(),
            tasks: Vec::new(),
            run_directory: None,
        }
    }

    /// Takes over what the coordinator shows of the job.
    pub(crate) fn take_view(&mut self, view: &JobView) {
        self.metadata.uid = view.uid.to_string();
        self.emulated = view.emulated;
        self.backend = view.backend.as_ref().map(|backend| Backend {
            name: backend.name.to_string(),
            version: backend.version.to_string(),
        });
        self.execution = view.execution.as_ref().map(|execution| Execution {
            segments: execution.segments,
            segment_po2: execution.segment_po2,
            user_cycles: execution.user_cycles,
            total_cycles: execution.total_cycles,
            exit_code: execution.exit_code,
            program_id: execution.program_id.clone(),
            gas: execution.gas,
            public_values_sha256: Some(&execution.public_values_sha256)
                .filter(|hash| !hash.is_empty())
                .cloned(),
        });
        let tasks: Vec<&TaskView> = view
            .tasks
            .iter()
            .map(AsRef::as_ref)
            .filter(|task| !task.marker)
            .collect();
        self.verification = view.proof.as_ref().map(|proof| Verification {
            verifier: proof.report.verifier.clone(),
            program_id: proof.report.program_id.clone(),
            worker: tasks
                .iter()
                .rev()
                .find(|task| task.state == TaskState::Succeeded)
                .and_then(|task| task.worker.as_deref().map(str::to_owned)),
        });
        self.timing.submitted_at = Some(time(view.submitted_at.0));
        self.timing.started_at = view.started_at.map(|at| time(at.0));
        self.timing.finished_at = view.finished_at.map(|at| time(at.0));
        self.timing.elapsed_seconds = seconds(view.elapsed);
        self.timing.effective_hz = view.effective_hz;
        self.timing.pgu_per_second = view.pgu_per_second;
        self.attempts = Attempts {
            total: view.attempts,
            failed: view.failed_attempts,
        };
        self.replans = view.replans;
        self.device_seconds = view.device_seconds;
        self.energy_joules = view.energy_joules;
        self.stages = view
            .stages
            .iter()
            .map(|stage| Stage {
                name: stage.name.to_string(),
                done: stage.done,
                total: stage.total,
            })
            .collect();
        self.tasks = tasks.iter().map(|task| mk_task(task)).collect();
        self.task_types = by_type(&self.tasks);
    }

    /// Fills in how the command ended.
    pub(crate) fn conclude(&mut self, outcome: &Result<(), Failure>, command_time: Duration) -> Exit {
        let exit = match outcome {
            Ok(()) => Exit::Success,
            Err(failure) => {
                self.reason.clone_from(&failure.reason);
                self.message.clone_from(&failure.message);
                failure.exit
            }
        };
        self.outcome = exit.into();
        self.exit_code = exit.code();
        self.timing.command_seconds = seconds(command_time);
        exit
    }

    /// Writes the report itself beside the proof.
    pub(crate) fn write(&mut self, path: &Path) -> Result<(), FileError> {
        self.artifacts.report = Some(path.display().to_string());
        let written = write_atomically(path, self.to_json().as_bytes());
        if written.is_err() {
            self.artifacts.report = None;
        }
        written
    }

    /// As one JSON object, with a line break at its end.
    pub(crate) fn to_json(&self) -> String {
        // The type holds nothing that JSON can't express: string keys and finite numbers only.
        serde_json::to_string_pretty(self)
            .map(|json| json + "\n")
            .unwrap_or_default()
    }
}

fn mk_task(task: &TaskView) -> Task {
    Task {
        id: task.id.0,
        task_type: task.task_type.to_string(),
        stage: task.stage.to_string(),
        request_id: task.request_id.to_string(),
        state: task.state.as_str(),
        started_at: task.started_at.map(|at| time(at.0)),
        ended_at: task.ended_at.map(|at| time(at.0)),
        wall_seconds: task.wall.map(seconds),
        device_seconds: seconds(task.device_time),
        attempts: task.attempts,
        worker: task.worker.as_deref().map(str::to_owned),
        failure: task.failure.as_deref().map(str::to_owned),
        from_cache: task.from_cache,
    }
}

/// Sums per task type, in the order in which the types first appear.
fn by_type(tasks: &[Task]) -> Vec<TaskType> {
    let mut types: Vec<TaskType> = Vec::new();
    for task in tasks {
        let position = types
            .iter()
            .position(|known| known.task_type == task.task_type)
            .unwrap_or_else(|| {
                types.push(TaskType {
                    task_type: task.task_type.clone(),
                    stage: task.stage.clone(),
                    count: 0,
                    attempts: 0,
                    total_seconds: 0.0,
                    mean_seconds: 0.0,
                    max_seconds: 0.0,
                });
                types.len() - 1
            });
        let entry = &mut types[position];
        entry.attempts += u64::from(task.attempts);
        if let Some(wall) = task.wall_seconds {
            entry.count += 1;
            entry.total_seconds += wall;
            entry.max_seconds = entry.max_seconds.max(wall);
            entry.mean_seconds = entry.total_seconds / entry.count as f64;
        }
    }
    types
}

/// Seconds to the millisecond, which is as fine as the coordinator's clock.
fn seconds(span: Duration) -> f64 {
    span.as_millis() as f64 / 1000.0
}

/// Milliseconds since the Unix epoch as RFC 3339.
fn time(milliseconds: u64) -> String {
    i64::try_from(milliseconds)
        .ok()
        .and_then(|milliseconds| jiff::Timestamp::from_millisecond(milliseconds).ok())
        .map(|timestamp| format!("{timestamp:.3}"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_task_of(task_type: &str, wall_seconds: Option<f64>, attempts: u32) -> Task {
        Task {
            id: 1,
            task_type: task_type.into(),
            stage: "Prove".into(),
            request_id: "a".into(),
            state: "Succeeded",
            started_at: None,
            ended_at: None,
            wall_seconds,
            device_seconds: 0.0,
            attempts,
            worker: None,
            failure: None,
            from_cache: false,
        }
    }

    #[test]
    fn task_types_are_summed_in_order_of_appearance() {
        let types = by_type(&[
            mk_task_of("prove", Some(1.0), 1),
            mk_task_of("lift", Some(5.0), 1),
            mk_task_of("prove", Some(3.0), 2),
            mk_task_of("prove", None, 0),
        ]);
        assert_eq!(types.len(), 2);
        let prove = &types[0];
        assert_eq!(
            (prove.task_type.as_str(), prove.count, prove.attempts),
            ("prove", 2, 3)
        );
        assert_eq!(
            (prove.total_seconds, prove.mean_seconds, prove.max_seconds),
            (4.0, 2.0, 3.0)
        );
    }

    #[test]
    fn times_are_utc_with_milliseconds() {
        assert_eq!(time(1_763_712_000_123), "2025-11-21T08:00:00.123Z");
    }

    #[test]
    fn a_failed_report_carries_reason_message_and_exit_code() {
        let mut report = JobReport::new(Path::new("a.yaml"));
        let exit = report.conclude(
            &Err(Failure::bad_input("NotAnElf", "no ELF")),
            Duration::from_millis(1500),
        );
        assert_eq!(exit, Exit::BadInput);
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["apiVersion"], "proving.rs/v1alpha1");
        assert_eq!(json["kind"], "ProofJobReport");
        assert_eq!(json["outcome"], "BadInput");
        assert_eq!(json["exitCode"], 2);
        assert_eq!(json["reason"], "NotAnElf");
        assert_eq!(json["timing"]["commandSeconds"], 1.5);
    }

    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("report.schema.json");
        let schema = schemars::SchemaGenerator::from(
            schemars::generate::SchemaSettings::draft2020_12().for_serialize(),
        )
        .into_root_schema_for::<JobReport>();
        let fresh = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("PROVER_WRITE_SCHEMA").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == fresh,
            "{} is stale: run `PROVER_WRITE_SCHEMA=1 cargo test -p kubectl-proof schema`",
            path.display()
        );
    }

    #[test]
    fn a_report_that_can_not_be_written_does_not_name_a_file() {
        let mut report = JobReport::new(Path::new("a.yaml"));
        assert!(report.write(Path::new("/nowhere/a.json")).is_err());
        assert_eq!(report.artifacts.report, None);
    }
}
