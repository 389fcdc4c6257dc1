//! The resource types on a real kube-apiserver: what it takes, what it refuses and in which words.
//!
//! Owns no rule: the same table of objects is held against local validation by the unit tests.

mod cases;
mod kubernetes;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cases::{Case, Expected};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Error};
use kubernetes::Kubernetes;
use prover_crds::{
    ProofJob, ProverCluster, conditions, parse_proof_job_for_cluster, parse_prover_cluster, reasons, rules,
};
use serde_json::{Value, json};

/// Longest wait until a definition is served.
const ESTABLISHED_LIMIT: Duration = Duration::from_secs(30);
const ESTABLISHED_POLL: Duration = Duration::from_millis(50);

/// An API server with both definitions, as committed.
struct Installed {
    client: Client,
    // Kept alive for as long as the client is used.
    _kubernetes: Arc<Kubernetes>,
}

impl Installed {
    async fn start() -> Installed {
        let kubernetes = Kubernetes::shared();
        let client = kubernetes.client().await;
        for file in ["provercluster.yaml", "proofjob.yaml"] {
            install(&client, file).await;
        }
        Installed {
            client,
            _kubernetes: kubernetes,
        }
    }

    /// Creates an object, strictly; with `keep` false only as if.
    async fn create(&self, object: &Value, keep: bool) -> Result<Value, String> {
        let dry_run = if keep { "" } else { "&dryRun=All" };
        let path = format!("{}?fieldValidation=Strict{dry_run}", collection(object));
        self.send(http::Request::post(path), object).await
    }

    async fn replace(&self, object: &Value) -> Result<Value, String> {
        let path = format!(
            "{}/{}?fieldValidation=Strict",
            collection(object),
            name_of(object)
        );
        self.send(http::Request::put(path), object).await
    }

    async fn delete(&self, object: &Value) {
        let path = format!("{}/{}", collection(object), name_of(object));
        self.send(http::Request::delete(path), &json!({}))
            .await
            .expect("an object that was made can be deleted");
    }

    async fn get(&self, path: &str, accept: &str) -> Value {
        let request = http::Request::get(path)
            .header(http::header::ACCEPT, accept)
            .body(Vec::new())
            .expect("a request");
        self.client.request(request).await.expect("an answer")
    }

