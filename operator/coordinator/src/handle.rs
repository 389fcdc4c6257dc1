//! What the owner of a coordinator holds: the coordinator itself, and one handle per job.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use prover_artifacts::{ArtifactStore, Prefix};
use prover_core::{JobId, JobPolicy, TenantPolicy};
use prover_crds::ProofJob;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admission::{self, AdmissionLimits, JobRequest};
use crate::command::Command;
use crate::config::{RELEASE_WITHIN, SHUTDOWN_TIMEOUT};
use crate::container::ContainerEnd;
use crate::error::{AdmissionError, CoordinatorError, ReleaseError};
use crate::role::{Role, TakeOverError};
use crate::sources::ClusterSources;
use crate::view::{ClusterView, GroupOffer, JobView, QueueDepth, WorkerView};

/// Where the sources of a job may be read from.
#[derive(Clone, Debug)]
pub enum SourceAccess {
    /// Local mode: `file` sources are relative to the folder of the manifest.
    Local {
        /// Folder of the manifest.
        manifest_folder: PathBuf,
    },
    /// Files of this machine are none of the job's business; the rest is fetched by what knows the cluster.
    Cluster(Arc<dyn ClusterSources>),
}

/// What the owner wants of the role.
#[derive(Debug)]
pub(crate) enum Control {
    TakeOver {
        reply: oneshot::Sender<Result<u64, TakeOverError>>,
    },
    StepDown {
        reply: oneshot::Sender<()>,
    },
}

/// A running coordinator. Dropping it leaves it running: call [`CoordinatorHandle::shutdown`].
#[derive(Debug)]
pub struct CoordinatorHandle {
    pub(crate) address: SocketAddr,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) cluster: watch::Receiver<Arc<ClusterView>>,
    pub(crate) store: Arc<dyn ArtifactStore>,
    pub(crate) admission: RwLock<AdmissionLimits>,
    pub(crate) role: watch::Receiver<Role>,
    pub(crate) leader: watch::Sender<Option<String>>,
    pub(crate) control: mpsc::Sender<Control>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: Vec<JoinHandle<()>>,
}

impl CoordinatorHandle {
    /// Where workers connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Checks a job, puts its sources into the store and hands it to the scheduling core. A job whose proof
    /// system no worker offers yet is taken too and waits. A job with the uid of a known one answers with that.
    ///
    /// # Errors
    /// The job can't be taken; the message is for the user.
    pub async fn submit(&self, job: ProofJob, access: SourceAccess) -> Result<JobHandle, AdmissionError> {
        let limits = self
            .admission
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let request = match self.known(&job, &limits).await? {
            Some(request) => request,
            None => admission::prepare(job, &access, self.store.as_ref(), &limits).await?,
        };
        let uid = request.uid.clone();
        let (reply, answer) = oneshot::channel();
        let command = Command::Submit {
            request: Box::new(request),
            reply,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| AdmissionError::Stopped)?;
        let view = answer.await.map_err(|_| AdmissionError::Stopped)??;
        Ok(JobHandle {
            uid,
            view,
            commands: self.commands.clone(),
        })
    }

    /// A job that is known already, such as after a takeover: its sources are in the store, and are not read again.
    async fn known(
        &self,
        job: &ProofJob,
        limits: &AdmissionLimits,
    ) -> Result<Option<JobRequest>, AdmissionError> {
        if !self.role.borrow().leads() {
            return Err(AdmissionError::NotLeader);
        }
        let Some(uid) = job.metadata.uid.as_deref() else {
            return Ok(None);
        };
        let (reply, answer) = oneshot::channel();
        let command = Command::KnownSources {
            uid: uid.into(),
            reply,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| AdmissionError::Stopped)?;
        let sources = answer.await.map_err(|_| AdmissionError::Stopped)?;
        let known = sources.map(|sources| JobRequest::unchecked(job, &limits.artifact_prefix, sources));
        // A uid of which no key can be made is refused with the rest of what is wrong with the job.
        Ok(known.and_then(Result::ok))
    }

    /// What this coordinator does, now and later. [`Role::Following`] with `caught_up` is ready to take over.
    #[must_use]
    pub fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// Becomes the leader, and answers its epoch: reads the log to its end, fences whoever led, and takes what was
    /// known on. Waits for as long as the store is away. A call that is dropped goes on.
    ///
    /// # Errors
    /// It does not follow, the log can't be used, or the coordinator is shut down.
    pub async fn take_over(&self) -> Result<u64, TakeOverError> {
        let (reply, answer) = oneshot::channel();
        self.control
            .send(Control::TakeOver { reply })
            .await
            .map_err(|_| TakeOverError::Stopped)?;
        answer.await.map_err(|_| TakeOverError::Stopped)?
    }

