//! The agent's side of the backend protocol, one server per slot on its own Unix socket.
//!
//! Owns the translation between the child's calls and the agent's loop, and the transfers that a running attempt
//! asks for. Everything that a child says is checked here: a child may be anybody's program.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use prost::Message as _;
use prover_artifacts::{ArtifactStore, StoreError};
use prover_backend::limits::{MAX_MESSAGE_BYTES, MAX_SUBSCRIBED_TASKS};
use prover_backend::protocol::agent_service_server::{AgentService, AgentServiceServer};
use prover_backend::protocol::{
    AcquirePermitRequest, AgentCommand, ArtifactInfo, BackendEvent, ChannelMessage, CompleteMarkerRequest,
    DeleteArtifactsRequest, Device, Empty, GetArtifactRequest, GetArtifactResponse, PROTOCOL_VERSION,
    PutArtifactRequest, ReadChannelRequest, ReferenceRequest, RemoveReferenceResponse,
    SendChannelMessageRequest, StatArtifactRequest, SubmitTasksRequest, SubmitTasksResponse,
    SubscribeTasksRequest, TaskResult, Welcome, backend_event,
};
use prover_backend::supervisor::supervisor_service_server::SupervisorServiceServer;
use prover_backend::validate::{self, ValidationError};
use prover_backend::{CallError, protocol};
use prover_wire::protocol::{self as wire, Answer, Artifact, call};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::child::{LastHeard, Opened, Supervision};
use crate::event::{AttemptView, ChildNews, Event, Reply};
use crate::limits::{QUEUED_ANSWERS, QUEUED_COMMANDS};
use crate::metrics::Metrics;
use crate::transfer::{self, TransferError};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The server of one slot.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) slot: usize,
    pub(crate) device: Device,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) opened: mpsc::Sender<Opened>,
    pub(crate) heard: LastHeard,
    pub(crate) store: Arc<dyn ArtifactStore>,
    pub(crate) metrics: Metrics,
}

impl Service {
    /// Listens on a socket until the agent ends.
    ///
    /// # Errors
    /// The socket can't be made.
    pub(crate) fn listen(
        self,
        supervision: Option<Supervision>,
        socket: &Path,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let listener = bind(socket)?;
        let supervision = supervision.map(|supervision| {
            SupervisorServiceServer::new(supervision)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES)
        });
        let server = AgentServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        tokio::spawn(async move {
            let serving = tonic::transport::Server::builder()
                .add_service(server)
                .add_optional_service(supervision)
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::error!(%error, "the socket for a backend is closed");
            }
        });
        Ok(())
    }

    async fn view(&self, attempt: u64) -> Result<AttemptView, Status> {
        let (reply, answer) = oneshot::channel();
        self.tell(Event::ViewWanted {
            slot: self.slot,
            attempt,
            reply,
        })
        .await?;
        answer
            .await
            .map_err(|_| ending())?
            .map_err(CallError::into_status)
    }

    async fn tell(&self, event: Event) -> Result<(), Status> {
        self.events.send(event).await.map_err(|_| ending())
    }

    async fn call(&self, attempt: u64, call: call::Call) -> Result<Answer, Status> {
        let (reply, answer) = oneshot::channel();
        self.tell(Event::Called {
            slot: self.slot,
            attempt,
            call,
            reply: Reply::Once(reply),
        })
        .await?;
        answer
            .await
            .map_err(|_| ending())?
            .map_err(CallError::into_status)
    }

    /// Makes a call that is answered by a stream, and translates its answers.
    async fn open_stream<A, T>(
        &self,
        attempt: u64,
        call: call::Call,
        reply: impl FnOnce(mpsc::Sender<Result<A, Status>>) -> Reply,
        translate: fn(A) -> T,
    ) -> Result<Response<Answers<T>>, Status>
    where
        A: Send + 'static,
        T: Send + 'static,
    {
        let (sender, answers) = mpsc::channel(QUEUED_ANSWERS);
        self.tell(Event::Called {
            slot: self.slot,
            attempt,
            call,
            reply: reply(sender),
        })
        .await?;
        let answers = ReceiverStream::new(answers).map(move |answer| answer.map(translate));
        Ok(Response::new(Box::pin(answers)))
    }

    /// Runs a transfer unless the attempt is stopped first.
    async fn unless_stopped<T>(
        view: &AttemptView,
        transfer: impl Future<Output = Result<T, TransferError>>,
    ) -> Result<T, Status> {
        tokio::select! {
            done = transfer => done.map_err(|error| refusal(&error).into_status()),
            () = view.cancel.cancelled() => Err(CallError::Stopped.into_status()),
        }
    }

    async fn resolve(&self, attempt: u64, name: &str) -> Result<Artifact, Status> {
        check(validate::name("artifact", name))?;
        let call = call::Call::ResolveArtifact(wire::ResolveArtifact {
            name: name.to_owned(),
        });
        bound(self.call(attempt, call).await?)
    }
}

