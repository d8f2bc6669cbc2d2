//! The fast path of messages does what the general path does: two machines carry out the same calls,
//! one without the fast path, and every thread sees the same in both.

mod world;

use microvisor_abi::{Call, FOREVER, Kind, MessageInfo, NOW, Status};
use microvisor_objects::{Ref, Thread};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;
use world::World;

/// Slots: two endpoints, a copy of the first without the right to receive, two replies, a
/// notification; threads from 40 on, two slots each.
const ENDPOINTS: u64 = 20;
const BADGED: u64 = 22;
const REPLIES: u64 = 23;
const NOTIFICATION: u64 = 25;
const THREADS: u64 = 40;

/// Root and three threads: two beside root on CPU 0, of which one is more urgent, and one on CPU 1.
fn machine(fast: bool) -> (World, Vec<Ref<Thread>>) {
    let mut w = World::new();
    w.fast = fast;
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, ENDPOINTS, 2);
    w.ok(Call::Copy, &[ENDPOINTS, 0, BADGED, 1, 77, 0]);
    w.make(ram, Kind::Reply, 0, REPLIES, 2);
    w.make(ram, Kind::Notification, 0, NOTIFICATION, 1);
    let mut threads = vec![w.root];
    for (index, (cpu, priority)) in [(0, 15), (0, 20), (1, 15)].into_iter().enumerate() {
        threads.push(w.thread(THREADS + 2 * index as u64, cpu, priority));
    }
    (w, threads)
}

#[derive(Clone, Debug)]
enum Step {
    /// A call of the current thread.
    Call(Call, [u64; 6]),
    /// What client and server do all day: the server answers and waits, everybody else calls it.
    Usual([u64; 6]),
    /// The other CPU goes on.
    Cpu(usize),
    /// Time passes.
    Time(u64),
}

fn info() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => Just(MessageInfo::new(7, 0, 0).0),
        1 => Just(MessageInfo::new(7, 24, 0).0),
        1 => Just(MessageInfo::new(7, 0, 1).0),
        1 => any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let endpoint = || prop_oneof![4 => Just(ENDPOINTS), 2 => Just(ENDPOINTS + 1), 2 => Just(BADGED), 1 => 0..50u64];
    let reply = || prop_oneof![4 => Just(REPLIES), 2 => Just(REPLIES + 1), 1 => 0..50u64];
    let deadline = || prop_oneof![2 => Just(FOREVER), 1 => Just(NOW), 1 => 0..100_000u64];
    let words = || (any::<u16>(), any::<u16>());
    prop_oneof![
        150 => (info(), words()).prop_map(|(i, (a, b))| Step::Usual([0, i, a.into(), b.into(), 3, 4])),
        6 => (endpoint(), info(), words()).prop_map(|(e, i, (a, b))| Step::Call(Call::Call, [e, i, a.into(), b.into(), 3, 4])),
        6 => (endpoint(), reply(), info(), words()).prop_map(|(e, r, i, (a, b))| Step::Call(Call::ReplyReceive, [e | r << 32, i, a.into(), b.into(), 5, 6])),
        3 => (endpoint(), reply(), deadline()).prop_map(|(e, r, d)| Step::Call(Call::Receive, [e, r, d, 0, 0, 0])),
        2 => (reply(), info()).prop_map(|(r, i)| Step::Call(Call::Reply, [r, i, 1, 2, 3, 4])),
        1 => Just(Step::Call(Call::Signal, [NOTIFICATION, 2, 0, 0, 0, 0])),
        1 => deadline().prop_map(|d| Step::Call(Call::Wait, [NOTIFICATION, d, 0, 0, 0, 0])),
        1 => (0..3u64, prop_oneof![Just(0), Just(2)]).prop_map(|(t, op)| Step::Call(Call::ThreadControl, [THREADS + 2 * t, op, 0, 0, 0, 0])),
        1 => (0..3u64).prop_map(|t| Step::Call(Call::Bind, [NOTIFICATION, THREADS + 2 * t, 1, 0, 0, 0])),
        1 => (0..2u64).prop_map(|e| Step::Call(Call::Bind, [ENDPOINTS + e, 0, 5, 0, 0, 0])),
        1 => (ENDPOINTS..NOTIFICATION).prop_map(|s| Step::Call(Call::Delete, [0, s, 0, 0, 0, 0])),
        1 => (0..3u64, 10..25u64, 1..4u64).prop_map(|(t, p, b)| Step::Call(Call::SchedSet, [THREADS + 2 * t + 1, 7, 0, p, b, 3])),
        3 => (0..2usize).prop_map(Step::Cpu),
        3 => (0..5000u64).prop_map(Step::Time),
    ]
}