    /// The answer, or the words of the refusal.
    async fn send(&self, request: http::request::Builder, body: &Value) -> Result<Value, String> {
        let request = request.header(http::header::CONTENT_TYPE, "application/json");
        let request = request.body(body.to_string().into_bytes()).expect("a request");
        match self.client.request(request).await {
            Ok(answer) => Ok(answer),
            Err(Error::Api(status)) => Err(status.message.clone()),
            Err(error) => panic!("the API server did not answer: {error}"),
        }
    }
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collection(object: &Value) -> String {
    let plural = if object["kind"] == "ProofJob" {
        "proofjobs"
    } else {
        "proverclusters"
    };
    format!("/apis/proving.rs/v1alpha1/namespaces/default/{plural}")
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("an object has a name")
}

/// Installs a committed file and waits until its kind is served.
async fn install(client: &Client, file: &str) {
    let yaml = fs::read_to_string(folder().join(file)).expect("a committed file");
    let definition: CustomResourceDefinition = serde_saphyr::from_str(&yaml).expect("a definition");
    let name = definition.metadata.name.clone().expect("a name");
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("test").force();
    definitions
        .patch(&name, &params, &Patch::Apply(&definition))
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let served = async {
        loop {
            let present = definitions.get(&name).await.expect("the definition is there");
            let found = present
                .status
                .and_then(|status| status.conditions)
                .unwrap_or_default();
            let problem = found
                .iter()
                .find(|condition| condition.type_ == "NonStructuralSchema" && condition.status == "True");
            assert!(problem.is_none(), "{name}: {problem:?}");
            if found
                .iter()
                .any(|condition| condition.type_ == "Established" && condition.status == "True")
            {
                return;
            }
            tokio::time::sleep(ESTABLISHED_POLL).await;
        }
    };
    tokio::time::timeout(ESTABLISHED_LIMIT, served)
        .await
        .unwrap_or_else(|_| panic!("{name} was not established in time"));
}

/// What the API server should have said.
fn problem_with(outcome: &Result<Value, String>, expected: Expected) -> Option<String> {
    let good = match (outcome, expected) {
        (Ok(_), Expected::Accepted) => true,
        (Err(message), Expected::Rule((_, words))) => message.contains(words),
        (Err(message), Expected::Structure { path, server, .. }) => {
            message.contains(path) && message.contains(server)
        }
        _ => false,
    };
    let answer = outcome.as_ref().map(|_| "it was taken");
    (!good).then(|| format!("expected {expected:?}, got {answer:?}"))
}

fn assert_no_problems(problems: &[String]) {
    assert!(
        problems.is_empty(),
        "{} answers differ:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

#[tokio::test]
async fn good_objects_are_taken_and_bad_ones_refused_in_the_words_of_their_rule() {
    let installed = Installed::start().await;
    let cases: Vec<Case> = cases::proof_jobs()
        .into_iter()
        .chain(cases::prover_clusters())
        .collect();
    let mut problems = Vec::new();
    for case in &cases {
        let outcome = installed.create(&case.object, false).await;
        problems
            .extend(problem_with(&outcome, case.expected).map(|problem| format!("{}: {problem}", case.name)));
    }
    assert_no_problems(&problems);
    assert!(cases.len() >= 30);
}

#[tokio::test]
async fn local_validation_blames_the_same_fields_as_the_api_server() {
    let installed = Installed::start().await;
    let mut problems = Vec::new();
    for case in cases::proof_jobs().into_iter().chain(cases::prover_clusters()) {
        // JSON is YAML.
        let manifest = case.object.to_string();
        let local = if case.object["kind"] == "ProofJob" {
            parse_proof_job_for_cluster(&manifest).map(drop)
        } else {
            parse_prover_cluster(&manifest).map(drop)
        };
        match (installed.create(&case.object, false).await, local) {
            (Ok(_), Ok(())) => {}
            (Err(message), Err(error)) => {
                let blamed = error.violations().iter().map(|violation| violation.path.as_str());
                let missed: Vec<&str> = blamed.filter(|path| !message.contains(path)).collect();
                if !missed.is_empty() || error.violations().is_empty() {
                    problems.push(format!(
                        "{}: local mode says {error}, the API server {message}",
                        case.name
                    ));
                }
            }
            (server, local) => problems.push(format!(
                "{}: local mode says {local:?}, the API server {server:?}",
                case.name
            )),
        }
    }
    assert_no_problems(&problems);
}

#[tokio::test]
async fn what_the_api_server_takes_the_rust_types_can_read() {
    let installed = Installed::start().await;
    let mut taken = 0;
    for (field, text) in [
        ("maxCycles", "1e3"),
        ("maxCycles", "1000.0"),
        ("maxCycles", "1e15"),
        ("maxCycles", "1e20"),
        ("maxCycles", "9223372036854775807"),
        ("maxCycles", "1.5"),
        ("priority", "-1e6"),
        ("retryLimit", "1e1"),
        ("suspend", "1"),
        ("deadline", "\"2099-02-30T00:00:00Z\""),
        ("deadline", "\"2099-02-28T23:59:60Z\""),
        ("deadline", "\"2099-02-28t00:00:00z\""),
        ("deadline", "\"2099-02-28 00:00:00Z\""),
        ("deadline", "\"2099-02-28T00:00:00\""),
        ("deadline", "\"2099-02-28T00:00:00.123456789+23:59\""),
        ("deadline", "\"0000-01-01T00:00:00Z\""),
        ("deadline", "\"9999-12-31T23:59:59Z\""),
        ("deadline", "\"9999-12-31T23:59:59-23:59\""),
        ("deadline", "null"),
        ("input", "null"),
        ("priority", "null"),
    ] {
        // As text, since a parser of our own would already have chosen how to read the number.
        let marker = "\"put here\"";
        let mut object = cases::good_proof_job();
        object["spec"][field] = json!("put here");
        let text = object.to_string().replace(marker, text);
        let path = format!("{}?fieldValidation=Strict&dryRun=All", collection(&object));
        let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
        let request = request.body(text.clone().into_bytes()).expect("a request");
        match installed.client.request_text(request).await {
            Ok(answer) => {
                taken += 1;
                serde_json::from_str::<ProofJob>(&answer).unwrap_or_else(|error| panic!("{text}: {error}"));
            }
            Err(Error::Api(_)) => {}
            Err(error) => panic!("the API server did not answer: {error}"),
        }
    }
    assert!(
        taken >= 5,
        "only {taken} of these were taken, so they prove little"
    );
}

#[tokio::test]
async fn immutable_fields_stay_and_final_decisions_are_final() {
    let installed = Installed::start().await;
    let mut problems = Vec::new();
    for (index, update) in cases::updates().into_iter().enumerate() {
        let (mut old, mut new) = (update.old, update.new);
        old["metadata"]["name"] = json!(format!("update-{index}"));
        let made = installed
            .create(&old, true)
            .await
            .unwrap_or_else(|refusal| panic!("{}: {refusal}", update.name));
        new["metadata"] = made["metadata"].clone();
        let outcome = installed.replace(&new).await;
        problems.extend(
            problem_with(&outcome, update.expected).map(|problem| format!("{}: {problem}", update.name)),
        );
        installed.delete(&old).await;
    }
    assert_no_problems(&problems);
}

#[tokio::test]
async fn defaults_are_filled_in_as_the_rust_types_have_them() {
    let installed = Installed::start().await;
    let sent = cases::good_proof_job();
    let made = installed.create(&sent, false).await.expect("a good job");
    assert_eq!(made["spec"]["clusterRef"], json!({ "name": "default" }));
    assert_eq!(made["spec"]["input"]["format"], "Raw");
    assert_eq!(made["spec"]["priority"], 0);
    let (sent, made): (ProofJob, ProofJob) = (
        serde_json::from_value(sent).expect("a job"),
        serde_json::from_value(made).expect("a job"),
    );
    assert_eq!(sent.spec, made.spec);

    let sent = cases::good_prover_cluster();
    let made = installed.create(&sent, false).await.expect("a good cluster");
    assert_eq!(made["spec"]["workerGroups"][0]["capacityType"], "OnDemand");
    let (sent, made): (ProverCluster, ProverCluster) = (
        serde_json::from_value(sent).expect("a cluster"),
        serde_json::from_value(made).expect("a cluster"),
    );
    assert_eq!(sent.spec, made.spec);
}

#[tokio::test]
async fn two_managers_own_their_own_conditions() {
    let installed = Installed::start().await;
    let mut object = cases::good_proof_job();
    object["metadata"]["name"] = json!("conditions");
    installed.create(&object, true).await.expect("a good job");
    let jobs: Api<ProofJob> = Api::namespaced(installed.client.clone(), "default");
    let now = k8s_openapi::jiff::Timestamp::from_second(1_800_000_000).expect("a time");

    for (manager, type_, reason) in [
        ("prover-operator", conditions::ACCEPTED, reasons::ACCEPTED),
        ("prover-coordinator", conditions::RUNNING, reasons::STARTED),
    ] {
        let mut own = Vec::new();
        conditions::Conditions::new(&mut own, Some(1), now.into()).set(type_, true, reason, "said by a test");
        let patch = json!({
            "apiVersion": "proving.rs/v1alpha1",
            "kind": "ProofJob",
            "status": { "conditions": own },
        });
        jobs.patch_status("conditions", &PatchParams::apply(manager), &Patch::Apply(&patch))
            .await
            .expect("a good status");
    }
    let present = jobs
        .get_status("conditions")
        .await
        .expect("the job")
        .status
        .unwrap_or_default()
        .conditions;
    assert!(conditions::is_true(&present, conditions::ACCEPTED), "{present:?}");
    assert!(conditions::is_true(&present, conditions::RUNNING), "{present:?}");

    let patch =
        json!({ "apiVersion": "proving.rs/v1alpha1", "kind": "ProofJob", "status": { "conditions": [] } });
    let params = PatchParams::apply("prover-operator");
    jobs.patch_status("conditions", &params, &Patch::Apply(&patch))
        .await
        .expect("a good status");
    let present = jobs
        .get_status("conditions")
        .await
        .expect("the job")
        .status
        .unwrap_or_default()
        .conditions;
    let types: Vec<&str> = present.iter().map(|condition| condition.type_.as_str()).collect();
    assert_eq!(
        types,
        [conditions::RUNNING],
        "giving up one's own condition leaves that of the other manager"
    );
    installed.delete(&object).await;
}

#[tokio::test]
async fn a_full_status_is_taken_and_comes_back_the_same() {
    let installed = Installed::start().await;
    let mut object = cases::good_proof_job();
    object["metadata"]["name"] = json!("status");
    let mut made = installed.create(&object, true).await.expect("a good job");
    let hash = "0".repeat(64);
    let time = "2026-11-21T10:00:00Z";
    let status = json!({
        "observedGeneration": 1, "phase": "Succeeded", "reason": "Succeeded", "message": "done",
        "conditions": [{ "type": "Finished", "status": "True", "reason": "Succeeded", "message": "", "observedGeneration": 1, "lastTransitionTime": time }],
        "progress": { "summary": "9/9", "stages": [{ "name": "Prove", "done": 4, "total": 4, "running": 0, "startTime": time, "completionTime": time, "deviceMilliseconds": 100 }] },
        "attempts": { "started": 9, "succeeded": 9, "failed": 0, "lost": 0, "replans": 0 },
        "acceptedTime": time, "startTime": time, "completionTime": time, "activeMilliseconds": 1000,
        "execution": { "programId": hash, "segments": 4, "userCycles": 200_000, "totalCycles": 262_144, "segmentPo2": 16, "exitCode": 0, "gas": 300_000, "publicValuesSha256": hash },
        "effectiveHz": 262_144, "pguPerSecond": 300_000, "usage": { "deviceMilliseconds": 4000, "energyJoules": 10, "cost": { "amount": "0.0042", "currency": "USD" } },
        "proof": { "uri": "s3://proofs/a", "sha256": hash, "sizeBytes": 220_000, "programId": hash, "verifier": "risc0-zkvm 3.1.0" },
        "publicValues": { "uri": "s3://proofs/b", "sha256": hash, "sizeBytes": 4 },
        "failure": { "reason": "GuestPanicked", "message": "words of the prover", "invalidInput": true, "stage": "Execute" },
        "emulated": true
    });
    made["status"] = status.clone();
    let path = format!("{}/status/status?fieldValidation=Strict", collection(&object));
    let made = installed
        .send(http::Request::put(path), &made)
        .await
        .expect("a good status");
    assert_eq!(made["status"], status);
    let typed: ProofJob = serde_json::from_value(made).expect("a job");
    assert_eq!(
        serde_json::to_value(typed.status).expect("JSON"),
        status,
        "the Rust type knows every field"
    );

    // A user who writes the object can't claim a proof.
    let mut forged = object.clone();
    forged["metadata"]["name"] = json!("forged");
    forged["status"] = status;
    let made = installed.create(&forged, false).await.expect("a good job");
    assert_eq!(made["status"], Value::Null);
    installed.delete(&object).await;
}

#[tokio::test]
async fn kubectl_gets_the_documented_columns_and_names() {
    let installed = Installed::start().await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    for (plural, short, normal, wide) in [
        (
            "proofjobs",
            "pj",
            vec!["Name", "Phase", "Progress", "System", "Kind", "Hz", "Age"],
            vec!["Cycles", "PGU/s", "Cluster", "Reason"],
        ),
        (
            "proverclusters",
            "pcl",
            vec!["Name", "Ready", "Desired", "Busy", "Queue", "Age"],
            vec!["Reason"],
        ),
    ] {
        let answer = installed
            .get(
                &format!("/apis/proving.rs/v1alpha1/namespaces/default/{plural}"),
                table,
            )
            .await;
        let columns = |priority: i64| -> Vec<&str> {
            let columns = answer["columnDefinitions"].as_array().expect("columns");
            columns
                .iter()
                .filter(|column| column["priority"] == priority)
                .filter_map(|column| column["name"].as_str())
                .collect()
        };
        assert_eq!((columns(0), columns(1)), (normal, wide), "{plural}");

        // The short name belongs to nothing else that a bare API server serves.
        let mut owners = Vec::new();
        for path in [
            "/api/v1",
            "/apis/scheduling.k8s.io/v1",
            "/apis/storage.k8s.io/v1",
            "/apis/apps/v1",
            "/apis/batch/v1",
            "/apis/policy/v1",
            "/apis/proving.rs/v1alpha1",
        ] {
            let resources = installed.get(path, "application/json").await;
            for resource in resources["resources"].as_array().expect("resources") {
                if resource["shortNames"]
                    .as_array()
                    .is_some_and(|names| names.contains(&json!(short)))
                {
                    owners.push(resource["name"].as_str().expect("a name").to_owned());
                }
            }
        }
        assert_eq!(owners, [plural], "short name {short}");
    }
}

/// Every document of every sample that is of our group.
fn samples() -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    let mut folders = vec![folder().join("../config/samples")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry of a folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                let yaml = fs::read_to_string(&path).expect("a sample");
                let documents: Vec<Value> = serde_saphyr::from_multiple(&yaml)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let ours = documents
                    .into_iter()
                    .filter(|document| document["apiVersion"] == "proving.rs/v1alpha1");
                found.extend(ours.map(|document| (path.clone(), document)));
            }
        }
    }
    found
}

