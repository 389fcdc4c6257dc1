//! What users install and apply, on a real kube-apiserver: the rendered chart, the operator's rights, the samples.
//!
//! Owns no manifest. The rights are tried as the operator's ServiceAccount, so that the API server itself says what is
//! missing and what is too much.

#[path = "../../crds/tests/api_server/kubernetes.rs"]
mod kubernetes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kube::{Client, Error};
use kubernetes::Kubernetes;
use serde_json::{Value, json};

const SYSTEM_NAMESPACE: &str = "prover-system";
/// Namespace and name of the operator's ServiceAccount.
const ACCOUNT: (&str, &str) = (SYSTEM_NAMESPACE, "prover-operator");
/// Kinds of the optional objects whose definitions others bring.
const FOREIGN_GROUP: &str = "monitoring.coreos.com/";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The output of a command, which must succeed.
fn output_of(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(repository())
        .output()
        .unwrap_or_else(|error| panic!("could not start {}: {error}", program.display()));
    assert!(
        output.status.success(),
        "{} {arguments:?}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Helm's rendering of the chart.
fn rendered(arguments: &[&str]) -> Vec<Value> {
    rendered_as("prover-operator", SYSTEM_NAMESPACE, arguments)
}

fn rendered_as(release: &str, namespace: &str, arguments: &[&str]) -> Vec<Value> {
    let folder = output_of(&repository().join("e2e/tools/build-helm.sh"), &["helm"]);
    let mut all = vec![
        "template",
        release,
        "charts/prover-operator",
        "--namespace",
        namespace,
    ];
    all.extend(arguments);
    documents(&output_of(&Path::new(folder.trim()).join("helm"), &all))
}

fn documents(yaml: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml).expect("YAML");
    all.into_iter().filter(|object| !object.is_null()).collect()
}

/// An API server to which objects are applied as `kubectl apply --server-side` does it.
struct Server {
    client: Client,
    /// Path of a kind's resource in lists, by API version and kind.
    resources: BTreeMap<(String, String), (String, bool)>,
    // Kept alive for as long as the client is used.
    _kubernetes: Arc<Kubernetes>,
}

impl Server {
    /// With the definitions of the chart and these namespaces.
    async fn start(namespaces: &[&str]) -> Server {
        let kubernetes = Kubernetes::shared();
        let client = kubernetes.client().await;
        let mut server = Server {
            client,
            resources: BTreeMap::new(),
            _kubernetes: kubernetes,
        };
        server
            .discover(&["/api/v1", "/apis/apiextensions.k8s.io/v1"])
            .await;
        let definitions = rendered(&["--show-only", "templates/definitions.yaml"]);
        assert_eq!(definitions.len(), 2);
        for definition in &definitions {
            server.apply(definition, "").await.expect("a definition is taken");
        }
        for namespace in namespaces {
            server.namespace(namespace, json!({})).await;
        }
        server.wait_for_definitions().await;
        server
            .discover(&[
                "/apis/apps/v1",
                "/apis/rbac.authorization.k8s.io/v1",
                "/apis/policy/v1",
                "/apis/networking.k8s.io/v1",
                "/apis/admissionregistration.k8s.io/v1",
                "/apis/proving.rs/v1alpha1",
            ])
            .await;
        server
    }

    /// A definition's objects are served before the group's list names it, so both are asked.
    async fn wait_for_definitions(&self) {
        let group = "/apis/proving.rs/v1alpha1";
        let served = async {
            for plural in ["proofjobs", "proverclusters"] {
                while !self.lists(group, plural).await
                    || self.get(&format!("{group}/{plural}")).await.is_err()
                {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), served)
            .await
            .expect("the definitions are served in time");
    }

    /// Whether a group names a resource among its own.
    async fn lists(&self, group: &str, plural: &str) -> bool {
        let list = self.get(group).await.unwrap_or_default();
        let resources = list["resources"].as_array();
        resources.is_some_and(|all| all.iter().any(|resource| resource["name"] == plural))
    }

    async fn discover(&mut self, groups: &[&str]) {
        for group in groups {
            let list = self.get(group).await.expect("an API group");
            for resource in list["resources"].as_array().expect("resources") {
                let name = text(&resource["name"]);
                if !name.contains('/') {
                    self.resources.insert(
                        (text(&list["groupVersion"]), text(&resource["kind"])),
                        (format!("{group}/{name}"), resource["namespaced"] == true),
                    );
                }
            }
        }
    }

    async fn namespace(&self, name: &str, labels: Value) {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
        self.apply(&object, "").await.expect("a namespace is taken");
    }

    fn path(&self, object: &Value) -> String {
        let key = (text(&object["apiVersion"]), text(&object["kind"]));
        let (resource, namespaced) = self
            .resources
            .get(&key)
            .unwrap_or_else(|| panic!("no kind {key:?}"));
        let name = text(&object["metadata"]["name"]);
        if !namespaced {
            return format!("{resource}/{name}");
        }
        let (group, plural) = resource.rsplit_once('/').expect("a path");
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or_else(|| panic!("{key:?} {name} names no namespace"));
        format!("{group}/namespaces/{namespace}/{plural}/{name}")
    }

    /// Applies strictly, with further words of the query such as `&dryRun=All`.
    async fn apply(&self, object: &Value, query: &str) -> Result<Value, String> {
        let path = self.path(object);
        let request = http::Request::patch(format!(
            "{path}?fieldManager=test&force=true&fieldValidation=Strict{query}"
        ))
        .header(http::header::CONTENT_TYPE, "application/apply-patch+yaml");
        self.send(request, object).await
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        self.send(http::Request::get(path), &Value::Null).await
    }

    /// Asks as a ServiceAccount (namespace and name).
    async fn ask_as(
        &self,
        account: (&str, &str),
        request: http::request::Builder,
        body: &Value,
    ) -> Result<Value, String> {
        self.send_as(account, "application/json", request, body).await
    }

    /// Merges a patch as a ServiceAccount.
    async fn merge_as(
        &self,
        account: (&str, &str),
        request: http::request::Builder,
        body: &Value,
    ) -> Result<Value, String> {
        self.send_as(account, "application/merge-patch+json", request, body)
            .await
    }

    async fn send_as(
        &self,
        account: (&str, &str),
        content: &str,
        request: http::request::Builder,
        body: &Value,
    ) -> Result<Value, String> {
        let user = format!("system:serviceaccount:{}:{}", account.0, account.1);
        let mut request = request
            .header("Impersonate-User", user)
            .header(http::header::CONTENT_TYPE, content);
        for group in groups_of(account) {
            request = request.header("Impersonate-Group", group);
        }
        self.send(request, body).await
    }

    async fn send(&self, request: http::request::Builder, body: &Value) -> Result<Value, String> {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        match self.client.request(request.body(body).expect("a request")).await {
            Ok(answer) => Ok(answer),
            Err(Error::Api(status)) => Err(status.message.clone()),
            Err(error) => panic!("the API server did not answer: {error}"),
        }
    }

    /// Applies what the chart renders, but for kinds that others define.
    async fn install(&self, arguments: &[&str]) {
        for object in rendered(arguments) {
            if !text(&object["apiVersion"]).starts_with(FOREIGN_GROUP) {
                let path = self.path(&object);
                self.apply(&object, "")
                    .await
                    .unwrap_or_else(|error| panic!("{path}: {error}"));
            }
        }
    }

    /// Whether an account (namespace and name) may do something, as the authorizer says.
    async fn may(
        &self,
        account: (&str, &str),
        verb: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        let (group, resource) = resource.split_once('/').expect("group/resource");
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{}:{}", account.0, account.1),
                "groups": groups_of(account),
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource, "subresource": subresource,
                    "namespace": namespace, "name": name,
                }
            }
        });
        let request = http::Request::post("/apis/authorization.k8s.io/v1/subjectaccessreviews")
            .header(http::header::CONTENT_TYPE, "application/json");
        let answer = self.send(request, &review).await.expect("an answer");
        answer["status"]["allowed"] == true
    }
}

