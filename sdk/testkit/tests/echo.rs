//! The kit itself, on the smallest server there is: what a call comes to under each fault, by the
//! sdk's own code on both sides.

use idl::bench::{Bench, BenchClient, BenchServer};
use idl::{Bytes, CallError, ConnectError, Failure, Refusal};
use microvisor_testkit::{
    Component, Death, Fault, Mangle, Plan, Restart, Site, System, Told, sweep,
};
use sdk::prelude::*;

struct Echo;

impl BenchServer for Echo {
    fn echo(&mut self, _: u64, bytes: Bytes<31>) -> Bytes<31> {
        assert_ne!(bytes.0[0], b'!', "asked to panic");
        bytes
    }
}

impl Notified for Echo {
    fn notified(&mut self, bits: u64) {
        log::info!("bits {bits:#x}");
    }
}

fn echo(env: Env) {
    env.notification().bind_messages(env.thread()).unwrap();
    let mut receiver = Receiver::new(env.endpoint("bench"), REPLY, 0).unwrap();
    if let Ok(root) = SupervisorClient::connect(env.transport("supervisor")) {
        let _ = root.ready();
    }
    let status = serve::<Bench, _>(&mut receiver, &mut Echo);
    log::error!("{status:?}");
}

fn system(plan: Plan, restart: Restart) -> System {
    let server = Component::new("echo", echo)
        .serves("bench")
        .needs("supervisor")
        .restart(restart);
    let client = Component::driven("client").needs("bench");
    System::start(plan, vec![server, client])
}

type Outcome = Result<u8, CallError<core::convert::Infallible, Status>>;

fn call(env: &Env, what: u8) -> Outcome {
    let client = match BenchClient::connect(env.transport("bench")) {
        Ok(client) => client,
        Err(ConnectError::Failure(failure)) => return Err(CallError::Failure(failure)),
        Err(ConnectError::Schema { .. }) => panic!("another schema"),
    };
    client.echo(Bytes([what; 31])).map(|answer| answer.0[0])
}

fn transport(status: Status) -> Outcome {
    Err(CallError::Failure(Failure::Transport(status)))
}

/// The outcome of a call under a fault, and of the next one.
fn under(fault: Fault, restart: Restart) -> [Outcome; 2] {
    // Call 0 is that of `connect`.
    let system = system(Plan::new().call("client", "bench", 1, fault), restart);
    let outcomes = system.drive("client", |env| [call(env, 7), call(env, 8)]);
    assert_eq!(system.pending(), []);
    outcomes
}

#[test]
fn an_answer_comes_back_and_root_is_told() {
    let system = system(Plan::new(), Restart::Never);
    assert_eq!(system.told("echo"), [Told::Ready]);
    assert_eq!(system.drive("client", |env| call(env, 7)), Ok(7));
    assert_eq!(system.faults(), [""; 0]);
}

#[test]
fn a_caller_hears_restarted_if_calling_again_makes_sense_and_aborted_if_not() {
    for fault in [Fault::DieBefore, Fault::DieAfter] {
        let again = under(fault, Restart::Always);
        assert_eq!(again, [transport(Status::Restarted), Ok(8)]);
        let never = under(fault, Restart::Never);
        assert_eq!(never[0], transport(Status::Aborted));
        assert_eq!(never[1], transport(Status::InvalidCap));
    }
}

#[test]
fn a_panic_is_a_death_with_a_message() {
    let system = system(Plan::new(), Restart::Times(1));
    let outcomes = system.drive("client", |env| {
        [call(env, b'!'), call(env, 1), call(env, b'!'), call(env, 1)]
    });
    assert_eq!(
        outcomes,
        [
            transport(Status::Restarted),
            Ok(1),
            transport(Status::Aborted),
            transport(Status::InvalidCap)
        ]
    );
    let deaths = system.deaths("echo");
    assert!(
        matches!(&deaths[..], [Death::Panic(first), Death::Panic(_)] if first.contains("asked to panic"))
    );
    assert_eq!(system.faults().len(), 2);
}

#[test]
fn damaged_bytes_are_refused_by_the_server_and_noticed_by_the_client() {
    let refused = |refusal| Err(CallError::Failure(Failure::Refused(refusal)));
    let malformed = Err(CallError::Failure(Failure::Malformed));
    for how in [Mangle::Truncate, Mangle::Empty, Mangle::Oversize] {
        let request = under(Fault::Request(how), Restart::Never);
        assert_eq!(request, [refused(Refusal::Malformed), Ok(8)], "{how:?}");
        let answer = under(Fault::Answer(how), Restart::Never);
        assert_eq!(answer, [malformed, Ok(8)], "{how:?}");
    }
    let label = under(Fault::Request(Mangle::Label), Restart::Never);
    assert_eq!(label, [refused(Refusal::Method), Ok(8)]);
}

#[test]
fn a_cancelled_caller_leaves_a_server_that_goes_on() {
    let cancelled = under(Fault::Cancel, Restart::Never);
    assert_eq!(cancelled, [transport(Status::Cancelled), Ok(8)]);
    let refused = under(Fault::CapsRefused, Restart::Never);
    assert_eq!(refused, [transport(Status::CapsRefused), Ok(8)]);
}

