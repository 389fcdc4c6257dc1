use std::time::Duration;

use prover_coordinator::{
    ExecutionReport, ProofReport, ProofView, StageProgress as ViewStage, TaskList, TaskView,
};

use super::*;

const STORE: &str = "s3://bucket/prefix/";

fn at(second: i64) -> Time {
    Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
}

fn mk_view(phase: ViewPhase) -> JobView {
    JobView {
        id: None,
        uid: "uid".into(),
        name: "name".into(),
        tenant: "tenant".into(),
        phase,
        reason: "WaitingForCapacity".into(),
        message: "all workers are busy".into(),
        bad_input: false,
        stages: vec![mk_stage("Execute", 1, 1), mk_stage("Prove", 3, 8)],
        tasks: TaskList::default(),
        execution: Some(ExecutionReport {
            segments: 8,
            user_cycles: 100,
            total_cycles: 1_000,
            program_id: "ab".repeat(32),
            exit_code: 0,
            segment_po2: 16,
            gas: None,
            public_values_sha256: String::new(),
        }),
        proof: None,
        public_values: None,
        emulated: false,
        backend: None,
        submitted_at: Timestamp(1_000),
        started_at: Some(Timestamp(10_000)),
        finished_at: None,
        elapsed: Duration::from_secs(20),
        effective_hz: None,
        pgu_per_second: None,
        device_seconds: 12.5,
        energy_joules: 0.0,
        attempts: 5,
        failed_attempts: 2,
        failures: 1,
        infrastructure_failures: 1,
        active: Duration::from_secs(15),
        device_time_by_group: [("gpu".into(), Duration::from_secs(3_600))].into(),
        replans: 0,
        speculative_attempts: 0,
        forecast: None,
    }
}

fn mk_stage(name: &str, done: u64, total: u64) -> ViewStage {
    ViewStage {
        name: name.into(),
        order: 1,
        done,
        total,
        running: 1,
    }
}

fn mk_binding(key: &str) -> Binding {
    Binding {
        key: key.into(),
        sha256: [7; 32],
        size_bytes: 42,
    }
}

fn mk_succeeded() -> JobView {
    let mut view = mk_view(ViewPhase::Succeeded);
    view.reason = "Succeeded".into();
    view.message = "".into();
    view.finished_at = Some(Timestamp(30_000));
    view.effective_hz = Some(50.9);
    view.public_values = Some(mk_binding("jobs/uid/attempts/3/public-values"));
    view.proof = Some(ProofView {
        report: ProofReport {
            program_id: "ab".repeat(32),
            proof_bytes: 42,
            verifier: "risc0-zkvm 3.1".to_owned(),
        },
        proof: mk_binding("jobs/uid/attempts/3/proof"),
        public_values: None,
    });
    view
}

fn made(situation: &Situation, suspended: bool, previous: &ProofJobStatus, now: i64) -> ProofJobStatus {
    made_held(situation, (suspended, false), previous, now)
}

fn made_held(
    situation: &Situation,
    (suspended, held): (bool, bool),
    previous: &ProofJobStatus,
    now: i64,
) -> ProofJobStatus {
    let price = usage::GroupPrice {
        micros_per_hour: 2_000_000,
        currency: "USD".to_owned(),
        devices: 4,
    };
    let prices = GroupPrices::from([("gpu".to_owned(), price)]);
    let surroundings = Surroundings {
        generation: Some(3),
        suspended,
        held,
        store: STORE,
        prices: &prices,
    };
    status(situation, &surroundings, previous, &at(now))
}

fn of_view(view: JobView) -> ProofJobStatus {
    made(
        &Situation::Taken(Arc::new(view)),
        false,
        &ProofJobStatus::default(),
        100,
    )
}

fn conditions_in(status: &ProofJobStatus) -> String {
    let list = status
        .conditions
        .iter()
        .map(|condition| format!("{}={}({})", condition.type_, condition.status, condition.reason));
    list.collect::<Vec<_>>().join(" ")
}

