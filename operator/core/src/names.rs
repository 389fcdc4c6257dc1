//! Names of one job and what they stand for.
//!
//! A map of its own, since that of the standard library reads every name again whenever it grows: for a job of tens of
//! thousands of tasks that is milliseconds in which nothing else is decided. Here each entry keeps its hash.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::slab::NONE;

/// Entries of the smallest table.
const LEAST: usize = 8;
/// Odd, with bits that look random: the fraction of the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Clone, Debug)]
struct Entry {
    name: Option<Arc<str>>,
    hash: u32,
    value: u32,
}

impl Entry {
    const EMPTY: Entry = Entry {
        name: None,
        hash: 0,
        value: NONE,
    };
}

/// A map from names to indices, with open addressing; it is only looked up, never iterated.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// A power of two of them, at most three quarters of them full; none before the first name.
    entries: Vec<Entry>,
    length: usize,
    /// What is mixed into all hashes.
    seed: u64,
}

impl Names {
    /// `owner` makes the hashes of one job others than those of the next one, as the randomness of usual maps would,
    /// and still the same after a recovery: whoever wants names that collide must know their job.
    pub(crate) fn of(owner: &str) -> Names {
        let mut hasher = DefaultHasher::new();
        owner.hash(&mut hasher);
        Names {
            entries: Vec::new(),
            length: 0,
            seed: hasher.finish(),
        }
    }

    /// Names are short: this takes a fraction of what the usual hash takes.
    fn hash(&self, name: &str) -> u32 {
        let mut state = self.seed ^ name.len() as u64;
        let mut mix = |word: u64| {
            let product = u128::from(state ^ word) * u128::from(MULTIPLIER);
            state = (product >> 64) as u64 ^ product as u64;
        };
        let mut words = name.as_bytes().chunks_exact(8);
        for word in &mut words {
            mix(word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)));
        }
        mix(words
            .remainder()
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u64::from(*byte)));
        mix(self.seed);
        state as u32
    }

    /// Where a name is, or the empty entry where it belongs.
    fn find(&self, hash: u32, name: &str) -> usize {
        let mask = self.entries.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let entry = &self.entries[at];
            match &entry.name {
                None => return at,
                Some(known) if entry.hash == hash && **known == *name => return at,
                Some(_) => at = (at + 1) & mask,
            }
        }
    }

    fn entry(&self, name: &str) -> Option<(&Arc<str>, u32)> {
        if self.length == 0 {
            return None;
        }
        let entry = &self.entries[self.find(self.hash(name), name)];
        entry.name.as_ref().map(|known| (known, entry.value))
    }

    pub(crate) fn get(&self, name: &str) -> Option<u32> {
        self.entry(name).map(|(_, value)| value)
    }

    /// The name as it is kept here.
    pub(crate) fn known(&self, name: &str) -> Option<&Arc<str>> {
        self.entry(name).map(|(known, _)| known)
    }

    /// A name stands for this from now on.
    pub(crate) fn insert(&mut self, name: Arc<str>, value: u32) {
        if (self.length + 1) * 4 > self.entries.len() * 3 {
            self.grow();
        }
        let hash = self.hash(&name);
        let at = self.find(hash, &name);
        let entry = &mut self.entries[at];
        entry.value = value;
        if entry.name.is_none() {
            (entry.name, entry.hash) = (Some(name), hash);
            self.length += 1;
        }
    }

    /// A name stands for nothing any more.
    pub(crate) fn remove(&mut self, name: &str) {
        if self.length == 0 {
            return;
        }
        let mut gap = self.find(self.hash(name), name);
        if self.entries[gap].name.is_none() {
            return;
        }
        self.entries[gap] = Entry::EMPTY;
        self.length -= 1;
        // What was put behind it for want of this place moves up, so that it is still found.
        let mask = self.entries.len() - 1;
        let mut at = (gap + 1) & mask;
        while self.entries[at].name.is_some() {
            let home = self.entries[at].hash as usize & mask;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.entries.swap(gap, at);
                gap = at;
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let length = (self.entries.len() * 2).max(LEAST);
        let before = std::mem::replace(&mut self.entries, vec![Entry::EMPTY; length]);
        let mask = length - 1;
        for entry in before.into_iter().filter(|entry| entry.name.is_some()) {
            let mut at = entry.hash as usize & mask;
            while self.entries[at].name.is_some() {
                at = (at + 1) & mask;
            }
            self.entries[at] = entry;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_stand_for_what_a_sorted_map_says(
            operations in prop::collection::vec((0u8..3, 0u32..60, any::<u32>()), 1..400)
        ) {
            let mut names = Names::of("job");
            let mut model: BTreeMap<String, u32> = BTreeMap::new();
            for (operation, number, value) in operations {
                // Lengths below, at and above whole words.
                let name = format!("{:0>width$}", number, width = 1 + number as usize % 19);
                if operation == 0 {
                    names.remove(&name);
                    model.remove(&name);
                } else {
                    names.insert(name.as_str().into(), value);
                    model.insert(name, value);
                }
                prop_assert_eq!(names.length, model.len());
                for number in 0..60u32 {
                    let name = format!("{:0>width$}", number, width = 1 + number as usize % 19);
                    prop_assert_eq!(names.get(&name), model.get(&name).copied());
                    prop_assert_eq!(names.known(&name).map(|known| &**known), model.get_key_value(&name).map(|(known, _)| known.as_str()));
                }
            }
        }
    }

    /// Longest way from where a name belongs to where it is.
    fn longest_way(names: &Names) -> usize {
        let mask = names.entries.len() - 1;
        let ways = names
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.name.is_some());
        let ways = ways.map(|(at, entry)| at.wrapping_sub(entry.hash as usize & mask) & mask);
        ways.max().unwrap_or(0)
    }

    #[test]
    fn names_that_count_up_lie_close_to_where_they_belong() {
        for owner in ["one", "another"] {
            for prefix in ["", "task-", "prove-segment-", "a-much-longer-name-of-a-task-"] {
                let mut names = Names::of(owner);
                for number in 0..49_000 {
                    names.insert(format!("{prefix}{number}").into(), number);
                }
                let way = longest_way(&names);
                assert!(way < 150, "{way} steps with {prefix:?}");
            }
        }
    }
}
