//! Authorities, bundles and certificates on a real kube-apiserver.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use prover_controller::caches::{Queues, caches};
use prover_controller::certificates::issue::{is_trusted, read_bundle, read_leaf};
use prover_controller::certificates::{authority_secret, ensure, forget};
use prover_controller::{ClusterKey, Context, Metrics};
use prover_crds::{ProverCluster, names};
use prover_runtime::{Clock, SystemClock};
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{Server, counting, eventually, settings};

struct World {
    server: Server,
    context: Context,
    cluster: ProverCluster,
    key: ClusterKey,
    requests: Arc<AtomicUsize>,
    _filling: JoinSet<()>,
}

impl World {
    async fn start(namespace: &str) -> World {
        let server = Server::start().await;
        let namespace = server.namespace(namespace).await;
        let cluster = server.create_cluster(&namespace, "main", &json!({})).await;
        let requests = Arc::new(AtomicUsize::new(0));
        let client = counting(server.client.clone(), Arc::clone(&requests));
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let settings = settings(&[&namespace]);
        let (caches, filling) = caches(&client, &settings, &Queues::default(), &metrics);
        let filling: JoinSet<()> = filling.into_iter().collect();
        let context = Context::new(client, settings, caches, metrics, Arc::new(SystemClock::new()));
        eventually("the caches are filled", || async {
            context.caches.missing().is_none()
        })
        .await;
        let key = ClusterKey {
            namespace,
            name: "main".to_owned(),
        };
        World {
            server,
            context,
            cluster,
            key,
            requests,
            _filling: filling,
        }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.server.client.clone(), &self.key.namespace)
    }

    fn bundles(&self) -> Api<ConfigMap> {
        Api::namespaced(self.server.client.clone(), &self.key.namespace)
    }

    async fn ensure(&self) {
        Box::pin(ensure(&self.context, &self.cluster, &self.key))
            .await
            .unwrap();
    }

    /// Looks until a look costs nothing: then the caches have caught up.
    async fn settle(&self) {
        eventually("a look costs nothing", || async {
            let before = self.requests.load(Ordering::SeqCst);
            self.ensure().await;
            self.requests.load(Ordering::SeqCst) == before
        })
        .await;
    }

    /// What a worker with the bundle thinks of the coordinator's certificate.
    async fn agrees(&self) -> bool {
        let Some(leaf) = self.secrets().get_opt(&names::tls_secret("main")).await.unwrap() else {
            return false;
        };
        let Some(map) = self.bundles().get_opt(&names::ca_bundle("main")).await.unwrap() else {
            return false;
        };
        let data = leaf.data.unwrap();
        let text = |name: &str| String::from_utf8(data[name].0.clone()).unwrap();
        let Some(leaf) = read_leaf(&text("tls.crt"), &text("tls.key")) else {
            return false;
        };
        let bundle = read_bundle(&map.data.unwrap()["ca.crt"]).unwrap();
        is_trusted(
            &leaf,
            &bundle,
            names::COORDINATOR_SERVER_NAME,
            SystemClock::new().now_milliseconds(),
        )
    }
}

#[tokio::test]
async fn a_cluster_gets_its_certificates_and_looking_again_asks_nothing() {
    let world = World::start("certificates").await;
    world.ensure().await;
    assert!(world.agrees().await);
    world.settle().await;
    let uid = world.cluster.uid().unwrap();
    let authority = world.secrets().get(&authority_secret(&uid)).await.unwrap();
    assert_eq!(authority.labels()[names::CLUSTER_LABEL], "main");
    let leaf = world.secrets().get(&names::tls_secret("main")).await.unwrap();
    assert_eq!(leaf.type_.as_deref(), Some("kubernetes.io/tls"));
    assert_eq!(leaf.owner_references()[0].uid, uid);
    forget(&world.context, &world.cluster).await.unwrap();
    assert!(
        world
            .secrets()
            .get_opt(&authority_secret(&uid))
            .await
            .unwrap()
            .is_none()
    );
    forget(&world.context, &world.cluster).await.unwrap();
}

#[tokio::test]
async fn what_is_deleted_or_changed_is_made_again() {
    let world = World::start("certificates-damaged").await;
    world.ensure().await;
    world.settle().await;
    let (leaf, bundle) = (names::tls_secret("main"), names::ca_bundle("main"));
    let parameters = PatchParams::default();

    world
        .secrets()
        .delete(&leaf, &DeleteParams::default())
        .await
        .unwrap();
    eventually("the certificate is made again", || async {
        world.ensure().await;
        world.agrees().await
    })
    .await;
    world.settle().await;

    let nonsense = Patch::Merge(json!({ "stringData": { "tls.crt": "nonsense" } }));
    world
        .secrets()
        .patch(&leaf, &parameters, &nonsense)
        .await
        .unwrap();
    eventually("the certificate is made again", || async {
        world.ensure().await;
        world.agrees().await
    })
    .await;
    world.settle().await;

    let empty = Patch::Merge(json!({ "data": { "ca.crt": "" } }));
    world.bundles().patch(&bundle, &parameters, &empty).await.unwrap();
    eventually("the bundle is restored", || async {
        world.ensure().await;
        world.agrees().await
    })
    .await;
    world.settle().await;

    // Without its authority the certificate stays in use until workers know the new authority.
    let before = world.secrets().get(&leaf).await.unwrap().data;
    let name = authority_secret(&world.cluster.uid().unwrap());
    world
        .secrets()
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    eventually("there is an authority again", || async {
        world.ensure().await;
        world.secrets().get_opt(&name).await.unwrap().is_some()
    })
    .await;
    assert!(world.agrees().await);
    assert_eq!(world.secrets().get(&leaf).await.unwrap().data, before);
    let map = world.bundles().get(&bundle).await.unwrap();
    assert_eq!(read_bundle(&map.data.unwrap()["ca.crt"]).unwrap().len(), 2);
}
