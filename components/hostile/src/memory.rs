//! Roles `hostile-memory`, which takes all the memory and slots it can get and looks for what
//! others left in it, and `hostile-borrower`, which reads on in memory that was taken back.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use sdk::memory::{self, READ, READ_WRITE};
use sdk::prelude::*;

use crate::claim::{Outcome, claim};
use crate::runner::{Runner, SMALL};
use crate::wires::{LENT, LenderClient, PRIVATE};

/// What is left in memory before it is given back.
const TRACE: u64 = 0x0007_4ace_0f5e_c4e7;

/// Plays `hostile-memory`.
pub fn main(env: &Env) {
    claim("memory_is_zero_when_it_changes_hands", zeroed(env));
    claim("all_slots_can_be_used_up", slots(env));
    claim("all_memory_can_be_used_up", everything(env));
    log::info!("role done");
}

fn failed(what: &'static str) -> impl Fn(Status) -> String {
    move |status| format!("{what}: {status:?}")
}

/// Writes into frames, gives their memory back, takes it again as frames and as message buffers.
fn zeroed(env: &Env) -> Outcome {
    const FRAMES: u32 = 16;
    let piece: Cap<cap::Memory> = env.memory().retype(FRAMES.into()).map_err(failed("make"))?;
    let round = |write: bool| -> Result<u64, Status> {
        let frames: Cap<cap::Frame> = piece.retype_many(SMALL, FRAMES)?;
        let bytes = u64::from(FRAMES) * 4096;
        let address = memory::reserve(bytes)?;
        let own = env.memory();
        memory::map_run(
            own,
            memory::OWN_SPACE,
            frames,
            FRAMES,
            SMALL,
            address,
            READ_WRITE,
        )?;
        let mut found = 0;
        for place in (address..address + bytes).step_by(8) {
            // SAFETY: mapped just now, writable, and referred to by nobody.
            unsafe {
                found += u64::from((place as *const u64).read_volatile() != 0);
                if write {
                    (place as *mut u64).write_volatile(TRACE);
                }
            }
        }
        Ok(found)
    };
    round(true).map_err(failed("write"))?;
    piece.revoke().map_err(failed("revoke"))?;
    let found = round(false).map_err(failed("read"))?;
    if found != 0 {
        return Err(format!("{found} words of what was there before"));
    }
    piece.revoke().map_err(failed("revoke"))?;
    let thread: Cap<cap::Thread> = piece.retype(0).map_err(failed("thread"))?;
    let buffer = memory::map(thread, 4096, READ).map_err(failed("buffer"))?;
    for place in (buffer..buffer + 4096).step_by(8) {
        // SAFETY: mapped just now, readable.
        if unsafe { (place as *const u64).read_volatile() } != 0 {
            return Err("a message buffer has words of what was there before".into());
        }
    }
    Ok(format!("{FRAMES} frames, a message buffer"))
}

/// Copies until no slot is left, and gives them back.
fn slots(env: &Env) -> Outcome {
    let note: Cap<cap::Notification> = env.memory().retype(0).map_err(failed("make"))?;
    let mut taken = alloc::vec::Vec::new();
    let why = loop {
        match note.copy(Rights::SIGNAL) {
            Ok(copy) => taken.push(copy),
            Err(status) => break status,
        }
        if taken.len() > env.slots as usize {
            return Err(format!("{} copies in {} slots", taken.len(), env.slots));
        }
    };
    let count = taken.len();
    for copy in taken {
        copy.delete().map_err(failed("delete"))?;
    }
    note.signal(1).map_err(failed("afterwards"))?;
    if why == Status::SlotOccupied {
        Ok(format!("{count} slots"))
    } else {
        Err(format!("after {count} copies: {why:?}"))
    }
}

/// Takes frames until there are none. The heap may be short from here on.
fn everything(env: &Env) -> Outcome {
    let before = env.memory_frames;
    let mut frames = 0u64;
    let mut first = None;
    let why = loop {
        match env.memory().retype::<cap::Frame>(SMALL) {
            Ok(frame) => {
                first.get_or_insert(frame);
                frames += 1;
            }
            Err(status) => break status,
        }
        if frames > before {
            return Err(format!("{frames} frames out of {before}"));
        }
    };
    // One back, so that there is memory to tell it with.
    let again = first.ok_or(Status::NoMemory).and_then(AnyCap::delete);
    again.map_err(failed("give one back"))?;
    match why {
        Status::NoMemory | Status::SlotOccupied => Ok(format!("{frames} of {before} frames")),
        other => Err(format!("after {frames} frames: {other:?}")),
    }
}

/// What the reader saw last, and how often it looked.
static SEEN: AtomicU64 = AtomicU64::new(0);
static READS: AtomicU64 = AtomicU64::new(0);

/// Reads one word for ever.
extern "C" fn read_on(address: u64) -> ! {
    loop {
        // SAFETY: the page is mapped when this starts; afterwards it faults, which is what this
        // thread is for.
        let word = unsafe { (address as *const u64).read_volatile() };
        SEEN.store(word, Ordering::SeqCst);
        READS.fetch_add(1, Ordering::SeqCst);
    }
}

/// Plays `hostile-borrower`, on another CPU than the lender.
pub fn borrower(env: &Env) {
    claim("memory_taken_back_is_out_of_reach", borrow(env));
    log::info!("role done");
}

/// How often a page is lent. A CPU that was not told forgets the translation as well when it happens
/// to change to another component in between: once proves little.
const LOANS: u32 = 20;

fn borrow(env: &Env) -> Outcome {
    let runner = Runner::new(env).map_err(failed("second thread"))?;
    let lender = LenderClient::connect(env.transport("lender"))
        .map_err(|error| format!("no lender: {error:?}"))?;
    let mut reads = 0;
    for loan in 0..LOANS {
        reads += borrow_once(&lender, &runner).map_err(|why| format!("loan {loan}: {why}"))?;
    }
    Ok(format!("{LOANS} loans, {reads} reads"))
}

/// One loan: how often it was read.
fn borrow_once(lender: &LenderClient<EndpointTransport>, runner: &Runner) -> Result<u64, String> {
    let frame = lender
        .lend()
        .map_err(|error| format!("nothing lent: {error:?}"))?;
    let address = memory::map(frame, 4096, READ).map_err(failed("map"))?;
    let entry = read_on as *const () as u64;
    READS.store(0, Ordering::SeqCst);
    runner
        .start(Cap::new(sdk::startup::SLOT_CAP_SPACE), entry, address)
        .map_err(failed("start"))?;
    // The other thread shares this CPU: let it read, so that the translation is cached here.
    let end = crate::claim::after(5000);
    while READS.load(Ordering::SeqCst) < 1000 {
        crate::claim::pause(1000);
        if sdk::time::now() > end {
            return Err("the lent page cannot be read".into());
        }
    }
    if SEEN.load(Ordering::SeqCst) != LENT {
        return Err("the lent page is another one".into());
    }
    lender
        .take_back()
        .map_err(|error| format!("not taken back: {error:?}"))?;
    let report = runner.ended(3000).map_err(failed("wait"))?;
    let seen = SEEN.load(Ordering::SeqCst);
    if seen == PRIVATE {
        return Err("it reads what the owner wrote afterwards".into());
    }
    let Some(report) = report else {
        return Err("it reads on".into());
    };
    if report.vector != 14 || report.address != address {
        return Err(format!("vector {} at {:#x}", report.vector, report.address));
    }
    Ok(READS.load(Ordering::SeqCst))
}