#[test]
fn each_situation_has_its_phase_reason_and_conditions() {
    let taken = |phase| {
        let mut view = mk_view(phase);
        if phase == ViewPhase::Failed {
            view.reason = reasons::OUT_OF_MEMORY.into();
        }
        Situation::Taken(Arc::new(view))
    };
    let accepted = "Accepted=True(Accepted)";
    let cases = [
        (
            "refused",
            Situation::Refused {
                reason: reasons::PROOF_NOT_OFFERED,
                message: "no".to_owned(),
            },
            false,
            Phase::Pending,
            reasons::PROOF_NOT_OFFERED,
            "Accepted=False(ProofNotOffered) Running=False(ProofNotOffered)".to_owned(),
        ),
        (
            "sources",
            Situation::Waiting {
                reason: reasons::FETCHING_SOURCES,
                message: String::new(),
            },
            false,
            Phase::Queued,
            reasons::FETCHING_SOURCES,
            format!("{accepted} Running=False(FetchingSources)"),
        ),
        (
            "queued",
            taken(ViewPhase::Queued),
            false,
            Phase::Queued,
            reasons::WAITING_FOR_CAPACITY,
            format!("{accepted} Running=False(WaitingForCapacity)"),
        ),
        (
            "suspended before the core knows",
            taken(ViewPhase::Queued),
            true,
            Phase::Suspended,
            reasons::SUSPENDED,
            format!("{accepted} Running=False(Suspended) Suspended=True(Suspended)"),
        ),
        (
            "running",
            taken(ViewPhase::Running),
            false,
            Phase::Running,
            reasons::STARTED,
            format!("{accepted} Running=True(Started)"),
        ),
        (
            "failed",
            taken(ViewPhase::Failed),
            false,
            Phase::Failed,
            reasons::OUT_OF_MEMORY,
            format!("{accepted} Failed=True(OutOfMemory) Finished=True(Failed)"),
        ),
        (
            "never accepted",
            Situation::Ended(Ending {
                phase: Phase::Failed,
                reason: reasons::INVALID_SPEC.to_owned(),
                message: "bad".to_owned(),
                invalid_input: true,
                accepted: false,
            }),
            false,
            Phase::Failed,
            reasons::INVALID_SPEC,
            "Accepted=False(InvalidSpec) Failed=True(InvalidSpec) Finished=True(Failed)".to_owned(),
        ),
    ];
    for (what, situation, suspended, phase, reason, conditions) in cases {
        let status = made(&situation, suspended, &ProofJobStatus::default(), 100);
        assert_eq!(status.phase, Some(phase), "{what}");
        assert_eq!(status.reason.as_deref(), Some(reason), "{what}");
        assert_eq!(conditions_in(&status), conditions, "{what}");
        assert_eq!(status.observed_generation, Some(3), "{what}");
        assert_eq!(status.failure.is_some(), phase == Phase::Failed, "{what}");
        assert_eq!(status.completion_time.is_some(), phase.is_terminal(), "{what}");
    }
}

#[test]
fn a_success_tells_where_the_proof_is_and_what_it_cost() {
    let status = of_view(mk_succeeded());
    let proof = status.proof.unwrap();
    assert_eq!(proof.uri, "s3://bucket/prefix/jobs/uid/attempts/3/proof");
    assert_eq!(proof.sha256, "07".repeat(32));
    assert_eq!(proof.verifier, "risc0-zkvm 3.1");
    assert_eq!(status.public_values.unwrap().size_bytes, 42);
    assert_eq!(status.effective_hz, Some(50));
    assert_eq!(status.active_milliseconds, Some(15_000));
    let usage = status.usage.unwrap();
    assert_eq!(usage.device_milliseconds, 12_500);
    // An hour on one of the four devices of a worker that costs 2.00 an hour.
    assert_eq!(usage.cost.unwrap().amount, "0.500000");
    assert_eq!(status.start_time, Some(at(10)));
    assert_eq!(status.completion_time, Some(at(30)));
    assert_eq!(status.execution.unwrap().segment_po2, Some(16));
}

