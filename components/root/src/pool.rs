//! Who has which memory: the RAM that root hands out to components and guests, in units of 2 MiB,
//! and takes back.
//!
//! The core's `Memory` can be carved from its beginning on, and is whole again only when nothing
//! that was made of it is left. So memory is a tree: a node that is too large is split in two, and
//! two halves that are both free are joined again. Pure: who carves and joins is a [`Carver`].
//! Called by root's `run::bank`; must never hand out a node twice.

use alloc::vec::Vec;

/// What the pool does to the machine's memory.
pub trait Carver {
    /// Names a stretch of memory.
    type Handle: Copy + PartialEq;
    /// Why it could not be done.
    type Error;

    /// Splits `whole`, which nothing was made of, into two stretches: `first` and `second` units
    /// long, in this order. Changes nothing if it fails.
    fn split(
        &mut self,
        whole: Self::Handle,
        first: u64,
        second: u64,
    ) -> Result<[Self::Handle; 2], Self::Error>;

    /// Undoes a split.
    fn join(&mut self, halves: [Self::Handle; 2]) -> Result<(), Self::Error>;
}

/// Why memory was not handed out or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolError<E> {
    /// There is not that much, or not in one piece.
    NoMemory,
    /// This is nothing that was handed out.
    NotGiven,
    /// The carver failed.
    Carver(E),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Given,
    /// Its halves are these nodes.
    Split([usize; 2]),
}

#[derive(Clone, Copy, Debug)]
struct Node<H> {
    handle: H,
    units: u64,
    parent: Option<usize>,
    state: State,
}

/// The tree. Indices of nodes that were joined away are used again.
#[derive(Debug)]
pub struct Pool<H> {
    nodes: Vec<Option<Node<H>>>,
    total: u64,
    free: u64,
}

impl<H> Default for Pool<H> {
    fn default() -> Self {
        Pool {
            nodes: Vec::new(),
            total: 0,
            free: 0,
        }
    }
}

impl<H: Copy + PartialEq> Pool<H> {
    /// Units there are.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Units that nobody has.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Adds a stretch of `units` to hand out.
    pub fn add(&mut self, handle: H, units: u64) {
        if units != 0 {
            self.put(Node {
                handle,
                units,
                parent: None,
                state: State::Free,
            });
            self.total += units;
            self.free += units;
        }
    }

