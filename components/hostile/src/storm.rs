//! Role `hostile-storm`: seeded random system calls, all numbers, from a thread whose capability
//! space holds one of each kind of object, made of one piece of memory. After each seed the piece
//! is revoked, and everything must be gone: the piece is whole again, the space names nothing.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use sdk::abi::Call;
use sdk::prelude::*;

use crate::claim::{Outcome, claim};
use crate::raw::{self, Random};
use crate::runner::{Runner, SMALL};

/// Seeds, and calls of each.
const SEEDS: u64 = 20;
const CALLS: u64 = 2000;
/// Frames of the piece of memory that everything is made of.
const PIECE: u64 = 192;
/// Frames of the memory that the storm itself may retype.
const LOOSE: u64 = 24;
/// Slots of the storm's space that hold something at first; the rest are empty, to 63.
const FILLED: u64 = 24;
const SLOTS: u64 = 63;
/// Numbers that are tried: all calls and some beyond.
const NUMBERS: u64 = 28;

/// Calls made in this seed.
static DONE: AtomicU64 = AtomicU64::new(0);
/// How often each status was answered.
static STATUSES: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];

/// The storm. It runs without the sdk: its capability space is not the one that the sdk knows.
extern "C" fn storm(seed: u64) -> ! {
    let mut random = Random(seed);
    for _ in 0..CALLS {
        let number = random.below(NUMBERS);
        let mut arguments = [(); 6].map(|()| argument(&mut random));
        // Calls that nobody will answer cost a cancellation each: a few are enough.
        let blocks = number == Call::Call as u64 && random.below(8) != 0;
        if random.below(4) != 0 && !blocks {
            plausible(number, &mut arguments, &mut random);
        }
        // SAFETY: the space holds no frame that this program maps, and not its address space.
        let (rax, _) = unsafe { raw::call(number, arguments) };
        if let Some(count) = STATUSES.get(rax as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        DONE.fetch_add(1, Ordering::Relaxed);
    }
    sdk::panic::stop()
}

/// An argument that often means something: slots, small numbers, addresses, times, garbage.
fn argument(random: &mut Random) -> u64 {
    let small = random.below(SLOTS + 2);
    match random.below(16) {
        0..=6 => random.below(FILLED + 1),
        7 => small,
        8 => random.below(8),
        9 => small | (random.below(4)) << 32,
        // kind | size << 8
        10 => random.below(16) | [0, 1, 2, 12, 21, 30, 513][random.below(7) as usize] << 8,
        11 => random.below(1 << 35) & !0xfff,
        12 => [
            0,
            1,
            u64::MAX,
            1 << 63,
            0x7fff_ffff_f000,
            0xffff_8000_0000_0000,
            1 << 47,
        ][random.below(7) as usize],
        // A moment ago, or soon.
        13 => sdk::time::now().wrapping_add(random.below(20_000)),
        14 => random.next(),
        _ => 0,
    }
}

/// One of these.
fn one(random: &mut Random, of: &[u64]) -> u64 {
    of[random.below(of.len() as u64) as usize]
}

/// Makes the first arguments of a call ones that it may well carry out: objects of the kind that
/// it works on, in the slots where `furnish` put them.
fn plausible(number: u64, a: &mut [u64; 6], random: &mut Random) {
    let Some(call) = Call::from_raw(number) else {
        return;
    };
    let spaces = [0, 0, 16, 22];
    let now = sdk::time::now();
    match call {
        Call::Retype => {
            a[0] = 1;
            a[1] = one(
                random,
                &[
                    3,
                    4,
                    5,
                    8,
                    9,
                    10,
                    12,
                    5 | 1 << 8,
                    2 | 12 << 8,
                    1 | 2 << 8,
                    4 | 1 << 8,
                ],
            );
            a[2] = one(random, &spaces);
            a[3] = random.below(SLOTS) | 1 << 32;
        }
        Call::Copy => {
            a[0] = 1 + random.below(FILLED);
            a[1] = one(random, &spaces);
            a[2] = random.below(SLOTS);
            a[3] = random.below(8);
            a[4] = one(random, &[0, 0, 0, 1, 4096]);
            a[5] = one(random, &[0, 0, 0, 12]);
        }
        Call::Move => {
            a[0] = one(random, &spaces);
            a[1] = 1 + random.below(SLOTS);
            a[2] = one(random, &spaces);
            a[3] = 1 + random.below(SLOTS);
        }
        // Rarely, or nothing would be left to call.
        Call::Delete | Call::Revoke => {
            a[0] = one(random, &spaces);
            a[1] = FILLED + random.below(SLOTS);
        }
        Call::Map => {
            a[0] = one(random, &[8, 9, 10, 11, 17, 21]);
            a[1] = one(random, &[12, 13]);
            a[2] = random.below(64) << 12;
            a[3] = 1 + random.below(3);
        }
        Call::Unmap => a[0] = one(random, &[8, 9, 10, 11, 17, 21]),
        Call::Fill => (a[0], a[1]) = (one(random, &[12, 13]), one(random, &[14, 15])),
        Call::ThreadConfigure => {
            (a[0], a[1], a[2]) = (one(random, &[17, 18]), 12, one(random, &[16, 22]));
            (a[3], a[4]) = (random.below(1 << 47), random.below(1 << 47));
        }
        Call::ThreadControl => (a[0], a[1]) = (one(random, &[17, 18]), random.below(5)),
        Call::SchedSet => a[0] = one(random, &[19, 20]),
        Call::Bind => {
            (a[0], a[1], a[2]) = (
                one(random, &[6, 7, 19, 20]),
                one(random, &[0, 17, 18, 21]),
                random.below(5),
            );
        }
        Call::Call | Call::Receive | Call::ReplyReceive => {
            a[0] = one(random, &[2, 3]);
            a[1] = one(random, &[0, 4, 5]);
            if call == Call::Receive {
                a[2] = one(random, &[0, 0, now, now + 20_000]);
            }
        }
        Call::Reply => (a[0], a[1]) = (one(random, &[4, 5]), 0),
        Call::Signal => (a[0], a[1]) = (one(random, &[6, 7]), random.next()),
        Call::Wait => (a[0], a[1]) = (one(random, &[6, 7]), one(random, &[0, now, now + 20_000])),
        Call::VcpuRun => a[0] = 21,
        Call::VcpuControl => {
            (a[0], a[1], a[2]) = (21, random.below(7), one(random, &[13, 0, 1, 127]))
        }
        _ => {}
    }
}

/// Plays the role.
pub fn main(env: &Env) {
    claim("random_calls_touch_only_what_they_name", seeds(env));
    log::info!("role done");
}

fn failed(what: &'static str) -> impl Fn(Status) -> String {
    move |status| format!("{what}: {status:?}")
}

fn seeds(env: &Env) -> Outcome {
    let runner = Runner::new(env).map_err(failed("second thread"))?;
    let piece: Cap<cap::Memory> = env.memory().retype(PIECE).map_err(failed("make"))?;
    // What is not the storm's: it must look the same afterwards.
    let untouched: Cap<cap::Notification> = env.memory().retype(0).map_err(failed("make"))?;
    let mut total = 0;
    for seed in 0..SEEDS {
        let caps = furnish(piece).map_err(|status| format!("seed {seed}: furnish: {status:?}"))?;
        DONE.store(0, Ordering::Relaxed);
        let entry = storm as *const () as u64;
        runner.start(caps, entry, seed).map_err(failed("start"))?;
        weather(&runner).map_err(|why| format!("seed {seed}: {why}"))?;
        total += DONE.load(Ordering::Relaxed);
        runner.thread().suspend().map_err(failed("suspend"))?;
        piece.revoke().map_err(failed("revoke"))?;
        // All of it, in one object: nothing was lost, nothing is still in use.
        let whole: Cap<cap::Memory> = piece
            .retype(PIECE)
            .map_err(|status| format!("seed {seed}: the memory is not whole: {status:?}"))?;
        whole.delete().map_err(failed("delete"))?;
        match untouched.poll() {
            Ok(0) => {}
            other => return Err(format!("seed {seed}: a notification has bits: {other:?}")),
        }
    }
    let seen = STATUSES
        .iter()
        .filter(|count| count.load(Ordering::Relaxed) != 0)
        .count();
    // A storm in which little succeeds tests little.
    let good = STATUSES[Status::Ok as usize].load(Ordering::Relaxed);
    if good * 8 < total || seen < 10 {
        return Err(format!(
            "only {good} of {total} calls succeeded, {seen} statuses"
        ));
    }
    Ok(format!(
        "{SEEDS} seeds, {total} calls, {good} succeeded, {seen} statuses"
    ))
}

/// Waits until the storm has ended; what blocks is cancelled, what suspends itself is resumed.
fn weather(runner: &Runner) -> Result<(), String> {
    let end = crate::claim::after(60_000);
    let mut before = u64::MAX;
    loop {
        if let Some(report) = runner.ended(1).map_err(failed("wait"))? {
            if DONE.load(Ordering::Relaxed) == CALLS && report.vector == 6 {
                return Ok(());
            }
            return Err(format!(
                "it died: vector {} at {:#x} (address {:#x}) after {} calls",
                report.vector,
                report.registers.rip,
                report.address,
                DONE.load(Ordering::Relaxed)
            ));
        }
        let done = DONE.load(Ordering::Relaxed);
        if done == before {
            let _ = runner.thread().cancel();
            let _ = runner.thread().resume();
        }
        before = done;
        if sdk::time::now() > end {
            return Err(format!("it hangs after {done} calls"));
        }
    }
}

/// One of each kind, in slots 1 and up of a new space.
fn furnish(piece: Cap<cap::Memory>) -> Result<Cap<cap::CapSpace>, Status> {
    // Everything goes when the piece is revoked: these slots are empty again then.
    let caps: Cap<cap::CapSpace> = piece.retype(1)?;
    piece.retype_in::<cap::Memory>(LOOSE, caps, 1, 1)?;
    piece.retype_in::<cap::Endpoint>(0, caps, 2, 2)?;
    piece.retype_in::<cap::Reply>(0, caps, 4, 2)?;
    piece.retype_in::<cap::Notification>(0, caps, 6, 2)?;
    piece.retype_in::<cap::Frame>(SMALL, caps, 8, 4)?;
    piece.retype_in::<cap::AddressSpace>(SpaceKind::Host as u64, caps, 12, 1)?;
    piece.retype_in::<cap::AddressSpace>(SpaceKind::Guest as u64, caps, 13, 1)?;
    piece.retype_in::<cap::Tables>(4, caps, 14, 2)?;
    piece.retype_in::<cap::CapSpace>(1, caps, 16, 1)?;
    piece.retype_in::<cap::Thread>(0, caps, 17, 2)?;
    piece.retype_in::<cap::SchedContext>(0, caps, 19, 2)?;
    // A machine without virtualisation has none.
    let _ = piece.retype_in::<cap::Vcpu>(0, caps, 21, 1);
    caps.copy_to(CopyTo {
        space: caps,
        slot: 22,
        rights: Rights::ALL,
        badge: 0,
        order: 0,
    })?;
    Ok(caps)
}
