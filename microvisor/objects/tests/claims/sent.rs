//! Capabilities that go with a message: each arrives as a copy that nothing was done with yet.

use microvisor_abi::cap::Map;
use microvisor_abi::message::{RECEIVE_SLOTS, SEND_SLOTS};
use microvisor_abi::{Call, FOREVER, Kind, MessageInfo, Status};

use crate::RW;
use crate::world::World;

/// Root, and a server on the other CPU that it sends to.
fn with_server() -> World {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Endpoint, 0, 900, 1);
    w.make(ram, Kind::Reply, 0, 901, 1);
    w.thread(902, 1, 15);
    w
}

/// Sends what is in `from`; it arrives in `to`.
fn send(w: &mut World, from: u32, to: u32) {
    let server = w.kernel.thread_in(w.root, 902).expect("a server");
    let buffers = [(w.root, SEND_SLOTS, from), (server, RECEIVE_SLOTS, to)];
    for (thread, at, slot) in buffers {
        w.kernel.arena.write(thread.buffer().add(at as u64), slot);
    }
    w.seen.cpu.set(1);
    w.turn();
    let _ = w.call(Call::Receive, &[900, 901, FOREVER]);
    w.seen.cpu.set(0);
    let _ = w.call(Call::Call, &[900, MessageInfo::new(1, 0, 1).0]);
    w.turn();
    w.seen.cpu.set(1);
    assert_eq!(w.turn(), server);
    assert_eq!(w.results(server).0, Status::Ok);
    w.ok(Call::Reply, &[901, 0]);
    w.seen.cpu.set(0);
    assert_eq!(w.turn(), w.root);
    assert_eq!(w.results(w.root).0, Status::Ok);
}

#[test]
fn a_mapping_stays_with_the_sender() {
    let mut w = with_server();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 12, 500, 1);
    w.ok(Call::Map, &[500, 2, 0x4000_0000, RW]);
    send(&mut w, 500, 501);
    assert_eq!(w.call(Call::Unmap, &[501]).0, Status::NotMapped);
    w.ok(Call::Map, &[501, 2, 0x4000_1000, RW]);
    w.ok(Call::Delete, &[0, 501]);
    let space = w.kernel.space_root(w.root).expect("a space");
    let mapped = |w: &World, address| w.kernel.arena.translate(space, address).is_some();
    assert!(mapped(&w, 0x4000_0000) && !mapped(&w, 0x4000_1000));
}

#[test]
fn an_object_ends_with_the_senders_capability_alone() {
    let mut w = with_server();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 500, 1);
    send(&mut w, 500, 501);
    w.ok(Call::Delete, &[0, 501]);
    w.ok(Call::Signal, &[500, 1]);
    send(&mut w, 500, 501);
    w.ok(Call::Delete, &[0, 500]);
    assert_eq!(w.call(Call::Signal, &[501, 1]).0, Status::InvalidCap);
}

#[test]
fn memory_of_a_device_stays_uncached() {
    let mut w = with_server();
    let device = w.info.memories[1].slot.into();
    w.make(device, Kind::Frame, 12, 500, 1);
    send(&mut w, 500, 501);
    w.ok(Call::Map, &[501, 2, 0x4000_0000, Map::READ]);
    let space = w.kernel.space_root(w.root).expect("a space");
    let leaf = w.kernel.arena.translate(space, 0x4000_0000);
    let (_, entry) = leaf.expect("mapped");
    // PWT and PCD (Intel SDM vol. 3, 4.9).
    assert_eq!(entry & 0x18, 0x18);
}

#[test]
fn the_name_of_a_dying_space_resolves_nowhere() {
    let mut w = with_server();
    let ram = w.ram();
    w.make(ram, Kind::CapSpace, 2, 500, 1);
    w.make(ram, Kind::Notification, 0, 501, 1);
    for slot in 1..100 {
        w.ok(Call::Copy, &[501, 500, slot, 0xff, 0, 0]);
    }
    assert_eq!(w.call(Call::Delete, &[0, 500]).0, Status::Again);
    send(&mut w, 500, 502);
    for name in [500, 502] {
        let into = [501, name, 110, 0xff, 0, 0];
        assert_eq!(w.call(Call::Copy, &into).0, Status::InvalidCap, "{name}");
    }
}
