//! What is bound to what, who may say so, and how it ends: lines, bits for threads and guests, time on
//! CPUs, a thread that is set up anew. Short stories, called by `directed::stories`.

use super::directed::{Story, Told};
use super::driver::{Checked, Pair};
use microvisor_abi::cap::Role;
use microvisor_abi::thread::Op;
use microvisor_abi::{Call, FOREVER, Kind, Status, USER_END};
use microvisor_spec::Event;

/// Root's slots.
const SPACE: u64 = 2;
const INTERRUPTS: u64 = 6;
const CPUS: u64 = 7;

fn part(s: &mut Story, of: u64, to: u64, first: u64, count: u64, extra: u64) -> Checked {
    s.ok(Call::Copy, &[of, 0, to, 0xff, first | count << 32, extra])
}

/// A line has one owner at a time, is acknowledged by whoever has it, and follows its capability.
fn lines() -> Checked<Pair> {
    let mut s = Story::begin(2560)?;
    let (one, same, next, range, other) = (510, 511, 512, 513, 514);
    s.make(Kind::Notification, 0, 500)?;
    s.make(Kind::Notification, 0, 501)?;
    s.ok(Call::Copy, &[500, 0, 502, 0xff, 12, 0])?;
    part(&mut s, INTERRUPTS, one, 4, 1, 0)?;
    part(&mut s, INTERRUPTS, same, 4, 1, 0)?;
    part(&mut s, INTERRUPTS, next, 5, 1, 0)?;
    part(&mut s, INTERRUPTS, range, 3, 3, 0)?;
    part(&mut s, INTERRUPTS, other, 127, 1, 0)?;
    let line = |cap: u64, note: u64| [cap, note, Role::Line as u64];
    let acknowledge = |cap: u64, line: u64| [cap, line, 0];
    s.gets(0, Call::Bind, &line(range, 500), Status::InvalidArgument)?;
    s.ok(Call::Bind, &line(one, 500))?;
    s.gets(0, Call::Bind, &line(same, 500), Status::Busy)?;
    s.gets(0, Call::Bind, &line(one, 501), Status::Busy)?;
    // Only who bound it unbinds it.
    s.ok(Call::Bind, &line(same, 0))?;
    s.ok(Call::Bind, &line(other, 502))?;
    for number in [4, 127, 5, 126] {
        s.pair.event(Event::Interrupt { line: number })?;
    }
    s.ok(Call::Wait, &[500, 0])?;
    s.ok(Call::InterruptControl, &acknowledge(range, 4))?;
    s.ok(Call::InterruptControl, &acknowledge(other, 127))?;
    for (cap, number, want) in [
        (range, 2, Status::InvalidArgument),
        (range, 3, Status::NotBound),
        (range, 5, Status::NotBound),
        (range, 6, Status::InvalidArgument),
        (one, 3, Status::InvalidArgument),
        (one, 4, Status::Ok),
        (one, 5, Status::InvalidArgument),
        (next, 5, Status::NotBound),
    ] {
        s.gets(0, Call::InterruptControl, &acknowledge(cap, number), want)?;
    }
    // Who heard of it is gone: it can be bound again, and by another.
    s.ok(Call::Bind, &line(next, 501))?;
    s.ok(Call::Delete, &[0, 501])?;
    s.pair.event(Event::Interrupt { line: 5 })?;
    s.gets(
        0,
        Call::InterruptControl,
        &acknowledge(next, 5),
        Status::NotBound,
    )?;
    s.ok(Call::Bind, &line(next, 500))?;
    // It goes where its capability goes, and ends with it.
    s.ok(Call::Move, &[0, one, 0, 520])?;
    s.gets(0, Call::Bind, &line(same, 500), Status::Busy)?;
    s.pair.event(Event::Interrupt { line: 4 })?;
    s.ok(Call::InterruptControl, &acknowledge(520, 4))?;
    s.ok(Call::Delete, &[0, 520])?;
    s.ok(Call::Bind, &line(same, 500))?;
    s.ok(Call::Bind, &line(same, 0))?;
    s.pair.event(Event::Interrupt { line: 4 })?;
    s.pair.event(Event::Interrupt { line: 5 })?;
    s.ok(Call::InterruptControl, &acknowledge(next, 5))?;
    s.ok(Call::Delete, &[0, other])?;
    Ok(s.pair)
}

