//! Bounded waits: a task for which there is never room, since smaller ones always take what becomes free, gets a
//! device that is emptied for it.
//!
//! Owns when that happens. How a device is emptied and kept is what suspects use already (placement).

use crate::action::Action;
use crate::bits::bits;
use crate::model::Milliseconds;
use crate::state::State;
use crate::tasks::Stage;
use crate::timers::Timer;

impl State {
    /// Notes which classes have begun to wait, and sees to it that somebody looks whether they wait for too long.
    pub(crate) fn watch_waiting(&mut self) {
        let queued = self.tenant_order.mask() & !self.classes.control;
        let begun = queued & !std::mem::replace(&mut self.waiting_classes, queued);
        for class in bits(begun) {
            self.classes.entries[class as usize].served_at = self.now;
        }
        if begun != 0 && self.aging_timer.is_none() && self.limits.longest_passed_over > Milliseconds(0) {
            self.set_aging_timer();
        }
    }

    fn set_aging_timer(&mut self) {
        let classes = bits(self.waiting_classes).map(|class| self.classes.entries[class as usize].served_at);
        let Some(first) = classes.min() else { return };
        let at = (first + self.limits.longest_passed_over).max(self.now + Milliseconds(1));
        self.aging_timer = Some(at);
        self.timers.set(at, Timer::Aging);
    }

    /// Classes whose first task has been passed over for too long get a device emptied for that task.
    pub(crate) fn aging_due(&mut self, out: &mut Vec<Action>) {
        self.aging_timer = None;
        for class in bits(self.waiting_classes) {
            let entry = &self.classes.entries[class as usize];
            if entry.served_at + self.limits.longest_passed_over > self.now {
                continue;
            }
            // Whatever comes of it, it is looked at again after another such span.
            self.classes.entries[class as usize].served_at = self.now;
            if let Some(job) = self.passed_over(class) {
                self.empty_a_device_for(job, class, out);
            }
        }
        self.set_aging_timer();
    }

    /// The job whose task of a class is not passed over for its priority or its share, but for lack of room.
    fn passed_over(&self, class: u32) -> Option<u32> {
        let bit = 1u64 << class;
        let rivals = self
            .workers
            .iter()
            .map(|(_, worker)| worker.fits)
            .filter(|fits| fits & bit != 0)
            .fold(0, |rivals, fits| rivals | fits)
            & !self.classes.control;
        let tenant = self.tenant_order.first(rivals)?;
        if self.tenant_order.first(bit)? != tenant {
            return None;
        }
        let jobs = &self.tenants[tenant.index as usize].jobs;
        let (first, own) = (jobs.first(rivals)?, jobs.first(bit)?);
        (first.group == own.group).then_some(own.index)
    }

    fn empty_a_device_for(&mut self, job: u32, class: u32, out: &mut Vec<Action>) {
        let Some(task) = self.pop(job, 1 << class) else {
            return;
        };
        assert!(self.tasks[task].stage == Stage::Ready, "what is queued is ready");
        self.republish(job);
        self.tasks[task].alone = true;
        self.tasks[task].picky = true;
        self.picky.insert(task);
        self.control_wanted = true;
        self.record_counts(task, out);
    }
}
