//! Which slots of the own capability space are free. Every capability that this component makes or
//! receives lands in a slot taken here. Slots below [`FIRST`] are given by whoever started us.

use crate::sync::Mutex;

/// First slot that is not fixed by the start contract.
pub const FIRST: u32 = 16;
/// Slots that are managed; a capability space may be larger, the rest is not used.
const MOST: usize = 1 << 16;

/// A bitmap of slots; set means taken.
pub(crate) struct Slots {
    taken: [u64; MOST / 64],
    /// Slots in the space.
    count: u32,
    /// Where the next search begins.
    hint: u32,
}

impl Slots {
    pub(crate) const fn new() -> Self {
        Slots {
            taken: [0; MOST / 64],
            count: 0,
            hint: 0,
        }
    }

    fn mark(&mut self, slot: u32, taken: bool) {
        if let Some(word) = self.taken.get_mut(slot as usize / 64) {
            let bit = 1 << (slot % 64);
            *word = if taken { *word | bit } else { *word & !bit };
        }
    }

    pub(crate) fn is_free(&self, slot: u32) -> bool {
        slot < self.count
            && self
                .taken
                .get(slot as usize / 64)
                .is_some_and(|word| word & (1 << (slot % 64)) == 0)
    }

    /// Everything from `first` to `count` is free.
    pub(crate) fn init(&mut self, first: u32, count: u32) {
        self.count = count.min(MOST as u32);
        self.hint = first;
        for slot in 0..first.min(self.count) {
            self.mark(slot, true);
        }
    }

    fn take_run(&mut self, length: u32) -> Option<u32> {
        for start in [self.hint, 1] {
            let mut slot = start;
            let mut run = 0;
            while slot < self.count {
                run = if self.is_free(slot) { run + 1 } else { 0 };
                slot += 1;
                if run == length {
                    let first = slot - length;
                    (first..slot).for_each(|slot| self.mark(slot, true));
                    self.hint = slot;
                    return Some(first);
                }
            }
        }
        None
    }

    pub(crate) fn free(&self) -> u32 {
        let taken: u32 = self.taken.iter().map(|word| word.count_ones()).sum();
        self.count.saturating_sub(taken)
    }

    fn give_back(&mut self, slot: u32) {
        self.mark(slot, false);
        self.hint = self.hint.min(slot).max(1);
    }
}

static SLOTS: Mutex<Slots> = Mutex::new(Slots::new());

/// Lets `work` use the slots of the running component.
fn with<R>(work: impl FnOnce(&mut Slots) -> R) -> R {
    #[cfg(not(target_os = "none"))]
    if let Some(component) = crate::host::component() {
        return work(&mut component.slots());
    }
    work(&mut SLOTS.lock())
}

/// Says which slots are free; the entry code calls it once.
pub(crate) fn init(first: u32, count: u32) {
    with(|slots| slots.init(first, count));
}

/// An empty slot; `None` when the capability space is full.
pub fn take() -> Option<u32> {
    take_run(1)
}

/// The first of `length` consecutive empty slots.
pub fn take_run(length: u32) -> Option<u32> {
    if length == 0 {
        return None;
    }
    with(|slots| slots.take_run(length))
}

/// How many slots are empty.
pub fn free() -> u32 {
    with(|slots| slots.free())
}

/// Gives an empty slot back. The capability in it must be gone.
pub fn give_back(slot: u32) {
    if slot != 0 {
        with(|slots| slots.give_back(slot));
    }
}

/// Deletes a capability that may be gone by itself, with what it came from: its slot is free afterwards.
pub fn discard<K>(cap: idl::Cap<K>) {
    use crate::caps::AnyCap;
    if cap.delete() == Err(microvisor_abi::Status::InvalidCap) {
        give_back(cap.slot());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_consecutive_and_disjoint() {
        let mut slots = Slots::new();
        slots.init(16, 128);
        assert_eq!(slots.take_run(1), Some(16));
        assert_eq!(slots.take_run(100), Some(17));
        assert_eq!(slots.take_run(12), None);
        assert_eq!(slots.take_run(11), Some(117));
        assert_eq!(slots.take_run(1), None);
        assert_eq!(slots.free(), 0);
        slots.give_back(40);
        slots.give_back(41);
        assert_eq!(slots.free(), 2);
        assert_eq!(slots.take_run(2), Some(40));
        assert_eq!(slots.take_run(1), None);
    }

    #[test]
    fn slots_beyond_the_space_do_not_exist() {
        let mut slots = Slots::new();
        slots.init(1, 1 << 20);
        slots.give_back(u32::MAX);
        assert_eq!(slots.take_run(MOST as u32 - 1), Some(1));
        assert_eq!(slots.take_run(1), None);
    }
}