/// A notification is bound to one thread and one vCPU, and each of those to one notification; what is
/// gone binds nobody.
fn bits_for_one_each() -> Checked<Pair> {
    let mut s = Story::begin(2560)?;
    for note in 500..504 {
        s.make(Kind::Notification, 0, note)?;
    }
    for (kind, role, one, another) in [
        (Kind::Thread, Role::Messages, 510, 511),
        (Kind::Vcpu, Role::Run, 512, 513),
    ] {
        let bind = |note: u64, to: u64| [note, to, role as u64];
        s.make(kind, 0, one)?;
        s.make(kind, 0, another)?;
        s.ok(Call::Bind, &bind(500, one))?;
        for pair in [bind(500, another), bind(501, one), bind(500, one)] {
            s.gets(0, Call::Bind, &pair, Status::Busy)?;
        }
        s.ok(Call::Bind, &bind(501, another))?;
        s.ok(Call::Bind, &bind(501, 0))?;
        s.ok(Call::Bind, &bind(501, 0))?;
        s.gets(0, Call::Bind, &bind(501, one), Status::Busy)?;
        s.ok(Call::Bind, &bind(500, 0))?;
        s.ok(Call::Bind, &bind(500, another))?;
        // The notification goes, then the other side.
        s.make(Kind::Notification, 0, 520)?;
        s.ok(Call::Bind, &bind(520, one))?;
        s.ok(Call::Delete, &[0, 520])?;
        s.ok(Call::Bind, &bind(501, one))?;
        s.ok(Call::Delete, &[0, one])?;
        s.ok(Call::Bind, &bind(500, 0))?;
        s.ok(Call::Bind, &bind(501, another))?;
        s.ok(Call::Delete, &[0, another])?;
    }
    s.make(Kind::Endpoint, 0, 530)?;
    let server = |to: u64| [530, to, Role::Server as u64];
    s.gets(0, Call::Bind, &server(500), Status::InvalidArgument)?;
    s.ok(Call::Bind, &server(0))?;
    Ok(s.pair)
}

/// Time is given on the CPUs of the capability, up to its priority.
fn time_within_a_capability() -> Checked<Pair> {
    let mut s = Story::begin(2560)?;
    s.make(Kind::SchedContext, 0, 500)?;
    part(&mut s, CPUS, 501, 1, 1, 10)?;
    part(&mut s, CPUS, 502, 0, 1, 31)?;
    for (cap, cpu, priority, want) in [
        (501, 0, 10, Status::NoRight),
        (501, 1, 0, Status::Ok),
        (501, 1, 10, Status::Ok),
        (501, 1, 11, Status::NoRight),
        (501, 2, 10, Status::NoRight),
        (502, 0, 31, Status::Ok),
        (502, 1, 5, Status::NoRight),
        (CPUS, 1, 31, Status::Ok),
        (CPUS, 2, 5, Status::NoRight),
        (CPUS, 0, 32, Status::NoRight),
    ] {
        s.gets(0, Call::SchedSet, &[500, cap, cpu, priority, 1, 1], want)?;
    }
    Ok(s.pair)
}

