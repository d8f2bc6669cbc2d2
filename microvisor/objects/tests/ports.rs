//! Claims about grants of I/O ports, as they look from outside.

mod world;

use microvisor_abi::{Call, Kind};
use world::World;

#[test]
fn the_end_of_a_grant_takes_the_ports_from_the_thread_that_had_them() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Thread, 0, 500, 1);
    // One range more than a thread may have, if none of them ever went.
    for _ in 0..5 {
        w.ok(Call::Copy, &[5, 0, 501, 0xff, 0x60 | 8 << 32, 0]);
        w.ok(Call::PortsGrant, &[501, 500]);
        w.ok(Call::Delete, &[0, 501]);
    }
    let thread = w.kernel.thread_in(w.root, 500).expect("thread");
    let ports = w.kernel.arena.get(thread).expect("thread").ports;
    assert!(ports.iter().all(|range| range.count == 0), "{ports:?}");
}
