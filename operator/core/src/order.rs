//! An ordered set of ranks in which every entry carries a mask of requirement classes.
//!
//! A B+ tree whose inner nodes hold the union of the masks below, so that the first entry that has any of the
//! wanted classes is found in O(log n), however many classes there are.

/// Position of a job within its tenant, or of a tenant among tenants: smaller goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Priority and deadline; 0 for tenants.
    pub(crate) group: u64,
    /// Device time used, divided by the weight.
    pub(crate) share: u64,
    /// Index of the job or tenant: makes ranks distinct.
    pub(crate) index: u32,
}

/// Entries per node: a node's ranks fill six cache lines.
const FANOUT: usize = 16;

#[derive(Clone, Debug)]
struct Node {
    leaf: bool,
    len: usize,
    ranks: [Rank; FANOUT],
    masks: [u64; FANOUT],
    children: [u32; FANOUT],
}

impl Node {
    fn new(leaf: bool) -> Node {
        Node {
            leaf,
            len: 0,
            ranks: [Rank::default(); FANOUT],
            masks: [0; FANOUT],
            children: [0; FANOUT],
        }
    }

    fn mask(&self) -> u64 {
        self.masks[..self.len].iter().fold(0, |all, mask| all | mask)
    }

    /// Entry below which `rank` belongs: the last one that is not greater.
    fn position(&self, rank: &Rank) -> usize {
        self.ranks[..self.len]
            .partition_point(|other| other <= rank)
            .saturating_sub(1)
    }

    fn insert(&mut self, at: usize, rank: Rank, mask: u64, child: u32) {
        self.ranks.copy_within(at..self.len, at + 1);
        self.masks.copy_within(at..self.len, at + 1);
        self.children.copy_within(at..self.len, at + 1);
        self.ranks[at] = rank;
        self.masks[at] = mask;
        self.children[at] = child;
        self.len += 1;
    }

    /// Gives an entry of a leaf another rank, and its place among the others.
    fn change(&mut self, from: usize, rank: Rank, mask: u64) {
        let before = self.ranks[..self.len].partition_point(|other| *other < rank);
        let to = if before > from {
            self.ranks.copy_within(from + 1..before, from);
            self.masks.copy_within(from + 1..before, from);
            before - 1
        } else {
            self.ranks.copy_within(before..from, before + 1);
            self.masks.copy_within(before..from, before + 1);
            before
        };
        self.ranks[to] = rank;
        self.masks[to] = mask;
    }

    fn remove(&mut self, at: usize) {
        self.ranks.copy_within(at + 1..self.len, at);
        self.masks.copy_within(at + 1..self.len, at);
        self.children.copy_within(at + 1..self.len, at);
        self.len -= 1;
    }
}

/// The ordered set.
#[derive(Clone, Debug)]
pub(crate) struct MaskTree {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    len: usize,
}