/// A thread that is set up anew has nothing of its former life: registers, refusals, a guest.
fn a_new_life() -> Checked<Pair> {
    let mut s = Story::begin(2560)?;
    s.make(Kind::Vcpu, 0, 500)?;
    s.make(Kind::AddressSpace, 1, 501)?;
    s.make(Kind::AddressSpace, 2, 502)?;
    s.make(Kind::CapSpace, 1, 503)?;
    s.make(Kind::AddressSpace, 0, 504)?;
    s.ok(Call::VcpuControl, &[500, 0, 501])?;
    s.thread(510, 15)?;
    let anew = |space: u64, caps: u64, begin: u64, stack: u64| [510, space, caps, begin, stack, 7];
    s.look(1)?;
    for busy in 0..2 {
        s.gets(
            0,
            Call::ThreadConfigure,
            &anew(SPACE, 1, 0, 0),
            Status::Busy,
        )?;
        s.gets(
            0,
            Call::ThreadControl,
            &[510, Op::Resume as u64],
            Status::Busy,
        )?;
        s.gets(1, Call::Unmap, &[599], Status::InvalidCap)?;
        s.gets(1, Call::Unmap, &[SPACE], Status::WrongKind)?;
        if busy == 0 {
            s.blocks(1, Call::VcpuRun, &[500])?;
            s.ok(Call::ThreadControl, &[510, Op::Suspend as u64])?;
        } else {
            s.pair.event(Event::Fault {
                cpu: 1,
                fault: [14, 2, 0x1234],
            })?;
        }
        s.look(1)?;
        for space in [501, 502] {
            let args = anew(space, 503, 0x1000, 0x2000);
            s.gets(0, Call::ThreadConfigure, &args, Status::WrongKind)?;
        }
        for (begin, stack) in [(USER_END, 0), (0, USER_END), (u64::MAX, 8), (8, 1 << 63)] {
            let args = anew(504, 503, begin, stack);
            s.gets(0, Call::ThreadConfigure, &args, Status::InvalidArgument)?;
        }
        s.ok(
            Call::ThreadConfigure,
            &anew(504, 503, USER_END - 1, USER_END - 1),
        )?;
        s.ok(Call::ThreadConfigure, &anew(SPACE, 1, 0x1000, 0x2000))?;
        s.ok(Call::ThreadControl, &[510, Op::Resume as u64])?;
        s.look(1)?;
        // Nobody runs it any more.
        s.ok(Call::VcpuControl, &[500, 2, 0])?;
    }
    Ok(s.pair)
}

/// Threads that stop themselves and each other, whatever they are doing; and what is said of them.
fn stopping_and_looking() -> Checked<Pair> {
    let mut s = Story::begin(2560)?;
    s.make(Kind::Notification, 0, 500)?;
    s.ok(Call::Copy, &[500, 0, 501, 0xff, 6, 0])?;
    s.make(Kind::Endpoint, 0, 502)?;
    s.make(Kind::Reply, 0, 503)?;
    s.thread(510, 15)?;
    s.look(1)?;
    let looks = |s: &mut Story| s.ok(Call::ThreadControl, &[510, Op::Inspect as u64]);
    let resumes = |s: &mut Story| {
        looks(s)?;
        s.ok(Call::ThreadControl, &[510, Op::Resume as u64])?;
        s.look(1)?;
        looks(s)
    };
    let suspends = |s: &mut Story| s.ok(Call::ThreadControl, &[510, Op::Suspend as u64]);
    let itself = [510, Op::Suspend as u64];
    s.gets(1, Call::ThreadControl, &itself, Status::Ok)?;
    resumes(&mut s)?;
    for (call, args) in [
        (Call::Wait, [500, FOREVER, 0]),
        (Call::Receive, [502, 503, FOREVER]),
        (Call::Call, [502, 0, 0]),
    ] {
        s.blocks(1, call, &args)?;
        looks(&mut s)?;
        suspends(&mut s)?;
        suspends(&mut s)?;
        resumes(&mut s)?;
    }
    suspends(&mut s)?;
    resumes(&mut s)?;
    // While its answer is on the way.
    s.blocks(1, Call::Call, &[502, 0])?;
    s.ok(Call::Receive, &[502, 503, FOREVER])?;
    looks(&mut s)?;
    suspends(&mut s)?;
    s.gets(0, Call::Reply, &[503, 0], Status::NoCaller)?;
    resumes(&mut s)?;
    for (note, fault) in [(500, [14, 2, 0x1234]), (501, [6, 0, 0x1234])] {
        s.ok(Call::Bind, &[note, 510, Role::Faults as u64])?;
        s.pair.event(Event::Fault { cpu: 1, fault })?;
        looks(&mut s)?;
        suspends(&mut s)?;
        s.ok(Call::ThreadControl, &[510, Op::Cancel as u64])?;
        s.ok(Call::Wait, &[500, 0])?;
        resumes(&mut s)?;
    }
    Ok(s.pair)
}

/// These, by name.
pub const STORIES: &[(&str, Told)] = &[
    ("lines", lines),
    ("bits_for_one_each", bits_for_one_each),
    ("time_within_a_capability", time_within_a_capability),
    ("a_new_life", a_new_life),
    ("stopping_and_looking", stopping_and_looking),
];
