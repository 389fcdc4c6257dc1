//! A scene: a random namespace with credentials of MinIO and a prefix of its own in the bucket, and what happens to it
//! at the end: checked for leaks and removed, or, when the test failed, dumped.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime};

use prover_e2e::workspace;
use serde_json::{Value, json};

use super::kubectl::{self, apply, get, kubectl, list, try_kubectl};
use super::steps::{await_rollout, eventually};
use super::store;

/// Scenes that take something from the whole cluster (operator, MinIO, API server) are alone in it.
static CLUSTER: RwLock<()> = RwLock::new(());

/// From the start of the API server to its first answer.
const API_SERVER_BACK: Duration = Duration::from_secs(60);
/// How long a namespace may take to go: workers drain, then their pods end.
const NAMESPACE_GONE: Duration = Duration::from_secs(120);

enum Turn {
    Shared { _turn: RwLockReadGuard<'static, ()> },
    Alone { _turn: RwLockWriteGuard<'static, ()> },
}

/// A random namespace, and the prefix of the same name in the bucket.
pub(crate) struct Scene {
    test: String,
    name: String,
    namespaces: Vec<String>,
    begun: Instant,
    _turn: Turn,
}

impl Scene {
    /// A scene beside others.
    pub(crate) fn new(test: &str) -> Self {
        Self::begin(
            test,
            Turn::Shared {
                _turn: CLUSTER.read().unwrap_or_else(PoisonError::into_inner),
            },
        )
    }

    /// A scene that others would suffer from, or that would suffer from others.
    pub(crate) fn alone(test: &str) -> Self {
        Self::begin(
            test,
            Turn::Alone {
                _turn: CLUSTER.write().unwrap_or_else(PoisonError::into_inner),
            },
        )
    }

    fn begin(test: &str, turn: Turn) -> Self {
        await_operator();
        let name = format!("e2e-{test}-{}", random());
        let mut scene = Scene {
            test: test.to_owned(),
            name: name.clone(),
            namespaces: Vec::new(),
            begun: Instant::now(),
            _turn: turn,
        };
        scene.add_namespace(&name);
        apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "minio", "namespace": name},
            "data": store::credentials(),
        }));
        scene
    }

    /// One more namespace, of this scene only, whose name ends with `suffix`.
    pub(crate) fn another_namespace(&mut self, suffix: &str) -> String {
        let name = format!("{}-{suffix}", self.name);
        self.add_namespace(&name);
        name
    }

    fn add_namespace(&mut self, name: &str) {
        apply(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"proving.rs/e2e": self.name}},
        }));
        self.namespaces.push(name.to_owned());
    }

    /// The first namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.name
    }

    /// Label of all namespaces of the scene: `proving.rs/e2e`.
    pub(crate) fn label(&self) -> &str {
        &self.name
    }

    /// Keys of the scene in the bucket, without its prefix.
    pub(crate) fn keys(&self) -> Vec<String> {
        let prefix = format!("{}/", self.name);
        let keys = store::keys(&prefix);
        keys.iter()
            .map(|key| key.trim_start_matches(&prefix).to_owned())
            .collect()
    }

    /// Keys of the scene's jobs in the bucket.
    pub(crate) fn keys_of_jobs(&self) -> Vec<String> {
        let mut keys = self.keys();
        keys.retain(|key| key.starts_with("jobs/"));
        keys
    }

    /// Ends the scene: everything in it is deleted, and must go.
    pub(crate) fn finish(mut self) {
        if keep() {
            return;
        }
        let proved = self.begun.elapsed();
        for namespace in &self.namespaces {
            // Jobs first, as a user would: their cluster is still there to collect what they left.
            kubectl(&[
                "delete",
                "proofjobs",
                "--all",
                "--namespace",
                namespace,
                "--wait=false",
            ]);
        }
        for namespace in &self.namespaces {
            kubectl(&[
                "delete",
                "namespace",
                namespace,
                "--wait=false",
                "--ignore-not-found",
            ]);
        }
        for namespace in std::mem::take(&mut self.namespaces) {
            kubectl::await_gone(&namespace, "namespace", &namespace, NAMESPACE_GONE);
        }
        self.note(&format!(
            "{:6.1} s, and {:5.1} s to remove it",
            proved.as_secs_f64(),
            (self.begun.elapsed() - proved).as_secs_f64()
        ));
    }

    /// Adds a line to the file of the run's times, which the script that runs all scenes shows at its end.
    pub(crate) fn note(&self, took: &str) {
        let Some(path) = std::env::var_os("E2E_TIMES") else {
            return;
        };
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| writeln!(file, "{took}  {}", self.test))
            .expect("the file of times can be written");
    }

    /// Writes objects, events and logs of the scene's namespaces and of the operator to a folder, and says where.
    fn dump(&self) {
        let folder = dump_folder().join(&self.name);
        std::fs::create_dir_all(&folder).expect("a folder for dumps");
        let mut namespaces = self.namespaces.clone();
        namespaces.push(OPERATOR_NAMESPACE.to_owned());
        for namespace in &namespaces {
            let write = |name: &str, arguments: &[&str]| {
                let mut all = arguments.to_vec();
                all.extend(["--namespace", namespace]);
                let output = try_kubectl(&all);
                let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
                text += &String::from_utf8_lossy(&output.stderr);
                std::fs::write(folder.join(format!("{namespace}.{name}")), text).expect("a dump");
            };
            // Not Secrets: dumps are shown to others.
            let kinds = "proverclusters,proofjobs,all,configmaps,poddisruptionbudgets,networkpolicies,leases,\
                         serviceaccounts,roles,rolebindings";
            write("objects.yaml", &["get", kinds, "--output", "yaml"]);
            write(
                "events",
                &["get", "events", "--sort-by", ".metadata.creationTimestamp"],
            );
            write("describe", &["describe", "proverclusters,proofjobs,pods"]);
            for pod in list(namespace, "pods", "") {
                let pod = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let arguments = [
                    "logs",
                    &pod,
                    "--all-containers",
                    "--prefix",
                    "--timestamps",
                    "--tail",
                    "2000",
                ];
                write(&format!("{pod}.log"), &arguments);
            }
        }
        let mut summary = String::new();
        for namespace in &self.namespaces {
            let text = kubectl(&[
                "get",
                "proverclusters,proofjobs,pods",
                "--namespace",
                namespace,
                "--output",
                "wide",
            ]);
            let _ = writeln!(summary, "{namespace}:\n{text}");
        }
        eprintln!("{summary}\nobjects, events and logs: {}", folder.display());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // Whatever fails here must not hide why the test failed.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.dump()));
        if keep() {
            eprintln!("kept: {}", self.namespaces.join(" "));
            return;
        }
        for namespace in &self.namespaces {
            let _ = try_kubectl(&["delete", "namespace", namespace, "--wait=false"]);
        }
    }
}

