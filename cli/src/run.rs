//! `run`: coordinator, workers and store of one job on this machine, from the manifest to the written proof.
//!
//! Everything that can be wrong with what the user gave is found before the first process is started. However it
//! ends, nothing is left running and the report says why.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prover_artifacts::{ArtifactStore, Key, ObjectInfo, Sha256, StoreError};
use prover_coordinator::{
    Binding, CoordinatorConfig, CoordinatorError, CoordinatorHandle, JobHandle, JobView, Phase, Secret,
    SourceAccess, WorkerAuthentication,
};
use prover_crds::ProofKind;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::{OutputFormat, RunArguments};
use crate::binaries::Binaries;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::manifest::{self, Manifest};
use crate::progress::Progress;
use crate::report::{JobReport, ProofRequest, Workers, WrittenFile};
use crate::run_directory::RunDirectory;
use crate::workers::{self, AllWorkersFailed, WorkerEvent, WorkerSettings, log_tail};
use crate::{console, memory, processes, text};

/// How often progress is shown when nothing changes.
const REFRESH: Duration = Duration::from_millis(500);
/// News of workers that wait to be handed on.
const WORKER_EVENTS: usize = 1024;
/// Workers whose logs are shown when a job failed.
const LOGS_SHOWN: u16 = 2;
/// How long a cancelled job may take to stop its attempts before the processes are stopped anyway.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

/// Runs the job and prints the report.
pub(crate) async fn run(arguments: &RunArguments) -> Exit {
    let started = Instant::now();
    let mut report = JobReport::new(&arguments.filename);
    let outcome = match Signals::install() {
        Ok(mut signals) => run_until_done(arguments, &mut report, &mut signals).await,
        Err(failure) => Err(failure),
    };
    let mut exit = report.conclude(&outcome, started.elapsed());
    if !report.metadata.name.is_empty() && arguments.output_directory.is_dir() {
        let path = arguments
            .output_directory
            .join(format!("{}.json", report.metadata.name));
        if let Err(error) = report.write(&path) {
            console::say(&format!("error: {error}"));
            if exit == Exit::Success {
                exit = report.conclude(
                    &Err(Failure::bad_input(error.reason(), error.to_string())),
                    started.elapsed(),
                );
            }
        }
    }
    match arguments.output {
        OutputFormat::Json => console::print(&report.to_json()),
        OutputFormat::Text => console::print(&text::render(&report)),
    }
    if let Err(failure) = &outcome {
        failure.tell();
    }
    exit
}

/// SIGINT and SIGTERM of this process.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn install() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::proof_failed("SignalsUnavailable", format!("can't listen for signals: {error}"))
            })
        };
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for one of them and says how the command ends therefore.
    async fn received(&mut self) -> Failure {
        let (exit, reason, message) = tokio::select! {
            _ = self.interrupt.recv() => (Exit::Interrupted, "Interrupted", "interrupted: the job was cancelled"),
            _ = self.terminate.recv() => (Exit::Terminated, "Terminated", "terminated: the job was cancelled"),
        };
        Failure {
            exit,
            reason: reason.to_owned(),
            message: message.to_owned(),
            logs: String::new(),
        }
    }
}

async fn run_until_done(
    arguments: &RunArguments,
    report: &mut JobReport,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let manifest = read_manifest(arguments, report)?;
    let binaries = locate(arguments, &manifest)?;
    prepare_output_directory(&arguments.output_directory)?;
    let directory = RunDirectory::create(arguments.keep)?;
    report.run_directory = directory.kept().map(|path| path.display().to_string());
    let log = crate::logging::install(&directory.logs());
    if let Err(error) = log {
        console::say(&format!(
            "warning: the coordinator's log can't be written: {error}"
        ));
    }
    // Reading, hashing and storing the sources may take long: it can be interrupted too.
    let prepared = tokio::select! {
        prepared = Box::pin(prepare(arguments, &manifest, binaries, &directory, report)) => prepared?,
        failure = signals.received() => return Err(failure),
    };
    let Prepared {
        store,
        coordinator,
        job,
        settings,
    } = prepared;
    let ended = Box::pin(prove(arguments, &coordinator, &job, &settings, report, signals)).await;
    let view = job.view();
    report.take_view(&view);
    coordinator.shutdown().await;
    let left = processes::kill_descendants().await;
    if left > 0 {
        console::say(&format!(
            "warning: {left} processes of this run could not be ended"
        ));
    }
    ended?;
    conclude_view(&view, &settings)?;
    write_results(arguments, &manifest, &view, store.as_ref(), report).await
}

