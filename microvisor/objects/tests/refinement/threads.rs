//! Threads that wait, have their turns and run out of time, by short stories of their own. Called by
//! `directed::stories`. Root is on CPU 0 and makes things happen; the others share CPU 1.

use super::directed::{Story, Told};
use super::driver::{Checked, Pair};
use microvisor_abi::cap::Role;
use microvisor_abi::thread::Op;
use microvisor_abi::{Call, FOREVER, Kind, NOW, Status};
use microvisor_spec::Event;
use std::format;

/// Slots of four threads, two each.
const THREADS: [u64; 4] = [500, 502, 504, 506];
const NOTE: u64 = 520;
const ENDPOINT: u64 = 521;
const REPLIES: u64 = 530;

/// Four threads of one priority, what they wait for, and a reply object for each.
fn four() -> Checked<Story> {
    let mut s = Story::begin(2560)?;
    s.make(Kind::Notification, 0, NOTE)?;
    s.make(Kind::Endpoint, 0, ENDPOINT)?;
    for (reply, thread) in (REPLIES..).zip(THREADS) {
        s.make(Kind::Reply, 0, reply)?;
        s.thread(thread, 15)?;
    }
    s.look(1)?;
    Ok(s)
}

fn control(s: &mut Story, thread: u64, op: Op) -> Checked {
    s.ok(Call::ThreadControl, &[thread, op as u64])
}

/// Time goes on, and CPU 1 looks.
fn pass(s: &mut Story, ticks: u64) -> Checked {
    let now = s.pair.state.now + ticks;
    s.pair.event(Event::Time { now })?;
    s.pair.event(Event::Timer { cpu: 1 })
}

/// Orders in which four leave a queue: from the front, the back, and between.
const ORDERS: [[usize; 4]; 4] = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 0, 3], [2, 0, 3, 1]];

/// Waiters leave a notification's queue in any order, and others come.
fn waiters_in_any_order() -> Checked<Pair> {
    let mut s = four()?;
    for order in ORDERS {
        for _ in THREADS {
            s.blocks(1, Call::Wait, &[NOTE, FOREVER])?;
        }
        for leaves in &order[..2] {
            control(&mut s, THREADS[*leaves], Op::Cancel)?;
        }
        for _ in 0..2 {
            s.blocks(1, Call::Wait, &[NOTE, FOREVER])?;
        }
        // Out of the queue, and then off the CPU and the queue for it.
        for _ in 0..2 {
            for leaves in order {
                control(&mut s, THREADS[leaves], Op::Suspend)?;
            }
            for thread in THREADS {
                control(&mut s, thread, Op::Resume)?;
            }
            s.look(1)?;
        }
    }
    // Bits go to whoever waited longest.
    for _ in THREADS {
        s.blocks(1, Call::Wait, &[NOTE, FOREVER])?;
    }
    for bit in 0..5 {
        s.ok(Call::Signal, &[NOTE, 1 << bit])?;
    }
    Ok(s.pair)
}

/// Receivers and senders leave an endpoint's queue in any order, and others come.
fn callers_in_any_order() -> Checked<Pair> {
    let mut s = four()?;
    let receive = |s: &mut Story| {
        for reply in REPLIES..REPLIES + 4 {
            s.blocks(1, Call::Receive, &[ENDPOINT, reply, FOREVER])?;
        }
        Ok::<(), String>(())
    };
    for order in ORDERS {
        receive(&mut s)?;
        for leaves in order {
            control(&mut s, THREADS[leaves], Op::Suspend)?;
        }
        for thread in THREADS {
            control(&mut s, thread, Op::Resume)?;
        }
        s.look(1)?;
        for _ in THREADS {
            s.blocks(1, Call::Call, &[ENDPOINT, 0])?;
        }
        for leaves in order {
            control(&mut s, THREADS[leaves], Op::Cancel)?;
        }
        s.look(1)?;
    }
    // Each of four receivers hears of bits that are bound to it, and leaves the others waiting.
    receive(&mut s)?;
    for (thread, bits) in [(2, 4), (0, 1), (3, 8), (1, 2)] {
        s.ok(Call::Bind, &[NOTE, THREADS[thread], Role::Messages as u64])?;
        s.ok(Call::Signal, &[NOTE, bits])?;
        s.ok(Call::Bind, &[NOTE, 0, Role::Messages as u64])?;
    }
    s.look(1)?;
    Ok(s.pair)
}

