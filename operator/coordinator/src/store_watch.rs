//! Whether the artifact store can be used: tried at the start, and then again while it matters.
//!
//! Owns when it is tried and what a failure is called. Does not own what is tried (the store's probe).

use std::sync::Arc;
use std::time::Duration;

use prover_artifacts::{ArtifactStore, StoreError};
use prover_crds::reasons;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::view::ClusterView;

/// What the last try of the store found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreState {
    pub(crate) ready: bool,
    /// One of `prover_crds::reasons`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl StoreState {
    pub(crate) fn reachable() -> StoreState {
        StoreState {
            ready: true,
            reason: reasons::STORE_REACHABLE,
            message: "the coordinator could use it when it tried last".to_owned(),
        }
    }

    fn failed(error: &StoreError) -> StoreState {
        StoreState {
            ready: false,
            reason: store_reason(error),
            message: error.to_string(),
        }
    }
}

/// What a failure of the store is called: one of `prover_crds::reasons`.
#[must_use]
pub fn store_reason(error: &StoreError) -> &'static str {
    match error {
        StoreError::Timeout { .. } | StoreError::Connection { .. } | StoreError::Throttled { .. } => {
            reasons::STORE_UNREACHABLE
        }
        StoreError::AccessDenied { .. } | StoreError::NoCredentials { .. } => reasons::STORE_ACCESS_DENIED,
        StoreError::ConditionalWritesUnsupported { .. } => reasons::CONDITIONAL_WRITES_UNSUPPORTED,
        StoreError::StoreFull { .. } => reasons::STORE_FULL,
        StoreError::StoreNotWritable { .. } => reasons::STORE_NOT_WRITABLE,
        _ => reasons::STORE_FAILED,
    }
}

/// Tries the store at most once per `interval`, while jobs are unfinished or the last try failed.
pub(crate) async fn run(
    store: Arc<dyn ArtifactStore>,
    told: watch::Sender<StoreState>,
    mut cluster: watch::Receiver<Arc<ClusterView>>,
    interval: Duration,
    stop: CancellationToken,
) {
    let watching = async {
        loop {
            tokio::time::sleep(interval).await;
            let matters = |view: &Arc<ClusterView>| {
                view.queue_depth.queued_jobs > 0 || view.queue_depth.running_jobs > 0
            };
            if told.borrow().ready && cluster.wait_for(matters).await.is_err() {
                return;
            }
            let found = match store.probe().await {
                Ok(_) => StoreState::reachable(),
                Err(error) => StoreState::failed(&error),
            };
            tell(&told, &found);
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = watching => {}
    }
}

/// Words alone are no change: errors name the object that was tried, which is another one each time.
fn tell(told: &watch::Sender<StoreState>, found: &StoreState) {
    let changed = told.send_if_modified(|known| {
        let changed = known.reason != found.reason;
        if changed {
            *known = found.clone();
        }
        changed
    });
    match (changed, found.ready) {
        (true, true) => tracing::info!("the artifact store can be used again"),
        (true, false) => {
            tracing::warn!(reason = found.reason, error = %found.message, "the artifact store can't be used");
        }
        (false, _) => {}
    }
}
