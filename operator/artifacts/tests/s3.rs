//! The S3 store against a real MinIO: what every store does, and what networks and services do to it.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop there")]

mod support;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use prover_artifacts::{
    ArtifactStore, Condition, ObjectInfo, RetryPolicy, StaticCredentials, StoreError, StoreOptions, open_with,
};
use support::minio::{self, Minio};
use support::proxy::{ALWAYS, Fault, Proxy};
use support::{Fixture, content, key, options, prefix};

async fn open(endpoint: &str, bucket: &str, options: StoreOptions) -> Arc<dyn ArtifactStore> {
    let url =
        format!("s3://{bucket}/some/prefix?endpoint=http://{endpoint}&region=us-east-1&path-style=true");
    let credentials = options
        .credentials
        .clone()
        .unwrap_or_else(|| minio::shared().credentials.clone());
    open_with(
        &url,
        StoreOptions {
            credentials: Some(credentials),
            ..options
        },
    )
    .await
    .unwrap()
}

async fn fixture() -> Fixture {
    let minio = minio::shared();
    let store = open(&minio.address.to_string(), &minio.bucket().await, options()).await;
    Fixture {
        store,
        local: tempfile::tempdir().unwrap(),
        guard: None,
    }
}

behaviours!(fixture);

/// A store behind a proxy, and its bucket.
async fn faulty() -> (Fixture, Proxy, String) {
    let minio = minio::shared();
    let proxy = Proxy::start(minio.address).await;
    let bucket = minio.bucket().await;
    let store = open(&proxy.address.to_string(), &bucket, options()).await;
    (
        Fixture {
            store,
            local: tempfile::tempdir().unwrap(),
            guard: None,
        },
        proxy,
        bucket,
    )
}

fn retries(f: &Fixture, category: &str) -> u64 {
    f.store
        .counters()
        .snapshot()
        .retries
        .get(category)
        .copied()
        .unwrap_or_default()
}

async fn unfinished_uploads(bucket: &str, key: &str) -> usize {
    // MinIO lists them by the whole key only.
    let answer = minio::shared()
        .client()
        .list_multipart_uploads()
        .bucket(bucket)
        .prefix(key)
        .send()
        .await
        .unwrap();
    answer.uploads().len()
}

#[tokio::test]
async fn a_damaged_a_cut_and_a_shortened_answer_are_fetched_again() {
    let (f, proxy, _) = faulty().await;
    let content = content(200_000, 1);
    let info = f
        .store
        .put_bytes(&key("a/b"), content.clone(), Condition::CreateOnly)
        .await
        .unwrap();
    for fault in [Fault::DamageAnswer, Fault::CutAnswer, Fault::ShortenAnswer] {
        proxy.fault(Method::GET, "a/b", fault.clone(), 1);
        let to = f.local.path().join("back");
        f.store.get_file(&key("a/b"), &info, &to).await.unwrap();
        assert_eq!(fs::read(&to).unwrap(), content, "{fault:?}");
        proxy.fault(Method::GET, "a/b", fault.clone(), 1);
        assert_eq!(
            f.store
                .get_bytes(&key("a/b"), Some(&info), 1 << 20)
                .await
                .unwrap(),
            content,
            "{fault:?}"
        );
        // The digest beside the object serves where the caller has none. Of a shortened answer the size is unknown
        // but the digest still differs.
        proxy.fault(Method::GET, "a/b", fault.clone(), 1);
        assert_eq!(
            f.store.get_bytes(&key("a/b"), None, 1 << 20).await.unwrap(),
            content,
            "{fault:?}"
        );
    }
    assert_eq!(
        (retries(&f, "checksum_mismatch"), retries(&f, "connection")),
        (6, 3)
    );
}

