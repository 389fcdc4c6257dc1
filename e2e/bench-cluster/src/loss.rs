//! From the loss of a worker that runs a task of several seconds until its coordinator has acted on it, and until the
//! task runs on the other worker.
//!
//! The coordinator *knows* when it sends the task's next attempt to the other worker, which its metrics tell (they are
//! looked at again and again, so this is an upper bound). The task *runs elsewhere* at the latest one task's length
//! before the job is told to have ended.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams, Preconditions};
use prover_crds::{Phase, ProofJob, names};
use tokio::process::Command;

use crate::Failure;
use crate::arguments::WorkerLoss;
use crate::latency::phase;
use crate::observe::{Watch, metric};
use crate::report::Report;
use crate::scene::{Scene, WORKERS};

/// Longest time of anything that is waited for, beside the task.
const LIMIT: Duration = Duration::from_secs(90);
/// Between two looks at metrics while a worker is lost.
const LOOK: Duration = Duration::from_millis(20);
/// A task that runs on the same worker that long after the job began is not the planner's any more.
const SETTLED: Duration = Duration::from_millis(1_000);
/// Attempts that the coordinator has sent to workers.
const ASSIGNMENTS: &str = "prover_coordinator_assignments_total";

/// How a worker is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Its pod is deleted without grace.
    DeletedPod,
    /// Its agent is killed.
    KilledAgent,
    /// Its agent is stopped, so that the node is silent and nothing is closed.
    SilentNode,
}

impl Loss {
    fn as_str(self) -> &'static str {
        match self {
            Loss::DeletedPod => "deletedPod",
            Loss::KilledAgent => "killedAgent",
            Loss::SilentNode => "silentNode",
        }
    }
}

pub(crate) async fn measure(scene: &Scene, options: &WorkerLoss, report: &mut Report) -> Result<(), Failure> {
    let mut jobs = Watch::<ProofJob>::begin(scene).await?;
    for round in 0..options.rounds {
        for loss in [Loss::DeletedPod, Loss::KilledAgent, Loss::SilentNode] {
            if options.node_command.is_none() && !matches!(loss, Loss::DeletedPod) {
                continue;
            }
            one_loss(scene, options, &mut jobs, loss, round, report).await?;
        }
    }
    Ok(())
}

async fn one_loss(
    scene: &Scene,
    options: &WorkerLoss,
    jobs: &mut Watch<ProofJob>,
    loss: Loss,
    round: u32,
    report: &mut Report,
) -> Result<(), Failure> {
    scene.await_workers().await?;
    let coordinator = scene.coordinator().await?;
    let name = format!("{}-{round}", loss.as_str().to_lowercase());
    let task = Duration::from_secs(options.task_seconds.into());
    let job = scene.job(&name, task)?;
    scene
        .api::<ProofJob>()
        .create(&PostParams::default(), &job)
        .await?;
    let runs = |job: &ProofJob| job.name_any() == name && phase(job) == Some(Phase::Running);
    jobs.until(&format!("{name} runs"), LIMIT, runs).await?;
    tokio::time::sleep(SETTLED).await;
    let victim = busy_worker(scene).await?;
    let before = metric(scene, &coordinator, ASSIGNMENTS).await?;

    let struck = strike(scene, options.node_command.as_deref(), loss, &victim).await?;
    let again = assigned_again(scene, &coordinator, before);
    let known = tokio::time::timeout(LIMIT, again)
        .await
        .map_err(|_| format!("{name}: nobody got the task within {LIMIT:?}"))??;
    report.add(&format!("{}Known", loss.as_str()), known.duration_since(struck));
    let ended = |job: &ProofJob| job.name_any() == name && phase(job).is_some_and(Phase::is_terminal);
    let end = jobs.until(&format!("{name} ends"), LIMIT + task, ended).await?;
    if phase(&end.object) != Some(Phase::Succeeded) {
        return Err(format!("{name} ended as {:?}", phase(&end.object)).into());
    }
    let since = end.at.duration_since(struck);
    let elsewhere = since
        .checked_sub(task)
        .ok_or_else(|| format!("{name} ended {since:?} after the loss: the task was not run again"))?;
    report.add(&format!("{}RunsElsewhere", loss.as_str()), elsewhere);
    // A container that ended waits longer from time to time before it starts again; a new pod does not.
    delete(scene, &victim).await
}

/// The only worker that runs something.
async fn busy_worker(scene: &Scene) -> Result<Pod, Failure> {
    let mut busy = Vec::new();
    for worker in scene.pods(names::WORKER).await? {
        if metric(scene, &worker.name_any(), "prover_agent_attempts_held").await? > 0.0 {
            busy.push(worker);
        }
    }
    let count = busy.len();
    match busy.pop() {
        Some(worker) if count == 1 => Ok(worker),
        _ => Err(format!("{count} of {WORKERS} workers run the only task").into()),
    }
}

/// Strikes and gives the moment before.
async fn strike(scene: &Scene, node: Option<&Path>, loss: Loss, victim: &Pod) -> Result<Instant, Failure> {
    let signal = match loss {
        Loss::DeletedPod => {
            let begin = Instant::now();
            delete(scene, victim).await?;
            return Ok(begin);
        }
        Loss::KilledAgent => "KILL",
        Loss::SilentNode => "STOP",
    };
    let node = node.ok_or("--node-command is needed to strike a process")?;
    let uid = victim.uid().ok_or("a pod without a UID")?;
    let output = Command::new(node)
        .args(["bash", "-c", STRIKE, "strike", signal, &uid])
        .output()
        .await?;
    let told = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("the agent of {} can't be struck: {words}", victim.name_any()).into());
    }
    let at = Duration::try_from_secs_f64(told.trim().parse()?)?;
    let ago = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + at)?;
    Ok(Instant::now()
        .checked_sub(ago)
        .ok_or("the node's clock is behind")?)
}

/// Sends a signal to the agent of a pod and prints the moment before, in seconds since 1970. Control groups name the
/// pod by its UID, systemd's with underscores.
const STRIKE: &str = r#"
for process in /proc/[0-9]*; do
  [ "$(cat "$process/comm" 2>/dev/null)" = prover-worker ] || continue
  tr _ - <"$process/cgroup" | grep -q "$2" || continue
  date +%s.%N
  exec kill -"$1" "${process#/proc/}"
done
echo "no prover-worker runs in pod $2" >&2
exit 1
"#;

/// Deletes a pod without grace, and never another one of the same name.
async fn delete(scene: &Scene, pod: &Pod) -> Result<(), Failure> {
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match scene.api::<Pod>().delete(&pod.name_any(), &parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn assigned_again(scene: &Scene, coordinator: &str, before: f64) -> Result<Instant, Failure> {
    while metric(scene, coordinator, ASSIGNMENTS).await? <= before {
        tokio::time::sleep(LOOK).await;
    }
    Ok(Instant::now())
}
