//! A coordinator, seen from outside: its metrics, and calls by hand.

use std::process::Command;

use serde_json::Value;

use super::kubectl::{get, list};
use super::objects::CLUSTER;
use super::scene::{Scene, is_true};

/// The ready pods of the scene's coordinator.
pub(crate) fn pods(scene: &Scene) -> Vec<Value> {
    let selector = format!("proving.rs/cluster={CLUSTER},app.kubernetes.io/component=coordinator");
    let mut pods = list(scene.namespace(), "pods", &selector);
    pods.retain(|pod| is_true(pod, "Ready") && pod["metadata"]["deletionTimestamp"].is_null());
    pods
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
    let text = curl(&[&format!("http://{}:9090/metrics", address(scene))]);
    let prefix = format!("prover_coordinator_{name}");
    text.lines()
        .filter(|line| line.starts_with(&prefix))
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
