//! Claims about threads, time and notifications.

use sdk::abi::message::MessageInfo;
use sdk::abi::{Call, FOREVER};
use sdk::prelude::*;
use sdk::time;

use crate::lab::{
    CPUS, Claim, Failure, Lab, OUTCOME, PRIORITY, RESULT, ROUNDS, SEEN, WRONG, Word, call, here,
    outcome, same, until,
};

pub const CLAIMS: &[Claim] = &[
    ("a_running_thread_moves", running),
    ("a_ready_thread_moves", ready),
    ("a_blocked_thread_moves", blocked),
    ("a_deadline_moves_with_its_thread", deadline),
    ("a_thread_moves_itself", itself),
    ("no_call_is_lost_or_made_twice_by_moves", calls),
    ("suspend_and_resume_reach_a_thread_anywhere", suspended),
    ("cancel_ends_each_blocking_call", cancel),
    ("a_bound_notification_reaches_a_receiver", bound),
    ("a_spent_budget_leaves_the_cpu_to_others", budget),
    ("no_wake_up_is_lost_on_the_way_to_sleep", sleep),
];

/// Where an instruction takes a nanosecond, and one CPU runs at a time.
pub const COUNTED: &[Claim] = &[("no_deadline_is_lost_on_the_way_to_sleep", alarm)];

fn wander() {
    loop {
        here();
        ROUNDS.count();
    }
}

fn running(lab: &mut Lab) -> Result<(), Failure> {
    let worker = lab.worker(1, |_| wander())?;
    SEEN.reaches("it starts on its CPU", 2)?;
    for cpu in [2, 3, 1, 0, 2] {
        worker.move_to(cpu)?;
        if cpu == 0 {
            // This thread is more urgent there.
            let rounds = ROUNDS.get();
            for _ in 0..1000 {
                core::hint::spin_loop();
            }
            same("less urgent, it does not run", ROUNDS.get(), rounds)?;
        } else {
            SEEN.reaches("it goes on elsewhere", u64::from(cpu) + 1)?;
            ROUNDS.grows("it runs there", 10)?;
        }
    }
    worker.end()
}

fn ready(lab: &mut Lab) -> Result<(), Failure> {
    let urgent = lab.another(1, PRIORITY + 2, (1, 1), |_| {
        loop {
            core::hint::spin_loop();
        }
    })?;
    let worker = lab.worker(1, |_| wander())?;
    worker.move_to(2)?;
    SEEN.reaches("it runs on a CPU that is free", 3)?;
    urgent.end()?;
    worker.end()
}

fn blocked(lab: &mut Lab) -> Result<(), Failure> {
    let note: Cap<cap::Notification> = lab.make()?;
    let worker = lab.worker(1, move |_| {
        let bits = note.wait(FOREVER);
        here();
        OUTCOME.set(RESULT + bits.unwrap_or(0));
    })?;
    worker.blocks()?;
    worker.move_to(3)?;
    note.signal(7)?;
    OUTCOME.reaches("it hears the bits", RESULT + 7)?;
    same("where it is", SEEN.get(), 4)?;
    worker.end()
}

fn deadline(lab: &mut Lab) -> Result<(), Failure> {
    let note: Cap<cap::Notification> = lab.make()?;
    let worker = lab.worker(1, move |_| {
        let waited = note.wait(time::now() + 300 * time::tsc_khz());
        here();
        outcome(waited);
    })?;
    worker.blocks()?;
    worker.move_to(2)?;
    OUTCOME.reaches("the wait ends", RESULT + Status::Timeout as u64)?;
    same("where it is", SEEN.get(), 3)?;
    worker.end()
}

fn itself(lab: &mut Lab) -> Result<(), Failure> {
    let worker = lab.worker(1, |me| {
        let moved = me.move_to(3);
        here();
        outcome(moved);
    })?;
    OUTCOME.reaches("it goes on", RESULT)?;
    same("where it is", SEEN.get(), 4)?;
    worker.end()
}

