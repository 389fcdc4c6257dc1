//! Whoever is no worker of a cluster gets nothing from its coordinator, however much of a worker's outfit it has.

use std::time::Duration;

use prover_e2e::Model;
use serde_json::{Value, json};

use crate::support::coordinator::{self, Method};
use crate::support::kubectl::{apply, try_kubectl};
use crate::support::scene::Scene;
use crate::support::steps::{
    JOB_FINISHED, attempts, await_workers, eventually, kill_pod, name, start_emulated, submit, workers,
};
use crate::support::tokens::{self, Signature};

/// From a pod to its agent's first word with the coordinator, many pods at once.
const PODS_STARTED: Duration = Duration::from_secs(120);

/// A pod with the images, the certificates and the credentials of a worker, and what is wrong with it.
struct Impostor {
    name: &'static str,
    wrong: Wrong,
    /// What the coordinator says to it.
    told: &'static str,
    /// What the coordinator counts it as.
    category: &'static str,
}

enum Wrong {
    /// Nothing: it is a worker.
    Nothing,
    /// Its token is made out to the workers of another cluster.
    Audience,
    /// It calls itself by the name of another worker, with its own token.
    Name,
    /// It has the name and the token of another worker, which lives.
    Stolen,
    /// It has the name and the token of a worker that is gone.
    Replayed,
    /// Nobody made it a part of this cluster.
    Unlabelled,
    /// Its token is its own but for its time.
    Expired,
    /// Its token says everything right, signed with a key of its own.
    Forged,
}

const IMPOSTORS: [Impostor; 8] = [
    Impostor {
        name: "honest",
        wrong: Wrong::Nothing,
        told: "",
        category: "",
    },
    Impostor {
        name: "audience",
        wrong: Wrong::Audience,
        told: "its audience is not this coordinator",
        category: "token_audience",
    },
    Impostor {
        name: "foreign-name",
        wrong: Wrong::Name,
        told: "is not the name of the pod whose token this is",
        category: "foreign_worker_id",
    },
    Impostor {
        name: "stolen",
        wrong: Wrong::Stolen,
        told: "the call does not come from pod",
        category: "foreign_address",
    },
    Impostor {
        name: "replayed",
        wrong: Wrong::Replayed,
        told: "is no running worker of this cluster",
        category: "pod_unknown",
    },
    Impostor {
        name: "unlabelled",
        wrong: Wrong::Unlabelled,
        told: "is no running worker of this cluster",
        category: "pod_unknown",
    },
    Impostor {
        name: "expired",
        wrong: Wrong::Expired,
        told: "it has expired",
        category: "token_expired",
    },
    Impostor {
        name: "forged",
        wrong: Wrong::Forged,
        told: "its signature is wrong",
        category: "token_signature",
    },
];

/// A worker of the cluster, and a token that was made for it.
struct Victim {
    pod: Value,
    token: String,
}

impl Victim {
    fn of(scene: &Scene, pod: &Value) -> Victim {
        Victim {
            pod: pod.clone(),
            token: tokens::of_pod(scene, pod),
        }
    }
}

#[test]
fn a_hostile_worker_gets_nothing_whatever_it_brings_along() {
    let scene = Scene::new("hostile");
    start_emulated(&scene, 2);
    let [living, gone] = &workers(&scene, "cpu")[..] else {
        panic!("two workers were started")
    };
    let (living, gone) = (Victim::of(&scene, living), Victim::of(&scene, gone));
    kill_pod(&scene, name(&gone.pod));
    for impostor in &IMPOSTORS {
        start(&scene, impostor, &living, &gone);
    }
    for method in [Method::Session, Method::Watch] {
        let answer = coordinator::call_without_token(&scene, method);
        assert!(
            answer.contains("grpc-status: 16") && answer.contains("no%20bearer%20token"),
            "{method:?} without a token: {answer}"
        );
    }
    for impostor in IMPOSTORS.iter().filter(|impostor| !impostor.told.is_empty()) {
        eventually(PODS_STARTED, || {
            let log = log(&scene, impostor);
            if log.contains(impostor.told) {
                Ok(())
            } else {
                Err(format!(
                    "{} was not told {:?}: {log}",
                    impostor.name, impostor.told
                ))
            }
        });
    }
    // The living one, another in the place of the gone one, and the honest one.
    await_workers(&scene, "cpu", 3, PODS_STARTED);
    // Segments that take longer than the planner needs for three of them, so that all three workers have one.
    let job = submit(
        &scene,
        &Model::new(12).duration("prove", 4_000).manifest("wanted"),
    );
    let done = job.succeeded(JOB_FINISHED);
    assert_eq!((attempts(&done, "failed"), attempts(&done, "lost")), (0, 0));
    for impostor in &IMPOSTORS {
        let (got, may) = (
            log(&scene, impostor).contains("task_type="),
            impostor.told.is_empty(),
        );
        assert_eq!(got, may, "{}: was it given work, and may it be?", impostor.name);
        if !may {
            let refused = format!("sessions_refused_total{{reason=\"{}\"}}", impostor.category);
            assert!(
                coordinator::metric(&scene, &refused) >= 1.0,
                "{refused} is not counted"
            );
        }
    }
    scene.finish();
}

