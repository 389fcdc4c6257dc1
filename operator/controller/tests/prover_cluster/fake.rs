//! Which calls a reconcile makes, and that it makes none where nothing changed.

use std::sync::Arc;

use kube::runtime::reflector::store::store;
use kube::runtime::watcher::Event;
use prover_controller::proof_job::JobObject;
use prover_controller::prover_cluster::{ReconcileError, reconcile};
use prover_controller::{Caches, ClusterKey, Context, Settings};
use prover_runtime::ManualClock;
use prover_wire::operator_plane::ClusterState;
use serde_json::{Value, json};

use crate::clusters::{NOW_MS, context, group, read, settings, stored};
use crate::in_memory::InMemory;

const CLUSTERS: &str = "/apis/proving.rs/v1alpha1/namespaces/proving/proverclusters";
const CLUSTER: &str = "/apis/proving.rs/v1alpha1/namespaces/proving/proverclusters/main";

/// An operator over an API server in memory. What it remembers lives as long as it.
struct World {
    server: InMemory,
    context: Context,
    clock: Arc<ManualClock>,
}

impl World {
    fn new() -> World {
        World::with(settings())
    }

    fn with(settings: Settings) -> World {
        let server = InMemory::default();
        let clock = Arc::new(ManualClock::at(NOW_MS));
        let context = context(server.client(), settings, server.caches(), Arc::clone(&clock));
        World {
            server,
            context,
            clock,
        }
    }

    /// The operator is started again, perhaps in another version.
    fn restarted(self, settings: Settings) -> World {
        let context = context(
            self.server.client(),
            settings,
            self.server.caches(),
            Arc::clone(&self.clock),
        );
        World { context, ..self }
    }

    /// Reconciles with caches that have caught up, so much later that no write is recent any more.
    async fn reconcile(&mut self, cluster: &Value) -> Result<Vec<String>, ReconcileError> {
        self.catch_up();
        self.reconcile_as_cached(cluster).await
    }

    /// Reconciles until the status has seen what was made.
    async fn settle(&mut self, cluster: &Value) {
        for _ in 0..2 {
            self.reconcile(cluster).await.unwrap();
        }
    }

    fn catch_up(&mut self) {
        let jobs = self.context.caches.jobs.clone();
        self.context.caches = Caches {
            jobs,
            ..self.server.caches()
        };
        self.clock.advance(60_000);
    }

    async fn reconcile_as_cached(&self, cluster: &Value) -> Result<Vec<String>, ReconcileError> {
        let mut cluster = cluster.clone();
        let name = cluster["metadata"]["name"].as_str().expect("a name").to_owned();
        if let Some(written) = self.server.object(&format!("{CLUSTERS}/{name}")) {
            for part in ["status", "metadata"] {
                merge(&mut cluster[part], &written[part]);
            }
        }
        let outcome = reconcile(Arc::new(read(cluster)), Arc::new(self.context.clone())).await;
        let calls = self.server.calls();
        outcome.map(|_| calls)
    }

    fn status(&self) -> Value {
        self.server.object(CLUSTER).expect("a status was written")["status"].clone()
    }

    fn condition(&self, type_: &str) -> Value {
        let status = self.status();
        let conditions = status["conditions"].as_array().expect("conditions").clone();
        conditions
            .into_iter()
            .find(|condition| condition["type"] == type_)
            .unwrap_or_default()
    }

    /// The paths of what is there.
    fn worker_deployments(&self) -> Vec<String> {
        let names = self.context_deployments();
        names
            .into_iter()
            .filter(|name| !name.ends_with("-coordinator"))
            .collect()
    }

    fn context_deployments(&self) -> Vec<String> {
        let deployments = self.server.caches().deployments.state();
        let mut names: Vec<String> = deployments
            .iter()
            .filter_map(|deployment| deployment.metadata.name.clone())
            .collect();
        names.sort();
        names
    }