/// What a thread uses of its budget is gone, whether it waits then, is suspended, loses its turn or
/// its CPU; and there is as much again at the very end of the period.
fn a_budget_in_parts() -> Checked<Pair> {
    let mut s = Story::begin(2560)?;
    s.make(Kind::Notification, 0, NOTE)?;
    s.thread(500, 15)?;
    s.ok(Call::SchedSet, &[501, 7, 1, 15, 100, 1000])?;
    s.look(1)?;
    pass(&mut s, 30)?;
    s.blocks(1, Call::Wait, &[NOTE, FOREVER])?;
    pass(&mut s, 30)?;
    s.ok(Call::Signal, &[NOTE, 1])?;
    s.look(1)?;
    pass(&mut s, 30)?;
    control(&mut s, 500, Op::Suspend)?;
    s.look(1)?;
    control(&mut s, 500, Op::Resume)?;
    s.look(1)?;
    pass(&mut s, 30)?;
    // Something more urgent for a while.
    s.thread(502, 20)?;
    s.look(1)?;
    pass(&mut s, 30)?;
    s.blocks(1, Call::Wait, &[NOTE, FOREVER])?;
    pass(&mut s, 9)?;
    s.me(1)?;
    pass(&mut s, 1)?;
    if s.pair.current(1).is_some() {
        return Err("there was some budget left".into());
    }
    // Called off in the middle of the pause, it pauses on.
    control(&mut s, 500, Op::Suspend)?;
    control(&mut s, 500, Op::Resume)?;
    s.look(1)?;
    let left = 1000 - s.pair.state.now;
    pass(&mut s, left - 1)?;
    pass(&mut s, 1)?;
    s.me(1)?;
    Ok(s.pair)
}

/// Calling a server does not save what was used before, nor does the server's time count.
fn a_budget_while_it_calls() -> Checked<Pair> {
    let mut s = Story::begin(2560)?;
    s.make(Kind::Endpoint, 0, ENDPOINT)?;
    s.make(Kind::Reply, 0, REPLIES)?;
    s.thread(500, 20)?;
    s.look(1)?;
    s.blocks(1, Call::Receive, &[ENDPOINT, REPLIES, FOREVER])?;
    s.thread(502, 15)?;
    s.ok(Call::SchedSet, &[503, 7, 1, 15, 100, 1000])?;
    s.look(1)?;
    for _ in 0..2 {
        pass(&mut s, 30)?;
        s.blocks(1, Call::Call, &[ENDPOINT, 0])?;
        pass(&mut s, 50)?;
        s.blocks(1, Call::ReplyReceive, &[ENDPOINT | REPLIES << 32, 0])?;
    }
    pass(&mut s, 39)?;
    s.me(1)?;
    pass(&mut s, 1)?;
    if s.pair.current(1).is_some() {
        return Err("its budget lasted longer than it is".into());
    }
    Ok(s.pair)
}

/// An equal comes: who has a limit goes on until that, who has none gets a slice.
fn company() -> Checked<Pair> {
    for budget in [5000, 10_000] {
        let mut s = Story::begin(2560)?;
        s.thread(500, 15)?;
        s.ok(Call::SchedSet, &[501, 7, 1, 15, budget, 10_000])?;
        s.look(1)?;
        pass(&mut s, 10)?;
        s.thread(502, 15)?;
        s.look(1)?;
        pass(&mut s, 999)?;
        pass(&mut s, 1)?;
        pass(&mut s, 1000)?;
        // Something more urgent in the middle of a turn; what was left of it goes on then.
        s.thread(504, 20)?;
        s.look(1)?;
        s.make(Kind::Notification, 0, NOTE)?;
        s.blocks(1, Call::Wait, &[NOTE, FOREVER])?;
        pass(&mut s, 400)?;
        s.ok(Call::Signal, &[NOTE, 1])?;
        s.look(1)?;
        s.blocks(1, Call::Wait, &[NOTE, FOREVER])?;
        pass(&mut s, 600)?;
        if budget == 10_000 {
            return Ok(s.pair);
        }
    }
    Err("no story".into())
}