    fn put(&mut self, node: Node<H>) -> usize {
        match self.nodes.iter().position(Option::is_none) {
            Some(index) => {
                self.nodes[index] = Some(node);
                index
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        }
    }

    fn node_mut(&mut self, index: usize) -> Option<&mut Node<H>> {
        self.nodes.get_mut(index)?.as_mut()
    }

    /// Free nodes: index, units.
    fn free_nodes(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.nodes.iter().enumerate().filter_map(|(index, node)| {
            let node = node.as_ref()?;
            (node.state == State::Free).then_some((index, node.units))
        })
    }

    /// Hands out `units` in one piece, out of the smallest piece that has them.
    pub fn take<C: Carver<Handle = H>>(
        &mut self,
        carver: &mut C,
        units: u64,
    ) -> Result<H, PoolError<C::Error>> {
        let (index, size) = self
            .free_nodes()
            .filter(|&(_, size)| units != 0 && size >= units)
            .min_by_key(|&(_, size)| size)
            .ok_or(PoolError::NoMemory)?;
        let index = if size > units {
            self.split(carver, index, units)?
        } else {
            index
        };
        let node = self.node_mut(index).ok_or(PoolError::NoMemory)?;
        node.state = State::Given;
        let handle = node.handle;
        self.free -= units;
        Ok(handle)
    }

    fn split<C: Carver<Handle = H>>(
        &mut self,
        carver: &mut C,
        index: usize,
        units: u64,
    ) -> Result<usize, PoolError<C::Error>> {
        let whole = *self.node_mut(index).ok_or(PoolError::NoMemory)?;
        let rest = whole.units - units;
        let [first, second] = carver
            .split(whole.handle, units, rest)
            .map_err(PoolError::Carver)?;
        let [first, second] = [(first, units), (second, rest)].map(|(handle, units)| {
            self.put(Node {
                handle,
                units,
                parent: Some(index),
                state: State::Free,
            })
        });
        if let Some(whole) = self.node_mut(index) {
            whole.state = State::Split([first, second]);
        }
        Ok(first)
    }

    /// Hands out `units` in pieces: one if there is a piece that has them, else the largest first.
    /// All or nothing. Answers each piece and its units.
    pub fn take_pieces<C: Carver<Handle = H>>(
        &mut self,
        carver: &mut C,
        units: u64,
    ) -> Result<Vec<(H, u64)>, PoolError<C::Error>> {
        if units == 0 || units > self.free {
            return Err(PoolError::NoMemory);
        }
        let mut pieces = Vec::new();
        let mut left = units;
        while left != 0 {
            let largest = self.free_nodes().map(|(_, size)| size).max().unwrap_or(0);
            let want = left.min(largest);
            match self.take(carver, want) {
                Ok(handle) => {
                    pieces.push((handle, want));
                    left -= want;
                }
                Err(error) => {
                    for (handle, _) in pieces {
                        self.give(carver, handle)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(pieces)
    }

    /// Takes back what was handed out. Nothing is made of it any more.
    pub fn give<C: Carver<Handle = H>>(
        &mut self,
        carver: &mut C,
        handle: H,
    ) -> Result<(), PoolError<C::Error>> {
        let mut index = self
            .nodes
            .iter()
            .position(|node| {
                node.as_ref()
                    .is_some_and(|node| node.handle == handle && node.state == State::Given)
            })
            .ok_or(PoolError::NotGiven)?;
        let node = self.node_mut(index).ok_or(PoolError::NotGiven)?;
        node.state = State::Free;
        let units = node.units;
        self.free += units;
        while let Some(parent) = self.joinable(index) {
            let (whole, halves, handles) = parent;
            carver.join(handles).map_err(PoolError::Carver)?;
            for half in halves {
                self.nodes[half] = None;
            }
            if let Some(node) = self.node_mut(whole) {
                node.state = State::Free;
            }
            index = whole;
        }
        Ok(())
    }

    /// The parent of a free node whose other half is free too: its index, halves and handles.
    fn joinable(&self, index: usize) -> Option<(usize, [usize; 2], [H; 2])> {
        let node = |index: usize| self.nodes.get(index)?.as_ref();
        let whole = node(index)?.parent?;
        let State::Split(halves) = node(whole)?.state else {
            return None;
        };
        let [first, second] = [node(halves[0])?, node(halves[1])?];
        (first.state == State::Free && second.state == State::Free).then_some((
            whole,
            halves,
            [first.handle, second.handle],
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    /// Memory as the core has it: carved from its beginning, whole when nothing is left of it.
    #[derive(Default)]
    struct Model {
        /// By handle: start and units.
        live: BTreeMap<u32, (u64, u64)>,
        next: u32,
        /// Splits until one fails.
        patience: u32,
    }

    impl Model {
        fn make(&mut self, start: u64, units: u64) -> u32 {
            self.next += 1;
            self.live.insert(self.next, (start, units));
            self.next
        }
    }

    impl Carver for Model {
        type Handle = u32;
        type Error = ();

        fn split(&mut self, whole: u32, first: u64, second: u64) -> Result<[u32; 2], ()> {
            self.patience = self.patience.checked_sub(1).ok_or(())?;
            let (start, units) = self.live[&whole];
            assert_eq!(first + second, units);
            Ok([self.make(start, first), self.make(start + first, second)])
        }

        fn join(&mut self, halves: [u32; 2]) -> Result<(), ()> {
            for half in halves {
                assert!(self.live.remove(&half).is_some(), "joined twice");
            }
            Ok(())
        }
    }

    fn pool(sizes: &[u64]) -> (Model, Pool<u32>) {
        let (mut model, mut pool) = (Model::default(), Pool::default());
        model.patience = u32::MAX;
        let mut start = 0;
        for &size in sizes {
            let handle = model.make(start, size);
            pool.add(handle, size);
            start += size + 100;
        }
        (model, pool)
    }

    #[test]
    fn all_that_was_given_back_is_one_piece_again() {
        let (mut model, mut pool) = pool(&[100]);
        let handles: Vec<u32> = (1..=9)
            .map(|units| pool.take(&mut model, units).unwrap())
            .collect();
        assert_eq!(pool.free(), 55);
        for handle in handles {
            pool.give(&mut model, handle).unwrap();
        }
        assert_eq!(pool.take(&mut model, 100), Ok(1));
    }

    #[test]
    fn what_was_not_given_cannot_be_given_back() {
        let (mut model, mut pool) = pool(&[10]);
        let handle = pool.take(&mut model, 3).unwrap();
        pool.give(&mut model, handle).unwrap();
        assert_eq!(pool.give(&mut model, handle), Err(PoolError::NotGiven));
        assert_eq!(pool.give(&mut model, 77), Err(PoolError::NotGiven));
    }

    #[test]
    fn a_guest_gets_pieces_where_no_piece_is_large_enough() {
        let (mut model, mut pool) = pool(&[4, 6, 3]);
        assert_eq!(pool.take(&mut model, 7), Err(PoolError::NoMemory));
        let pieces = pool.take_pieces(&mut model, 12).unwrap();
        assert_eq!(pieces.iter().map(|piece| piece.1).sum::<u64>(), 12);
        assert_eq!(pool.free(), 1);
        assert_eq!(pool.take_pieces(&mut model, 2), Err(PoolError::NoMemory));
        for (handle, _) in pieces {
            pool.give(&mut model, handle).unwrap();
        }
        assert_eq!(pool.free(), 13);
    }

    #[test]
    fn a_failure_in_the_middle_gives_everything_back() {
        let (mut model, mut pool) = pool(&[4, 6]);
        model.patience = 0;
        assert_eq!(
            pool.take_pieces(&mut model, 9),
            Err(PoolError::Carver(())),
            "the last piece has to be split"
        );
        assert_eq!(pool.free(), 10);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn nothing_is_given_twice_and_nothing_is_lost(
            sizes in proptest::collection::vec(1u64..200, 1..4),
            steps in proptest::collection::vec((any::<bool>(), 1u64..80, any::<prop::sample::Index>()), 1..80),
        ) {
            let (mut model, mut pool) = pool(&sizes);
            let total: u64 = sizes.iter().sum();
            let mut given: Vec<(u32, u64)> = Vec::new();
            for (take, units, which) in steps {
                if take {
                    let before = pool.free();
                    match pool.take_pieces(&mut model, units) {
                        Ok(pieces) => given.extend(pieces),
                        Err(error) => {
                            prop_assert_eq!(error, PoolError::NoMemory);
                            prop_assert!(before < units);
                        }
                    }
                } else if !given.is_empty() {
                    let (handle, _) = given.swap_remove(which.index(given.len()));
                    pool.give(&mut model, handle).unwrap();
                }
                let held: u64 = given.iter().map(|piece| piece.1).sum();
                prop_assert_eq!(pool.free() + held, total);
                let mut places: Vec<(u64, u64)> = given.iter().map(|(handle, units)| {
                    assert_eq!(model.live[handle].1, *units);
                    model.live[handle]
                }).collect();
                places.sort_unstable();
                for pair in places.windows(2) {
                    prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0, "two hold the same memory");
                }
            }
            for (handle, _) in given {
                pool.give(&mut model, handle).unwrap();
            }
            // Whole again: as many handles as there were in the beginning.
            prop_assert_eq!(model.live.len(), sizes.len());
        }
    }
}
