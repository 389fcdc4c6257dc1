//! What lies in MinIO, seen with signed requests from outside the cluster.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::kubectl;

/// Bucket that `make cluster-up` makes.
pub(crate) const BUCKET: &str = "proofs";
/// Where pods reach it.
pub(crate) const ENDPOINT: &str = "http://minio.minio.svc:9000";
const PAGE: usize = 1_000;

/// Keys below a prefix, in order.
pub(crate) fn keys(prefix: &str) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    loop {
        let after = keys
            .last()
            .map(|last| format!("&start-after={}", encoded(last)))
            .unwrap_or_default();
        // Signing sorts nothing: the parameters stand in the order that the signature needs.
        let query = format!("list-type=2&prefix={}{after}", encoded(prefix));
        let text = String::from_utf8(request(&format!("{BUCKET}?{query}"))).expect("MinIO answers in UTF-8");
        let before = keys.len();
        keys.extend(
            text.split("<Key>")
                .skip(1)
                .filter_map(|rest| rest.split("</Key>").next())
                .map(str::to_owned),
        );
        if keys.len() - before < PAGE {
            return keys;
        }
    }
}

/// The bytes that an `s3://` address names.
pub(crate) fn download(uri: &str, target: &Path) {
    let key = uri
        .strip_prefix(&format!("s3://{BUCKET}/"))
        .unwrap_or_else(|| panic!("{uri} is not in s3://{BUCKET}/"));
    std::fs::write(target, request(&format!("{BUCKET}/{key}"))).unwrap();
}

/// The Secret with MinIO's credentials, as it is copied into the namespaces of tests.
pub(crate) fn credentials() -> serde_json::Value {
    kubectl::get("minio", "secret", "minio").expect("Secret minio/minio: run `make cluster-up`")["data"]
        .clone()
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

fn request(path: &str) -> Vec<u8> {
    let address =
        kubectl::get("minio", "service", "minio").expect("Service minio/minio")["spec"]["clusterIP"]
            .as_str()
            .expect("it has an address")
            .to_owned();
    let credentials = credentials();
    let plain = |key: &str| {
        let encoded = credentials[key].as_str().unwrap_or_default();
        String::from_utf8(STANDARD.decode(encoded).expect("data of Secrets is base64"))
            .expect("credentials are text")
    };
    let mut child = Command::new("curl")
        .args([
            "--config",
            "-",
            "--silent",
            "--show-error",
            "--fail",
            "--noproxy",
            "*",
            "--max-time",
            "60",
        ])
        .args(["--aws-sigv4", "aws:amz:us-east-1:s3"])
        .arg(format!("http://{address}:9000/{path}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl can be started");
    // Through a pipe, since arguments are seen by every process of the machine.
    let user = format!("user = {}:{}\n", plain("accessKeyId"), plain("secretAccessKey"));
    child.stdin.take().unwrap().write_all(user.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "MinIO: {path}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}