fn read_manifest(arguments: &RunArguments, report: &mut JobReport) -> Result<Manifest, Failure> {
    let manifest = manifest::read(&arguments.filename)?;
    report.metadata.name.clone_from(&manifest.name);
    report.metadata.namespace = manifest.job.metadata.namespace.clone().unwrap_or_default();
    let proof = &manifest.job.spec.proof;
    if let Some(backend) = &proof.backend {
        return Err(Failure::bad_input(
            "CommandNeedsCluster",
            format!(
                "spec.proof.backend: {backend} is a backend of a ProverCluster, and local mode has none: apply the job to \
                 a cluster whose spec.backends has it, or run the prover's own command"
            ),
        ));
    }
    report.proof = Some(ProofRequest {
        system: proof.system.as_str().to_owned(),
        kind: proof.kind.as_str().to_owned(),
        execute_only: proof.kind == ProofKind::ExecuteOnly,
    });
    Ok(manifest)
}

/// The programs of this run.
struct Programs {
    own: PathBuf,
    worker: PathBuf,
    backend: PathBuf,
}

fn locate(arguments: &RunArguments, manifest: &Manifest) -> Result<Programs, Failure> {
    let bad = |error: crate::binaries::BinaryError| Failure::bad_input(error.reason(), error.to_string());
    let binaries = Binaries::locate(arguments.backends_directory.as_deref()).map_err(bad)?;
    let own = std::env::current_exe().map_err(|error| {
        Failure::bad_input(
            "OwnFolderUnknown",
            format!("can't find this executable, which starts workers: {error}"),
        )
    })?;
    Ok(Programs {
        own,
        worker: binaries.worker().map_err(bad)?,
        backend: binaries
            .backend(manifest.job.spec.proof.system.as_str())
            .map_err(bad)?,
    })
}

/// Creates the folder for the results and finds out before the long work whether it can be written.
fn prepare_output_directory(directory: &Path) -> Result<(), Failure> {
    let probe = || -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        tempfile::Builder::new()
            .prefix(".kubectl-proof-")
            .tempfile_in(directory)
            .map(drop)
    };
    probe().map_err(|error| {
        let reason = if is_full(&error) {
            "OutputFull"
        } else {
            "OutputNotWritable"
        };
        Failure::bad_input(
            reason,
            format!(
                "the output folder {} can't be written: {error}. Choose another with --output-directory",
                directory.display()
            ),
        )
    })
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

/// Reason for scripts when a folder of this run can't be written.
pub(crate) fn storage_reason(error: &std::io::Error) -> &'static str {
    if is_full(error) {
        "StoreFull"
    } else {
        "StoreNotWritable"
    }
}

/// Everything that is needed before workers are started.
struct Prepared {
    store: Arc<dyn ArtifactStore>,
    coordinator: CoordinatorHandle,
    job: JobHandle,
    settings: WorkerSettings,
}

async fn prepare(
    arguments: &RunArguments,
    manifest: &Manifest,
    programs: Programs,
    directory: &RunDirectory,
    report: &mut JobReport,
) -> Result<Prepared, Failure> {
    let url = store_url(arguments.store.as_deref(), &directory.store())?;
    let store = prover_artifacts::open(&url)
        .await
        .map_err(|error| store_failure(&error))?;
    let (token_file, token) = directory.write_token().map_err(|error| {
        Failure::bad_input(
            storage_reason(&error),
            format!("can't write into the run folder: {error}. Set TMPDIR"),
        )
    })?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = CoordinatorConfig::new(listen, WorkerAuthentication::Token(Secret::new(token)));
    let coordinator = prover_coordinator::start(config, store.clone())
        .await
        .map_err(|error| coordinator_failure(&error))?;
    let mut job = manifest.job.clone();
    // Every run is a job of its own, even in a store that has seen this manifest before.
    job.metadata.uid = Some(random_uid());
    let access = SourceAccess::Local {
        manifest_folder: manifest.folder.clone(),
    };
    let job = coordinator.submit(job, access).await.map_err(|error| {
        let message = error.to_string();
        match error.bad_input() {
            true => Failure::bad_input(error.reason(), message),
            false => Failure::proof_failed(error.reason(), message),
        }
    })?;
    let memory_bytes = arguments
        .memory_per_worker
        .unwrap_or_else(|| memory::per_worker(arguments.workers));
    report.workers = Workers {
        count: arguments.workers,
        devices_per_worker: arguments.devices_per_worker,
        threads_per_device: arguments.threads_per_device,
        memory_bytes_per_worker: memory_bytes,
        restarts: 0,
    };
    let settings = WorkerSettings {
        own_program: programs.own,
        program: programs.worker,
        backend: programs.backend,
        coordinator: format!("http://{}", coordinator.address()),
        token_file,
        store: url,
        work_directory: directory.work(),
        log_directory: directory.logs(),
        count: arguments.workers,
        devices: arguments.devices_per_worker,
        threads: arguments.threads_per_device,
        memory_bytes,
    };
    Ok(Prepared {
        store,
        coordinator,
        job,
        settings,
    })
}