#[tokio::test]
async fn the_samples_are_taken_but_for_their_files() {
    let installed = Installed::start().await;
    let mut problems = Vec::new();
    let samples = samples();
    assert!(!samples.is_empty(), "config/samples holds nothing of our group");
    for (path, mut sample) in samples {
        sample["metadata"]["namespace"] = json!("default");
        let outcome = installed.create(&sample, false).await;
        let had_files = replace_files(&mut sample["spec"]);
        let expected = if had_files {
            Expected::Rule(rules::FILE_ONLY_IN_LOCAL_MODE)
        } else {
            Expected::Accepted
        };
        let answers = [
            problem_with(&outcome, expected),
            problem_with(&installed.create(&sample, false).await, Expected::Accepted),
        ];
        problems.extend(
            answers
                .into_iter()
                .flatten()
                .map(|problem| format!("{}: {problem}", path.display())),
        );
    }
    assert_no_problems(&problems);
}

/// Puts a ConfigMap in the place of each file source; tells whether there was one.
fn replace_files(value: &mut Value) -> bool {
    let mut replaced = false;
    match value {
        Value::Object(fields) => {
            if fields.get("file").is_some_and(Value::is_object) {
                fields.remove("file");
                fields.insert("configMap".to_owned(), json!({ "name": "files", "key": "file" }));
                replaced = true;
            }
            for field in fields.values_mut() {
                replaced |= replace_files(field);
            }
        }
        Value::Array(items) => {
            for item in items {
                replaced |= replace_files(item);
            }
        }
        _ => {}
    }
    replaced
}
