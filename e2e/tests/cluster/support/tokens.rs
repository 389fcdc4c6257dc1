//! ServiceAccount tokens: genuine ones, and what somebody who has a key makes of them.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::kubectl::{cluster_directory, kubectl};
use super::objects::CLUSTER;
use super::scene::Scene;
use super::steps::name;

/// A token for the coordinator of the scene's cluster, bound to one of its worker pods.
pub(crate) fn of_pod(scene: &Scene, pod: &Value) -> String {
    let audience = format!("proving.rs/workers/{}/{CLUSTER}", scene.namespace());
    let token = kubectl(&[
        "create",
        "token",
        &format!("{CLUSTER}-worker"),
        "--namespace",
        scene.namespace(),
        "--audience",
        &audience,
        "--bound-object-kind",
        "Pod",
        "--bound-object-name",
        name(pod),
        "--bound-object-uid",
        pod["metadata"]["uid"].as_str().unwrap_or_default(),
    ]);
    token.trim().to_owned()
}

/// With which key a token is signed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signature {
    /// That of the API server.
    OfTheCluster,
    /// One that was made for this.
    Own,
}

/// The same token signed again; one whose time has been over for an hour, if it shall be expired.
pub(crate) fn resigned(token: &str, signature: Signature, expired: bool) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    let mut claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).expect("a token is base64")).unwrap();
    if expired {
        let now = claims["iat"].as_u64().expect("a token says when it was made");
        for (claim, ago) in [("iat", 7_200), ("nbf", 7_200), ("exp", 3_600)] {
            claims[claim] = json!(now - ago);
        }
    }
    let signed = format!("{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims.to_string()));
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("key");
    let key = match signature {
        Signature::OfTheCluster => cluster_directory().join("pki/service-accounts.key"),
        Signature::Own => {
            let made = Command::new("openssl")
                .args(["genrsa", "-out"])
                .arg(&own)
                .arg("2048")
                .output()
                .unwrap();
            assert!(made.status.success(), "openssl genrsa: {made:?}");
            own
        }
    };
    let mut child = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl can be started");
    child.stdin.take().unwrap().write_all(signed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl dgst: {}", output.status);
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(output.stdout))
}
