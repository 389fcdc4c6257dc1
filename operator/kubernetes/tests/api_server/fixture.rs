//! A namespace of its own with a ProverCluster, a coordinator in this process, and the objects of a test.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use prover_artifacts::{ArtifactStore, Prefix};
use prover_coordinator::Secret;
use prover_crds::{
    Phase, ProofJob, ProverCluster, conditions, names, proof_job_crd, prover_cluster_crd, reasons,
};
use prover_kubernetes::{Access, Addresses, Settings};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::Kubernetes;
use crate::worker::Worker;

/// Longest wait for anything that should come soon; the machine may be busy with other builds.
pub(crate) const SOON: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const TOKEN: &str = "the right token";

/// A cluster of a test.
pub(crate) struct Fixture {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) store: Arc<dyn ArtifactStore>,
    folder: tempfile::TempDir,
    _kubernetes: Arc<Kubernetes>,
}

/// A coordinator in this process.
pub(crate) struct Coordinator {
    pub(crate) addresses: Addresses,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Coordinator {
    /// As SIGTERM does.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.task).await.unwrap().unwrap();
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.addresses.observation)
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Fixture {
    /// A namespace with a ProverCluster `main` that makes emulated proofs.
    pub(crate) async fn new() -> Fixture {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let kubernetes = Kubernetes::shared();
        let client = kubernetes.client().await;
        install(&client, &proof_job_crd()).await;
        install(&client, &prover_cluster_crd()).await;
        let namespace = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("store")).unwrap();
        let fixture = Fixture {
            store: prover_artifacts::open(&store_url(folder.path())).await.unwrap(),
            client,
            namespace,
            folder,
            _kubernetes: kubernetes,
        };
        fixture.create_namespace(&fixture.namespace).await;
        let cluster = mk_cluster("emulated");
        let clusters: Api<ProverCluster> = Api::namespaced(fixture.client.clone(), &fixture.namespace);
        let params = PostParams::default();
        let cluster = serde_json::from_value(cluster).unwrap();
        clusters.create(&params, &cluster).await.unwrap();
        fixture
    }

    /// UID of the ProverCluster.
    pub(crate) async fn cluster_uid(&self) -> String {
        let clusters: Api<ProverCluster> = Api::namespaced(self.client.clone(), &self.namespace);
        clusters.get("main").await.unwrap().uid().unwrap()
    }