fn log(scene: &Scene, impostor: &Impostor) -> String {
    let output = try_kubectl(&[
        "logs",
        impostor.name,
        "--namespace",
        scene.namespace(),
        "--container",
        "agent",
    ]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Starts a copy of a worker's pod with one thing wrong.
fn start(scene: &Scene, impostor: &Impostor, living: &Victim, gone: &Victim) {
    let mut pod = copy(&living.pod, impostor.name);
    match impostor.wrong {
        Wrong::Nothing => {}
        Wrong::Audience => {
            let audience = format!("proving.rs/workers/{}/another", scene.namespace());
            volume(&mut pod, "token")["projected"]["sources"][0]["serviceAccountToken"]["audience"] =
                audience.into();
        }
        Wrong::Name => rename(&mut pod, name(&living.pod)),
        Wrong::Stolen | Wrong::Replayed => {
            let victim = if matches!(impostor.wrong, Wrong::Stolen) {
                living
            } else {
                gone
            };
            rename(&mut pod, name(&victim.pod));
            bring_token(&mut pod, impostor.name);
            keep_token(scene, impostor.name, &victim.token);
        }
        Wrong::Unlabelled => pod["metadata"]["labels"] = json!({}),
        Wrong::Expired | Wrong::Forged => bring_token(&mut pod, impostor.name),
    }
    let pod = apply(&pod);
    // Their tokens name the pod, so they are made after it; it waits for its Secret.
    let signature = match impostor.wrong {
        Wrong::Expired => Signature::OfTheCluster,
        Wrong::Forged => Signature::Own,
        _ => return,
    };
    let expired = matches!(impostor.wrong, Wrong::Expired);
    let token = tokens::resigned(&tokens::of_pod(scene, &pod), signature, expired);
    keep_token(scene, impostor.name, &token);
}

/// The pod again under another name, belonging to no Deployment.
fn copy(pod: &Value, name: &str) -> Value {
    let mut labels = pod["metadata"]["labels"].clone();
    labels.as_object_mut().unwrap().remove("pod-template-hash");
    let mut spec = pod["spec"].clone();
    for chosen_later in ["nodeName", "priority", "preemptionPolicy"] {
        spec.as_object_mut().unwrap().remove(chosen_later);
    }
    // Its log shall stay when it gives up.
    spec["restartPolicy"] = json!("Never");
    for containers in ["containers", "initContainers"] {
        for container in spec[containers].as_array_mut().into_iter().flatten() {
            // So many pods at once would not fit.
            container["resources"] = json!({});
        }
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": pod["metadata"]["namespace"], "labels": labels},
        "spec": spec,
    })
}

fn volume<'a>(pod: &'a mut Value, name: &str) -> &'a mut Value {
    let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
    volumes
        .iter_mut()
        .find(|volume| volume["name"] == name)
        .expect("a worker's pod has a volume of this name")
}

/// Gives the agent another worker id.
fn rename(pod: &mut Value, worker: &str) {
    let containers = pod["spec"]["containers"].as_array_mut().unwrap();
    let agent = containers
        .iter_mut()
        .find(|container| container["name"] == "agent")
        .unwrap();
    let arguments = agent["args"].as_array_mut().unwrap();
    let id = arguments
        .iter_mut()
        .find(|argument| argument.as_str().unwrap().starts_with("--worker-id="));
    *id.expect("the agent is told its worker id") = format!("--worker-id={worker}").into();
}

/// Replaces the pod's own token by that of a Secret of the pod's name.
fn bring_token(pod: &mut Value, secret: &str) {
    *volume(pod, "token") = json!({"name": "token", "secret": {"secretName": secret}});
}

fn keep_token(scene: &Scene, secret: &str, token: &str) {
    apply(&json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": secret, "namespace": scene.namespace()},
        "stringData": {"token": token},
    }));
}