impl MaskTree {
    pub(crate) fn new() -> MaskTree {
        MaskTree {
            nodes: vec![Node::new(true)],
            free: Vec::new(),
            root: 0,
            len: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Classes that any entry has.
    pub(crate) fn mask(&self) -> u64 {
        self.nodes[self.root as usize].mask()
    }

    pub(crate) fn insert(&mut self, rank: Rank, mask: u64) {
        if let Some((split_rank, split)) = self.insert_below(self.root, rank, mask) {
            let old = self.root;
            let (old_mask, split_mask) = (self.nodes[old as usize].mask(), self.nodes[split as usize].mask());
            let first = self.nodes[old as usize].ranks[0];
            let root = self.allocate(false);
            self.nodes[root as usize].insert(0, first, old_mask, old);
            self.nodes[root as usize].insert(1, split_rank, split_mask, split);
            self.root = root;
        }
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, rank: &Rank) {
        let removed = self.remove_below(self.root, rank);
        assert!(removed, "a rank that is removed was inserted");
        self.len -= 1;
        while !self.nodes[self.root as usize].leaf && self.nodes[self.root as usize].len == 1 {
            let old = self.root;
            self.root = self.nodes[old as usize].children[0];
            self.free.push(old);
        }
    }

    /// Gives an entry another rank and other classes. Mostly it stays near where it was, which takes one way down the
    /// tree and no node that splits or ends.
    pub(crate) fn update(&mut self, old: &Rank, rank: Rank, mask: u64) {
        if !self.update_below(self.root, old, rank, mask) {
            self.remove(old);
            self.insert(rank, mask);
        }
    }

    pub(crate) fn set_mask(&mut self, rank: &Rank, mask: u64) {
        let found = self.set_mask_below(self.root, rank, mask);
        assert!(found, "a rank whose mask is set was inserted");
    }

    /// The first entry that has any of the classes.
    pub(crate) fn first(&self, classes: u64) -> Option<Rank> {
        self.first_below(self.root, classes)
    }

    /// The first entry of a group or later, whatever its classes.
    pub(crate) fn first_of_group(&self, group: u64) -> Option<Rank> {
        let mut at = self.root;
        let floor = Rank {
            group,
            share: 0,
            index: 0,
        };
        let mut fallback = None;
        loop {
            let node = &self.nodes[at as usize];
            if node.len == 0 {
                return fallback;
            }
            if node.leaf {
                let position = node.ranks[..node.len].partition_point(|rank| *rank < floor);
                return if position < node.len {
                    Some(node.ranks[position])
                } else {
                    fallback
                };
            }
            let position = node.position(&floor);
            if position + 1 < node.len {
                // The least entry to the right; its subtree's first rank is at least a lower bound.
                fallback = self.leftmost(node.children[position + 1]);
            }
            at = node.children[position];
        }
    }

    fn leftmost(&self, mut at: u32) -> Option<Rank> {
        loop {
            let node = &self.nodes[at as usize];
            if node.len == 0 {
                return None;
            }
            if node.leaf {
                return Some(node.ranks[0]);
            }
            at = node.children[0];
        }
    }

    fn first_below(&self, mut at: u32, classes: u64) -> Option<Rank> {
        loop {
            let node = &self.nodes[at as usize];
            let position = node.masks[..node.len]
                .iter()
                .position(|mask| mask & classes != 0)?;
            if node.leaf {
                return Some(node.ranks[position]);
            }
            at = node.children[position];
        }
    }

    fn allocate(&mut self, leaf: bool) -> u32 {
        if let Some(index) = self.free.pop() {
            self.nodes[index as usize].leaf = leaf;
            self.nodes[index as usize].len = 0;
            return index;
        }
        self.nodes.push(Node::new(leaf));
        (self.nodes.len() - 1) as u32
    }

    fn insert_below(&mut self, at: u32, rank: Rank, mask: u64) -> Option<(Rank, u32)> {
        if self.nodes[at as usize].leaf {
            let node = &self.nodes[at as usize];
            let position = node.ranks[..node.len].partition_point(|other| *other < rank);
            return self.insert_entry(at, position, rank, mask, rank.index);
        }
        let position = self.nodes[at as usize].position(&rank);
        let child = self.nodes[at as usize].children[position];
        let split = self.insert_below(child, rank, mask);
        let child_mask = match split {
            Some(_) => self.nodes[child as usize].mask(),
            None => self.nodes[at as usize].masks[position] | mask,
        };
        let node = &mut self.nodes[at as usize];
        node.masks[position] = child_mask;
        if rank < node.ranks[position] {
            node.ranks[position] = rank;
        }
        let (split_rank, split_child) = split?;
        let split_mask = self.nodes[split_child as usize].mask();
        self.insert_entry(at, position + 1, split_rank, split_mask, split_child)
    }

    fn insert_entry(
        &mut self,
        at: u32,
        position: usize,
        rank: Rank,
        mask: u64,
        child: u32,
    ) -> Option<(Rank, u32)> {
        if self.nodes[at as usize].len < FANOUT {
            self.nodes[at as usize].insert(position, rank, mask, child);
            return None;
        }
        let half = FANOUT / 2;
        let right = self.allocate(self.nodes[at as usize].leaf);
        for from in half..FANOUT {
            let node = &self.nodes[at as usize];
            let (moved_rank, moved_mask, moved_child) =
                (node.ranks[from], node.masks[from], node.children[from]);
            self.nodes[right as usize].insert(from - half, moved_rank, moved_mask, moved_child);
        }
        self.nodes[at as usize].len = half;
        if position <= half {
            self.nodes[at as usize].insert(position, rank, mask, child);
        } else {
            self.nodes[right as usize].insert(position - half, rank, mask, child);
        }
        Some((self.nodes[right as usize].ranks[0], right))
    }

    fn remove_below(&mut self, at: u32, rank: &Rank) -> bool {
        if self.nodes[at as usize].leaf {
            let node = &mut self.nodes[at as usize];
            let Ok(position) = node.ranks[..node.len].binary_search(rank) else {
                return false;
            };
            node.remove(position);
            return true;
        }
        let position = self.nodes[at as usize].position(rank);
        let child = self.nodes[at as usize].children[position];
        if !self.remove_below(child, rank) {
            return false;
        }
        if self.nodes[child as usize].len == 0 {
            self.free.push(child);
            self.nodes[at as usize].remove(position);
            if self.nodes[at as usize].len == 0 {
                self.nodes[at as usize].leaf = true;
            }
        } else {
            let mask = self.nodes[child as usize].mask();
            self.nodes[at as usize].masks[position] = mask;
        }
        true
    }

    /// False where the entry belongs into another leaf; then nothing has changed.
    fn update_below(&mut self, at: u32, old: &Rank, rank: Rank, mask: u64) -> bool {
        let node = &mut self.nodes[at as usize];
        if node.leaf {
            let Ok(from) = node.ranks[..node.len].binary_search(old) else {
                return false;
            };
            node.change(from, rank, mask);
            return true;
        }
        let position = node.position(old);
        let not_before = position == 0 || rank >= node.ranks[position];
        let not_behind = position + 1 == node.len || rank < node.ranks[position + 1];
        let child = node.children[position];
        if !not_before || !not_behind || !self.update_below(child, old, rank, mask) {
            return false;
        }
        let child_mask = self.nodes[child as usize].mask();
        let node = &mut self.nodes[at as usize];
        node.masks[position] = child_mask;
        if rank < node.ranks[position] {
            node.ranks[position] = rank;
        }
        true
    }

    fn set_mask_below(&mut self, at: u32, rank: &Rank, mask: u64) -> bool {
        if self.nodes[at as usize].leaf {
            let node = &mut self.nodes[at as usize];
            let Ok(position) = node.ranks[..node.len].binary_search(rank) else {
                return false;
            };
            node.masks[position] = mask;
            return true;
        }
        let position = self.nodes[at as usize].position(rank);
        let child = self.nodes[at as usize].children[position];
        let found = self.set_mask_below(child, rank, mask);
        let child_mask = self.nodes[child as usize].mask();
        self.nodes[at as usize].masks[position] = child_mask;
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_entry_with_a_class_is_what_a_sorted_map_finds(
            operations in prop::collection::vec((0u8..6, 0u64..3, 0u64..50, 0u32..40, any::<u64>(), any::<u64>()), 1..600)
        ) {
            let mut tree = MaskTree::new();
            let mut model: BTreeMap<Rank, u64> = BTreeMap::new();
            for (operation, group, share, index, mask, other) in operations {
                let mask = mask & other & 0xff;
                let rank = Rank { group, share, index };
                match operation {
                    0 | 1 if !model.contains_key(&rank) => {
                        tree.insert(rank, mask);
                        model.insert(rank, mask);
                    }
                    2 | 3 if !model.contains_key(&rank) => {
                        // A neighbour moves here: down, or up.
                        let neighbour = if operation == 2 {
                            model.range(rank..).next()
                        } else {
                            model.range(..rank).next_back()
                        };
                        if let Some(neighbour) = neighbour.map(|(rank, _)| *rank) {
                            tree.update(&neighbour, rank, mask);
                            model.remove(&neighbour);
                            model.insert(rank, mask);
                        }
                    }
                    4 => {
                        if let Some(nearest) = model.range(rank..).next().map(|(rank, _)| *rank) {
                            tree.remove(&nearest);
                            model.remove(&nearest);
                        }
                    }
                    _ => {
                        if let Some(nearest) = model.range(rank..).next().map(|(rank, _)| *rank) {
                            tree.set_mask(&nearest, mask);
                            model.insert(nearest, mask);
                        }
                    }
                }
                prop_assert_eq!(tree.len(), model.len());
                prop_assert_eq!(tree.mask(), model.values().fold(0, |all, mask| all | mask));
                for class in 0..8 {
                    let expected = model.iter().find(|(_, mask)| **mask & (1 << class) != 0).map(|(rank, _)| *rank);
                    prop_assert_eq!(tree.first(1 << class), expected);
                }
                let floor = Rank { group, share: 0, index: 0 };
                prop_assert_eq!(tree.first_of_group(group), model.range(floor..).next().map(|(rank, _)| *rank));
            }
        }
    }
}
