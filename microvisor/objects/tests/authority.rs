//! Claims that refinement against the specification found broken. Each was a way around a check, or a
//! call that did half of what it says.

mod world;

use microvisor_abi::cap::Role;
use microvisor_abi::message::{MessageInfo, RECEIVE_SLOTS, SEND_SLOTS};
use microvisor_abi::vcpu::Op;
use microvisor_abi::{Call, FOREVER, Kind, Status};
use std::cell::Cell;
use std::rc::Rc;
use world::World;

#[test]
fn a_vcpu_without_the_right_to_use_it_is_not_run() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, 500, 1);
    w.make(ram, Kind::AddressSpace, 1, 501, 1);
    w.ok(Call::VcpuControl, &[500, 0, 501]);
    w.ok(Call::Copy, &[500, 0, 502, 0, 0, 0]);
    let arena = &w.kernel.arena;
    assert_eq!(arena.vcpu_find(w.root, 502, 0).err(), Some(Status::NoRight));
    assert!(arena.vcpu_find(w.root, 500, 0).is_ok());
}

#[test]
fn ports_go_to_no_thread_that_one_may_not_use() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Thread, 0, 500, 1);
    w.ok(Call::Copy, &[500, 0, 501, 0, 0, 0]);
    w.ok(Call::Copy, &[5, 0, 502, 0xff, 0x60 | 8 << 32, 0]);
    assert_eq!(w.call(Call::PortsGrant, &[502, 501]).0, Status::NoRight);
    w.ok(Call::PortsGrant, &[502, 500]);
}

#[test]
fn a_capability_space_that_is_being_emptied_takes_nothing_in() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::CapSpace, 2, 500, 1);
    w.make(ram, Kind::Endpoint, 0, 501, 1);
    for slot in 1..100 {
        w.ok(Call::Copy, &[501, 500, slot, 0xff, 0, 0]);
    }
    assert_eq!(w.call(Call::Delete, &[0, 500]).0, Status::Again);
    // What is put behind the point that the deletion has reached would stay in memory that is freed.
    let a = [501, 500, 1, 0xff, 0, 0];
    assert_eq!(w.call(Call::Copy, &a).0, Status::InvalidCap);
    w.ok(Call::Copy, &[500, 0, 502, 0xff, 0, 0]);
    let a = [501, 502, 1, 0xff, 0, 0];
    assert_eq!(w.call(Call::Copy, &a).0, Status::InvalidCap);
    w.ok(Call::Delete, &[0, 500]);
    w.ok(Call::Delete, &[0, 501]);
}

#[test]
fn of_a_message_with_one_bad_capability_none_arrives() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    w.make(ram, Kind::Memory, 1, 502, 1);
    let server = w.thread(510, 0, 20);
    assert_eq!(w.turn(), server);
    let into = server.buffer().add(RECEIVE_SLOTS as u64);
    w.kernel.arena.write(into, 600 | 601u64 << 32);
    let _ = w.call(Call::Receive, &[500, 501, FOREVER]);
    w.turn();
    let from = w.root.buffer().add(SEND_SLOTS as u64);
    w.kernel.arena.write(from, 500 | 502u64 << 32);
    let info = MessageInfo::new(1, 0, 2).0;
    assert_eq!(w.call(Call::Call, &[500, info]).0, Status::WrongKind);
    assert_eq!(w.call(Call::Signal, &[600, 0]).0, Status::InvalidCap);
}

#[test]
fn nothing_is_bound_to_a_notification_that_is_gone() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 1, 500, 1);
    w.make(500, Kind::Notification, 0, 501, 1);
    w.make(ram, Kind::CapSpace, 1, 505, 1);
    // The copy outlives its object: its own place is handed up while a space dies around the
    // original.
    w.ok(Call::Copy, &[501, 0, 502, 0xff, 0, 0]);
    w.ok(Call::Move, &[0, 501, 505, 1]);
    w.ok(Call::Delete, &[0, 505]);
    w.ok(Call::Copy, &[6, 0, 503, 0xff, 3 | 1 << 32, 0]);
    let line = [503, 502, Role::Line as u64];
    assert_eq!(w.call(Call::Bind, &line).0, Status::InvalidCap);
    let faults = [502, 3, Role::Faults as u64];
    assert_eq!(w.call(Call::Bind, &faults).0, Status::InvalidCap);
}

