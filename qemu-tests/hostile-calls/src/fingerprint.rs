//! A number for the calls of a seed: what was recorded holds for the same number only.
//!
//! For: the suite, which keeps it beside recorded answers, and the test that pins the sequence.

use crate::call::{Arena, Call, Seed};
use crate::{BLOCK, CALLS};

/// FNV-1a, 64 bits (Fowler, Noll, Vo).
struct Sum(u64);

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Takes what calls put into memory into the sum. No page is ever present.
impl Arena for Sum {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.add(&address.to_le_bytes());
        self.add(bytes);
    }

    fn is_present(&self, _: u64) -> bool {
        false
    }
}

/// The number of seed `number` made by the domain `own`: of its calls with their arguments, memory
/// included, and of how often the domain returns to its known state.
#[must_use]
pub fn fingerprint(number: u64, own: u16) -> u64 {
    let mut sum = Sum(0xcbf2_9ce4_8422_2325);
    sum.add(&CALLS.to_le_bytes());
    sum.add(&BLOCK.to_le_bytes());
    let mut seed = Seed::new(number, own);
    for _ in 0..CALLS {
        let Call {
            number, arguments, ..
        } = seed.next(&mut sum);
        sum.add(&number.to_le_bytes());
        for argument in arguments {
            sum.add(&argument.to_le_bytes());
        }
    }
    sum.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changed calls make what is recorded of Xen void: `cargo suite oracle --full` then.
    #[test]
    fn seeds_make_the_calls_that_were_recorded() {
        let all = (0..100).fold(0u64, |sum, seed| sum.rotate_left(1) ^ fingerprint(seed, 1));
        assert_eq!(
            (fingerprint(0, 1), all),
            (2_599_019_108_900_824_911, 4_013_178_306_070_263_381)
        );
    }

    #[test]
    fn another_seed_and_another_domain_make_other_calls() {
        assert_ne!(fingerprint(0, 1), fingerprint(1, 1));
        assert_ne!(fingerprint(0, 1), fingerprint(0, 2));
    }
}
