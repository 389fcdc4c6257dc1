//! The folder store: what every store does, and what only file systems do.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop there")]

mod support;

use std::fs;

use prover_artifacts::{Condition, ObjectInfo, StoreError, open, open_with};
use support::disk::SmallDisk;
use support::{Fixture, content, key, options, prefix};

async fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let url = format!("file://{}", root.path().display());
    let store = open_with(&url, options()).await.unwrap();
    Fixture {
        store,
        local: tempfile::tempdir().unwrap(),
        guard: Some(root),
    }
}

behaviours!(fixture);

#[tokio::test]
async fn a_missing_folder_is_created() {
    let parent = tempfile::tempdir().unwrap();
    let url = format!("file://{}/a/b", parent.path().display());
    let store = open(&url).await.unwrap();
    store.probe().await.unwrap();
    assert!(parent.path().join("a/b").is_dir());
}

#[tokio::test]
async fn a_file_where_the_folder_should_be_is_not_writable() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open(&format!("file://{}", file.display())).await.unwrap_err();
    assert!(matches!(error, StoreError::StoreNotWritable { .. }), "{error:?}");
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_read_only_folder_is_told_by_the_probe_and_by_writes_but_can_be_read() {
    let mut disk = SmallDisk::new(1024);
    let store = open(&format!("file://{}", disk.path().display())).await.unwrap();
    let info = store
        .put_bytes(&key("a/b"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    disk.make_read_only();
    let results = [
        store.probe().await.map(|_| ()),
        store
            .put_bytes(&key("a/c"), "x".into(), Condition::CreateOnly)
            .await
            .map(|_| ()),
        store
            .put_bytes(&key("new/c"), "x".into(), Condition::CreateOnly)
            .await
            .map(|_| ()),
        store.delete(&key("a/b")).await,
        store.delete_prefix(&prefix("a")).await.map(|_| ()),
    ];
    for result in results {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::StoreNotWritable { .. }), "{error:?}");
        assert!(
            error.to_string().contains(disk.path().to_str().unwrap()),
            "{error}"
        );
    }
    store.get_bytes(&key("a/b"), Some(&info), 1).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_is_store_full_and_leaves_no_part_of_the_object() {
    let disk = SmallDisk::new(1024);
    let store = open(&format!("file://{}", disk.path().display())).await.unwrap();
    let error = store
        .put_bytes(&key("a/large"), content(3 << 20, 1), Condition::CreateOnly)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::StoreFull { .. }), "{error:?}");
    assert!(store.list(&prefix(""), 10).await.unwrap().objects.is_empty());
    assert_eq!(fs::read_dir(disk.path().join("a")).unwrap().count(), 0);
    // The space is free again.
    store
        .put_bytes(&key("a/small"), content(500_000, 1), Condition::CreateOnly)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_full_disk_at_the_destination_is_not_the_stores_fault() {
    let f = fixture().await;
    let info = f
        .store
        .put_bytes(&key("a/large"), content(3 << 20, 1), Condition::CreateOnly)
        .await
        .unwrap();
    let disk = SmallDisk::new(1024);
    let error = f
        .store
        .get_file(&key("a/large"), &info, &disk.path().join("back"))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::LocalDiskFull { .. }), "{error:?}");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn unfinished_files_of_a_killed_process_are_no_objects_and_go_with_their_prefix() {
    let f = fixture().await;
    let root = f.guard.as_ref().unwrap().path();
    f.store
        .put_bytes(&key("jobs/a/x"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    fs::write(root.join("jobs/a/.prover-partial-123"), "half").unwrap();
    assert_eq!(f.store.list(&prefix("jobs"), 10).await.unwrap().objects.len(), 1);
    assert_eq!(f.store.delete_prefix(&prefix("jobs/a")).await.unwrap(), 1);
    assert!(!root.join("jobs").exists(), "empty folders stay behind");
}

#[tokio::test]
async fn bytes_changed_on_the_disk_are_a_mismatch() {
    let f = fixture().await;
    let key = key("jobs/a/receipt");
    let info = f
        .store
        .put_bytes(&key, content(10_000, 1), Condition::CreateOnly)
        .await
        .unwrap();
    let file = f.guard.as_ref().unwrap().path().join(key.as_str());
    let mut bytes = fs::read(&file).unwrap();
    bytes[5_000] ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = f.store.get_bytes(&key, Some(&info), 10_000).await.unwrap_err();
    assert!(matches!(error, StoreError::ChecksumMismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn a_key_below_another_key_is_refused_with_the_reason() {
    let f = fixture().await;
    f.store
        .put_bytes(&key("a/b"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    for name in ["a/b/c", "a"] {
        let error = f
            .store
            .put_bytes(&key(name), "x".into(), Condition::CreateOrSame)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::InvalidKey { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn writing_through_to_the_disk_gives_the_same_objects() {
    let root = tempfile::tempdir().unwrap();
    let options = prover_artifacts::StoreOptions {
        sync: true,
        ..options()
    };
    let store = open_with(&format!("file://{}", root.path().display()), options)
        .await
        .unwrap();
    let info = store
        .put_bytes(&key("a/b/c"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(info, ObjectInfo::of(b"x"));
    store.get_bytes(&key("a/b/c"), Some(&info), 1).await.unwrap();
}

#[tokio::test]
async fn what_is_fetched_can_be_read_by_another_user() {
    use std::os::unix::fs::PermissionsExt;
    let f = fixture().await;
    let info = f
        .store
        .put_bytes(&key("a"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    let to = f.local.path().join("back");
    f.store.get_file(&key("a"), &info, &to).await.unwrap();
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o444, 0o444);
}
