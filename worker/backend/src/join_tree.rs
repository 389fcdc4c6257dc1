//! A binary join tree over leaves that arrive one after another, as a streaming binary counter.
//!
//! Leaves are numbered from 0 in the order of arrival. As soon as two neighbouring subtrees have the same height,
//! they are to be joined; at the end the remaining subtrees (the peaks) are folded, the smallest first. N leaves
//! make N - 1 joins, each of two neighbouring ranges with the left one first, and the tree is ceil(log2 N) high.
//! Pure: it plans and knows nothing of tasks or receipts.

/// A subtree: the leaves `first..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// Its first leaf.
    pub first: u64,
    /// One past its last leaf.
    pub end: u64,
    /// Joins on the longest way down to a leaf; 0 for a leaf.
    pub height: u32,
}

impl Node {
    /// How many leaves it covers.
    #[must_use]
    pub fn leaves(&self) -> u64 {
        self.end - self.first
    }

    /// Whether it is a single leaf.
    #[must_use]
    pub fn is_leaf(&self) -> bool {
        self.leaves() == 1
    }

    /// A name that no other subtree of the same tree has: `7` for a leaf, `4-7` for the leaves 4 to 7.
    #[must_use]
    pub fn label(&self) -> String {
        if self.is_leaf() {
            self.first.to_string()
        } else {
            format!("{}-{}", self.first, self.end - 1)
        }
    }
}

/// Two neighbouring subtrees that are to be joined into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// The earlier leaves.
    pub left: Node,
    /// The later leaves.
    pub right: Node,
    /// Both.
    pub joined: Node,
}

impl Join {
    fn of(left: Node, right: Node) -> Self {
        let joined = Node {
            first: left.first,
            end: right.end,
            height: left.height.max(right.height) + 1,
        };
        Self { left, right, joined }
    }
}

/// The tree so far.
#[derive(Clone, Debug, Default)]
pub struct JoinTree {
    // Heights strictly descend from the first peak to the last between two calls.
    peaks: Vec<Node>,
    leaves: u64,
}

impl JoinTree {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many leaves have arrived.
    #[must_use]
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// The next leaf has arrived: answers with it and the joins that it makes possible, inner ones first.
    pub fn push(&mut self) -> (Node, Vec<Join>) {
        let leaf = Node {
            first: self.leaves,
            end: self.leaves + 1,
            height: 0,
        };
        self.leaves += 1;
        let mut joins = Vec::new();
        let mut node = leaf;
        while let Some(left) = self.peaks.pop_if(|peak| peak.height == node.height) {
            let join = Join::of(left, node);
            node = join.joined;
            joins.push(join);
        }
        self.peaks.push(node);
        (leaf, joins)
    }

    /// No more leaves: answers with the root (none without leaves) and the joins still to be made, inner ones first.
    #[must_use]
    pub fn finish(mut self) -> (Option<Node>, Vec<Join>) {
        let mut joins = Vec::new();
        let mut root = self.peaks.pop();
        // From the smallest peak upwards: each fold is at most as high as the peak left of it, so the tree stays
        // logarithmic.
        while let (Some(right), Some(left)) = (root, self.peaks.pop()) {
            let join = Join::of(left, right);
            root = Some(join.joined);
            joins.push(join);
        }
        (root, joins)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole_tree(leaves: u64) -> (Option<Node>, Vec<Join>) {
        let mut tree = JoinTree::new();
        let mut joins = Vec::new();
        for _ in 0..leaves {
            joins.extend(tree.push().1);
        }
        let (root, rest) = tree.finish();
        joins.extend(rest);
        (root, joins)
    }

    #[test]
    fn no_leaves_make_no_root() {
        assert_eq!(whole_tree(0), (None, vec![]));
    }

    #[test]
    fn one_leaf_is_the_root() {
        assert_eq!(
            whole_tree(1),
            (
                Some(Node {
                    first: 0,
                    end: 1,
                    height: 0
                }),
                vec![]
            )
        );
    }

    #[test]
    fn equal_peaks_are_joined_as_soon_as_they_exist() {
        let mut tree = JoinTree::new();
        assert_eq!(tree.push().1.len(), 0);
        assert_eq!(tree.push().1.len(), 1);
        assert_eq!(tree.push().1.len(), 0);
        let (_, joins) = tree.push();
        let labels: Vec<_> = joins.iter().map(|join| join.joined.label()).collect();
        assert_eq!(labels, ["2-3", "0-3"]);
    }

    proptest! {
        #[test]
        fn n_leaves_make_n_minus_one_joins_of_neighbours_in_order(leaves in 1_u64..5000) {
            let (root, joins) = whole_tree(leaves);
            prop_assert_eq!(joins.len() as u64, leaves - 1);
            let mut made: std::collections::BTreeSet<Node> =
                (0..leaves).map(|leaf| Node { first: leaf, end: leaf + 1, height: 0 }).collect();
            for join in &joins {
                prop_assert!(made.remove(&join.left), "a join uses a subtree that is not there: {:?}", join.left);
                prop_assert!(made.remove(&join.right), "a join uses a subtree that is not there: {:?}", join.right);
                prop_assert_eq!(join.left.end, join.right.first);
                prop_assert_eq!((join.joined.first, join.joined.end), (join.left.first, join.right.end));
                prop_assert_eq!(join.joined.height, join.left.height.max(join.right.height) + 1);
                made.insert(join.joined);
            }
            let root = root.expect("there are leaves");
            prop_assert_eq!((root.first, root.end), (0, leaves));
            prop_assert_eq!(made.len(), 1);
            prop_assert_eq!(root.height, leaves.next_power_of_two().trailing_zeros());
        }

        #[test]
        fn labels_are_unique(leaves in 1_u64..500) {
            let (_, joins) = whole_tree(leaves);
            let mut labels: Vec<String> = joins.iter().map(|join| join.joined.label()).collect();
            labels.extend((0..leaves).map(|leaf| leaf.to_string()));
            let count = labels.len();
            labels.sort();
            labels.dedup();
            prop_assert_eq!(labels.len(), count);
        }

        #[test]
        fn few_peaks_wait_however_many_leaves_arrived(leaves in 1_u64..5000) {
            let mut tree = JoinTree::new();
            for _ in 0..leaves {
                tree.push();
            }
            prop_assert_eq!(tree.peaks.len(), leaves.count_ones() as usize);
        }
    }
}
