//! The store can't take what is written to it.

use std::path::{Path, PathBuf};
use std::process::Command;

use prover_e2e::{Job, Model};
use serde_json::json;

/// A small file system that is gone when dropped. Mounting needs root.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(path: &Path, options: &str) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(path)
            .output()
            .expect("the command mount is needed: install util-linux");
        assert!(
            output.status.success(),
            "this test mounts a small tmpfs: run it as root with CAP_SYS_ADMIN ({})",
            String::from_utf8_lossy(&output.stderr)
        );
        Mount(path.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A mount that stays is seen by the next run, and by the removal of the folder.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_store_ends_the_job_as_bad_input() {
    let folder = tempfile::tempdir().unwrap();
    let store = Mount::tmpfs(&folder.path().join("store"), "size=2m");
    let model = Model::new(8).field("sizes", json!({"segment": 1024, "receipt": 1 << 20}));
    let done = Job::new(model.manifest("full").text())
        .arguments(["--store", store.0.to_str().unwrap()])
        .run()
        .expect_code(2);
    let report = done.report();
    assert_eq!(report["reason"], "StoreFull");
    let message = report["message"].as_str().unwrap();
    assert!(
        message.contains("full") && message.contains(store.0.to_str().unwrap()),
        "{message}"
    );
}

#[test]
fn a_store_that_is_full_from_the_start_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let store = Mount::tmpfs(&folder.path().join("store"), "size=64k");
    std::fs::write(store.0.join("filler"), vec![0; 60 << 10]).unwrap();
    // The rest of the last page goes too.
    while std::fs::write(
        store
            .0
            .join(format!("more-{}", std::fs::read_dir(&store.0).unwrap().count())),
        [0; 1],
    )
    .is_ok()
    {}
    let done = Job::new(Model::new(2).manifest("full").text())
        .arguments(["--store", store.0.to_str().unwrap()])
        .run()
        .expect_code(2);
    let report = done.report();
    assert_eq!(report["reason"], "StoreFull");
    assert_eq!(report["attempts"]["total"], 0);
}

#[test]
fn a_read_only_store_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let store = Mount::tmpfs(&folder.path().join("store"), "size=1m,ro");
    let done = Job::new(Model::new(2).manifest("read-only").text())
        .arguments(["--store", store.0.to_str().unwrap()])
        .run()
        .expect_code(2);
    let report = done.report();
    assert_eq!(report["reason"], "StoreNotWritable");
    assert_eq!(report["attempts"]["total"], 0);
    let message = report["message"].as_str().unwrap();
    assert!(message.contains(store.0.to_str().unwrap()), "{message}");
}

#[test]
fn a_store_below_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let store = file.join("store");
    let done = Job::new(Model::new(2).manifest("below").text())
        .arguments(["--store", store.to_str().unwrap()])
        .run()
        .expect_code(2);
    assert_eq!(done.report()["reason"], "StoreNotWritable");
}

#[test]
fn an_output_folder_that_can_not_be_written_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let output = Mount::tmpfs(&folder.path().join("out"), "size=1m,ro");
    let manifest = folder.path().join("job.yaml");
    std::fs::write(&manifest, Model::new(2).manifest("job").text()).unwrap();
    let done = Command::new(prover_e2e::binary("kubectl-proof"))
        .args(["run", "--output", "json", "-f"])
        .arg(&manifest)
        .arg("--output-directory")
        .arg(&output.0)
        .env("PROVER_BACKENDS_DIRECTORY", prover_e2e::bin_directory())
        .output()
        .unwrap();
    assert_eq!(
        done.status.code(),
        Some(2),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["reason"], "OutputNotWritable");
}