/// Signals a word and takes it back: each call does what it says just once.
fn bounce(note: Cap<cap::Notification>) -> impl FnOnce(crate::lab::Worker) + Send + 'static {
    move |_| {
        loop {
            if note.signal(5) != Ok(()) || note.poll() != Ok(5) {
                WRONG.count();
            }
            ROUNDS.count();
        }
    }
}

fn calls(lab: &mut Lab) -> Result<(), Failure> {
    let (note, other): (Cap<cap::Notification>, Cap<cap::Notification>) =
        (lab.make()?, lab.make()?);
    let worker = lab.worker(1, bounce(note))?;
    // Company in the core, so that the calls meet at its lock.
    let company = lab.another(3, PRIORITY, (1, 1), move |_| while other.poll().is_ok() {})?;
    for round in 0..400 {
        worker.move_to(1 + round % 2)?;
        if round % 20 == 0 {
            ROUNDS.grows("it goes on", 3)?;
        }
    }
    ROUNDS.grows("it goes on in the end", 10)?;
    same("calls that did something else", WRONG.get(), 0)?;
    worker.end()?;
    company.end()
}

fn suspended(lab: &mut Lab) -> Result<(), Failure> {
    let note: Cap<cap::Notification> = lab.make()?;
    let worker = lab.worker(1, bounce(note))?;
    for round in 0..200 {
        worker.thread.suspend()?;
        let rounds = ROUNDS.get();
        if round % 3 == 0 {
            worker.move_to(1 + round % 3)?;
        }
        same("a suspended thread stands", ROUNDS.get(), rounds)?;
        worker.thread.resume()?;
        if round % 20 == 0 {
            ROUNDS.grows("it goes on", 3)?;
        }
    }
    ROUNDS.grows("it goes on in the end", 10)?;
    same("calls that did something else", WRONG.get(), 0)?;
    worker.end()
}

fn cancel(lab: &mut Lab) -> Result<(), Failure> {
    let note: Cap<cap::Notification> = lab.make()?;
    let (endpoint, reply): (Cap<cap::Endpoint>, Cap<cap::Reply>) = (lab.make()?, lab.make()?);
    let [note, endpoint, reply] = [note.slot(), endpoint.slot(), reply.slot()].map(u64::from);
    for (number, arguments) in [
        (Call::Wait, [note, FOREVER, 0, 0]),
        (Call::Call, [endpoint, 0, 0, 0]),
        (Call::Receive, [endpoint, reply, FOREVER, 0]),
    ] {
        let worker = lab.worker(1, move |_| {
            let (status, _) = call(number, arguments);
            OUTCOME.set(RESULT + status as u64);
        })?;
        worker.blocks()?;
        worker.thread.cancel()?;
        OUTCOME.reaches("the call ends", RESULT + Status::Cancelled as u64)?;
        worker.end()?;
    }
    Ok(())
}

fn bound(lab: &mut Lab) -> Result<(), Failure> {
    static BADGE: Word = Word::new();
    let note: Cap<cap::Notification> = lab.make()?;
    let (endpoint, reply): (Cap<cap::Endpoint>, Cap<cap::Reply>) = (lab.make()?, lab.make()?);
    let worker = lab.worker(1, move |_| {
        loop {
            let slots = [endpoint.slot(), reply.slot()].map(u64::from);
            let (status, [badge, info, word]) =
                call(Call::Receive, [slots[0], slots[1], FOREVER, 0]);
            BADGE.set(badge);
            OUTCOME.set(if status != Status::Ok {
                status as u64
            } else if info == MessageInfo::NOTIFICATION.0 {
                RESULT + word
            } else {
                2 * RESULT + word
            });
            if info != MessageInfo::NOTIFICATION.0 {
                let _ = call(Call::Reply, [slots[1], 0, word + 1, 0]);
            }
        }
    })?;
    note.bind_messages(worker.thread)?;
    worker.blocks()?;
    note.signal(6)?;
    OUTCOME.reaches("bits arrive", RESULT + 6)?;
    let caller = endpoint.mint(Rights::CALL, 77)?;
    let (status, [_, _, answer]) = call(Call::Call, [caller.slot().into(), 0, 40, 0]);
    same("the call", status as u64, Status::Ok as u64)?;
    same("the answer", answer, 41)?;
    same("the message", OUTCOME.get(), 2 * RESULT + 40)?;
    same("the badge", BADGE.get(), 77)?;
    worker.end()
}

