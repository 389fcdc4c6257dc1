//! A coordinator, seen from outside: its metrics, and calls by hand.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::kubectl::{get, list};
use super::objects::CLUSTER;
use super::scene::{Scene, is_true};
use super::steps::{eventually, name};

/// Between two looks where moments are measured.
const LOOK_CLOSELY: Duration = Duration::from_millis(50);

/// The ready pods of the scene's coordinator.
pub(crate) fn pods(scene: &Scene) -> Vec<Value> {
    let mut pods = all_pods(scene);
    pods.retain(|pod| is_true(pod, "Ready") && pod["metadata"]["deletionTimestamp"].is_null());
    pods
}

fn all_pods(scene: &Scene) -> Vec<Value> {
    let selector = format!("proving.rs/cluster={CLUSTER},app.kubernetes.io/component=coordinator");
    list(scene.namespace(), "pods", &selector)
}

/// The coordinator that leads: its pod by its label, its epoch by the status of its ProverCluster.
#[derive(Debug)]
pub(crate) struct Leader {
    /// Its pod.
    pub(crate) pod: Value,
    /// Its epoch in the log.
    pub(crate) epoch: u64,
}

impl Leader {
    /// The name of its pod.
    pub(crate) fn name(&self) -> &str {
        name(&self.pod)
    }

    /// None where nobody carries the label, or more than one as during a change.
    fn of(scene: &Scene) -> Option<Leader> {
        let selector = format!("proving.rs/cluster={CLUSTER},proving.rs/role=leader");
        let mut labelled = list(scene.namespace(), "pods", &selector);
        let pod = labelled.pop().filter(|_| labelled.is_empty())?;
        let cluster = get(scene.namespace(), "provercluster", CLUSTER)?;
        let epoch = cluster["status"]["coordinator"]["epoch"].as_u64()?;
        Some(Leader { pod, epoch })
    }
}

/// Waits until everybody is told of a leader of at least this epoch.
///
/// # Panics
/// There is none within `limit`.
pub(crate) fn await_leader(scene: &Scene, least: u64, limit: Duration) -> Leader {
    let mut found = None;
    eventually(limit, || match Leader::of(scene) {
        Some(leader) if leader.epoch >= least => {
            found = Some(leader);
            Ok(())
        }
        other => Err(format!("{other:?} leads, and not one of epoch {least} or more")),
    });
    found.expect("it was waited for")
}

/// Waits until a coordinator says itself that it leads in a later epoch, which is long before the status of its
/// ProverCluster tells of it.
///
/// # Panics
/// None does within `limit`.
pub(crate) fn await_lead(scene: &Scene, before: &Leader, limit: Duration) -> Leader {
    // Also those that are not ready: a process that was killed may be the next leader.
    let mut pods = all_pods(scene);
    // One that was stopped keeps whoever asks it waiting.
    pods.sort_by_key(|pod| name(pod) == before.name());
    let give_up = Instant::now() + limit;
    loop {
        for pod in &pods {
            let epoch = pod["status"]["podIP"].as_str().and_then(epoch_at);
            if let Some(epoch) = epoch.filter(|epoch| *epoch > before.epoch) {
                return Leader {
                    pod: pod.clone(),
                    epoch,
                };
            }
        }
        let names: Vec<&str> = pods.iter().map(name).collect();
        assert!(
            Instant::now() < give_up,
            "after {limit:?} none of {names:?} leads"
        );
        std::thread::sleep(LOOK_CLOSELY);
    }
}

/// The epoch of a coordinator that leads; none where it follows or does not answer.
fn epoch_at(address: &str) -> Option<u64> {
    let asking = ["--silent", "--noproxy", "*", "--max-time", "0.5"];
    let output = Command::new("curl")
        .args(asking)
        .arg(format!("http://{address}:9090/role"))
        .output()
        .expect("curl can be started");
    let role = String::from_utf8_lossy(&output.stdout);
    role.trim().strip_prefix("leads ")?.parse().ok()
}

/// Attempts that a coordinator has sent to workers since it leads.
pub(crate) fn assignments_of(leader: &Leader) -> f64 {
    pod_metric(&leader.pod, "prover_coordinator_assignments_total")
}

fn address(scene: &Scene) -> String {
    let pods = pods(scene);
    let address = pods.first().and_then(|pod| pod["status"]["podIP"].as_str());
    address.expect("a ready coordinator has an address").to_owned()
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20"])
        .args(arguments)
        .output()
        .expect("curl can be started");
    assert!(
        output.status.success(),
        "curl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The sum of the metrics whose line begins with this, after `prover_coordinator_`.
pub(crate) fn metric(scene: &Scene, name: &str) -> f64 {
    metric_at(&address(scene), &format!("prover_coordinator_{name}"))
}

/// The sum of an agent's metrics whose line begins with this, after `prover_agent_`.
pub(crate) fn worker_metric(pod: &Value, name: &str) -> f64 {
    pod_metric(pod, &format!("prover_agent_{name}"))
}

fn pod_metric(pod: &Value, prefix: &str) -> f64 {
    let address = pod["status"]["podIP"].as_str();
    metric_at(address.expect("a running pod has an address"), prefix)
}

fn metric_at(address: &str, prefix: &str) -> f64 {
    let text = curl(&[&format!("http://{address}:9090/metrics")]);
    text.lines()
        .filter(|line| line.starts_with(prefix))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// A method of the coordinator.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    /// The stream of a worker. Whoever is not let in is told so before the first message.
    Session,
    /// The stream for the operator, which begins with its request.
    Watch,
}

/// Calls a method of the coordinator over TLS without a token; gives the headers of the answer.
pub(crate) fn call_without_token(scene: &Scene, method: Method) -> String {
    let bundle = get(scene.namespace(), "configmap", &format!("{CLUSTER}-ca")).expect("the cluster's bundle");
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca.crt");
    std::fs::write(&authority, bundle["data"]["ca.crt"].as_str().unwrap_or_default()).unwrap();
    // A message in gRPC's framing: not compressed, of no bytes.
    let message = folder.path().join("message");
    std::fs::write(&message, [0; 5]).unwrap();
    let data = format!("@{}", message.display());
    let (path, body) = match method {
        Method::Session => ("proving.worker.v1.WorkerPlane/Session", ["--request", "POST"]),
        Method::Watch => (
            "proving.operator.v1.OperatorPlane/Watch",
            ["--data-binary", &data],
        ),
    };
    let resolve = format!("coordinator.proving.rs:7000:{}", address(scene));
    let url = format!("https://coordinator.proving.rs:7000/{path}");
    let mut arguments = vec![
        "--http2",
        "--cacert",
        authority.to_str().unwrap(),
        "--resolve",
        &resolve,
    ];
    arguments.extend([
        "--header",
        "content-type: application/grpc",
        "--header",
        "te: trailers",
    ]);
    arguments.extend(body);
    arguments.extend(["--dump-header", "-", &url]);
    curl(&arguments)
}
