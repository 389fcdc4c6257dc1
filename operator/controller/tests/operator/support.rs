//! A running operator and what tests ask of the API server.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::{Client, ResourceExt};
use prover_controller::Settings;
use prover_controller::run::{ClusterReconcile, Operator, RunError, run};
use prover_crds::{ProofJob, ProverCluster};
use prover_runtime::{Observation, SystemClock};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::Kubernetes;

/// Longest wait for anything that the operator does.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// An API server with both definitions.
pub(crate) struct Server {
    pub(crate) client: Client,
    _kubernetes: Arc<Kubernetes>,
}

impl Server {
    pub(crate) async fn start() -> Server {
        let kubernetes = Kubernetes::shared();
        let client = kubernetes.client().await;
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in [prover_crds::prover_cluster_crd(), prover_crds::proof_job_crd()] {
            let parameters = PatchParams::apply("test").force();
            api.patch(&definition.name_any(), &parameters, &Patch::Apply(&definition))
                .await
                .unwrap();
        }
        eventually("the definitions are served", || async {
            let served = client.list_api_group_resources("proving.rs/v1alpha1").await;
            served.is_ok_and(|list| list.resources.iter().any(|resource| resource.kind == "ProofJob"))
                && Api::<ProofJob>::all(client.clone())
                    .list(&Default::default())
                    .await
                    .is_ok()
                && Api::<ProverCluster>::all(client.clone())
                    .list(&Default::default())
                    .await
                    .is_ok()
        })
        .await;
        Server {
            client,
            _kubernetes: kubernetes,
        }
    }

    /// A new namespace with the operator's ServiceAccount in it.
    pub(crate) async fn namespace(&self, name: &str) -> String {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        api.create(&PostParams::default(), &namespace).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        let account = serde_json::from_value(json!({ "metadata": { "name": "prover-operator" } })).unwrap();
        accounts.create(&PostParams::default(), &account).await.unwrap();
        name.to_owned()
    }

    pub(crate) fn jobs(&self, namespace: &str) -> Api<ProofJob> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) async fn create_job(&self, namespace: &str, name: &str, more: &Value) -> ProofJob {
        let mut job = json!({
            "apiVersion": "proving.rs/v1alpha1", "kind": "ProofJob",
            "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "clusterRef": { "name": "main" },
                "program": { "inline": "AAAA" },
                "proof": { "system": "risc0", "kind": "Succinct" },
            },
        });
        merge(&mut job, more);
        let job: Value = job;
        let request = http::Request::post(format!(
            "/apis/proving.rs/v1alpha1/namespaces/{namespace}/proofjobs"
        ))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&job).unwrap())
        .unwrap();
        self.client.request(request).await.unwrap()
    }

    pub(crate) async fn create_cluster(&self, namespace: &str, name: &str, more: &Value) -> ProverCluster {
        let mut cluster = json!({
            "apiVersion": "proving.rs/v1alpha1", "kind": "ProverCluster",
            "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "artifactStore": { "s3": { "bucket": "proofs" } },
                "backends": [{ "name": "risc0", "system": "risc0", "image": "backend" }],
                "workerGroups": [{ "name": "cpus", "backend": "risc0", "device": { "cpu": {} }, "replicas": 2 }],
            },
        });
        merge(&mut cluster, more);
        let path = format!("/apis/proving.rs/v1alpha1/namespaces/{namespace}/proverclusters");
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&cluster).unwrap())
            .unwrap();
        self.client.request(request).await.unwrap()
    }

    /// Applies a status as another manager does.
    pub(crate) async fn apply_status(&self, job: &ProofJob, manager: &str, status: &Value) {
        let patch = json!({
            "apiVersion": "proving.rs/v1alpha1", "kind": "ProofJob",
            "metadata": { "name": job.name_any() }, "status": status,
        });
        let parameters = PatchParams::apply(manager).force();
        let api = self.jobs(&job.namespace().unwrap());
        api.patch_status(&job.name_any(), &parameters, &Patch::Apply(patch))
            .await
            .unwrap();
    }

    /// An operator that looks at these namespaces only and leaves ProverClusters alone.
    pub(crate) fn operator(&self, namespaces: &[&str]) -> Running {
        let idle: ClusterReconcile = Arc::new(|_, _| async { Ok(Action::await_change()) }.boxed());
        let requests = Arc::new(AtomicUsize::new(0));
        let observation = Observation::new(prometheus::Registry::new());
        let stop = CancellationToken::new();
        let operator = Operator {
            client: counting(self.client.clone(), Arc::clone(&requests)),
            settings: settings(namespaces),
            registry: prometheus::Registry::new(),
            observation,
            clock: Arc::new(SystemClock::new()),
            reconcile: idle,
        };
        let task = tokio::spawn(run(operator, stop.clone()));
        Running { requests, stop, task }
    }
}

pub(crate) fn settings(namespaces: &[&str]) -> Settings {
    Settings {
        namespace: namespaces[0].to_owned(),
        service_account: "prover-operator".to_owned(),
        pod: "prover-operator-0".to_owned(),
        coordinator_image: "operator".to_owned(),
        worker_image: "worker".to_owned(),
        image_pull_policy: None,
        image_pull_secrets: Vec::new(),
        watch_namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// A client that counts what it asks.
pub(crate) fn counting(client: Client, requests: Arc<AtomicUsize>) -> Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        requests.fetch_add(1, Ordering::SeqCst);
        let client = client.clone();
        async move { client.send(request).await }
    });
    Client::new(service, "default")
}

pub(crate) struct Running {
    pub(crate) requests: Arc<AtomicUsize>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn merge(target: &mut Value, more: &Value) {
    match (target, more) {
        (Value::Object(target), Value::Object(more)) => {
            for (name, value) in more {
                merge(target.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (target, more) => *target = more.clone(),
    }
}

/// Waits until something holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}