#[test]
fn cancelling_a_thread_whose_vcpu_is_gone_succeeds() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, 500, 1);
    w.make(ram, Kind::AddressSpace, 1, 501, 1);
    w.ok(Call::VcpuControl, &[500, 0, 501]);
    let (vcpu, run) = w.kernel.arena.vcpu_find(w.root, 500, 0).expect("a vCPU");
    run.begin(0).expect("a run");
    let thread = w.kernel.arena.get_mut(w.root).expect("root");
    thread.vcpu = vcpu;
    w.ok(Call::Delete, &[0, 500]);
    assert_eq!(w.call(Call::ThreadControl, &[3, 2]).0, Status::Ok);
}

#[test]
fn no_run_begins_while_a_call_works_on_the_vcpu() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, 500, 1);
    w.make(ram, Kind::AddressSpace, 1, 501, 2);
    w.ok(Call::VcpuControl, &[500, Op::Configure as u64, 501]);
    let (arena, root) = (w.kernel.arena, w.root);
    let tried = Rc::new(Cell::new(0));
    let count = tried.clone();
    let other = move || {
        // Either it finds no space yet, or it may not begin.
        if let Ok((_, run)) = arena.vcpu_find(root, 500, 1) {
            assert_eq!(run.begin(1), Err(Status::Busy));
        }
        count.set(count.get() + 1);
    };
    *w.seen.meanwhile.borrow_mut() = Some(Box::new(other));
    w.ok(Call::VcpuControl, &[500, Op::Fetch as u64, 1]);
    w.ok(Call::VcpuControl, &[500, Op::GetExtended as u64, 0]);
    w.ok(Call::VcpuControl, &[500, Op::SetExtended as u64, 0, 8]);
    w.ok(Call::Delete, &[0, 501]);
    w.ok(Call::VcpuControl, &[500, Op::Configure as u64, 502]);
    assert_eq!(tried.get(), 4);
    let (_, run) = arena.vcpu_find(root, 500, 1).expect("a vCPU");
    assert_eq!(run.begin(1), Ok(()));
}

#[test]
fn a_slot_is_not_mapped_to_a_space_that_is_gone() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 0, 500, 1);
    w.make(ram, Kind::Tables, 3, 501, 1);
    w.make(ram, Kind::Frame, 12, 502, 1);
    w.ok(Call::Fill, &[500, 501]);
    w.ok(Call::Map, &[502, 500, 0x4000_0000, 1]);
    let mapped = |w: &mut World| w.ok(Call::Inspect, &[0, 502])[0] >> 24 & 1;
    assert_eq!(mapped(&mut w), 1);
    w.ok(Call::Delete, &[0, 500]);
    assert_eq!(mapped(&mut w), 0);
}

#[test]
fn bits_set_before_a_notification_is_bound_reach_who_waits_already() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 500, 1);
    w.make(ram, Kind::Reply, 0, 501, 1);
    w.make(ram, Kind::Notification, 0, 502, 1);
    let server = w.thread(510, 0, 20);
    assert_eq!(w.turn(), server);
    let _ = w.call(Call::Receive, &[500, 501, FOREVER]);
    assert_eq!(w.turn(), w.root);
    w.ok(Call::Signal, &[502, 4]);
    w.ok(Call::Bind, &[502, 510, Role::Messages as u64]);
    assert_eq!(w.turn(), server);
    let notification = MessageInfo::NOTIFICATION.0;
    assert_eq!(w.results(server).1[..3], [0, notification, 4]);
}
