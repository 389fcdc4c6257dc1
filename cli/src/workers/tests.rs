//! The supervisor against small shell scripts in place of workers.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// Settings whose "own program" is a script, which is called as this executable would be.
fn mk_settings(folder: &Path, count: u16, script: &str) -> WorkerSettings {
    let own_program = folder.join("own");
    std::fs::write(&own_program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&own_program, std::fs::Permissions::from_mode(0o755)).unwrap();
    WorkerSettings {
        own_program,
        program: "prover-worker".into(),
        backend: "backend".into(),
        coordinator: "http://127.0.0.1:1".into(),
        token_file: folder.join("token"),
        store: "file:///store".into(),
        work_directory: folder.join("work"),
        log_directory: folder.to_owned(),
        count,
        devices: 1,
        threads: Some(3),
        memory_bytes: 5,
    }
}

#[tokio::test(start_paused = true)]
async fn workers_that_always_die_are_given_up_with_their_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let settings = mk_settings(folder.path(), 2, "echo no backend here >&2; exit 7");
    let events = RefCell::new(Vec::new());
    let stop = CancellationToken::new();
    let failure = supervise(&settings, &stop, &|event| events.borrow_mut().push(event))
        .await
        .unwrap_err();
    assert!(failure.last.contains("exit code 7"), "{failure}");
    assert!(log_tail(&settings.log_file(failure.worker_number)).contains("no backend here"));
    let events = events.into_inner();
    let gone = events
        .iter()
        .filter(|event| matches!(event, WorkerEvent::Gone { .. }))
        .count();
    assert_eq!(gone, 2 * (RESTARTS_IN_A_ROW as usize + 1));
}

#[tokio::test]
async fn a_dead_worker_is_told_and_started_again_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("second");
    let script = format!(
        "if [ -e {0} ]; then exec sleep 1000; fi; touch {0}; exit 1",
        marker.display()
    );
    let settings = mk_settings(folder.path(), 1, &script);
    let stop = CancellationToken::new();
    let events = RefCell::new(Vec::new());
    let tell = |event| {
        events.borrow_mut().push(event);
        stop.cancel();
    };
    let supervised = supervise(&settings, &stop, &tell);
    tokio::time::timeout(Duration::from_secs(30), supervised)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        events.into_inner(),
        vec![WorkerEvent::Gone {
            worker_id: "worker-1-1".into(),
            how: "worker 1 ended with exit code 1".into()
        }]
    );
}

#[tokio::test]
async fn a_stopped_worker_gets_the_time_to_leave() {
    let folder = tempfile::tempdir().unwrap();
    let (ready, left) = (folder.path().join("ready"), folder.path().join("left"));
    let script = format!(
        "trap 'touch {}; exit 0' TERM; touch {}; while :; do sleep 0.05; done",
        left.display(),
        ready.display()
    );
    let settings = mk_settings(folder.path(), 1, &script);
    let stop = CancellationToken::new();
    let wait_until_ready = async {
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    let (result, ()) = tokio::join!(supervise(&settings, &stop, &|_| {}), wait_until_ready);
    result.unwrap();
    assert!(left.exists());
}

#[test]
fn restarts_slow_down_up_to_a_limit() {
    assert_eq!(backoff(1), Duration::ZERO);
    assert_eq!(backoff(2), FIRST_BACKOFF);
    assert_eq!(backoff(3), 2 * FIRST_BACKOFF);
    assert_eq!(backoff(100), LONGEST_BACKOFF);
}

#[test]
fn a_log_tail_is_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    assert_eq!(log_tail(&path), "");
    std::fs::write(&path, format!("{}last words\n", "x".repeat(100_000))).unwrap();
    let tail = log_tail(&path);
    assert!(tail.trim_end().ends_with("last words"), "{tail}");
    assert!(tail.len() < 5000);
}
