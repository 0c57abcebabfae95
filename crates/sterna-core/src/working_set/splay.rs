//! A splay tree over a growing and shrinking set of numbers, each of which has a slot: an index that
//! stays its own until it is removed (Sleator and Tarjan, JACM 32(3), 1985, section 4: top-down).
//!
//! What is looked up comes to the root, so that what is looked up often is found in few steps. Samples
//! are read in ascending order, and such a walk takes constant time a number, amortized (Tarjan,
//! Combinatorica 5(4), 1985).

/// A set of numbers with a slot for each.
#[derive(Clone, Debug)]
pub(super) struct Splay {
    /// Slot 0 is nobody's: it stands for no child, and holds both halves while a tree is split.
    nodes: Vec<Node>,
    root: u32,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    key: u32,
    /// What is less, and what is more.
    children: [u32; 2],
}

/// No slot.
pub(super) const NONE: u32 = 0;

/// Where a number was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It was there, in this slot.
    Old(u32),
    /// It is now, in this slot.
    New(u32),
}

impl Splay {
    /// What a slot takes in memory.
    #[cfg(test)]
    pub(super) const SLOT_BYTES: usize = size_of::<Node>();

    pub(super) fn new() -> Self {
        Self { nodes: vec![Node::default()], root: NONE, free: Vec::new() }
    }

    /// Finds `key`, or adds it.
    ///
    /// # Panics
    /// When there are 2³² numbers already.
    pub(super) fn find_or_insert(&mut self, key: u32) -> Place {
        self.splay(key);
        let root = self.root;
        if root != NONE && self.nodes[root as usize].key == key {
            return Place::Old(root);
        }
        let mut node = Node { key, children: [NONE; 2] };
        if root != NONE {
            // The old root goes to one side, with the subtree that lies beyond it.
            let old = &mut self.nodes[root as usize];
            let beyond = usize::from(old.key > key);
            node.children[beyond] = root;
            node.children[1 - beyond] = std::mem::take(&mut old.children[1 - beyond]);
        }
        self.root = match self.free.pop() {
            Some(slot) => {
                self.nodes[slot as usize] = node;
                slot
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("slots are counted by u32")
            }
        };
        Place::New(self.root)
    }

    /// The number that has this slot, which must be one's.
    pub(super) fn key(&self, slot: u32) -> u32 {
        self.nodes[slot as usize].key
    }

    /// Takes `key` out, if it is there; its slot will be another's.
    pub(super) fn remove(&mut self, key: u32) {
        self.splay(key);
        let slot = self.root;
        if slot == NONE || self.nodes[slot as usize].key != key {
            return;
        }
        let [less, more] = self.nodes[slot as usize].children;
        self.free.push(slot);
        self.root = less;
        if less == NONE {
            self.root = more;
        } else {
            // The greatest of what is less comes to the root, and has nothing to its right.
            self.splay(key);
            self.nodes[self.root as usize].children[1] = more;
        }
    }

    /// Brings `key` to the root, or one of its neighbours if it is not there.
    fn splay(&mut self, key: u32) {
        let mut at = self.root;
        if at == NONE {
            return;
        }
        let nodes = &mut self.nodes;
        nodes[0].children = [NONE; 2];
        // What was passed on the way down: by going left it is greater, by going right it is less.
        // Each half grows at its inner edge.
        let mut edges = [NONE; 2];
        while nodes[at as usize].key != key {
            let way = usize::from(key > nodes[at as usize].key);
            let mut child = nodes[at as usize].children[way];
            if child == NONE {
                break;
            }
            let childs = nodes[child as usize].key;
            if childs != key && usize::from(key > childs) == way {
                // Twice the same way: rotate, which is what halves the depth of long paths.
                nodes[at as usize].children[way] = nodes[child as usize].children[1 - way];
                nodes[child as usize].children[1 - way] = at;
                at = child;
                child = nodes[at as usize].children[way];
                if child == NONE {
                    break;
                }
            }
            nodes[edges[way] as usize].children[way] = at;
            edges[way] = at;
            at = child;
        }
        let [less, more] = nodes[at as usize].children;
        nodes[edges[1] as usize].children[1] = less;
        nodes[edges[0] as usize].children[0] = more;
        let [greater_half, lesser_half] = nodes[0].children;
        nodes[at as usize].children = [lesser_half, greater_half];
        self.root = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The numbers in order, and the greatest depth.
    fn walk(tree: &Splay, slot: u32, depth: usize, into: &mut Vec<(u32, u32)>) -> usize {
        if slot == NONE {
            return depth;
        }
        let Node { key, children: [less, more] } = tree.nodes[slot as usize];
        let deepest = walk(tree, less, depth + 1, into);
        into.push((key, slot));
        deepest.max(walk(tree, more, depth + 1, into))
    }

    proptest! {
        #[test]
        fn behaves_like_an_ordered_map_to_slots(
            ops in prop::collection::vec((any::<bool>(), 0u32..40), 0..300),
        ) {
            let mut tree = Splay::new();
            let mut model = BTreeMap::new();
            for (remove, key) in ops {
                if remove {
                    tree.remove(key);
                    model.remove(&key);
                } else {
                    let place = tree.find_or_insert(key);
                    let slot = match (place, model.get(&key)) {
                        (Place::Old(slot), Some(known)) => {
                            prop_assert_eq!(slot, *known);
                            slot
                        }
                        (Place::New(slot), None) => slot,
                        (place, known) => panic!("{place:?} of {key}, which was {known:?}"),
                    };
                    prop_assert_eq!(tree.key(slot), key);
                    model.insert(key, slot);
                }
                let mut found = Vec::new();
                walk(&tree, tree.root, 0, &mut found);
                prop_assert!(found.iter().copied().eq(model.iter().map(|(k, s)| (*k, *s))));
            }
            prop_assert!(tree.nodes.len() <= 41, "slots of removed numbers are used again");
        }
    }

    #[test]
    fn a_long_path_is_halved_by_a_look_at_its_end() {
        let mut tree = Splay::new();
        for key in 0..1000 {
            tree.find_or_insert(key);
        }
        let depth = |tree: &Splay| walk(tree, tree.root, 0, &mut Vec::new());
        assert_eq!(depth(&tree), 1000);
        tree.find_or_insert(0);
        assert!(depth(&tree) <= 502, "{}", depth(&tree));
    }
}