fn perform(w: &mut World, server: Ref<Thread>, step: &Step) {
    match *step {
        Step::Usual(mut words) => {
            let me = w.kernel.current(w.seen.cpu.get());
            let call = if me == server {
                words[0] = ENDPOINTS | REPLIES << 32;
                Call::ReplyReceive
            } else {
                words[0] = BADGED;
                Call::Call
            };
            if !me.is_null() {
                let _ = w.call(call, &words);
            }
        }
        Step::Cpu(cpu) => w.seen.cpu.set(cpu),
        Step::Time(ticks) => {
            w.seen.now.set(w.seen.now.get() + ticks);
            w.kernel.timer(w.seen.cpu.get());
        }
        Step::Call(call, arguments) => {
            if !w.kernel.current(w.seen.cpu.get()).is_null() {
                let _ = w.call(call, &arguments);
            }
        }
    }
    w.turn();
}

/// All that a component or the hardware could tell apart.
fn seen(w: &World, threads: &[Ref<Thread>]) -> String {
    let mut text = format!("{:?} {:?}", w.kernel.current(0), w.kernel.current(1));
    for &thread in threads {
        let state = w.kernel.arena.get(thread).map(|t| (t.regs, t.doing()));
        text += &format!("\n{state:x?}");
    }
    text
}

#[test]
fn the_fast_path_does_what_the_general_path_does() {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases = cases.and_then(|n| n.parse().ok()).unwrap_or(64);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let went_fast = Cell::new(0);
    let steps = proptest::collection::vec(step(), 1..200);
    let compared = |steps: Vec<Step>| {
        let ((mut fast, threads), (mut general, others)) = (acquainted(true), acquainted(false));
        prop_assert_eq!(&threads, &others);
        let before = fast.went_fast;
        for (index, step) in steps.iter().enumerate() {
            perform(&mut fast, threads[2], step);
            perform(&mut general, threads[2], step);
            let (fast, general) = (seen(&fast, &threads), seen(&general, &threads));
            prop_assert_eq!(fast, general, "after {} {:x?}", index, step);
        }
        went_fast.set(went_fast.get() + fast.went_fast - before);
        prop_assert_eq!(general.went_fast, 0);
        Ok(())
    };
    if let Err(why) = runner.run(&steps, compared) {
        panic!("{why}");
    }
    let (seen, least) = (went_fast.get(), cases as usize / 2);
    println!("measured: {seen} messages went fast in {cases} stories");
    // Most stories have several before the server is disturbed.
    assert!(seen > least, "{seen} messages took the fast path");
}

/// A server that waits on CPU 0, and root, its client.
fn server(fast: bool) -> (World, Vec<Ref<Thread>>) {
    let (mut w, threads) = machine(fast);
    // Root's priority is 15: the server at 20 runs until it waits.
    w.turn();
    assert_eq!(w.kernel.current(0), threads[2]);
    let _ = w.call(Call::Receive, &[ENDPOINTS, REPLIES, FOREVER]);
    // Root's equal would otherwise have to get its turn.
    while w.turn() != w.root {
        w.seen.now.set(w.seen.now.get() + 1000);
    }
    w.ok(Call::ThreadControl, &[THREADS, 1]);
    (w, threads)
}

