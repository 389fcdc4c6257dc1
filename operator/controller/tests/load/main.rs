//! The operator under load, as a process of its own on a real kube-apiserver: how much memory it holds and how much it
//! asks for while nothing changes, at 100 ProverClusters and 10,000 ProofJobs.
//!
//! `PROVER_LOAD_CLUSTERS` and `PROVER_LOAD_JOBS` choose other numbers; the bounds stay.

#[path = "../../../../crds/tests/api_server/kubernetes.rs"]
mod kubernetes;

use std::fs;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use kubernetes::Kubernetes;
use prometheus::Registry;
use prover_controller::Settings;
use prover_controller::run::{Operator, connect, reconcile_prover_clusters, run};
use prover_crds::{ProofJob, ProverCluster, names};
use prover_runtime::{Observation, SystemClock};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// What the operator may hold.
const MOST_MEMORY_KIB: u64 = 200 << 10;
/// What it may ask per second while nothing changes: the Lease, read and written every two seconds; the watches that are
/// opened again; tokens and connections of coordinators that are not there.
const MOST_REQUESTS_PER_SECOND: f64 = 3.0;
const QUIET: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(400);
const NAMESPACES: usize = 10;
const CONCURRENCY: usize = 24;
/// Marks the process that is the operator.
const CHILD: &str = "PROVER_LOAD_OPERATOR";
/// As much as a job may carry.
const PROGRAM_BYTES: usize = 4 << 10;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    if std::env::var_os(CHILD).is_some() {
        runtime.block_on(operate());
    } else {
        runtime.block_on(measure());
    }
}

