//! Calls, answers and signals.

use microvisor_abi::cap::Role;
use microvisor_abi::{Call, FOREVER, Kind, MessageInfo, Rights, Status};

use crate::RW;
use crate::world::World;

#[test]
fn a_call_reaches_a_waiting_server_and_its_answer_returns() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    w.ok(Call::Copy, &[500, 0, 502, Rights::CALL.0 as u64, 77, 0]);
    let server = w.thread(510, 0, 20);
    assert_eq!(w.turn(), server);
    let _ = w.call(Call::Receive, &[500, 501, FOREVER]);
    assert_eq!(w.turn(), w.root);
    let info = MessageInfo::new(9, 0, 0).0;
    let _ = w.call(Call::Call, &[502, info, 1, 2, 3, 4]);
    assert_eq!(w.turn(), server);
    assert_eq!(w.results(server), (Status::Ok, [77, info, 1, 2, 3, 4]));
    let _ = w.call(Call::ReplyReceive, &[500 | 501 << 32, 0, 5, 6, 7, 8]);
    assert_eq!(w.turn(), w.root);
    assert_eq!(w.results(w.root), (Status::Ok, [0, 0, 5, 6, 7, 8]));
}

#[test]
fn a_reply_answers_once() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    let server = w.thread(510, 0, 20);
    w.turn();
    let _ = w.call(Call::Receive, &[500, 501, FOREVER]);
    w.turn();
    let _ = w.call(Call::Call, &[500, 0]);
    assert_eq!(w.turn(), server);
    assert_eq!(w.call(Call::Reply, &[501, 0]).0, Status::Ok);
    assert_eq!(w.call(Call::Reply, &[501, 0]).0, Status::NoCaller);
}

#[test]
fn signals_without_end_keep_no_caller_waiting() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    w.make(ram, Kind::Notification, 0, 503, 1);
    let server = w.thread(510, 0, 10);
    w.ok(Call::Bind, &[503, 510, Role::Messages as u64]);
    w.ok(Call::Signal, &[503, 1]);
    let info = MessageInfo::new(9, 0, 0).0;
    let _ = w.call(Call::Call, &[500, info]);
    assert_eq!(w.turn(), server);
    let bits = MessageInfo::NOTIFICATION.0;
    for heard in [bits, info] {
        let (status, words) = w.call(Call::Receive, &[500, 501, FOREVER]);
        assert_eq!((status, words[1]), (Status::Ok, heard));
        w.ok(Call::Signal, &[503, 1]);
    }
    // Nor do calls keep signals waiting.
    let _ = w.call(Call::ReplyReceive, &[500 | 501 << 32, 0]);
    assert_eq!(w.results(server).1[1], bits);
    assert_eq!(w.turn(), w.root);
}

#[test]
fn destroying_a_reply_aborts_its_caller() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    let server = w.thread(510, 0, 20);
    w.turn();
    let _ = w.call(Call::Receive, &[500, 501, FOREVER]);
    w.turn();
    let _ = w.call(Call::Call, &[500, 0]);
    assert_eq!(w.turn(), server);
    w.ok(Call::Delete, &[0, 501]);
    assert_eq!(w.results(w.root).0, Status::Aborted);
}

#[test]
fn a_message_carries_a_capability_or_is_refused_whole() {
    use microvisor_abi::message::{RECEIVE_SLOTS, SEND_SLOTS};
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    w.make(ram, Kind::Frame, 12, 502, 1);
    let server = w.thread(510, 0, 20);
    w.turn();
    let into = server.buffer().add(RECEIVE_SLOTS as u64);
    w.kernel.arena.write(into, 500u32);
    let _ = w.call(Call::Receive, &[500, 501, FOREVER]);
    w.turn();
    w.kernel
        .arena
        .write(w.root.buffer().add(SEND_SLOTS as u64), 502u32);
    let info = MessageInfo::new(1, 0, 1).0;
    assert_eq!(w.call(Call::Call, &[500, info]).0, Status::CapsRefused);
    w.kernel.arena.write(into, 600u32);
    let _ = w.call(Call::Call, &[500, info]);
    assert_eq!(w.turn(), server);
    w.ok(Call::Map, &[600, 2, 0x4000_0000, RW]);
    // Without GRANT the same message is refused.
    w.ok(Call::Copy, &[500, 0, 503, Rights::CALL.0 as u64, 5, 0]);
    assert_eq!(w.call(Call::Call, &[503, info]).0, Status::NoRight);
}

#[test]
fn signalled_bits_are_kept_until_taken_and_taken_once() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    w.ok(Call::Copy, &[500, 0, 501, Rights::SIGNAL.0 as u64, 4, 0]);
    w.ok(Call::Signal, &[501, 99]);
    w.ok(Call::Signal, &[500, 1]);
    assert_eq!(w.ok(Call::Wait, &[500, 0])[0], 5);
    assert_eq!(w.call(Call::Wait, &[500, 0]).0, Status::Timeout);
    assert_eq!(w.call(Call::Wait, &[501, 0]).0, Status::NoRight);
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    let _ = w.call(Call::Wait, &[500, 100]);
    assert!(w.turn().is_null());
    assert_eq!(w.kernel.deadline(0), 100);
    w.seen.now.set(99);
    w.kernel.timer(0);
    assert!(w.turn().is_null());
    w.seen.now.set(100);
    w.kernel.timer(0);
    assert_eq!(w.turn(), w.root);
    assert_eq!(w.results(w.root).0, Status::Timeout);
}