    /// Stops leading in good order: takes nothing more, waits for the log to have all that was recorded (not for long),
    /// and sends the workers to the next leader. The role is [`Role::Fenced`] afterwards. Running attempts live on.
    pub async fn step_down(&self) {
        let (reply, done) = oneshot::channel();
        // One that has been shut down leads no more.
        if self.control.send(Control::StepDown { reply }).await.is_ok() {
            let _ = done.await;
        }
    }

    /// Tells that all jobs that exist have been submitted since this coordinator leads: what is known from the log of
    /// others is forgotten.
    ///
    /// # Errors
    /// The coordinator has been shut down.
    pub async fn jobs_synced(&self) -> Result<(), CoordinatorError> {
        self.commands
            .send(Command::JobsSynced)
            .await
            .map_err(|_| CoordinatorError::Stopped)
    }

    /// Tells that the object of a job is gone, or its results are: what is known of the job is cancelled and forgotten.
    /// Answers which keys below its prefix other jobs still read, once none of its attempts can write any more and the
    /// log has that; all others may be deleted. Those are deleted here with their last reader. Asking again does no harm.
    ///
    /// # Errors
    /// Attempts did not leave within ten seconds, too much is still read, or this coordinator does not lead.
    pub async fn release(&self, uid: &str, prefix: Prefix) -> Result<Vec<Arc<str>>, ReleaseError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Release {
            uid: uid.into(),
            prefix,
            reply,
        };
        let answer = async {
            let sent = self.commands.send(command).await;
            sent.map_err(|_| ReleaseError::Stopped)?;
            answer.await.map_err(|_| ReleaseError::Stopped)?
        };
        tokio::time::timeout(RELEASE_WITHIN, answer)
            .await
            .unwrap_or(Err(ReleaseError::NotYet))
    }

    /// Tells who leads, as HOST:PORT, while this one follows: workers are sent there.
    pub fn set_leader(&self, address: Option<String>) {
        self.leader.send_replace(address);
    }

    /// Gives a tenant another share of the devices, relative to the others, and bounds the devices that it may use at
    /// once; the default until it is told otherwise.
    ///
    /// # Errors
    /// The coordinator has been shut down.
    pub async fn set_tenant_policy(
        &self,
        tenant: &str,
        policy: TenantPolicy,
    ) -> Result<(), CoordinatorError> {
        let tenant = tenant.into();
        self.commands
            .send(Command::SetTenantPolicy { tenant, policy })
            .await
            .map_err(|_| CoordinatorError::Stopped)
    }

    /// Bounds programs, and inputs and assumptions, of jobs that are submitted from now on, in bytes.
    pub fn set_source_limits(&self, program_bytes: u64, input_bytes: u64) {
        let mut limits = self.admission.write().unwrap_or_else(PoisonError::into_inner);
        limits.program_bytes = program_bytes;
        limits.input_bytes = input_bytes;
    }

    /// Tells that a worker's process or pod is gone for certain: its attempts run elsewhere at once.
    pub async fn worker_gone(&self, worker_id: &str) {
        // A coordinator that has been shut down has no leases left to lose.
        let _ = self
            .commands
            .send(Command::WorkerGone {
                worker_id: worker_id.into(),
            })
            .await;
    }

    /// What may be told about workers, for those who watch their pods.
    #[must_use]
    pub fn worker_control(&self) -> WorkerControl {
        WorkerControl {
            commands: self.commands.clone(),
        }
    }

    /// All workers that are not gone, by name.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerView> {
        self.cluster.borrow().workers.clone()
    }

    /// How much work there is.
    #[must_use]
    pub fn queue_depth(&self) -> QueueDepth {
        self.cluster.borrow().queue_depth
    }

    /// Workers and queue depth, as they change.
    #[must_use]
    pub fn watch_cluster(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.cluster.clone()
    }

    /// Ends all streams and stops. Running attempts are not waited for.
    pub async fn shutdown(self) {
        self.stop.cancel();
        let aborts: Vec<_> = self.tasks.iter().map(JoinHandle::abort_handle).collect();
        let all = futures::future::join_all(self.tasks);
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, all).await.is_err() {
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}

