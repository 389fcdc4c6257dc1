//! The log over real stores: a folder, and a MinIO behind a proxy that fails.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop there")]

#[path = "../../artifacts/tests/support/minio.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod minio;
#[path = "../../artifacts/tests/support/proxy.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod proxy;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use hyper::Method;
use prover_artifacts::{ArtifactStore, Prefix, StoreOptions, open_with};
use prover_log::{
    AppendError, Appender, Follower, Index, Limits, LogError, Progress, Replayed, State, TakenOver,
    store_options,
};
use proxy::{ALWAYS, Fault, Proxy};
use tempfile::TempDir;

/// A test that waits longer than this for anything has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits {
        commit_interval: Duration::from_millis(5),
        first_backoff: Duration::from_millis(10),
        longest_backoff: Duration::from_millis(200),
        checkpoint_due_objects: 10,
        retained_objects: 2,
        ..Limits::default()
    }
}

fn prefix() -> Prefix {
    Prefix::new("clusters/one").unwrap()
}

async fn folder(root: &TempDir) -> Arc<dyn ArtifactStore> {
    let url = format!("file://{}", root.path().display());
    open_with(&url, store_options(StoreOptions::default(), &limits()))
        .await
        .unwrap()
}

async fn s3(endpoint: &str, bucket: &str, limits: &Limits) -> Arc<dyn ArtifactStore> {
    let url = format!("s3://{bucket}/p?endpoint=http://{endpoint}&region=us-east-1&path-style=true");
    let options = StoreOptions {
        credentials: Some(minio::shared().credentials.clone()),
        ..store_options(StoreOptions::default(), limits)
    };
    open_with(&url, options).await.unwrap()
}

async fn follower(store: &Arc<dyn ArtifactStore>) -> Follower {
    Follower::open(Arc::clone(store), prefix(), limits())
        .await
        .unwrap()
}

async fn leader(store: &Arc<dyn ArtifactStore>) -> TakenOver {
    follower(store).await.take_over().await.unwrap()
}

async fn wait(appender: &Appender, until: impl FnMut(&Progress) -> bool) -> Progress {
    let mut progress = appender.committed();
    let reached = tokio::time::timeout(PATIENCE, progress.wait_for(until)).await;
    reached.expect("it takes too long").unwrap().clone()
}

async fn commit(appender: &Appender, record: &str) -> Index {
    let index = appender.append(&[record]).unwrap();
    wait(appender, |progress| progress.committed >= index).await;
    index
}

fn records(replayed: &[Replayed]) -> Vec<Bytes> {
    let mut all = Vec::new();
    for replayed in replayed {
        match replayed {
            Replayed::Checkpoint { records, .. } => all.clone_from(records),
            Replayed::Entry { records, .. } => all.extend(records.iter().cloned()),
        }
    }
    all
}

/// Commits, takes over, fences, writes a checkpoint, reads: what every store must do for a log.
async fn a_life(store: Arc<dyn ArtifactStore>) {
    let first = leader(&store).await;
    assert_eq!((first.epoch, first.replayed.len()), (1, 0));
    for number in 0..3 {
        commit(&first.appender, &format!("first {number}")).await;
    }
    let mut standby = follower(&store).await;
    assert_eq!(records(&standby.catch_up().await.unwrap()).len(), 3);
    commit(&first.appender, "first 3").await;
    let second = standby.take_over().await.unwrap();
    assert_eq!(second.epoch, 2);
    assert_eq!(records(&second.replayed), ["first 3"]);
    assert!(matches!(standby.catch_up().await, Err(LogError::Spent)));
    first.appender.append(&["too late"]).unwrap();
    let fenced = wait(&first.appender, |progress| progress.state != State::Healthy).await;
    assert_eq!(fenced.state, State::Fenced { epoch: 2 });
    assert_eq!(
        first.appender.append(&["later"]),
        Err(AppendError::Fenced { epoch: 2 })
    );
    let mut last = Index(0);
    for number in 0..12 {
        last = commit(&second.appender, &format!("second {number}")).await;
    }
    assert!(second.appender.committed().borrow().checkpoint_due);
    second.appender.checkpoint(["everything"], last).unwrap();
    wait(&second.appender, |progress| progress.checkpointed == last).await;
    commit(&second.appender, "after").await;
    let third = leader(&store).await;
    assert_eq!(third.epoch, 3);
    assert_eq!(records(&third.replayed), ["everything", "after"]);
    assert_eq!(third.appender.metrics().requests.delete, 0);
}

#[tokio::test]
async fn a_folder_carries_a_log() {
    let root = tempfile::tempdir().unwrap();
    a_life(folder(&root).await).await;
}

