//! How capability spaces end: whoever loses one, by whatever call, nothing resolves in it from then on,
//! and nothing of what it held is left behind.

use microvisor_abi::{Call, Kind, Status};

use crate::world::World;

fn is_empty(w: &mut World, slot: u64) -> bool {
    w.ok(Call::Inspect, &[0, slot])[0] as u8 == Kind::Null as u8
}

#[test]
fn a_space_whose_name_was_in_a_space_that_died_resolves_nothing() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 4, 600, 1);
    w.make(ram, Kind::CapSpace, 1, 500, 1);
    w.make(600, Kind::CapSpace, 1, 501, 1);
    w.make(ram, Kind::Notification, 0, 503, 1);
    w.ok(Call::Copy, &[503, 501, 5, 0xff, 0, 0]);
    w.ok(Call::Copy, &[501, 0, 502, 0xff, 0, 0]);
    w.ok(Call::Move, &[0, 501, 500, 1]);
    w.ok(Call::Delete, &[0, 500]);
    let into = [503, 502, 6, 0xff, 0, 0];
    assert_eq!(w.call(Call::Copy, &into).0, Status::InvalidCap);
    // It stays below its memory until that is revoked, and ends then.
    assert_eq!(w.ok(Call::Inspect, &[0, 600])[2], 1);
    w.ok(Call::Revoke, &[0, 600]);
    assert_eq!(w.ok(Call::Inspect, &[0, 600])[2], 0);
    w.kernel.check().expect("a well-formed forest");
}

#[test]
fn a_space_whose_memory_is_revoked_ends_what_it_held() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 4, 600, 1);
    w.make(600, Kind::CapSpace, 2, 500, 1);
    w.make(ram, Kind::Notification, 0, 501, 1);
    w.make(ram, Kind::Notification, 0, 502, 1);
    w.ok(Call::Copy, &[501, 0, 503, 0xff, 0, 0]);
    w.ok(Call::Move, &[0, 501, 500, 1]);
    for slot in 2..100 {
        w.ok(Call::Copy, &[502, 500, slot, 0xff, 0, 0]);
    }
    assert_eq!(w.call(Call::Revoke, &[0, 600]).0, Status::Again);
    assert!(is_empty(&mut w, 500), "its holder has its name no longer");
    w.ok(Call::Revoke, &[0, 600]);
    assert_eq!(w.call(Call::Signal, &[503, 1]).0, Status::InvalidCap);
    w.kernel.check().expect("a well-formed forest");
    // Whatever is there next is nobody's child.
    w.make(600, Kind::CapSpace, 2, 500, 1);
    w.make(ram, Kind::Notification, 0, 504, 1);
    w.ok(Call::Move, &[0, 504, 500, 2]);
    w.ok(Call::Revoke, &[0, 502]);
    w.ok(Call::Signal, &[502, 1]);
    w.ok(Call::Move, &[500, 2, 0, 504]);
    w.ok(Call::Signal, &[504, 1]);
}

#[test]
fn the_end_of_a_space_touches_nothing_behind_it() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 2, 600, 1);
    w.make(600, Kind::CapSpace, 1, 500, 1);
    w.make(600, Kind::Frame, 12, 501, 1);
    w.ok(Call::Map, &[501, 2, 0x4000_0000, crate::RW]);
    let space = w.kernel.space_root(w.root).expect("a space");
    let (page, _) = w
        .kernel
        .arena
        .translate(space, 0x4000_0000)
        .expect("mapped");
    // What somebody keeps there looks like a capability, of every right to an endpoint.
    let words = [0, 0xff << 24 | (Kind::Endpoint as u64) << 16];
    for (index, word) in words.into_iter().enumerate() {
        w.kernel.arena.write(page.add(index as u64 * 8), word);
    }
    w.ok(Call::Delete, &[0, 500]);
    for (index, word) in words.into_iter().enumerate() {
        let seen: u64 = w.kernel.arena.read(page.add(index as u64 * 8));
        assert_eq!(seen, word);
    }
}