/// Tells a coordinator about the pods of its workers.
#[derive(Clone, Debug)]
pub struct WorkerControl {
    commands: mpsc::Sender<Command>,
}

impl WorkerControl {
    /// Tells that a pod is gone for certain: its streams are closed and its attempts run elsewhere at once. A later
    /// pod of the same name is another one.
    pub async fn pod_gone(&self, pod_name: &str, pod_uid: &str) {
        // A coordinator that has been shut down has no leases left to lose.
        let _ = self
            .commands
            .send(Command::PodGone {
                pod_name: pod_name.into(),
                pod_uid: pod_uid.into(),
            })
            .await;
    }

    /// Replaces what is known of the pods that exist. After a takeover workers of other pods are not waited for.
    pub async fn set_pods(&self, names: BTreeSet<Arc<str>>) {
        let _ = self.commands.send(Command::SetPods { pods: names }).await;
    }

    /// Replaces what is known of the worker groups, so that jobs can wait for a group that has no worker yet.
    pub async fn set_groups(&self, groups: Vec<GroupOffer>) {
        let _ = self.commands.send(Command::SetGroups { groups }).await;
    }

    /// Tells that the agent of a pod has ended, while the pod stays: attempts of an agent whose stream is broken run
    /// elsewhere at once, without waiting for it to reconnect. An open stream is that of the next agent.
    pub async fn agent_ended(&self, pod_name: &str, pod_uid: &str) {
        let _ = self
            .commands
            .send(Command::AgentEnded {
                pod_name: pod_name.into(),
                pod_uid: pod_uid.into(),
            })
            .await;
    }

    /// Tells how the container of a backend ended, in the kubelet's words: `OOMKilled`, `Error`.
    pub async fn container_ended(&self, pod_uid: &str, container: &str, reason: &str, exit_code: i32) {
        let _ = self
            .commands
            .send(Command::ContainerEnded {
                pod_uid: pod_uid.into(),
                container: container.into(),
                end: ContainerEnd {
                    reason: reason.into(),
                    exit_code,
                },
            })
            .await;
    }
}

/// A job that was taken.
#[derive(Clone, Debug)]
pub struct JobHandle {
    uid: Arc<str>,
    view: watch::Receiver<Arc<JobView>>,
    commands: mpsc::Sender<Command>,
}

impl JobHandle {
    /// Its id; none while it waits for a worker that offers its proof system.
    #[must_use]
    pub fn id(&self) -> Option<JobId> {
        self.view.borrow().id
    }

    /// Its unique name over restarts.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The latest view.
    #[must_use]
    pub fn view(&self) -> Arc<JobView> {
        self.view.borrow().clone()
    }

    /// Views as they are made: at most a few per second, terminal ones at once. It closes when the job is
    /// forgotten or the coordinator stops.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<JobView>> {
        self.view.clone()
    }

    /// Stops the job; running attempts are told at once.
    ///
    /// # Errors
    /// The coordinator has been shut down.
    pub async fn cancel(&self) -> Result<(), CoordinatorError> {
        self.send(Command::Cancel {
            uid: self.uid.clone(),
        })
        .await
    }

    /// Changes priority, deadlines, workers or suspension.
    ///
    /// # Errors
    /// The coordinator has been shut down.
    pub async fn set_policy(&self, policy: JobPolicy) -> Result<(), CoordinatorError> {
        self.send(Command::SetPolicy {
            uid: self.uid.clone(),
            policy,
        })
        .await
    }

    /// Forgets a terminal job: its records, its sources and what its attempts made. The proof and the public values
    /// stay in the store.
    ///
    /// # Errors
    /// The coordinator has been shut down.
    pub async fn forget(self) -> Result<(), CoordinatorError> {
        self.send(Command::Forget {
            uid: self.uid.clone(),
        })
        .await
    }

    /// Waits until the job is terminal. A coordinator that stops first leaves the last view, which is not.
    pub async fn finished(&self) -> Arc<JobView> {
        let mut view = self.view.clone();
        let last = view
            .wait_for(|view| view.phase.is_terminal())
            .await
            .map(|view| view.clone());
        // The channel closes only with the coordinator or with the job's record.
        last.unwrap_or_else(|_| self.view())
    }

    async fn send(&self, command: Command) -> Result<(), CoordinatorError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| CoordinatorError::Stopped)
    }
}