/// The same, after a call and its answer: what the next one needs is remembered.
fn acquainted(fast: bool) -> (World, Vec<Ref<Thread>>) {
    let (mut w, threads) = server(fast);
    for _ in 0..2 {
        perform(&mut w, threads[2], &Step::Usual([0; 6]));
    }
    assert_eq!(w.kernel.current(0), w.root);
    (w, threads)
}

#[test]
fn a_call_and_its_answer_take_the_fast_path_from_the_second_time_on() {
    let (mut w, threads) = server(true);
    for round in 0..3 {
        let _ = w.call(
            Call::Call,
            &[BADGED, MessageInfo::new(9, 0, 0).0, 1, 2, 3, 4],
        );
        w.turn();
        assert_eq!(w.kernel.current(0), threads[2]);
        let info = MessageInfo::new(9, 0, 0).0;
        assert_eq!(w.results(threads[2]), (Status::Ok, [77, info, 1, 2, 3, 4]));
        let _ = w.call(
            Call::ReplyReceive,
            &[ENDPOINTS | REPLIES << 32, 0, 5, 6, 7, 8],
        );
        w.turn();
        assert_eq!(w.results(w.root), (Status::Ok, [0, 0, 5, 6, 7, 8]));
        // What was looked up the first time is remembered.
        assert_eq!(w.went_fast, 2 * round);
    }
}

#[test]
fn what_is_remembered_of_a_capability_ends_with_it() {
    let (mut w, _) = server(true);
    for _ in 0..2 {
        let _ = w.call(Call::Call, &[BADGED, 0, 0, 0, 0, 0]);
        w.turn();
        let _ = w.call(
            Call::ReplyReceive,
            &[ENDPOINTS | REPLIES << 32, 0, 0, 0, 0, 0],
        );
        w.turn();
    }
    assert_eq!(w.went_fast, 2);
    w.ok(Call::Delete, &[0, BADGED]);
    assert_eq!(
        w.call(Call::Call, &[BADGED, 0, 0, 0, 0, 0]).0,
        Status::InvalidCap
    );
    // Another capability in the same slot is another capability.
    w.ok(Call::Copy, &[ENDPOINTS + 1, 0, BADGED, 1, 5, 0]);
    let _ = w.call(Call::Call, &[BADGED, 0, 0, 0, 0, 0]);
    w.turn();
    assert!(w.kernel.current(0).is_null(), "nobody receives there");
}

#[test]
fn what_is_remembered_of_a_capability_does_not_stay_behind_when_it_moves() {
    let (mut w, threads) = server(true);
    for _ in 0..2 {
        let _ = w.call(Call::Call, &[BADGED, 0, 0, 0, 0, 0]);
        w.turn();
        let _ = w.call(
            Call::ReplyReceive,
            &[ENDPOINTS | REPLIES << 32, 0, 0, 0, 0, 0],
        );
        w.turn();
    }
    assert_eq!(w.went_fast, 2);
    w.ok(Call::Move, &[0, BADGED, 0, NOTIFICATION + 1]);
    assert_eq!(
        w.call(Call::Call, &[BADGED, 0, 0, 0, 0, 0]).0,
        Status::InvalidCap
    );
    let _ = w.call(Call::Call, &[NOTIFICATION + 1, 0, 0, 0, 0, 0]);
    w.turn();
    assert_eq!(w.kernel.current(0), threads[2], "where it is now, it works");
}

/// Carries out these steps in two machines, one without the fast path, beginning with a server that
/// waits and a client that has called it before. So many messages go fast.
fn the_same_in_both(steps: &[Step], go_fast: usize) {
    let ((mut fast, threads), (mut general, _)) = (acquainted(true), acquainted(false));
    let before = fast.went_fast;
    for step in steps {
        perform(&mut fast, threads[2], step);
        perform(&mut general, threads[2], step);
        assert_eq!(seen(&fast, &threads), seen(&general, &threads), "{step:?}");
    }
    assert_eq!(fast.went_fast - before, go_fast, "{steps:?}");
}

