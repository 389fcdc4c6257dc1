//! Keys, digests, URLs and retries: everything that needs no store.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use crate::counters::Counters;
use crate::error::{Retry, StoreError};
use crate::hash::{ObjectInfo, Sha256, Sha256Hasher};
use crate::key::{Key, MAX_KEY_BYTES, MAX_SEGMENT_BYTES, Prefix};
use crate::retry::{Jitter, Retrier, RetryPolicy};
use crate::url::{S3Location, StoreUrl};

// Keys

#[test]
fn keys_of_a_job_lie_where_the_design_says() {
    let job = Prefix::job("6f1c").unwrap();
    assert_eq!(job.as_str(), "jobs/6f1c/");
    assert_eq!(
        job.attempt(7, "proof").unwrap().as_str(),
        "jobs/6f1c/attempts/7/proof"
    );
    assert_eq!(
        job.source("assumption-0").unwrap().as_str(),
        "jobs/6f1c/sources/assumption-0"
    );
    assert_eq!(job.attempt_prefix(7).unwrap().as_str(), "jobs/6f1c/attempts/7/");
    assert_eq!(job.key("a/b").unwrap().as_str(), "jobs/6f1c/a/b");
    assert!(job.contains(&job.source("program").unwrap()));
    assert!(!job.contains(&Key::new("jobs/6f1cc/x").unwrap()));
}

#[test]
fn keys_that_could_leave_the_store_or_confuse_it_are_refused() {
    let long_part = "x".repeat(MAX_SEGMENT_BYTES + 1);
    let long_key = ["x".repeat(100).as_str(); 8].join("/");
    assert!(long_key.len() > MAX_KEY_BYTES);
    let bad = [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "../a",
        "a/..",
        "a/./b",
        "a\\b",
        "a\nb",
        "a\0b",
        "a\u{7f}",
        ".prover-x",
        "a/.prover-partial-1",
        &long_part,
        &long_key,
    ];
    for text in bad {
        assert!(
            matches!(Key::new(text), Err(StoreError::InvalidKey { .. })),
            "{text:?} was taken"
        );
    }
    for text in ["a", "a/b", "a..b", "...", ".a", "ä/ö", "a b"] {
        assert_eq!(Key::new(text).unwrap().as_str(), text);
    }
}

#[test]
fn a_name_has_no_slash() {
    let job = Prefix::job("a").unwrap();
    assert!(Prefix::job("a/b").is_err());
    assert!(Prefix::job("..").is_err());
    assert!(job.attempt(1, "a/b").is_err());
    assert!(job.source("../../b").is_err());
}