fn budget(lab: &mut Lab) -> Result<(), Failure> {
    static LIMITED: Word = Word::new();
    // Long, so that interrupts that a busy host delivers late do not count for much.
    let period = 400 * time::tsc_khz();
    let worker = lab.worker(1, |_| {
        loop {
            ROUNDS.count();
        }
    })?;
    ROUNDS.grows("it runs", 10)?;
    let limited = lab.another(1, PRIORITY + 2, (period / 5, period), |_| {
        loop {
            LIMITED.count();
        }
    })?;
    LIMITED.grows("the limited one runs", 10)?;
    let (mine, others) = (LIMITED.get(), ROUNDS.get());
    let end = time::now() + 10 * period;
    until("the time is over", || time::now() >= end)?;
    let (mine, others) = (LIMITED.get() - mine, ROUNDS.get() - others);
    // A fifth is its right. How even a slow machine's time is decides how near that comes; without
    // a limit it would have all, and the others nothing.
    if mine == 0 || mine > 2 * others {
        return Err(Failure::Wrong("rounds of the limited one", mine, others));
    }
    // The limit goes as it came.
    limited.sched.set(CPUS, 2, PRIORITY, 1, 1)?;
    LIMITED.grows("it runs without a limit", 10)?;
    limited.end()?;
    worker.end()
}

/// Two threads, each alone on its CPU, wake each other and wait: often one is woken just as its CPU
/// goes to sleep. Nothing else interrupts there, so a wake-up that is lost stays lost.
fn sleep(lab: &mut Lab) -> Result<(), Failure> {
    const TURNS: u64 = 20_000;
    let (one, other): (Cap<cap::Notification>, Cap<cap::Notification>) = (lab.make()?, lab.make()?);
    let turns = |mine: Cap<cap::Notification>, its: Cap<cap::Notification>| {
        move |_| {
            loop {
                if mine.wait(FOREVER) != Ok(1) || its.signal(1) != Ok(()) {
                    WRONG.count();
                }
                ROUNDS.count();
            }
        }
    };
    let first = lab.worker(1, turns(one, other))?;
    let second = lab.another(2, PRIORITY, (1, 1), turns(other, one))?;
    one.signal(1)?;
    let mut before = 0;
    while before < TURNS {
        ROUNDS.grows("they take turns", 100)?;
        before = ROUNDS.get();
    }
    same("calls that did something else", WRONG.get(), 0)?;
    first.end()?;
    second.end()
}

/// A thread, alone on its CPU, sleeps for next to no time, each time another while: some of its
/// deadlines come between its CPU's last look for work and its sleep. Nothing else interrupts there, so
/// a deadline that is lost stays lost. What the clock does not count exactly comes too late for that
/// moment: an emulator's timer, or another CPU that was woken itself.
fn alarm(lab: &mut Lab) -> Result<(), Failure> {
    const TURNS: u64 = 5_000;
    /// Microseconds of the longest sleep: several times what the way to sleep takes.
    const LONGEST: u64 = 32;
    /// Microseconds that a turn may take.
    const TURN: u64 = 100;
    let sleeper = lab.worker(1, |_| {
        // Knuth's MMIX generator; its upper bits are the better ones.
        let mut state = 1u64;
        loop {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let ticks = (state >> 32) % time::microseconds(LONGEST).max(1);
            if time::sleep_until(time::now() + ticks) != Ok(()) {
                WRONG.count();
            }
            ROUNDS.count();
        }
    })?;
    let end = time::now() + time::microseconds(TURNS * TURN);
    // Looks all the time: its own deadlines might be lost as well.
    while ROUNDS.get() < TURNS {
        if time::now() > end {
            return Err(Failure::Wrong("turns", ROUNDS.get(), TURNS));
        }
        // At a hint of waiting QEMU changes to the other CPU's instructions, which takes it long.
        for step in 0..1_000 {
            core::hint::black_box(step);
        }
        core::hint::spin_loop();
    }
    same("calls that did something else", WRONG.get(), 0)?;
    sleeper.end()
}