/// Makes a socket that processes of the same user or group may connect to, in place of one that an agent before has
/// left.
fn bind(socket: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn ending() -> Status {
    CallError::Unavailable("the agent is ending".to_owned()).into_status()
}

fn check<T>(checked: Result<T, ValidationError>) -> Result<T, Status> {
    checked.map_err(|error| CallError::InvalidArgument(error.to_string()).into_status())
}

fn bound(answer: Answer) -> Result<Artifact, Status> {
    answer.artifact.ok_or_else(|| {
        CallError::Internal("the coordinator's answer names no artifact".to_owned()).into_status()
    })
}

fn info(artifact: Artifact) -> ArtifactInfo {
    ArtifactInfo {
        name: artifact.name,
        size_bytes: artifact.size_bytes,
        sha256: artifact.sha256,
    }
}

/// How a failed transfer is told to the child.
fn refusal(error: &TransferError) -> CallError {
    let message = error.to_string();
    match error {
        TransferError::Fetch { source, .. } | TransferError::Store { source, .. } => match **source {
            StoreError::NotFound { .. } => CallError::NotFound(message),
            StoreError::ChecksumMismatch { .. } | StoreError::UploadDamaged { .. } => {
                CallError::Damaged(message)
            }
            StoreError::AlreadyExists { .. } | StoreError::InvalidKey { .. } => {
                CallError::InvalidArgument(message)
            }
            StoreError::StoreFull { .. }
            | StoreError::StoreNotWritable { .. }
            | StoreError::BucketNotFound { .. }
            | StoreError::AccessDenied { .. }
            | StoreError::NoCredentials { .. } => {
                CallError::Store(format!("{}: {message}", transfer::store_reason(source)))
            }
            _ => CallError::Unavailable(message),
        },
        TransferError::Malformed { .. } => CallError::Internal(message),
        TransferError::Outputs(_) => CallError::InvalidArgument(message),
        TransferError::Directory { .. } => CallError::Unavailable(message),
    }
}

#[async_trait::async_trait]
impl AgentService for Service {
    type SessionStream = Answers<AgentCommand>;
    type SubscribeTasksStream = Answers<TaskResult>;
    type ReadChannelStream = Answers<ChannelMessage>;

    async fn session(
        &self,
        request: Request<Streaming<BackendEvent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut events = request.into_inner();
        let Some(BackendEvent {
            event: Some(backend_event::Event::Hello(hello)),
        }) = events.message().await?
        else {
            return Err(Status::invalid_argument(
                "the first event of a session must be a hello",
            ));
        };
        check(validate::protocol_version(hello.protocol_version))?;
        let description = hello
            .backend
            .ok_or_else(|| Status::invalid_argument("the hello describes no backend"))?;
        check(validate::description(&description))?;
        let (commands, queue) = mpsc::channel(QUEUED_COMMANDS);
        let welcome = Welcome {
            protocol_version: PROTOCOL_VERSION,
            device: Some(self.device.clone()),
        };
        commands.try_send(Ok(welcome.into())).map_err(|_| ending())?;
        self.heard.now();
        let passing = tokio::spawn(pass_on(
            self.slot,
            events,
            self.events.clone(),
            self.heard.clone(),
        ));
        let opened = Opened {
            description: Box::new(description),
            commands,
            events: passing,
        };
        // Nobody waits for a second session of the same process.
        self.opened
            .try_send(opened)
            .map_err(|_| Status::already_exists("a backend process opens one session"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    async fn submit_tasks(
        &self,
        request: Request<SubmitTasksRequest>,
    ) -> Result<Response<SubmitTasksResponse>, Status> {
        let request = request.into_inner();
        let view = self.view(request.attempt_id).await?;
        check(validate::submit_tasks(&view.description, &request))?;
        let count = request.tasks.len();
        let call = call::Call::SubmitTasks(wire::SubmitTasks {
            encoded: request.encode_to_vec(),
        });
        let answer = self.call(request.attempt_id, call).await?;
        if answer.task_ids.len() != count || answer.already_succeeded.len() != count {
            let message = format!(
                "{count} tasks were submitted, the coordinator answered {}",
                answer.task_ids.len()
            );
            return Err(CallError::Internal(message).into_status());
        }
        let Answer {
            task_ids,
            already_succeeded,
            ..
        } = answer;
        Ok(Response::new(SubmitTasksResponse {
            task_ids,
            already_succeeded,
        }))
    }

    async fn complete_marker(
        &self,
        request: Request<CompleteMarkerRequest>,
    ) -> Result<Response<Empty>, Status> {
        let CompleteMarkerRequest {
            attempt_id,
            request_id,
        } = request.into_inner();
        check(validate::name("request id", &request_id))?;
        let call = call::Call::CompleteMarker(wire::CompleteMarker { request_id });
        self.call(attempt_id, call).await?;
        Ok(Response::new(Empty {}))
    }

    async fn subscribe_tasks(
        &self,
        request: Request<SubscribeTasksRequest>,
    ) -> Result<Response<Self::SubscribeTasksStream>, Status> {
        let SubscribeTasksRequest {
            attempt_id: attempt,
            mut request_ids,
        } = request.into_inner();
        request_ids.sort_unstable();
        request_ids.dedup();
        if request_ids.len() > MAX_SUBSCRIBED_TASKS {
            let message = format!(
                "a subscription to {} tasks: at most {MAX_SUBSCRIBED_TASKS}",
                request_ids.len()
            );
            return Err(CallError::LimitExceeded(message).into_status());
        }
        check(
            request_ids
                .iter()
                .try_for_each(|id| validate::name("request id", id)),
        )?;
        let call = call::Call::SubscribeTasks(wire::SubscribeTasks { request_ids });
        let translate = |result: wire::TaskResult| TaskResult {
            request_id: result.request_id,
            succeeded: result.succeeded,
            result: result.result,
            failure: result.failure,
        };
        self.open_stream(attempt, call, Reply::TaskResults, translate)
            .await
    }

    async fn send_channel_message(
        &self,
        request: Request<SendChannelMessageRequest>,
    ) -> Result<Response<Empty>, Status> {
        let SendChannelMessageRequest {
            attempt_id,
            request_id,
            payload,
        } = request.into_inner();
        check(validate::opaque("channel message", &payload))?;
        if !request_id.is_empty() {
            check(validate::name("request id", &request_id))?;
        }
        let call = call::Call::SendChannelMessage(wire::SendChannelMessage {
            request_id,
            payload,
            // Set where its attempt's messages are counted.
            number: 0,
        });
        self.call(attempt_id, call).await?;
        Ok(Response::new(Empty {}))
    }

    async fn read_channel(
        &self,
        request: Request<ReadChannelRequest>,
    ) -> Result<Response<Self::ReadChannelStream>, Status> {
        let ReadChannelRequest {
            attempt_id: attempt,
            request_id,
            start_offset,
        } = request.into_inner();
        check(validate::name("request id", &request_id))?;
        let call = call::Call::ReadChannel(wire::ReadChannel {
            request_id,
            start_offset,
        });
        let translate = |message: wire::ChannelMessage| ChannelMessage {
            offset: message.offset,
            payload: message.payload,
            end_of_channel: message.end_of_channel,
        };
        self.open_stream(attempt, call, Reply::ChannelMessages, translate)
            .await
    }

    async fn put_artifact(
        &self,
        request: Request<PutArtifactRequest>,
    ) -> Result<Response<ArtifactInfo>, Status> {
        let PutArtifactRequest {
            attempt_id,
            name,
            path,
        } = request.into_inner();
        check(validate::name("artifact", &name))?;
        let view = self.view(attempt_id).await?;
        let path = check(validate::file_inside(
            &view.folder.path(),
            &name,
            Path::new(&path),
        ))?;
        let storing = transfer::store_one(&*self.store, &view.artifact_prefix, &view.folder, &name, path);
        let artifact = Self::unless_stopped(&view, storing).await?;
        self.metrics.uploaded_bytes.inc_by(artifact.size_bytes);
        let call = call::Call::BindArtifact(wire::BindArtifact {
            artifact: Some(artifact),
        });
        Ok(Response::new(info(bound(self.call(attempt_id, call).await?)?)))
    }

    async fn get_artifact(
        &self,
        request: Request<GetArtifactRequest>,
    ) -> Result<Response<GetArtifactResponse>, Status> {
        let GetArtifactRequest { attempt_id, name } = request.into_inner();
        let view = self.view(attempt_id).await?;
        let artifact = self.resolve(attempt_id, &name).await?;
        let getting = transfer::get_one(&*self.store, &artifact, view.folder.clone(), &name);
        let path = Self::unless_stopped(&view, getting).await?;
        self.metrics.fetched_bytes.inc_by(artifact.size_bytes);
        let path = path.to_string_lossy().into_owned();
        Ok(Response::new(GetArtifactResponse {
            path,
            info: Some(info(artifact)),
        }))
    }

    async fn stat_artifact(
        &self,
        request: Request<StatArtifactRequest>,
    ) -> Result<Response<ArtifactInfo>, Status> {
        let StatArtifactRequest { attempt_id, name } = request.into_inner();
        Ok(Response::new(info(self.resolve(attempt_id, &name).await?)))
    }

    async fn delete_artifacts(
        &self,
        request: Request<DeleteArtifactsRequest>,
    ) -> Result<Response<Empty>, Status> {
        let DeleteArtifactsRequest { attempt_id, names } = request.into_inner();
        check(names.iter().try_for_each(|name| validate::name("artifact", name)))?;
        let call = call::Call::DeleteArtifacts(wire::DeleteArtifacts { names });
        self.call(attempt_id, call).await?;
        Ok(Response::new(Empty {}))
    }

    async fn add_reference(&self, request: Request<ReferenceRequest>) -> Result<Response<Empty>, Status> {
        let ReferenceRequest {
            attempt_id,
            name,
            reference,
        } = request.into_inner();
        check(validate::name("artifact", &name))?;
        check(validate::name("reference", &reference))?;
        let call = call::Call::AddReference(wire::AddReference { name, reference });
        self.call(attempt_id, call).await?;
        Ok(Response::new(Empty {}))
    }

    async fn remove_reference(
        &self,
        request: Request<ReferenceRequest>,
    ) -> Result<Response<RemoveReferenceResponse>, Status> {
        let ReferenceRequest {
            attempt_id,
            name,
            reference,
        } = request.into_inner();
        check(validate::name("artifact", &name))?;
        check(validate::name("reference", &reference))?;
        let call = call::Call::RemoveReference(wire::RemoveReference { name, reference });
        let answer = self.call(attempt_id, call).await?;
        Ok(Response::new(RemoveReferenceResponse {
            dropped: answer.dropped,
        }))
    }

    async fn acquire_permit(
        &self,
        request: Request<AcquirePermitRequest>,
    ) -> Result<Response<Empty>, Status> {
        let AcquirePermitRequest {
            attempt_id,
            name,
            bytes,
        } = request.into_inner();
        check(validate::name("artifact", &name))?;
        let call = call::Call::AcquirePermit(wire::AcquirePermit { name, bytes });
        self.call(attempt_id, call).await?;
        Ok(Response::new(Empty {}))
    }
}

/// Passes the events of a session on to the agent's loop, and notes when the child was heard.
async fn pass_on(
    slot: usize,
    mut events: Streaming<BackendEvent>,
    to: mpsc::Sender<Event>,
    heard: LastHeard,
) {
    loop {
        let event = match events.message().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(slot, %status, "the session of a backend broke");
                return;
            }
        };
        heard.now();
        if matches!(event.event, None | Some(protocol::backend_event::Event::Pulse(_))) {
            continue;
        }
        if to
            .send(Event::Child {
                slot,
                news: ChildNews::Event(Box::new(event)),
            })
            .await
            .is_err()
        {
            return;
        }
        heard.now();
    }
}
