//! What a real kube-apiserver makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, ObjectMeta};
use kube::{Client, Resource, ResourceExt};
use prover_controller::caches::{Queues, caches};
use prover_controller::prover_cluster::build::Kind;
use prover_controller::prover_cluster::reconcile;
use prover_controller::{ClusterKey, Context, Metrics, Settings};
use prover_crds::ProverCluster;
use prover_runtime::ManualClock;
use prover_runtime::prometheus::Registry;
use prover_wire::operator_plane::ClusterState;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::clusters::{NOW_MS, context, group, manifest, settings};
use crate::kubernetes::Kubernetes;

/// Longest wait for a cache to see what was written, or for a definition to be served.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// An operator with caches that real watches fill, in a namespace of its own.
struct World {
    client: Client,
    namespace: String,
    context: Context,
    clock: Arc<ManualClock>,
    _filling: JoinSet<()>,
    _kubernetes: Arc<Kubernetes>,
}

impl World {
    async fn start(namespace: &str) -> World {
        let kubernetes = Kubernetes::shared();
        let client = kubernetes.client().await;
        for file in ["provercluster.yaml", "proofjob.yaml"] {
            install(&client, file).await;
        }
        for name in [namespace, "prover-operator"] {
            let mut object = Namespace::default();
            object.metadata.name = Some(name.to_owned());
            let api: Api<Namespace> = Api::all(client.clone());
            api.patch(name, &PatchParams::apply("test"), &Patch::Apply(object))
                .await
                .expect("a namespace");
        }
        let clock = Arc::new(ManualClock::at(NOW_MS));
        let (context, filling) = operator(&client, settings(), &clock).await;
        World {
            client,
            namespace: namespace.to_owned(),
            context,
            clock,
            _filling: filling,
            _kubernetes: kubernetes,
        }
    }

    /// Another operator takes over.
    async fn restarted(self, settings: Settings) -> World {
        let (context, filling) = operator(&self.client, settings, &self.clock).await;
        World {
            context,
            _filling: filling,
            ..self
        }
    }

    fn clusters(&self) -> Api<ProverCluster> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn apply(&self, manifest: &Value) -> ProverCluster {
        let name = manifest["metadata"]["name"].as_str().expect("a name");
        let parameters = PatchParams {
            field_manager: Some("user".to_owned()),
            force: true,
            ..PatchParams::default()
        };
        self.clusters()
            .patch(name, &parameters, &Patch::Apply(manifest))
            .await
            .expect("a good ProverCluster")
    }

    /// Reconciles what is there, with caches that have caught up, so much later that no write is recent any more.
    async fn reconcile(&self, name: &str) {
        self.caught_up().await;
        self.clock.advance(60_000);
        let cluster = self.clusters().get(name).await.expect("the cluster");
        reconcile(Arc::new(cluster), Arc::new(self.context.clone()))
            .await
            .expect("it is applied");
    }

    /// Waits until the caches show the versions that the API server has.
    async fn caught_up(&self) {
        let wanted = self.versions(None).await;
        let caches = &self.context.caches;
        until("the caches have caught up", || {
            macro_rules! seen {
                ($($store:ident),*) => {
                    [$(caches.$store.state().iter()
                        .filter(|object| self.is_ours(object.meta()))
                        .filter_map(|object| object.resource_version()).collect::<Vec<_>>()),*].concat()
                };
            }
            let mut seen = seen!(
                deployments,
                services,
                config_maps,
                service_accounts,
                roles,
                role_bindings,
                disruption_budgets,
                daemon_sets,
                network_policies
            );
            seen.sort();
            let mut wanted: Vec<String> = wanted.values().cloned().collect();
            wanted.sort();
            seen == wanted
        })
        .await;
    }

