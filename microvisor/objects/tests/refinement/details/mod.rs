//! What only the crate itself can ask: entries of tables bit by bit, checks whose case no small machine
//! brings about. Not refinement, but beside it in the same program.

mod entries;
mod frames;
mod limits;

use crate::arena::Arena;
use std::vec;
use std::vec::Vec;

/// Physical memory from `first` on, so many frames, with nothing before it.
struct Memory {
    arena: Arena,
    _memory: Vec<u64>,
    _table: Vec<u32>,
}

impl Memory {
    fn new(first: u64, frames: u64) -> Memory {
        let mut memory = vec![0u64; (frames as usize + 1) * 512];
        let mut table = vec![0u32; (first + frames) as usize];
        let base = memory.as_mut_ptr().cast::<u8>();
        let base = base.wrapping_add(base.align_offset(4096));
        let zero = base.wrapping_sub((first as usize) << 12);
        // SAFETY: the vectors live as long as the arena and are reached through it only; no test here
        // gives it an address below `first`.
        let arena = unsafe { Arena::new(zero, table.as_mut_ptr(), first + frames) };
        Memory {
            arena,
            _memory: memory,
            _table: table,
        }
    }
}
