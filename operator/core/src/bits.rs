//! A set of small integers that finds its least member fast.

/// Two levels of words: the upper one tells which lower words are not empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct BitSet {
    words: Vec<u64>,
    summary: Vec<u64>,
}

impl BitSet {
    pub(crate) fn set(&mut self, index: u32, member: bool) {
        let word = (index / 64) as usize;
        if word >= self.words.len() {
            if !member {
                return;
            }
            self.words.resize(word + 1, 0);
            self.summary.resize(word / 64 + 1, 0);
        }
        let bit = 1u64 << (index % 64);
        if member {
            self.words[word] |= bit;
            self.summary[word / 64] |= 1 << (word % 64);
        } else {
            self.words[word] &= !bit;
            if self.words[word] == 0 {
                self.summary[word / 64] &= !(1 << (word % 64));
            }
        }
    }

    pub(crate) fn first(&self) -> Option<u32> {
        let upper = self.summary.iter().position(|word| *word != 0)?;
        let word = upper * 64 + self.summary[upper].trailing_zeros() as usize;
        Some((word * 64) as u32 + self.words[word].trailing_zeros())
    }

    /// The least member that is in another set too.
    pub(crate) fn first_common(&self, other: &BitSet) -> Option<u32> {
        let words = self.words.iter().zip(&other.words).enumerate();
        words
            .map(|(at, (one, other))| (at, one & other))
            .find(|(_, word)| *word != 0)
            .map(|(at, word)| (at * 64) as u32 + word.trailing_zeros())
    }

    #[cfg(test)]
    pub(crate) fn contains(&self, index: u32) -> bool {
        self.words
            .get((index / 64) as usize)
            .is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.words
            .iter()
            .enumerate()
            .flat_map(|(at, word)| bits(*word).map(move |bit| (at * 64) as u32 + bit))
    }
}

/// Indices of the bits that are set, ascending.
pub(crate) fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bit_set_agrees_with_a_sorted_set(operations in prop::collection::vec((0u32..20_000, any::<bool>()), 1..300)) {
            let mut bits = BitSet::default();
            let mut model = BTreeSet::new();
            for (index, member) in operations {
                bits.set(index, member);
                if member { model.insert(index); } else { model.remove(&index); }
                prop_assert_eq!(bits.first(), model.first().copied());
                prop_assert_eq!(bits.contains(index), member);
            }
            prop_assert!(bits.iter().eq(model.iter().copied()));
        }
    }
}