#[test]
fn a_prefix_ends_with_one_slash_however_it_was_written() {
    assert_eq!(Prefix::new("jobs/a").unwrap(), Prefix::new("jobs/a/").unwrap());
    assert!(Prefix::new("").unwrap().is_root());
    for bad in ["/", "//", "a//", "../", "/a"] {
        assert!(Prefix::new(bad).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn the_message_about_a_bad_key_is_short_and_printable() {
    let message = Key::new("\u{1b}[31m".repeat(1_000)).unwrap_err().to_string();
    assert!(
        message.len() < 1_000 && !message.chars().any(char::is_control),
        "{message}"
    );
}

proptest! {
    #[test]
    fn a_key_that_was_taken_stays_below_its_folder(text in "[a-z./\\\\\u{0}-\u{20}-]{0,12}") {
        if let Ok(key) = Key::new(text) {
            let path = std::path::Path::new("/the/store").join(key.as_str());
            prop_assert!(path.components().all(|part| part != std::path::Component::ParentDir));
            prop_assert!(path.starts_with("/the/store"));
            prop_assert_eq!(path.to_str().unwrap(), format!("/the/store/{key}"));
        }
    }

    #[test]
    fn hashing_in_pieces_gives_the_digest_of_the_whole(content: Vec<u8>, cut in 0_usize..100) {
        let (head, tail) = content.split_at(cut.min(content.len()));
        let mut hasher = Sha256Hasher::new();
        hasher.update(head);
        hasher.update(tail);
        prop_assert_eq!(hasher.finish(), ObjectInfo::of(&content));
    }
}

// Digests

#[test]
fn a_digest_is_written_as_64_hexadecimal_digits_and_read_back() {
    let digest = Sha256::of(b"abc");
    let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(digest.to_string(), text);
    assert_eq!(text.parse::<Sha256>().unwrap(), digest);
    assert_eq!(text.to_uppercase().parse::<Sha256>().unwrap(), digest);
    assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{text}\""));
    assert_eq!(
        serde_json::from_str::<Sha256>(&format!("\"{text}\"")).unwrap(),
        digest
    );
    for bad in [
        "",
        "ba",
        &text[1..],
        &format!("{text}00"),
        &text.replace('b', "g"),
    ] {
        assert!(bad.parse::<Sha256>().is_err(), "{bad:?} was taken");
    }
}

// URLs

#[test]
fn urls_of_folders_and_buckets_are_understood() {
    assert_eq!(
        "file:///a/b%20c".parse::<StoreUrl>().unwrap(),
        StoreUrl::Folder("/a/b c".into())
    );
    let minio = "s3://Bucket_1/some/prefix/?endpoint=http://127.0.0.1:9000/&region=eu-1&path-style=true";
    let expected = S3Location {
        bucket: "Bucket_1".into(),
        prefix: Prefix::new("some/prefix").unwrap(),
        endpoint: Some("http://127.0.0.1:9000".into()),
        region: Some("eu-1".into()),
        path_style: true,
    };
    assert_eq!(minio.parse::<StoreUrl>().unwrap(), StoreUrl::S3(expected));
    let StoreUrl::S3(amazon) = "s3://bucket".parse().unwrap() else {
        panic!("no bucket")
    };
    assert!(amazon.prefix.is_root() && amazon.endpoint.is_none() && !amazon.path_style);
    let StoreUrl::S3(other) = "s3://bucket?endpoint=https://host".parse().unwrap() else {
        panic!("no bucket")
    };
    assert!(
        other.path_style,
        "services with an endpoint of their own rarely have a host name per bucket"
    );
}

#[test]
fn urls_that_mean_nothing_are_refused_with_the_reason() {
    let table = [
        ("/tmp/store", "relative URL"),
        ("ftp://host/a", "scheme `ftp`"),
        ("file://a/b", "absolute"),
        ("file:///a?x=1", "no parameters"),
        ("s3:///prefix", "bucket is missing"),
        ("s3://bucket:80/", "port"),
        ("s3://bucket/a/../../b//c", "slash"),
        ("s3://bucket?endpont=http://a", "`endpont` is unknown"),
        ("s3://bucket?endpoint=127.0.0.1:9000", "endpoint"),
        ("s3://bucket?endpoint=ftp://a", "endpoint must be"),
        ("s3://bucket?endpoint=http://user:word@a", "credentials"),
        ("s3://bucket?path-style=yes", "path-style is `yes`"),
        ("s3://bucket?region=", "region is empty"),
        ("s3://key:secret@bucket/a", "credentials"),
        ("s3://bucket#a", "#"),
    ];
    for (url, reason) in table {
        let error = url.parse::<StoreUrl>().unwrap_err();
        assert_eq!(error.category(), "invalid_url");
        let message = error.to_string();
        assert!(message.contains(reason), "{url}: {message}");
        assert!(!message.contains("secret"), "{message}");
    }
}

// Retries

#[derive(Debug)]
struct Fixed(f64);

impl Jitter for Fixed {
    fn fraction(&self) -> f64 {
        self.0
    }
}

fn busy(retry_after: Option<Duration>) -> StoreError {
    StoreError::Throttled {
        key: "a".into(),
        store: "b".into(),
        code: "SlowDown".into(),
        retry_after,
    }
}

fn damaged() -> StoreError {
    let info = Box::new(ObjectInfo::of(b""));
    StoreError::ChecksumMismatch {
        key: "a".into(),
        store: "b".into(),
        expected: info.clone(),
        found: info,
    }
}

/// Fails always; answers the waits between the tries.
async fn waits(policy: RetryPolicy, fraction: f64, error: impl Fn() -> StoreError) -> Vec<Duration> {
    let retrier = Retrier::new(policy, Arc::new(Fixed(fraction)), Arc::new(Counters::default()));
    let mut tries = retrier.start();
    let mut waits = Vec::new();
    loop {
        let before = Instant::now();
        if tries.settle(Err::<(), _>(error())).await.is_some() {
            return waits;
        }
        waits.push(before.elapsed());
    }
}

fn seconds(values: &[u64]) -> Vec<Duration> {
    values.iter().map(|value| Duration::from_secs(*value)).collect()
}

fn policy() -> RetryPolicy {
    RetryPolicy {
        attempts: 6,
        mismatch_attempts: 3,
        first_wait: Duration::from_secs(2),
        longest_wait: Duration::from_secs(10),
        total: Duration::from_secs(1_000),
    }
}

#[tokio::test(start_paused = true)]
async fn waits_double_up_to_the_longest_and_are_drawn_below_that() {
    assert_eq!(
        waits(policy(), 1.0, || busy(None)).await,
        seconds(&[2, 4, 8, 10, 10])
    );
    assert_eq!(
        waits(policy(), 0.5, || busy(None)).await,
        seconds(&[1, 2, 4, 5, 5])
    );
    assert_eq!(
        waits(policy(), 0.0, || busy(None)).await,
        seconds(&[0, 0, 0, 0, 0])
    );
}

#[tokio::test(start_paused = true)]
async fn no_try_begins_after_the_total_time() {
    let policy = RetryPolicy {
        total: Duration::from_secs(15),
        ..policy()
    };
    assert_eq!(waits(policy, 1.0, || busy(None)).await, seconds(&[2, 4, 8]));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_names_a_time_is_waited_for_but_not_for_ever() {
    let named = |value| move || busy(Some(Duration::from_secs(value)));
    assert_eq!(waits(policy(), 0.0, named(3)).await, seconds(&[3; 5]));
    assert_eq!(waits(policy(), 0.0, named(3_600)).await, seconds(&[10; 5]));
}

#[tokio::test(start_paused = true)]
async fn content_that_stays_damaged_is_fetched_a_few_times_only() {
    assert_eq!(waits(policy(), 1.0, damaged).await, seconds(&[2, 4]));
}

#[tokio::test(start_paused = true)]
async fn what_no_retry_helps_is_answered_at_once() {
    let missing = || StoreError::NotFound {
        key: "a".into(),
        store: "b".into(),
    };
    assert_eq!(missing().retry(), Retry::Never);
    assert!(waits(policy(), 1.0, missing).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn many_failures_never_overflow_the_wait() {
    let policy = RetryPolicy {
        attempts: 100,
        total: Duration::MAX,
        ..policy()
    };
    let waits = waits(policy, 1.0, || busy(None)).await;
    assert_eq!(waits.len(), 99);
    assert_eq!(waits.last(), Some(&Duration::from_secs(10)));
}
