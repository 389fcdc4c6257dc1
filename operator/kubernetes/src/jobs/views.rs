//! What the coordinator shows of its jobs, and the end of jobs that it had.

use prover_coordinator::{Milliseconds, Phase};

use super::Jobs;
use super::entry::{Stage, SweepReason};
use crate::collect::kept;
use crate::status::Situation;
use crate::write_plan::interval;
use crate::writer::JobName;

impl Jobs {
    pub(super) async fn viewed(&mut self, name: &JobName) {
        self.refresh(name, false).await;
    }

    /// Looks at the latest view of a job. Where only progress changed, the status is made when it may be written.
    pub(super) async fn refresh(&mut self, name: &JobName, due: bool) {
        let now = self.now();
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let Stage::Taken { handle, .. } = &job.stage else {
            return;
        };
        let view = handle.view();
        let changed = job.shown != Some(view.phase);
        if !changed && !due {
            let last = self.writer.last_write(name);
            let next = last.map(|last| last + interval(view.phase == Phase::Queued));
            if let Some(next) = next.filter(|next| *next > now) {
                self.set_timer(name, next);
                return;
            }
        }
        if changed && job.shown != Some(Phase::Suspended) && view.phase == Phase::Running {
            let Milliseconds(waited) = view.started_at.unwrap_or(now) - job.seen_at;
            self.parts
                .metrics
                .start_seconds
                .observe(std::time::Duration::from_millis(waited).as_secs_f64());
        }
        job.shown = Some(view.phase);
        let ended = view.phase.is_terminal();
        let gone = job.gone;
        job.situation = Situation::Taken(view);
        if ended {
            self.count(name, false);
            self.free_slot(name);
        }
        match (gone, ended) {
            (false, _) => self.show(name),
            (true, true) => self.end_written(name).await,
            (true, false) => {}
        }
    }

    /// The API server has the end of a job, or its object is gone: the coordinator may forget it.
    pub(super) async fn end_written(&mut self, name: &JobName) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let collect = job.deleting || job.gone;
        match &job.stage {
            Stage::Taken { handle, .. } => {
                if !handle.view().phase.is_terminal() {
                    return;
                }
                // A coordinator that has stopped has forgotten everything.
                let _ = handle.clone().forget().await;
            }
            Stage::Ended => {}
            Stage::Collected(SweepReason::RetentionOver) if collect && self.writer.is_settled(name) => {
                // It was deleted meanwhile: there is nothing left, but that must be told.
                job.stage = Stage::Collecting {
                    keep: Some(Vec::new()),
                    reason: SweepReason::Deleted,
                };
                self.sweep_queue.insert(name.clone());
                return;
            }
            Stage::Collected(_) if self.writer.is_settled(name) => {
                self.done.insert(name.clone());
                self.remove(name);
                return;
            }
            _ => return,
        }
        if collect {
            let latest = self.writer.latest(name);
            let keep = match &job.situation {
                Situation::Taken(view) => {
                    let proof = view.proof.iter().map(|proof| proof.proof.key.to_string());
                    let values = view.public_values.iter().map(|values| values.key.to_string());
                    proof.chain(values).collect()
                }
                _ => latest
                    .map(|status| kept(&status, &self.parts.store_uri))
                    .unwrap_or_default(),
            };
            job.stage = Stage::Collecting {
                keep: Some(keep),
                reason: SweepReason::Deleted,
            };
            self.sweep_queue.insert(name.clone());
        } else {
            self.done.insert(name.clone());
            if let Some(status) = self.writer.latest(name) {
                self.retained.note(name, &status);
            }
            self.remove(name);
        }
    }
}
