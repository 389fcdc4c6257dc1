use proptest::prelude::*;

use super::*;
use crate::limits;
use crate::protocol::{
    BackendDescription, Heartbeat, NotLeader, ReadChannel, SendChannelMessage, SubmitTasks, SubscribeTasks,
    Welcome,
};

fn mk_artifact(name: &str) -> Artifact {
    crate::artifact(name, format!("jobs/a/{name}"), [7; 32], 9)
}

fn mk_hello() -> WorkerHello {
    WorkerHello {
        protocol_version: crate::PROTOCOL_VERSION,
        worker_id: "worker-1".to_owned(),
        devices: vec![Device {
            id: "cpu-0".to_owned(),
            class: DeviceClass::Cpu.into(),
            attempts_at_once: 1,
            ..Device::default()
        }],
        backend: Some(BackendDescription {
            name: "risc0".to_owned(),
            version: "1".to_owned(),
            encoded: Vec::new(),
        }),
        held: vec![HeldAttempt {
            attempt_id: 1,
            ..HeldAttempt::default()
        }],
        ..WorkerHello::default()
    }
}

fn mk_assign() -> Assign {
    Assign {
        attempt_id: 1,
        job_id: "job".to_owned(),
        artifact_prefix: "jobs/job".to_owned(),
        task_type: "prove".to_owned(),
        inputs: vec![mk_artifact("segment")],
        outputs: vec!["receipt".to_owned()],
        ..Assign::default()
    }
}

/// One change of a good message.
type Mutation<T> = Box<dyn Fn(&mut T)>;

fn mutation<T>(change: impl Fn(&mut T) + 'static) -> Mutation<T> {
    Box::new(change)
}

