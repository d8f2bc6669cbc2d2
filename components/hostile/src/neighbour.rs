//! Role `neighbour`: a component that does nothing wrong beside those that do everything wrong. It
//! beats, checks that nobody touched its memory, lends a page and takes it back, and calls a server
//! that never answers.

use alloc::format;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sdk::memory::{self, Mapped};
use sdk::prelude::*;

use crate::claim::{after, claim, pause};
use crate::wires::{LENT, Lender, LenderServer, MuteClient, PRIVATE};

/// Milliseconds between beats.
const BEAT: u64 = 250;
/// Beats after which it judges, and milliseconds between two that are too many. Its turn comes
/// after 10 ms; the rest is for an emulator on a busy machine.
const BEATS: u64 = 40;
const STARVED: u64 = 12_000;
/// Words of memory that it keeps an eye on.
const WORDS: usize = 4096;

/// What became of the call to the mute server: 0 nothing yet, 1 it was cancelled, 2 anything else.
static CALLED: AtomicU64 = AtomicU64::new(0);
/// The caller is about to call.
static CALLING: AtomicBool = AtomicBool::new(false);

/// Plays the role. Its threads: this one serves the page, the second beats, the third calls the
/// mute server and the fourth ends that call.
pub fn main(env: &Env) {
    let [beat, call, watch, ..] = env.threads.as_slice() else {
        env.missing("threads", "3")
    };
    let spawned = sdk::thread::spawn(*beat, |_| beats())
        .and_then(|()| {
            let mute = env.transport("mute");
            sdk::thread::spawn(*call, move |_| ask(mute))
        })
        .and_then(|()| {
            let caller = call.thread();
            sdk::thread::spawn(*watch, move |_| give_up(caller))
        });
    if let Err(status) = spawned {
        panic!("a thread does not start: {status:?}");
    }
    let outcome = serve_pages(env);
    panic!("it serves no more: {outcome:?}");
}

fn pattern(index: usize) -> u64 {
    (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5ec4_e7a1
}

/// Beats for ever, and says how long it was kept waiting at most since the last line.
fn beats() {
    let mut memory = alloc::vec![0u64; WORDS];
    for (index, word) in memory.iter_mut().enumerate() {
        *word = pattern(index);
    }
    let (mut number, mut longest, mut last) = (0u64, 0, sdk::time::now());
    let mut judged = false;
    loop {
        pause(BEAT * 1000);
        let now = sdk::time::now();
        longest = longest.max(now.saturating_sub(last) / sdk::time::tsc_khz());
        last = now;
        number += 1;
        let memory = core::hint::black_box(&memory);
        if let Some(index) = (0..WORDS).find(|&index| memory[index] != pattern(index)) {
            let why = format!("word {index} is {:#x}", memory[index]);
            return claim("the_neighbours_memory_is_its_own", Err::<&str, _>(why));
        }
        if !judged && (longest > STARVED || number == BEATS) {
            judged = true;
            let outcome = match longest > STARVED {
                true => Err(format!("{longest} ms without a turn")),
                false => Ok(format!("{number} beats, {longest} ms between two at most")),
            };
            claim("a_loop_starves_nobody_of_its_priority", outcome);
        }
        if number.is_multiple_of(8) {
            log::info!("beat {number}, waited {longest} ms at most");
            if judged {
                longest = 0;
            }
        }
    }
}

fn ask(mute: sdk::ipc::EndpointTransport) {
    CALLING.store(true, Ordering::SeqCst);
    // Without the schema check of `connect`, which the mute would keep as well.
    let outcome = MuteClient::connect(mute).map(|_| ());
    let text = format!("{outcome:?}");
    CALLED.store(
        if text.contains("Cancelled") { 1 } else { 2 },
        Ordering::SeqCst,
    );
    if CALLED.load(Ordering::SeqCst) == 2 {
        log::warn!("the mute server: {text}");
    }
}

/// The deadline of that call.
fn give_up(caller: Cap<cap::Thread>) {
    while !CALLING.load(Ordering::SeqCst) {
        pause(1000);
    }
    pause(300_000);
    let waited = CALLED.load(Ordering::SeqCst) == 0;
    let cancelled = caller.cancel();
    let end = after(3000);
    while CALLED.load(Ordering::SeqCst) == 0 && sdk::time::now() < end {
        pause(1000);
    }
    let outcome = match (waited, CALLED.load(Ordering::SeqCst)) {
        (true, 1) => Ok("it hears Cancelled"),
        (false, _) => Err("the mute server answered".into()),
        (true, 0) => Err(format!("it still waits; cancel said {cancelled:?}")),
        (true, _) => Err(format!(
            "it heard something else; cancel said {cancelled:?}"
        )),
    };
    claim("a_client_gives_up_on_a_mute_server", outcome);
}

struct Pages {
    page: Mapped,
}

impl Pages {
    fn write(&self, word: u64) {
        // SAFETY: a page of this component's own, mapped for good; others only ever read it.
        unsafe { (self.page.address as *mut u64).write_volatile(word) };
    }
}

impl LenderServer for Pages {
    fn lend(&mut self, _client: u64) -> Result<Cap<cap::Frame>, u32> {
        self.write(LENT);
        self.page
            .frames
            .copy(Rights::READ)
            .map_err(|status| status as u32)
    }

    fn take_back(&mut self, _client: u64) -> Result<(), u32> {
        // All that was derived from the frame, wherever it is; not the frame, nor its mapping here.
        let revoked = self.page.frames.revoke();
        self.write(PRIVATE);
        revoked.map_err(|status| status as u32)
    }
}

impl Notified for Pages {
    fn notified(&mut self, _bits: u64) {}
}

fn serve_pages(env: &Env) -> Status {
    let page = match memory::allocate(1) {
        Ok(page) => page,
        Err(status) => return status,
    };
    let mut pages = Pages { page };
    let caps = <Lender as idl::Interface>::REQUEST_CAPS;
    let mut receiver = match Receiver::new(env.endpoint("lender"), REPLY, caps) {
        Ok(receiver) => receiver,
        Err(status) => return status,
    };
    match SupervisorClient::connect(env.transport("supervisor")).map(|root| root.ready()) {
        Ok(Ok(())) => {}
        other => log::error!(
            "root does not hear that the neighbour serves: {:?}",
            other.is_ok()
        ),
    }
    serve::<Lender, _>(&mut receiver, &mut pages)
}
