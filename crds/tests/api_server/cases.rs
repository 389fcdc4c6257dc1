// One table of good and bad objects. The unit tests hold it against local validation, the test of the API server
// against a real cluster: both must say the same. Included by both, so it names no crate.

use serde_json::{Value, json};

use super::rules::{self, RuleText};

/// What must come of an object.
#[allow(dead_code, reason = "each of the two that include this reads its own words")]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expected {
    /// It is taken.
    Accepted,
    /// One of our rules refuses it: everywhere in its own words.
    Rule(RuleText),
    /// Structure or bounds refuse it: at this path, the API server and local mode each in its own words.
    Structure {
        path: &'static str,
        server: &'static str,
        local: &'static str,
    },
}

/// An object that is created.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) object: Value,
    pub(crate) expected: Expected,
}

/// An object that is changed.
pub(crate) struct Update {
    pub(crate) name: &'static str,
    pub(crate) old: Value,
    pub(crate) new: Value,
    pub(crate) expected: Expected,
}

use Expected::{Accepted, Rule, Structure};

pub(crate) fn good_proof_job() -> Value {
    json!({
        "apiVersion": "proving.rs/v1alpha1",
        "kind": "ProofJob",
        "metadata": { "name": "good", "namespace": "default" },
        "spec": {
            "program": { "inline": "AAECAw==" },
            "input": { "inline": "BQAAAA==" },
            "proof": { "system": "risc0", "kind": "Succinct" }
        }
    })
}

pub(crate) fn good_prover_cluster() -> Value {
    json!({
        "apiVersion": "proving.rs/v1alpha1",
        "kind": "ProverCluster",
        "metadata": { "name": "good", "namespace": "default" },
        "spec": {
            "artifactStore": { "s3": { "bucket": "proofs", "region": "eu-central-1" } },
            "backends": [{ "name": "risc0", "system": "risc0", "image": "example.com/risc0:1" }],
            "workerGroups": [{ "name": "cpu", "backend": "risc0", "device": { "cpu": {} } }]
        }
    })
}

/// Sets `value` at a JSON pointer below `spec`, making objects on the way; null removes.
fn with(mut object: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        let mut place = &mut object["spec"];
        let mut steps = pointer.split('/').peekable();
        while let Some(step) = steps.next() {
            let last = steps.peek().is_none();
            if last && value.is_null() {
                place
                    .as_object_mut()
                    .expect("removed from an object")
                    .remove(step);
                break;
            }
            place = match step.parse::<usize>() {
                Ok(index) => &mut place[index],
                Err(_) => &mut place[step],
            };
            if last {
                *place = value.clone();
            }
        }
    }
    object
}

fn job(name: &'static str, changes: &[(&str, Value)], expected: Expected) -> Case {
    Case {
        name,
        object: with(good_proof_job(), changes),
        expected,
    }
}

fn cluster(name: &'static str, changes: &[(&str, Value)], expected: Expected) -> Case {
    Case {
        name,
        object: with(good_prover_cluster(), changes),
        expected,
    }
}

fn named_cluster(case: &'static str, name: &str, expected: Expected) -> Case {
    let mut object = good_prover_cluster();
    object["metadata"]["name"] = json!(name);
    Case {
        name: case,
        object,
        expected,
    }
}

fn command() -> Value {
    json!({ "system": "command", "kind": "Proof", "backend": "groth16" })
}

/// The backend that [`command`] names.
fn command_backend() -> Value {
    json!({
        "name": "groth16", "system": "command", "image": "example.com/groth16:1",
        "command": {
            "prove": ["/usr/local/bin/groth16", "prove", "--program={program}", "{input}", "{proof}", "{publicValues}"],
            "verify": ["/usr/local/bin/groth16", "verify", "--program={program}", "{proof}", "{publicValues}"]
        }
    })
}

const SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[rustfmt::skip]
pub(crate) fn proof_jobs() -> Vec<Case> {
    let bucket = json!({ "bucket": "programs", "key": "fibonacci", "region": "eu-central-1", "credentialsRef": { "name": "aws" } });
    vec![
        job("a small job", &[], Accepted),
        job("no input", &[("input", Value::Null)], Accepted),
        job("an input that is empty", &[("input", json!({}))], Accepted),
        job("a text as input", &[("input", json!({ "text": "{\"n\": 5}" }))], Accepted),
        job("frames", &[("input/format", json!("Frames"))], Accepted),
        job("every optional field", &[
            ("clusterRef", json!({ "name": "gpus", "namespace": "proving" })),
            ("program", json!({ "s3": bucket, "sha256": SHA256, "programId": SHA256 })),
            ("assumptions", json!([{ "configMap": { "name": "proofs", "key": "a" } }])),
            ("priority", json!(-10)), ("deadline", json!("2099-12-24T18:00:00Z")), ("activeDeadlineSeconds", json!(3600)),
            ("maxCycles", json!(1_000_000_000_000_i64)), ("segmentPo2", json!(18)), ("maxWorkers", json!(64)), ("retryLimit", json!(0)),
            ("suspend", json!(true)), ("cancel", json!(false)), ("ttlSecondsAfterFinished", json!(600)),
            ("managedBy", json!("kueue.x-k8s.io/multikueue")),
        ], Accepted),
        job("a key of the cluster's own store", &[("program", json!({ "s3": { "key": "inputs/default/fibonacci" } }))], Accepted),
        job("a bucket with credentials", &[("program", json!({ "s3": bucket }))], Accepted),
        job("an anonymous bucket", &[("program", json!({ "s3": { "bucket": "programs", "key": "a", "anonymous": true } }))], Accepted),
        job("https without a hash", &[("program", json!({ "http": { "url": "https://example.com/a" } }))], Accepted),
        job("http with a hash", &[("program", json!({ "http": { "url": "http://example.com/a" }, "sha256": SHA256 }))], Accepted),
        job("a deadline in another time zone", &[("deadline", json!("2099-12-24T18:00:00+05:30"))], Accepted),
        job("a secret", &[("input", json!({ "secret": { "name": "witness", "key": "w" } }))], Accepted),
        job("sp1 to plonk from its own stdin", &[("proof", json!({ "system": "sp1", "kind": "Plonk" })), ("input/format", json!("Stdin"))], Accepted),
        job("the gas of an sp1 proof", &[("proof", json!({ "system": "sp1", "kind": "Core" })), ("reportGas", json!(true))], Accepted),
        job("no gas, said for risc0", &[("reportGas", json!(false))], Accepted),
        job("groth16 of both, first risc0", &[("proof/kind", json!("Groth16"))], Accepted),
        job("groth16 of both, then sp1", &[("proof", json!({ "system": "sp1", "kind": "Groth16" }))], Accepted),
        job("execute only", &[("proof/kind", json!("ExecuteOnly"))], Accepted),
        job("an emulated job", &[("proof", json!({ "system": "emulated", "kind": "Emulated" })), ("input", json!({ "text": "{}" }))], Accepted),

        job("a job for a command", &[("proof", command())], Accepted),

        job("no source of the program", &[("program", json!({ "sha256": SHA256 }))], Rule(rules::ONE_SOURCE_OF_PROGRAM)),
        job("two sources of the program", &[("program/configMap", json!({ "name": "a", "key": "b" }))], Rule(rules::ONE_SOURCE_OF_PROGRAM)),
        job("two sources of the input", &[("input/text", json!("5"))], Rule(rules::ONE_SOURCE_OF_INPUT)),
        job("no source of an assumption", &[("assumptions", json!([{}]))], Rule(rules::ONE_SOURCE_OF_ASSUMPTION)),
        job("a file", &[("program", json!({ "file": { "path": "fibonacci" } }))], Rule(rules::FILE_ONLY_IN_LOCAL_MODE)),
        job("http without a hash", &[("program", json!({ "http": { "url": "http://example.com/a" } }))], Rule(rules::PLAIN_HTTP_NEEDS_HASH)),
        job("base64 of another alphabet", &[("program/inline", json!("AA_-"))], Rule(rules::INLINE_IS_BASE64)),
        job("base64 with a line break", &[("program/inline", json!("AAEC\nAw=="))], Rule(rules::INLINE_IS_BASE64)),
        job("base64 without padding", &[("input/inline", json!("AAECAw"))], Rule(rules::INLINE_IS_BASE64)),
        job("a bucket without sign-in", &[("program", json!({ "s3": { "bucket": "programs", "key": "a" } }))], Rule(rules::S3_BUCKET_SAYS_HOW_TO_SIGN_IN)),
        job("an anonymous bucket with credentials", &[("program", json!({ "s3": bucket })), ("program/s3/anonymous", json!(true))], Rule(rules::S3_BUCKET_SAYS_HOW_TO_SIGN_IN)),
        job("a region without bucket", &[("program", json!({ "s3": { "key": "a", "region": "eu-central-1" } }))], Rule(rules::S3_OWN_STORE_NEEDS_NOTHING_ELSE)),
        job("a kind of sp1 for risc0", &[("proof/kind", json!("Compressed"))], Rule(rules::KIND_FITS_SYSTEM)),
        job("a kind of risc0 for sp1", &[("proof/system", json!("sp1"))], Rule(rules::KIND_FITS_SYSTEM)),
        job("an emulated proof that claims to be real", &[("proof/system", json!("emulated"))], Rule(rules::KIND_FITS_SYSTEM)),
        job("a real system that emulates", &[("proof/kind", json!("Emulated"))], Rule(rules::KIND_FITS_SYSTEM)),
        job("a segment size for sp1", &[("proof", json!({ "system": "sp1", "kind": "Core" })), ("segmentPo2", json!(20))], Rule(rules::SEGMENT_PO2_FOR_SEGMENTS)),
        job("a segment size for a command", &[("proof", command()), ("segmentPo2", json!(20))], Rule(rules::SEGMENT_PO2_FOR_SEGMENTS)),
        job("cycles for a command", &[("proof", command()), ("maxCycles", json!(20))], Rule(rules::MAX_CYCLES_NOT_FOR_COMMAND)),
        job("a command without a backend", &[("proof", json!({ "system": "command", "kind": "Proof" }))], Rule(rules::BACKEND_EXACTLY_FOR_COMMAND)),
        job("a backend for another system", &[("proof/backend", json!("groth16"))], Rule(rules::BACKEND_EXACTLY_FOR_COMMAND)),
        job("a kind of risc0 for a command", &[("proof", command()), ("proof/kind", json!("Groth16"))], Rule(rules::KIND_FITS_SYSTEM)),
        job("a command's kind for risc0", &[("proof/kind", json!("Proof"))], Rule(rules::KIND_FITS_SYSTEM)),
        job("assumptions for sp1", &[("proof", json!({ "system": "sp1", "kind": "Core" })), ("assumptions", json!([{ "configMap": { "name": "a", "key": "b" } }]))], Rule(rules::ASSUMPTIONS_ONLY_FOR_RISC0)),
        job("sp1's stdin for risc0", &[("input/format", json!("Stdin"))], Rule(rules::STDIN_ONLY_FOR_SP1)),
        job("gas for risc0", &[("reportGas", json!(true))], Rule(rules::GAS_ONLY_FOR_SP1)),

        job("a backend's name that is none", &[("proof", command()), ("proof/backend", json!("Groth 16"))], Structure { path: "spec.proof.backend", server: "should match", local: "must match" }),
        job("no program", &[("program", Value::Null)], Structure { path: "spec.program", server: "Required value", local: "is required" }),
        job("no proof", &[("proof", Value::Null)], Structure { path: "spec.proof", server: "Required value", local: "is required" }),
        job("no kind of proof", &[("proof/kind", Value::Null)], Structure { path: "spec.proof.kind", server: "Required value", local: "is required" }),
        job("an unknown field", &[("proof/knd", json!("Succinct"))], Structure { path: "spec.proof.knd", server: "unknown field", local: "did you mean `kind`?" }),
        job("a field at the wrong place", &[("kind", json!("Succinct"))], Structure { path: "spec.kind", server: "unknown field", local: "did you mean `spec.proof.kind`? (check the indentation)" }),
        job("an unknown system", &[("proof/system", json!("risc1"))], Structure { path: "spec.proof.system", server: "Unsupported value: \"risc1\"", local: "did you mean `risc0`?" }),
        job("an unknown kind", &[("proof/kind", json!("Stark"))], Structure { path: "spec.proof.kind", server: "Unsupported value", local: "Write one of Composite, Succinct" }),
        job("an unknown format", &[("input/format", json!("raw"))], Structure { path: "spec.input.format", server: "Unsupported value", local: "did you mean `Raw`?" }),
        job("inline data above 96 KiB", &[("program/inline", json!("A".repeat(131_076)))], Structure { path: "spec.program.inline", server: "Too long", local: "has 131076 characters, at most 131072 are allowed" }),
        job("an upper-case hash", &[("program/sha256", json!(SHA256.to_uppercase()))], Structure { path: "spec.program.sha256", server: "should match", local: "must match" }),
        job("a short hash", &[("program/sha256", json!("e3b0"))], Structure { path: "spec.program.sha256", server: "should be at least 64 chars long", local: "at least 64 are needed" }),
        job("too many assumptions", &[("assumptions", json!(vec![json!({ "configMap": { "name": "a", "key": "b" } }); 33]))], Structure { path: "spec.assumptions", server: "must have at most 32 items", local: "at most 32 are allowed" }),
        job("a small segment", &[("segmentPo2", json!(12))], Structure { path: "spec.segmentPo2", server: "should be greater than or equal to 13", local: "at least 13 is needed" }),
        job("a large segment", &[("segmentPo2", json!(25))], Structure { path: "spec.segmentPo2", server: "should be less than or equal to 24", local: "at most 24 is allowed" }),
        job("no cycles", &[("maxCycles", json!(0))], Structure { path: "spec.maxCycles", server: "should be greater than or equal to 1", local: "at least 1 is needed" }),
        job("a negative retry limit", &[("retryLimit", json!(-1))], Structure { path: "spec.retryLimit", server: "should be greater than or equal to 0", local: "at least 0 is needed" }),
        job("an enormous priority", &[("priority", json!(1_000_001))], Structure { path: "spec.priority", server: "should be less than or equal to 1", local: "at most 1000000 is allowed" }),
        job("no workers", &[("maxWorkers", json!(0))], Structure { path: "spec.maxWorkers", server: "should be greater than or equal to 1", local: "at least 1 is needed" }),
        job("a deadline that is no time", &[("deadline", json!("tomorrow"))], Structure { path: "spec.deadline", server: "must be of type date-time", local: "is no time: write it like" }),
        job("a deadline with an offset that is none", &[("deadline", json!("2099-01-01T00:00:00+99:99"))], Structure { path: "spec.deadline", server: "should match", local: "is no time: write it like" }),
        job("more cycles than anybody has", &[("maxCycles", json!(1_000_000_000_000_001_i64))], Structure { path: "spec.maxCycles", server: "should be less than or equal to 1", local: "at most 1000000000000000 is allowed" }),
        job("a truth value in quotes", &[("suspend", json!("true"))], Structure { path: "spec.suspend", server: "must be of type boolean", local: "must be true or false" }),
        job("a number in quotes", &[("maxCycles", json!("1000"))], Structure { path: "spec.maxCycles", server: "must be of type integer", local: "must be a whole number" }),
        job("a list for an object", &[("proof", json!([]))], Structure { path: "spec.proof", server: "must be of type object", local: "must be an object, not a list" }),
        job("managedBy without a domain", &[("managedBy", json!("kueue"))], Structure { path: "spec.managedBy", server: "should match", local: "must match" }),
        job("a cluster with an upper-case name", &[("clusterRef", json!({ "name": "GPUs" }))], Structure { path: "spec.clusterRef.name", server: "should match", local: "must match" }),
        job("an address that is none", &[("program", json!({ "http": { "url": "ftp://example.com/a" } }))], Structure { path: "spec.program.http.url", server: "should match", local: "must match" }),
        job("an empty key", &[("program", json!({ "s3": { "key": "" } }))], Structure { path: "spec.program.s3.key", server: "should be at least 1 chars long", local: "must not be empty" }),
    ]
}

