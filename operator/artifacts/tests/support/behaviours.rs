//! What every store does, whatever lies below it. `behaviours!(fixture)` makes one test of each.

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use prover_artifacts::{Condition, Key, ObjectInfo, Sha256, StoreError};
use tokio::task::JoinSet;

use super::{Fixture, content, key, prefix};

/// Makes a test of each behaviour, over the stores that the fixture opens.
#[macro_export]
macro_rules! behaviours {
    ($fixture:path: $($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::support::behaviours::$name($fixture().await).await;
            }
        )*
    };
    ($fixture:path) => {
        $crate::behaviours!($fixture:
            what_is_put_from_memory_comes_back,
            what_is_put_from_a_file_comes_back_as_a_file,
            an_empty_object_is_an_object,
            a_large_file_makes_the_round_trip_in_bounded_memory,
            a_missing_object_is_not_found,
            an_object_is_never_replaced,
            the_same_content_may_be_written_again_where_the_caller_says_so,
            a_large_object_is_never_replaced,
            exactly_one_of_many_writers_wins,
            exactly_one_of_many_writers_of_a_large_object_wins,
            a_file_of_other_content_is_a_mismatch_that_is_tried_again_and_leaves_nothing,
            bytes_of_other_content_are_a_mismatch_that_names_the_key,
            an_object_larger_than_the_limit_is_refused,
            an_object_of_which_only_a_bound_is_known_comes_into_a_file,
            stat_tells_size_and_digest,
            a_deleted_object_is_gone_and_can_be_written_again,
            deleting_a_prefix_spares_its_siblings,
            deleting_a_prefix_of_more_than_one_page_deletes_all,
            the_whole_store_is_never_deleted,
            a_listing_is_sorted_and_bounded,
            keys_with_unusual_characters_work,
            a_missing_source_is_told_with_its_path,
            the_probe_finds_all_capabilities_and_leaves_nothing,
            counters_tell_operations_and_bytes,
        );
    };
}