#[tokio::test]
async fn an_answer_that_stays_damaged_is_a_mismatch_after_three_fetches() {
    let (f, proxy, _) = faulty().await;
    let info = f
        .store
        .put_bytes(&key("a/b"), content(1_000, 1), Condition::CreateOnly)
        .await
        .unwrap();
    proxy.fault(Method::GET, "a/b", Fault::DamageAnswer, ALWAYS);
    let error = f
        .store
        .get_bytes(&key("a/b"), Some(&info), 1 << 20)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::ChecksumMismatch { .. }), "{error:?}");
    assert_eq!(f.store.counters().snapshot().requests["get_object"], 3);
}

#[tokio::test]
async fn an_upload_that_is_damaged_on_the_way_is_refused_by_the_store_and_sent_again() {
    let (f, proxy, _) = faulty().await;
    proxy.fault(Method::PUT, "a/small", Fault::DamageRequest, 1);
    let info = f
        .store
        .put_bytes(&key("a/small"), content(1_000, 1), Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(f.store.stat(&key("a/small")).await.unwrap(), info);
    proxy.fault(Method::PUT, "partNumber=2", Fault::DamageRequest, 1);
    let info = f
        .store
        .put_bytes(&key("a/large"), content(12 << 20, 1), Condition::CreateOnly)
        .await
        .unwrap();
    f.store
        .get_file(&key("a/large"), &info, &f.local.path().join("back"))
        .await
        .unwrap();
    assert_eq!(retries(&f, "upload_damaged"), 2);
}

#[tokio::test]
async fn a_busy_store_is_asked_again_and_told_after_the_last_try() {
    let (f, proxy, _) = faulty().await;
    let slow_down = Fault::Answer {
        status: 503,
        code: "SlowDown",
        retry_after: None,
    };
    proxy.fault(Method::PUT, "a/b", slow_down.clone(), 5);
    f.store
        .put_bytes(&key("a/b"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(retries(&f, "throttled"), 5);
    proxy.fault(
        Method::HEAD,
        "a/b",
        Fault::Answer {
            status: 503,
            code: "",
            retry_after: Some(0),
        },
        1,
    );
    f.store.stat(&key("a/b")).await.unwrap();
    proxy.fault(Method::PUT, "a/c", slow_down, ALWAYS);
    let error = f
        .store
        .put_bytes(&key("a/c"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Throttled { .. }), "{error:?}");
    assert_eq!(retries(&f, "throttled"), 5 + 1 + 7);
}

#[tokio::test]
async fn a_connection_that_closes_is_opened_again() {
    let (f, proxy, _) = faulty().await;
    for (method, text) in [
        (Method::PUT, "a/b"),
        (Method::GET, "a/b"),
        (Method::HEAD, "a/b"),
        (Method::DELETE, "a/b"),
    ] {
        proxy.fault(method, text, Fault::Close, 2);
    }
    let info = f
        .store
        .put_bytes(&key("a/b"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    f.store.get_bytes(&key("a/b"), Some(&info), 1).await.unwrap();
    f.store.stat(&key("a/b")).await.unwrap();
    f.store.delete(&key("a/b")).await.unwrap();
    assert_eq!(retries(&f, "connection"), 8);
}

#[tokio::test]
async fn a_writer_whose_answer_got_lost_knows_its_own_object() {
    let (f, proxy, bucket) = faulty().await;
    proxy.fault(Method::PUT, "log/7", Fault::LoseAnswer, 1);
    f.store
        .put_bytes(&key("log/7"), "epoch 3".into(), Condition::CreateOnly)
        .await
        .unwrap();
    // The same in parts: the end of the upload arrived, its answer not.
    proxy.fault(Method::POST, "uploadId", Fault::LoseAnswer, 1);
    let info = f
        .store
        .put_bytes(&key("a/large"), content(12 << 20, 1), Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(f.store.stat(&key("a/large")).await.unwrap(), info);
    assert_eq!(unfinished_uploads(&bucket, "some/prefix/a/large").await, 0);
}

#[tokio::test]
async fn a_writer_that_lost_while_its_request_was_lost_learns_it() {
    let (f, proxy, bucket) = faulty().await;
    let other = open(&minio::shared().address.to_string(), &bucket, options()).await;
    other
        .put_bytes(&key("log/7"), "epoch 3".into(), Condition::CreateOnly)
        .await
        .unwrap();
    proxy.fault(Method::PUT, "log/7", Fault::Close, 1);
    // Equal content does not make it ours.
    let error = f
        .store
        .put_bytes(&key("log/7"), "epoch 3".into(), Condition::CreateOnly)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
}

#[tokio::test]
async fn no_answer_in_time_is_a_timeout() {
    let (_, proxy, bucket) = faulty().await;
    proxy.fault(Method::HEAD, "a/b", Fault::Hang, ALWAYS);
    let options = StoreOptions {
        read_timeout: Duration::from_millis(100),
        retry: RetryPolicy {
            attempts: 2,
            ..options().retry
        },
        ..options()
    };
    let store = open(&proxy.address.to_string(), &bucket, options).await;
    let error = store.stat(&key("a/b")).await.unwrap_err();
    assert!(matches!(error, StoreError::Timeout { .. }), "{error:?}");
    assert_eq!(store.counters().snapshot().requests["head_object"], 2);
}

#[tokio::test]
async fn a_failed_upload_leaves_no_parts_behind() {
    let (f, proxy, bucket) = faulty().await;
    proxy.fault(
        Method::PUT,
        "partNumber=2",
        Fault::Answer {
            status: 507,
            code: "XMinioStorageFull",
            retry_after: None,
        },
        ALWAYS,
    );
    let error = f
        .store
        .put_bytes(&key("a/large"), content(20 << 20, 1), Condition::CreateOnly)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::StoreFull { .. }), "{error:?}");
    assert_eq!(unfinished_uploads(&bucket, "some/prefix/a/large").await, 0);
    assert!(matches!(
        f.store.stat(&key("a/large")).await,
        Err(StoreError::NotFound { .. })
    ));
}

#[tokio::test]
async fn an_upload_whose_caller_goes_away_is_aborted() {
    let (f, proxy, bucket) = faulty().await;
    proxy.fault(Method::PUT, "partNumber=2", Fault::Hang, ALWAYS);
    let store = Arc::clone(&f.store);
    let upload = tokio::spawn(async move {
        store
            .put_bytes(&key("a/large"), content(12 << 20, 1), Condition::CreateOnly)
            .await
    });
    let name = "some/prefix/a/large";
    await_that("the upload to begin", async || {
        unfinished_uploads(&bucket, name).await == 1
    })
    .await;
    upload.abort();
    await_that("the upload to be aborted", async || {
        unfinished_uploads(&bucket, name).await == 0
    })
    .await;
}

/// Waits for a state that only asking can tell.
async fn await_that(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_refused_by_the_probe() {
    let (f, proxy, bucket) = faulty().await;
    let policy = format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":["*"]}},"Action":["s3:*"],"Resource":["arn:aws:s3:::{bucket}","arn:aws:s3:::{bucket}/*"]}}]}}"#
    );
    minio::shared()
        .client()
        .put_bucket_policy()
        .bucket(&bucket)
        .policy(policy)
        .send()
        .await
        .unwrap();
    proxy.fault(
        Method::PUT,
        "probe",
        Fault::DropRequestHeader("if-none-match"),
        ALWAYS,
    );
    let error = f.store.probe().await.unwrap_err();
    assert!(
        matches!(error, StoreError::ConditionalWritesUnsupported { .. }),
        "{error:?}"
    );
    assert!(f.store.list(&prefix(""), 10).await.unwrap().objects.is_empty());
}

#[tokio::test]
async fn a_store_that_refuses_conditions_is_refused_by_the_probe() {
    let (f, proxy, _) = faulty().await;
    proxy.fault(
        Method::PUT,
        "probe",
        Fault::Answer {
            status: 501,
            code: "NotImplemented",
            retry_after: None,
        },
        ALWAYS,
    );
    let error = f.store.probe().await.unwrap_err();
    assert!(
        matches!(error, StoreError::ConditionalWritesUnsupported { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_store_without_checksums_is_counted_but_reads_stay_checked() {
    let (f, proxy, _) = faulty().await;
    proxy.fault(
        Method::PUT,
        "a/b",
        Fault::DropAnswerHeader("x-amz-checksum-sha256"),
        ALWAYS,
    );
    let info = f
        .store
        .put_bytes(&key("a/b"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(f.store.counters().snapshot().unconfirmed_uploads, 1);
    f.store.get_bytes(&key("a/b"), Some(&info), 1).await.unwrap();
}

#[tokio::test]
async fn an_object_that_others_wrote_can_be_read_but_has_no_known_digest() {
    let (f, _, bucket) = faulty().await;
    let put = minio::shared()
        .client()
        .put_object()
        .bucket(&bucket)
        .key("some/prefix/a/foreign");
    put.body(b"foreign".to_vec().into()).send().await.unwrap();
    assert_eq!(
        f.store.get_bytes(&key("a/foreign"), None, 10).await.unwrap(),
        "foreign"
    );
    let info = ObjectInfo::of(b"foreign");
    f.store
        .get_file(&key("a/foreign"), &info, &f.local.path().join("back"))
        .await
        .unwrap();
    let error = f.store.stat(&key("a/foreign")).await.unwrap_err();
    assert!(matches!(error, StoreError::HashUnknown { .. }), "{error:?}");
}

#[tokio::test]
async fn wrong_credentials_are_access_denied_and_the_message_says_so() {
    let minio = minio::shared();
    let bucket = minio.bucket().await;
    let unknown = StaticCredentials {
        access_key_id: "nobody".into(),
        ..minio.credentials.clone()
    };
    let wrong = StaticCredentials {
        secret_access_key: "wrong".into(),
        ..minio.credentials.clone()
    };
    for credentials in [unknown, wrong] {
        let options = StoreOptions {
            credentials: Some(credentials.clone()),
            ..options()
        };
        let store = open(&minio.address.to_string(), &bucket, options).await;
        let error = store.probe().await.unwrap_err();
        assert!(matches!(error, StoreError::AccessDenied { .. }), "{error:?}");
        assert!(error.to_string().contains("Check the credentials"), "{error}");
        assert!(!format!("{error:?} {error}").contains(&credentials.secret_access_key));
        let error = store
            .put_bytes(&key("a"), "x".into(), Condition::CreateOnly)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::AccessDenied { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_missing_bucket_is_told_by_name() {
    let store = open(&minio::shared().address.to_string(), "no-such-bucket", options()).await;
    let error = store.probe().await.unwrap_err();
    assert!(matches!(error, StoreError::BucketNotFound { .. }), "{error:?}");
    assert!(error.to_string().contains("no-such-bucket"), "{error}");
}

#[tokio::test]
async fn a_service_that_is_not_there_is_a_connection_error_with_its_address() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let store = open(&unused.to_string(), "bucket", options()).await;
    let error = store.stat(&key("a")).await.unwrap_err();
    assert!(matches!(error, StoreError::Connection { .. }), "{error:?}");
    assert!(error.to_string().contains(&unused.to_string()), "{error}");
}

#[tokio::test]
async fn a_full_minio_is_store_full() {
    let disk = support::disk::SmallDisk::new(40 << 10);
    let minio = Minio::start(Some(disk.path()));
    let bucket = minio.bucket().await;
    let options = StoreOptions {
        credentials: Some(minio.credentials.clone()),
        ..options()
    };
    let store = open(&minio.address.to_string(), &bucket, options).await;
    let mut last = Ok(());
    for number in 0..64 {
        let key = key(&format!("a/{number}"));
        last = store
            .put_bytes(&key, content(1 << 20, number), Condition::CreateOnly)
            .await
            .map(|_| ());
        if last.is_err() {
            break;
        }
    }
    let error = last.unwrap_err();
    assert!(matches!(error, StoreError::StoreFull { .. }), "{error:?}");
}

#[tokio::test]
async fn a_small_object_costs_one_request_each_way() {
    let f = fixture().await;
    let info = f
        .store
        .put_bytes(&key("a/b"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    f.store.get_bytes(&key("a/b"), Some(&info), 1).await.unwrap();
    f.store
        .put_bytes(&key("a/b"), "y".into(), Condition::CreateOnly)
        .await
        .unwrap_err();
    let requests = f.store.counters().snapshot().requests;
    assert_eq!(
        requests.into_iter().collect::<Vec<_>>(),
        [("get_object", 1), ("put_object", 2)]
    );
}

/// What a MinIO that speaks TLS needs, and where the certificate of its authority lies.
struct Encrypted {
    minio: Minio,
    folder: tempfile::TempDir,
}

impl Encrypted {
    fn start() -> Encrypted {
        let folder = tempfile::tempdir().unwrap();
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(authority, authority_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let server = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let server = server.signed_by(&key, &authority).unwrap();
        let certificates = folder.path().join("certificates");
        fs::create_dir(&certificates).unwrap();
        fs::write(certificates.join("public.crt"), server.pem()).unwrap();
        fs::write(certificates.join("private.key"), key.serialize_pem()).unwrap();
        fs::write(folder.path().join("authority.pem"), authority.pem()).unwrap();
        // To MinIO a folder at the top of its data is a bucket.
        let data = folder.path().join("data");
        fs::create_dir_all(data.join("encrypted")).unwrap();
        Encrypted {
            minio: Minio::start_encrypted(&data, &certificates),
            folder,
        }
    }

    async fn open(&self, authorities: Option<&str>) -> Result<Arc<dyn ArtifactStore>, StoreError> {
        let url = format!(
            "s3://encrypted/some/prefix?endpoint=https://{}&region=us-east-1&path-style=true",
            self.minio.address
        );
        let options = StoreOptions {
            credentials: Some(self.minio.credentials.clone()),
            authorities: authorities.map(|name| self.folder.path().join(name)),
            // It may still be starting.
            retry: RetryPolicy::default(),
            ..options()
        };
        open_with(&url, options).await
    }
}

#[tokio::test]
async fn a_store_whose_certificate_comes_from_a_private_authority_is_used_once_that_is_trusted() {
    let encrypted = Encrypted::start();
    let trusted = encrypted.open(Some("authority.pem")).await.unwrap();
    trusted.probe().await.unwrap();
    let refused = encrypted.open(None).await.unwrap().probe().await.unwrap_err();
    assert!(matches!(refused, StoreError::Connection { .. }), "{refused:?}");
    assert!(format!("{refused}").contains("certificate"), "{refused}");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_refused_with_their_file_and_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let malformed = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(folder.path().join("empty.pem"), "").unwrap();
    fs::write(folder.path().join("text.pem"), "certificates are elsewhere").unwrap();
    fs::write(folder.path().join("malformed.pem"), malformed).unwrap();
    for (name, problem) in [
        ("missing.pem", "No such file"),
        ("empty.pem", "holds no certificate"),
        ("text.pem", "holds no certificate"),
        ("malformed.pem", "certificate 1 is malformed"),
    ] {
        let path = folder.path().join(name);
        let options = StoreOptions {
            authorities: Some(path.clone()),
            ..options()
        };
        let url = "s3://bucket?endpoint=https://127.0.0.1:1&region=us-east-1&path-style=true";
        let error = open_with(url, options).await.unwrap_err();
        assert_eq!(error.category(), "authorities", "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(&path.display().to_string()) && text.contains(problem),
            "{text}"
        );
    }
}