/// Groups that every ServiceAccount is in.
fn groups_of((namespace, _): (&str, &str)) -> [String; 3] {
    [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ]
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Files of values beside the chart's unit tests.
fn files_of_values() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prover-operator/tests/values");
    let files = std::fs::read_dir(folder).expect("files of values");
    let mut paths: Vec<String> = files
        .flatten()
        .map(|entry| entry.path().display().to_string())
        .collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn everything_the_chart_renders_is_taken_strictly() {
    let server = Server::start(&[SYSTEM_NAMESPACE, "team-a", "team-b"]).await;
    let mut renderings = vec![rendered(&[])];
    for file in files_of_values() {
        renderings.push(rendered(&["--values", &file]));
    }
    let mut problems = Vec::new();
    let mut foreign = 0;
    for object in renderings.iter().flatten() {
        if text(&object["apiVersion"]).starts_with(FOREIGN_GROUP) {
            foreign += 1;
            continue;
        }
        let path = server.path(object);
        if let Err(problem) = server.apply(object, "&dryRun=All").await {
            problems.push(format!("{path}: {problem}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(foreign, 2, "only the two monitors can't be asked about here");
}

#[tokio::test]
async fn applying_the_chart_again_changes_nothing() {
    let server = Server::start(&[SYSTEM_NAMESPACE]).await;
    server.install(&[]).await;
    let objects = rendered(&[]);
    let mut before = Vec::new();
    for object in &objects {
        before.push(server.get(&server.path(object)).await.expect("it is there"));
    }
    server.install(&[]).await;
    for (object, before) in objects.iter().zip(before) {
        let after = server.get(&server.path(object)).await.expect("it is there");
        assert_eq!(
            version(&after),
            version(&before),
            "{} changed",
            server.path(object)
        );
    }
}

fn version(object: &Value) -> String {
    text(&object["metadata"]["resourceVersion"])
}

#[tokio::test]
async fn the_operators_pod_holds_to_the_restricted_standard() {
    let server = Server::start(&[SYSTEM_NAMESPACE]).await;
    server.install(&[]).await;
    let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
    server.namespace(SYSTEM_NAMESPACE, labels).await;
    let deployment = rendered(&["--show-only", "templates/deployment.yaml"]);
    let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "one", "namespace": SYSTEM_NAMESPACE } });
    pod["spec"] = deployment[0]["spec"]["template"]["spec"].clone();
    let taken = server.apply(&pod, "&dryRun=All").await;
    assert!(taken.is_ok(), "{taken:?}");

    pod["spec"]["containers"][0]["securityContext"] = json!({});
    let refused = server.apply(&pod, "&dryRun=All").await.unwrap_err();
    assert!(
        refused.contains("violates PodSecurity"),
        "the standard is enforced: {refused}"
    );
}

/// Verbs that the operator needs in a namespace that it looks at, and those it must not have.
const WANTED: [(&str, &str); 29] = [
    ("watch", "proving.rs/proverclusters"),
    ("patch", "proving.rs/proverclusters/status"),
    ("update", "proving.rs/proverclusters/finalizers"),
    ("list", "proving.rs/proofjobs"),
    ("patch", "proving.rs/proofjobs"),
    ("delete", "proving.rs/proofjobs"),
    ("patch", "proving.rs/proofjobs/status"),
    ("create", "apps/deployments"),
    ("patch", "apps/deployments"),
    ("delete", "apps/deployments"),
    ("patch", "apps/deployments/scale"),
    ("patch", "apps/daemonsets"),
    ("create", "/services"),
    ("create", "/serviceaccounts"),
    ("create", "/configmaps"),
    ("create", "/secrets"),
    ("watch", "/secrets"),
    ("watch", "/pods"),
    ("patch", "/pods"),
    ("create", "coordination.k8s.io/leases"),
    ("update", "coordination.k8s.io/leases"),
    ("create", "policy/poddisruptionbudgets"),
    ("create", "networking.k8s.io/networkpolicies"),
    ("create", "rbac.authorization.k8s.io/roles"),
    ("create", "rbac.authorization.k8s.io/rolebindings"),
    ("delete", "rbac.authorization.k8s.io/roles"),
    ("create", "events.k8s.io/events"),
    ("patch", "events.k8s.io/events"),
    ("get", "apps/deployments/scale"),
];
const UNWANTED: [(&str, &str); 14] = [
    ("create", "/pods"),
    ("create", "/pods/exec"),
    ("delete", "/pods"),
    ("delete", "coordination.k8s.io/leases"),
    ("deletecollection", "/secrets"),
    ("create", "/serviceaccounts/token"),
    ("impersonate", "/serviceaccounts"),
    ("escalate", "rbac.authorization.k8s.io/roles"),
    ("bind", "rbac.authorization.k8s.io/roles"),
    ("create", "rbac.authorization.k8s.io/clusterroles"),
    ("create", "proving.rs/proverclusters"),
    ("delete", "proving.rs/proverclusters"),
    ("create", "proving.rs/proofjobs"),
    ("get", "/nodes"),
];

async fn assert_rights(server: &Server, namespace: &str, named: bool) {
    for (verb, resource) in WANTED {
        let allowed = server.may(ACCOUNT, verb, resource, namespace, "any").await;
        assert_eq!(allowed, named, "{verb} {resource} in {namespace}");
    }
    for (verb, resource) in UNWANTED {
        let allowed = server.may(ACCOUNT, verb, resource, namespace, "any").await;
        assert!(!allowed, "{verb} {resource} in {namespace} is too much");
    }
}

#[tokio::test]
async fn the_operator_may_do_what_it_does_and_no_more() {
    let server = Server::start(&[SYSTEM_NAMESPACE, "anywhere"]).await;
    server.install(&[]).await;
    assert_rights(&server, "anywhere", true).await;
    assert!(server.may(ACCOUNT, "watch", "/namespaces", "", "").await);
    for (verb, resource, name, expected) in [
        ("create", "/serviceaccounts/token", "prover-operator", true),
        ("create", "/serviceaccounts/token", "default", false),
        ("update", "coordination.k8s.io/leases", "prover-operator", true),
        ("create", "coordination.k8s.io/leases", "", true),
    ] {
        let allowed = server.may(ACCOUNT, verb, resource, SYSTEM_NAMESPACE, name).await;
        assert_eq!(allowed, expected, "{verb} {resource} {name}");
    }
}

#[tokio::test]
async fn with_named_namespaces_it_has_no_rights_in_others() {
    let server = Server::start(&["limited", "limited-a", "limited-b", "limited-c"]).await;
    let values = [
        "--set",
        "watchNamespaces={limited-a,limited-b},fullnameOverride=limited",
    ];
    for object in rendered_as("limited", "limited", &values) {
        server.apply(&object, "").await.expect("it is taken");
    }
    let account = ("limited", "limited");
    for (verb, resource) in [
        ("watch", "proving.rs/proofjobs"),
        ("patch", "apps/deployments"),
        ("watch", "/secrets"),
        ("create", "rbac.authorization.k8s.io/roles"),
    ] {
        for (namespace, expected) in [
            ("limited-a", true),
            ("limited-b", true),
            ("limited-c", false),
            ("", false),
        ] {
            assert_eq!(
                server.may(account, verb, resource, namespace, "any").await,
                expected,
                "{verb} {resource} in {namespace:?}"
            );
        }
    }
    let reads_namespaces = server.may(account, "list", "/namespaces", "", "").await;
    assert!(!reads_namespaces, "it reads no namespaces");
}

/// What the operator grants a coordinator in a namespace that a ProverCluster allows.
fn coordinators_role(rules: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": { "name": "coordinator", "namespace": "anywhere" },
        "rules": rules,
    })
}

