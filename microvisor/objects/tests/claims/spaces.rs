//! Address spaces: tables, mappings, and what CPUs forget before memory is used again.

use microvisor_abi::cap::Map;
use microvisor_abi::{Call, Kind, Status};
use microvisor_objects::{Flush, PhysAddr};

use crate::RW;
use crate::world::World;

#[test]
fn a_map_without_tables_says_which_level_and_changes_nothing() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 1, 500, 1);
    w.make(ram, Kind::Frame, 12, 501, 1);
    for missing in [3u64, 3, 3] {
        let (status, r) = w.call(Call::Map, &[501, 500, 0x1000, RW]);
        assert_eq!((status, r[0]), (Status::NeedTable, missing));
    }
    w.make(ram, Kind::Tables, 2, 510, 1);
    w.ok(Call::Fill, &[500, 510]);
    assert_eq!(
        w.call(Call::Map, &[501, 500, 0x1000, RW]).0,
        Status::NeedTable
    );
    w.make(ram, Kind::Tables, 1, 511, 1);
    w.ok(Call::Fill, &[500, 511]);
    w.ok(Call::Map, &[501, 500, 0x1000, RW]);
    assert_eq!(
        w.call(Call::Map, &[501, 500, 0x3000, RW]).0,
        Status::AlreadyMapped
    );
}

#[test]
fn deleting_donated_tables_ends_the_space() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 1, 500, 1);
    w.make(ram, Kind::Tables, 8, 510, 1);
    w.ok(Call::Fill, &[500, 510]);
    assert_eq!(w.call(Call::Fill, &[500, 510]).0, Status::Busy);
    w.ok(Call::Delete, &[0, 510]);
    w.make(ram, Kind::Frame, 12, 501, 1);
    assert_eq!(
        w.call(Call::Map, &[501, 500, 0x1000, RW]).0,
        Status::InvalidCap
    );
}

#[test]
fn no_host_mapping_is_writable_and_executable() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 12, 500, 1);
    let status = w
        .call(Call::Map, &[500, 2, 0x4000_0000, RW | Map::EXECUTE])
        .0;
    assert_eq!(status, Status::InvalidArgument);
}

#[test]
fn every_cpu_lets_go_of_a_space_before_its_memory_is_used_again() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::CapSpace, 1, 500, 1);
    w.seen.flushes.borrow_mut().clear();
    w.ok(Call::Delete, &[0, 500]);
    assert_eq!(w.seen.flushes.borrow().as_slice(), &[Flush::Quiesce]);
}

#[test]
fn a_revoke_of_many_mappings_makes_one_shootdown_a_call() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Frame, 21, 500, 1);
    for page in 0..32 {
        w.ok(Call::Copy, &[500, 0, 510 + page, 0xff, page << 12, 12]);
        w.ok(Call::Map, &[510 + page, 2, 0x4000_0000 + (page << 12), RW]);
    }
    w.seen.flushes.borrow_mut().clear();
    w.ok(Call::Revoke, &[0, 500]);
    assert_eq!(w.seen.flushes.borrow().as_slice(), &[Flush::Everything]);
    let root = w.kernel.space_root(w.root).expect("space");
    assert!((0..32).all(|page| {
        w.kernel
            .arena
            .translate(root, 0x4000_0000 + (page << 12))
            .is_none()
    }));
}

#[test]
fn a_guest_page_is_forgotten_by_the_cpus_that_ran_its_space() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 1, 500, 1);
    w.make(ram, Kind::Tables, 8, 501, 1);
    w.ok(Call::Fill, &[500, 501]);
    w.make(ram, Kind::Vcpu, 0, 502, 1);
    w.ok(Call::VcpuControl, &[502, 0, 500]);
    w.make(ram, Kind::Frame, 12, 503, 1);
    let unmap = |w: &mut World| {
        w.ok(Call::Map, &[503, 500, 0x1000, RW]);
        w.seen.flushes.borrow_mut().clear();
        w.ok(Call::Unmap, &[503]);
        match w.seen.flushes.borrow().as_slice() {
            &[Flush::GuestSpace { cpus, .. }] => cpus,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(unmap(&mut w), 0);
    let epoch = |w: &World| {
        let (_, run) = w.kernel.arena.vcpu_find(w.root, 502, 5).expect("vcpu");
        run.epoch()
    };
    let before = epoch(&w);
    assert_eq!(unmap(&mut w), 1 << 5);
    assert!(epoch(&w) > before, "and no vCPU enters without a flush");
}

#[test]
fn a_vcpu_capability_that_goes_or_moves_is_forgotten_by_every_cpu() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, 500, 1);
    let quiesces = |w: &mut World, call, a: &[u64]| {
        w.seen.flushes.borrow_mut().clear();
        w.ok(call, a);
        !w.seen.flushes.borrow().is_empty()
    };
    assert!(!quiesces(&mut w, Call::Copy, &[500, 0, 501, 1, 0, 0]));
    assert!(quiesces(&mut w, Call::Move, &[0, 501, 0, 502]));
    assert!(quiesces(&mut w, Call::Delete, &[0, 502]));
}

#[test]
fn a_host_space_shares_the_upper_half_of_the_cores_tables() {
    let mut w = World::new();
    // The world says that the core's own table is here.
    let core = |entry: u64| PhysAddr(0x1000 + entry * 8);
    for entry in [0u64, 255, 256, 300, 511] {
        w.kernel.arena.write(core(entry), entry << 12 | 3);
    }
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 0, 500, 1);
    w.make(ram, Kind::Thread, 0, 501, 1);
    w.ok(Call::ThreadConfigure, &[501, 500, 1, 0x1000, 0x2000, 0]);
    let thread = w.kernel.thread_in(w.root, 501).expect("a thread");
    let root = w.kernel.space_root(thread).expect("a space");
    for (entry, shared) in [
        (0u64, 0u64),
        (255, 0),
        (256, 256),
        (257, 0),
        (300, 300),
        (511, 511),
    ] {
        let seen: u64 = w.kernel.arena.read(root.add(entry * 8));
        assert_eq!(
            seen,
            if shared == 0 { 0 } else { shared << 12 | 3 },
            "{entry}"
        );
    }
}
