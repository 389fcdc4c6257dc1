//! The slots of the agent: one child for each device, and one for the control lane.
//!
//! The control lane has a child of its own, so that a prover that crashes never takes the planner with it. It is
//! started with the first attempt of that lane.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use prover_backend::limits::MAX_CONTROL_ATTEMPTS;
use prover_backend::protocol::backend_event::Event as Said;
use prover_backend::protocol::{BackendDescription, BackendEvent, Device};
use prover_wire::protocol::{DeviceChanged, FailureClass};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Agent;
use crate::attempt::Stage;
use crate::child::{
    ChildEnd, DEVICE_VARIABLE, Keeper, Killed, LastHeard, LocalRunner, LocalSettings, Meter, Runner,
    SupervisedRunner, Supervision,
};
use crate::config::{AgentConfig, BackendPlace, DeviceKind};
use crate::error::AgentError;
use crate::event::{ChildNews, Commands};
use crate::limits::QUEUED_SUPERVISORS;
use crate::service::Service;
use crate::usage::SharedClock;

/// Id of the slot of the control lane, for children and logs; on the wire it is empty.
const CONTROL: &str = "control";

/// Reason of a device that is usable again.
pub(super) const USABLE_AGAIN: &str = "its backend process runs again";

/// A child that is ready.
#[derive(Debug)]
pub(super) struct ReadyChild {
    pub(super) meter: Meter,
    pub(super) commands: Commands,
}

/// A device, or the control lane.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) device: Device,
    pub(super) child: Option<ReadyChild>,
    /// Attempts that the child has.
    pub(super) in_child: BTreeSet<u64>,
    pub(super) clock: SharedClock,
    /// Why it takes no attempts.
    pub(super) unusable: Option<String>,
    /// It was unusable at some time: a coordinator may not have heard that it is usable again.
    pub(super) was_unusable: bool,
    /// Nothing is there that could start its child: its container does not run.
    absent: bool,
    pub(super) keeper: Option<JoinHandle<()>>,
    pub(super) kill: Option<mpsc::Sender<Killed>>,
    /// Its child has been ready or given up at least once.
    settled: bool,
}

impl Slot {
    /// All slots of a worker, the control lane last.
    pub(super) fn of(config: &AgentConfig) -> Vec<Self> {
        let device = |id: String, kind: DeviceKind| Self {
            device: Device {
                id,
                class: kind.backend().into(),
                product: String::new(),
                vram_bytes: 0,
                host_memory_bytes: config.host_memory_bytes,
            },
            child: None,
            in_child: BTreeSet::new(),
            clock: SharedClock::default(),
            unusable: None,
            was_unusable: false,
            absent: false,
            keeper: None,
            kill: None,
            settled: false,
        };
        let name = config.device_kind.name();
        let mut slots: Vec<Self> = (0..config.devices)
            .map(|index| device(format!("{name}-{index}"), config.device_kind))
            .collect();
        slots.push(device(CONTROL.to_owned(), DeviceKind::Cpu));
        slots
    }

    pub(super) fn is_control(&self) -> bool {
        self.device.id == CONTROL
    }

    /// Whether an assignment to this device id is for this slot.
    pub(super) fn serves(&self, device_id: &str) -> bool {
        if device_id.is_empty() {
            self.is_control()
        } else {
            !self.is_control() && self.device.id == device_id
        }
    }

    /// Attempts that its child takes at once.
    pub(super) fn capacity(&self, backend: &BackendDescription) -> usize {
        if self.is_control() {
            MAX_CONTROL_ATTEMPTS
        } else {
            backend.attempts_at_once as usize
        }
    }

    /// Has the child killed; its keeper starts another one.
    pub(super) fn kill(&self, why: Killed) {
        if let Some(kill) = &self.kill {
            // A full queue means that it is being killed already.
            let _ = kill.try_send(why);
        }
    }
}

