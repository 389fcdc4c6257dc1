//! The tasks of one proof: segments and the joins that make one proof of them.
//!
//! Owns the shape only: what a task costs and needs is its user's.

/// A task of a proof. Dependencies are places in the list, always earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it does.
    pub kind: Kind,
    /// Places of what must have succeeded before.
    pub depends_on: Vec<usize>,
}

/// What a task of a proof does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Proves one segment.
    Segment,
    /// Joins two proofs.
    Join,
    /// Checks the last proof and concludes the job.
    Verify,
}

/// Segments in order and joins as a binary counter makes them while segments come: two neighbours of equal height
/// are joined as soon as both are known, what is left at the end is joined from the right, and the last proof is
/// verified.
///
/// # Panics
/// There is no segment.
#[must_use]
pub fn join_tree(segments: usize) -> Vec<Node> {
    assert!(segments > 0, "a proof has a segment");
    let mut nodes: Vec<Node> = Vec::with_capacity(segments * 2);
    // Proofs that wait for their right neighbour, with their heights.
    let mut waiting: Vec<(usize, u32)> = Vec::new();
    let join = |nodes: &mut Vec<Node>, left: usize, right: usize| {
        nodes.push(Node {
            kind: Kind::Join,
            depends_on: vec![left, right],
        });
        nodes.len() - 1
    };
    for _ in 0..segments {
        nodes.push(Node {
            kind: Kind::Segment,
            depends_on: Vec::new(),
        });
        let (mut right, mut height) = (nodes.len() - 1, 0);
        while let Some((left, _)) = waiting.pop_if(|(_, left)| *left == height) {
            right = join(&mut nodes, left, right);
            height += 1;
        }
        waiting.push((right, height));
    }
    while let (Some((right, _)), Some((left, height))) = (waiting.pop(), waiting.pop()) {
        let joined = join(&mut nodes, left, right);
        waiting.push((joined, height + 1));
    }
    let last = nodes.len() - 1;
    nodes.push(Node {
        kind: Kind::Verify,
        depends_on: vec![last],
    });
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_joins_every_segment_exactly_once() {
        for segments in 1..200 {
            let nodes = join_tree(segments);
            let count = |kind| nodes.iter().filter(|node| node.kind == kind).count();
            assert_eq!(count(Kind::Segment), segments);
            assert_eq!(count(Kind::Join), segments - 1);
            assert_eq!(count(Kind::Verify), 1);
            let mut used = vec![0; nodes.len()];
            for (place, node) in nodes.iter().enumerate() {
                for dependency in &node.depends_on {
                    assert!(*dependency < place, "dependencies come first");
                    used[*dependency] += 1;
                }
            }
            let last = used.pop();
            assert_eq!(last, Some(0), "nothing waits for the last one");
            assert!(
                used.iter().all(|uses| *uses == 1),
                "everything is used once: {segments}"
            );
        }
    }

    #[test]
    fn a_tree_of_a_power_of_two_is_as_high_as_its_exponent() {
        let nodes = join_tree(1 << 7);
        let mut height = vec![0; nodes.len()];
        for (place, node) in nodes.iter().enumerate() {
            let below = node.depends_on.iter().map(|dependency| height[*dependency]).max();
            height[place] = below.map_or(0, |below| below + 1);
        }
        assert_eq!(height.last(), Some(&8), "seven joins and the verification");
    }
}