/// Namespace in which `make cluster-install` puts the operator.
pub(crate) const OPERATOR_NAMESPACE: &str = "prover-system";
/// Its Deployment.
pub(crate) const OPERATOR: &str = "prover-operator";

/// Waits until the operator is there and as many of its replicas as wanted are ready.
pub(crate) fn await_operator() {
    assert!(
        get(OPERATOR_NAMESPACE, "deployment", OPERATOR).is_some(),
        "the operator is not installed: run `make cluster-up cluster-install`"
    );
    await_rollout(OPERATOR_NAMESPACE, OPERATOR);
}

/// Waits until the API server answers again.
pub(crate) fn await_api_server() {
    eventually(API_SERVER_BACK, || {
        let output = try_kubectl(&["get", "--raw", "/readyz"]);
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
}

/// A status of an object, as kubectl gives it.
pub(crate) fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == type_)
}

/// Whether a condition of an object is true.
pub(crate) fn is_true(object: &Value, type_: &str) -> bool {
    condition(object, type_).is_some_and(|condition| condition["status"] == "True")
}

fn keep() -> bool {
    std::env::var("E2E_KEEP").is_ok_and(|keep| keep == "1")
}

fn dump_folder() -> PathBuf {
    std::env::var_os("E2E_DUMPS").map_or_else(|| workspace().join("target/e2e-dumps"), PathBuf::from)
}

fn random() -> String {
    let nanoseconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos();
    format!(
        "{:05x}",
        (nanoseconds ^ std::process::id().rotate_left(7)) & 0xf_ffff
    )
}

/// Some time up to a limit. What follows happens at a moment of its own in every run; the time is told, since it is of
/// interest where a run fails.
pub(crate) fn random_pause(limit: Duration) -> Duration {
    let nanoseconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos();
    let pause = limit.mul_f64(f64::from(nanoseconds % 1_000_000) / 1e6);
    eprintln!("a pause of {pause:?}");
    pause
}
