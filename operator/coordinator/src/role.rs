//! Which of the coordinators of one ProverCluster this one is.

use tokio::sync::watch;
use tonic::Status;

/// What a coordinator does for its ProverCluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It reads what the leader writes, so that it can take over. It answers workers and the operator with who leads,
    /// and takes no jobs.
    Following {
        /// It has read everything that was there when it looked last: it can take over at once.
        caught_up: bool,
    },
    /// It schedules. Without a log it does from the beginning.
    Leading {
        /// Higher than that of every leader before.
        epoch: u64,
    },
    /// Another one leads, or it stepped down: it has said and shown nothing since, and never will. Its process should
    /// end, so that the next one follows.
    Fenced,
}

impl Role {
    /// Whether it schedules.
    #[must_use]
    pub fn leads(self) -> bool {
        matches!(self, Role::Leading { .. })
    }
}

/// Why a coordinator did not become the leader.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TakeOverError {
    /// It has no log to take over, or leads already.
    #[error("this coordinator does not follow another one")]
    NotFollowing,
    /// The log can't be taken over, whatever is tried: it is damaged, or of a newer version.
    #[error("the log can't be taken over: {reason}")]
    Unusable {
        /// What is wrong with it.
        reason: String,
    },
    /// The coordinator has been shut down.
    #[error("the coordinator has been shut down")]
    Stopped,
}

impl TakeOverError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            TakeOverError::NotFollowing => "not_following",
            TakeOverError::Unusable { .. } => "unusable",
            TakeOverError::Stopped => "stopped",
        }
    }
}

/// What both planes know of the role.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) leader: watch::Receiver<Option<String>>,
}

impl Standing {
    pub(crate) fn leads(&self) -> bool {
        self.role.borrow().leads()
    }

    /// HOST:PORT of the coordinator that leads, as far as it is known.
    pub(crate) fn leader(&self) -> Option<String> {
        self.leader.borrow().clone()
    }

    /// Only the leader answers.
    pub(crate) fn check(&self) -> Result<(), Status> {
        if self.leads() {
            return Ok(());
        }
        let leader = self.leader();
        let leader = leader.as_deref().unwrap_or("not known yet");
        Err(Status::unavailable(format!(
            "this coordinator does not lead; the one that does is {leader}"
        )))
    }
}
