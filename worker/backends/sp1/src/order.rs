//! The order in which the executor hears of its shards' deferred events.
//!
//! SP1 groups precompile events in the order in which shards answer, so that a second run would form other groups and prove
//! them again. Shards of a program follow each other without a gap on the executor's clock: told in that order, the same
//! program and input make the same groups. A group waits for shards before it, never the other way round, so nothing
//! can wait in a circle.

use std::collections::BTreeMap;

/// Where the executor's clock begins.
const FIRST: u64 = 1;

/// Answers that wait for those before them.
#[derive(Debug)]
pub struct InOrder<T> {
    next: u64,
    waiting: BTreeMap<u64, (u64, T)>,
}

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self {
            next: FIRST,
            waiting: BTreeMap::new(),
        }
    }
}

impl<T> InOrder<T> {
    /// Takes the answer of the shard from `start` to `end`, and gives back what can be told now.
    pub fn push(&mut self, start: u64, end: u64, answer: T) -> Vec<T> {
        self.waiting.insert(start, (end, answer));
        let mut ready = Vec::new();
        while let Some(first) = self.waiting.first_entry() {
            if *first.key() > self.next {
                break;
            }
            let (end, answer) = first.remove();
            self.next = self.next.max(end);
            ready.push(answer);
        }
        ready
    }

    /// No other shards will come: all that is left, in order.
    pub fn finish(&mut self) -> Vec<T> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_values().map(|(_, answer)| answer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_told_in_the_order_of_the_program_whenever_they_answer() {
        let shards = [(1, 10), (10, 25), (25, 26), (26, 90)];
        for rotation in 0..shards.len() {
            let mut order = InOrder::default();
            let mut told = Vec::new();
            for at in 0..shards.len() {
                let (start, end) = shards[(at + rotation) % shards.len()];
                told.extend(order.push(start, end, start));
            }
            assert_eq!(told, [1, 10, 25, 26]);
            assert!(order.finish().is_empty());
        }
    }

    #[test]
    fn what_never_becomes_due_is_told_at_the_end() {
        let mut order = InOrder::default();
        assert!(order.push(40, 50, "b").is_empty());
        assert!(order.push(20, 30, "a").is_empty());
        assert_eq!(order.finish(), ["a", "b"]);
    }

    #[test]
    fn a_shard_that_answers_twice_stops_nothing() {
        let mut order = InOrder::default();
        assert_eq!(order.push(1, 5, 'a'), ['a']);
        assert_eq!(order.push(1, 5, 'a'), ['a']);
        assert_eq!(order.push(5, 6, 'b'), ['b']);
    }
}
