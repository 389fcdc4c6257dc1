//! Names as SP1 sees them on a device.
//!
//! One prover with its keys serves all attempts of a device, and what it asks for carries no hint of the task it asks for.
//! So each name that a task is given says whose it is: `@17@record`. Names that a task makes up itself are plain.

/// A name of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed<'a> {
    /// The attempt in whose name the agent is asked.
    pub attempt: u64,
    /// The artifact's name, or a task's request id.
    pub name: &'a str,
}

/// The name as it is given to SP1.
#[must_use]
pub fn routed(attempt: u64, name: &str) -> String {
    format!("@{attempt}@{name}")
}

/// Whose name it is; none where a task made it up.
#[must_use]
pub fn parse(id: &str) -> Option<Routed<'_>> {
    let (attempt, name) = id.strip_prefix('@')?.split_once('@')?;
    Some(Routed {
        attempt: attempt.parse().ok()?,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_it_is() {
        let id = routed(u64::MAX, "a1-record@7");
        let parsed = parse(&id).expect("routed");
        assert_eq!((parsed.attempt, parsed.name), (u64::MAX, "a1-record@7"));
    }

    #[test]
    fn names_that_a_task_made_up_belong_to_nobody() {
        for id in ["p-1", "@", "@x@y", "", "17@record"] {
            assert_eq!(parse(id), None, "{id}");
        }
    }
}