    fn job(&mut self, finished: bool) {
        let job: JobObject = serde_json::from_value(json!({
            "metadata": { "name": "job", "namespace": "proving", "uid": "job" },
            "spec": { "clusterRef": { "name": "main" } },
            "status": { "conditions": [
                { "type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" },
                { "type": "Finished", "status": if finished { "True" } else { "False" }, "reason": "Running", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" },
            ] },
        }))
        .unwrap();
        let (reader, mut writer) = store();
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitApply(kube::core::DeserializeGuard(Ok(job))));
        writer.apply_watcher_event(&Event::InitDone);
        self.context.caches.jobs = reader;
    }

    fn coordinator_tells(&self, state: ClusterState) {
        let key = ClusterKey {
            namespace: "proving".to_owned(),
            name: "main".to_owned(),
        };
        self.context.states.set(&key, Some(Arc::new(state)));
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (into, from) => *into = from.clone(),
    }
}

/// What was applied, in order, as plural and name.
fn applied(calls: &[String]) -> Vec<String> {
    let patches = calls.iter().filter(|call| call.starts_with("PATCH"));
    patches
        .filter_map(|call| {
            let path = call.split_whitespace().nth(1)?;
            let mut parts = path.rsplit('/');
            let name = parts.next()?;
            Some(format!("{} {name}", parts.next()?))
        })
        .collect()
}

