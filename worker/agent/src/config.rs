//! What an agent is told at its start.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use prover_wire::limits::DEVICES_PER_WORKER;
use prover_wire::protocol::DeviceClass;

use crate::connect::{AddressError, Connector};
use crate::error::AgentError;

/// Kind of the devices of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Processor cores.
    Cpu,
    /// GPUs.
    Gpu,
}

impl DeviceKind {
    /// In ids and environment variables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }

    pub(crate) fn wire(self) -> DeviceClass {
        match self {
            Self::Cpu => DeviceClass::Cpu,
            Self::Gpu => DeviceClass::Gpu,
        }
    }

    pub(crate) fn backend(self) -> prover_backend::protocol::DeviceClass {
        match self {
            Self::Cpu => prover_backend::protocol::DeviceClass::Cpu,
            Self::Gpu => prover_backend::protocol::DeviceClass::Gpu,
        }
    }
}

/// Where the processes of the backend run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendPlace {
    /// As children of the agent: the backend's program, started once per device and once for the control lane.
    Command(PathBuf),
    /// In containers of their own, whose supervisors connect to the sockets `<slot>.sock` in this folder. Slots are
    /// named after the devices (`cpu-0`, `gpu-1`), that of planners is `control`.
    Sockets(PathBuf),
}

/// Everything that an agent is told.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Address of the coordinator, such as `https://coordinator:7000`; `http://` only on this machine.
    pub coordinator: String,
    /// File with the authorities that sign the coordinator's certificate, in PEM form; read again at every connect.
    pub coordinator_ca_file: Option<PathBuf>,
    /// Name that the coordinator's certificate is made out to; none: that in the address.
    pub coordinator_server_name: Option<String>,
    /// `http://` to other machines is allowed, although the token then travels in the clear.
    pub insecure_coordinator: bool,
    /// File with the bearer token; read again at every connect.
    pub token_file: PathBuf,
    /// Unique name of this agent process.
    pub worker_id: String,
    /// Worker group; may be empty.
    pub worker_group: String,
    /// URL of the artifact store.
    pub store: String,
    /// Folder for the files of attempts; a tmpfs in pods. No other agent may use it.
    pub work_directory: PathBuf,
    /// Bytes that inputs may take in the work directory; none: what is free on its file system at the start.
    pub work_directory_bytes: Option<u64>,
    /// Where the processes of the backend run.
    pub backend: BackendPlace,
    /// Program and arguments that start a child so that it dies with the agent (see [`crate::launch`]). Empty:
    /// children are started directly, and outlive an agent that is killed.
    pub launcher: Vec<OsString>,
    /// Names of environment variables of the agent that its children get besides those that provers usually need.
    /// Nothing else of the agent's environment reaches them.
    pub passed_on: Vec<String>,
    /// Environment variables that are set for the backend's processes.
    pub environment: Vec<(String, String)>,
    /// Number of devices.
    pub devices: u16,
    /// Their kind.
    pub device_kind: DeviceKind,
    /// Bytes of host memory for attempts.
    pub host_memory_bytes: u64,
    /// How long running attempts may go on after the agent was asked to leave.
    pub drain: Duration,
}

impl AgentConfig {
    pub(crate) fn connector(&self) -> Result<Connector, AddressError> {
        Connector::new(
            &self.coordinator,
            self.coordinator_ca_file.clone(),
            self.coordinator_server_name.clone(),
            self.insecure_coordinator,
        )
    }

    /// Checks what can be checked without touching anything.
    ///
    /// # Errors
    /// The first argument that can't be used.
    pub fn validate(&self) -> Result<(), AgentError> {
        let refuse = |what, problem: &str| {
            Err(AgentError::Configure {
                what,
                problem: problem.to_owned(),
            })
        };
        if prover_backend::validate::name("worker id", &self.worker_id).is_err() {
            return refuse(
                "--worker-id",
                "write 1 to 128 letters, digits, '.', '_', ':' or '-'",
            );
        }
        if self.devices == 0 || usize::from(self.devices) > DEVICES_PER_WORKER {
            return refuse(
                "--devices",
                &format!("write a number from 1 to {DEVICES_PER_WORKER}"),
            );
        }
        if let Err(error) = self.connector() {
            return refuse("--coordinator", &error.to_string());
        }
        if self.host_memory_bytes == 0 {
            return refuse(
                "--host-memory",
                "the memory of this machine is unknown: write it in bytes",
            );
        }
        match &self.backend {
            BackendPlace::Command(program) if !program.is_file() => refuse(
                "--backend-command",
                &format!(
                    "{} is no file: write the path of a backend's program",
                    program.display()
                ),
            ),
            BackendPlace::Sockets(directory) if !directory.is_dir() => refuse(
                "--backend-sockets",
                &format!(
                    "{} is no folder: write one that is shared with the backends' containers",
                    directory.display()
                ),
            ),
            BackendPlace::Command(_) | BackendPlace::Sockets(_) => Ok(()),
        }
    }
}