#[test]
fn the_fast_path_is_for_threads_that_have_as_much_time_as_they_like() {
    let usual = || Step::Usual([0, 0, 1, 2, 3, 4]);
    let time = |slot: u64, priority: u64, budget: u64| {
        Step::Call(Call::SchedSet, [slot, 7, 0, priority, budget, 3])
    };
    let (server, client) = (THREADS + 3, 4);
    let none = Step::Call(Call::Bind, [server, 0, 0, 0, 0, 0]);
    the_same_in_both(&[usual(), usual()], 2);
    the_same_in_both(&[time(server, 20, 1), usual(), usual()], 0);
    the_same_in_both(
        &[time(server, 20, 1), time(server, 20, 3), usual(), usual()],
        2,
    );
    the_same_in_both(&[time(client, 15, 1), usual(), usual()], 0);
    the_same_in_both(&[none, usual(), usual()], 0);
}

#[test]
fn the_fast_path_passes_nobody_by() {
    let usual = || Step::Usual([0, 0, 1, 2, 3, 4]);
    let equal = Step::Call(Call::ThreadControl, [THREADS, 0, 0, 0, 0, 0]);
    the_same_in_both(&[usual(), equal, usual()], 1);
    // Somebody who calls from elsewhere while the server is busy.
    let elsewhere = Step::Call(Call::Call, [ENDPOINTS, 0, 9, 0, 0, 0]);
    let meanwhile = [Step::Cpu(1), elsewhere, Step::Cpu(0)];
    let steps = [&[usual()], &meanwhile[..], &[usual(), usual()]].concat();
    the_same_in_both(&steps, 1);
    // Bits that are bound to the server come before its next message.
    let bind = Step::Call(Call::Bind, [NOTIFICATION, THREADS + 2, 1, 0, 0, 0]);
    let signal = Step::Call(Call::Signal, [NOTIFICATION, 2, 0, 0, 0, 0]);
    the_same_in_both(&[bind.clone(), usual(), usual()], 2);
    the_same_in_both(&[bind, usual(), signal, usual()], 1);
}

#[test]
fn who_has_ports_does_not_take_the_fast_path_until_they_are_taken_back() {
    for thread in [3, THREADS + 2] {
        let (mut w, threads) = acquainted(true);
        w.ok(Call::Copy, &[5, 0, 30, 0xff, 0x60 | 8 << 32, 0]);
        for (granted, fast) in [(true, 0), (false, 2)] {
            match granted {
                true => w.ok(Call::PortsGrant, &[30, thread]),
                false => w.ok(Call::Delete, &[0, 30]),
            };
            // Looked up anew after a deletion.
            for _ in 0..2 {
                w.went_fast = 0;
                for _ in 0..2 {
                    perform(&mut w, threads[2], &Step::Usual([0; 6]));
                }
            }
            assert_eq!(w.went_fast, fast, "{thread} {granted}");
        }
    }
}

#[test]
fn the_fast_path_looks_again_at_whose_capabilities_a_thread_has() {
    let usual = || Step::Usual([0, 0, 1, 2, 3, 4]);
    let call = |call, words: &[u64]| {
        let mut all = [0; 6];
        all[..words.len()].copy_from_slice(words);
        Step::Call(call, all)
    };
    let (server, space) = (THREADS + 2, 61);
    // Another life, without the capabilities, between a message and its answer.
    let ram = machine(true).0.ram();
    let made = call(
        Call::Retype,
        &[ram, Kind::CapSpace as u64 | 1 << 8, 0, space | 1 << 32],
    );
    let elsewhere = [
        call(Call::ThreadControl, &[server, 1]),
        call(
            Call::ThreadConfigure,
            &[server, 2, space, 0x20_0000, 0x30_0000, 0],
        ),
        call(Call::ThreadControl, &[server, 0]),
    ];
    let mut steps = vec![made, usual(), usual(), usual(), Step::Cpu(1)];
    steps.extend(elsewhere);
    steps.extend([Step::Cpu(0), usual()]);
    the_same_in_both(&steps, 1);
}

