//! Dense storage indexed by small integers, with identities that are never used twice.

use std::ops::{Index, IndexMut};

/// No entry.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// Entries at reusable indices. An identity carries the generation of its index in the upper half and the index
/// plus one in the lower half, so the first ones read 1, 2, 3.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.entries[index as usize].value = Some(value);
            return index;
        }
        let index = u32::try_from(self.entries.len()).unwrap_or(NONE);
        assert!(index < NONE - 1, "a slab holds fewer than 2^32 - 2 entries");
        self.entries.push(Entry {
            generation: 0,
            value: Some(value),
        });
        index
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let entry = self.entries.get_mut(index as usize)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        // An index whose generations are used up stays empty: identities are never used twice.
        if entry.generation != 0 {
            self.free.push(index);
        }
        Some(value)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize)?.value.as_ref()
    }

    pub(crate) fn id(&self, index: u32) -> u64 {
        let generation = self.entries[index as usize].generation;
        (u64::from(generation) << 32) | u64::from(index + 1)
    }

    pub(crate) fn find(&self, id: u64) -> Option<u32> {
        let index = ((id & 0xffff_ffff) as u32).checked_sub(1)?;
        let entry = self.entries.get(index as usize)?;
        (entry.value.is_some() && u64::from(entry.generation) == id >> 32).then_some(index)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| Some((index as u32, entry.value.as_ref()?)))
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;
    fn index(&self, index: u32) -> &T {
        match self.entries[index as usize].value.as_ref() {
            Some(value) => value,
            None => panic!("slab entry {index} is empty"),
        }
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        match self.entries[index as usize].value.as_mut() {
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
