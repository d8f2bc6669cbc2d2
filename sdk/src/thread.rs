//! Further threads of a component. Root made them, with stack, message buffer and scheduling
//! context; what is left is to say what they do.

use alloc::boxed::Box;

use idl::Cap;
use idl::cap::{AddressSpace, CapSpace, Thread};
use microvisor_abi::Status;

use crate::caps::ThreadCap;
use crate::local;
use crate::startup::{SLOT_ADDRESS_SPACE, SLOT_CAP_SPACE, ThreadRight};

type Work = Box<dyn FnOnce() + Send>;

/// Runs `work` on a thread that root provided (`Startup::threads`, `GuestStart::vcpu_threads`).
/// The thread gets the capability it runs by. When `work` returns the thread stops for good.
pub fn spawn(
    right: ThreadRight,
    work: impl FnOnce(Cap<Thread>) + Send + 'static,
) -> Result<(), Status> {
    let thread = right.thread();
    let work: Work = Box::new(move || {
        crate::time::prepare();
        work(thread);
        // Stops here: nothing resumes it.
        loop {
            let _ = thread.suspend();
        }
    });
    let argument = Box::into_raw(Box::new(work));
    let space: Cap<AddressSpace> = Cap::new(SLOT_ADDRESS_SPACE);
    let caps: Cap<CapSpace> = Cap::new(SLOT_CAP_SPACE);
    let stack = local::block(right.block) + local::STACK_END;
    let started = thread
        .configure(space, caps, entry(), stack, argument as u64)
        .and_then(|()| thread.resume());
    if started.is_err() {
        // SAFETY: the thread did not start, so the box is still ours.
        drop(unsafe { Box::from_raw(argument) });
    }
    started
}

#[cfg(target_os = "none")]
fn entry() -> u64 {
    start as *const () as u64
}

#[cfg(not(target_os = "none"))]
fn entry() -> u64 {
    0
}

/// First instructions of a thread: end of the frame pointer chain, then Rust.
#[cfg(target_os = "none")]
#[unsafe(naked)]
unsafe extern "C" fn start(argument: u64) -> ! {
    core::arch::naked_asm!(
        "xor ebp, ebp",
        "and rsp, -16",
        "call {run}",
        "ud2",
        run = sym run,
    )
}

#[cfg(target_os = "none")]
extern "C" fn run(argument: u64) -> ! {
    // SAFETY: `spawn` passed a box that it leaked for this thread alone.
    let work = unsafe { Box::from_raw(argument as *mut Work) };
    work();
    crate::panic::stop()
}
