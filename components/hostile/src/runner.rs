//! Runs code on this component's second thread and hears how that ended: the component supervises
//! a thread of its own, by binding the thread's faults to its own notification instead of root's.

use sdk::abi::thread::Report;
use sdk::local;
use sdk::memory::{self, ORDER_4K, OWN_SPACE};
use sdk::prelude::*;
use sdk::startup::SLOT_CAP_SPACE;

use crate::claim::after;

/// Where code to run is mapped. `sdk::memory` hands out no addresses this high.
pub const CODE: u64 = 0x3800_0000_0000;
/// Bytes of code at most.
const CODE_BYTES: usize = 4096;

/// The second thread.
pub struct Runner {
    right: ThreadRight,
    faults: Cap<cap::Notification>,
    /// The page at [`CODE`], writable.
    page: u64,
}

/// Maps a page for code: writable where it is answered, executable at `at`.
pub fn code_page(at: u64) -> Result<u64, Status> {
    let mapped = memory::allocate(1)?;
    let copy = mapped.frames.copy(Rights::READ.or(Rights::EXECUTE))?;
    let flags = sdk::abi::cap::Map::READ | sdk::abi::cap::Map::EXECUTE;
    memory::map_into(memory::own(), OWN_SPACE, copy, at, flags)?;
    Ok(mapped.address)
}

/// Writes code into a page that [`code_page`] answered, `offset` bytes in.
pub fn write_code(page: u64, offset: usize, code: &[u8]) {
    for (index, byte) in code
        .iter()
        .enumerate()
        .take(CODE_BYTES.saturating_sub(offset))
    {
        // SAFETY: inside the page, which is mapped writable for good and has no references.
        unsafe { ((page as usize + offset + index) as *mut u8).write_volatile(*byte) };
    }
}

impl Runner {
    /// Takes the second thread.
    pub fn new(env: &Env) -> Result<Runner, Status> {
        let Some(&right) = env.threads.first() else {
            env.missing("threads", "1")
        };
        let faults: Cap<cap::Notification> = env.memory().retype(0)?;
        faults.bind_faults(right.thread())?;
        Ok(Runner {
            right,
            faults,
            page: code_page(CODE)?,
        })
    }

    /// The thread.
    pub fn thread(&self) -> Cap<cap::Thread> {
        self.right.thread()
    }

    /// Top of its stack.
    pub fn stack(&self) -> u64 {
        local::block(self.right.block) + local::STACK_END
    }

    /// Starts it at `entry` with `argument` in `rdi`.
    pub fn start(&self, caps: Cap<cap::CapSpace>, entry: u64, argument: u64) -> Result<(), Status> {
        let thread = self.thread();
        // It may be waiting, or ready, from the last time.
        thread.suspend()?;
        self.faults.poll()?;
        // A stack pointer as after a call (System V psABI, 3.2.2).
        thread.configure(OWN_SPACE, caps, entry, self.stack() - 8, argument)?;
        thread.resume()
    }

    /// Waits until it faults; `None` if it does not within so many milliseconds.
    pub fn ended(&self, milliseconds: u64) -> Result<Option<Report>, Status> {
        match self.faults.wait(after(milliseconds)) {
            Ok(_) => self.thread().inspect().map(Some),
            Err(Status::Timeout) => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Runs `code` with the own capabilities until it faults.
    pub fn run(&self, code: &[u8]) -> Result<Option<Report>, Status> {
        write_code(self.page, 0, code);
        self.start(Cap::new(SLOT_CAP_SPACE), CODE, 0)?;
        self.ended(5000)
    }
}

/// Frames of 4 KiB.
pub const SMALL: u64 = ORDER_4K;