/// A folder is given as a path or as file:///; anything with `://` is taken as it is.
fn store_url(given: Option<&str>, own: &Path) -> Result<String, Failure> {
    let folder = match given {
        Some(url) if url.contains("://") => return Ok(url.to_owned()),
        Some(folder) => std::path::absolute(folder).map_err(|error| {
            Failure::bad_input(
                "InvalidStore",
                format!("--store {folder} is no folder or URL: {error}"),
            )
        })?,
        None => own.to_owned(),
    };
    url::Url::from_file_path(&folder).map(String::from).map_err(|()| {
        Failure::bad_input(
            "InvalidStore",
            format!("{} can't be written as a file URL", folder.display()),
        )
    })
}

fn store_failure(error: &StoreError) -> Failure {
    let reason = match error {
        StoreError::StoreFull { .. } => "StoreFull",
        StoreError::StoreNotWritable { .. } => "StoreNotWritable",
        StoreError::InvalidUrl { .. } => "InvalidStore",
        _ => "StoreUnusable",
    };
    Failure::bad_input(reason, format!("--store: {error}"))
}

fn coordinator_failure(error: &CoordinatorError) -> Failure {
    match error {
        CoordinatorError::StoreUnusable { source } => store_failure(source),
        other => Failure::proof_failed("CoordinatorNotStarted", other.to_string()),
    }
}

/// A random UUID (version 4), which is what Kubernetes gives to objects.
fn random_uid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let digits = hex::encode(bytes);
    [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ]
    .join("-")
}

/// Starts the workers, shows the progress and waits until the job is terminal or must be given up; ends the
/// workers before it returns.
async fn prove(
    arguments: &RunArguments,
    coordinator: &CoordinatorHandle,
    job: &JobHandle,
    settings: &WorkerSettings,
    report: &mut JobReport,
    signals: &mut Signals,
) -> Result<(), Failure> {
    processes::adopt_orphans();
    let stop = CancellationToken::new();
    let (events, mut received) = tokio::sync::mpsc::channel(WORKER_EVENTS);
    let tell = move |event: WorkerEvent| {
        // One that does not fit any more is noticed all the same: the coordinator sees the broken stream.
        let _ = events.try_send(event);
    };
    let supervisor = workers::supervise(settings, &stop, &tell);
    let mut supervisor = std::pin::pin!(supervisor);
    let mut progress = Progress::new();
    let mut restarts = 0;
    let ended = {
        let watch = follow(job, &mut received, coordinator, &mut progress, &mut restarts);
        let mut watch = std::pin::pin!(watch);
        tokio::select! {
            () = &mut watch => Ok(()),
            failed = &mut supervisor => Err(workers_failed(failed, settings)),
            failure = signals.received() => Err(failure),
            () = sleep_for(arguments.timeout) => Err(timed_out(arguments)),
        }
    };
    if ended.is_err() {
        cancel(job, signals).await;
    }
    progress.show(&job.view());
    progress.finish();
    stop.cancel();
    if !matches!(&ended, Err(failure) if failure.reason == "WorkersFailed") {
        // Their failures do not count any more.
        let _ = supervisor.await;
    }
    report.workers.restarts = restarts;
    ended
}

fn workers_failed(failed: Result<(), AllWorkersFailed>, settings: &WorkerSettings) -> Failure {
    match failed {
        Err(error) => Failure::proof_failed("WorkersFailed", error.to_string())
            .with_logs(log_tail(&settings.log_file(error.worker_number))),
        Ok(()) => Failure::proof_failed("WorkersFailed", "all workers have left"),
    }
}

/// Shows views and hands on news of workers until the job is terminal.
async fn follow(
    job: &JobHandle,
    events: &mut tokio::sync::mpsc::Receiver<WorkerEvent>,
    coordinator: &CoordinatorHandle,
    progress: &mut Progress,
    restarts: &mut u32,
) {
    let mut views = job.watch();
    // What was held back, since it followed too soon on the line before, is shown a little later.
    let mut refresh = tokio::time::interval(REFRESH);
    loop {
        let view = views.borrow_and_update().clone();
        progress.show(&view);
        if view.phase.is_terminal() {
            return;
        }
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            _ = refresh.tick() => {}
            Some(event) = events.recv() => match event {
                WorkerEvent::Gone { worker_id, how } => {
                    *restarts += 1;
                    progress.say(&format!("{how}; its running tasks are tried again"));
                    coordinator.worker_gone(&worker_id).await;
                }
                WorkerEvent::GivenUp { worker_number, restarts: tried } => {
                    // Its last death was not followed by a start.
                    *restarts = restarts.saturating_sub(1);
                    progress.say(&format!("worker {worker_number} is given up after {tried} restarts"));
                }
            },
        }
    }
}

