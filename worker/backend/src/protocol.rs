//! The generated messages and stubs of `proto/backend.proto`. The agent uses the server, backends the client.

mod generated {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    tonic::include_proto!("proving.backend.v1");
}

pub use generated::*;

/// Version of the protocol. Both sides must speak the same one: it changes only when messages stop being
/// understood by the other side, not when fields are added.
pub const PROTOCOL_VERSION: u32 = 1;

impl RunAttempt {
    /// The file of a fetched input, if the attempt has one of this name.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&InputFile> {
        self.inputs.iter().find(|input| input.name == name)
    }
}

impl BackendDescription {
    /// What the backend says of a task type.
    #[must_use]
    pub fn task_type(&self, name: &str) -> Option<&TaskType> {
        self.task_types.iter().find(|task_type| task_type.name == name)
    }

    /// What the backend offers for a proof system and kind.
    #[must_use]
    pub fn offer(&self, system: &str, kind: &str) -> Option<&ProofOffer> {
        self.proofs
            .iter()
            .find(|offer| offer.system == system && offer.kind == kind)
    }

    /// How long a child may be silent before it counts as hung.
    #[must_use]
    pub fn hang_after(&self) -> std::time::Duration {
        match self.hang_after_ms {
            0 => crate::limits::DEFAULT_HANG_AFTER,
            milliseconds => std::time::Duration::from_millis(milliseconds),
        }
    }
}

macro_rules! event_from {
    ($($message:ident => $variant:ident),* $(,)?) => {
        $(impl From<$message> for BackendEvent {
            fn from(message: $message) -> Self {
                Self { event: Some(backend_event::Event::$variant(message)) }
            }
        })*
    };
}
event_from!(
    Hello => Hello,
    Pulse => Pulse,
    AttemptProgress => Progress,
    AttemptCompleted => Completed,
    AttemptFailed => Failed,
    AttemptStopped => Stopped,
);

macro_rules! command_from {
    ($($message:ident => $variant:ident),* $(,)?) => {
        $(impl From<$message> for AgentCommand {
            fn from(message: $message) -> Self {
                Self { command: Some(agent_command::Command::$variant(message)) }
            }
        })*
    };
}
command_from!(Welcome => Welcome, RunAttempt => Run, StopAttempt => Stop, Shutdown => Shutdown);