#[tokio::test]
async fn the_operator_may_grant_coordinators_their_rights_and_nothing_else() {
    let server = Server::start(&[SYSTEM_NAMESPACE, "anywhere"]).await;
    server.install(&[]).await;
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/anywhere/roles?dryRun=All";
    let good = json!([
        { "apiGroups": ["proving.rs"], "resources": ["proofjobs", "proverclusters"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["proving.rs"], "resources": ["proofjobs/status"], "verbs": ["patch"] },
        { "apiGroups": [""], "resources": ["configmaps", "secrets"], "verbs": ["get"] },
        { "apiGroups": [""], "resources": ["pods", "configmaps"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] },
    ]);
    let granted = server
        .ask_as(ACCOUNT, http::Request::post(path), &coordinators_role(&good))
        .await;
    assert!(granted.is_ok(), "{granted:?}");

    for rule in [
        json!({ "apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"] }),
        json!({ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }),
        json!({ "apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"] }),
    ] {
        let refused = server
            .ask_as(
                ACCOUNT,
                http::Request::post(path),
                &coordinators_role(&json!([rule])),
            )
            .await
            .unwrap_err();
        assert!(
            refused.contains("attempting to grant RBAC permissions not currently held"),
            "{refused}"
        );
    }
}

/// A ProverCluster of the namespace `platform`, for those of `from`.
fn shared_cluster(from: &str) -> Value {
    json!({
        "apiVersion": "proving.rs/v1alpha1", "kind": "ProverCluster",
        "metadata": { "name": "shared", "namespace": "platform" },
        "spec": {
            "artifactStore": { "s3": { "bucket": "proofs" } },
            "backends": [{ "name": "risc0", "system": "risc0", "image": "example.com/risc0:1" }],
            "workerGroups": [{ "name": "cpu", "backend": "risc0", "device": { "cpu": {} } }],
            "allowedNamespaces": { "from": from },
        }
    })
}

