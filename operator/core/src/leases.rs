//! Workers come and go: connections, heartbeats, leases and what a reconnecting worker still has.

use crate::action::{Action, Refusal, StopReason};
use crate::attempts::{Lease, NO_DEVICE, Place};
use crate::fact::Fact;
use crate::model::{AttemptId, DeviceIndex, HeldAttempt, WorkerId, WorkerSpec};
use crate::slab::NONE;
use crate::state::State;
use crate::strays::lease_lost;
use crate::tasks::Stage;
use crate::timers::Timer;
use crate::workers::Worker;

impl State {
    pub(crate) fn worker_connected(
        &mut self,
        id: WorkerId,
        spec: Box<WorkerSpec>,
        held: &[HeldAttempt],
        out: &mut Vec<Action>,
    ) {
        if let Some(worker) = self.worker_by_id.get(&id).copied()
            && *self.workers[worker].spec != *spec
        {
            self.remove_worker(worker, "the worker came back as another one", out);
        }
        let name = spec.name.clone();
        let worker = match self.worker_by_id.get(&id).copied() {
            Some(worker) => worker,
            None => {
                let limit = self.limits.workers;
                if self.workers.len() >= limit {
                    let refusal = Refusal::LimitExceeded {
                        what: "workers",
                        limit: limit as u64,
                    };
                    return out.push(Action::WorkerRefused { worker: id, refusal });
                }
                let group = self.group_of(&spec.group);
                let worker = self.workers.insert(Worker::new(id, spec, group, self.now));
                self.worker_by_id.insert(id, worker);
                self.group_member(worker, true);
                if !self.awaited_worker_came(&name, out) {
                    self.record(out, || Fact::WorkerJoined { name: name.clone() });
                }
                worker
            }
        };
        self.cancel_grace(worker);
        let entry = &mut self.workers[worker];
        entry.connected = true;
        entry.alive = true;
        entry.draining = false;
        entry.told_empty = false;
        self.heard(worker);
        self.forget_strays(worker);
        let attempts: Vec<u32> = self.workers[worker].attempts().collect();
        for attempt in attempts {
            let attempt_id = self.attempt_id(attempt);
            if !held.iter().any(|held| held.attempt == attempt_id) {
                self.lose(attempt, "the worker reconnected without the attempt", out);
            }
        }
        self.refresh_fit(worker);
        for held in held.iter().filter(|held| held.completed) {
            if let Some(attempt) = self.find_attempt(held.attempt)
                && self.attempts[attempt].worker_id == id
            {
                self.leave_slot(attempt);
            }
        }
        for held in self.held_in_order(held) {
            self.still_held(worker, held, out);
        }
        self.end_recovery_if_complete(out);
    }

    /// What to do about an attempt that a worker says it has.
    fn still_held(&mut self, worker: u32, held: HeldAttempt, out: &mut Vec<Action>) {
        let worker_id = self.workers[worker].id;
        let id = held.attempt;
        let known = self.find_attempt(id);
        if known.is_none() && self.adopt(worker, held, out) {
            return;
        }
        let Some(attempt) = known.filter(|found| self.attempts[*found].worker_id == worker_id) else {
            // Its result may have been accepted by the leader before.
            let task = self.tasks.find(held.task.0);
            let accepted = known.is_none() && task.is_some_and(|task| self.tasks[task].accepted == id.0);
            if held.completed {
                return out.push(Action::CompletionJudged {
                    worker: worker_id,
                    attempt: id,
                    accepted,
                });
            }
            return self.stop_stray(worker, id, out);
        };
        self.attempts[attempt].confirmed_at = self.now;
        match self.attempts[attempt].lease {
            Lease::Held if held.started => self.attempt_started(id, out),
            Lease::Held => {}
            Lease::Stopping(reason) => out.push(Action::Stop {
                worker: worker_id,
                attempt: id,
                reason,
            }),
            Lease::Ended(accepted) if held.completed => {
                out.push(Action::CompletionJudged {
                    worker: worker_id,
                    attempt: id,
                    accepted,
                });
            }
            Lease::Ended(_) => self.stop_stray(worker, id, out),
            // A completion is on its way: it is judged when it comes.
            Lease::Lost if held.completed => {}
            Lease::Lost => self.take_back(attempt, worker, held.started, out),
        }
    }