impl Agent {
    /// Listens for the child of a slot and keeps it running.
    pub(super) fn start_keeper(&mut self, index: usize) -> Result<(), AgentError> {
        let device = self.slots[index].device.clone();
        let socket = match &self.config.backend {
            BackendPlace::Command(_) => self.work.socket(index),
            BackendPlace::Sockets(directory) => directory.join(format!("{}.sock", device.id)),
        };
        let (opened_sender, opened) = mpsc::channel(1);
        let (kill_sender, kill) = mpsc::channel(1);
        let heard = LastHeard::new();
        let (runner, supervision) = self.runner(&device.id, &socket);
        let service = Service {
            slot: index,
            device: device.clone(),
            events: self.events.clone(),
            opened: opened_sender,
            heard: heard.clone(),
            store: self.store.clone(),
            metrics: self.metrics.clone(),
        };
        // The socket outlives the child by as long as the child needs to end.
        let socket_stop = CancellationToken::new();
        service
            .listen(supervision, &socket, socket_stop.clone())
            .map_err(|source| AgentError::Listen {
                path: socket.clone(),
                source,
            })?;
        let keeper = Keeper {
            slot: index,
            device_id: device.id,
            runner,
            events: self.events.clone(),
            opened,
            heard,
            kill,
            stop: self.stop.clone(),
            leave: self.leave.clone(),
        };
        let slot = &mut self.slots[index];
        slot.kill = Some(kill_sender);
        slot.keeper = Some(tokio::spawn(async move {
            keeper.run().await;
            socket_stop.cancel();
        }));
        Ok(())
    }

    /// What runs the processes of a slot, and the service that it needs.
    fn runner(&self, device_id: &str, socket: &Path) -> (Box<dyn Runner>, Option<Supervision>) {
        let mut environment = self.config.environment.clone();
        environment.extend([
            (
                prover_backend::AGENT_SOCKET_VARIABLE.to_owned(),
                socket.to_string_lossy().into_owned(),
            ),
            (DEVICE_VARIABLE.to_owned(), device_id.to_owned()),
            (
                prover_backend::DEVICE_CLASS_VARIABLE.to_owned(),
                self.config.device_kind.name().to_owned(),
            ),
        ]);
        let device_id = device_id.to_owned();
        match &self.config.backend {
            BackendPlace::Command(program) => {
                let settings = LocalSettings {
                    program: program.clone(),
                    launcher: self.config.launcher.clone(),
                    passed_on: self.config.passed_on.clone(),
                    environment,
                    device_id,
                };
                let runner = LocalRunner::new(settings, self.starter.clone(), self.host.clone());
                (Box::new(runner), None)
            }
            BackendPlace::Sockets(_) => {
                let (linked, links) = mpsc::channel(QUEUED_SUPERVISORS);
                let runner =
                    SupervisedRunner::new(device_id.clone(), environment.into_iter().collect(), links);
                (Box::new(runner), Some(Supervision { device_id, linked }))
            }
        }
    }

    /// Whether each device has a ready child or has been given up; then the coordinator can be told.
    pub(super) fn children_are_settled(&self) -> Result<bool, AgentError> {
        let devices = || self.slots.iter().filter(|slot| !slot.is_control());
        // A container that does not run yet is waited for, however long its image takes to come.
        let problems = devices().map(|slot| slot.unusable.as_ref().filter(|_| !slot.absent));
        if let Some([first, ..]) = problems.collect::<Option<Vec<_>>>().as_deref() {
            return Err(AgentError::StartBackend {
                problem: (*first).clone(),
            });
        }
        Ok(self.backend.is_some() && devices().all(|slot| slot.settled))
    }

    pub(super) fn child_news(&mut self, slot: usize, news: ChildNews) {
        match news {
            ChildNews::Ready {
                meter,
                commands,
                description,
            } => {
                self.child_ready(slot, meter, commands, &description);
            }
            ChildNews::Event(event) => self.child_says(slot, *event),
            ChildNews::Ended(end) => self.child_ended(slot, &end),
            ChildNews::Unstartable { problem } => {
                self.slots[slot].absent = false;
                self.unusable(slot, &problem);
            }
            ChildNews::Absent { problem } => {
                self.slots[slot].absent = true;
                self.unusable(slot, &problem);
            }
        }
    }