#[test]
fn gas_and_hash_of_the_public_values_are_there_where_the_prover_told_them() {
    let execution = of_view(mk_succeeded()).execution.unwrap();
    assert_eq!((execution.gas, execution.public_values_sha256), (None, None));

    let mut view = mk_succeeded();
    view.pgu_per_second = Some(15.9);
    let told = view.execution.as_mut().unwrap();
    told.gas = Some(318);
    told.public_values_sha256 = "0a".repeat(32);
    let status = of_view(view.clone());
    let execution = status.execution.unwrap();
    assert_eq!(execution.gas, Some(318));
    assert_eq!(execution.public_values_sha256, Some("0a".repeat(32)));
    assert_eq!(status.pgu_per_second, Some(15));

    // The schema would refuse the whole status for it.
    view.execution.as_mut().unwrap().public_values_sha256 = "0A".repeat(32);
    assert_eq!(of_view(view).execution.unwrap().public_values_sha256, None);
}

#[test]
fn only_a_success_claims_a_proof() {
    for phase in [
        ViewPhase::Queued,
        ViewPhase::Running,
        ViewPhase::Suspended,
        ViewPhase::Failed,
        ViewPhase::Cancelled,
    ] {
        let mut view = mk_succeeded();
        view.phase = phase;
        let status = of_view(view);
        assert!(
            status.proof.is_none() && status.public_values.is_none(),
            "{phase:?}"
        );
    }
}

#[test]
fn an_unpriced_group_leaves_the_cost_out() {
    let mut view = mk_succeeded();
    view.device_time_by_group
        .insert("other".into(), Duration::from_secs(1));
    assert_eq!(of_view(view).usage.unwrap().cost, None);
}

#[test]
fn progress_counts_tasks_of_all_stages_and_times_of_each() {
    let mut view = mk_view(ViewPhase::Running);
    let task = |stage: &str, start: u64, end: Option<u64>| {
        Arc::new(TaskView {
            id: prover_coordinator::TaskId(1),
            request_id: "request".into(),
            task_type: "type".into(),
            stage: stage.into(),
            marker: false,
            state: TaskState::Succeeded,
            attempts: 1,
            started_at: Some(Timestamp(start)),
            ended_at: end.map(Timestamp),
            wall: None,
            device_time: Duration::from_millis(250),
            worker: None,
            failure: None,
            from_cache: false,
        })
    };
    let tasks = [
        task("Execute", 11_000, Some(12_000)),
        task("Prove", 14_000, Some(15_000)),
        task("Prove", 13_000, None),
    ];
    view.tasks = tasks.into_iter().collect();
    let status = of_view(view);
    let progress = status.progress.unwrap();
    assert_eq!(progress.summary, "4/9");
    let (execute, prove) = (&progress.stages[0], &progress.stages[1]);
    assert_eq!(
        (&execute.start_time, &execute.completion_time),
        (&Some(at(11)), &Some(at(12)))
    );
    assert_eq!(
        (&prove.start_time, &prove.completion_time),
        (&Some(at(13)), &None)
    );
    assert_eq!((prove.device_milliseconds, prove.running), (500, 1));
    let attempts = status.attempts.unwrap();
    assert_eq!((attempts.started, attempts.succeeded), (5, 3));
    assert_eq!((attempts.failed, attempts.lost), (1, 1));
}

#[test]
fn times_of_the_past_are_kept() {
    let waiting = Situation::Waiting {
        reason: reasons::FETCHING_SOURCES,
        message: String::new(),
    };
    let first = made(&waiting, false, &ProofJobStatus::default(), 100);
    let running = Situation::Taken(Arc::new(mk_view(ViewPhase::Running)));
    let second = made(&running, false, &first, 200);
    assert_eq!(second.accepted_time, Some(at(100)));
    let condition = |status: &ProofJobStatus, type_: &str| {
        conditions::find(&status.conditions, type_)
            .unwrap()
            .last_transition_time
            .clone()
    };
    assert_eq!(condition(&second, conditions::ACCEPTED), at(100));
    assert_eq!(condition(&second, conditions::RUNNING), at(200));
    let third = made(&running, false, &second, 300);
    assert_eq!(third, second, "nothing changes by looking again");
}

