//! Claims about time and CPUs: a thread moves whatever it is doing, and deadlines are met in order.

mod world;

use microvisor_abi::{Call, FOREVER, Kind, Status};
use microvisor_objects::{Flush, Ref, Thread};
use proptest::prelude::*;
use world::World;

/// Slot of the thread that the claims move; its time is in the next one.
const THREAD: u64 = 510;

fn move_to(w: &mut World, slot: u64, cpu: u64) {
    w.seen.cpu.set(0);
    w.ok(Call::SchedSet, &[slot + 1, 7, cpu, 20, 1, 1]);
}

/// What a CPU would run now.
fn on(w: &mut World, cpu: usize) -> Ref<Thread> {
    w.seen.cpu.set(cpu);
    w.turn()
}

#[test]
fn a_ready_thread_moves_to_another_cpu() {
    let mut w = World::new();
    let other = w.thread(THREAD, 1, 20);
    move_to(&mut w, THREAD, 0);
    assert!(on(&mut w, 1).is_null());
    assert_eq!(on(&mut w, 0), other);
}

#[test]
fn a_running_thread_moves_and_never_runs_on_both_cpus() {
    let mut w = World::new();
    let other = w.thread(THREAD, 1, 20);
    assert_eq!(on(&mut w, 1), other);
    w.seen.flushes.borrow_mut().clear();
    move_to(&mut w, THREAD, 0);
    assert!(w.seen.flushes.borrow().contains(&Flush::Quiesce));
    assert_eq!(on(&mut w, 0), other);
    // Only now does its former CPU look.
    assert!(w.kernel.current(1).is_null());
    assert!(on(&mut w, 1).is_null());
}

#[test]
fn a_thread_moves_itself() {
    let mut w = World::new();
    w.ok(Call::SchedSet, &[4, 7, 1, 20, 1, 1]);
    assert!(on(&mut w, 0).is_null());
    assert_eq!(on(&mut w, 1), w.root);
    assert_eq!(w.results(w.root).0, Status::Ok);
}

#[test]
fn a_suspended_thread_is_resumed_elsewhere_before_its_cpu_noticed() {
    let mut w = World::new();
    let other = w.thread(THREAD, 1, 20);
    assert_eq!(on(&mut w, 1), other);
    w.seen.cpu.set(0);
    w.ok(Call::ThreadControl, &[THREAD, 1]);
    w.ok(Call::SchedSet, &[THREAD + 1, 7, 0, 20, 1, 1]);
    w.ok(Call::ThreadControl, &[THREAD, 0]);
    assert_eq!(on(&mut w, 0), other);
    assert!(on(&mut w, 1).is_null());
}

#[test]
fn a_call_that_still_waits_for_the_lock_is_made_after_the_move() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    let other = w.thread(THREAD, 1, 20);
    assert_eq!(on(&mut w, 1), other);
    let rip = |w: &World| w.kernel.arena.get(other).expect("thread").regs.rip;
    let before = rip(&w);
    w.set(other, Call::Signal, &[500, 4]);
    w.seen.waits.set(true);
    move_to(&mut w, THREAD, 0);
    w.seen.waits.set(false);
    assert_eq!(rip(&w), before - 2, "at the SYSCALL again");
    // The former CPU gets the lock: there is nothing for it to do.
    w.seen.cpu.set(1);
    assert!(w.kernel.syscall());
    w.seen.cpu.set(0);
    assert_eq!(w.call(Call::Wait, &[500, 0]).0, Status::Timeout);
    assert_eq!(on(&mut w, 0), other);
    w.kernel.syscall();
    assert_eq!(w.results(other).0, Status::Ok);
    w.ok(Call::ThreadControl, &[THREAD, 1]);
    assert_eq!(on(&mut w, 0), w.root);
    assert_eq!(w.ok(Call::Wait, &[500, 0])[0], 4);
}

#[test]
fn a_blocked_thread_takes_its_deadline_along() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    let other = w.thread(THREAD, 1, 20);
    assert_eq!(on(&mut w, 1), other);
    let _ = w.call(Call::Wait, &[500, 100]);
    assert!(w.turn().is_null());
    move_to(&mut w, THREAD, 0);
    assert_eq!(w.kernel.deadline(1), u64::MAX);
    assert_eq!(w.kernel.deadline(0), 100);
    w.seen.now.set(100);
    w.kernel.timer(0);
    assert_eq!(on(&mut w, 0), other);
    assert_eq!(w.results(other).0, Status::Timeout);
}

#[test]
fn a_throttled_thread_moves() {
    let mut w = World::new();
    let other = w.thread(THREAD, 1, 20);
    w.ok(Call::SchedSet, &[THREAD + 1, 7, 1, 20, 100, 1000]);
    assert_eq!(on(&mut w, 1), other);
    w.seen.now.set(100);
    assert!(on(&mut w, 1).is_null());
    move_to(&mut w, THREAD, 0);
    assert_eq!(on(&mut w, 0), other);
    assert_eq!(w.kernel.deadline(1), u64::MAX);
}