/// Who waits for what is past gives way to its equals at once; who only looks goes on.
fn giving_way() -> Checked<Pair> {
    let mut s = four()?;
    pass(&mut s, 10)?;
    for deadline in [NOW, 5, 5, NOW, 10, 1, 5] {
        let before = s.me(1)?;
        s.gets(1, Call::Wait, &[NOTE, deadline], Status::Timeout)?;
        if (s.me(1)? == before) != (deadline == NOW) {
            return Err(format!("deadline {deadline}: the wrong one goes on"));
        }
    }
    Ok(s.pair)
}

/// A server that is more urgent than its client goes on in its client's turn.
fn a_call_goes_on_in_the_same_turn() -> Checked<Pair> {
    for priority in [20, 15, 10] {
        let mut s = Story::begin(2560)?;
        s.make(Kind::Endpoint, 0, ENDPOINT)?;
        s.make(Kind::Reply, 0, REPLIES)?;
        s.thread(500, priority)?;
        s.look(1)?;
        s.blocks(1, Call::Receive, &[ENDPOINT, REPLIES, FOREVER])?;
        // Equals, and then somebody who would not have a turn before them.
        for thread in [502, 504, 506] {
            s.thread(thread, if thread == 506 { 12 } else { 15 })?;
            s.look(1)?;
        }
        for _ in 0..3 {
            pass(&mut s, 100)?;
            s.blocks(1, Call::Call, &[ENDPOINT, 0])?;
            for _ in 0..4 {
                pass(&mut s, 300)?;
            }
        }
        // It answers and hears the next at once, however long that takes.
        for _ in 0..6 {
            if s.pair.current(1).is_some() {
                s.on(1, Call::ReplyReceive, &[ENDPOINT | REPLIES << 32, 0])?;
            }
            pass(&mut s, 500)?;
        }
        if priority == 10 {
            return Ok(s.pair);
        }
    }
    Err("no story".into())
}

/// A thread whose address space goes while it runs stops with a fault, and its supervisor hears.
fn a_space_that_goes() -> Checked<Pair> {
    let mut s = Story::begin(2560)?;
    s.make(Kind::Notification, 0, NOTE)?;
    s.ok(Call::Copy, &[NOTE, 0, NOTE + 1, 0xff, 6, 0])?;
    s.thread(500, 15)?;
    for (badge, suspended) in [(NOTE, false), (NOTE + 1, true)] {
        control(&mut s, 500, Op::Suspend)?;
        s.make(Kind::AddressSpace, 0, 510)?;
        s.ok(
            Call::ThreadConfigure,
            &[500, 510, 1, 0x20_0000, 0x30_0000, 0],
        )?;
        s.ok(Call::Bind, &[badge, 500, Role::Faults as u64])?;
        control(&mut s, 500, Op::Resume)?;
        if suspended {
            // Before it had its first turn.
            s.ok(Call::Delete, &[0, 510])?;
        } else {
            s.look(1)?;
            s.ok(Call::Delete, &[0, 510])?;
        }
        s.look(1)?;
        s.look(1)?;
        s.ok(Call::Wait, &[NOTE, 0])?;
        s.ok(Call::ThreadControl, &[500, Op::Inspect as u64])?;
    }
    Ok(s.pair)
}

