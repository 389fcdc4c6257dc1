//! Kills processes of a run, and judges from its report what that has cost.

use std::ops::RangeInclusive;
use std::time::SystemTime;

use serde_json::Value;

use crate::processes::Process;
use crate::run::Running;

/// What was known when processes were killed.
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    at: SystemTime,
    /// The kill before this one: tasks that ended between the two may have been repeated for it.
    earlier: Option<SystemTime>,
    done_before: u64,
}

impl Kill {
    /// Kills the processes, with the state of the job noted just before.
    ///
    /// # Panics
    /// There is none to kill.
    pub fn of<'a>(running: &Running, victims: impl Iterator<Item = &'a Process>) -> Self {
        let kill = Kill {
            at: SystemTime::now(),
            earlier: None,
            done_before: running.tasks_done(),
        };
        let killed = victims.map(Process::kill).count();
        assert!(killed > 0, "there is no process to kill: {}", running.stderr());
        kill
    }

    /// The same kill, as one that followed on another.
    #[must_use]
    pub fn after(self, earlier: &Kill) -> Self {
        Kill {
            earlier: Some(earlier.at),
            ..self
        }
    }

    /// All tasks succeeded. Those that had before the kill have one attempt and ended before it, and they are at
    /// least as many as the progress showed then. As many others as `repeated` says needed more than one attempt.
    ///
    /// # Panics
    /// It is not so.
    pub fn expect_nothing_finished_ran_again(&self, report: &Value, repeated: RangeInclusive<usize>) {
        let tasks = report["tasks"].as_array().expect("the report has tasks");
        assert!(
            tasks.iter().all(|task| task["state"] == "Succeeded"),
            "{tasks:#?}"
        );
        let mut names: Vec<&str> = tasks
            .iter()
            .filter_map(|task| task["requestId"].as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), tasks.len(), "a task was submitted twice: {tasks:#?}");
        let (before, after): (Vec<&Value>, Vec<&Value>) =
            tasks.iter().partition(|task| ended_at(task) <= self.at);
        assert!(
            before.len() as u64 >= self.done_before,
            "{} tasks were done before the kill, but only {} ended before it: the others ran again",
            self.done_before,
            before.len()
        );
        let again: Vec<&&Value> = before
            .iter()
            .filter(|task| {
                task["attempts"] != 1 && self.earlier.is_none_or(|earlier| ended_at(task) <= earlier)
            })
            .collect();
        assert!(again.is_empty(), "tasks that were finished ran again: {again:#?}");
        let others = after.iter().filter(|task| task["attempts"] != 1).count();
        assert!(
            repeated.contains(&others),
            "{others} tasks needed more than one attempt, where {repeated:?} were expected: {after:#?}"
        );
    }
}

fn ended_at(task: &Value) -> SystemTime {
    let text = task["endedAt"].as_str().unwrap_or_default();
    let timestamp: jiff::Timestamp = text
        .parse()
        .unwrap_or_else(|error| panic!("endedAt {text:?}: {error}"));
    timestamp.into()
}