/// The current thread's message, if it takes the fast path: which thread goes on, whether with the
/// registers that its results are in, and with which tables.
fn handover(w: &mut World, call: Call, words: &[u64]) -> Option<(Ref<Thread>, bool, u64)> {
    let me = w.kernel.current(0);
    w.set(me, call, words);
    let over = match call {
        Call::Call => w.kernel.fast_call(0),
        _ => w.kernel.fast_reply_receive(0),
    }?;
    let registers = &raw const w.kernel.arena.get(over.thread)?.regs;
    Some((over.thread, registers == over.registers, over.root))
}

#[test]
fn who_goes_on_has_its_registers_and_its_tables() {
    let answer = [ENDPOINTS | REPLIES << 32, 0];
    for own in [false, true] {
        let (mut w, threads) = machine(true);
        let (server, root) = (threads[2], w.root);
        let ram = w.ram();
        if own {
            w.make(ram, Kind::AddressSpace, 0, 30, 1);
            let thread = THREADS + 2;
            w.ok(Call::ThreadControl, &[thread, 1]);
            w.ok(
                Call::ThreadConfigure,
                &[thread, 30, 1, 0x20_0000, 0x30_0000, 0],
            );
            w.ok(Call::ThreadControl, &[thread, 0]);
        }
        w.ok(Call::ThreadControl, &[THREADS, 1]);
        w.turn();
        assert_eq!(w.kernel.current(0), server);
        let _ = w.call(Call::Receive, &[ENDPOINTS, REPLIES, FOREVER]);
        assert_eq!(w.turn(), root);
        for _ in 0..2 {
            perform(&mut w, server, &Step::Usual([0; 6]));
        }
        let tables = |w: &World, thread| match own {
            true => w.kernel.space_root(thread).map_or(0, |root| root.0),
            false => 0,
        };
        let to_server = (server, true, tables(&w, server));
        assert_eq!(handover(&mut w, Call::Call, &[BADGED, 0]), Some(to_server));
        let to_root = (root, true, tables(&w, root));
        assert_eq!(handover(&mut w, Call::ReplyReceive, &answer), Some(to_root));
        // A space that is gone has no tables.
        if own {
            w.ok(Call::Delete, &[0, 30]);
            assert_eq!(handover(&mut w, Call::Call, &[BADGED, 0]), None);
        }
    }
}

#[test]
fn a_cpu_that_runs_nothing_has_no_fast_path() {
    let (mut w, threads) = acquainted(true);
    // Whoever runs on CPU 0 could: root, and then the server.
    for thread in [w.root, threads[2]] {
        assert_eq!(w.kernel.current(0), thread);
        w.set(thread, Call::Call, &[BADGED, 0]);
        if thread != w.root {
            w.set(thread, Call::ReplyReceive, &[ENDPOINTS | REPLIES << 32, 0]);
        }
        for cpu in [1, 63, usize::MAX] {
            assert_eq!(w.kernel.fast_call(cpu), None);
            assert_eq!(w.kernel.fast_reply_receive(cpu), None);
        }
        perform(&mut w, threads[2], &Step::Usual([0; 6]));
    }
    assert_eq!(w.went_fast, 2);
}

#[test]
fn an_answer_carries_what_the_capability_allows_that_was_called_by() {
    let (mut w, threads) = acquainted(true);
    let root = w.root;
    let carries = MessageInfo::new(0, 0, 1).0;
    // By a capability that grants, and then a call that fails by one that does not.
    let _ = w.call(Call::Call, &[ENDPOINTS, 0]);
    w.turn();
    perform(&mut w, threads[2], &Step::Usual([0; 6]));
    assert_eq!(w.kernel.current(0), root);
    assert_eq!(w.call(Call::Call, &[BADGED, carries]).0, Status::NoRight);
    w.went_fast = 0;
    let _ = w.call(Call::Call, &[BADGED, 0]);
    w.turn();
    assert_eq!((w.kernel.current(0), w.went_fast), (threads[2], 1));
    assert_eq!(w.call(Call::Reply, &[REPLIES, carries]).0, Status::NoRight);
}
