//! A namespace with a ProverCluster of two emulated workers, and its end.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::core::ObjectMeta;
use kube::{Client, ResourceExt};
use prover_crds::{ProofJob, ProverCluster, names};
use serde_json::json;

use crate::Failure;
use crate::arguments::Arguments;
use crate::observe::metric;

/// Name of the ProverCluster.
const CLUSTER: &str = "bench";
/// Its workers: one runs, the other takes over.
pub(crate) const WORKERS: usize = 2;
/// Longest time until all workers are connected.
const WORKERS_LIMIT: Duration = Duration::from_secs(180);
/// Longest time until the namespace is gone.
const GONE_LIMIT: Duration = Duration::from_secs(180);
/// Between two looks at what can't be watched.
const LOOK: Duration = Duration::from_millis(500);

/// Where the benchmark takes place.
pub(crate) struct Scene {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl Scene {
    pub(crate) async fn begin(client: Client, arguments: &Arguments) -> Result<Scene, Failure> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_secs();
        let namespace = format!("bench-{now}-{}", std::process::id());
        let scene = Scene { client, namespace };
        let object = Namespace {
            metadata: ObjectMeta {
                name: Some(scene.namespace.clone()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::<Namespace>::all(scene.client.clone())
            .create(&PostParams::default(), &object)
            .await?;
        let prepared = scene.prepare(arguments).await;
        if let Err(error) = prepared {
            scene.end().await?;
            return Err(error);
        }
        Ok(scene)
    }

    async fn prepare(&self, arguments: &Arguments) -> Result<(), Failure> {
        let (from, name) = arguments
            .credentials
            .split_once('/')
            .ok_or("--credentials: give NAMESPACE/NAME")?;
        let credentials = Api::<Secret>::namespaced(self.client.clone(), from)
            .get(name)
            .await?;
        let copy = Secret {
            metadata: ObjectMeta {
                name: Some("store".to_owned()),
                ..ObjectMeta::default()
            },
            data: credentials.data,
            ..Secret::default()
        };
        self.api::<Secret>().create(&PostParams::default(), &copy).await?;
        let cluster: ProverCluster = serde_json::from_value(json!({
            "apiVersion": "proving.rs/v1alpha1", "kind": "ProverCluster",
            "metadata": {"name": CLUSTER},
            "spec": {
                "artifactStore": {"s3": {
                    "bucket": arguments.bucket, "prefix": self.namespace, "region": "us-east-1",
                    "endpoint": arguments.endpoint, "credentialsRef": {"name": "store"},
                }},
                "coordinator": {"replicas": 1, "resources": {"cpu": "50m", "memory": "256Mi"}},
                "backends": [{"name": "emulated", "system": "emulated", "image": arguments.backend_image}],
                "workerGroups": [{
                    "name": "cpu", "backend": "emulated", "device": {"cpu": {}}, "replicas": WORKERS,
                    "drainSeconds": 5, "resources": {"cpu": "50m", "memory": "512Mi"}, "exchangeSize": "64Mi",
                }],
            },
        }))?;
        self.api::<ProverCluster>()
            .create(&PostParams::default(), &cluster)
            .await?;
        Ok(())
    }

    /// The API of a kind in the scene's namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// An emulated job of one segment that is proved for so long.
    pub(crate) fn job(&self, name: &str, prove: Duration) -> Result<ProofJob, Failure> {
        let model = json!({
            "segments": 1,
            "durations": {
                "prove": u64::try_from(prove.as_millis())?, "lift": 0, "join": 0, "finalize": 0, "verify": 0,
            },
        });
        Ok(serde_json::from_value(json!({
            "apiVersion": "proving.rs/v1alpha1", "kind": "ProofJob",
            "metadata": {"name": name},
            "spec": {
                "clusterRef": {"name": CLUSTER},
                "program": {"inline": "ZW11bGF0ZWQ="},
                "input": {"text": model.to_string()},
                "proof": {"system": "emulated", "kind": "Emulated"},
            },
        }))?)
    }

    /// The pods of a component that are not on their way out.
    pub(crate) async fn pods(&self, component: &str) -> Result<Vec<Pod>, Failure> {
        let selector = format!("{}={component}", names::COMPONENT_LABEL);
        let list = self
            .api::<Pod>()
            .list(&ListParams::default().labels(&selector))
            .await?;
        let staying = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
        Ok(list.items.into_iter().filter(staying).collect())
    }

    /// The coordinator's pod.
    pub(crate) async fn coordinator(&self) -> Result<String, Failure> {
        let pods = self.pods(names::COORDINATOR).await?;
        Ok(pods.first().ok_or("there is no coordinator")?.name_any())
    }

    /// Waits until all workers are connected and hold nothing.
    pub(crate) async fn await_workers(&self) -> Result<(), Failure> {
        let begin = tokio::time::Instant::now();
        loop {
            let seen = match self.workers_are_warm().await {
                Ok(true) => return Ok(()),
                Ok(false) => "not all are connected and idle".to_owned(),
                Err(error) => error.to_string(),
            };
            if begin.elapsed() > WORKERS_LIMIT {
                return Err(format!("no {WORKERS} warm workers within {WORKERS_LIMIT:?}: {seen}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn workers_are_warm(&self) -> Result<bool, Failure> {
        let workers = self.pods(names::WORKER).await?;
        if workers.len() != WORKERS {
            return Ok(false);
        }
        for worker in workers {
            let name = worker.name_any();
            let connected = metric(self, &name, "prover_agent_connected").await?;
            let held = metric(self, &name, "prover_agent_attempts_held").await?;
            if connected < 1.0 || held > 0.0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes everything and waits until it is gone.
    pub(crate) async fn end(&self) -> Result<(), Failure> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let begin = tokio::time::Instant::now();
        namespaces
            .delete(&self.namespace, &DeleteParams::default())
            .await?;
        while namespaces.get_opt(&self.namespace).await?.is_some() {
            if begin.elapsed() > GONE_LIMIT {
                return Err(
                    format!("namespace {} is still there after {GONE_LIMIT:?}", self.namespace).into(),
                );
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}
