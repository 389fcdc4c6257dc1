//! What an agent is told at its start.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use prover_wire::limits::DEVICES_PER_WORKER;
use prover_wire::protocol::DeviceClass;

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

/// Everything that an agent is told.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Address of the coordinator, such as `http://127.0.0.1:7000`.
    pub coordinator: String,
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
    /// Program of the backend, started once per device and once for the control lane.
    pub backend_command: PathBuf,
    /// Program and arguments that start a child so that it dies with the agent (see [`crate::launch`]). Empty:
    /// children are started directly, and outlive an agent that is killed.
    pub launcher: Vec<OsString>,
    /// More environment variables for children.
    pub environment: Vec<(OsString, OsString)>,
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
        if !self.coordinator.starts_with("http://") {
            return refuse("--coordinator", "write http://HOST:PORT");
        }
        if self.host_memory_bytes == 0 {
            return refuse(
                "--host-memory",
                "the memory of this machine is unknown: write it in bytes",
            );
        }
        if !self.backend_command.is_file() {
            let path = self.backend_command.display();
            return refuse(
                "--backend-command",
                &format!("{path} is no file: write the path of a backend's program"),
            );
        }
        Ok(())
    }
}
