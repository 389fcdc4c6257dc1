//! What reaches the engine: requests of the coordinator's owner and reports of workers, in one queue.

use std::collections::BTreeSet;
use std::sync::Arc;

use prover_artifacts::Prefix;
use prover_core::{ArtifactName, Binding, Event, JobPolicy, TenantPolicy, WorkerId};
use tokio::sync::{oneshot, watch};
use tonic::Status;

use crate::admission::JobRequest;
use crate::catalogue::Backend;
use crate::container::ContainerEnd;
use crate::convert::{Hello, Report};
use crate::error::{AdmissionError, ReleaseError};
use crate::identity::Identity;
use crate::session::SessionHandle;
use crate::view::{GroupOffer, JobView};

/// The answer to a submission: the job's views.
pub type Submitted = Result<watch::Receiver<Arc<JobView>>, AdmissionError>;

/// The answer about a job that was released: keys below its prefix that others still read, in order.
pub type Released = Result<Vec<Arc<str>>, ReleaseError>;

/// Artifacts that exist before a job starts.
pub(crate) type Sources = Vec<(ArtifactName, Binding)>;

/// The answer to a hello.
#[derive(Debug)]
pub struct Connected {
    /// Its number in this coordinator.
    pub worker: WorkerId,
    pub(crate) backend: Arc<Backend>,
}

/// One thing that the engine does at a time.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the variants and their fields are named for what they are"
)]
pub enum Command {
    Submit {
        request: Box<JobRequest>,
        reply: oneshot::Sender<Submitted>,
    },
    Cancel {
        uid: Arc<str>,
    },
    SetPolicy {
        uid: Arc<str>,
        policy: JobPolicy,
    },
    SetTenantPolicy {
        tenant: Arc<str>,
        policy: TenantPolicy,
    },
    Forget {
        uid: Arc<str>,
    },
    /// The object of a job is gone, or its results are: what is known of it is cancelled and forgotten.
    Release {
        uid: Arc<str>,
        prefix: Prefix,
        reply: oneshot::Sender<Released>,
    },
    /// Sources of a job that is known, by its uid.
    KnownSources {
        uid: Arc<str>,
        reply: oneshot::Sender<Option<Vec<(ArtifactName, Binding)>>>,
    },
    /// Pods that exist: a worker of another one is not waited for after a takeover.
    SetPods {
        pods: BTreeSet<Arc<str>>,
    },
    /// All jobs that exist have been submitted.
    JobsSynced,
    WorkerGone {
        worker_id: Arc<str>,
    },
    PodGone {
        pod_name: Arc<str>,
        pod_uid: Arc<str>,
    },
    /// Replaces the pods that shall leave; answers those that no worker is known of.
    SetLeaving {
        pods: BTreeSet<Arc<str>>,
        reply: oneshot::Sender<Vec<Arc<str>>>,
    },
    /// Replaces what is known of the worker groups.
    SetGroups {
        groups: Vec<GroupOffer>,
    },
    AgentEnded {
        pod_name: Arc<str>,
        pod_uid: Arc<str>,
    },
    ContainerEnded {
        pod_uid: Arc<str>,
        container: Arc<str>,
        end: ContainerEnd,
    },
    Connect {
        hello: Box<Hello>,
        identity: Identity,
        session: SessionHandle,
        reply: oneshot::Sender<Result<Connected, Status>>,
    },
    Disconnected {
        worker: WorkerId,
        session: u64,
    },
    Report {
        worker: WorkerId,
        session: u64,
        report: Report,
    },
    Call {
        worker: WorkerId,
        session: u64,
        event: Event,
    },
}

impl Command {
    /// What it costs, roughly in reports of workers.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Command::Call {
                event: Event::TasksSubmitted { tasks, .. },
                ..
            } => tasks.len().max(1),
            _ => 1,
        }
    }
}