pub(crate) async fn what_is_put_from_memory_comes_back(f: Fixture) {
    let content = Bytes::from_static(b"a receipt");
    let key = key("jobs/a/attempts/1/receipt");
    let info = f
        .store
        .put_bytes(&key, content.clone(), Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(info, ObjectInfo::of(b"a receipt"));
    assert_eq!(f.store.get_bytes(&key, Some(&info), 100).await.unwrap(), content);
    assert_eq!(f.store.get_bytes(&key, None, 100).await.unwrap(), content);
}

pub(crate) async fn what_is_put_from_a_file_comes_back_as_a_file(f: Fixture) {
    let content = content(300_000, 1);
    let source = f.local.path().join("source");
    fs::write(&source, &content).unwrap();
    let key = key("jobs/a/sources/program");
    let info = f
        .store
        .put_file(&key, &source, Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(info, ObjectInfo::of(&content));
    // The folder of the destination is made, and an old file there is replaced.
    let to = f.local.path().join("new/folder/program");
    f.store.get_file(&key, &info, &to).await.unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
    fs::write(&to, "old").unwrap();
    f.store.get_file(&key, &info, &to).await.unwrap();
    assert_eq!(fs::read(&to).unwrap(), content);
}

pub(crate) async fn an_empty_object_is_an_object(f: Fixture) {
    let source = f.local.path().join("empty");
    fs::write(&source, "").unwrap();
    let (one, two) = (key("empty/bytes"), key("empty/file"));
    let info = f
        .store
        .put_bytes(&one, Bytes::new(), Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(
        f.store
            .put_file(&two, &source, Condition::CreateOnly)
            .await
            .unwrap(),
        info
    );
    assert_eq!(info.size_bytes, 0);
    let to = f.local.path().join("back");
    f.store.get_file(&one, &info, &to).await.unwrap();
    assert_eq!(fs::metadata(&to).unwrap().len(), 0);
    assert_eq!(
        f.store.get_bytes(&two, Some(&info), 0).await.unwrap(),
        Bytes::new()
    );
}

pub(crate) async fn a_large_file_makes_the_round_trip_in_bounded_memory(f: Fixture) {
    // Not a multiple of the part's size, so the last part is shorter.
    let content = content((64 << 20) + 12_345, 2);
    let source = f.local.path().join("large");
    fs::write(&source, &content).unwrap();
    let key = key("jobs/a/attempts/1/segment");
    let info = f
        .store
        .put_file(&key, &source, Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(info, ObjectInfo::of(&content));
    let to = f.local.path().join("back");
    f.store.get_file(&key, &info, &to).await.unwrap();
    assert!(fs::read(&to).unwrap() == content, "the content differs");
    assert_eq!(f.store.stat(&key).await.unwrap(), info);
    let counters = f.store.counters().snapshot();
    assert!(
        counters.buffered_bytes_peak <= 3 * (5 << 20),
        "held {} bytes",
        counters.buffered_bytes_peak
    );
    assert_eq!(counters.buffered_bytes, 0);
}

pub(crate) async fn a_missing_object_is_not_found(f: Fixture) {
    let key = key("jobs/a/attempts/1/nothing");
    let info = ObjectInfo::of(b"");
    let to = f.local.path().join("back");
    let results = [
        f.store.get_bytes(&key, None, 10).await.map(|_| ()),
        f.store.get_file(&key, &info, &to).await,
        f.store.stat(&key).await.map(|_| ()),
    ];
    for result in results {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error:?}");
        assert!(error.to_string().contains("jobs/a/attempts/1/nothing"), "{error}");
    }
    assert!(!to.exists());
    f.store.delete(&key).await.unwrap();
    assert_eq!(f.store.delete_prefix(&prefix("jobs/a")).await.unwrap(), 0);
    assert_eq!(
        f.store.list(&prefix("jobs/a"), 10).await.unwrap().objects.len(),
        0
    );
}

pub(crate) async fn an_object_is_never_replaced(f: Fixture) {
    let key = key("log/1");
    let source = f.local.path().join("source");
    fs::write(&source, "second").unwrap();
    f.store
        .put_bytes(&key, Bytes::from_static(b"first"), Condition::CreateOnly)
        .await
        .unwrap();
    // Not even by the same content: the second coordinator must learn that it is not the first.
    for second in ["first", "second"] {
        let error = f
            .store
            .put_bytes(&key, second.into(), Condition::CreateOnly)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
    }
    let error = f
        .store
        .put_file(&key, &source, Condition::CreateOnly)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
    assert_eq!(f.store.get_bytes(&key, None, 10).await.unwrap(), "first");
}

pub(crate) async fn the_same_content_may_be_written_again_where_the_caller_says_so(f: Fixture) {
    let key = key("jobs/a/sources/input");
    let source = f.local.path().join("source");
    fs::write(&source, "the input").unwrap();
    let info = f
        .store
        .put_bytes(&key, "the input".into(), Condition::CreateOrSame)
        .await
        .unwrap();
    assert_eq!(
        f.store
            .put_bytes(&key, "the input".into(), Condition::CreateOrSame)
            .await
            .unwrap(),
        info
    );
    assert_eq!(
        f.store
            .put_file(&key, &source, Condition::CreateOrSame)
            .await
            .unwrap(),
        info
    );
    let error = f
        .store
        .put_bytes(&key, "other".into(), Condition::CreateOrSame)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
    assert_eq!(
        f.store.get_bytes(&key, Some(&info), 10).await.unwrap(),
        "the input"
    );
}

pub(crate) async fn a_large_object_is_never_replaced(f: Fixture) {
    let key = key("jobs/a/attempts/1/segment");
    let (first, second) = (content(7 << 20, 1), content(7 << 20, 2));
    let info = f
        .store
        .put_bytes(&key, first.clone(), Condition::CreateOnly)
        .await
        .unwrap();
    for condition in [Condition::CreateOnly, Condition::CreateOrSame] {
        let error = f
            .store
            .put_bytes(&key, second.clone(), condition)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
    }
    assert_eq!(
        f.store
            .put_bytes(&key, first, Condition::CreateOrSame)
            .await
            .unwrap(),
        info
    );
    assert_eq!(f.store.stat(&key).await.unwrap(), info);
}

/// Lets several writers of different content race for one key; answers what the winner wrote.
async fn race(f: &Fixture, key: &Key, contents: Vec<Bytes>) -> ObjectInfo {
    let mut writers = JoinSet::new();
    for content in contents {
        let (store, key) = (Arc::clone(&f.store), key.clone());
        writers.spawn(async move { store.put_bytes(&key, content, Condition::CreateOnly).await });
    }
    let mut won = Vec::new();
    for result in writers.join_all().await {
        match result {
            Ok(info) => won.push(info),
            Err(error) => assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}"),
        }
    }
    assert_eq!(won.len(), 1, "{} writers believe that they won", won.len());
    won.remove(0)
}

pub(crate) async fn exactly_one_of_many_writers_wins(f: Fixture) {
    for round in 0..5 {
        let key = key(&format!("log/{round}"));
        let contents = (0..16)
            .map(|writer| format!("epoch of writer {writer}").into())
            .collect();
        let info = race(&f, &key, contents).await;
        f.store.get_bytes(&key, Some(&info), 100).await.unwrap();
    }
}

pub(crate) async fn exactly_one_of_many_writers_of_a_large_object_wins(f: Fixture) {
    let key = key("jobs/a/attempts/1/segment");
    let info = race(&f, &key, (0..4).map(|writer| content(7 << 20, writer)).collect()).await;
    f.store
        .get_file(&key, &info, &f.local.path().join("back"))
        .await
        .unwrap();
}

pub(crate) async fn a_file_of_other_content_is_a_mismatch_that_is_tried_again_and_leaves_nothing(f: Fixture) {
    let key = key("jobs/a/attempts/1/receipt");
    let info = f
        .store
        .put_bytes(&key, "the receipt".into(), Condition::CreateOnly)
        .await
        .unwrap();
    let other_digest = ObjectInfo {
        sha256: Sha256::of(b"other"),
        ..info
    };
    let (shorter, longer) = (
        ObjectInfo {
            size_bytes: 3,
            ..info
        },
        ObjectInfo {
            size_bytes: 300,
            ..info
        },
    );
    let to = f.local.path().join("folder/back");
    for expected in [other_digest, shorter, longer] {
        let error = f.store.get_file(&key, &expected, &to).await.unwrap_err();
        assert!(matches!(error, StoreError::ChecksumMismatch { .. }), "{error:?}");
        assert_eq!(
            fs::read_dir(to.parent().unwrap()).unwrap().count(),
            0,
            "something was left behind"
        );
    }
    // Three fetches each: two of them are tries after the first.
    assert_eq!(f.store.counters().snapshot().retries["checksum_mismatch"], 6);
    fs::write(&to, "old").unwrap();
    f.store.get_file(&key, &other_digest, &to).await.unwrap_err();
    assert_eq!(fs::read_to_string(&to).unwrap(), "old");
}

pub(crate) async fn bytes_of_other_content_are_a_mismatch_that_names_the_key(f: Fixture) {
    let key = key("jobs/a/attempts/1/receipt");
    f.store
        .put_bytes(&key, "the receipt".into(), Condition::CreateOnly)
        .await
        .unwrap();
    let error = f
        .store
        .get_bytes(&key, Some(&ObjectInfo::of(b"THE RECEIPT")), 100)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::ChecksumMismatch { .. }), "{error:?}");
    assert!(error.to_string().contains("jobs/a/attempts/1/receipt"), "{error}");
    assert_eq!(error.retry(), prover_artifacts::Retry::Backoff);
}

