//! `prover-worker`: the process of a worker. Owns arguments, signals, logging and the probes; all else is the
//! agent's.

mod install;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use prover_agent::{Agent, AgentConfig, BackendPlace, Departure, DeviceKind, Host, Leave};
use prover_runtime::{LoggingArguments, Observation};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Exit code where the agent failed while it ran.
const EXIT_FAILED: u8 = 1;
/// Exit code where an argument can't be used. The same as for malformed arguments.
const EXIT_BAD_ARGUMENT: u8 = 2;
/// Exit code where a second signal ended the worker at once.
const EXIT_AT_ONCE: u8 = 130;

/// Takes proving attempts from a coordinator and has them run by a backend, one process per device.
#[derive(Parser)]
#[command(
    name = "prover-worker",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    worker: Option<WorkerArguments>,
    #[command(flatten)]
    logging: LoggingArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Copies the programs that run in backends' containers into a folder that those containers share.
    InstallTools {
        /// Folder to copy to; made if missing.
        #[arg(long)]
        to: PathBuf,
        /// Folder that has them [default: that of prover-worker itself].
        #[arg(long)]
        from: Option<PathBuf>,
    },
}

/// Name of the launcher, for the worker's own use.
const LAUNCH_CHILD: &str = "launch-child";

/// Becomes a child that dies with its parent. Apart from the other arguments, since those are also read from the
/// environment, and the environment of a launcher is that of the prover: whatever it says is none of its business.
#[derive(Parser)]
#[command(name = LAUNCH_CHILD)]
struct LaunchArguments {
    /// Process id of the worker.
    #[arg(long)]
    parent: u32,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(clap::Args)]
struct WorkerArguments {
    /// Address of the coordinator, such as https://coordinator:7000; http:// only on this machine.
    #[arg(long, env = "PROVER_COORDINATOR")]
    coordinator: String,
    /// File with the authorities that sign the coordinator's certificate (PEM); read again at every connect.
    #[arg(long, env = "PROVER_COORDINATOR_CA_FILE")]
    coordinator_ca_file: Option<PathBuf>,
    /// Name that the coordinator's certificate is made out to [default: the name in the address].
    #[arg(long, env = "PROVER_COORDINATOR_SERVER_NAME")]
    coordinator_server_name: Option<String>,
    /// Allow http:// to other machines: whoever sees the traffic has the token.
    #[arg(long, env = "PROVER_INSECURE_COORDINATOR")]
    insecure_coordinator: bool,
    /// File with the bearer token for the coordinator; read again at every connect.
    #[arg(long, env = "PROVER_TOKEN_FILE")]
    token_file: PathBuf,
    /// Unique name of this worker process.
    #[arg(long, env = "PROVER_WORKER_ID")]
    worker_id: String,
    /// Worker group that this worker belongs to.
    #[arg(long, env = "PROVER_WORKER_GROUP", default_value = "")]
    worker_group: String,
    /// Artifact store: file:///folder or s3://bucket/prefix?endpoint=...&region=...
    #[arg(long, env = "PROVER_STORE")]
    store: String,
    /// Folder for the files of attempts; best in memory (tmpfs).
    #[arg(long, env = "PROVER_WORK_DIRECTORY")]
    work_directory: PathBuf,
    /// Bytes that inputs may take in the work directory [default: what is free there at the start].
    #[arg(long, env = "PROVER_WORK_DIRECTORY_BYTES")]
    work_directory_bytes: Option<u64>,
    /// Program of the backend, started by this worker.
    #[arg(
        long,
        env = "PROVER_BACKEND_COMMAND",
        required_unless_present = "backend_sockets"
    )]
    backend_command: Option<PathBuf>,
    /// Folder for sockets to backends in containers of their own: SLOT.sock for each device and for planners.
    #[arg(long, env = "PROVER_BACKEND_SOCKETS", conflicts_with = "backend_command")]
    backend_sockets: Option<PathBuf>,
    /// Name of an environment variable that the backend's processes get, too; may be given several times. Usual ones
    /// of provers are passed on anyway (PATH, HOME, CUDA_*, RISC0_*, ...), all others are not.
    #[arg(long, env = "PROVER_BACKEND_ENV", value_delimiter = ',', value_name = "NAME")]
    backend_env: Vec<String>,
    /// Number of devices; each gets a backend process.
    #[arg(long, env = "PROVER_DEVICES", default_value_t = 1)]
    devices: u16,
    /// Kind of the devices.
    #[arg(long, env = "PROVER_DEVICE_CLASS", value_enum, default_value_t = DeviceClass::Cpu)]
    device_class: DeviceClass,
    /// Bytes of memory for attempts [default: the limit of the container, or the machine's memory].
    #[arg(long, env = "PROVER_HOST_MEMORY")]
    host_memory: Option<u64>,
    /// Seconds that running attempts get to finish after SIGTERM.
    #[arg(long, env = "PROVER_DRAIN_SECONDS", default_value_t = 600)]
    drain_seconds: u64,
    /// Address for /metrics, /healthz and /readyz, such as 0.0.0.0:9090 [default: none].
    #[arg(long, env = "PROVER_METRICS_ADDRESS")]
    metrics_address: Option<SocketAddr>,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceClass {
    Cpu,
    Gpu,
}

/// Why the worker ends with an error.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(code: u8, message: &dyn std::fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
        }
    }
}