async fn sleep_for(timeout: Option<jiff::SignedDuration>) {
    match timeout.and_then(|timeout| Duration::try_from(timeout).ok()) {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

fn timed_out(arguments: &RunArguments) -> Failure {
    let timeout = arguments.timeout.unwrap_or_default();
    Failure::proof_failed(
        "TimedOut",
        format!("the job was not done after {timeout:#} and was cancelled (--timeout)"),
    )
}

/// Tells running attempts to stop and waits a moment; a second signal ends the wait.
async fn cancel(job: &JobHandle, signals: &mut Signals) {
    if job.cancel().await.is_err() {
        return;
    }
    tokio::select! {
        _ = job.finished() => {}
        () = tokio::time::sleep(CANCEL_GRACE) => {}
        _ = signals.received() => {}
    }
}

/// How the job ended, as a failure unless it succeeded.
fn conclude_view(view: &JobView, settings: &WorkerSettings) -> Result<(), Failure> {
    let reason = if view.reason.is_empty() {
        view.phase.as_str()
    } else {
        &view.reason
    };
    match view.phase {
        Phase::Succeeded => Ok(()),
        Phase::Failed if view.bad_input => Err(Failure::bad_input(reason, view.message.to_string())),
        Phase::Failed => {
            let numbers = 1..=LOGS_SHOWN.min(settings.count);
            let logs = numbers
                .map(|number| log_tail(&settings.log_file(number)))
                .collect();
            Err(Failure::proof_failed(reason, view.message.to_string()).with_logs(logs))
        }
        other => Err(Failure::proof_failed(
            reason,
            format!(
                "the job ended as {} before it was done: {}",
                other.as_str(),
                view.message
            ),
        )),
    }
}

/// Writes proof and public values beside each other. An emulated job has neither, an executed one has no proof.
async fn write_results(
    arguments: &RunArguments,
    manifest: &Manifest,
    view: &JobView,
    store: &dyn ArtifactStore,
    report: &mut JobReport,
) -> Result<(), Failure> {
    if view.emulated {
        return Ok(());
    }
    let file = |ending: &str| {
        arguments
            .output_directory
            .join(format!("{}.{ending}", manifest.name))
    };
    if manifest.job.spec.proof.kind != ProofKind::ExecuteOnly {
        let Some(proof) = &view.proof else {
            let message = "the job succeeded but names no proof: report this";
            return Err(Failure::proof_failed("ProofMissing", message));
        };
        report.artifacts.proof = Some(fetch(store, &proof.proof, &file("proof")).await?);
        report.proved = true;
    }
    if let Some(public_values) = &view.public_values {
        report.artifacts.public_values = Some(fetch(store, public_values, &file("public-values")).await?);
    }
    Ok(())
}

async fn fetch(store: &dyn ArtifactStore, binding: &Binding, path: &Path) -> Result<WrittenFile, Failure> {
    let expected = ObjectInfo {
        size_bytes: binding.size_bytes,
        sha256: Sha256::from_bytes(binding.sha256),
    };
    let failed = |error: StoreError| match error {
        StoreError::NotFound { .. } | StoreError::ChecksumMismatch { .. } => {
            Failure::proof_failed("ResultUnreadable", error.to_string())
        }
        _ => Failure::bad_input(
            "OutputNotWritable",
            format!("can't write {}: {error}", path.display()),
        ),
    };
    let key = Key::new(binding.key.as_ref()).map_err(failed)?;
    store.get_file(&key, &expected, path).await.map_err(failed)?;
    files::describe(path).map_err(|error| Failure::bad_input(error.reason(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_a_folder_or_a_url() {
        let own = Path::new("/run/store");
        assert_eq!(store_url(None, own).unwrap(), "file:///run/store");
        assert_eq!(store_url(Some("/a b"), own).unwrap(), "file:///a%20b");
        assert_eq!(
            store_url(Some("s3://bucket/prefix"), own).unwrap(),
            "s3://bucket/prefix"
        );
        assert!(store_url(Some("relative"), own).unwrap().starts_with("file:///"));
    }

    #[test]
    fn a_uid_is_a_version_4_uuid() {
        let uid = random_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert_ne!(uid, random_uid());
    }

    #[test]
    fn an_output_folder_below_a_file_is_refused_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let failure = prepare_output_directory(&file.join("below")).unwrap_err();
        assert_eq!(
            (failure.exit, failure.reason.as_str()),
            (Exit::BadInput, "OutputNotWritable")
        );
    }
}
