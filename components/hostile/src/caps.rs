//! Role `hostile-caps`: capabilities forged, exceeded, and used after they are gone. Each claim
//! makes what it needs out of this component's own memory.

use alloc::format;
use alloc::string::String;

use sdk::abi::cap::Map;
use sdk::abi::{Call, Kind};
use sdk::memory::{self, READ, READ_WRITE};
use sdk::prelude::*;

use crate::claim::{Outcome, claim};
use crate::raw::{self, Random};
use crate::runner::{Runner, SMALL};

/// Calls whose first argument is a capability space, or 0 for the own one.
const SPACE_FIRST: &[u64] = &[
    Call::Move as u64,
    Call::Delete as u64,
    Call::Revoke as u64,
    Call::Inspect as u64,
];

/// Plays the role.
pub fn main(env: &Env) {
    claim("an_empty_slot_names_nothing", empty_slots(env));
    claim("an_unknown_call_is_refused", unknown_calls());
    claim("a_right_that_was_not_given_cannot_be_used", rights(env));
    claim("a_copy_has_no_more_rights", copies(env));
    claim("a_capability_of_another_kind_is_refused", kinds(env));
    claim("memory_ends_where_it_ends", memory_end(env));
    claim("a_revoked_capability_is_gone", revoked(env));
    claim("a_destroyed_object_stays_destroyed", destroyed(env));
    log::info!("role done");
}

/// A call whose effect is known to be none, or within what the claim made itself.
fn call(number: u64, arguments: [u64; 6]) -> Status {
    // SAFETY: callers pass capabilities that name nothing, or objects they made for this; none is
    // a frame that a reference points into.
    let (rax, _) = unsafe { raw::call(number, arguments) };
    raw::status(rax).unwrap_or(Status::Ok)
}

fn expect(what: &str, got: Status, wanted: &[Status]) -> Result<(), String> {
    if wanted.contains(&got) {
        Ok(())
    } else {
        Err(format!("{what}: {got:?}"))
    }
}

fn is(what: &str, got: Result<impl Sized, Status>, wanted: Status) -> Result<(), String> {
    expect(what, got.err().unwrap_or(Status::Ok), &[wanted])
}

fn failed(what: &'static str) -> impl Fn(Status) -> String {
    move |status| format!("{what}: {status:?}")
}

/// Every slot from the first empty one to the end and beyond, and wild words, by every call.
fn empty_slots(env: &Env) -> Outcome {
    let mut random = Random(1);
    let mut calls = 0;
    // What this component makes from now on lands in low slots: begin well above.
    let first = u64::from(env.free_slot) + 256;
    let ends = [0, 1, 64, 1 << 20];
    let inside = first..u64::from(env.slots);
    let beyond = ends.map(|more| u64::from(env.slots) + more);
    let wild = [
        u64::from(u32::MAX),
        1 << 32,
        1 << 32 | 5,
        1 << 63,
        u64::MAX,
        0xffff_8000_0000_0000,
    ];
    for slot in inside.chain(beyond).chain(wild) {
        for number in (1..=64).filter(|&number| Call::from_raw(number).is_some()) {
            let rest = [
                random.below(64),
                random.next(),
                random.below(8),
                random.below(64),
            ];
            let mut arguments = [slot, rest[0], rest[1], rest[2], rest[3], 0];
            // An endpoint in the low half, a reply in the high half.
            if number == Call::ReplyReceive as u64 {
                arguments[0] = slot & 0xffff_ffff | 6 << 32;
            }
            if number == Call::ReplyReceive as u64 && slot & 0xffff_ffff < first {
                continue;
            }
            let status = call(number, arguments);
            calls += 1;
            let space_first = SPACE_FIRST.contains(&number);
            // A kind, a role or an operation that does not exist may be noticed first.
            let good = [
                Status::InvalidCap,
                Status::InvalidArgument,
                Status::Unsupported,
            ];
            if !good.contains(&status) {
                return Err(format!(
                    "call {number} on slot {slot:#x} ({space_first}): {status:?}"
                ));
            }
        }
    }
    Ok(format!("{calls} calls"))
}

fn unknown_calls() -> Outcome {
    let mut random = Random(2);
    let mut numbers = 0;
    let low = (0..=256).filter(|&number| Call::from_raw(number).is_none());
    for number in low.chain([1 << 32 | 1, 1 << 63 | 3, u64::MAX, u64::MAX - 1]) {
        let arguments = [(); 6].map(|()| random.next());
        expect(
            &format!("call {number:#x}"),
            call(number, arguments),
            &[Status::InvalidCall],
        )?;
        numbers += 1;
    }
    Ok(format!("{numbers} numbers"))
}