    /// A lost attempt still runs. It gets its lease again if its task has found no other worker; else it is
    /// stopped, and holds its place until it has left.
    fn take_back(&mut self, attempt: u32, worker: u32, started: bool, out: &mut Vec<Action>) {
        let task = self.attempts[attempt].task;
        let id = self.attempt_id(attempt);
        let job = self.tasks[task].job;
        // A task that moved to another class, or that must run alone now, waits for a place of its own.
        let entry = &self.tasks[task];
        let wanted = matches!(entry.stage, Stage::Ready | Stage::Backoff)
            && self.jobs[job].may_run()
            && !self.attempts[attempt].discarded
            && entry.class == self.attempts[attempt].class
            && !entry.alone;
        let place = self.place_again(attempt, worker, started, wanted);
        let Some(place) = place else {
            return self.stop_stray(worker, id, out);
        };
        self.stray_ended(id);
        self.attempts[attempt].worker = worker;
        let device = self.attempts[attempt].device;
        self.put(attempt, worker, device, place);
        if place == Place::Control {
            let class = self.attempts[attempt].class;
            // A stopped one holds its own memory only; a wanted root holds its chain again.
            if wanted {
                self.book_control(attempt, worker, class);
            } else {
                self.book_own(attempt, worker);
            }
        }
        self.mark_dirty(worker);
        if !wanted {
            return self.stop_attempt(attempt, StopReason::LeaseLost, out);
        }
        self.take_out(task);
        self.set_stage(task, Stage::Active);
        self.tasks[task].current = attempt;
        self.attempts[attempt].lease = Lease::Held;
        self.attempts[attempt].regained = true;
        self.tasks[task].fence = self.attempts[attempt].number - 1;
        self.record_counts(task, out);
        if self.jobs[job].root == task {
            self.root_started(job, out);
        }
        if started {
            self.attempts[attempt].started_at = None;
            self.attempt_started(id, out);
        }
    }

    pub(crate) fn book_own(&mut self, attempt: u32, worker: u32) {
        let bytes = self.attempts[attempt].needs_host_bytes;
        let holder = &mut self.workers[worker];
        holder.host_free -= bytes;
        holder.parents_bytes += bytes;
        self.attempts[attempt].host_bytes = bytes;
        self.refresh_leaf_fit(worker);
    }

    /// Where a lost attempt still fits. One that is not wanted any more needs its place all the same until it
    /// has been stopped, unless it was only fetched ahead.
    pub(crate) fn place_again(
        &self,
        attempt: u32,
        worker: u32,
        started: bool,
        wanted: bool,
    ) -> Option<Place> {
        let entry = &self.attempts[attempt];
        let holder = &self.workers[worker];
        if entry.place != Place::None {
            return None;
        }
        if entry.device == NO_DEVICE {
            let bytes = if wanted {
                self.classes.host_bytes[usize::from(entry.class)]
            } else {
                entry.needs_host_bytes
            };
            let free = holder.host_free >= bytes && !(wanted && self.jobs[entry.job].reservation.is_some());
            return free.then_some(Place::Control);
        }
        let device = holder.devices.get(usize::from(entry.device))?;
        if device.reserved_for != NONE && wanted {
            return None;
        }
        let slot = device.running.len() < usize::from(device.slots)
            && holder.host_free >= entry.needs_host_bytes
            && device.vram_free >= entry.needs_vram_bytes;
        if slot {
            return Some(Place::Slot);
        }
        let room = self.device_room(holder, device)?;
        let ahead = !started
            && wanted
            && room.tier == crate::classes::TIER_AHEAD
            && entry.needs_host_bytes <= room.host_bytes
            && entry.needs_vram_bytes <= room.vram_bytes;
        ahead.then_some(Place::Ahead)
    }

