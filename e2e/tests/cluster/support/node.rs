//! The node of the cluster under test, from inside: processes of pods, and the node's own programs.
//!
//! Only the cluster of `make cluster-up` has such a node: kubectl alone can neither stop a process nor the API server.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use prover_e2e::workspace;
use serde_json::Value;

fn script(name: &str) -> PathBuf {
    workspace().join("e2e/cluster").join(name)
}

fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .expect("the scripts of e2e/cluster can be started");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command inside the node and gives what it printed.
///
/// # Panics
/// It fails.
pub(crate) fn in_node(arguments: &[&str]) -> String {
    let output = run(Command::new(script("node.sh")).args(arguments));
    String::from_utf8(output.stdout).expect("commands print UTF-8")
}

/// Stops, starts or restarts one of the node's own programs, such as `kube-apiserver`.
pub(crate) fn component(action: &str, name: &str) {
    run(Command::new(script("component.sh")).args([action, name]));
}

/// Gives an image of the node one more tag, and the name that it has by it: other images by their names, with the same
/// programs.
pub(crate) fn tag_image(image: &str, tag: &str) -> String {
    let (name, _) = image.rsplit_once(':').expect("images are named with a tag");
    let other = format!("{name}:{tag}");
    in_node(&[
        "ctr",
        "--namespace",
        "k8s.io",
        "images",
        "tag",
        "--force",
        image,
        &other,
    ]);
    other
}

/// Sends a signal to a program of a pod's container.
///
/// # Panics
/// It does not run there.
pub(crate) fn signal(pod: &Value, container: &str, program: &str, signal: &str) {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let id = statuses
        .into_iter()
        .flatten()
        .find(|status| status["name"] == container)
        .and_then(|status| status["containerID"].as_str()?.rsplit('/').next())
        .unwrap_or_else(|| panic!("no container {container} in {:#}", pod["status"]));
    in_node(&["bash", "-c", SIGNAL, "signal", id, program, signal]);
}

/// Sends a signal to a program that runs once in a pod, in whichever container: the pod's status tells of a container that
/// was started again a little later than it runs. Gives the moment at which it was sent, since getting there takes long
/// where the machine is busy.
///
/// # Panics
/// It does not run there.
pub(crate) fn signal_in_pod(pod: &Value, program: &str, signal: &str) -> Instant {
    let uid = pod["metadata"]["uid"].as_str().expect("pods have a uid");
    // With the systemd driver, a control group's name has underscores in place of hyphens.
    let group = uid.replace('-', "[-_]");
    let told = in_node(&["bash", "-c", SIGNAL, "signal", &group, program, signal]);
    let sent: f64 = told
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{told:?} is no moment"));
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(sent);
    Instant::now() - since.elapsed().unwrap_or_default()
}

/// Control groups name a process's pod and container.
const SIGNAL: &str = r#"
found=
for file in $(grep -ls "$1" /proc/[0-9]*/cgroup); do
  process=${file%/cgroup}
  [ "$(basename "$(readlink "$process/exe")" 2>/dev/null)" = "$2" ] || continue
  kill -"$3" "${process#/proc/}" && found=$EPOCHREALTIME
done
[ -n "$found" ] || { echo "no $2 runs in container $1" >&2; exit 1; }
echo "${found/,/.}"
"#;
