//! Dense storage indexed by small integers, with identities that are never used twice.

use std::ops::{Index, IndexMut};

/// No entry.
pub(crate) const NONE: u32 = u32::MAX;

/// The generation comes first, beside what the value has in front: identities are made as often as values are read.
#[derive(Debug)]
#[repr(C)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// Entries at reusable indices. An identity carries the generation of its index in the upper half and the index
/// plus one in the lower half, so the first ones read 1, 2, 3.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    /// Chunks of equal size: growing never moves what is there.
    chunks: Vec<Vec<Entry<T>>>,
    used: u32,
    free: Vec<u32>,
    /// Of entries at indices that were never used.
    first_generation: u32,
}

/// Entries per chunk, as a power of two.
const CHUNK_BITS: u32 = 10;
const CHUNK: usize = 1 << CHUNK_BITS;

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab::starting_at(0)
    }

    /// Identities begin with this generation, so that they differ from those of an earlier slab that began with a
    /// lower one.
    pub(crate) fn starting_at(first_generation: u32) -> Slab<T> {
        Slab {
            chunks: Vec::new(),
            used: 0,
            free: Vec::new(),
            first_generation,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.used as usize - self.free.len()
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
        if let Some(index) = self.free.pop() {
            if let Some(entry) = self.entry_mut(index) {
                entry.value = Some(value);
            }
            return index;
        }
        let index = self.used;
        assert!(index < NONE - 1, "a slab holds fewer than 2^32 - 2 entries");
        let chunk = (index >> CHUNK_BITS) as usize;
        if chunk == self.chunks.len() {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks[chunk].push(Entry {
            generation: self.first_generation,
            value: Some(value),
        });
        self.used += 1;
        index
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let entry = self.entry_mut(index)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        // An index whose generations are used up stays empty: identities are never used twice.
        if entry.generation != 0 {
            self.free.push(index);
        }
        Some(value)
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.entry(index)?.value.as_ref()
    }

    #[inline]
    pub(crate) fn id(&self, index: u32) -> u64 {
        let generation = self.entry(index).map_or(0, |entry| entry.generation);
        (u64::from(generation) << 32) | u64::from(index + 1)
    }

    #[inline]
    pub(crate) fn find(&self, id: u64) -> Option<u32> {
        let index = ((id & 0xffff_ffff) as u32).checked_sub(1)?;
        let entry = self.entry(index)?;
        (entry.value.is_some() && u64::from(entry.generation) == id >> 32).then_some(index)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.chunks
            .iter()
            .flatten()
            .enumerate()
            .filter_map(|(index, entry)| Some((index as u32, entry.value.as_ref()?)))
    }
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
        match self.entry_mut(index).and_then(|entry| entry.value.as_mut()) {
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
}
