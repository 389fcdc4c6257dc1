//! From the creation of a ProofJob to its first running task, with both workers warm and idle.
//!
//! Measured from the moment before the call until a watch tells that the job runs, so it includes the API server's
//! answer and the write of the status: an upper bound. Beside each job a ConfigMap is created and watched, which is
//! what the API server and this program cost alone at that moment.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use prover_crds::{Phase, ProofJob};

use crate::Failure;
use crate::arguments::JobLatency;
use crate::observe::{Watch, metric};
use crate::report::Report;
use crate::scene::Scene;

/// Length of the only segment: long enough that a running job is told before its end.
const SEGMENT: Duration = Duration::from_millis(300);
/// Longest time of anything that is waited for.
const LIMIT: Duration = Duration::from_secs(60);
/// The coordinator's own measure, from the first sight of a job to its start.
const OWN_MEASURE: &str = "prover_coordinator_kubernetes_first_task_seconds_sum";

pub(crate) async fn measure(scene: &Scene, options: &JobLatency, report: &mut Report) -> Result<(), Failure> {
    let coordinator = scene.coordinator().await?;
    let mut jobs = Watch::<ProofJob>::begin(scene).await?;
    let mut plain = Watch::<ConfigMap>::begin(scene).await?;
    for number in 0..options.warm_up + options.jobs {
        let floor = plain_object(scene, &mut plain, number).await?;
        let own_before = metric(scene, &coordinator, OWN_MEASURE).await?;
        let (created, running) = one_job(scene, &mut jobs, number).await?;
        let own = metric(scene, &coordinator, OWN_MEASURE).await? - own_before;
        if number < options.warm_up {
            continue;
        }
        report.add("firstTask", running);
        report.add("creation", created);
        report.add(
            "coordinator",
            Duration::try_from_secs_f64(own).unwrap_or_default(),
        );
        report.add("plainObject", floor);
    }
    Ok(())
}

/// Time until the API server answered, and until the job was told to run.
async fn one_job(
    scene: &Scene,
    jobs: &mut Watch<ProofJob>,
    number: u32,
) -> Result<(Duration, Duration), Failure> {
    let name = format!("job-{number}");
    let job = scene.job(&name, SEGMENT)?;
    let begin = Instant::now();
    scene
        .api::<ProofJob>()
        .create(&PostParams::default(), &job)
        .await?;
    let created = begin.elapsed();
    let started = |job: &ProofJob| {
        let status = job.status.as_ref();
        job.name_any() == name && status.is_some_and(|status| status.start_time.is_some())
    };
    let sight = jobs.until(&format!("{name} runs"), LIMIT, started).await?;
    let running = sight.at.duration_since(begin);
    let ended = |job: &ProofJob| job.name_any() == name && phase(job).is_some_and(Phase::is_terminal);
    let last = if ended(&sight.object) {
        sight
    } else {
        jobs.until(&format!("{name} ends"), LIMIT, ended).await?
    };
    match phase(&last.object) {
        Some(Phase::Succeeded) => Ok((created, running)),
        other => Err(format!("{name} ended as {other:?}").into()),
    }
}

/// The phase of a job, once it has one.
pub(crate) fn phase(job: &ProofJob) -> Option<Phase> {
    job.status.as_ref()?.phase
}

async fn plain_object(scene: &Scene, plain: &mut Watch<ConfigMap>, number: u32) -> Result<Duration, Failure> {
    let name = format!("plain-{number}");
    let object = ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    };
    let begin = Instant::now();
    scene
        .api::<ConfigMap>()
        .create(&PostParams::default(), &object)
        .await?;
    let sight = plain
        .until("a plain object is told", LIMIT, |object| {
            object.name_any() == name
        })
        .await?;
    Ok(sight.at.duration_since(begin))
}