#[tokio::test]
async fn everything_is_applied_in_order_and_then_no_call_is_made_any_more() {
    let mut world = World::new();
    let cluster = stored("main");
    let calls = world.reconcile(&cluster).await.unwrap();
    let order = applied(&calls);
    let position = |wanted: &str| {
        order
            .iter()
            .position(|made| made.starts_with(wanted))
            .unwrap_or_else(|| panic!("no {wanted} in {order:#?}"))
    };
    let wanted = [
        "proverclusters main",
        "secrets main-coordinator-tls",
        "serviceaccounts main-coordinator",
        "roles main-coordinator",
        "rolebindings main-coordinator",
        "configmaps main-namespaces",
        "services main-coordinator",
        "networkpolicies main-coordinator",
        "poddisruptionbudgets main-coordinator",
        "deployments main-coordinator",
        "deployments main-one-",
        "deployments main-two-",
    ];
    assert!(wanted.map(position).is_sorted(), "{order:#?}");

    world.reconcile(&cluster).await.unwrap();
    assert_eq!(world.reconcile(&cluster).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_hundred_unchanged_clusters_cost_no_call() {
    let mut world = World::new();
    let clusters: Vec<Value> = (0..100).map(|index| stored(&format!("main-{index}"))).collect();
    // The second time the statuses see what was made.
    for _ in 0..2 {
        world.catch_up();
        for cluster in &clusters {
            world.reconcile_as_cached(cluster).await.unwrap();
        }
    }
    world.catch_up();
    for cluster in &clusters {
        assert_eq!(
            world.reconcile_as_cached(cluster).await.unwrap(),
            Vec::<String>::new()
        );
    }
}

#[tokio::test]
async fn workers_begin_with_no_replicas_and_the_operator_never_owns_their_number() {
    let mut world = World::new();
    let calls = world.reconcile(&stored("main")).await.unwrap();
    let name = world.worker_deployments()[0].clone();
    let path = format!("/apis/apps/v1/namespaces/proving/deployments/{name}");
    let managers: Vec<&str> = calls
        .iter()
        .filter(|call| call.contains(&path))
        .filter_map(|call| call.split_whitespace().nth(2))
        .collect();
    assert_eq!(managers, ["prover-scaler", "prover-operator", "prover-scaler"]);
    assert_eq!(world.server.object(&path).unwrap()["spec"]["replicas"], 0);
}

#[tokio::test]
async fn what_somebody_else_changed_is_put_right_and_nothing_else_is_touched() {
    let mut world = World::new();
    let cluster = stored("main");
    world.settle(&cluster).await;
    let service = "/api/v1/namespaces/proving/services/main-coordinator";
    world.server.change(service, |service| {
        service["spec"]["clusterIP"] = json!("10.0.0.1");
    });
    let calls = world.reconcile(&cluster).await.unwrap();
    assert_eq!(calls, [format!("PATCH {service} prover-operator")]);
    assert_eq!(world.server.object(service).unwrap()["spec"]["clusterIP"], "None");
    assert_eq!(world.reconcile(&cluster).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_status_that_others_write_wakes_nothing() {
    let mut world = World::new();
    let cluster = stored("main");
    world.settle(&cluster).await;
    let deployment = "/apis/apps/v1/namespaces/proving/deployments/main-coordinator";
    world.server.change(deployment, |deployment| {
        deployment["status"] = json!({ "observedGeneration": 1 });
    });
    assert_eq!(world.reconcile(&cluster).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn another_operator_applies_once_and_changes_nothing() {
    let mut world = World::new();
    let cluster = stored("main");
    world.settle(&cluster).await;
    let before = world.context_deployments();
    let mut world = world.restarted(Settings {
        worker_image: "localhost/prover-worker:0.2.0".to_owned(),
        coordinator_image: "localhost/prover-operator:0.2.0".to_owned(),
        ..settings()
    });
    let versions = |world: &World| {
        let deployments = world.server.caches().deployments.state();
        let mut versions: Vec<_> = deployments
            .iter()
            .map(|d| d.metadata.resource_version.clone())
            .collect();
        versions.sort();
        versions
    };
    let unchanged = versions(&world);
    world.reconcile(&cluster).await.unwrap();
    assert_eq!(world.context_deployments(), before);
    assert_eq!(versions(&world), unchanged);
    assert_eq!(world.reconcile(&cluster).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_removed_group_had_goes_at_once_and_its_workers_once_they_are_gone() {
    let mut world = World::new();
    let mut cluster = stored("main");
    world.reconcile(&cluster).await.unwrap();
    let removed = world
        .worker_deployments()
        .into_iter()
        .find(|name| name.contains("-two-"))
        .unwrap();
    let path = format!("/apis/apps/v1/namespaces/proving/deployments/{removed}");
    world
        .server
        .change(&path, |deployment| deployment["spec"]["replicas"] = json!(2));

    cluster["spec"]["workerGroups"] = json!([group("one")]);
    world.coordinator_tells(ClusterState::default());
    let calls = world.reconcile(&cluster).await.unwrap();
    assert!(
        calls.contains(&"DELETE /apis/policy/v1/namespaces/proving/poddisruptionbudgets/main.two".to_owned())
    );
    assert!(world.worker_deployments().contains(&removed));

    world
        .server
        .change(&path, |deployment| deployment["spec"]["replicas"] = json!(0));
    let calls = world.reconcile(&cluster).await.unwrap();
    assert!(calls.contains(&format!("DELETE {path}")), "{calls:#?}");
    assert_eq!(world.worker_deployments().len(), 1);
}

#[tokio::test]
async fn a_changed_group_gets_a_new_deployment_beside_the_old_one() {
    let mut world = World::new();
    let mut cluster = stored("main");
    world.reconcile(&cluster).await.unwrap();
    for name in world.worker_deployments() {
        let path = format!("/apis/apps/v1/namespaces/proving/deployments/{name}");
        world
            .server
            .change(&path, |deployment| deployment["spec"]["replicas"] = json!(1));
    }
    cluster["spec"]["backends"][0]["image"] = json!("localhost/prover-backend-risc0:0.2.0");
    world.reconcile(&cluster).await.unwrap();
    assert_eq!(world.worker_deployments().len(), 4);
    let named: Vec<String> = world.status()["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group["deployment"].as_str().unwrap().to_owned())
        .collect();
    assert!(named.iter().all(|name| world.worker_deployments().contains(name)));
}

#[tokio::test]
async fn a_paused_cluster_gets_a_status_and_nothing_else() {
    let mut world = World::new();
    let mut cluster = stored("main");
    cluster["metadata"]["annotations"] = json!({ "proving.rs/apply": "paused" });
    let calls = world.reconcile(&cluster).await.unwrap();
    let writes: Vec<&String> = calls.iter().filter(|call| !call.contains("/events")).collect();
    assert_eq!(writes, [&format!("PATCH {CLUSTER}/status prover-operator")]);
    let condition = world.condition("Applying");
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("Paused"))
    );
    assert!(
        condition["message"]
            .as_str()
            .unwrap()
            .contains("create Deployment proving/main-coordinator")
    );
}

#[tokio::test]
async fn a_dry_run_asks_and_changes_nothing() {
    let mut world = World::new();
    let mut cluster = stored("main");
    cluster["metadata"]["annotations"] = json!({ "proving.rs/apply": "dry-run" });
    let calls = world.reconcile(&cluster).await.unwrap();
    let real: Vec<&String> = calls
        .iter()
        .filter(|call| !call.ends_with("dry-run") && !call.contains("/events"))
        .collect();
    assert_eq!(real, [&format!("PATCH {CLUSTER}/status prover-operator")]);
    assert!(calls.iter().any(|call| call.ends_with("dry-run")));
    assert_eq!(world.condition("Applying")["reason"], "DryRun");
}

#[tokio::test]
async fn a_refused_object_is_told_and_nothing_that_needs_it_is_made() {
    let mut world = World::new();
    world.server.refuse(Some("/networkpolicies/"));
    let error = world.reconcile(&stored("main")).await.unwrap_err();
    assert_eq!(error.category(), "api_invalid");
    assert!(world.context_deployments().is_empty());
    let condition = world.condition("Ready");
    assert_eq!(condition["reason"], "ApplyFailed");
    let message = condition["message"].as_str().unwrap();
    assert!(
        message.contains("NetworkPolicy proving/main-coordinator") && message.contains("refused by the test")
    );
    world.server.refuse(None);
    world.reconcile(&stored("main")).await.unwrap();
    assert_eq!(world.context_deployments().len(), 3);
}

#[tokio::test]
async fn what_can_not_be_built_is_told_and_leaves_everything_as_it_is() {
    let mut world = World::new();
    let mut cluster = stored("main");
    world.reconcile(&cluster).await.unwrap();
    let before = world.context_deployments();
    cluster["spec"]["workerGroups"] = json!([{ "name": "one", "backend": "risc0", "device": { "cpu": {} } }]);
    world.reconcile(&cluster).await.unwrap();
    assert_eq!(world.context_deployments(), before);
    assert_eq!(world.condition("Ready")["reason"], "InvalidSpec");
}

#[tokio::test]
async fn a_cluster_that_goes_finishes_its_jobs_first() {
    let mut world = World::new();
    let mut cluster = stored("main");
    world.reconcile(&cluster).await.unwrap();
    cluster["metadata"]["deletionTimestamp"] = json!("2026-09-21T00:00:00Z");
    world.job(false);
    let calls = world.reconcile(&cluster).await.unwrap();
    assert!(calls.iter().all(|call| !call.starts_with("DELETE")), "{calls:#?}");
    assert_eq!(world.condition("Draining")["reason"], "UnfinishedJobs");

    world.job(true);
    let calls = world.reconcile(&cluster).await.unwrap();
    assert!(
        calls
            .iter()
            .any(|call| call.starts_with("DELETE") && call.contains("/secrets/authority-")),
        "{calls:#?}"
    );
    assert_eq!(calls.last().unwrap(), &format!("PATCH {CLUSTER} prover-operator"));
    assert_eq!(
        world.server.object(CLUSTER).unwrap()["metadata"]["finalizers"],
        json!([])
    );
}
