//! What belongs to the running thread: its message buffer and a few bytes behind it.
//!
//! Every thread lives in a block of [`BLOCK`] bytes of address space, aligned to its size: the
//! message buffer at a fixed offset, the stack at the end. So the stack pointer tells the thread
//! apart, without a segment register. Root's block has the addresses of `abi::boot`, and those of
//! other components are the same; further threads have the blocks below.

use microvisor_abi::boot;

/// Size and alignment of a thread's block.
pub const BLOCK: u64 = 16 << 20;
/// Offset of the message buffer in the block.
pub const BUFFER_OFFSET: u64 = boot::BUFFER_ADDRESS - FIRST_BLOCK;
/// Offset of the end of the stack in the block.
pub const STACK_END: u64 = boot::STACK_TOP - FIRST_BLOCK;
/// Block of a component's first thread.
pub const FIRST_BLOCK: u64 = boot::INFO_ADDRESS;
/// Offset in the message buffer of the slot of this thread's sleep notification.
const SLEEP_SLOT: usize = 4064;
/// Bytes of the buffer.
pub(crate) const BUFFER_BYTES: usize = 4096;

const _: () = assert!(FIRST_BLOCK.is_multiple_of(BLOCK) && STACK_END == BLOCK);
const _: () = assert!(SLEEP_SLOT >= microvisor_abi::message::RECEIVE_SLOTS + 16);

/// Block of thread `index`; 0 is the first.
pub const fn block(index: u32) -> u64 {
    FIRST_BLOCK - index as u64 * BLOCK
}

/// Lets `work` use this thread's message buffer.
///
/// `work` makes no system call and does not call this again; everything in the crate that uses it
/// is a copy in or out.
#[cfg(target_os = "none")]
#[inline(always)]
pub(crate) fn with_buffer<R>(work: impl FnOnce(&mut [u8; BUFFER_BYTES]) -> R) -> R {
    let stack: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack)) };
    let address = (stack & !(BLOCK - 1)) + BUFFER_OFFSET;
    // SAFETY: whoever started this thread mapped its buffer there, writable, and no other thread
    // has its stack in this block. The core writes it only during system calls of this thread,
    // and none is made while the reference lives.
    work(unsafe { &mut *(address as *mut [u8; BUFFER_BYTES]) })
}

#[cfg(not(target_os = "none"))]
pub(crate) use crate::host::with_buffer;

fn word(offset: usize) -> u32 {
    with_buffer(|buffer| {
        buffer
            .get(offset..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    })
}

fn set_word(offset: usize, value: u32) {
    with_buffer(|buffer| {
        if let Some(bytes) = buffer
            .get_mut(offset..)
            .and_then(|rest| rest.first_chunk_mut())
        {
            *bytes = value.to_le_bytes();
        }
    });
}

/// Slot of a notification that nobody signals, for sleeping; 0 if there is none yet.
pub(crate) fn sleep_slot() -> u32 {
    word(SLEEP_SLOT)
}

/// Remembers it.
pub(crate) fn set_sleep_slot(slot: u32) {
    set_word(SLEEP_SLOT, slot);
}