    /// Tests that run at the same time make roles in all namespaces.
    fn is_ours(&self, metadata: &ObjectMeta) -> bool {
        let of = metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("proving.rs/cluster-namespace"));
        metadata.namespace.as_ref() == Some(&self.namespace) && of.is_none_or(|of| *of == self.namespace)
    }

    /// The versions of everything that was made, perhaps for one cluster only.
    async fn versions(&self, cluster: Option<&str>) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        let labels = match cluster {
            Some(cluster) => format!("proving.rs/cluster={cluster}"),
            None => "app.kubernetes.io/managed-by=prover-operator".to_owned(),
        };
        for kind in Kind::ALL {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &self.namespace, &kind.api_resource());
            let list = api
                .list(&ListParams::default().labels(&labels))
                .await
                .expect("a list");
            for object in list.into_iter().filter(|object| self.is_ours(&object.metadata)) {
                let version = object.resource_version().unwrap_or_default();
                versions.insert(format!("{} {}", kind.as_str(), object.name_any()), version);
            }
        }
        versions
    }

    async fn workers(&self, cluster: &str) -> Vec<Deployment> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let labels = format!("proving.rs/cluster={cluster},app.kubernetes.io/component=worker");
        api.list(&ListParams::default().labels(&labels))
            .await
            .expect("a list")
            .items
    }

    async fn scale(&self, deployment: &str, replicas: i32) {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let parameters = PatchParams {
            field_manager: Some("prover-scaler".to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        api.patch_scale(deployment, &parameters, &patch)
            .await
            .expect("it is scaled");
    }

    fn coordinator_tells(&self, cluster: &str, state: ClusterState) {
        let key = ClusterKey {
            namespace: self.namespace.clone(),
            name: cluster.to_owned(),
        };
        self.context.states.set(&key, Some(Arc::new(state)));
    }
}

async fn operator(client: &Client, settings: Settings, clock: &Arc<ManualClock>) -> (Context, JoinSet<()>) {
    let metrics = Metrics::new(&Registry::new()).expect("a registry of its own");
    let (caches, filling) = caches(client, &settings, &Queues::default(), &metrics);
    let mut tasks = JoinSet::new();
    for work in filling {
        tasks.spawn(work);
    }
    until("the caches are filled", || caches.missing().is_none()).await;
    (
        context(client.clone(), settings, caches, Arc::clone(clock)),
        tasks,
    )
}

async fn install(client: &Client, file: &str) {
    let path = format!("{}/../../crds/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the committed definition");
    let definition: Value = prover_crds_yaml(&text);
    let name = definition["metadata"]["name"]
        .as_str()
        .expect("a name")
        .to_owned();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
    ));
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    api.patch(
        &name,
        &PatchParams::apply("test").force(),
        &Patch::Apply(&definition),
    )
    .await
    .expect("it is installed");
    let begin = Instant::now();
    loop {
        let present = api.get(&name).await.expect("the definition");
        let conditions = present.data["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if conditions
            .iter()
            .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
        {
            return;
        }
        assert!(begin.elapsed() < LIMIT, "{name} is not served");
        tokio::time::sleep(POLL).await;
    }
}

