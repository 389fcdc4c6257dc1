//! The core stays pure: it depends on nothing that does I/O, keeps time or makes random numbers, and on none of ours.

use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn the_core_depends_on_nothing_but_what_derives_its_errors() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let core = packages
        .iter()
        .find(|package| package["name"] == "prover-core")
        .expect("the core is a package");
    let dependencies: BTreeSet<&str> = core["dependencies"]
        .as_array()
        .expect("dependencies")
        .iter()
        .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
        .filter_map(|dependency| dependency["name"].as_str())
        .collect();
    assert_eq!(dependencies, BTreeSet::from(["smallvec", "thiserror"]));
}
