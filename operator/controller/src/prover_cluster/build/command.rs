//! What the command backend is told: which programs of the user's image prove and verify.

use prover_crds::{CommandBackend, Quantity};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::prover_cluster::validate::Group;

/// Variable that the command backend reads.
pub(super) const VARIABLE: &str = "PROVER_COMMAND_CONFIG";
/// Digits of a version.
const VERSION_DIGITS: usize = 16;

/// Its configuration. The version is made of image and command lines, so that a job that began with one never goes on
/// with another.
pub(super) fn configuration(group: &Group, command: &CommandBackend) -> String {
    let identity = json!([group.prover.image.0, command]).to_string();
    let mut version = hex::encode(Sha256::digest(identity.as_bytes()));
    version.truncate(VERSION_DIGITS);
    json!({
        "backend": group.prover.name,
        "version": version,
        "prove": command.prove,
        "verify": command.verify,
        "timeoutSeconds": command.timeout_seconds,
        "verifyTimeoutSeconds": command.verify_timeout_seconds,
        "hostMemoryBytes": command.host_memory.as_ref().and_then(Quantity::units),
        "verifyHostMemoryBytes": command.verify_host_memory.as_ref().and_then(Quantity::units),
        "attemptsAtOnce": group.tasks_per_device,
    })
    .to_string()
}