#[tokio::test]
async fn only_who_may_share_writes_a_cluster_for_other_namespaces() {
    let server = Server::start(&[SYSTEM_NAMESPACE, "platform"]).await;
    let values = ["--set", "rbac.protectSharing=true,fullnameOverride=guard"];
    for object in rendered_as("guard", SYSTEM_NAMESPACE, &values) {
        server.apply(&object, "").await.expect("it is taken");
    }
    let bind = async |namespace: &str, name: &str, role: &str| {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": format!("{name}-{role}"), "namespace": namespace },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": "platform" }],
        });
        server.apply(&binding, "").await.expect("a binding is taken");
    };
    let share = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "sharer" },
        "rules": [{ "apiGroups": ["proving.rs"], "resources": ["proverclusters"], "verbs": ["share"] }],
    });
    server.apply(&share, "").await.expect("a role is taken");
    bind("platform", "team", "prover-system-guard-provercluster-editor").await;
    bind("platform", "owner", "prover-system-guard-provercluster-editor").await;
    bind("platform", "owner", "sharer").await;
    let create = async |name: &str, from: &str| {
        let path = "/apis/proving.rs/v1alpha1/namespaces/platform/proverclusters?dryRun=All";
        server
            .ask_as(
                ("platform", name),
                http::Request::post(path),
                &shared_cluster(from),
            )
            .await
    };

    // A policy comes into force some moments after it is made.
    let refused = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        loop {
            match create("team", "All").await {
                Err(refusal) => return refusal,
                Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    });
    let refused = refused.await.expect("the policy comes into force");
    assert!(refused.contains("has the verb share"), "{refused}");
    let own = create("team", "Same").await;
    assert!(own.is_ok(), "{own:?}");
    let shared = create("owner", "All").await;
    assert!(shared.is_ok(), "{shared:?}");

    // The operator's finalizer passes, although the operator may not share.
    server
        .apply(&shared_cluster("All"), "")
        .await
        .expect("an administrator may share");
    let path = "/apis/proving.rs/v1alpha1/namespaces/platform/proverclusters/shared?fieldManager=operator";
    let request = http::Request::patch(path);
    let finalizer = json!({ "metadata": { "finalizers": ["proving.rs/jobs"] } });
    let patched = server
        .merge_as((SYSTEM_NAMESPACE, "guard"), request, &finalizer)
        .await;
    assert!(patched.is_ok(), "{patched:?}");
    let image = json!({ "spec": { "coordinator": { "image": "example.com/own:1" } } });
    let changed = server
        .merge_as(("platform", "team"), http::Request::patch(path), &image)
        .await;
    let refused = changed.unwrap_err();
    assert!(refused.contains("has the verb share"), "{refused}");
}

