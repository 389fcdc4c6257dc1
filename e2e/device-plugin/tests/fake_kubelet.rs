//! The plugin against a kubelet's end of the protocol, on real sockets in a temporary folder.

#![allow(clippy::unwrap_used)]

use simulated_device_plugin::api::device_plugin_client::DevicePluginClient;
use simulated_device_plugin::api::registration_server::{Registration, RegistrationServer};
use simulated_device_plugin::api::{
    AllocateRequest, ContainerAllocateRequest, Empty, ListAndWatchResponse, RegisterRequest,
};
use simulated_device_plugin::{Devices, Plugin, SIMULATED_VARIABLE, serve};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

struct FakeKubelet {
    registrations: mpsc::UnboundedSender<RegisterRequest>,
}

#[tonic::async_trait]
impl Registration for FakeKubelet {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let _ = self.registrations.send(request.into_inner());
        Ok(Response::new(Empty {}))
    }
}

/// Does what a kubelet does at its start: removes the sockets of its folder, then makes its own.
fn start_kubelet(folder: &Path) -> (JoinHandle<()>, mpsc::UnboundedReceiver<RegisterRequest>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "sock")
        {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let listener = UnixListener::bind(folder.join("kubelet.sock")).unwrap();
    let (registrations, received) = mpsc::unbounded_channel();
    let server = Server::builder()
        .add_service(RegistrationServer::new(FakeKubelet { registrations }))
        .serve_with_incoming(UnixListenerStream::new(listener));
    (tokio::spawn(async move { server.await.unwrap() }), received)
}

fn plugin(folder: &Path, count: usize) -> Plugin {
    Plugin {
        directory: folder.to_owned(),
        endpoint: "simulated.sock".into(),
        resource: "nvidia.com/gpu".into(),
        devices: Devices::new(count).unwrap(),
        unhealthy_file: folder.join("unhealthy"),
    }
}

async fn connect(socket: PathBuf) -> DevicePluginClient<Channel> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            UnixStream::connect(socket)
                .await
                .map(hyper_util::rt::TokioIo::new)
        }
    });
    let channel = Endpoint::from_static("http://plugin.invalid")
        .connect_with_connector(connector)
        .await
        .unwrap();
    DevicePluginClient::new(channel)
}

async fn next_health(stream: &mut Streaming<ListAndWatchResponse>) -> Vec<String> {
    let answer = tokio::time::timeout(PATIENCE, stream.message())
        .await
        .expect("a list of devices")
        .unwrap()
        .unwrap();
    answer.devices.into_iter().map(|device| device.health).collect()
}

async fn next_registration(received: &mut mpsc::UnboundedReceiver<RegisterRequest>) -> RegisterRequest {
    tokio::time::timeout(PATIENCE, received.recv())
        .await
        .expect("a registration")
        .unwrap()
}

#[tokio::test]
async fn a_kubelet_learns_the_devices_their_health_and_what_containers_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (_kubelet, mut registrations) = start_kubelet(folder.path());
    let running = tokio::spawn(serve(plugin(folder.path(), 2)));
    let registration = next_registration(&mut registrations).await;
    assert_eq!(registration.version, "v1beta1");
    assert_eq!(registration.resource_name, "nvidia.com/gpu");

    let mut client = connect(folder.path().join(&registration.endpoint)).await;
    let mut list = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    assert_eq!(next_health(&mut list).await, ["Healthy", "Healthy"]);
    std::fs::write(folder.path().join("unhealthy"), "SIMULATED-0\n").unwrap();
    assert_eq!(next_health(&mut list).await, ["Unhealthy", "Healthy"]);
    std::fs::remove_file(folder.path().join("unhealthy")).unwrap();
    assert_eq!(next_health(&mut list).await, ["Healthy", "Healthy"]);

    let wish = |id: &str| AllocateRequest {
        container_requests: vec![ContainerAllocateRequest {
            devices_ids: vec![id.into()],
        }],
    };
    let given = client.allocate(wish("SIMULATED-1")).await.unwrap().into_inner();
    assert_eq!(
        given.container_responses[0].envs[SIMULATED_VARIABLE],
        "SIMULATED-1"
    );
    assert_eq!(
        client.allocate(wish("GPU-1")).await.unwrap_err().code(),
        tonic::Code::NotFound
    );
    running.abort();
}

#[tokio::test]
async fn a_restarted_kubelet_gets_a_new_registration_and_a_new_socket() {
    let folder = tempfile::tempdir().unwrap();
    let (first, mut registrations) = start_kubelet(folder.path());
    let running = tokio::spawn(serve(plugin(folder.path(), 1)));
    next_registration(&mut registrations).await;
    first.abort();

    let (_second, mut registrations) = start_kubelet(folder.path());
    let registration = next_registration(&mut registrations).await;
    let mut client = connect(folder.path().join(&registration.endpoint)).await;
    let mut list = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    assert_eq!(next_health(&mut list).await, ["Healthy"]);
    running.abort();
}

#[tokio::test]
async fn a_kubelet_that_comes_later_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let running = tokio::spawn(serve(plugin(folder.path(), 1)));
    // The plugin has tried and failed once its own socket is there.
    let own = folder.path().join("simulated.sock");
    tokio::time::timeout(PATIENCE, async {
        while !own.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the plugin's socket");
    let (_kubelet, mut registrations) = start_kubelet(folder.path());
    next_registration(&mut registrations).await;
    running.abort();
}
