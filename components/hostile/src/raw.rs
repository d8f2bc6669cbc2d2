//! System calls as a hostile program makes them: any number, any registers.

pub use sdk::raw::system_call as call;

use sdk::abi::Status;

/// The status that a number means; a number that is none is an error of its own.
pub fn status(rax: u64) -> Result<Status, u64> {
    Status::from_raw(rax).ok_or(rax)
}

/// Pseudo-random numbers (splitmix64, Steele et al. 2014): the same for the same seed.
pub struct Random(pub u64);

impl Random {
    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}