/// Folders of samples, each with a kustomization.
fn samples() -> Vec<PathBuf> {
    let mut folders = vec![repository().join("config/samples")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        if folder.join("kustomization.yaml").is_file() {
            found.push(folder.clone());
        }
        let entries = std::fs::read_dir(&folder).expect("a folder of samples").flatten();
        folders.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found.sort();
    found
}

#[tokio::test]
async fn applying_every_sample_twice_changes_nothing_the_second_time() {
    let server = Server::start(&[]).await;
    let folder = output_of(&repository().join("e2e/tools/build-kubernetes.sh"), &["kubectl"]);
    let kubectl = Path::new(folder.trim()).join("kubectl");
    let samples = samples();
    assert!(samples.len() >= 5, "{samples:?}");
    for sample in samples {
        let built = output_of(&kubectl, &["kustomize", &sample.display().to_string()]);
        let objects = documents(&built);
        let mut applied = Vec::new();
        for object in &objects {
            let first = server.apply(object, "").await;
            applied.push(first.unwrap_or_else(|error| panic!("{}: {error}", sample.display())));
        }
        for (object, before) in objects.iter().zip(applied) {
            let again = server.apply(object, "").await.expect("it was taken before");
            assert_eq!(
                again,
                before,
                "{}: {} changed",
                sample.display(),
                server.path(object)
            );
        }
    }
}
