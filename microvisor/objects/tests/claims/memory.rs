//! What memory becomes: frames and objects, where they lie, what they hold at first.

use microvisor_abi::{Call, Kind, Status};

use crate::RW;
use crate::world::World;

#[test]
fn root_is_given_every_memory_and_its_information() {
    let w = World::new();
    assert_eq!(w.info.memory_count, 2);
    assert_eq!(w.info.memories[1].device, 1);
    assert_eq!(w.info.archive_frames, 1);
    assert_eq!(w.info.cpus, 2);
}

#[test]
fn retype_hands_out_disjoint_zeroed_frames_until_memory_ends() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 3, 500, 1);
    w.make(500, Kind::Frame, 12, 510, 3);
    let a = [500, Kind::Frame as u64 | 12 << 8, 0, 520 | 1 << 32];
    assert_eq!(w.call(Call::Retype, &a).0, Status::NoMemory);
    // What was made of it is gone: the memory is whole again.
    w.ok(Call::Revoke, &[0, 500]);
    w.make(500, Kind::Frame, 12, 510, 3);
}

#[test]
fn a_sub_frame_stays_inside_its_parent() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 21, 500, 1);
    for (offset, order) in [
        (2 << 20, 12),
        (0x800, 12),
        (0, 30),
        (0, 13),
        (u64::MAX - 0xfff, 12),
    ] {
        let status = w.call(Call::Copy, &[500, 0, 501, 0xff, offset, order]).0;
        assert_eq!(status, Status::InvalidArgument, "{offset:#x} {order}");
    }
    w.ok(Call::Copy, &[500, 0, 501, 0xff, (2 << 20) - 4096, 12]);
}

#[test]
fn device_memory_makes_only_frames() {
    let mut w = World::new();
    let device = w.info.memories[1].slot as u64;
    let a = [device, Kind::Thread as u64, 0, 500 | 1 << 32];
    assert_eq!(w.call(Call::Retype, &a).0, Status::InvalidArgument);
    w.make(device, Kind::Frame, 12, 500, 1);
}

#[test]
fn a_large_capability_space_is_zeroed_in_steps_and_nothing_else_passes_for_zero() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 3500, 500, 1);
    let retype = |w: &mut World, kind: Kind, size: u64, slot: u64| {
        let a = [500, kind as u64 | (size << 8), 0, slot | (1 << 32)];
        w.call(Call::Retype, &a).0
    };
    // Not zero to begin with.
    w.make(500, Kind::Frame, 12, 600, 16);
    for page in 0..16 {
        w.ok(Call::Map, &[600 + page, 2, 0x4000_0000 + (page << 12), RW]);
    }
    let root = w.kernel.space_root(w.root).expect("space");
    for page in 0..16u64 {
        let at = w.kernel.arena.translate(root, 0x4000_0000 + (page << 12));
        w.kernel.arena.write(at.expect("mapped").0, u64::MAX);
    }
    w.ok(Call::Revoke, &[0, 500]);
    assert_eq!(retype(&mut w, Kind::CapSpace, 1200, 501), Status::Again);
    assert_eq!(retype(&mut w, Kind::CapSpace, 1200, 501), Status::Again);
    assert_eq!(retype(&mut w, Kind::CapSpace, 1200, 501), Status::Ok);
    w.ok(Call::Copy, &[500 + 1, 0, 502, 0xff, 0, 0]);
    w.ok(Call::Revoke, &[0, 500]);
    // Begun, and then something else is made, with another alignment.
    assert_eq!(retype(&mut w, Kind::CapSpace, 1200, 501), Status::Again);
    w.make(500, Kind::Frame, 21, 501, 1);
    w.ok(Call::Map, &[501, 2, 0x4000_0000, RW]);
    for word in (0..2u64 << 20).step_by(8) {
        let at = w.kernel.arena.translate(root, 0x4000_0000 + word);
        assert_eq!(w.kernel.arena.read::<u64>(at.expect("mapped").0), 0);
    }
}

#[test]
fn a_frame_whose_generations_are_spent_carries_no_object() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 8, 500, 1);
    let used = |w: &mut World| {
        w.make(500, Kind::Notification, 0, 501, 1);
        let used = w.ok(Call::Inspect, &[0, 500])[2];
        w.ok(Call::Delete, &[0, 501]);
        used
    };
    assert_eq!(used(&mut w), 1);
    w.spend();
    assert_eq!(used(&mut w), 1, "the last object");
    assert_eq!(used(&mut w), 2, "passed over");
    assert_eq!(used(&mut w), 3);
    // They can still be ordinary memory.
    w.make(500, Kind::Frame, 12, 501, 8);
}