#[test]
fn whether_the_deadline_is_feasible_is_a_condition_with_the_arithmetic() {
    let forecast = |feasible, reason| Forecast {
        feasible,
        reason,
        message: "84 known tasks".to_owned(),
    };
    let mut view = mk_view(ViewPhase::Running);
    let mut before = ProofJobStatus::default();
    for (feasible, reason, expected) in [
        (
            Feasible::Unknown,
            reasons::NOTHING_MEASURED,
            "DeadlineFeasible=Unknown(NothingMeasured)",
        ),
        (
            Feasible::Yes,
            reasons::ENOUGH_TIME,
            "DeadlineFeasible=True(EnoughTime)",
        ),
        (
            Feasible::No,
            reasons::TOO_FEW_DEVICES,
            "DeadlineFeasible=False(TooFewDevices)",
        ),
    ] {
        view.forecast = Some(forecast(feasible, reason));
        before = made(&Situation::Taken(Arc::new(view.clone())), false, &before, 100);
        assert!(
            conditions_in(&before).contains(expected),
            "{}",
            conditions_in(&before)
        );
        let told = conditions::find(&before.conditions, conditions::DEADLINE_FEASIBLE).unwrap();
        assert_eq!(told.message, "84 known tasks");
    }
    view.forecast = None;
    let without = made(&Situation::Taken(Arc::new(view)), false, &before, 100);
    assert!(!conditions_in(&without).contains("DeadlineFeasible"));
}

#[test]
fn a_running_job_at_the_bound_of_its_namespace_says_so() {
    let mut view = mk_view(ViewPhase::Running);
    view.reason = reasons::WAITING_FOR_QUOTA.into();
    view.message = "its namespace uses the 2 devices that it may use at once".into();
    let status = of_view(view);
    assert!(conditions_in(&status).contains("Running=True(WaitingForQuota)"));
    assert!(status.message.unwrap().contains("2 devices"));
}

#[test]
fn a_job_that_goes_on_says_that_it_is_suspended_no_more() {
    let running = Situation::Taken(Arc::new(mk_view(ViewPhase::Running)));
    let suspended = Situation::Taken(Arc::new(mk_view(ViewPhase::Suspended)));
    let first = made(&suspended, true, &ProofJobStatus::default(), 100);
    let second = made(&running, false, &first, 200);
    assert!(conditions_in(&second).contains("Suspended=False(Resumed)"));
}

#[test]
fn words_that_the_schema_would_refuse_are_cut_or_replaced() {
    let mut view = mk_view(ViewPhase::Failed);
    view.reason = "no reason at all".into();
    view.message = "é".repeat(5_000).into();
    let status = of_view(view);
    assert_eq!(status.reason.as_deref(), Some(reasons::OTHER_FAILURE));
    assert!(status.message.unwrap().len() <= MESSAGE_BYTES);
    let failure = status.failure.unwrap();
    assert!(failure.message.len() <= FAILURE_MESSAGE_BYTES);
    assert!(failure.message.starts_with("no reason at all: é"));
    assert_eq!(failure.reason, reasons::OTHER_FAILURE);
}

#[test]
fn a_job_without_a_place_waits_for_quota_and_is_not_called_suspended() {
    let situation = Situation::Taken(Arc::new(mk_view(ViewPhase::Suspended)));
    let status = made_held(&situation, (false, true), &ProofJobStatus::default(), 100);
    assert_eq!(status.phase, Some(Phase::Queued));
    assert_eq!(status.reason.as_deref(), Some(reasons::WAITING_FOR_QUOTA));
    assert!(!conditions_in(&status).contains("Suspended"));
}