    /// The worker was heard of: its leases hold for another span.
    fn heard(&mut self, worker: u32) {
        let id = self.workers.id(worker);
        let entry = &mut self.workers[worker];
        entry.last_heard = self.now;
        // One timer per worker, set anew only when it runs out: a heartbeat costs no timer.
        if entry.lease_timer.is_none() {
            let at = self.now + self.limits.lease;
            entry.lease_timer = Some(at);
            self.timers.set(at, Timer::Lease(id));
        }
    }

    pub(crate) fn lease_due(&mut self, id: u64, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.find(id) else {
            return;
        };
        self.workers[worker].lease_timer = None;
        if !self.workers[worker].connected || !self.workers[worker].alive {
            return;
        }
        let at = self.workers[worker].last_heard + self.limits.lease;
        if at > self.now {
            self.workers[worker].lease_timer = Some(at);
            self.timers.set(at, Timer::Lease(id));
            return;
        }
        self.workers[worker].alive = false;
        let placed: Vec<u32> = self.workers[worker].attempts().collect();
        for attempt in placed {
            self.add_stray(worker, self.attempt_id(attempt));
        }
        self.lose_all(worker, "the worker was silent for longer than its lease", out);
        self.refresh_fit(worker);
    }

    pub(crate) fn worker_heartbeat(&mut self, id: WorkerId, held: &[AttemptId], out: &mut Vec<Action>) {
        let Some(worker) = self.worker_by_id.get(&id).copied() else {
            // Nothing is known of it: whatever it runs, it has lost the leases.
            for attempt in held {
                out.push(lease_lost(id, *attempt));
            }
            return;
        };
        if !self.workers[worker].connected {
            return;
        }
        let was_alive = self.workers[worker].alive;
        self.heard(worker);
        if !was_alive {
            self.workers[worker].alive = true;
            self.stop_underway(worker, held, out);
            self.refresh_fit(worker);
        }
        for attempt_id in held {
            self.heartbeat_of(worker, *attempt_id, out);
        }
        let span = self.limits.lease;
        let missing: Vec<u32> = self.workers[worker]
            .attempts()
            .filter(|attempt| {
                let entry = &self.attempts[*attempt];
                entry.confirmed_at + span < self.now && entry.place != Place::None
            })
            .collect();
        for attempt in missing {
            self.lose(attempt, "the worker does not hold the attempt any more", out);
            self.stop_stray(worker, self.attempt_id(attempt), out);
        }
    }

    /// What a silent worker was given may still be on its way to it, though the lease is lost: it must be gone before
    /// anything else comes and takes the same room.
    fn stop_underway(&self, worker: u32, held: &[AttemptId], out: &mut Vec<Action>) {
        let id = self.workers[worker].id;
        for attempt in self.strays_of(worker) {
            if !held.contains(&attempt) {
                out.push(lease_lost(id, attempt));
            }
        }
    }

    fn heartbeat_of(&mut self, worker: u32, id: AttemptId, out: &mut Vec<Action>) {
        let worker_id = self.workers[worker].id;
        let found = self
            .find_attempt(id)
            .filter(|found| self.attempts[*found].worker_id == worker_id);
        match found {
            Some(attempt) if self.attempts[attempt].lease == Lease::Lost => {
                let started = self.attempts[attempt].started_at.is_some();
                self.attempts[attempt].confirmed_at = self.now;
                self.take_back(attempt, worker, started, out);
            }
            Some(attempt) => self.attempts[attempt].confirmed_at = self.now,
            None => self.stop_stray(worker, id, out),
        }
    }

