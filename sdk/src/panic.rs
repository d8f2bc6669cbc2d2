//! Panics end in a fault that tells root why: `ud2` with [`MAGIC`] in `rax` and the message, which
//! lies on the panicking thread's stack, in `rdi` (address) and `rsi` (bytes). Root reads it when
//! it reports the fault, and walks the frame pointers from `rbp`.

/// In `rax` at the `ud2` of a panic.
pub const MAGIC: u64 = 0x504a_4943_5641_4d31;
/// Bytes of a panic message at most.
pub const MESSAGE_BYTES: usize = 512;

/// Ends the thread by a fault without a message.
pub fn stop() -> ! {
    #[cfg(target_os = "none")]
    // SAFETY: the fault ends the thread.
    unsafe {
        core::arch::asm!("ud2", options(noreturn))
    }
    #[cfg(not(target_os = "none"))]
    panic!("stopped")
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    use core::fmt::Write;
    let mut message = heapless::String::<MESSAGE_BYTES>::new();
    // A message that is too long is cut.
    let _ = write!(message, "{info}");
    // SAFETY: the fault ends the thread; root reads the message while the stack is as it is now.
    unsafe {
        core::arch::asm!(
            "ud2",
            in("rax") MAGIC,
            in("rdi") message.as_ptr(),
            in("rsi") message.len(),
            options(noreturn)
        )
    }
}
