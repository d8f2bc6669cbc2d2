//! Memory that outlives its component's instances (`keep` in the system's description), as words: what the
//! next instance goes on from is noted there. For components whose state survives their death; what the words
//! mean is theirs alone.
//!
//! An instance may die between any two stores, so each is one word and none passes another.

use microvisor_abi::Status;

use crate::dma::{Region, Space};
use crate::startup::DmaRight;

/// Words of 64 bits that outlive their user. Stores are done in program order. Tests put memory of their own in
/// its place.
pub trait Area {
    /// How many words.
    fn words(&self) -> u64;
    /// The word with this number; 0 beyond the end.
    fn read(&self, word: u64) -> u64;
    /// Stores it; nothing beyond the end.
    fn write(&mut self, word: u64, value: u64);
}

/// Nothing outlives: for systems without kept memory.
impl Area for () {
    fn words(&self) -> u64 {
        0
    }
    fn read(&self, _: u64) -> u64 {
        0
    }
    fn write(&mut self, _: u64, _: u64) {}
}

/// The memory that root keeps for a component.
#[derive(Clone, Copy, Debug)]
pub struct Kept(Region);

impl Kept {
    /// Maps it (`Env::keep`), for good.
    pub fn map(right: &DmaRight) -> Result<Kept, Status> {
        // No device uses it: its addresses are nobody's business.
        Space::new(false)?.map(right).map(Kept)
    }
}

/// Its stores are volatile, so none passes another.
impl Area for Kept {
    fn words(&self) -> u64 {
        self.0.bytes() / 8
    }
    fn read(&self, word: u64) -> u64 {
        word.checked_mul(8).map_or(0, |at| self.0.read64(at))
    }
    fn write(&mut self, word: u64, value: u64) {
        if let Some(at) = word.checked_mul(8) {
            self.0.write64(at, value);
        }
    }
}
