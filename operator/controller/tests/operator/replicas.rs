//! Replicas through `/scale`, beside an apply that never names them.

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use prover_crds::{ProverCluster, names};
use serde_json::{Value, json};

use crate::support::{Server, eventually};

fn deployment(name: &str, replicas: Option<u32>) -> Value {
    let labels = json!({
        names::CLUSTER_LABEL: "main", names::GROUP_LABEL: "cpus", names::REVISION_LABEL: name,
        names::MANAGED_BY_LABEL: names::PROJECT, names::COMPONENT_LABEL: names::WORKER,
    });
    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "agent", "image": "worker" }] },
            },
        },
    });
    if let Some(replicas) = replicas {
        deployment["spec"]["replicas"] = json!(replicas);
    }
    deployment
}

#[tokio::test]
async fn a_fixed_number_is_written_by_the_scaler_and_survives_every_apply() {
    let server = Server::start().await;
    let namespace = server.namespace("replicas").await;
    let operator = server.operator(&[&namespace]);
    server.create_cluster(&namespace, "main", &json!({})).await;
    let deployments: Api<Deployment> = Api::namespaced(server.client.clone(), &namespace);
    let create: Deployment = serde_json::from_value(deployment("main-cpus-1", Some(0))).unwrap();
    deployments.create(&Default::default(), &create).await.unwrap();
    let apply = || async {
        let parameters = PatchParams::apply(names::OPERATOR_MANAGER).force();
        let patch = Patch::Apply(deployment("main-cpus-1", None));
        deployments
            .patch("main-cpus-1", &parameters, &patch)
            .await
            .unwrap()
    };
    apply().await;
    let clusters: Api<ProverCluster> = Api::namespaced(server.client.clone(), &namespace);
    let status = json!({ "status": { "groups": [{ "name": "cpus", "deployment": "main-cpus-1" }] } });
    clusters
        .patch_status("main", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();

    let replicas = || async {
        deployments
            .get("main-cpus-1")
            .await
            .unwrap()
            .spec
            .unwrap()
            .replicas
    };
    eventually("there are two replicas", || async { replicas().await == Some(2) }).await;
    assert_eq!(apply().await.spec.unwrap().replicas, Some(2));
    let deployment = deployments.get("main-cpus-1").await.unwrap();
    let owns = |manager: &str| {
        deployment.managed_fields().iter().any(|entry| {
            let fields = entry
                .fields_v1
                .as_ref()
                .map(|fields| fields.0.to_string())
                .unwrap_or_default();
            entry.manager.as_deref() == Some(manager) && fields.contains("f:replicas")
        })
    };
    assert!(owns(names::SCALER_MANAGER) && !owns(names::OPERATOR_MANAGER));

    let more = json!({ "spec": { "workerGroups": [
        { "name": "cpus", "backend": "risc0", "device": { "cpu": {} }, "replicas": 5 },
    ] } });
    clusters
        .patch("main", &PatchParams::default(), &Patch::Merge(more))
        .await
        .unwrap();
    eventually("there are five replicas", || async {
        replicas().await == Some(5)
    })
    .await;
    operator.stop().await;
}