fn rights(env: &Env) -> Outcome {
    let own = env.memory();
    let make = failed("make");
    let note: Cap<cap::Notification> = own.retype(0).map_err(&make)?;
    let endpoint: Cap<cap::Endpoint> = own.retype(0).map_err(&make)?;
    let reply: Cap<cap::Reply> = own.retype(0).map_err(&make)?;
    let frame: Cap<cap::Frame> = own.retype(SMALL).map_err(&make)?;
    let space = own.address_space(SpaceKind::Guest).map_err(&make)?;

    let listener = note.copy(Rights::WAIT).map_err(&make)?;
    is("signal without SIGNAL", listener.signal(1), Status::NoRight)?;
    expect("bits after that", Status::Ok, &[Status::Ok])?;
    if note.poll().map_err(failed("poll"))? != 0 {
        return Err("the refused signal arrived".into());
    }
    let signaller = note.copy(Rights::SIGNAL).map_err(&make)?;
    is("wait without WAIT", signaller.wait(NOW), Status::NoRight)?;
    is(
        "bind without WAIT",
        signaller.bind_messages(env.thread()),
        Status::NoRight,
    )?;
    let receiver = endpoint.copy(Rights::RECEIVE).map_err(&make)?;
    let arguments = [receiver.slot().into(), 0, 0, 0, 0, 0];
    expect(
        "call without CALL",
        call(Call::Call as u64, arguments),
        &[Status::NoRight],
    )?;
    let caller = endpoint.copy(Rights::CALL).map_err(&make)?;
    let arguments = [caller.slot().into(), reply.slot().into(), NOW, 0, 0, 0];
    expect(
        "receive without RECEIVE",
        call(Call::Receive as u64, arguments),
        &[Status::NoRight],
    )?;
    let passive = reply.copy(Rights::NONE).map_err(&make)?;
    let arguments = [passive.slot().into(), 0, 0, 0, 0, 0];
    expect(
        "reply without USE",
        call(Call::Reply as u64, arguments),
        &[Status::NoRight],
    )?;
    for (rights, flags) in [
        (Rights::READ, READ_WRITE),
        (Rights::READ.or(Rights::WRITE), Map::READ | Map::EXECUTE),
        (Rights::NONE, READ),
    ] {
        let weak = frame.copy(rights).map_err(&make)?;
        let mapped = memory::map(weak, 4096, flags).map(|_| ());
        is(
            &format!("map with {flags:#x} by {:#x}", rights.0),
            mapped,
            Status::NoRight,
        )?;
    }
    let idle = space.copy(Rights::NONE).map_err(&make)?;
    is(
        "map into a space without USE",
        memory::map_into(own, idle, frame, 0x1000, READ),
        Status::NoRight,
    )?;
    Ok("10 calls".into())
}

/// A copy of a copy asks for everything, and for more than there is.
fn copies(env: &Env) -> Outcome {
    let own = env.memory();
    let make = failed("make");
    let frame: Cap<cap::Frame> = own.retype(SMALL).map_err(&make)?;
    let weak = frame.copy(Rights::READ).map_err(&make)?;
    let strong = weak.copy(Rights::ALL).map_err(failed("copy"))?;
    let written = memory::map(strong, 4096, READ_WRITE).map(|_| ());
    is(
        "write through a copy of a read-only frame",
        written,
        Status::NoRight,
    )?;
    let large = CopyTo {
        space: OWN,
        slot: env.slots - 1,
        rights: Rights::ALL,
        badge: 0,
        order: 21,
    };
    is(
        "a copy larger than the frame",
        frame.copy_to(large),
        Status::InvalidArgument,
    )?;
    let outside = CopyTo {
        badge: 4096,
        order: 12,
        ..large
    };
    is(
        "a copy behind the frame",
        frame.copy_to(outside),
        Status::InvalidArgument,
    )?;
    let note: Cap<cap::Notification> = own.retype(0).map_err(&make)?;
    let badged = note.mint(Rights::ALL, 2).map_err(&make)?;
    is(
        "another badge",
        badged.mint(Rights::ALL, 4),
        Status::InvalidArgument,
    )?;
    is(
        "a second name of memory",
        own.copy(Rights::ALL),
        Status::WrongKind,
    )?;
    Ok("5 calls".into())
}

