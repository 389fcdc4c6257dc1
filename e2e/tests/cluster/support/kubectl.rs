//! kubectl as users have it: every step of a scenario is a command that could be typed.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use prover_e2e::workspace;
use serde_json::Value;

/// Longest time of a command that waits for nothing.
const COMMAND_LIMIT: &str = "60s";

/// Folder of the test cluster, as `e2e/cluster/settings.sh` chooses it.
pub(crate) fn cluster_directory() -> PathBuf {
    std::env::var_os("PROVER_CLUSTER_DIRECTORY").map_or_else(|| cache().join("cluster"), PathBuf::from)
}

fn cache() -> PathBuf {
    std::env::var_os("PROVER_OPERATOR_CACHE").map_or_else(
        || {
            let home = std::env::var_os("HOME").expect("HOME is set");
            PathBuf::from(home).join(".cache/prover-operator")
        },
        PathBuf::from,
    )
}

fn kubeconfig() -> PathBuf {
    let own = cluster_directory().join("admin.kubeconfig");
    let path = if std::env::var("PROVER_CLUSTER").is_ok_and(|mode| mode == "existing") {
        PathBuf::from(std::env::var_os("KUBECONFIG").expect("PROVER_CLUSTER=existing needs KUBECONFIG"))
    } else {
        own
    };
    assert!(
        path.is_file(),
        "{} is missing: run `make cluster-up cluster-install`",
        path.display()
    );
    path
}

/// A kubectl of the cluster under test.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let version = std::fs::read_to_string(workspace().join("e2e/tools/kubernetes/go.mod")).unwrap();
    let version = version
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"))
        .expect("e2e/tools/kubernetes/go.mod requires k8s.io/kubernetes")
        .split(' ')
        .next()
        .unwrap();
    let program = cache().join(format!("kubernetes-v{version}/kubectl"));
    assert!(
        program.is_file(),
        "{} is missing: run `make cluster-up`",
        program.display()
    );
    let mut command = Command::new(program);
    command
        .arg("--kubeconfig")
        .arg(kubeconfig())
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Runs a command and gives its output, whatever its exit code.
pub(crate) fn try_kubectl(arguments: &[&str]) -> Output {
    command(arguments)
        .arg("--request-timeout")
        .arg(COMMAND_LIMIT)
        .output()
        .expect("kubectl can be started")
}

/// Runs a command that must succeed and gives what it printed.
///
/// # Panics
/// It fails.
pub(crate) fn kubectl(arguments: &[&str]) -> String {
    let output = try_kubectl(arguments);
    assert!(
        output.status.success(),
        "kubectl {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("kubectl prints UTF-8")
}

/// An object, none where there is none.
pub(crate) fn get(namespace: &str, kind: &str, name: &str) -> Option<Value> {
    let text = kubectl(&[
        "get",
        kind,
        name,
        "--namespace",
        namespace,
        "--ignore-not-found",
        "--output",
        "json",
    ]);
    (!text.trim().is_empty()).then(|| serde_json::from_str(&text).expect("kubectl prints JSON"))
}

/// The objects of a kind, those that carry the labels of `selector` (all where it is empty).
pub(crate) fn list(namespace: &str, kind: &str, selector: &str) -> Vec<Value> {
    let text = kubectl(&[
        "get",
        kind,
        "--namespace",
        namespace,
        "--selector",
        selector,
        "--output",
        "json",
    ]);
    let list: Value = serde_json::from_str(&text).expect("kubectl prints JSON");
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Applies a manifest as users do, with kubectl's own field manager on the server's side; gives what was refused.
pub(crate) fn try_apply(manifest: &Value) -> Result<Value, String> {
    let mut child = command(&["apply", "--server-side", "--output", "json", "--filename", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl can be started");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(manifest.to_string().as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).expect("kubectl prints JSON"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Applies a manifest that must be taken.
///
/// # Panics
/// It is refused.
pub(crate) fn apply(manifest: &Value) -> Value {
    try_apply(manifest).unwrap_or_else(|refusal| panic!("kubectl apply: {refusal}\n{manifest:#}"))
}

/// Merges a patch into an object.
pub(crate) fn patch(namespace: &str, kind: &str, name: &str, patch: &Value) {
    let patch = patch.to_string();
    kubectl(&[
        "patch",
        kind,
        name,
        "--namespace",
        namespace,
        "--type",
        "merge",
        "--patch",
        &patch,
    ]);
}

/// Watches the objects of a kind until the predicate holds for one of them, and gives that one.
///
/// # Panics
/// It does not hold within `limit`: the message says `what` was awaited and what was seen last.
pub(crate) fn await_object(
    namespace: &str,
    kind: &str,
    selector: &[&str],
    what: &str,
    limit: Duration,
    mut holds: impl FnMut(&Value) -> bool,
) -> Value {
    let give_up = Instant::now() + limit;
    let mut last = None;
    while Instant::now() < give_up {
        let mut arguments = vec![
            "get",
            kind,
            "--namespace",
            namespace,
            "--watch",
            "--output",
            "json",
        ];
        arguments.extend(selector);
        let found = watch_once(&arguments, give_up, |object| {
            let good = holds(object);
            last = Some(object.clone());
            good
        });
        if let Some(found) = found {
            return found;
        }
    }
    let last = last.map_or("no object at all".to_owned(), |object| {
        format!("{}\nstatus: {:#}", object["metadata"]["name"], object["status"])
    });
    panic!("{what}: not within {limit:?} ({kind} in {namespace}). Last seen: {last}");
}

/// One watch: ends when the predicate holds, the time is over, or the API server ends it.
fn watch_once(arguments: &[&str], give_up: Instant, mut holds: impl FnMut(&Value) -> bool) -> Option<Value> {
    let mut child = command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("kubectl can be started");
    let stdout = child.stdout.take().unwrap();
    let (sender, objects) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let stream =
            serde_json::Deserializer::from_reader(std::io::BufReader::new(stdout)).into_iter::<Value>();
        for object in stream.map_while(Result::ok) {
            if sender.send(object).is_err() {
                break;
            }
        }
    });
    let found = loop {
        match objects.recv_timeout(give_up.saturating_duration_since(Instant::now())) {
            Ok(object) if holds(&object) => break Some(object),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break None,
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    drop(objects);
    let _ = reader.join();
    found
}

/// Waits until an object of this name fulfils the predicate, and gives it.
pub(crate) fn await_named(
    namespace: &str,
    kind: &str,
    name: &str,
    what: &str,
    limit: Duration,
    holds: impl FnMut(&Value) -> bool,
) -> Value {
    let field = format!("metadata.name={name}");
    await_object(namespace, kind, &["--field-selector", &field], what, limit, holds)
}

/// Waits until an object is gone.
pub(crate) fn await_gone(namespace: &str, kind: &str, name: &str, limit: Duration) {
    let timeout = format!("--timeout={}s", limit.as_secs());
    let output = command(&[
        "wait",
        "--for=delete",
        kind,
        name,
        "--namespace",
        namespace,
        &timeout,
    ])
    .output()
    .expect("kubectl can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() || said.contains("not found"),
        "{kind} {name} in {namespace} is still there after {limit:?}: {said}"
    );
}
