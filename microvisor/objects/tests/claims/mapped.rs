//! Mapping: what may be asked for, what is in the way, and what becomes of tables that are not.

use microvisor_abi::cap::Map;
use microvisor_abi::{Call, Kind, Status};
use microvisor_objects::Flush;

use crate::RW;
use crate::world::World;

const SPACE: u64 = 500;
const PAGE: u64 = 510;
const LARGE: u64 = 511;

/// A space for a component with as many tables as one path takes, and a small and a large frame.
fn with_one_path() -> World {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 0, SPACE, 1);
    w.make(ram, Kind::Tables, 3, SPACE + 1, 1);
    w.ok(Call::Fill, &[SPACE, SPACE + 1]);
    w.make(ram, Kind::Frame, 12, PAGE, 1);
    w.make(ram, Kind::Frame, 21, LARGE, 1);
    w
}

#[test]
fn nothing_is_mapped_that_cannot_be_read() {
    let mut w = with_one_path();
    for access in [0, Map::WRITE, Map::EXECUTE, Map::WRITE | Map::EXECUTE, 8, 9] {
        let status = w.call(Call::Map, &[PAGE, SPACE, 0x1000, access]).0;
        assert_eq!(status, Status::InvalidArgument, "{access}");
    }
    w.ok(Call::Map, &[PAGE, SPACE, 0x1000, Map::READ]);
}

#[test]
fn what_was_mapped_in_a_space_that_is_gone_can_be_mapped() {
    let mut w = with_one_path();
    w.ok(Call::Map, &[PAGE, SPACE, 0x1000, RW]);
    w.ok(Call::Delete, &[0, SPACE]);
    w.ok(Call::Map, &[PAGE, 2, 0x4000_0000, RW]);
}

#[test]
fn a_table_that_a_large_page_replaces_is_forgotten_and_then_used_again() {
    let mut w = with_one_path();
    w.ok(Call::Map, &[PAGE, SPACE, 0x1000, RW]);
    w.ok(Call::Unmap, &[PAGE]);
    w.seen.flushes.borrow_mut().clear();
    w.ok(Call::Map, &[LARGE, SPACE, 0, RW]);
    let flushes = w.seen.flushes.take();
    let page = |flush: &Flush| matches!(flush, Flush::HostPage { address: 0, .. });
    assert!(flushes.len() == 1 && page(&flushes[0]), "{flushes:?}");
    w.ok(Call::Map, &[PAGE, SPACE, 0x20_0000, RW]);
}

#[test]
fn the_page_that_a_thread_or_a_vcpu_shares_is_for_components_alone() {
    let mut w = with_one_path();
    let ram = w.ram();
    let space = w.kernel.space_root(w.root).expect("a space");
    w.make(ram, Kind::AddressSpace, 1, 520, 1);
    w.make(ram, Kind::Tables, 3, 521, 1);
    w.ok(Call::Fill, &[520, 521]);
    for kind in [Kind::Thread, Kind::Vcpu] {
        w.make(ram, kind, 0, 530, 1);
        let at = 0x4000_0000;
        let map =
            |w: &mut World, space: u64, access: u64| w.call(Call::Map, &[530, space, at, access]).0;
        let execute = Map::READ | Map::EXECUTE;
        assert_eq!(map(&mut w, 2, execute), Status::InvalidArgument);
        assert_eq!(map(&mut w, 520, RW), Status::InvalidArgument);
        assert_eq!(map(&mut w, 2, RW), Status::Ok);
        let (page, _) = w.kernel.arena.translate(space, at).expect("mapped");
        match kind {
            Kind::Thread => {
                let thread = w.kernel.thread_in(w.root, 530).expect("a thread");
                assert_eq!(page, thread.buffer());
            }
            _ => assert_eq!(page, w.seen.vcpus.borrow()[0].0.state),
        }
        w.ok(Call::Unmap, &[530]);
        assert!(w.kernel.arena.translate(space, at).is_none());
        w.ok(Call::Map, &[530, 2, at, Map::READ]);
        w.ok(Call::Delete, &[0, 530]);
        assert!(w.kernel.arena.translate(space, at).is_none());
    }
}