fn main() -> ExitCode {
    let mut own = std::env::args_os().skip(1).peekable();
    if own.peek().is_some_and(|first| first == LAUNCH_CHILD) {
        let launched = LaunchArguments::parse_from(own);
        return launch(launched.parent, &launched.command);
    }
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::InstallTools { to, from }) => return install(from, &to),
        None => {}
    }
    let Some(worker) = arguments.worker else {
        eprintln!("prover-worker: arguments are missing; see prover-worker --help");
        return ExitCode::from(EXIT_BAD_ARGUMENT);
    };
    match start(worker, &arguments.logging) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("prover-worker: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Runs before logging and threads exist: it only becomes another program.
fn launch(parent: u32, command: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else {
        return ExitCode::from(EXIT_BAD_ARGUMENT);
    };
    let error = prover_agent::launch::become_child(parent, program, arguments);
    eprintln!("{error}");
    ExitCode::from(EXIT_FAILED)
}

fn install(from: Option<PathBuf>, to: &Path) -> ExitCode {
    match install::install_tools(from, to) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("prover-worker: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn start(worker: WorkerArguments, logging: &LoggingArguments) -> Result<(), Failure> {
    logging
        .install()
        .map_err(|error| Failure::new(EXIT_BAD_ARGUMENT, &error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(EXIT_FAILED, &format!("could not start threads: {error}")))?;
    let ended = runtime.block_on(run(worker));
    // Blocking file work of attempts that were given up is not waited for.
    runtime.shutdown_background();
    ended
}

async fn run(worker: WorkerArguments) -> Result<(), Failure> {
    let registry = prometheus::Registry::new();
    let observation = Observation::new(registry.clone());
    let listener = match worker.metrics_address {
        Some(address) => Some(
            observation
                .serve(address)
                .await
                .map_err(|error| Failure::new(EXIT_BAD_ARGUMENT, &error))?,
        ),
        None => None,
    };
    // As the first process of a container it would not even get a signal that it does not listen to.
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let config = config(worker)?;
    let agent = tokio::select! {
        agent = Agent::new(config, &registry) => agent,
        Some(()) = either(&mut terminate, &mut interrupt) => return Ok(()),
    };
    let agent = agent.map_err(|error| Failure::new(EXIT_BAD_ARGUMENT, &error))?;
    let (leave, asked) = watch::channel(Leave::Stay);
    // From now on it serves. Neither a lost coordinator nor a broken device changes that: pods that are not ready
    // are the first to be deleted.
    observation.set_ready(true);
    let running = agent.run(asked);
    tokio::pin!(running);
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            Some(()) = either(&mut terminate, &mut interrupt) => {
                if *leave.borrow() == Leave::Drain {
                    return Err(Failure::new(EXIT_AT_ONCE, &"ended at once by a second signal"));
                }
                leave.send_replace(Leave::Drain);
            }
        }
    };
    if let Some(listener) = listener {
        listener.stop().await;
    }
    match ended {
        Ok(Departure::Empty) => tracing::info!("left with nothing undone"),
        Ok(Departure::OutOfTime {
            stopped,
            unacknowledged,
        }) => tracing::warn!(
            stopped,
            unacknowledged,
            "left after the drain time with attempts undone: they run again on other workers"
        ),
        Err(error) => return Err(Failure::new(EXIT_FAILED, &error)),
    }
    Ok(())
}

fn config(worker: WorkerArguments) -> Result<AgentConfig, Failure> {
    let own = std::env::current_exe().map_err(|error| {
        Failure::new(
            EXIT_FAILED,
            &format!("could not find the worker's own program: {error}"),
        )
    })?;
    let backend = match (worker.backend_command, worker.backend_sockets) {
        (Some(program), None) => BackendPlace::Command(program),
        (None, Some(directory)) => BackendPlace::Sockets(directory),
        (None, None) | (Some(_), Some(_)) => {
            let message = "write either --backend-command or --backend-sockets";
            return Err(Failure::new(EXIT_BAD_ARGUMENT, &message));
        }
    };
    Ok(AgentConfig {
        backend,
        coordinator: worker.coordinator,
        coordinator_ca_file: worker.coordinator_ca_file,
        coordinator_server_name: worker.coordinator_server_name,
        insecure_coordinator: worker.insecure_coordinator,
        token_file: worker.token_file,
        worker_id: worker.worker_id,
        worker_group: worker.worker_group,
        store: worker.store,
        work_directory: worker.work_directory,
        work_directory_bytes: worker.work_directory_bytes,
        launcher: vec![own.into_os_string(), LAUNCH_CHILD.into()],
        passed_on: worker.backend_env,
        environment: Vec::new(),
        devices: worker.devices,
        device_kind: match worker.device_class {
            DeviceClass::Cpu => DeviceKind::Cpu,
            DeviceClass::Gpu => DeviceKind::Gpu,
        },
        host_memory_bytes: worker
            .host_memory
            .unwrap_or_else(|| Host::detect().memory_bytes()),
        drain: Duration::from_secs(worker.drain_seconds),
    })
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(EXIT_FAILED, &format!("could not listen for signals: {error}")))
}

async fn either(first: &mut Signal, second: &mut Signal) -> Option<()> {
    tokio::select! {
        received = first.recv() => received,
        received = second.recv() => received,
    }
}