pub(crate) async fn an_object_larger_than_the_limit_is_refused(f: Fixture) {
    let key = key("jobs/a/sources/input");
    let info = f
        .store
        .put_bytes(&key, content(100_000, 3), Condition::CreateOnly)
        .await
        .unwrap();
    let error = f.store.get_bytes(&key, Some(&info), 99_999).await.unwrap_err();
    let StoreError::TooLarge {
        size_bytes,
        limit_bytes,
        ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!((size_bytes, limit_bytes), (100_000, 99_999));
    assert_eq!(
        f.store.get_bytes(&key, Some(&info), 100_000).await.unwrap().len(),
        100_000
    );
}

pub(crate) async fn an_object_of_which_only_a_bound_is_known_comes_into_a_file(f: Fixture) {
    let key = key("inputs/team/block");
    let info = f
        .store
        .put_bytes(&key, content(100_000, 3), Condition::CreateOnly)
        .await
        .unwrap();
    let to = f.local.path().join("fetched");
    let refused = f.store.fetch_file(&key, 99_999, &to).await.unwrap_err();
    assert!(
        matches!(
            refused,
            StoreError::TooLarge {
                limit_bytes: 99_999,
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(
        fs::read_dir(f.local.path()).unwrap().count(),
        0,
        "nothing is left"
    );
    assert_eq!(f.store.fetch_file(&key, 100_000, &to).await.unwrap(), info);
    assert_eq!(fs::read(&to).unwrap(), content(100_000, 3));
    let missing = f
        .store
        .fetch_file(&Key::new("inputs/team/none").unwrap(), 1, &to)
        .await;
    assert!(matches!(missing, Err(StoreError::NotFound { .. })), "{missing:?}");
}

pub(crate) async fn stat_tells_size_and_digest(f: Fixture) {
    let (small, large) = (key("a/small"), key("a/large"));
    let one = f
        .store
        .put_bytes(&small, "small".into(), Condition::CreateOnly)
        .await
        .unwrap();
    let two = f
        .store
        .put_bytes(&large, content(12 << 20, 4), Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(f.store.stat(&small).await.unwrap(), one);
    assert_eq!(f.store.stat(&large).await.unwrap(), two);
    // A folder of keys is no object.
    assert!(matches!(
        f.store.stat(&key("a")).await,
        Err(StoreError::NotFound { .. })
    ));
}

pub(crate) async fn a_deleted_object_is_gone_and_can_be_written_again(f: Fixture) {
    let key = key("jobs/a/attempts/1/receipt");
    f.store
        .put_bytes(&key, "one".into(), Condition::CreateOnly)
        .await
        .unwrap();
    f.store.delete(&key).await.unwrap();
    assert!(matches!(
        f.store.stat(&key).await,
        Err(StoreError::NotFound { .. })
    ));
    f.store.delete(&key).await.unwrap();
    f.store
        .put_bytes(&key, "two".into(), Condition::CreateOnly)
        .await
        .unwrap();
    assert_eq!(f.store.get_bytes(&key, None, 10).await.unwrap(), "two");
}

pub(crate) async fn deleting_a_prefix_spares_its_siblings(f: Fixture) {
    let doomed = [
        "jobs/a/x",
        "jobs/a/attempts/1/y",
        "jobs/a/attempts/2/y",
        "jobs/a/ab",
    ];
    let spared = ["jobs/ab/x", "jobs/a-b/x", "jobs/b/a/x", "jobs/A/x"];
    for name in doomed.iter().chain(&spared) {
        f.store
            .put_bytes(&key(name), (*name).into(), Condition::CreateOnly)
            .await
            .unwrap();
    }
    assert_eq!(
        f.store.delete_prefix(&prefix("jobs/a")).await.unwrap(),
        doomed.len() as u64
    );
    for name in doomed {
        assert!(
            matches!(f.store.stat(&key(name)).await, Err(StoreError::NotFound { .. })),
            "{name}"
        );
    }
    for name in spared {
        f.store
            .get_bytes(&key(name), Some(&ObjectInfo::of(name.as_bytes())), 100)
            .await
            .unwrap();
    }
}

pub(crate) async fn deleting_a_prefix_of_more_than_one_page_deletes_all(f: Fixture) {
    let mut writers = JoinSet::new();
    for writer in 0..15 {
        let store = Arc::clone(&f.store);
        writers.spawn(async move {
            for number in 0..70 {
                let key = key(&format!("jobs/a/attempts/{writer}/{number}"));
                store
                    .put_bytes(&key, "x".into(), Condition::CreateOnly)
                    .await
                    .unwrap();
            }
        });
    }
    writers.join_all().await;
    let listing = f.store.list(&prefix("jobs/a"), 10_000).await.unwrap();
    assert_eq!((listing.objects.len(), listing.truncated), (1_050, false));
    assert_eq!(f.store.delete_prefix(&prefix("jobs/a")).await.unwrap(), 1_050);
    assert_eq!(
        f.store.list(&prefix("jobs/a"), 10).await.unwrap().objects.len(),
        0
    );
}

pub(crate) async fn the_whole_store_is_never_deleted(f: Fixture) {
    let key = key("jobs/a/x");
    f.store
        .put_bytes(&key, "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    let error = f.store.delete_prefix(&prefix("")).await.unwrap_err();
    assert!(matches!(error, StoreError::InvalidKey { .. }), "{error:?}");
    f.store.stat(&key).await.unwrap();
}

pub(crate) async fn a_listing_is_sorted_and_bounded(f: Fixture) {
    // The hyphen sorts before the slash: by names alone a folder store would exchange the first two.
    let names = ["l/a-b", "l/a/1", "l/a/2", "l/a0", "l/b"];
    for name in names.iter().rev() {
        f.store
            .put_bytes(&key(name), (*name).into(), Condition::CreateOnly)
            .await
            .unwrap();
    }
    f.store
        .put_bytes(&key("la"), "x".into(), Condition::CreateOnly)
        .await
        .unwrap();
    let shown = async |prefix_text: &str, limit| {
        let listing = f.store.list(&prefix(prefix_text), limit).await.unwrap();
        let keys: Vec<_> = listing
            .objects
            .iter()
            .map(|object| object.key.to_string())
            .collect();
        (keys, listing.truncated)
    };
    let all: Vec<_> = names.map(ToOwned::to_owned).into();
    assert_eq!(shown("l", 100).await, (all.clone(), false));
    assert_eq!(shown("l", 5).await, (all.clone(), false));
    assert_eq!(shown("l", 4).await, (all[..4].to_vec(), true));
    assert_eq!(shown("l", 0).await, (vec![], true));
    assert_eq!(shown("l/a", 100).await, (all[1..3].to_vec(), false));
    assert_eq!(shown("", 100).await.0.len(), 6);
    // Page by page, and after keys that are not there.
    let after = async |after: &str, limit| {
        let after = key(after);
        let listing = f
            .store
            .list_after(&prefix("l"), Some(&after), limit)
            .await
            .unwrap();
        let keys = listing.objects.iter().map(|object| object.key.to_string());
        (keys.collect::<Vec<_>>(), listing.truncated)
    };
    for (at, name) in names.iter().enumerate() {
        assert_eq!(after(name, 100).await, (all[at + 1..].to_vec(), false), "{name}");
    }
    assert_eq!(after("l/a", 2).await, (all[..2].to_vec(), true));
    assert_eq!(after("l/a/1x", 1).await, (all[2..3].to_vec(), true));
    assert_eq!(
        f.store.list(&prefix("l"), 1).await.unwrap().objects[0].size_bytes,
        5
    );
}

pub(crate) async fn keys_with_unusual_characters_work(f: Fixture) {
    for name in [
        "u/with space",
        "u/plus+and&=?#%41",
        "u/näme✓",
        "u/.hidden",
        "u/quote'\"<>",
        "u/a..b",
        "u/~!@$^*()",
    ] {
        let key = key(name);
        let info = f
            .store
            .put_bytes(&key, name.to_owned().into(), Condition::CreateOnly)
            .await
            .unwrap();
        assert_eq!(f.store.get_bytes(&key, Some(&info), 100).await.unwrap(), name);
        assert_eq!(f.store.list(&prefix("u"), 10).await.unwrap().objects[0].key, key);
        assert_eq!(f.store.delete_prefix(&prefix("u")).await.unwrap(), 1);
    }
}

pub(crate) async fn a_missing_source_is_told_with_its_path(f: Fixture) {
    let key = key("jobs/a/x");
    for path in [f.local.path().join("missing"), f.local.path().to_owned()] {
        let error = f
            .store
            .put_file(&key, &path, Condition::CreateOnly)
            .await
            .unwrap_err();
        assert!(
            matches!(error, StoreError::LocalFile { action: "read", .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert!(matches!(
        f.store.stat(&key).await,
        Err(StoreError::NotFound { .. })
    ));
}

pub(crate) async fn the_probe_finds_all_capabilities_and_leaves_nothing(f: Fixture) {
    let found = f.store.probe().await.unwrap();
    assert!(
        found.writable && found.conditional_writes && found.conditional_multipart && found.verifies_uploads
    );
    let listing = f.store.list(&prefix(""), 10).await.unwrap();
    assert!(listing.objects.is_empty(), "{listing:?}");
}

pub(crate) async fn counters_tell_operations_and_bytes(f: Fixture) {
    let key = key("a/b");
    let info = f
        .store
        .put_bytes(&key, "12345".into(), Condition::CreateOnly)
        .await
        .unwrap();
    f.store
        .put_bytes(&key, "12345".into(), Condition::CreateOnly)
        .await
        .unwrap_err();
    f.store.get_bytes(&key, Some(&info), 10).await.unwrap();
    let counters = f.store.counters().snapshot();
    assert_eq!(counters.operations[&("put_bytes", "ok")], 1);
    assert_eq!(counters.operations[&("put_bytes", "already_exists")], 1);
    assert_eq!(counters.operations[&("get_bytes", "ok")], 1);
    assert_eq!(counters.bytes_read, 5);
    assert_eq!(counters.unconfirmed_uploads, 0);
    assert!(counters.retries.is_empty(), "{:?}", counters.retries);
}
