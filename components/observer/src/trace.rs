//! Role `observer`: makes the same calls in every round, among them those that fail, and notes what
//! comes back: statuses, results, what is in its capability space, bits, messages, and what is in
//! memory that it just got. It notes nothing that tells time, and says nothing before it has noted all.

use alloc::vec::Vec;

use sdk::abi::{Call, FRAME, Kind, NOW};
use sdk::memory::{self, ORDER_4K, READ_WRITE};
use sdk::prelude::*;
use sdk::time;

/// Rounds, and microseconds from one to the next: the neighbour has most of them.
const ROUNDS: usize = 60;
const ROUND: u64 = 2_000;
/// Numbers of calls that are tried: all, and some beyond.
const NUMBERS: u64 = 28;

/// What a round saw.
struct Round {
    /// How the wait for its time ended.
    woken: Status,
    /// Bits that came.
    bits: u64,
    /// What `Receive` said, and with what words.
    receive: Status,
    message: u64,
    /// Of all slots: what they name.
    slots: u64,
    /// Frames handed out of its memory.
    used: u64,
    /// What making, mapping, filling and ending things said.
    work: u64,
    /// What calls said that can only fail.
    refused: u64,
}

/// A running sum of words that depends on their order (FNV-1a, by words instead of bytes).
struct Sum(u64);

impl Sum {
    fn new() -> Sum {
        Sum(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    }

    fn add_result(&mut self, result: Result<u64, Status>) {
        match result {
            Ok(word) => {
                self.add(Status::Ok as u64);
                self.add(word);
            }
            Err(status) => self.add(status as u64),
        }
    }
}

/// Plays the role.
pub fn main(env: &Env) {
    super::ready(env);
    // What will be mapped again and again, and the page tables for it.
    let Ok(address) = memory::reserve(FRAME) else {
        return log::error!("no addresses");
    };
    let mut rounds = Vec::with_capacity(ROUNDS);
    let (mut latest, mut longest) = (0, 0);
    let start = time::now();
    for number in 1..=ROUNDS as u64 {
        let due = start + time::microseconds(number * ROUND);
        let woken = time::sleep_until(due).err().unwrap_or(Status::Ok);
        let began = time::now();
        let round = observe(env, address, woken);
        latest = latest.max(began.saturating_sub(due));
        longest = longest.max(time::now() - began);
        rounds.push(round);
    }
    for (number, round) in rounds.iter().enumerate() {
        let Round {
            woken,
            bits,
            receive,
            message,
            slots,
            used,
            work,
            refused,
        } = round;
        log::info!(
            "trace {number}: woken {woken:?}, bits {bits:#x}, received {receive:?} {message:#x}, \
             slots {slots:#x}, used {used}, work {work:#x}, refused {refused:#x}"
        );
    }
    log::info!("time: woken up to {latest} late, a round up to {longest}");
    log::info!("role done");
}

/// One round.
fn observe(env: &Env, address: u64, woken: Status) -> Round {
    let own: Cap<cap::Notification> = Cap::new(sdk::startup::SLOT_NOTIFICATION);
    let bits = own.poll().unwrap_or(u64::MAX);
    let (receive, message) = received(env);
    let mut slots = Sum::new();
    let mut used = 0;
    for slot in 0..env.slots {
        match sdk::caps::inspect(OWN, slot) {
            Ok(what) => {
                slots.add(what.kind as u64 | u64::from(what.rights.0) << 8);
                slots.add(u64::from(what.order) | u64::from(what.mapped) << 8);
                slots.add(what.number);
                slots.add(what.more);
                if what.kind == Kind::Memory {
                    used += what.more;
                }
            }
            Err(status) => slots.add(status as u64),
        }
    }
    Round {
        woken,
        bits,
        receive,
        message,
        slots: slots.0,
        used,
        work: work(address),
        refused: refused(env),
    }
}

/// What waits at the endpoint that it serves. Whoever called is answered with nothing.
fn received(env: &Env) -> (Status, u64) {
    let arguments = [
        env.endpoint("bench").slot().into(),
        REPLY.slot().into(),
        NOW,
        0,
        0,
        0,
    ];
    let (status, results) = call(Call::Receive as u64, arguments);
    let mut sum = Sum::new();
    results.into_iter().for_each(|word| sum.add(word));
    if status == Status::Ok {
        let answer = [REPLY.slot().into(), 0, 0, 0, 0, 0];
        sum.add(call(Call::Reply as u64, answer).0 as u64);
        return (status, sum.0);
    }
    (status, 0)
}

/// Makes one of each thing that needs no other, uses it and ends it.
fn work(address: u64) -> u64 {
    let mut sum = Sum::new();
    let mut step = |result: Result<u64, Status>| sum.add_result(result);
    let frame: Result<Cap<cap::Frame>, Status> = memory::own().retype(ORDER_4K);
    step(frame.map(|frame| frame.slot().into()));
    if let Ok(frame) = frame {
        let mapped = memory::map_into(memory::own(), memory::OWN_SPACE, frame, address, READ_WRITE);
        step(mapped.map(|()| 0));
        if mapped.is_ok() {
            for word in (0..FRAME).step_by(8) {
                let place = (address + word) as *mut u64;
                // SAFETY: mapped above, for this function alone, until the frame goes below.
                unsafe {
                    step(Ok(place.read_volatile()));
                    place.write_volatile(word | 1);
                    step(Ok(place.read_volatile()));
                }
            }
        }
        step(frame.delete().map(|()| 0));
    }
    let note: Result<Cap<cap::Notification>, Status> = memory::own().retype(0);
    step(note.map(|note| note.slot().into()));
    if let Ok(note) = note {
        step(note.signal(5).map(|()| 0));
        step(note.poll());
        step(note.wait(time::now() + time::microseconds(20)));
        step(note.delete().map(|()| 0));
    }
    let endpoint: Result<Cap<cap::Endpoint>, Status> = memory::own().retype(0);
    step(endpoint.map(|endpoint| endpoint.slot().into()));
    if let Ok(endpoint) = endpoint {
        let badged = endpoint.mint(Rights::CALL, 9);
        step(badged.map(|badged| badged.slot().into()));
        step(endpoint.revoke().map(|()| 0));
        if let Ok(badged) = badged {
            step(badged.delete().map(|()| 0));
        }
        step(endpoint.delete().map(|()| 0));
    }
    sum.0
}

/// Every call with slots in which nothing is, in its own space and of no space at all.
fn refused(env: &Env) -> u64 {
    let mut sum = Sum::new();
    for slot in [u64::from(env.slots) - 1, u64::from(env.slots) + 7, 1 << 33] {
        for number in 1..=NUMBERS {
            // What it would wait for comes at once, if at all.
            let (status, results) = call(number, [slot, slot, NOW, slot, slot, slot]);
            sum.add(status as u64);
            results.into_iter().for_each(|word| sum.add(word));
        }
    }
    sum.0
}

/// A call that changes no memory, because it names no object that holds any.
fn call(number: u64, arguments: [u64; 6]) -> (Status, [u64; 6]) {
    // SAFETY: callers name empty slots, or the own endpoint and reply object; the core writes into the
    // message buffer at most, to which nothing refers meanwhile.
    let (rax, results) = unsafe { sdk::raw::system_call(number, arguments) };
    (
        Status::from_raw(rax).unwrap_or(Status::InvalidCall),
        results,
    )
}
