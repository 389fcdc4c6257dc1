//! Work that a job's last plan did not take over from the plans before, although it was done.
//!
//! A planner that can't go on where it stopped begins anew, and the action cache answers what was done. What proof systems
//! group by the order of arrival may be grouped otherwise then: its keys are others, and it is done again.

use std::collections::HashSet;

/// A task that the action cache may answer, of any plan of its job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cacheable<'a> {
    pub(super) key: &'a str,
    /// The job ended with a plan that it belongs to.
    pub(super) planned: bool,
    /// It was run to its result.
    pub(super) made: bool,
}

/// Results that were made and not used by the last plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Again {
    /// The last plan asked for others.
    pub(super) regrouped: u64,
    /// The last plan asked for them, but they had made room for others in the cache.
    pub(super) evicted: u64,
}

/// Goes over the tasks of a job three times.
pub(super) fn count<'a, T: Iterator<Item = Cacheable<'a>>>(tasks: impl Fn() -> T) -> Again {
    let keys = |of: fn(&Cacheable<'_>) -> bool| -> HashSet<&'a str> {
        tasks().filter(of).map(|task| task.key).collect()
    };
    let asked = keys(|task| task.planned);
    let made_last = keys(|task| task.planned && task.made);
    let before = keys(|task| !task.planned && task.made);
    let among = |set: &HashSet<&str>| before.iter().filter(|key| set.contains(*key)).count() as u64;
    Again {
        regrouped: before.len() as u64 - among(&asked),
        evicted: among(&made_last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(tasks: &[(&str, bool, bool)]) -> (u64, u64) {
        let again = count(|| {
            tasks.iter().map(|(key, planned, made)| Cacheable {
                key,
                planned: *planned,
                made: *made,
            })
        });
        (again.regrouped, again.evicted)
    }

    #[test]
    fn what_the_cache_answered_and_what_is_new_is_not_done_again() {
        assert_eq!(counted(&[("a", true, true), ("b", true, true)]), (0, 0));
        assert_eq!(
            counted(&[("a", false, true), ("a", true, false), ("b", true, true)]),
            (0, 0)
        );
        // It had not been finished when the plan was dropped.
        assert_eq!(counted(&[("a", false, false), ("a", true, true)]), (0, 0));
    }

    #[test]
    fn what_the_last_plan_grouped_otherwise_is_told_from_what_had_left_the_cache() {
        assert_eq!(counted(&[("ab", false, true), ("bc", true, true)]), (1, 0));
        assert_eq!(counted(&[("a", false, true), ("a", true, true)]), (0, 1));
    }
}