    /// A pod of a coordinator, as far as the API server knows.
    pub(crate) async fn create_pod(&self, name: &str) {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let account = json!({ "metadata": { "name": name } });
        let account = serde_json::from_value(account).unwrap();
        accounts.create(&PostParams::default(), &account).await.unwrap();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = json!({
            "metadata": { "name": name },
            "spec": {
                "serviceAccountName": name, "automountServiceAccountToken": false,
                "containers": [{ "name": "coordinator", "image": "none" }],
            },
        });
        let pod = serde_json::from_value(pod).unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    /// Waits until a pod has a role.
    pub(crate) async fn until_role(&self, pod: &str, role: &str) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let begin = std::time::Instant::now();
        loop {
            let found = pods.get(pod).await.unwrap();
            if found
                .labels()
                .get(names::ROLE_LABEL)
                .is_some_and(|told| told == role)
            {
                return;
            }
            assert!(
                begin.elapsed() < SOON,
                "{pod} did not become {role}: {:?}",
                found.labels()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) async fn create_namespace(&self, name: &str) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        api.create(&PostParams::default(), &namespace).await.unwrap();
    }

    pub(crate) async fn patch_cluster(&self, patch: Value) {
        let clusters: Api<ProverCluster> = Api::namespaced(self.client.clone(), &self.namespace);
        clusters
            .patch("main", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    pub(crate) async fn allow(&self, namespaces: &[&str]) {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let name = names::namespaces_config("main");
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
            "data": { names::NAMESPACES_KEY: namespaces.join("\n") },
        });
        let params = PatchParams::apply(names::OPERATOR_MANAGER).force();
        api.patch(&name, &params, &Patch::Apply(config)).await.unwrap();
    }

    pub(crate) async fn coordinator(&self) -> Coordinator {
        self.replica("main-coordinator-0").await
    }

    /// A replica under the name of a pod.
    pub(crate) async fn replica(&self, pod: &str) -> Coordinator {
        let stop = CancellationToken::new();
        let settings = Settings {
            namespace: self.namespace.clone(),
            cluster: "main".to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            store: store_url(self.folder.path()),
            access: Access::Secret(Secret::new(TOKEN)),
            metrics_address: "127.0.0.1:0".parse().unwrap(),
            pod: pod.to_owned(),
            pod_address: None,
            cluster_uid: self.cluster_uid().await,
        };
        let (started, mut addresses) = watch::channel(None);
        let running = prover_kubernetes::run(settings, self.client.clone(), stop.clone(), Some(started));
        let task = tokio::spawn(async move { Box::pin(running).await.unwrap() });
        let addresses = tokio::time::timeout(SOON, addresses.wait_for(Option::is_some)).await;
        let addresses = addresses.unwrap().unwrap().unwrap();
        Coordinator {
            addresses,
            stop,
            task,
        }
    }

    /// A worker of a coordinator, as soon as that leads.
    pub(crate) async fn worker(&self, coordinator: &Coordinator) -> Worker {
        let begin = std::time::Instant::now();
        while !coordinator.get("/role").await.contains("leads") {
            assert!(begin.elapsed() < SOON, "the coordinator does not lead");
            tokio::time::sleep(POLL).await;
        }
        Worker::start(
            coordinator.addresses.plane,
            TOKEN,
            "worker-1",
            Arc::clone(&self.store),
        )
        .await
    }

    pub(crate) fn jobs(&self) -> Api<ProofJob> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a job of the test's namespace.
    pub(crate) async fn submit(&self, name: &str, changes: Value) -> ProofJob {
        self.submit_to(&self.namespace, name, changes).await
    }

    pub(crate) async fn submit_to(&self, namespace: &str, name: &str, changes: Value) -> ProofJob {
        let mut job = mk_job(name, &self.namespace);
        merge(&mut job, changes);
        let api: Api<ProofJob> = Api::namespaced(self.client.clone(), namespace);
        let job = serde_json::from_value(job).unwrap();
        api.create(&PostParams::default(), &job).await.unwrap()
    }

    pub(crate) async fn patch(&self, name: &str, patch: Value) -> ProofJob {
        self.jobs()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap()
    }

    /// Waits until the job of the test's namespace is as the test wants it.
    pub(crate) async fn until(&self, name: &str, what: &str, wanted: impl Fn(&ProofJob) -> bool) -> ProofJob {
        self.until_in(&self.namespace, name, what, wanted).await
    }

    pub(crate) async fn until_in(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        wanted: impl Fn(&ProofJob) -> bool,
    ) -> ProofJob {
        let api: Api<ProofJob> = Api::namespaced(self.client.clone(), namespace);
        let begin = std::time::Instant::now();
        loop {
            let job = api.get(name).await.unwrap();
            if wanted(&job) {
                return job;
            }
            assert!(begin.elapsed() < SOON, "{what} did not come: {:#?}", job.status);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for a phase.
    pub(crate) async fn until_phase(&self, name: &str, phase: prover_crds::Phase) -> ProofJob {
        self.until(name, phase.as_str(), |job| {
            job.status.as_ref().and_then(|status| status.phase) == Some(phase)
        })
        .await
    }

    /// Submits jobs until one fails since its program of three bytes is too large: changes arrive by a watch.
    pub(crate) async fn until_failed_for_size(&self, name: &str) {
        self.until_sized(name, true).await;
    }

    /// Submits jobs until one with a program of three bytes is taken.
    pub(crate) async fn until_accepted_in_size(&self, name: &str) {
        self.until_sized(name, false).await;
    }

    async fn until_sized(&self, name: &str, too_large: bool) {
        let begin = std::time::Instant::now();
        for number in 0.. {
            let name = format!("{name}-{number}");
            self.submit(&name, json!({})).await;
            let decided = |job: &ProofJob| {
                let phase = job.status.as_ref().and_then(|status| status.phase);
                matches!(phase, Some(Phase::Failed | Phase::Running))
            };
            let job = self.until(&name, "a decision about its size", decided).await;
            let reason = job.status.and_then(|status| status.reason);
            let refused = reason.as_deref() == Some(reasons::SOURCE_TOO_LARGE);
            self.patch(&name, json!({ "spec": { "cancel": true } })).await;
            if refused == too_large {
                return;
            }
            assert!(begin.elapsed() < SOON, "the bound did not change");
        }
    }

    /// Waits until these reasons are among the events of a job.
    pub(crate) async fn until_events(&self, name: &str, reasons: &[&str]) {
        let begin = std::time::Instant::now();
        loop {
            let told = self.events(name).await;
            if reasons
                .iter()
                .all(|reason| told.iter().any(|told| told == reason))
            {
                return;
            }
            assert!(begin.elapsed() < SOON, "of {reasons:?} only {told:?} were told");
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) async fn events(&self, name: &str) -> Vec<String> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let events = api.list(&ListParams::default()).await.unwrap();
        let of_job = |event: &Event| {
            event
                .regarding
                .as_ref()
                .and_then(|regarding| regarding.name.as_deref())
                == Some(name)
        };
        events
            .into_iter()
            .filter(of_job)
            .filter_map(|event| event.reason)
            .collect()
    }

    /// Waits until the store has so many objects of a job: deletes come after the commit that they follow.
    pub(crate) async fn until_keys(&self, job: &ProofJob, count: usize) {
        let begin = std::time::Instant::now();
        loop {
            let keys = self.keys(job).await;
            if keys.len() == count {
                return;
            }
            assert!(begin.elapsed() < SOON, "{count} objects were wanted: {keys:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the store has an object of a job whose key ends like this.
    pub(crate) async fn until_key(&self, job: &ProofJob, end: &str) {
        let begin = std::time::Instant::now();
        loop {
            let keys = self.keys(job).await;
            if keys.iter().any(|key| key.ends_with(end)) {
                return;
            }
            assert!(begin.elapsed() < SOON, "{end} did not come: {keys:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Keys that the store has of a job.
    pub(crate) async fn keys(&self, job: &ProofJob) -> Vec<String> {
        let prefix = Prefix::job(&job.uid().unwrap()).unwrap();
        let listing = self.store.list(&prefix, 1_000).await.unwrap();
        listing
            .objects
            .into_iter()
            .map(|object| object.key.as_str().to_owned())
            .collect()
    }
}

pub(crate) fn condition(job: &ProofJob, type_: &str) -> Option<(String, String)> {
    let status = job.status.as_ref()?;
    let found = conditions::find(&status.conditions, type_)?;
    Some((found.status.clone(), found.reason.clone()))
}

pub(crate) fn holds(job: &ProofJob, type_: &str, status: &str, reason: &str) -> bool {
    condition(job, type_) == Some((status.to_owned(), reason.to_owned()))
}

fn store_url(folder: &Path) -> String {
    format!("file://{}", folder.join("store").display())
}

fn mk_cluster(system: &str) -> Value {
    json!({
        "apiVersion": "proving.rs/v1alpha1", "kind": "ProverCluster", "metadata": { "name": "main" },
        "spec": {
            "artifactStore": { "s3": { "bucket": "bucket" } },
            "backends": [{ "name": "made-up", "system": system, "image": "made-up" }],
            "workerGroups": [{
                "name": "test", "backend": "made-up", "device": { "cpu": { "count": 2 } },
                "cost": { "perHour": "2.00", "currency": "USD" },
            }],
        },
    })
}

fn mk_job(name: &str, cluster_namespace: &str) -> Value {
    json!({
        "apiVersion": "proving.rs/v1alpha1", "kind": "ProofJob", "metadata": { "name": name },
        "spec": {
            "clusterRef": { "name": "main", "namespace": cluster_namespace },
            "program": { "inline": "AAAA" },
            "proof": { "system": "emulated", "kind": "Emulated" },
        },
    })
}

fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, value) in changes {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, changes) => *into = changes,
    }
}

async fn install(client: &Client, definition: &CustomResourceDefinition) {
    let name = definition.name_any();
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("test").force();
    api.patch(&name, &params, &Patch::Apply(definition))
        .await
        .unwrap();
    let established =
        kube::runtime::wait::await_condition(api, &name, kube::runtime::conditions::is_crd_established());
    tokio::time::timeout(SOON, established).await.unwrap().unwrap();
}
