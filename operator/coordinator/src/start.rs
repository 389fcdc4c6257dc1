//! Starting a coordinator: the store is probed, the actor, the listener and the background work begin.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use prover_artifacts::{ArtifactStore, Prefix};
use prover_core::Limits;
use prover_log::Follower;
use prover_wire::limits::MESSAGE_BYTES;
use prover_wire::operator_plane::operator_plane_server::OperatorPlaneServer;
use prover_wire::protocol::worker_plane_server::WorkerPlaneServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::actor::{Actor, Following};
use crate::admission::AdmissionLimits;
use crate::config::{COMMAND_QUEUE, CONTROL_QUEUE, CoordinatorConfig, Durability};
use crate::deletes::{self, DELETE_QUEUE};
use crate::engine::EngineParts;
use crate::error::CoordinatorError;
use crate::handle::CoordinatorHandle;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::operator_plane::OperatorPlaneService;
use crate::role::{Role, Standing};
use crate::session::WorkerPlaneService;
use crate::sign_in::SignIn;
use crate::store_watch::{self, StoreState};
use crate::view::ClusterView;

/// How often an idle connection is asked for a sign of life, and how long it may take to give one.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Calls that are open on one connection: an agent has one, the operator two.
const CALLS_PER_CONNECTION: u32 = 16;
/// Largest state that the operator is told: 20,000 workers have a few hundred bytes each.
const OPERATOR_MESSAGE_BYTES: usize = 32 << 20;
/// Bytes of a call's headers, the bearer token among them.
const HEADER_BYTES: u32 = 32 << 10;

/// Starts a coordinator over a store.
///
/// # Errors
/// The configuration makes no sense, the store can't be used, or the address can't be listened on.
pub async fn start(
    config: CoordinatorConfig,
    store: Arc<dyn ArtifactStore>,
) -> Result<CoordinatorHandle, CoordinatorError> {
    check(&config)?;
    let metrics = Metrics::register(&config.registry)?;
    store
        .probe()
        .await
        .map_err(|source| CoordinatorError::StoreUnusable { source })?;
    let bind = |source| CoordinatorError::Bind {
        address: config.listen,
        source,
    };
    let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;

    let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
    let (deletions, deletion_queue) = mpsc::channel(DELETE_QUEUE);
    let (cluster_sender, cluster) = watch::channel(Arc::new(ClusterView::default()));
    let (store_sender, store_state) = watch::channel(StoreState::reachable());
    let stop = CancellationToken::new();
    let (following, first) = match &config.durability {
        Durability::None => (None, Role::Leading { epoch: config.epoch }),
        Durability::Log(log) => {
            let follower =
                Follower::open(Arc::clone(&log.store), log.prefix.clone(), log.limits.clone()).await?;
            let following = Following {
                follower,
                interval: log.follow_interval,
            };
            (Some(following), Role::Following { caught_up: false })
        }
    };
    metrics.show_role(first);
    let parts = EngineParts {
        limits: Limits {
            record_facts: following.is_some(),
            ..config.limits.clone()
        },
        epoch: config.epoch,
        heartbeat_interval: config.heartbeat_interval,
        clock: Arc::clone(&config.clock),
        metrics: metrics.clone(),
        cluster: cluster_sender,
    };
    let (role_sender, role) = watch::channel(first);
    let (leader, told_leader) = watch::channel(None);
    let (control, controls) = mpsc::channel(CONTROL_QUEUE);
    let actor = Actor {
        parts,
        deletions,
        role: role_sender,
        leader: told_leader.clone(),
        control: controls,
        commands: queue,
        stop: stop.clone(),
    };
    let standing = Standing {
        role: role.clone(),
        leader: told_leader,
    };
    let sign_in = SignIn {
        authentication: config.worker_authentication,
        metrics: metrics.clone(),
    };
    let operator_plane = OperatorPlaneService {
        sign_in: sign_in.clone(),
        standing: standing.clone(),
        commands: commands.clone(),
        cluster: cluster.clone(),
        store: store_state,
        clock: Arc::clone(&config.clock),
        stop: stop.clone(),
    };
    let service = WorkerPlaneService {
        sign_in,
        standing,
        commands: commands.clone(),
        outbound_messages: config.outbound_messages,
        metrics: metrics.clone(),
        next_session: AtomicU64::new(1),
        stop: stop.clone(),
    };
    let listener = Listener {
        listener,
        tls: config.tls,
        sign_in_timeout: config.sign_in_timeout,
        metrics: metrics.clone(),
        stop: stop.clone(),
    };
    let tasks = vec![
        tokio::spawn(actor.run(following)),
        tokio::spawn(deletes::run(
            Arc::clone(&store),
            deletion_queue,
            config.parallel_deletes,
            metrics,
        )),
        tokio::spawn(store_watch::run(
            Arc::clone(&store),
            store_sender,
            cluster.clone(),
            config.store_probe_interval,
            stop.clone(),
        )),
        tokio::spawn(serve(listener, service, operator_plane, stop.clone())),
    ];
    tracing::info!(%address, store = store.location(), "the coordinator takes workers");
    let admission = AdmissionLimits {
        program_bytes: config.program_bytes,
        input_bytes: config.input_bytes,
        artifact_prefix: config.artifact_prefix,
    };
    Ok(CoordinatorHandle {
        address,
        commands,
        cluster,
        store,
        admission: RwLock::new(admission),
        role,
        leader,
        control,
        stop,
        tasks,
    })
}

fn check(config: &CoordinatorConfig) -> Result<(), CoordinatorError> {
    let invalid = |field, value: String, expected| CoordinatorError::InvalidConfiguration {
        field,
        value,
        expected,
    };
    if config.outbound_messages == 0 {
        return Err(invalid("outbound_messages", "0".to_owned(), "at least 1"));
    }
    if config.heartbeat_interval.is_zero()
        || config.heartbeat_interval.as_millis() >= u128::from(config.limits.lease.0)
    {
        let value = format!("{:?}", config.heartbeat_interval);
        return Err(invalid(
            "heartbeat_interval",
            value,
            "more than nothing and shorter than limits.lease",
        ));
    }
    let prefix = &config.artifact_prefix;
    if prefix.ends_with('/') || Prefix::new(prefix.as_str()).is_err() {
        return Err(invalid(
            "artifact_prefix",
            prefix.clone(),
            "empty, or names joined by slashes",
        ));
    }
    Ok(())
}

async fn serve(
    listener: Listener,
    service: WorkerPlaneService,
    operator_plane: OperatorPlaneService,
    stop: CancellationToken,
) {
    let operator_plane = OperatorPlaneServer::new(operator_plane)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(OPERATOR_MESSAGE_BYTES);
    let service = WorkerPlaneServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let serving = Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(service)
        .add_service(operator_plane)
        .serve_with_incoming_shutdown(ReceiverStream::new(listener.accept()), stop.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::error!(%error, "the listener for workers ended");
    }
}
