//! What capabilities allow, and how they are copied, revoked and end.

use microvisor_abi::cap::LINES;
use microvisor_abi::cap::Map;
use microvisor_abi::{Call, Kind, Rights, Status};
use microvisor_objects::Flush;

use crate::RW;
use crate::world::World;

#[test]
fn an_occupied_slot_is_refused() {
    let mut w = World::new();
    let ram = w.ram();
    let a = [ram, Kind::Frame as u64 | 12 << 8, 0, 1 | 1 << 32];
    assert_eq!(w.call(Call::Retype, &a).0, Status::SlotOccupied);
}

#[test]
fn copy_never_adds_a_right() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 12, 500, 1);
    w.ok(Call::Copy, &[500, 0, 501, Rights::READ.0 as u64, 0, 0]);
    w.ok(Call::Copy, &[501, 0, 502, Rights::ALL.0 as u64, 0, 0]);
    assert_eq!(
        w.call(Call::Map, &[502, 2, 0x4000_0000, RW]).0,
        Status::NoRight
    );
    assert_eq!(
        w.call(Call::Map, &[502, 2, 0x4000_0000, Map::READ]).0,
        Status::Ok
    );
}

#[test]
fn revoke_reaches_grandchildren_and_their_mappings() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 21, 500, 1);
    w.ok(Call::Copy, &[500, 0, 501, 0xff, 0, 0]);
    w.ok(Call::Copy, &[501, 0, 502, 0xff, 0x1000, 12]);
    w.ok(Call::Map, &[502, 2, 0x4000_0000, RW]);
    let root = w.kernel.space_root(w.root).expect("space");
    assert!(w.kernel.arena.translate(root, 0x4000_0000).is_some());
    w.ok(Call::Revoke, &[0, 500]);
    assert!(w.kernel.arena.translate(root, 0x4000_0000).is_none());
    assert_eq!(w.call(Call::Unmap, &[502]).0, Status::InvalidCap);
    let flushed = w.seen.flushes.borrow().contains(&Flush::HostPage {
        root,
        address: 0x4000_0000,
    });
    assert!(flushed);
    // The original is still there.
    w.ok(Call::Map, &[500, 2, 0x4000_0000, RW]);
}

#[test]
fn destroying_a_space_of_capabilities_ends_what_it_held_and_frees_its_memory() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 64, 500, 1);
    w.make(500, Kind::CapSpace, 1, 501, 1);
    w.make(500, Kind::CapSpace, 1, 502, 1);
    w.make(ram, Kind::Endpoint, 0, 503, 1);
    // Each space holds the other's name, a copy of an endpoint, and derived copies outside.
    w.ok(Call::Copy, &[503, 501, 5, 0xff, 0, 0]);
    w.ok(Call::Copy, &[501, 0, 505, 0xff, 0, 0]);
    w.ok(Call::Copy, &[502, 0, 506, 0xff, 0, 0]);
    w.ok(Call::Move, &[0, 501, 506, 7]);
    w.ok(Call::Move, &[0, 502, 505, 8]);
    w.ok(Call::Revoke, &[0, 500]);
    assert_eq!(
        w.call(Call::Copy, &[503, 505, 6, 0xff, 0, 0]).0,
        Status::InvalidCap
    );
    // All of the memory is there again.
    w.make(500, Kind::Frame, 12, 600, 64);
    // And the endpoint's own name has nothing dangling below it.
    w.ok(Call::Delete, &[0, 503]);
}

#[test]
fn what_a_dead_space_gave_away_stays_with_its_parents() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::CapSpace, 1, 501, 1);
    w.make(ram, Kind::Notification, 0, 503, 1);
    w.ok(Call::Copy, &[503, 0, 600, 0xff, 0, 0]);
    w.ok(Call::Copy, &[600, 0, 601, 0xff, 2, 0]);
    w.ok(Call::Move, &[0, 600, 501, 5]);
    w.ok(Call::Delete, &[0, 501]);
    w.ok(Call::Signal, &[601, 0]);
    assert_eq!(w.ok(Call::Wait, &[503, 0])[0], 2);
    w.ok(Call::Revoke, &[0, 503]);
    assert_eq!(w.call(Call::Signal, &[601, 0]).0, Status::InvalidCap);
}

#[test]
fn what_one_call_works_through_is_bounded() {
    let mut w = World::new();
    let ram = w.ram();
    for (kind, most) in [(Kind::Tables, 512), (Kind::CapSpace, 4096)] {
        let a = [ram, kind as u64 | ((most + 1) << 8), 0, 500 | (1 << 32)];
        assert_eq!(w.call(Call::Retype, &a).0, Status::InvalidArgument);
        w.make(ram, kind, most, 500, 1);
        w.ok(Call::Revoke, &[0, ram]);
    }
}

#[test]
fn ports_of_a_vcpu_come_and_go_with_their_capability() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, 500, 1);
    w.ok(Call::Copy, &[5, 0, 501, 0xff, 0x3f8 | (8 << 32), 0]);
    w.ok(Call::PortsGrant, &[501, 500]);
    assert_eq!(
        w.call(Call::PortsGrant, &[501, 500]).0,
        Status::AlreadyMapped
    );
    w.ok(Call::Delete, &[0, 501]);
    assert_eq!(
        w.seen.ports.borrow().as_slice(),
        &[(0x3f8, 8, true), (0x3f8, 8, false)]
    );
    assert_eq!(w.seen.flushes.borrow().last(), Some(&Flush::Quiesce));
}

#[test]
fn lines_that_do_not_exist_cannot_be_named() {
    let mut w = World::new();
    let beyond = [6, 0, 500, 0xff, LINES | (1 << 32), 0];
    assert_eq!(w.call(Call::Copy, &beyond).0, Status::InvalidArgument);
    let all = w.call(Call::InterruptControl, &[6, LINES, 0]).0;
    assert_eq!(all, Status::InvalidArgument);
    w.ok(Call::Copy, &[6, 0, 500, 0xff, (LINES - 1) | (1 << 32), 0]);
}

#[test]
fn a_copy_of_all_cpus_has_no_higher_priority_than_it_says() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::SchedContext, 0, 500, 1);
    w.ok(Call::Copy, &[7, 0, 501, 0xff, 0, 10]);
    assert_eq!(
        w.call(Call::SchedSet, &[500, 501, 0, 11, 1, 1]).0,
        Status::NoRight
    );
    w.ok(Call::SchedSet, &[500, 501, 0, 10, 1, 1]);
    w.ok(Call::Copy, &[501, 0, 502, 0xff, 0, 31]);
    assert_eq!(
        w.call(Call::SchedSet, &[500, 502, 0, 11, 1, 1]).0,
        Status::NoRight
    );
}

#[test]
fn time_is_not_handed_out_beyond_the_right_to_it() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::SchedContext, 0, 500, 1);
    w.ok(Call::Copy, &[7, 0, 501, 0xff, 1 | 1 << 32, 10]);
    assert_eq!(
        w.call(Call::SchedSet, &[500, 501, 0, 5, 1, 1]).0,
        Status::NoRight
    );
    assert_eq!(
        w.call(Call::SchedSet, &[500, 501, 1, 11, 1, 1]).0,
        Status::NoRight
    );
    w.ok(Call::SchedSet, &[500, 501, 1, 10, 1, 1]);
    assert_eq!(
        w.call(Call::Copy, &[501, 0, 502, 0xff, 2u64 << 32, 10]).0,
        Status::InvalidArgument
    );
}
