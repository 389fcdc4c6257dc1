//! Dense storage indexed by small integers, with identities that are never used twice.

use std::ops::{Index, IndexMut};

/// No entry.
pub(crate) const NONE: u32 = u32::MAX;

/// Whether there is a value, and the generation, come first, beside what the value has in front: both are read as often
/// as the value is. In an `Option` the first would lie wherever the value has bits to spare: in another cache line.
#[derive(Debug)]
#[repr(u32)]
enum Entry<T> {
    Empty { generation: u32 },
    Full { generation: u32, value: T },
}

impl<T> Entry<T> {
    #[inline]
    fn generation(&self) -> u32 {
        match self {
            Entry::Empty { generation } | Entry::Full { generation, .. } => *generation,
        }
    }

    #[inline]
    fn value(&self) -> Option<&T> {
        match self {
            Entry::Empty { .. } => None,
            Entry::Full { value, .. } => Some(value),
        }
    }

    #[inline]
    fn value_mut(&mut self) -> Option<&mut T> {
        match self {
            Entry::Empty { .. } => None,
            Entry::Full { value, .. } => Some(value),
        }
    }

    /// Leaves nothing but a generation behind.
    #[inline]
    fn take(&mut self, generation: u32) -> Option<T> {
        match std::mem::replace(self, Entry::Empty { generation }) {
            Entry::Empty { .. } => None,
            Entry::Full { value, .. } => Some(value),
        }
    }
}

/// Entries at reusable indices. An identity carries the generation of its index in the upper half and the index
/// plus one in the lower half, so the first ones read 1, 2, 3.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    /// Chunks of equal size: growing never moves what is there.
    chunks: Vec<Vec<Entry<T>>>,
    used: u32,
    live: usize,
    free: Vec<u32>,
    /// Identities that are given now carry this generation or one of the next `GENERATIONS_PER_EPOCH`.
    first_generation: u32,
}

/// How often an index may be used in one epoch. Then it stays empty until the next one.
const GENERATIONS_PER_EPOCH: u32 = 1 << 12;
/// Indices beyond the last one at which an entry may be restored: more is not what a coordinator wrote.
const GAP: u32 = 1 << 24;

/// Entries per chunk, as a power of two.
const CHUNK_BITS: u32 = 10;
const CHUNK: usize = 1 << CHUNK_BITS;

impl<T> Slab<T> {
    /// Bytes of an entry.
    #[cfg(test)]
    pub(crate) fn entry_bytes() -> usize {
        size_of::<Entry<T>>()
    }

    pub(crate) fn new() -> Slab<T> {
        Slab::in_epoch(0)
    }