/// Bits for a guest that runs elsewhere end its run; those that are pending prevent the next.
fn bits_for_a_guest() -> Checked<Pair> {
    let mut s = Story::begin(2560)?;
    s.make(Kind::Notification, 0, NOTE)?;
    s.make(Kind::Vcpu, 0, 540)?;
    s.make(Kind::AddressSpace, 1, 541)?;
    s.ok(Call::VcpuControl, &[540, 0, 541])?;
    s.ok(Call::Bind, &[NOTE, 540, Role::Run as u64])?;
    s.thread(500, 15)?;
    s.look(1)?;
    s.blocks(1, Call::VcpuRun, &[540])?;
    s.ok(Call::Signal, &[NOTE, 1])?;
    s.look(1)?;
    // Still pending.
    s.on(1, Call::VcpuRun, &[540])?;
    s.look(1)?;
    s.ok(Call::Wait, &[NOTE, 0])?;
    s.blocks(1, Call::VcpuRun, &[540])?;
    // Bits that were there before are told to whoever is bound to them next.
    s.ok(Call::Bind, &[NOTE, 0, Role::Run as u64])?;
    s.ok(Call::Signal, &[NOTE, 2])?;
    s.ok(Call::Bind, &[NOTE, 540, Role::Run as u64])?;
    s.look(1)?;
    s.ok(Call::Wait, &[NOTE, 0])?;
    // Called off, wherever it is: in its guest, and beside it.
    s.blocks(1, Call::VcpuRun, &[540])?;
    control(&mut s, 500, Op::Cancel)?;
    s.look(1)?;
    control(&mut s, 500, Op::Cancel)?;
    s.blocks(1, Call::VcpuRun, &[540])?;
    Ok(s.pair)
}

/// Time that is set anew: who ran goes on before its equals, who was ready comes after them, who
/// waits stays where it is.
fn time_is_set_anew() -> Checked<Pair> {
    let mut s = four()?;
    let set = |sched: u64, budget: u64, period: u64| [sched, 7, 1, 15, budget, period];
    for (budget, period) in [(0, 0), (0, 10), (11, 10)] {
        s.gets(
            0,
            Call::SchedSet,
            &set(501, budget, period),
            Status::InvalidArgument,
        )?;
    }
    for sched in [501, 503, 501] {
        s.ok(Call::SchedSet, &set(sched, 1, 1))?;
        s.look(1)?;
    }
    s.blocks(1, Call::Wait, &[NOTE, FOREVER])?;
    s.ok(Call::SchedSet, &set(501, 10, 10))?;
    s.ok(Call::Signal, &[NOTE, 1])?;
    // The same when it is taken away and given back.
    for (sched, thread) in [(501, 500), (503, 502), (505, 504), (505, 504)] {
        s.ok(Call::Bind, &[sched, 0, Role::Time as u64])?;
        s.look(1)?;
        s.ok(Call::Bind, &[sched, thread, Role::Time as u64])?;
        s.look(1)?;
    }
    for _ in THREADS {
        s.blocks(1, Call::Wait, &[NOTE, FOREVER])?;
    }
    for (sched, thread) in [(503, 502), (501, 500)] {
        s.ok(Call::Bind, &[sched, 0, Role::Time as u64])?;
        s.ok(Call::Signal, &[NOTE, 1])?;
        s.look(1)?;
        s.ok(Call::Bind, &[sched, thread, Role::Time as u64])?;
        s.look(1)?;
    }
    Ok(s.pair)
}

/// These, by name.
pub const STORIES: &[(&str, Told)] = &[
    ("waiters_in_any_order", waiters_in_any_order),
    ("callers_in_any_order", callers_in_any_order),
    ("a_budget_in_parts", a_budget_in_parts),
    ("a_budget_while_it_calls", a_budget_while_it_calls),
    ("company", company),
    ("giving_way", giving_way),
    ("time_is_set_anew", time_is_set_anew),
    (
        "a_call_goes_on_in_the_same_turn",
        a_call_goes_on_in_the_same_turn,
    ),
    ("a_space_that_goes", a_space_that_goes),
    ("bits_for_a_guest", bits_for_a_guest),
];
