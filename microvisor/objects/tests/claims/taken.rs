//! What ends with a capability beside what it names: a thread's time, who hears of a line, ports.

use microvisor_abi::cap::Role;
use microvisor_abi::{Call, Kind, Status};
use microvisor_objects::Flush;

use crate::world::World;

#[test]
fn a_thread_stops_when_its_time_is_deleted() {
    let mut w = World::new();
    let ram = w.ram();
    let thread = w.thread(510, 1, 15);
    w.seen.cpu.set(1);
    assert_eq!(w.turn(), thread);
    w.seen.cpu.set(0);
    w.ok(Call::Delete, &[0, 511]);
    w.seen.cpu.set(1);
    assert!(w.turn().is_null(), "it runs on without time");
    w.seen.cpu.set(0);
    w.make(ram, Kind::SchedContext, 0, 511, 1);
    w.ok(Call::SchedSet, &[511, 7, 1, 15, 1, 1]);
    w.ok(Call::Bind, &[511, 510, Role::Time as u64]);
    w.seen.cpu.set(1);
    assert_eq!(w.turn(), thread, "and goes on with other time");
}

#[test]
fn a_line_is_free_when_the_capability_is_deleted_that_bound_it() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    let line = |slot: u64| [6, 0, slot, 0xff, 4 | 1 << 32, 0];
    w.ok(Call::Copy, &line(501));
    w.ok(Call::Copy, &line(502));
    let bind = |slot: u64| [slot, 500, Role::Line as u64];
    w.ok(Call::Bind, &bind(501));
    assert_eq!(w.call(Call::Bind, &bind(502)).0, Status::Busy);
    w.seen.lines.borrow_mut().clear();
    w.ok(Call::Delete, &[0, 501]);
    assert_eq!(w.seen.lines.take(), [(4, false)]);
    w.kernel.line(4);
    assert_eq!(w.call(Call::Wait, &[500, 0]).0, Status::Timeout);
    w.ok(Call::Bind, &bind(502));
    w.kernel.line(4);
    w.ok(Call::Wait, &[500, 0]);
}

#[test]
fn ports_of_a_vcpu_that_is_gone_can_be_granted_again() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, 500, 2);
    w.ok(Call::Copy, &[5, 0, 510, 0xff, 0x60 | 8 << 32, 0]);
    w.ok(Call::PortsGrant, &[510, 500]);
    assert_eq!(
        w.call(Call::PortsGrant, &[510, 501]).0,
        Status::AlreadyMapped
    );
    w.ok(Call::Delete, &[0, 500]);
    w.ok(Call::PortsGrant, &[510, 501]);
    let granted = (0x60, 8, true);
    assert_eq!(w.seen.ports.take(), [granted, granted]);
    w.ok(Call::Delete, &[0, 510]);
    assert_eq!(w.seen.ports.take(), [(0x60, 8, false)]);
}

#[test]
fn a_thread_that_ends_its_own_space_has_the_cpu_no_longer() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 0, 500, 1);
    let thread = w.thread(510, 0, 20);
    let begin = [510, 500, 1, 0x20_0000, 0x30_0000, 0];
    w.ok(Call::ThreadControl, &[510, 1]);
    w.ok(Call::ThreadConfigure, &begin);
    w.ok(Call::ThreadControl, &[510, 0]);
    assert_eq!(w.turn(), thread);
    w.set(thread, Call::Delete, &[0, 500]);
    assert!(w.kernel.syscall(), "the CPU is to choose again");
    assert_eq!(w.turn(), w.root);
}

#[test]
fn a_notification_that_a_cpu_may_be_reading_is_let_go_by_all_of_them() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    w.seen.flushes.borrow_mut().clear();
    w.ok(Call::Delete, &[0, 500]);
    assert_eq!(w.seen.flushes.take(), [Flush::Quiesce]);
}

#[test]
fn a_thread_ends_with_the_capability_it_was_made_with() {
    let mut w = World::new();
    let ram = w.ram();
    let thread = w.thread(510, 1, 15);
    w.ok(Call::Copy, &[510, 0, 512, 0xff, 0, 0]);
    w.make(ram, Kind::Notification, 0, 514, 1);
    w.ok(Call::Bind, &[514, 510, Role::Messages as u64]);
    w.seen.cpu.set(1);
    assert_eq!(w.turn(), thread);
    w.seen.cpu.set(0);
    w.set(w.root, Call::Delete, &[0, 510]);
    w.kernel.syscall();
    assert_eq!(w.results(w.root).0, Status::Ok);
    assert_eq!(w.kernel.current(0), w.root, "whoever deletes it goes on");
    assert!(w.kernel.current(1).is_null());
    assert_eq!(w.call(Call::ThreadControl, &[512, 0]).0, Status::InvalidCap);
    w.seen.cpu.set(1);
    assert!(w.turn().is_null());
    w.seen.cpu.set(0);
    assert_eq!(w.turn(), w.root);
    // Its time and what was bound to it are free for another.
    w.make(ram, Kind::Thread, 0, 513, 1);
    w.ok(Call::Bind, &[511, 513, Role::Time as u64]);
    w.ok(Call::Bind, &[514, 513, Role::Messages as u64]);
}

#[test]
fn a_thread_can_delete_itself() {
    let mut w = World::new();
    let thread = w.thread(510, 0, 20);
    assert_eq!(w.turn(), thread);
    w.set(thread, Call::Delete, &[0, 510]);
    assert!(w.kernel.syscall(), "the CPU is to choose again");
    assert!(w.kernel.current(0).is_null());
    assert_eq!(w.turn(), w.root);
}
