//! A real coordinator on loopback, and jobs for it.

use std::sync::Arc;

use prover_artifacts::{ArtifactStore, Prefix, StoreOptions};
use prover_coordinator::{
    CoordinatorConfig, CoordinatorHandle, Durability, JobHandle, LogConfig, Milliseconds, Phase, Secret,
    SourceAccess, WorkerAuthentication, start,
};
use prover_crds::{Program, ProofJob, ProofJobSpec, ProofKind, ProofSpec, ProofSystem};

use crate::error::LiveError;
use crate::session::TOKEN;

/// A coordinator over a store.
pub(crate) struct Service {
    pub(crate) coordinator: CoordinatorHandle,
    pub(crate) store: Arc<dyn ArtifactStore>,
    folder: tempfile::TempDir,
}

impl Service {
    /// Starts one over the store at an address, or over a folder. `ahead`: attempts that are fetched ahead per slot.
    /// `logged`: with the log in that store.
    pub(crate) async fn start(
        store: Option<&str>,
        ahead: Option<u16>,
        logged: bool,
    ) -> Result<Service, LiveError> {
        let service = Service::follow(store, ahead, logged).await?;
        if logged {
            service.coordinator.take_over().await?;
        }
        Ok(service)
    }

    /// As `start`, but with a log it does not lead before it is told to take over.
    pub(crate) async fn follow(
        store: Option<&str>,
        ahead: Option<u16>,
        logged: bool,
    ) -> Result<Service, LiveError> {
        let folder = tempfile::tempdir()?;
        let address = match store {
            Some(address) => address.to_owned(),
            None => {
                let path = folder.path().join("store");
                std::fs::create_dir(&path)?;
                format!("file://{}", path.display())
            }
        };
        let store = prover_artifacts::open(&address).await?;
        let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = CoordinatorConfig::new(listen, WorkerAuthentication::Token(Secret::new(TOKEN)));
        // The workers here send no heartbeats.
        config.limits.lease = Milliseconds(3_600_000);
        if let Some(ahead) = ahead {
            config.limits.prefetch_per_slot = ahead;
        }
        if logged {
            let options = prover_log::store_options(StoreOptions::default(), &prover_log::Limits::default());
            let log = prover_artifacts::open_with(&address, options).await?;
            config.durability =
                Durability::Log(Box::new(LogConfig::new(log, Prefix::new("log-of-benchmark")?)));
        }
        let coordinator = start(config, Arc::clone(&store)).await?;
        Ok(Service {
            coordinator,
            store,
            folder,
        })
    }

    /// Submits a job whose planner is a worker of the benchmark.
    pub(crate) async fn submit(&self, name: &str) -> Result<JobHandle, LiveError> {
        let job = proof_job(name);
        let access = SourceAccess::Local {
            manifest_folder: self.folder.path().to_owned(),
        };
        Ok(self.coordinator.submit(job, access).await?)
    }
}

/// A job of emulated proofs.
pub(crate) fn proof_job(name: &str) -> ProofJob {
    let mut job = ProofJob::new(
        name,
        ProofJobSpec {
            program: Program {
                inline: Some("UjBCRgEAAAA=".to_owned()),
                ..Program::default()
            },
            proof: ProofSpec {
                system: ProofSystem::Emulated,
                kind: ProofKind::Emulated,
                backend: None,
            },
            ..ProofJobSpec::default()
        },
    );
    job.metadata.uid = Some(format!("uid-{name}"));
    job
}

/// Waits for the success of a job and forgets it.
pub(crate) async fn finish(job: JobHandle) -> Result<(), LiveError> {
    let view = job.finished().await;
    if view.phase != Phase::Succeeded {
        return Err(LiveError::JobFailed {
            phase: view.phase.as_str(),
            words: view.message.to_string(),
        });
    }
    job.forget().await?;
    Ok(())
}