    pub(crate) fn worker_disconnected(&mut self, id: WorkerId) {
        let Some(worker) = self.worker_by_id.get(&id).copied() else {
            return;
        };
        if !std::mem::replace(&mut self.workers[worker].connected, false) {
            return;
        }
        let at = self.now + self.limits.reconnect_grace;
        self.workers[worker].grace_until = Some(at);
        self.timers.set(at, Timer::Grace(self.workers.id(worker)));
        self.refresh_fit(worker);
    }

    fn cancel_grace(&mut self, worker: u32) {
        let id = self.workers.id(worker);
        if let Some(at) = self.workers[worker].grace_until.take() {
            self.timers.cancel(at, Timer::Grace(id));
        }
    }

    pub(crate) fn grace_due(&mut self, id: u64, out: &mut Vec<Action>) {
        if let Some(worker) = self.workers.find(id) {
            self.remove_worker(worker, "the worker did not reconnect in time", out);
        }
    }

    pub(crate) fn worker_gone(&mut self, id: WorkerId, out: &mut Vec<Action>) {
        if let Some(worker) = self.worker_by_id.get(&id).copied() {
            self.remove_worker(worker, "the worker is gone", out);
        }
    }

    fn lose_all(&mut self, worker: u32, why: &str, out: &mut Vec<Action>) {
        let heard = self.workers[worker].last_heard;
        for device in &mut self.workers[worker].devices {
            device.skip(heard, self.now);
        }
        let attempts: Vec<u32> = self.workers[worker].attempts().collect();
        for attempt in attempts {
            if self.attempts[attempt].place != Place::None {
                self.lose(attempt, why, out);
            }
        }
    }

    fn remove_worker(&mut self, worker: u32, why: &str, out: &mut Vec<Action>) {
        self.cancel_grace(worker);
        if let Some(at) = self.workers[worker].lease_timer.take() {
            self.timers.cancel(at, Timer::Lease(self.workers.id(worker)));
        }
        // Nothing may be placed here while its attempts are taken away.
        self.workers[worker].connected = false;
        self.refresh_fit(worker);
        self.lose_all(worker, why, out);
        self.forget_strays(worker);
        let room = self.room(worker);
        self.publish_room(worker, room);
        let entry = &self.workers[worker];
        assert!(entry.is_empty(), "a worker that is removed holds no attempts");
        assert!(
            entry.host_free == entry.spec.host_memory_bytes && entry.parents_bytes == 0,
            "an empty worker has all of its memory"
        );
        let (id, name) = (entry.id, entry.spec.name.clone());
        self.group_member(worker, false);
        self.record(out, || Fact::WorkerGone { name });
        self.workers.remove(worker);
        self.worker_by_id.remove(&id);
    }

    pub(crate) fn worker_draining(&mut self, id: WorkerId, out: &mut Vec<Action>) {
        let Some(worker) = self.worker_by_id.get(&id).copied() else {
            return;
        };
        self.workers[worker].draining = true;
        self.refresh_fit(worker);
        self.recall_ahead(worker, None, out);
    }

    pub(crate) fn worker_leaving_changed(&mut self, id: WorkerId, leaving: bool, out: &mut Vec<Action>) {
        let Some(worker) = self.worker_by_id.get(&id).copied() else {
            return;
        };
        if std::mem::replace(&mut self.workers[worker].leaving, leaving) == leaving {
            return;
        }
        self.refresh_fit(worker);
        if leaving {
            self.recall_ahead(worker, None, out);
        }
    }

    pub(crate) fn device_changed(
        &mut self,
        id: WorkerId,
        device: DeviceIndex,
        usable: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(worker) = self.worker_by_id.get(&id).copied() else {
            return;
        };
        let Some(entry) = self.workers[worker].devices.get_mut(usize::from(device.0)) else {
            return;
        };
        if std::mem::replace(&mut entry.usable, usable) == usable {
            return;
        }
        self.refresh_fit(worker);
        if !usable {
            self.recall_ahead(worker, Some(device.0), out);
        }
    }
}