fn prover_crds_yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).expect("YAML")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// Every preset, every kind of device, every override.
fn everything(namespace: &str) -> Value {
    let pod = json!({
        "labels": { "team": "zk" }, "annotations": { "example.com/scrape": "true" }, "nodeSelector": { "pool": "provers" },
        "requiredNodeLabels": [
            { "key": "topology.kubernetes.io/region", "operator": "In", "values": ["eu"] },
            { "key": "cores", "operator": "Gt", "values": ["7"] },
        ],
        "preferredNodeLabels": [{ "key": "disk", "operator": "Exists" }],
        "tolerations": [{ "key": "dedicated", "operator": "Equal", "value": "provers", "effect": "NoExecute" }, { "operator": "Exists" }],
        "topologySpread": [{ "topologyKey": "topology.kubernetes.io/zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule" }],
        "env": [{ "name": "RUST_LOG", "value": "info" }, { "name": "LICENSE", "secretRef": { "name": "license", "key": "key" } }],
        "imagePullSecrets": [{ "name": "registry" }], "priorityClassName": "proofs", "runtimeClassName": "nvidia",
        "schedulerName": "batch", "serviceAccountAnnotations": { "eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/prover" },
    });
    let mut groups = Vec::new();
    for provider in ["gke", "eks", "aks", "karpenter"] {
        for capacity in ["OnDemand", "Spot"] {
            let name = format!("{provider}-{}", capacity.to_lowercase());
            groups.push(json!({
                "name": name, "backend": "risc0", "provider": provider, "capacityType": capacity, "pod": pod,
                "device": { "gpu": { "count": 2, "product": "NVIDIA H100 80GB HBM3", "minMemory": "40Gi" } },
                "resources": { "cpu": "7.5", "memory": "64G", "ephemeralStorage": "1.5Gi" }, "exchangeSize": "3Gi",
                "cache": { "size": "50Gi", "storageClassName": "fast" }, "prePullImages": true,
                "cost": { "perHour": "1", "currency": "USD" },
            }));
        }
    }
    groups.push(json!({
        "name": "claim", "backend": "risc0", "device": { "gpu": { "resourceClaimTemplateName": "one-gpu", "count": 2 } },
        "resources": { "memory": "32Gi" },
    }));
    groups.push(json!({
        "name": "slice", "backend": "risc0", "device": { "gpu": { "migProfile": "1g.10gb+me" } },
        "resources": { "memory": "1000000001" }, "cache": { "size": "1Gi" },
    }));
    groups.push(json!({
        "name": "gnark", "backend": "gnark", "device": { "cpu": { "count": 3 } }, "resources": { "cpu": "500m", "memory": "2Gi" },
        "scaling": { "minReplicas": 0, "maxReplicas": 8 },
    }));
    let mut cluster = manifest(namespace, "everything");
    cluster["spec"] = json!({
        "artifactStore": { "s3": {
            "bucket": "proofs", "prefix": "production", "region": "eu-central-1", "endpoint": "https://minio.storage.svc:9000",
            "credentialsRef": { "name": "bucket" }, "caRef": { "name": "store-ca", "key": "store.pem" },
        } },
        "coordinator": { "resources": { "cpu": "1", "memory": "2Gi", "ephemeralStorage": "1Gi" }, "pod": pod },
        "backends": [
            { "name": "risc0", "system": "risc0", "image": "localhost/risc0:1", "args": ["--flag"] },
            { "name": "gnark", "system": "command", "image": "localhost/gnark:1", "imagePullPolicy": "Always", "command": {
                "prove": ["/prove", "{program}", "{input}", "{proof}"], "verify": ["/verify", "{program}", "{proof}"],
            } },
        ],
        "workerGroups": groups,
        "allowedNamespaces": { "from": "Same" },
    });
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_built_is_taken_and_a_second_time_changes_nothing() {
    let world = World::start("everything").await;
    world.apply(&everything("everything")).await;
    world.reconcile("everything").await;
    let first = world.versions(None).await;
    // 11 groups with a Deployment and a budget each, 8 of them with a DaemonSet, and what a cluster has once.
    assert!(first.len() > 35, "{first:#?}");

    // A new operator has nothing in memory: it applies everything once more.
    let world = world.restarted(settings()).await;
    world.reconcile("everything").await;
    world.reconcile("everything").await;
    assert_eq!(world.versions(None).await, first);

    let cluster = world.clusters().get("everything").await.unwrap();
    let before = cluster.resource_version();
    world.reconcile("everything").await;
    assert_eq!(
        world
            .clusters()
            .get("everything")
            .await
            .unwrap()
            .resource_version(),
        before
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_workers_stays_as_the_scaler_wrote_it() {
    let world = World::start("replicas").await;
    world.apply(&manifest("replicas", "main")).await;
    world.reconcile("main").await;
    for deployment in world.workers("main").await {
        assert_eq!(deployment.spec.as_ref().unwrap().replicas, Some(0));
        let managers: Vec<(String, bool)> = deployment
            .managed_fields()
            .iter()
            .map(|entry| {
                let fields = serde_json::to_string(&entry.fields_v1).unwrap();
                (
                    entry.manager.clone().unwrap_or_default(),
                    fields.contains("f:replicas"),
                )
            })
            .collect();
        let mut managers = managers;
        managers.sort();
        assert_eq!(
            managers,
            [
                ("prover-operator".to_owned(), false),
                ("prover-scaler".to_owned(), true)
            ]
        );
    }
    let name = world.workers("main").await[0].name_any();
    world.scale(&name, 3).await;
    let world = world.restarted(settings()).await;
    world.reconcile("main").await;
    let replicas = |deployments: Vec<Deployment>| {
        let one = deployments
            .into_iter()
            .find(|deployment| deployment.name_any() == name);
        one.and_then(|deployment| deployment.spec?.replicas)
    };
    assert_eq!(replicas(world.workers("main").await), Some(3));

    // Something that the operator does own changes, and the number still stays.
    let api: Api<Deployment> = Api::namespaced(world.client.clone(), "replicas");
    let spoil = Patch::Merge(json!({ "spec": { "revisionHistoryLimit": 7 } }));
    api.patch(&name, &PatchParams::default(), &spoil).await.unwrap();
    world.reconcile("main").await;
    let mended = api.get(&name).await.unwrap().spec.unwrap();
    assert_eq!(
        (mended.replicas, mended.revision_history_limit),
        (Some(3), Some(0))
    );
    world.scale(&name, 0).await;
    world.reconcile("main").await;
    assert_eq!(replicas(world.workers("main").await), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_group_goes_and_the_others_stay() {
    let world = World::start("removal").await;
    let mut cluster = manifest("removal", "main");
    world.apply(&cluster).await;
    world.reconcile("main").await;
    let before = world.versions(None).await;
    cluster["spec"]["workerGroups"] = json!([group("one")]);
    world.apply(&cluster).await;
    world.coordinator_tells("main", ClusterState::default());
    world.reconcile("main").await;
    let after = world.versions(None).await;
    let gone: Vec<&String> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    assert_eq!(gone.len(), 2, "{gone:#?}");
    assert!(
        gone[0].starts_with("Deployment main-two-") && gone[1] == "PodDisruptionBudget main.two",
        "{gone:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_side_by_side_leave_each_other_alone() {
    let world = World::start("neighbours").await;
    world.apply(&manifest("neighbours", "a")).await;
    world.reconcile("a").await;
    let before = world.versions(Some("a")).await;
    let mut other = manifest("neighbours", "a-one");
    other["spec"]["workerGroups"] = json!([group("x")]);
    world.apply(&other).await;
    world.reconcile("a-one").await;
    world.reconcile("a").await;
    assert_eq!(world.versions(Some("a")).await, before);
    assert!(!world.versions(Some("a-one")).await.is_empty());

    // And what one of them leaves in other namespaces goes with it.
    let mut wide = manifest("neighbours", "wide");
    wide["spec"]["allowedNamespaces"] = json!({ "from": "All" });
    world.apply(&wide).await;
    world.reconcile("wide").await;
    let roles: Api<k8s_openapi::api::rbac::v1::Role> = Api::namespaced(world.client.clone(), "default");
    let name = "proving.rs:neighbours:wide";
    assert!(roles.get_opt(name).await.unwrap().is_some());
    world
        .clusters()
        .delete("wide", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    until("the role is cached", || {
        world
            .context
            .caches
            .roles
            .state()
            .iter()
            .any(|role| role.name_any() == name && role.namespace().as_deref() == Some("default"))
    })
    .await;
    world.reconcile("wide").await;
    assert!(roles.get_opt(name).await.unwrap().is_none());
    assert!(world.clusters().get_opt("wide").await.unwrap().is_none());
}