    fn child_ready(
        &mut self,
        index: usize,
        meter: Meter,
        commands: Commands,
        described: &BackendDescription,
    ) {
        let device_id = self.slots[index].device.id.clone();
        self.metrics
            .children_started
            .with_label_values(&[&device_id])
            .inc();
        let backend = self
            .backend
            .get_or_insert_with(|| Arc::new(described.clone()))
            .clone();
        if *backend != *described {
            let problem = format!(
                "its child is {} {}, but this worker serves {} {}: the backend's program was replaced under a \
                 running worker. Restart the worker",
                described.name, described.version, backend.name, backend.version
            );
            self.unusable(index, &problem);
            return;
        }
        let slot = &mut self.slots[index];
        slot.settled = true;
        slot.absent = false;
        slot.child = Some(ReadyChild { meter, commands });
        let was_unusable = slot.unusable.take().is_some();
        let told = was_unusable && !slot.is_control();
        self.metrics.device_usable.with_label_values(&[&device_id]).set(1);
        if told {
            self.send(DeviceChanged {
                device_id,
                usable: true,
                reason: USABLE_AGAIN.to_owned(),
            });
        }
        self.start_what_can(index);
    }

    fn unusable(&mut self, index: usize, problem: &str) {
        let slot = &mut self.slots[index];
        let device_id = slot.device.id.clone();
        let told = !slot.is_control();
        tracing::error!(device = device_id, problem, "the device is unusable");
        slot.settled = true;
        slot.child = None;
        slot.unusable = Some(prover_wire::limits::cut_text(problem));
        slot.was_unusable = true;
        self.metrics.device_usable.with_label_values(&[&device_id]).set(0);
        if told {
            let reason = prover_wire::limits::cut_text(problem);
            self.send(DeviceChanged {
                device_id,
                usable: false,
                reason,
            });
        }
        let waiting: Vec<u64> = self
            .attempts
            .values()
            .filter(|attempt| attempt.slot == index && !attempt.stage.has_started())
            .map(|attempt| attempt.assign.attempt_id)
            .collect();
        for id in waiting {
            if told {
                // Nobody's fault, and the coordinator gives this device nothing more.
                self.give_back(id);
            } else {
                // It does not know of the lane: given back, a planner would come again at once.
                self.fail(id, FailureClass::Retryable, "DeviceUnusable", problem, None);
            }
        }
    }

    fn child_ended(&mut self, index: usize, end: &ChildEnd) {
        self.read_clock(index);
        let slot = &mut self.slots[index];
        slot.child = None;
        let device_id = slot.device.id.clone();
        let lost: Vec<u64> = slot.in_child.iter().copied().collect();
        self.metrics
            .children_ended
            .with_label_values(&[device_id.as_str(), end.reason])
            .inc();
        if end.class.is_some() {
            tracing::warn!(
                device = device_id,
                reason = end.reason,
                attempts = lost.len(),
                "{}",
                end.message
            );
        }
        for id in lost {
            let stopping = self
                .attempts
                .get(&id)
                .is_some_and(|attempt| matches!(attempt.stage, Stage::Stopping));
            match end.class {
                Some(class) if !stopping => self.fail(id, class, end.reason, &end.message, None),
                _ => self.stopped(id),
            }
        }
    }

    fn child_says(&mut self, slot: usize, event: BackendEvent) {
        let Some(said) = event.event else { return };
        let id = match &said {
            Said::Hello(_) | Said::Pulse(_) => return,
            Said::Progress(progress) => progress.attempt_id,
            Said::Completed(completed) => completed.attempt_id,
            Said::Failed(failed) => failed.attempt_id,
            Said::Stopped(stopped) => stopped.attempt_id,
        };
        // A child speaks for the attempts that it has, and for no others.
        if !self.slots[slot].in_child.contains(&id) {
            tracing::debug!(
                slot,
                attempt = id,
                "a backend speaks of an attempt that it does not have"
            );
            return;
        }
        match said {
            Said::Hello(_) | Said::Pulse(_) => {}
            Said::Progress(progress) => self.progressed(&progress),
            Said::Completed(completed) => self.child_completed(completed),
            Said::Failed(failed) => self.child_failed(&failed),
            Said::Stopped(_) => self.child_stopped(id),
        }
    }

    /// Divides the time on the slot's device among what runs there, up to now.
    pub(super) fn read_clock(&mut self, index: usize) {
        let now = self.started.elapsed();
        let slot = &mut self.slots[index];
        let cpu = slot.child.as_ref().and_then(|child| child.meter.cpu());
        let busy = slot.clock.read(now, cpu);
        let busy = u64::try_from(busy.as_millis()).unwrap_or(u64::MAX);
        self.metrics
            .device_busy
            .with_label_values(&[&slot.device.id])
            .inc_by(busy);
    }
}