#[test]
fn another_schema_is_found_when_connecting() {
    let plan = Plan::new().call("client", "bench", 0, Fault::OtherSchema);
    let system = system(plan, Restart::Never);
    let outcome = system.drive("client", |env| {
        BenchClient::connect(env.transport("bench")).err()
    });
    let ours = <Bench as idl::Interface>::HASH;
    assert!(
        matches!(outcome, Some(ConnectError::Schema { ours: o, theirs }) if o == ours && theirs != ours)
    );
}

#[test]
fn an_answer_that_is_late_finds_the_clock_moved() {
    let plan = Plan::new().call("client", "bench", 1, Fault::Delay(500));
    let system = system(plan, Restart::Never);
    let elapsed = system.drive("client", |env| {
        let before = sdk::time::now();
        assert_eq!(call(env, 7), Ok(7));
        sdk::time::now() - before
    });
    assert_eq!(elapsed, 500);
}

#[test]
fn a_sleeper_is_woken_by_the_clock_only() {
    let sleeper = Component::new("sleeper", |_| {
        sdk::time::sleep_until(sdk::time::now() + 100).unwrap();
        log::info!("awake");
    });
    let system = System::start(Plan::new(), vec![sleeper]);
    system.advance(99);
    assert!(system.log("sleeper").is_empty());
    system.advance(1);
    assert_eq!(system.log("sleeper"), ["awake", "(main returned)"]);
}

#[test]
fn bits_are_sticky_and_come_together() {
    let system = system(Plan::new(), Restart::Never);
    system.signal("echo", 1);
    assert_eq!(system.log("echo"), ["bits 0x1"]);
    let plan = Plan::new().call("client", "bench", 0, Fault::Spurious(4));
    let system = self::system(plan, Restart::Never);
    assert_eq!(system.drive("client", |env| call(env, 7)), Ok(7));
    assert_eq!(system.log("echo"), ["bits 0x4"]);
}

#[test]
#[should_panic(expected = "client calls endpoint bench, which nobody takes")]
fn a_server_that_never_receives_is_found_out() {
    let deaf = Component::new("deaf", |_| {}).serves("bench");
    let client = Component::driven("client").needs("bench");
    let system = System::start(Plan::new(), vec![deaf, client]);
    let _ = system.drive("client", |env| call(env, 7));
}

#[test]
fn memory_ends_as_it_does_on_the_machine() {
    let poor = Component::driven("poor").memory_frames(3);
    let system = System::start(Plan::new(), vec![poor]);
    let made = system.drive("poor", |env| {
        // One frame went for the notification that every thread sleeps on.
        [(); 3].map(|()| env.memory().retype::<cap::Notification>(0).map(|_| ()))
    });
    assert_eq!(made, [Ok(()), Ok(()), Err(Status::NoMemory)]);
}

#[test]
fn a_capability_that_is_kept_is_a_leak() {
    let client = Component::driven("client").needs("supervisor");
    let system = System::start(Plan::new(), vec![client]);
    let made = system.drive("client", |env| {
        let made = env.notification().mint(Rights::SIGNAL, 4).unwrap();
        made.delete().unwrap();
        env.notification().mint(Rights::SIGNAL, 4).unwrap()
    });
    system.mark();
    assert_eq!(system.leaks(), []);
    system.drive("client", |env| {
        env.notification().mint(Rights::SIGNAL, 4).unwrap()
    });
    let leaks = system.leaks();
    assert_eq!((leaks.len(), leaks[0].more), (1, 1));
    assert!(leaks[0].what.contains("own Notification"), "{leaks:?}");
    system.drive("client", |_| made.delete().unwrap());
    assert_eq!(system.leaks(), []);
}

#[test]
fn a_slot_that_is_taken_and_never_filled_is_a_leak() {
    let system = System::start(Plan::new(), vec![Component::driven("client")]);
    system.drive("client", |_| ());
    system.mark();
    system.drive("client", |_| sdk::slots::take());
    assert_eq!(system.leaks()[0].what, "a slot with nothing in it");
}

#[test]
fn an_echo_survives_everything() {
    let swept = sweep(|plan| {
        let system = system(plan, Restart::Always);
        system.mark();
        system.drive("client", |env| {
            // Whatever happens to two calls, a third one after them is answered.
            let _ = call_or_schema(env, 1);
            let _ = call_or_schema(env, 2);
            let last = (0..3).find_map(|_| call_or_schema(env, 3));
            assert_eq!(last, Some(3));
        });
        system
    });
    assert!(swept.happened > 100, "{swept:?}");
}

fn call_or_schema(env: &Env, what: u8) -> Option<u8> {
    let client = BenchClient::connect(env.transport("bench")).ok()?;
    Some(client.echo(Bytes([what; 31])).ok()?.0[0])
}

#[test]
fn the_same_plan_is_the_same_run() {
    let run = |seed| {
        let system = system(Plan::new(), Restart::Always);
        let _ = system.drive("client", |env| call(env, 1));
        let sites: Vec<Site> = system.sites();
        let plan = Plan::seeded(seed, &sites, 3);
        let again = self::system(plan, Restart::Always);
        let outcome = again.drive("client", |env| {
            [1, 2, 3].map(|what| format!("{:?}", call_or_schema(env, what)))
        });
        (outcome, again.sites())
    };
    for seed in 0..10 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