#[test]
fn losing_its_time_costs_a_waiting_thread_no_deadline() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    let other = w.thread(THREAD, 1, 20);
    assert_eq!(on(&mut w, 1), other);
    let _ = w.call(Call::Wait, &[500, 100]);
    w.turn();
    w.seen.cpu.set(0);
    w.ok(Call::Bind, &[THREAD + 1, 0, 0]);
    w.seen.now.set(100);
    w.kernel.timer(1);
    assert!(on(&mut w, 1).is_null(), "due, but without time");
    w.seen.cpu.set(0);
    w.ok(Call::Bind, &[THREAD + 1, THREAD, 0]);
    assert_eq!(on(&mut w, 1), other);
    assert_eq!(w.results(other).0, Status::Timeout);
}

#[test]
fn a_cpu_is_called_for_its_own_kind_and_better() {
    for (mine, comes, called) in [(15, 20, true), (15, 15, true), (20, 15, false)] {
        let mut w = World::new();
        let other = w.thread(THREAD, 1, mine);
        assert_eq!(on(&mut w, 1), other);
        w.seen.cpu.set(0);
        w.seen.kicks.borrow_mut().clear();
        w.thread(THREAD + 2, 1, comes);
        assert_eq!(w.seen.kicks.borrow().contains(&1), called, "{comes}");
        // Nobody calls the CPU that it is on.
        w.seen.cpu.set(1);
        w.seen.kicks.borrow_mut().clear();
        w.thread(THREAD + 4, 1, 25);
        assert!(w.seen.kicks.borrow().is_empty());
    }
}

#[test]
fn only_the_thread_that_waits_for_the_lock_makes_its_call_again() {
    let mut w = World::new();
    let (first, second) = (w.thread(THREAD, 1, 20), w.thread(THREAD + 2, 1, 20));
    assert_eq!(on(&mut w, 1), first);
    let rip = |w: &World, thread: Ref<Thread>| w.kernel.arena.get(thread).expect("thread").regs.rip;
    w.seen.waits.set(true);
    // One that is ready there, and the one that makes the very call.
    w.seen.cpu.set(0);
    w.ok(Call::ThreadControl, &[THREAD + 2, 1]);
    w.seen.cpu.set(1);
    w.ok(Call::ThreadControl, &[THREAD, 1]);
    assert_eq!((rip(&w, first), rip(&w, second)), (0x20_0000, 0x20_0000));
}

#[test]
fn a_run_that_still_waits_for_the_lock_holds_no_guest() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, 500, 1);
    w.make(ram, Kind::AddressSpace, 1, 501, 1);
    w.ok(Call::VcpuControl, &[500, 0, 501]);
    let other = w.thread(THREAD, 1, 20);
    assert_eq!(on(&mut w, 1), other);
    let begin = |w: &mut World, thread: Ref<Thread>, cpu| {
        let (vcpu, run) = w.kernel.arena.vcpu_find(thread, 500, cpu).expect("a vCPU");
        run.begin(cpu).map(|()| vcpu)
    };
    let vcpu = begin(&mut w, other, 1).expect("nobody runs it");
    w.kernel.arena.get_mut(other).expect("thread").vcpu = vcpu;
    w.seen.cpu.set(0);
    let root = w.root;
    assert_eq!(begin(&mut w, root, 0), Err(Status::Busy));
    w.seen.waits.set(true);
    w.ok(Call::ThreadControl, &[THREAD, 1]);
    assert_eq!(begin(&mut w, root, 0), Ok(vcpu));
}

#[test]
fn a_call_that_changes_nothing_for_others_goes_on_at_once() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    let other = w.thread(THREAD, 1, 20);
    assert_eq!(on(&mut w, 1), other);
    let _ = w.call(Call::Wait, &[500, FOREVER]);
    w.turn();
    w.seen.cpu.set(0);
    let root = w.root;
    let mut stirs = |call, words: &[u64]| {
        w.set(root, call, words);
        w.kernel.syscall()
    };
    assert!(stirs(Call::Signal, &[500, 1]), "somebody was woken");
    assert!(!stirs(Call::Signal, &[500, 1]), "nobody waits");
    assert!(!stirs(Call::Inspect, &[0, 500]));
    assert!(!stirs(Call::Inspect, &[0, 70_000]), "refused");
    assert!(!stirs(Call::Wait, &[500, FOREVER]), "a bit is there");
    assert!(stirs(Call::Wait, &[500, FOREVER]), "it waits");
}

