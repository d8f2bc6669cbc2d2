//! Walking the frame pointers of a dead component and naming what is found. The dead component's
//! memory is hostile: chains may be circular, unaligned or lead anywhere.

use core::fmt;

use sdk::abi::symbols;

/// Frames that a backtrace shows at most.
pub const DEPTH: usize = 24;

/// Return addresses, innermost first: `rip` itself, then what the frame pointers from `rbp` lead
/// to. `read` answers the word at an address of the dead component.
pub fn walk(
    rip: u64,
    rbp: u64,
    mut read: impl FnMut(u64) -> Option<u64>,
) -> heapless::Vec<u64, DEPTH> {
    let mut found = heapless::Vec::new();
    // The vector is empty: the push succeeds.
    let _ = found.push(rip);
    let mut frame = rbp;
    while frame != 0 && frame.is_multiple_of(8) {
        let (Some(next), Some(address)) = (read(frame), frame.checked_add(8).and_then(&mut read))
        else {
            break;
        };
        if address == 0 || found.push(address).is_err() {
            break;
        }
        // Frames of callers lie above; anything else is damage or a circle.
        if next <= frame {
            break;
        }
        frame = next;
    }
    found
}

/// An address with its function's name, from a `symbols/` file.
pub struct Named<'a> {
    /// The address.
    pub address: u64,
    /// The file; empty if there is none.
    pub symbols: &'a [u8],
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match symbols::lookup(self.symbols, self.address) {
            Some((name, offset)) => write!(f, "{:#x} {name}+{offset:#x}", self.address),
            None => write!(f, "{:#x}", self.address),
        }
    }
}

/// Name of an exception vector (Intel SDM vol. 3, 6.3.1).
pub fn vector_name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range",
        6 => "invalid opcode",
        7 => "no FPU",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        19 => "SIMD error",
        _ => "exception",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use alloc::format;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn frames_are_followed_to_the_end_of_the_chain() {
        let memory = BTreeMap::from([(0x100, 0x200u64), (0x108, 11), (0x200, 0), (0x208, 22)]);
        let found = walk(10, 0x100, |address| memory.get(&address).copied());
        assert_eq!(&found[..], [10, 11, 22]);
    }

    #[test]
    fn a_circular_chain_ends() {
        let memory = BTreeMap::from([(0x100, 0x100u64), (0x108, 11)]);
        let found = walk(10, 0x100, |address| memory.get(&address).copied());
        assert_eq!(&found[..], [10, 11]);
    }

    #[test]
    fn addresses_are_named_from_the_symbol_file() {
        let mut file = Vec::new();
        file.extend(1u32.to_le_bytes());
        file.extend(0x1000u64.to_le_bytes());
        for word in [0x20u32, 24, 4] {
            file.extend(word.to_le_bytes());
        }
        file.extend(b"main");
        let named = |address| {
            format!(
                "{}",
                Named {
                    address,
                    symbols: &file
                }
            )
        };
        assert_eq!(named(0x1010), "0x1010 main+0x10");
        assert_eq!(named(0x1020), "0x1020");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn any_memory_is_walked_in_bounded_time(words in proptest::collection::vec(any::<u64>(), 1..40), rbp: u64) {
            let found = walk(1, rbp & !7, |address| words.get((address / 8) as usize % 64).copied());
            prop_assert!(found.len() <= DEPTH);
        }
    }
}