    /// Identities of different epochs, counted from 0, differ; after 2^20 epochs they begin anew.
    pub(crate) fn in_epoch(epoch: u64) -> Slab<T> {
        Slab {
            chunks: Vec::new(),
            used: 0,
            live: 0,
            free: Vec::new(),
            first_generation: first_generation(epoch),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// Whether an identity was given since the epoch began.
    pub(crate) fn is_of_this_epoch(&self, id: u64) -> bool {
        ((id >> 32) as u32).wrapping_sub(self.first_generation) < GENERATIONS_PER_EPOCH
    }

    /// Puts a value where its identity says. None: the place is taken or absurdly far away. Places that stay empty
    /// are used only after the next epoch began.
    pub(crate) fn restore(&mut self, id: u64, value: T) -> Option<u32> {
        let index = ((id & 0xffff_ffff) as u32).checked_sub(1)?;
        if index >= self.used.saturating_add(GAP) {
            return None;
        }
        while self.used <= index {
            self.push(|generation| Entry::Empty { generation });
        }
        let entry = self.entry_mut(index)?;
        if entry.value().is_some() {
            return None;
        }
        let generation = (id >> 32) as u32;
        *entry = Entry::Full { generation, value };
        self.live += 1;
        Some(index)
    }

    /// Removes a value during a restoration.
    pub(crate) fn take(&mut self, index: u32) -> Option<T> {
        let entry = self.entry_mut(index)?;
        let value = entry.take(entry.generation())?;
        self.live -= 1;
        Some(value)
    }

    /// From now on identities of this epoch are given; those of what is there stay.
    pub(crate) fn begin_epoch(&mut self, epoch: u64) {
        let first_generation = first_generation(epoch);
        self.first_generation = first_generation;
        self.free.clear();
        for index in (0..self.used).rev() {
            if let Some(entry) = self.entry_mut(index)
                && entry.value().is_none()
            {
                *entry = Entry::Empty {
                    generation: first_generation,
                };
                self.free.push(index);
            }
        }
    }

    fn push(&mut self, entry: impl FnOnce(u32) -> Entry<T>) {
        let index = self.used;
        assert!(index < NONE - 1, "a slab holds fewer than 2^32 - 2 entries");
        let chunk = (index >> CHUNK_BITS) as usize;
        if chunk == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks[chunk].push(entry(self.first_generation));
        self.used += 1;
    }

    #[inline]
    fn entry(&self, index: u32) -> Option<&Entry<T>> {
        self.chunks
            .get((index >> CHUNK_BITS) as usize)?
            .get(index as usize & (CHUNK - 1))
    }

    #[inline]
    fn entry_mut(&mut self, index: u32) -> Option<&mut Entry<T>> {
        self.chunks
            .get_mut((index >> CHUNK_BITS) as usize)?
            .get_mut(index as usize & (CHUNK - 1))
    }

    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.live += 1;
        if let Some(index) = self.free.pop() {
            if let Some(entry) = self.entry_mut(index) {
                let generation = entry.generation();
                *entry = Entry::Full { generation, value };
            }
            return index;
        }
        let index = self.used;
        self.push(|generation| Entry::Full { generation, value });
        index
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let first = self.first_generation;
        let entry = self.entry_mut(index)?;
        let generation = entry.value().map(|_| entry.generation())?;
        let in_epoch = generation.wrapping_sub(first);
        // An index whose generations are used up stays empty: identities are never used twice.
        let used_up = in_epoch == GENERATIONS_PER_EPOCH - 1;
        let next = if in_epoch < GENERATIONS_PER_EPOCH {
            generation.wrapping_add(1)
        } else {
            first
        };
        let value = entry.take(next)?;
        if !used_up {
            self.free.push(index);
        }
        self.live -= 1;
        Some(value)
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.entry(index)?.value()
    }

    #[inline]
    pub(crate) fn id(&self, index: u32) -> u64 {
        let generation = self.entry(index).map_or(0, Entry::generation);
        (u64::from(generation) << 32) | u64::from(index + 1)
    }

    #[inline]
    pub(crate) fn find(&self, id: u64) -> Option<u32> {
        let index = ((id & 0xffff_ffff) as u32).checked_sub(1)?;
        let entry = self.entry(index)?;
        (entry.value().is_some() && u64::from(entry.generation()) == id >> 32).then_some(index)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.chunks
            .iter()
            .flatten()
            .enumerate()
            .filter_map(|(index, entry)| Some((index as u32, entry.value()?)))
    }
}

fn first_generation(epoch: u64) -> u32 {
    epoch.wrapping_mul(u64::from(GENERATIONS_PER_EPOCH)) as u32
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;
    #[inline]
    fn index(&self, index: u32) -> &T {
        match self.get(index) {
            Some(value) => value,
            None => panic!("slab entry {index} is empty"),
        }
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        match self.entry_mut(index).and_then(Entry::value_mut) {
            Some(value) => value,
            None => panic!("slab entry {index} is empty"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_never_used_twice() {
        let mut slab = Slab::new();
        let first = slab.insert("a");
        let first_id = slab.id(first);
        assert_eq!(first_id, 1);
        slab.remove(first);
        let second = slab.insert("b");
        assert_eq!(first, second, "the index is used again");
        assert_ne!(first_id, slab.id(second));
        assert_eq!(slab.find(first_id), None);
        assert_eq!(slab.find(slab.id(second)), Some(second));
        assert_eq!(slab.find(0), None);
    }

    #[test]
    fn what_is_restored_keeps_its_identity_and_what_comes_after_has_one_of_the_new_epoch() {
        let mut old = Slab::new();
        let ids: Vec<u64> = (0..5)
            .map(|value| {
                let index = old.insert(value);
                old.id(index)
            })
            .collect();
        let mut slab = Slab::new();
        for at in [4, 1] {
            assert!(slab.restore(ids[at], at).is_some());
        }
        assert_eq!(slab.restore(ids[1], 9), None, "the place is taken");
        slab.begin_epoch(1);
        assert_eq!(slab.len(), 2);
        assert_eq!(slab.find(ids[4]).map(|index| slab[index]), Some(4));
        for _ in 0..4 {
            let index = slab.insert(7);
            assert!(!ids.contains(&slab.id(index)));
            assert!(slab.is_of_this_epoch(slab.id(index)) && !slab.is_of_this_epoch(ids[0]));
        }
        let restored = slab.find(ids[4]).unwrap_or(NONE);
        slab.remove(restored);
        let again = slab.insert(8);
        assert_eq!(again, restored, "the index is used again");
        assert!(slab.is_of_this_epoch(slab.id(again)));
    }

    #[test]
    fn an_index_is_not_used_again_when_its_identities_of_the_epoch_are_used_up() {
        let mut slab = Slab::in_epoch(3);
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..2 * GENERATIONS_PER_EPOCH {
            let index = slab.insert(());
            assert!(slab.is_of_this_epoch(slab.id(index)));
            assert!(ids.insert(slab.id(index)));
            slab.remove(index);
        }
        assert_eq!(slab.len(), 0);
    }
}