/// The operator, with everything that the real one does.
async fn operate() {
    let registry = Registry::new();
    let operator = Operator {
        client: connect().await.expect("a kubeconfig"),
        settings: Settings {
            namespace: "operator".to_owned(),
            service_account: names::PROJECT.to_owned(),
            pod: "prover-operator-0".to_owned(),
            coordinator_image: "operator".to_owned(),
            worker_image: "worker".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            watch_namespaces: Vec::new(),
        },
        observation: Observation::new(registry.clone()),
        registry,
        clock: Arc::new(SystemClock::new()),
        reconcile: reconcile_prover_clusters(),
    };
    run(operator, CancellationToken::new())
        .await
        .expect("the operator runs");
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn measure() {
    let (clusters, jobs) = (
        number("PROVER_LOAD_CLUSTERS", 100),
        number("PROVER_LOAD_JOBS", 10_000),
    );
    let kubernetes = Kubernetes::shared();
    let client = kubernetes.client().await;
    prepare(&client).await;
    let begin = Instant::now();
    create(&client, "proverclusters", (0..clusters).map(cluster).collect()).await;
    create(
        &client,
        "proofjobs",
        (0..jobs).map(|index| job(index, clusters)).collect(),
    )
    .await;
    println!(
        "created {clusters} ProverClusters and {jobs} ProofJobs in {:?}",
        begin.elapsed()
    );

    let begin = Instant::now();
    let executable = std::env::current_exe().expect("this program");
    let command = Command::new(executable)
        .env(CHILD, "1")
        .env("KUBECONFIG", kubernetes.kubeconfig())
        .spawn();
    let operator = Process(command.expect("the operator starts"));
    let peak_before = wait_until_looked_after(&client, &operator, clusters, jobs).await;
    println!(
        "all looked after {:?} after the start; memory so far at most {peak_before} KiB",
        begin.elapsed()
    );

    // Until the last events of its own writes have come back.
    let quiet_rate = quiet_rate(&client).await;
    let (now, peak) = memory(operator.0.id());
    println!("memory {now} KiB, at most {peak} KiB; {quiet_rate:.2} requests/s while nothing changes");
    assert!(
        peak <= MOST_MEMORY_KIB,
        "the operator held {peak} KiB: more than {MOST_MEMORY_KIB} KiB"
    );
    assert!(
        quiet_rate <= MOST_REQUESTS_PER_SECOND,
        "{quiet_rate} requests per second while nothing changes: more than {MOST_REQUESTS_PER_SECOND}"
    );
}

async fn prepare(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in [prover_crds::prover_cluster_crd(), prover_crds::proof_job_crd()] {
        let parameters = PatchParams::apply("test").force();
        api.patch(&definition.name_any(), &parameters, &Patch::Apply(&definition))
            .await
            .expect("a definition");
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in (0..NAMESPACES).map(namespace).chain(["operator".to_owned()]) {
        let object = serde_json::from_value(json!({ "metadata": { "name": name } })).expect("a namespace");
        namespaces
            .create(&PostParams::default(), &object)
            .await
            .expect("a namespace");
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "operator");
    let account =
        serde_json::from_value(json!({ "metadata": { "name": names::PROJECT } })).expect("an account");
    accounts
        .create(&PostParams::default(), &account)
        .await
        .expect("an account");
    let begin = Instant::now();
    while Api::<ProofJob>::all(client.clone())
        .list(&ListParams::default())
        .await
        .is_err()
        || Api::<ProverCluster>::all(client.clone())
            .list(&ListParams::default())
            .await
            .is_err()
    {
        assert!(begin.elapsed() < LIMIT, "the definitions are not served");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn namespace(index: usize) -> String {
    format!("team-{}", index % NAMESPACES)
}

fn cluster(index: usize) -> Value {
    json!({
        "apiVersion": "proving.rs/v1alpha1", "kind": "ProverCluster",
        "metadata": { "name": format!("cluster-{index}"), "namespace": namespace(index) },
        "spec": {
            "artifactStore": { "s3": { "bucket": "proofs", "credentialsRef": { "name": "store" } } },
            "backends": [{ "name": "risc0", "system": "risc0", "image": "backend" }],
            "workerGroups": [{
                "name": "cpus", "backend": "risc0", "device": { "cpu": {} }, "scaling": { "maxReplicas": 4 },
                "resources": { "cpu": "2", "memory": "8Gi" },
            }],
        },
    })
}

fn job(index: usize, clusters: usize) -> Value {
    json!({
        "apiVersion": "proving.rs/v1alpha1", "kind": "ProofJob",
        "metadata": {
            "name": format!("job-{index}"), "namespace": namespace(index),
            "annotations": { "example.org/notes": "n".repeat(PROGRAM_BYTES) },
        },
        "spec": {
            "clusterRef": { "name": format!("cluster-{}", index % clusters.max(1)) },
            "program": { "inline": "A".repeat(PROGRAM_BYTES) },
            "proof": { "system": "risc0", "kind": "Succinct" },
        },
    })
}

async fn create(client: &Client, plural: &str, objects: Vec<Value>) {
    let create = |object: Value| {
        let client = client.clone();
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let path = format!("/apis/proving.rs/v1alpha1/namespaces/{namespace}/{plural}");
        async move {
            let request = http::Request::post(path).header("content-type", "application/json");
            let request = request
                .body(serde_json::to_vec(&object).expect("JSON"))
                .expect("a request");
            client
                .request::<Value>(request)
                .await
                .expect("the object is good");
        }
    };
    stream::iter(objects)
        .map(create)
        .buffer_unordered(CONCURRENCY)
        .collect::<Vec<()>>()
        .await;
}

/// Until every job has its finalizer and every cluster its coordinator. Answers the most memory seen.
async fn wait_until_looked_after(client: &Client, operator: &Process, clusters: usize, jobs: usize) -> u64 {
    let begin = Instant::now();
    let selector = format!("{}={}", names::COMPONENT_LABEL, names::COORDINATOR);
    loop {
        assert!(
            begin.elapsed() < LIMIT,
            "the operator did not look after everything within {LIMIT:?}"
        );
        let all: Api<ProofJob> = Api::all(client.clone());
        let list = all.list_metadata(&ListParams::default()).await.expect("a list");
        let protected = list
            .iter()
            .filter(|job| job.finalizers().iter().any(|name| name == names::JOB_FINALIZER));
        let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::all(client.clone());
        let made = deployments
            .list_metadata(&ListParams::default().labels(&selector))
            .await
            .expect("a list");
        let (protected, made) = (protected.count(), made.items.len());
        println!("{protected} jobs and {made} clusters after {:?}", begin.elapsed());
        if protected == jobs && made == clusters {
            return memory(operator.0.id()).1;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
}

/// Requests per second that are not ours, once they have become few.
async fn quiet_rate(client: &Client) -> f64 {
    let begin = Instant::now();
    loop {
        let before = requests(client).await;
        tokio::time::sleep(QUIET).await;
        let asked = requests(client).await - before - 1.0;
        let rate = asked / QUIET.as_secs_f64();
        println!("{rate:.2} requests/s");
        if rate <= MOST_REQUESTS_PER_SECOND || begin.elapsed() > LIMIT {
            return rate;
        }
    }
}

/// Requests that the API server has answered on behalf of clients: its own are told apart by their resource.
async fn requests(client: &Client) -> f64 {
    let request = http::Request::get("/metrics")
        .body(Vec::new())
        .expect("a request");
    let text = client.request_text(request).await.expect("metrics");
    let counted = text.lines().filter(|line| {
        let ours = [
            "proofjobs",
            "proverclusters",
            "deployments",
            "secrets",
            "configmaps",
            "pods",
            "services",
        ];
        let others = [
            "serviceaccounts",
            "roles",
            "rolebindings",
            "networkpolicies",
            "poddisruptionbudgets",
            "events",
        ];
        line.starts_with("apiserver_request_total{")
            && !line.contains("verb=\"WATCH\"")
            && (line.contains("subresource=\"token\"")
                || ours
                    .iter()
                    .chain(&others)
                    .any(|name| line.contains(&format!("resource=\"{name}\""))))
    });
    counted
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Memory that a process holds, now and at most, in KiB.
fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the operator runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| {
            rest.trim_start_matches(':')
                .trim()
                .trim_end_matches(" kB")
                .parse()
                .ok()
        })
        .unwrap_or(0)
    };
    (field("VmRSS"), field("VmHWM"))
}