/// Every object by every call that wants another kind.
fn kinds(env: &Env) -> Outcome {
    let own = env.memory();
    let make = failed("make");
    let note: Cap<cap::Notification> = own.retype(0).map_err(&make)?;
    let frame: Cap<cap::Frame> = own.retype(SMALL).map_err(&make)?;
    let (note, frame) = (u64::from(note.slot()), u64::from(frame.slot()));
    let mut calls = 0;
    for (number, wants) in [
        (Call::Reply, Kind::Reply),
        (Call::Signal, Kind::Notification),
        (Call::Wait, Kind::Notification),
        (Call::VcpuControl, Kind::Vcpu),
        (Call::VcpuRun, Kind::Vcpu),
        (Call::Retype, Kind::Memory),
        (Call::Fill, Kind::AddressSpace),
        (Call::ThreadConfigure, Kind::Thread),
        (Call::ThreadControl, Kind::Thread),
        (Call::SchedSet, Kind::SchedContext),
        (Call::InterruptControl, Kind::Interrupt),
        (Call::PortsGrant, Kind::IoPorts),
        // Last: if they are not refused they may wait for ever.
        (Call::Call, Kind::Endpoint),
        (Call::Receive, Kind::Endpoint),
        (Call::ReplyReceive, Kind::Endpoint),
    ] {
        for (slot, kind) in [(note, Kind::Notification), (frame, Kind::Frame)] {
            if kind == wants {
                continue;
            }
            let first = match number {
                Call::ReplyReceive => slot | 6 << 32,
                _ => slot,
            };
            let arguments = match number {
                // An object to make, and a place for it.
                Call::Retype => [
                    first,
                    Kind::Reply as u64,
                    0,
                    (u64::from(env.slots) - 1) | (1 << 32),
                    0,
                    0,
                ],
                // A deadline that is over.
                Call::Wait => [first, 0, 0, 0, 0, 0],
                _ => [first, 0, 0, 0, 0, 0],
            };
            let status = call(number as u64, arguments);
            expect(
                &format!("{number:?} on a {kind:?}"),
                status,
                &[Status::WrongKind],
            )?;
            calls += 1;
        }
    }
    Ok(format!("{calls} calls"))
}

fn memory_end(env: &Env) -> Outcome {
    let own = env.memory();
    let make = failed("make");
    let piece: Cap<cap::Memory> = own.retype(4).map_err(&make)?;
    let big = piece.retype::<cap::Memory>(5);
    is("five frames of four", big, Status::NoMemory)?;
    let wild = piece.retype::<cap::Memory>(u64::from(u32::MAX));
    is("all memory there is", wild, Status::NoMemory)?;
    is(
        "a large frame",
        piece.retype::<cap::Frame>(21),
        Status::NoMemory,
    )?;
    let four: Cap<cap::Notification> = piece.retype_many(0, 4).map_err(failed("four of four"))?;
    is(
        "a fifth of four",
        piece.retype::<cap::Notification>(0),
        Status::NoMemory,
    )?;
    four.signal(1).map_err(failed("signal"))?;
    Ok("5 calls".into())
}

fn revoked(env: &Env) -> Outcome {
    let own = env.memory();
    let make = failed("make");
    let note: Cap<cap::Notification> = own.retype(0).map_err(&make)?;
    let child = note.mint(Rights::ALL, 1).map_err(&make)?;
    let grandchild = child.copy(Rights::ALL).map_err(&make)?;
    note.revoke().map_err(failed("revoke"))?;
    for (what, cap) in [("child", child), ("grandchild", grandchild)] {
        is(
            &format!("signal by the {what}"),
            cap.signal(1),
            Status::InvalidCap,
        )?;
        is(
            &format!("copy of the {what}"),
            cap.copy(Rights::ALL),
            Status::InvalidCap,
        )?;
    }
    note.signal(4).map_err(failed("its own is good"))?;
    match note.poll() {
        Ok(4) => Ok("5 calls".into()),
        other => Err(format!("bits are {other:?}")),
    }
}

/// A thread's faults go to a notification that is destroyed; its frame becomes another
/// notification. A reference that outlived its object must not find the new one.
fn destroyed(env: &Env) -> Outcome {
    let runner = Runner::new(env).map_err(failed("second thread"))?;
    let make = failed("make");
    let piece: Cap<cap::Memory> = env.memory().retype(1).map_err(&make)?;
    let old: Cap<cap::Notification> = piece.retype(0).map_err(&make)?;
    old.bind_faults(runner.thread()).map_err(failed("bind"))?;
    old.delete().map_err(failed("delete"))?;
    let new: Cap<cap::Notification> = piece.retype(0).map_err(&make)?;
    // ud2
    let report = runner.run(&[0x0f, 0x0b]).map_err(failed("run"))?;
    if report.is_some() {
        return Err("its fault was still told to the component's notification".into());
    }
    let state = runner.thread().inspect().map_err(failed("inspect"))?.state;
    if state != sdk::abi::thread::State::Faulted as u64 {
        return Err(format!("the thread is in state {state}"));
    }
    match new.poll() {
        Ok(0) => Ok("one frame, two notifications".into()),
        other => Err(format!(
            "a stranger's fault signalled the new notification: {other:?}"
        )),
    }
}
