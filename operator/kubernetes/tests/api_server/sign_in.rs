//! Tokens that a real API server has issued, and the pods that they are bound to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, watcher};
use prover_coordinator::{AuthenticationError, Identity, WorkerAuthenticator};
use prover_crds::names;
use prover_kubernetes::identity::{Authenticator, IdentityConfig};
use prover_kubernetes::pods::{PodDirectory, PodNews, PodSink, follow};
use prover_runtime::SystemClock;
use prover_runtime::prometheus::Registry;
use serde_json::json;
use tokio::sync::mpsc;

use crate::fixture::{Fixture, SOON};

const ADDRESS: &str = "10.1.2.3:40000";

struct Heard(mpsc::UnboundedSender<PodNews>);

#[async_trait::async_trait]
impl PodSink for Heard {
    async fn tell(&self, news: PodNews) {
        let _ = self.0.send(news);
    }
}

async fn mk_account(fixture: &Fixture, name: &str) {
    let accounts: Api<ServiceAccount> = Api::namespaced(fixture.client.clone(), &fixture.namespace);
    let account = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();
}

/// A pod that runs as far as the API server knows.
async fn mk_pod(fixture: &Fixture, name: &str, account: &str) -> Pod {
    let pods: Api<Pod> = Api::namespaced(fixture.client.clone(), &fixture.namespace);
    let pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {names::CLUSTER_LABEL: "main", names::COMPONENT_LABEL: names::WORKER}},
        "spec": {"serviceAccountName": account, "automountServiceAccountToken": false,
                 "containers": [{"name": names::AGENT_CONTAINER, "image": "none"}]}
    }))
    .unwrap();
    let pod = pods.create(&PostParams::default(), &pod).await.unwrap();
    let status = json!({"status": {"phase": "Running", "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    pod
}

async fn mk_token(fixture: &Fixture, account: &str, audience: &str, pod: Option<&Pod>) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(fixture.client.clone(), &fixture.namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            bound_object_ref: pod.map(|pod| BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
            expiration_seconds: Some(3_600),
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .unwrap();
    answer.status.unwrap().token
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_the_api_server_let_in_their_own_pods_until_those_are_deleted() {
    let fixture = Fixture::new().await;
    let namespace = fixture.namespace.clone();
    let worker_account = names::worker_account("main");
    for account in [worker_account.as_str(), "other", "the-operator"] {
        mk_account(&fixture, account).await;
    }
    let directory = PodDirectory::default();
    let (heard, mut news) = mpsc::unbounded_channel();
    let pods: Api<Pod> = Api::namespaced(fixture.client.clone(), &namespace);
    let events = watcher(pods.clone(), watcher::Config::default());
    let known = directory.clone();
    let following = tokio::spawn(async move { follow(events, &known, &Heard(heard)).await });
    let config = IdentityConfig {
        namespace: namespace.clone(),
        cluster: "main".to_owned(),
        operator_namespace: namespace.clone(),
        operator_account: "the-operator".to_owned(),
        check_address: true,
    };
    let clock = Arc::new(SystemClock::new());
    let client = fixture.client.clone();
    let authenticator = Authenticator::new(client, &config, directory, clock, &Registry::new()).unwrap();
    let judge = async |token: &str| {
        authenticator
            .authenticate(token, Some(ADDRESS.parse().unwrap()))
            .await
    };
    let refused = |judged: Result<Identity, AuthenticationError>| judged.unwrap_err().category();

    let pod = mk_pod(&fixture, "cpu-a", &worker_account).await;
    let audience = names::worker_audience(&namespace, "main");
    let token = mk_token(&fixture, &worker_account, &audience, Some(&pod)).await;
    let identity = Identity::Worker {
        pod_name: "cpu-a".into(),
        pod_uid: pod.uid().unwrap().into(),
    };
    assert_eq!(judge(&token).await, Ok(identity));
    let operator_audience = names::operator_audience(&namespace, "main");
    let operator = mk_token(&fixture, "the-operator", &operator_audience, None).await;
    assert_eq!(judge(&operator).await, Ok(Identity::Operator));

    let other_pod = mk_pod(&fixture, "cpu-b", "other").await;
    let other_account = mk_token(&fixture, "other", &audience, Some(&other_pod)).await;
    assert_eq!(refused(judge(&other_account).await), "token_account");
    let api = mk_token(
        &fixture,
        &worker_account,
        "https://kubernetes.default.svc",
        Some(&pod),
    )
    .await;
    assert_eq!(refused(judge(&api).await), "token_audience");
    let unbound = mk_token(&fixture, &worker_account, &audience, None).await;
    assert_eq!(refused(judge(&unbound).await), "token_without_pod");
    let wrong_plane = mk_token(&fixture, &worker_account, &operator_audience, Some(&pod)).await;
    assert_eq!(refused(judge(&wrong_plane).await), "token_account");

    let deleted = Instant::now();
    pods.delete("cpu-a", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    let told = tokio::time::timeout(SOON, news.recv()).await.unwrap().unwrap();
    assert!(
        matches!(&told, PodNews::Gone { name, .. } if name == "cpu-a"),
        "{told:?}"
    );
    assert!(
        deleted.elapsed() < Duration::from_secs(2),
        "{:?}",
        deleted.elapsed()
    );
    assert_eq!(refused(judge(&token).await), "pod_unknown");
    following.abort();
}