#[test]
fn a_deadline_that_arrives_on_a_cpu_is_told_to_it_if_it_is_the_first() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    let root = w.root;
    let deadlines = [(THREAD, 100), (THREAD + 2, 200), (THREAD + 4, 50)];
    for (slot, deadline) in deadlines {
        w.seen.cpu.set(0);
        w.thread(slot, 1, 20);
        on(&mut w, 1);
        let _ = w.call(Call::Wait, &[500, deadline]);
        assert!(w.turn().is_null());
    }
    // To the caller's own CPU: it looks again at its timer, whichever is first.
    for (slot, deadline) in deadlines {
        w.seen.cpu.set(0);
        w.set(root, Call::SchedSet, &[slot + 1, 7, 0, 10, 1, 1]);
        assert!(w.kernel.syscall(), "deadline {deadline}");
    }
    for ((slot, deadline), told) in deadlines.into_iter().zip([true, false, true]) {
        w.seen.kicks.borrow_mut().clear();
        move_to(&mut w, slot, 1);
        assert_eq!(
            !w.seen.kicks.borrow().is_empty(),
            told,
            "deadline {deadline}"
        );
    }
}

#[test]
fn cpus_that_may_have_looked_up_a_vcpu_leave_before_it_is_elsewhere() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, 500, 1);
    w.make(ram, Kind::Endpoint, 0, 501, 1);
    w.make(ram, Kind::Thread, 0, 502, 1);
    let configure = [502, 2, 1, 0x20_0000, 0x30_0000, 0];
    for (call, words, quiet) in [
        (Call::Move, &[0, 501, 0, 511][..], false),
        (Call::Move, &[0, 500, 0, 510], true),
        (Call::ThreadConfigure, &configure, true),
    ] {
        w.seen.flushes.borrow_mut().clear();
        w.ok(call, words);
        let quiesced = w.seen.flushes.borrow().contains(&Flush::Quiesce);
        assert_eq!(quiesced, quiet, "{call:?}");
    }
}

/// Threads of the model below.
const WAITERS: usize = 24;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Ends a wait early; the thread waits again until `ticks` from now.
    Again { who: usize, ticks: u64 },
    /// Moves a waiting thread to a CPU.
    Move { who: usize, cpu: u64 },
    /// Time passes.
    Pass { ticks: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        3 => (0..WAITERS, 1..2000u64).prop_map(|(who, ticks)| Step::Again { who, ticks }),
        2 => (0..WAITERS, 0..2u64).prop_map(|(who, cpu)| Step::Move { who, cpu }),
        2 => (0..300u64).prop_map(|ticks| Step::Pass { ticks }),
    ];
    proptest::collection::vec(one, 1..80)
}

/// A waiting thread: itself, its CPU, its deadline.
type Waiter = (Ref<Thread>, usize, u64);

/// Lets every thread that was woken wait again, until its deadline.
fn wait_on(w: &mut World, waiters: &[Waiter]) {
    for cpu in 0..2 {
        w.seen.cpu.set(cpu);
        loop {
            let current = w.turn();
            let Some(waiter) = waiters.iter().find(|waiter| waiter.0 == current) else {
                break;
            };
            let _ = w.call(Call::Wait, &[500, waiter.2]);
        }
    }
    w.seen.cpu.set(0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_cpu_always_knows_its_next_deadline(steps in steps()) {
        let mut w = World::new();
        let ram = w.ram();
        w.make(ram, Kind::Notification, 0, 500, 1);
        let mut waiters = Vec::new();
        for index in 0..WAITERS as u64 {
            w.seen.cpu.set(0);
            let thread = w.thread(THREAD + 2 * index, 1, 20);
            waiters.push((thread, 1usize, 1_000_000 - index));
            wait_on(&mut w, &waiters);
        }
        for step in steps {
            let now = w.seen.now.get();
            w.seen.cpu.set(0);
            match step {
                Step::Again { who, ticks } => {
                    w.ok(Call::ThreadControl, &[THREAD + 2 * who as u64, 2]);
                    prop_assert_eq!(w.results(waiters[who].0).0, Status::Cancelled);
                    waiters[who].2 = now + ticks;
                }
                Step::Move { who, cpu } => {
                    move_to(&mut w, THREAD + 2 * who as u64, cpu);
                    waiters[who].1 = cpu as usize;
                }
                Step::Pass { ticks } => {
                    w.seen.now.set(now + ticks);
                    for cpu in 0..2 {
                        w.seen.cpu.set(cpu);
                        w.kernel.timer(cpu);
                    }
                    for waiter in &mut waiters {
                        if waiter.2 <= now + ticks {
                            waiter.2 = FOREVER - 1;
                        }
                    }
                }
            }
            wait_on(&mut w, &waiters);
            for cpu in 0..2 {
                let next = waiters.iter().filter(|waiter| waiter.1 == cpu).map(|waiter| waiter.2).min();
                prop_assert_eq!(w.kernel.deadline(cpu), next.unwrap_or(u64::MAX), "{:?}", step);
            }
            w.seen.cpu.set(0);
            prop_assert_eq!(w.kernel.check(), Ok(()));
        }
    }
}