fn each_mutation_is_refused<T: Validate>(good: impl Fn() -> T, mutations: Vec<(&'static str, Mutation<T>)>) {
    good().validate().unwrap();
    for (category, mutate) in mutations {
        let mut message = good();
        mutate(&mut message);
        let error = message.validate().expect_err(category);
        assert_eq!(error.category(), category, "{error}");
        assert!(!error.retry());
    }
}

#[test]
fn a_hello_with_one_fault_is_refused_by_the_name_of_the_fault() {
    each_mutation_is_refused(
        mk_hello,
        vec![
            (
                "unsupported_version",
                mutation(|hello: &mut WorkerHello| hello.protocol_version = 2),
            ),
            (
                "unsupported_version",
                mutation(|hello: &mut WorkerHello| hello.protocol_version = 0),
            ),
            (
                "empty_field",
                mutation(|hello: &mut WorkerHello| hello.worker_id.clear()),
            ),
            (
                "too_large",
                mutation(|hello: &mut WorkerHello| hello.worker_id = "x".repeat(limits::NAME_BYTES + 1)),
            ),
            (
                "empty_field",
                mutation(|hello: &mut WorkerHello| hello.backend = None),
            ),
            (
                "unknown_value",
                mutation(|hello: &mut WorkerHello| hello.devices[0].class = 0),
            ),
            (
                "unknown_value",
                mutation(|hello: &mut WorkerHello| hello.devices[0].class = 99),
            ),
            (
                "out_of_range",
                mutation(|hello: &mut WorkerHello| hello.devices[0].attempts_at_once = 0),
            ),
            (
                "duplicate",
                mutation(|hello: &mut WorkerHello| hello.devices.push(hello.devices[0].clone())),
            ),
            (
                "empty_field",
                mutation(|hello: &mut WorkerHello| hello.held[0].attempt_id = 0),
            ),
        ],
    );
}

#[test]
fn an_assignment_with_one_fault_is_refused_by_the_name_of_the_fault() {
    each_mutation_is_refused(
        mk_assign,
        vec![
            (
                "empty_field",
                mutation(|assign: &mut Assign| assign.attempt_id = 0),
            ),
            (
                "empty_field",
                mutation(|assign: &mut Assign| assign.task_type.clear()),
            ),
            (
                "malformed_key",
                mutation(|assign: &mut Assign| assign.artifact_prefix = "../jobs".to_owned()),
            ),
            (
                "malformed_key",
                mutation(|assign: &mut Assign| assign.inputs[0].key = "/etc/passwd".to_owned()),
            ),
            (
                "malformed_hash",
                mutation(|assign: &mut Assign| assign.inputs[0].sha256.truncate(63)),
            ),
            (
                "duplicate",
                mutation(|assign: &mut Assign| assign.inputs.push(mk_artifact("segment"))),
            ),
            (
                "duplicate",
                mutation(|assign: &mut Assign| assign.outputs.push("receipt".to_owned())),
            ),
            (
                "too_large",
                mutation(|assign: &mut Assign| assign.parameters = vec![0; limits::OPAQUE_BYTES + 1]),
            ),
            (
                "too_large",
                mutation(|assign: &mut Assign| {
                    assign.dependency_results = vec![vec![0; limits::OPAQUE_BYTES]; 49];
                }),
            ),
        ],
    );
}

#[test]
fn a_report_with_one_fault_is_refused_by_the_name_of_the_fault() {
    let succeeded = || AttemptSucceeded {
        attempt_id: 1,
        outputs: vec![mk_artifact("receipt")],
        ..AttemptSucceeded::default()
    };
    each_mutation_is_refused(
        succeeded,
        vec![
            (
                "too_large",
                mutation(|succeeded: &mut AttemptSucceeded| succeeded.result = vec![0; 65_537]),
            ),
            (
                "malformed_hash",
                mutation(|succeeded: &mut AttemptSucceeded| succeeded.outputs[0].sha256 = "zz".repeat(32)),
            ),
        ],
    );
    let failed = || AttemptFailed {
        attempt_id: 1,
        class: FailureClass::Fatal.into(),
        ..AttemptFailed::default()
    };
    each_mutation_is_refused(
        failed,
        vec![
            (
                "unknown_value",
                mutation(|failed: &mut AttemptFailed| failed.class = 0),
            ),
            (
                "too_large",
                mutation(|failed: &mut AttemptFailed| failed.message = "x".repeat(limits::TEXT_BYTES + 1)),
            ),
        ],
    );
}

#[test]
fn a_call_with_one_fault_is_refused_by_the_name_of_the_fault() {
    let with = |inner: call::Call| Call {
        call_id: 1,
        attempt_id: 1,
        call: Some(inner),
    };
    let refused = |inner: call::Call| with(inner).validate().unwrap_err().category();
    let encoded = vec![0; limits::SUBMISSION_BYTES + 1];
    assert_eq!(
        refused(call::Call::SubmitTasks(SubmitTasks { encoded })),
        "too_large"
    );
    let request_ids = vec!["a".to_owned(), "a".to_owned()];
    assert_eq!(
        refused(call::Call::SubscribeTasks(SubscribeTasks { request_ids })),
        "duplicate"
    );
    assert_eq!(
        refused(call::Call::ReadChannel(ReadChannel::default())),
        "empty_field"
    );
    let nameless = Call {
        call_id: 1,
        attempt_id: 1,
        call: None,
    };
    assert_eq!(nameless.validate().unwrap_err().category(), "empty_message");
    // The channel of the attempt's own task has no name.
    with(call::Call::SendChannelMessage(SendChannelMessage::default()))
        .validate()
        .unwrap();
}

#[test]
fn an_envelope_without_a_known_message_is_refused() {
    assert_eq!(
        WorkerMessage::default().validate().unwrap_err().category(),
        "empty_message"
    );
    assert_eq!(
        CoordinatorMessage::default().validate().unwrap_err().category(),
        "empty_message"
    );
}

#[test]
fn a_coordinator_that_does_not_lead_says_who_does() {
    let mk = |address: &str| {
        CoordinatorMessage::from(NotLeader {
            address: address.to_owned(),
        })
    };
    mk("10.0.0.7:7000").validate().unwrap();
    assert_eq!(mk("").validate().unwrap_err().category(), "empty_field");
    let long = "x".repeat(limits::NAME_BYTES + 1);
    assert_eq!(mk(&long).validate().unwrap_err().category(), "too_large");
}

#[test]
fn a_welcome_without_heartbeats_is_refused() {
    let error = CoordinatorMessage::from(Welcome::default())
        .validate()
        .unwrap_err();
    assert!(error.to_string().contains("heartbeat_interval_ms"), "{error}");
}

#[test]
fn a_message_that_is_too_large_as_a_whole_is_refused() {
    let attempts = vec![u64::MAX; limits::ATTEMPTS_PER_WORKER];
    let heartbeat = |attempts| {
        WorkerMessage::from(Heartbeat {
            attempts,
            ..Heartbeat::default()
        })
    };
    heartbeat(attempts.clone()).validate().unwrap();
    let too_many = [attempts, vec![1]].concat();
    assert_eq!(
        heartbeat(too_many).validate().unwrap_err().category(),
        "too_large"
    );
    let assign = Assign {
        inputs: (0..limits::ARTIFACTS_PER_TASK)
            .map(|number| mk_artifact(&format!("{number}{}", "x".repeat(500))))
            .collect(),
        ..mk_assign()
    };
    assign.validate().unwrap();
    let error = CoordinatorMessage::from(assign).validate().unwrap_err();
    assert!(
        error.to_string().starts_with("coordinator message has"),
        "{error}"
    );
}

#[test]
fn the_limits_of_single_fields_leave_room_for_the_envelope() {
    let encoded = vec![0xff; limits::SUBMISSION_BYTES];
    let call = Call {
        call_id: u64::MAX,
        attempt_id: u64::MAX,
        call: Some(call::Call::SubmitTasks(SubmitTasks { encoded })),
    };
    WorkerMessage::from(call).validate().unwrap();
}

proptest! {
    #[test]
    fn whatever_arrives_is_judged_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = WorkerMessage::decode(bytes.as_slice()) {
            let _ = message.validate();
        }
        if let Ok(message) = CoordinatorMessage::decode(bytes.as_slice()) {
            let _ = message.validate();
        }
    }

    #[test]
    fn a_key_that_passes_names_something_below_the_store(parts in prop::collection::vec("[a.]{0,3}", 1..5)) {
        let key = parts.join("/");
        let artifact = Artifact { key: key.clone(), ..mk_artifact("x") };
        let climbs = parts.iter().any(|part| matches!(part.as_str(), "" | "." | ".."));
        prop_assert_eq!(artifact.validate().is_err(), climbs, "{}", key);
    }

    #[test]
    fn a_text_is_cut_to_its_limit_and_stays_text(length in 0_usize..9_000, shift in 0_usize..3) {
        let text: String = "aé漢".chars().cycle().skip(shift).take(length).collect();
        let cut = limits::cut_text(&text);
        prop_assert!(cut.len() <= limits::TEXT_BYTES);
        prop_assert_eq!(cut == text, text.len() <= limits::TEXT_BYTES);
    }
}