#[tokio::test]
async fn only_epochs_and_what_is_retained_are_left_below_a_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let store = folder(&root).await;
    let TakenOver { appender, .. } = leader(&store).await;
    let mut last = Index(0);
    for number in 0..6 {
        last = commit(&appender, &number.to_string()).await;
    }
    appender.checkpoint(["state"], last).unwrap();
    // The next checkpoint is only taken once the deletes of this one are done.
    let deadline = Instant::now() + PATIENCE;
    while appender.checkpoint(["state"], last).is_err() {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    let mut left: Vec<String> = fs::read_dir(root.path().join("clusters/one/log"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let sequences: Vec<u64> = left.iter().map(|name| name.parse().unwrap()).collect();
    assert_eq!(sequences, [0, 5, 6]);
}

#[tokio::test]
async fn a_truncated_object_is_a_clear_error_that_names_it() {
    let root = tempfile::tempdir().unwrap();
    let store = folder(&root).await;
    let TakenOver { appender, .. } = leader(&store).await;
    for number in 0..4 {
        commit(&appender, &number.to_string()).await;
    }
    let name = "log/00000000000000000002";
    let path = root.path().join("clusters/one").join(name);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let error = follower(&store).await.catch_up().await.unwrap_err();
    assert!(
        matches!(&error, LogError::Damaged { key, .. } if key == name),
        "{error:?}"
    );
    assert!(error.to_string().contains(name), "{error}");
}

#[tokio::test]
async fn calls_that_are_dropped_lose_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = folder(&root).await;
    let TakenOver { appender, .. } = leader(&store).await;
    for number in 0..5 {
        commit(&appender, &number.to_string()).await;
    }
    let mut standby = follower(&store).await;
    // Polled once and dropped, each of them: one poll can't do the store's several requests.
    assert!(standby.catch_up().now_or_never().is_none());
    assert!(standby.take_over().now_or_never().is_none());
    assert!(standby.take_over().now_or_never().is_none());
    let taken = standby.take_over().await.unwrap();
    assert_eq!(records(&taken.replayed).len(), 5);
    commit(&taken.appender, "goes on").await;
}

#[tokio::test]
async fn a_log_ends_with_its_last_handle() {
    let root = tempfile::tempdir().unwrap();
    let store = folder(&root).await;
    let TakenOver { appender, .. } = leader(&store).await;
    let mut progress = appender.committed();
    drop(appender);
    let ended = tokio::time::timeout(PATIENCE, progress.changed()).await.unwrap();
    assert!(ended.is_err());
    assert_eq!(Arc::strong_count(&store), 1);
}

/// A log in a new bucket, behind a proxy.
async fn faulty() -> (Arc<dyn ArtifactStore>, Proxy) {
    let minio = minio::shared();
    let proxy = Proxy::start(minio.address).await;
    let bucket = minio.bucket().await;
    (s3(&proxy.address.to_string(), &bucket, &limits()).await, proxy)
}

mod minio_store {
    use super::*;

    #[tokio::test]
    async fn minio_carries_a_log() {
        let (store, _proxy) = faulty().await;
        a_life(store).await;
    }

    #[tokio::test]
    async fn a_commit_whose_answer_is_lost_is_committed_once() {
        let (store, proxy) = faulty().await;
        let TakenOver { appender, .. } = leader(&store).await;
        proxy.fault(Method::PUT, "log/00000000000000000001", Fault::LoseAnswer, 1);
        commit(&appender, "once").await;
        let found = leader(&store).await;
        assert_eq!(records(&found.replayed), ["once"]);
    }

    #[tokio::test]
    async fn an_epoch_whose_answer_is_lost_is_taken_over_all_the_same() {
        let (store, proxy) = faulty().await;
        proxy.fault(Method::PUT, "log/00000000000000000000", Fault::LoseAnswer, 1);
        let taken = leader(&store).await;
        assert_eq!(taken.epoch, 1);
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_told_appends_wait_and_go_when_it_is_back() {
        let (store, proxy) = faulty().await;
        let TakenOver { appender, .. } = leader(&store).await;
        commit(&appender, "before").await;
        let away = Fault::Answer {
            status: 503,
            code: "SlowDown",
            retry_after: None,
        };
        proxy.fault(Method::PUT, "log/", away, 12);
        let mut last = appender.append(&["meanwhile 0"]).unwrap();
        let told = wait(&appender, |progress| progress.state != State::Healthy).await;
        let State::Retrying { error, .. } = told.state else {
            panic!("{told:?}");
        };
        assert!(error.contains("SlowDown"), "{error}");
        for number in 1..50 {
            last = appender.append(&[format!("meanwhile {number}")]).unwrap();
        }
        let done = wait(&appender, |progress| progress.committed == last).await;
        assert_eq!(done.state, State::Healthy);
        assert!(appender.metrics().failures >= 12);
        let found = records(&leader(&store).await.replayed);
        assert_eq!(found.len(), 51);
        assert_eq!(found[50], "meanwhile 49");
    }

    #[tokio::test]
    async fn answers_that_come_damaged_are_read_again() {
        let (store, proxy) = faulty().await;
        let TakenOver { appender, .. } = leader(&store).await;
        commit(&appender, "whole").await;
        for fault in [Fault::DamageAnswer, Fault::CutAnswer] {
            proxy.fault(Method::GET, "log/00000000000000000001", fault, 1);
            let found = follower(&store).await.catch_up().await.unwrap();
            assert_eq!(records(&found), ["whole"]);
        }
        proxy.fault(
            Method::GET,
            "log/00000000000000000001",
            Fault::DamageAnswer,
            ALWAYS,
        );
        let error = follower(&store).await.catch_up().await.unwrap_err();
        assert_eq!(error.category(), "damaged", "{error}");
    }

    #[tokio::test]
    async fn a_store_that_ignores_conditional_creation_is_refused() {
        let minio = minio::shared();
        let proxy = Proxy::start(minio.address).await;
        let bucket = minio.bucket().await;
        open_to_everybody(&bucket).await;
        proxy.fault(
            Method::PUT,
            ".prover-probe",
            Fault::DropRequestHeader("if-none-match"),
            ALWAYS,
        );
        let store = s3(&proxy.address.to_string(), &bucket, &limits()).await;
        let error = Follower::open(store, prefix(), limits()).await.unwrap_err();
        assert_eq!(error.category(), "conditional_writes_unsupported", "{error}");
    }

    /// Without the signature the request that lost a header is still allowed.
    async fn open_to_everybody(bucket: &str) {
        let policy = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":["*"]}},
            "Action":["s3:*"],"Resource":["arn:aws:s3:::{bucket}","arn:aws:s3:::{bucket}/*"]}}]}}"#
        );
        let client = minio::shared().client();
        client
            .put_bucket_policy()
            .bucket(bucket)
            .policy(policy)
            .send()
            .await
            .unwrap();
    }

    /// Prints how long it takes; docs/log.md says what was measured on a machine that does nothing else.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_hundred_thousand_tasks_come_back_with_few_requests() {
        let minio = minio::shared();
        let limits = Limits {
            // Writing them shall not take as long as it would in life.
            commit_interval: Duration::ZERO,
            checkpoint_due_objects: u64::MAX,
            ..Limits::default()
        };
        let store = s3(&minio.address.to_string(), &minio.bucket().await, &limits).await;
        let open = || Follower::open(Arc::clone(&store), prefix(), limits.clone());
        let TakenOver { appender, .. } = open().await.unwrap().take_over().await.unwrap();
        let record = vec![7_u8; 300];
        let begin = Instant::now();
        // `PROVER_LOG_OBJECTS=1000` is about as many as follow a checkpoint before the next one is due.
        let objects = std::env::var("PROVER_LOG_OBJECTS").map_or(400, |text| text.parse().unwrap());
        let batch = vec![&record; 200_000 / objects];
        for _ in 0..objects {
            let last = appender.append(&batch).unwrap();
            wait(&appender, |progress| progress.committed == last).await;
        }
        let written = begin.elapsed();
        let begin = Instant::now();
        let mut reader = open().await.unwrap();
        let taken = reader.take_over().await.unwrap();
        let from_log = begin.elapsed();
        let found = records(&taken.replayed);
        assert_eq!(found.len(), 200_000);
        assert!(found.iter().all(|found| *found == record));
        let metrics = taken.appender.metrics();
        let last = commit(&taken.appender, "one more").await;
        let begin = Instant::now();
        taken.appender.checkpoint(&found, last).unwrap();
        wait(&taken.appender, |progress| progress.checkpointed == last).await;
        let checkpoint = begin.elapsed();
        let begin = Instant::now();
        let again = open().await.unwrap().take_over().await.unwrap();
        let from_checkpoint = begin.elapsed();
        assert_eq!(records(&again.replayed).len(), 200_000);
        println!(
            "{objects} commits {written:?}; 200,000 records from the log {from_log:?} with {:?}; checkpoint written \
             {checkpoint:?}; from the checkpoint {from_checkpoint:?} with {:?}",
            metrics.requests,
            again.appender.metrics().requests
        );
        // One for each object, the end, and what is read ahead in vain.
        let most = objects as u64 + 1 + Limits::default().parallel_reads as u64;
        assert!(metrics.requests.get <= most, "{:?}", metrics.requests);
        // A hundred parts or objects would be a checkpoint that saves nothing.
        assert!(again.appender.metrics().requests.get < 100);
    }
}
