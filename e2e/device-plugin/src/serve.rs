//! The plugin's side of the kubelet's protocol: serve a socket, register it, and do both again when the kubelet restarts.
//!
//! Owns the socket and the registration. Does not decide what a device is: see `devices`.

use crate::Devices;
use crate::api::device_plugin_server::{DevicePlugin, DevicePluginServer};
use crate::api::registration_client::RegistrationClient;
use crate::api::{
    AllocateRequest, AllocateResponse, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, RegisterRequest,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use hyper_util::rt::TokioIo;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

/// Version of the API that is spoken.
const API_VERSION: &str = "v1beta1";
/// How often the sockets and the file of unhealthy devices are looked at: a kubelet that restarts removes all sockets
/// of its folder, and has no other way to tell.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the kubelet may take to answer a registration.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// What is offered, and where.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// Folder of the kubelet's socket `kubelet.sock`, in which the plugin's own is made.
    pub directory: PathBuf,
    /// File name of the plugin's socket.
    pub endpoint: String,
    /// Such as `nvidia.com/gpu`.
    pub resource: String,
    /// The devices, all healthy.
    pub devices: Devices,
    /// File that names unhealthy devices, one id a line; where there is none, all are healthy.
    pub unhealthy_file: PathBuf,
}

/// Why the plugin can't serve or register.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The plugin's socket can't be made.
    #[error("make the socket {path}: {source}")]
    Bind {
        /// Of the socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kubelet's socket does not answer.
    #[error("reach the kubelet at {path}: {source}")]
    Reach {
        /// Of the kubelet's socket.
        path: PathBuf,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// The kubelet refused the registration.
    #[error("register {resource}: {source}")]
    Register {
        /// That was offered.
        resource: String,
        /// What the kubelet said.
        source: Box<Status>,
    },
}

/// Which file a path names: another one under the same name has another inode or another time of change.
type Identity = (u64, i64, i64);

fn identity(path: &Path) -> Option<Identity> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.ctime(), found.ctime_nsec()))
}

/// Serves and registers until the process is stopped. A kubelet that is absent or restarts is waited for.
pub async fn serve(plugin: Plugin) {
    let mut last_failure = String::new();
    loop {
        match serve_until_replaced(&plugin).await {
            Ok(()) => {
                last_failure.clear();
                tracing::info!("the kubelet restarted: registering again");
            }
            Err(error) => {
                let failure = error.to_string();
                // Said once, not twice a second, while a kubelet is away.
                if failure != last_failure {
                    tracing::warn!("{failure}");
                    last_failure = failure;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// One registration: ends when the kubelet's socket or ours is another one or gone.
async fn serve_until_replaced(plugin: &Plugin) -> Result<(), PluginError> {
    let kubelet = plugin.directory.join("kubelet.sock");
    let own = plugin.directory.join(&plugin.endpoint);
    let registered_with = identity(&kubelet);
    let _ = std::fs::remove_file(&own);
    let listener = UnixListener::bind(&own).map_err(|source| PluginError::Bind {
        path: own.clone(),
        source,
    })?;
    let registered_as = identity(&own);
    let (devices, watched) = watch::channel(plugin.devices.clone());
    let service = DevicePluginServer::new(Service { devices: watched });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
                let _ = stopped.await;
            }),
    );
    let outcome = match register(plugin, &kubelet).await {
        Ok(()) => {
            tracing::info!(
                resource = plugin.resource,
                devices = plugin.devices.list().len(),
                "registered SIMULATED devices"
            );
            while registered_with == identity(&kubelet) && registered_as == identity(&own) {
                let text = std::fs::read_to_string(&plugin.unhealthy_file).unwrap_or_default();
                let now = plugin.devices.with_unhealthy(&text);
                devices.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(())
        }
        Err(error) => Err(error),
    };
    // The streams end with the devices, so the server needs no further wait.
    drop(devices);
    let _ = stop.send(());
    server.abort();
    outcome
}

async fn register(plugin: &Plugin, kubelet: &Path) -> Result<(), PluginError> {
    let path = kubelet.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The connector decides where to; the address only fills in the header.
    let channel = tonic::transport::Endpoint::from_static("http://kubelet.invalid")
        .timeout(REGISTER_TIMEOUT)
        .connect_with_connector(connector)
        .await
        .map_err(|source| PluginError::Reach {
            path: kubelet.to_owned(),
            source,
        })?;
    let request = RegisterRequest {
        version: API_VERSION.to_owned(),
        endpoint: plugin.endpoint.clone(),
        resource_name: plugin.resource.clone(),
        options: Some(DevicePluginOptions::default()),
    };
    RegistrationClient::new(channel)
        .register(request)
        .await
        .map(drop)
        .map_err(|status| PluginError::Register {
            resource: plugin.resource.clone(),
            source: Box::new(status),
        })
}

struct Service {
    devices: watch::Receiver<Devices>,
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let changes = WatchStream::new(self.devices.clone());
        let answers = changes.map(|devices| {
            Ok(ListAndWatchResponse {
                devices: devices.list(),
            })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let devices = self.devices.borrow().clone();
        let container_responses = request
            .into_inner()
            .container_requests
            .iter()
            .map(|container| {
                devices
                    .allocate(&container.devices_ids)
                    .map_err(Status::not_found)
            })
            .collect::<Result<_, _>>()?;
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented("simulated devices are all alike"))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