#[rustfmt::skip]
pub(crate) fn prover_clusters() -> Vec<Case> {
    let group = json!({ "name": "gpu", "backend": "risc0", "device": { "gpu": {} } });
    let command = |changes: &[(&'static str, Value)]| {
        let mut changes: Vec<(&'static str, Value)> = changes.to_vec();
        changes.splice(0..0, [("backends/0", command_backend()), ("workerGroups/0/backend", json!("groth16"))]);
        changes
    };
    let scaling = json!({ "mode": "HPA", "minReplicas": 0, "maxReplicas": 100, "targetSeconds": 60, "cooldownSeconds": 300, "metricsSource": "Operator" });
    vec![
        cluster("a small cluster", &[], Accepted),
        cluster("every optional field", &[
            ("artifactStore/s3", json!({ "bucket": "proofs", "prefix": "team/a", "region": "us-east-1", "endpoint": "https://minio.storage.svc:9000", "credentialsRef": { "name": "minio" }, "caRef": { "name": "ca", "key": "ca.crt" } })),
            ("coordinator", json!({ "replicas": 2, "image": "example.com/operator:1", "commitIntervalMilliseconds": 50, "resources": { "cpu": "500m", "memory": "1Gi" }, "pod": { "priorityClassName": "system" } })),
            ("backends/0/imagePullPolicy", json!("Always")), ("backends/0/args", json!(["--verbose"])),
            ("workerGroups", json!([{
                "name": "h100", "backend": "risc0", "tasksPerDevice": 2, "scaling": scaling, "capacityType": "Spot", "provider": "eks", "drainSeconds": 100,
                "device": { "gpu": { "count": 8, "resourceName": "nvidia.com/gpu", "product": "NVIDIA H100 80GB HBM3", "minMemory": "70Gi" } },
                "cost": { "perHour": "24.90", "currency": "EUR" }, "resources": { "cpu": 32, "memory": "256Gi", "ephemeralStorage": "20Gi" }, "exchangeSize": "16Gi",
                "cache": { "size": "50Gi", "storageClassName": "fast" }, "prePullImages": true,
                "pod": {
                    "labels": { "team": "proving" }, "annotations": { "example.com/a": "b c" }, "nodeSelector": { "zone": "a" },
                    "requiredNodeLabels": [{ "key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"] }],
                    "preferredNodeLabels": [{ "key": "nvidia.com/gpu.product", "operator": "Exists" }],
                    "tolerations": [{ "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" }, { "key": "team", "value": "proving" }],
                    "topologySpread": [{ "topologyKey": "topology.kubernetes.io/zone", "maxSkew": 1 }],
                    "env": [{ "name": "RUST_LOG", "value": "info" }, { "name": "KEY", "secretRef": { "name": "a", "key": "b" } }],
                    "imagePullSecrets": [{ "name": "registry" }], "runtimeClassName": "nvidia", "schedulerName": "default-scheduler",
                    "serviceAccountAnnotations": { "eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/prover" }
                }
            }])),
            ("allowedNamespaces", json!({ "from": "Selector", "selector": { "matchLabels": { "proving": "yes" } } })),
            ("limits", json!({ "maxRunningJobs": 100, "maxUnfinishedJobs": 10_000, "maxDevices": 64, "maxSourceSize": "1Gi", "allowedHttpHosts": ["files.internal:8080"],
                "namespaces": [{ "namespace": "*", "weight": 1 }, { "namespace": "team-a", "weight": 3, "maxPriority": 10, "maxDevices": 32, "maxRunningJobs": 10, "maxUnfinishedJobs": 1000 }] })),
            ("defaults", json!({ "retryLimit": 5, "activeDeadlineSeconds": 86400, "maxCycles": 1_000_000_000, "ttlSecondsAfterFinished": 604_800, "proofRetentionSeconds": 2_592_000 })),
        ], Accepted),
        cluster("a mig slice", &[("workerGroups/0/device", json!({ "gpu": { "migProfile": "1g.10gb" } }))], Accepted),
        cluster("a resource claim", &[("workerGroups/0/device", json!({ "gpu": { "resourceClaimTemplateName": "one-gpu" } }))], Accepted),
        cluster("memory as a number", &[("workerGroups/0/resources", json!({ "cpu": 4, "memory": 17_179_869_184_i64 }))], Accepted),
        cluster("fixed replicas", &[("workerGroups/0/replicas", json!(3))], Accepted),
        cluster("scaling of the default mode", &[("workerGroups/0/scaling", json!({ "maxReplicas": 10 }))], Accepted),

        cluster("a command", &command(&[]), Accepted),
        cluster("a command with every optional field", &command(&[
            ("backends/0/command/timeoutSeconds", json!(60)), ("backends/0/command/verifyTimeoutSeconds", json!(10)),
            ("backends/0/command/hostMemory", json!("2Gi")), ("backends/0/command/verifyHostMemory", json!("100Mi")),
        ]), Accepted),
        cluster("a command without public values", &command(&[
            ("backends/0/command/prove", json!(["/prove", "{program}", "{proof}"])), ("backends/0/command/verify", json!(["/verify", "{program}", "{proof}"])),
        ]), Accepted),

        cluster("a command's system without a command", &[("backends/0/system", json!("command"))], Rule(rules::COMMAND_EXACTLY_FOR_COMMAND)),
        cluster("a command for another system", &command(&[("backends/0/system", json!("risc0"))]), Rule(rules::COMMAND_EXACTLY_FOR_COMMAND)),
        cluster("a command with args", &command(&[("backends/0/args", json!(["--fast"]))]), Rule(rules::ARGS_NOT_FOR_COMMAND)),
        cluster("a prover that is not told where the proof goes", &command(&[("backends/0/command/prove", json!(["/prove", "{program}"]))]), Rule(rules::PROVE_NAMES_PROOF)),
        cluster("a verifier that is not told the program", &command(&[("backends/0/command/verify", json!(["/verify", "{proof}", "{publicValues}"]))]), Rule(rules::VERIFY_NAMES_PROGRAM_AND_PROOF)),
        cluster("a verifier that is not told the proof", &command(&[("backends/0/command/verify", json!(["/verify", "{program}", "{publicValues}"]))]), Rule(rules::VERIFY_NAMES_PROGRAM_AND_PROOF)),
        cluster("public values that nobody verifies", &command(&[("backends/0/command/verify", json!(["/verify", "{program}", "{proof}"]))]), Rule(rules::VERIFY_NAMES_PUBLIC_VALUES)),
        cluster("a command by a relative path", &command(&[("backends/0/command/verify/0", json!("groth16"))]), Rule(rules::COMMANDS_ARE_ABSOLUTE)),
        named_cluster("a name of 40 characters", &"a".repeat(40), Accepted),
        named_cluster("a name of 41 characters", &"a".repeat(41), Rule(rules::CLUSTER_NAME_IS_SHORT)),
        cluster("an empty command", &command(&[("backends/0/command/prove", json!([]))]), Structure { path: "spec.backends[0].command.prove", server: "should have at least 1 items", local: "at least 1 are needed" }),
        cluster("a command that takes no time", &command(&[("backends/0/command/timeoutSeconds", json!(0))]), Structure { path: "spec.backends[0].command.timeoutSeconds", server: "should be greater than or equal to 1", local: "at least 1 is needed" }),

        cluster("a group of a backend that is not there", &[("workerGroups/0/backend", json!("sp1"))], Rule(rules::GROUPS_NAME_A_BACKEND)),
        cluster("replicas and scaling", &[("workerGroups/0/replicas", json!(1)), ("workerGroups/0/scaling", scaling)], Rule(rules::REPLICAS_OR_SCALING)),
        cluster("no device", &[("workerGroups/0/device", json!({}))], Rule(rules::CPU_OR_GPU)),
        cluster("two kinds of device", &[("workerGroups/0/device", json!({ "cpu": {}, "gpu": {} }))], Rule(rules::CPU_OR_GPU)),
        cluster("a claim and a resource", &[("workerGroups/0/device", json!({ "gpu": { "resourceClaimTemplateName": "a", "resourceName": "nvidia.com/gpu" } }))], Rule(rules::CLAIM_INSTEAD_OF_RESOURCE)),
        cluster("more at least than at most", &[("workerGroups/0/scaling", json!({ "minReplicas": 11, "maxReplicas": 10 }))], Rule(rules::MIN_AT_MOST_MAX)),
        cluster("a metrics source without HPA", &[("workerGroups/0/scaling", json!({ "mode": "KEDA", "maxReplicas": 10, "metricsSource": "Existing" }))], Rule(rules::METRICS_SOURCE_ONLY_FOR_HPA)),
        cluster("a selector without from", &[("allowedNamespaces", json!({ "selector": { "matchLabels": {} } }))], Rule(rules::SELECTOR_WITH_FROM_SELECTOR)),
        cluster("from without a selector", &[("allowedNamespaces", json!({ "from": "Selector" }))], Rule(rules::SELECTOR_WITH_FROM_SELECTOR)),
        cluster("Exists with values", &[("workerGroups/0/pod", json!({ "requiredNodeLabels": [{ "key": "a", "operator": "Exists", "values": ["b"] }] }))], Rule(rules::VALUES_FIT_OPERATOR)),
        cluster("Gt with two values", &[("workerGroups/0/pod", json!({ "requiredNodeLabels": [{ "key": "a", "operator": "Gt", "values": ["1", "2"] }] }))], Rule(rules::VALUES_FIT_OPERATOR)),
        cluster("In without values", &[("workerGroups/0/pod", json!({ "preferredNodeLabels": [{ "key": "a", "operator": "In" }] }))], Rule(rules::VALUES_FIT_OPERATOR)),
        cluster("an Exists toleration with a value", &[("workerGroups/0/pod", json!({ "tolerations": [{ "key": "a", "operator": "Exists", "value": "b" }] }))], Rule(rules::TOLERATION_VALUE_FITS_OPERATOR)),
        cluster("an Equal toleration without a key", &[("workerGroups/0/pod", json!({ "tolerations": [{ "value": "b" }] }))], Rule(rules::TOLERATION_VALUE_FITS_OPERATOR)),
        cluster("a variable with two values", &[("workerGroups/0/pod", json!({ "env": [{ "name": "A", "value": "b", "secretRef": { "name": "a", "key": "b" } }] }))], Rule(rules::VALUE_OR_SECRET)),
        cluster("a variable of ours", &[("workerGroups/0/pod", json!({ "env": [{ "name": "PROVER_TOKEN", "value": "b" }] }))], Rule(rules::OWN_VARIABLES_ARE_RESERVED)),

        cluster("no bucket", &[("artifactStore/s3/bucket", Value::Null)], Structure { path: "spec.artifactStore.s3.bucket", server: "Required value", local: "is required" }),
        cluster("no backends", &[("backends", json!([]))], Structure { path: "spec.backends", server: "should have at least 1 items", local: "at least 1 are needed" }),
        cluster("two groups of one name", &[("workerGroups", json!([group, group]))], Structure { path: "spec.workerGroups[1]", server: "Duplicate value", local: "Duplicate value" }),
        cluster("two backends of one name", &[("backends", json!([{ "name": "risc0", "system": "risc0", "image": "a" }, { "name": "risc0", "system": "sp1", "image": "b" }]))], Structure { path: "spec.backends[1]", server: "Duplicate value", local: "Duplicate value" }),
        cluster("a namespace named twice", &[("limits", json!({ "namespaces": [{ "namespace": "a" }, { "namespace": "a" }] }))], Structure { path: "spec.limits.namespaces[1]", server: "Duplicate value", local: "Duplicate value" }),
        cluster("memory that is no quantity", &[("workerGroups/0/resources", json!({ "memory": "16 GB" }))], Structure { path: "spec.workerGroups[0].resources.memory", server: "should match", local: "must match" }),
        cluster("negative memory", &[("workerGroups/0/resources", json!({ "memory": "-1Gi" }))], Structure { path: "spec.workerGroups[0].resources.memory", server: "should match", local: "must match" }),
        cluster("negative memory as a number", &[("workerGroups/0/resources", json!({ "memory": -1 }))], Structure { path: "spec.workerGroups[0].resources.memory", server: "should be greater than or equal to 0", local: "must match" }),
        cluster("memory that is a truth value", &[("workerGroups/0/resources", json!({ "memory": true }))], Structure { path: "spec.workerGroups[0].resources.memory", server: "must be of type integer,string", local: "must be a quantity such as 8 or 24Gi" }),
        cluster("a price as a number", &[("workerGroups/0/cost", json!({ "perHour": 2.49 }))], Structure { path: "spec.workerGroups[0].cost.perHour", server: "must be of type string", local: "must be a string" }),
        cluster("a mig profile that is none", &[("workerGroups/0/device", json!({ "gpu": { "migProfile": "half" } }))], Structure { path: "spec.workerGroups[0].device.gpu.migProfile", server: "should match", local: "must match" }),
        cluster("a label with a space", &[("workerGroups/0/pod", json!({ "labels": { "team": "a b" } }))], Structure { path: "spec.workerGroups[0].pod.labels.team", server: "should match", local: "must match" }),
        cluster("a misspelt group field", &[("workerGroups/0/tolerations", json!([]))], Structure { path: "spec.workerGroups[0].tolerations", server: "unknown field", local: "did you mean `spec." }),
    ]
}

fn change(
    name: &'static str,
    before: &[(&str, Value)],
    after: &[(&str, Value)],
    expected: Expected,
) -> Update {
    let old = with(good_proof_job(), before);
    Update {
        name,
        new: with(old.clone(), after),
        old,
        expected,
    }
}

fn change_cluster(
    name: &'static str,
    before: &[(&str, Value)],
    after: &[(&str, Value)],
    expected: Expected,
) -> Update {
    let old = with(good_prover_cluster(), before);
    Update {
        name,
        new: with(old.clone(), after),
        old,
        expected,
    }
}

#[rustfmt::skip]
pub(crate) fn updates() -> Vec<Update> {
    vec![
        change("nothing", &[], &[], Accepted),
        change("everything that may change", &[("suspend", json!(true))], &[
            ("suspend", json!(false)), ("cancel", json!(true)), ("priority", json!(7)), ("deadline", json!("2099-01-01T00:00:00Z")),
            ("activeDeadlineSeconds", json!(60)), ("maxWorkers", json!(2)), ("ttlSecondsAfterFinished", json!(0)),
        ], Accepted),
        change("a deadline taken away", &[("deadline", json!("2099-01-01T00:00:00Z"))], &[("deadline", Value::Null)], Accepted),
        change("cancel taken back", &[("cancel", json!(true))], &[("cancel", json!(false))], Rule(rules::CANCEL_IS_FINAL)),
        change("cancel removed", &[("cancel", json!(true))], &[("cancel", Value::Null)], Rule(rules::CANCEL_IS_FINAL)),
        change("another program", &[], &[("program/inline", json!("AAAA"))], Rule(rules::PROGRAM_IS_IMMUTABLE)),
        change("another kind of proof", &[], &[("proof/kind", json!("Composite"))], Rule(rules::PROOF_IS_IMMUTABLE)),
        change("another input", &[], &[("input/inline", json!("AAAA"))], Rule(rules::INPUT_IS_IMMUTABLE)),
        change("the input taken away", &[], &[("input", Value::Null)], Rule(rules::INPUT_IS_IMMUTABLE)),
        change("an input given later", &[("input", Value::Null)], &[("input", json!({ "text": "5" }))], Rule(rules::INPUT_IS_IMMUTABLE)),
        change("assumptions given later", &[], &[("assumptions", json!([{ "configMap": { "name": "a", "key": "b" } }]))], Rule(rules::ASSUMPTIONS_ARE_IMMUTABLE)),
        change("another cluster", &[], &[("clusterRef", json!({ "name": "other" }))], Rule(rules::CLUSTER_REF_IS_IMMUTABLE)),
        change("maxCycles set later", &[], &[("maxCycles", json!(5))], Rule(rules::MAX_CYCLES_IS_IMMUTABLE)),
        change("reportGas set later", &[("proof", json!({ "system": "sp1", "kind": "Core" }))], &[("reportGas", json!(true))], Rule(rules::REPORT_GAS_IS_IMMUTABLE)),
        change("reportGas said to be off", &[], &[("reportGas", json!(false))], Accepted),
        change("segmentPo2 changed", &[("segmentPo2", json!(16))], &[("segmentPo2", json!(17))], Rule(rules::SEGMENT_PO2_IS_IMMUTABLE)),
        change("retryLimit changed", &[("retryLimit", json!(1))], &[("retryLimit", json!(2))], Rule(rules::RETRY_LIMIT_IS_IMMUTABLE)),
        change("managedBy set later", &[], &[("managedBy", json!("kueue.x-k8s.io/multikueue"))], Rule(rules::MANAGED_BY_IS_IMMUTABLE)),
        change("managedBy taken away", &[("managedBy", json!("kueue.x-k8s.io/multikueue"))], &[("managedBy", Value::Null)], Rule(rules::MANAGED_BY_IS_IMMUTABLE)),
        change("managedBy changed", &[("managedBy", json!("a.example/b"))], &[("managedBy", json!("a.example/c"))], Rule(rules::MANAGED_BY_IS_IMMUTABLE)),
        change_cluster("another endpoint", &[], &[("artifactStore/s3/endpoint", json!("https://minio:9000"))], Accepted),
        change_cluster("another bucket", &[], &[("artifactStore/s3/bucket", json!("other"))], Rule(rules::BUCKET_IS_IMMUTABLE)),
        change_cluster("a prefix given later", &[], &[("artifactStore/s3/prefix", json!("a"))], Rule(rules::PREFIX_IS_IMMUTABLE)),
    ]
}
