//! Claims about capabilities that a dying space hands up to their parents, in steps, while others call.
//! The dying one has a list of many children; a call that deletes the space stops in the middle of it.

mod world;

use microvisor_abi::cap::Map;
use microvisor_abi::{Call, Kind, Status};
use world::World;

/// A memory (700) whose capability is on its way out of a dying space. Of it were made, and are held
/// outside: `memories` memories, each of one frame, from slot 800 on, and of each a page, from slot
/// 1000 on; and `single` pages of itself. The call that deletes the space was interrupted.
fn interrupted(memories: u64, single: u64) -> World {
    interrupted_after(memories, single, |_, _| ())
}

/// The same, after something was done with each memory.
fn interrupted_after(memories: u64, single: u64, with: impl Fn(&mut World, u64)) -> World {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::CapSpace, 1, 500, 1);
    w.make(ram, Kind::Memory, 200, 600, 1);
    w.make(600, Kind::Memory, memories + single, 700, 1);
    // An older brother before it in the list, who must gain nothing.
    w.make(600, Kind::Memory, 1, 701, 1);
    for n in 0..memories {
        w.make(700, Kind::Memory, 1, 800 + n, 1);
        w.make(800 + n, Kind::Frame, 12, 1000 + n, 1);
        with(&mut w, n);
    }
    w.make(700, Kind::Frame, 12, 1300, single);
    w.ok(Call::Move, &[0, 700, 500, 1]);
    assert_eq!(w.call(Call::Delete, &[0, 500]).0, Status::Again);
    w
}

/// Where the deletion stopped lies between a memory and its page, or between one page and the next
/// memory; each memory is tried in both.
fn at_every_place(claim: impl Fn(&mut World, u64)) {
    for single in 0..2 {
        for n in 0..40 {
            claim(&mut interrupted(40, single), n);
        }
    }
}

fn is_empty(w: &mut World, slot: u64) -> bool {
    w.ok(Call::Inspect, &[0, slot])[0] as u8 == Kind::Null as u8
}

#[test]
fn revoking_while_a_space_dies_reaches_every_child() {
    at_every_place(|w, n| {
        w.ok(Call::Revoke, &[0, 800 + n]);
        assert!(is_empty(w, 1000 + n), "the page of memory {n} was missed");
        for other in (0..40).filter(|other| *other != n) {
            assert!(
                !is_empty(w, 1000 + other),
                "page {other} went with memory {n}"
            );
        }
        w.ok(Call::Delete, &[0, 500]);
        w.ok(Call::Revoke, &[0, 701]);
        assert!(!is_empty(w, 800), "a brother's revocation took it");
        w.ok(Call::Revoke, &[0, 600]);
        assert!(is_empty(w, 801) && is_empty(w, 1002));
    });
}

#[test]
fn memory_is_not_made_into_something_twice_while_a_space_dies() {
    at_every_place(|w, n| {
        let a = [800 + n, Kind::Frame as u64 | 12 << 8, 0, 1100 | 1 << 32];
        assert_eq!(w.call(Call::Retype, &a).0, Status::NoMemory, "memory {n}");
        let used = w.ok(Call::Inspect, &[0, 800 + n])[2];
        assert_eq!(used, 1, "memory {n}");
    });
}

#[test]
fn memory_whose_pages_are_gone_is_whole_while_a_space_dies() {
    for single in 0..2 {
        let mut w = interrupted_after(80, single, |w, n| {
            w.ok(Call::Delete, &[0, 1000 + n]);
        });
        for n in 0..80 {
            assert_eq!(w.ok(Call::Inspect, &[0, 800 + n])[2], 0, "memory {n}");
            w.make(800 + n, Kind::Frame, 12, 1000 + n, 1);
        }
        // The same one level further down.
        let mut w = interrupted_after(40, single, |w, n| {
            w.ok(Call::Delete, &[0, 1000 + n]);
            w.make(800 + n, Kind::Memory, 1, 1000 + n, 1);
            w.make(1000 + n, Kind::Frame, 12, 1200, 1);
            w.ok(Call::Delete, &[0, 1200]);
        });
        for n in 0..40 {
            assert_eq!(w.ok(Call::Inspect, &[0, 1000 + n])[2], 0, "memory {n}");
        }
    }
}

#[test]
fn deleting_while_a_space_dies_leaves_nothing_mapped() {
    at_every_place(|w, n| {
        let map = [1000 + n, 2, 0x4000_0000, Map::READ];
        let _ = w.call(Call::Map, &map);
        w.ok(Call::Delete, &[0, 800 + n]);
        assert!(is_empty(w, 1000 + n), "the page of memory {n} was missed");
        w.kernel.check().expect("a well-formed forest");
    });
}

#[test]
fn two_spaces_that_die_at_once_hand_everything_up() {
    for first in [500, 501] {
        let mut w = World::new();
        let ram = w.ram();
        w.make(ram, Kind::CapSpace, 1, 500, 2);
        w.make(ram, Kind::Memory, 200, 600, 1);
        w.make(600, Kind::Memory, 150, 700, 1);
        w.make(700, Kind::Memory, 100, 701, 1);
        for n in 0..80 {
            w.make(701, Kind::Memory, 1, 800 + n, 1);
            w.make(800 + n, Kind::Frame, 12, 1000 + n, 1);
        }
        // One in the other's list, and each in a space of its own.
        w.ok(Call::Move, &[0, 700, 500, 1]);
        w.ok(Call::Move, &[0, 701, 501, 1]);
        let mut turns = [first, 1001 - first].into_iter().cycle();
        let mut dead = 0;
        for _ in 0..100 {
            let Some(space) = turns.next() else { break };
            match w.call(Call::Delete, &[0, space]).0 {
                Status::Again | Status::InvalidCap => {}
                status => {
                    assert_eq!(status, Status::Ok);
                    dead += 1;
                }
            }
            for n in 0..80 {
                let a = [800 + n, Kind::Frame as u64 | 12 << 8, 0, 1100 | 1 << 32];
                assert_eq!(w.call(Call::Retype, &a).0, Status::NoMemory, "memory {n}");
            }
        }
        assert!(dead >= 2, "deleting made no progress");
        w.ok(Call::Revoke, &[0, 805]);
        assert!(is_empty(&mut w, 1005) && !is_empty(&mut w, 1004) && !is_empty(&mut w, 1006));
        w.ok(Call::Revoke, &[0, 600]);
        assert!((0..80).all(|n| is_empty(&mut w, 800 + n) && is_empty(&mut w, 1000 + n)));
    }
}

#[test]
fn a_space_that_died_hands_up_nothing_of_what_is_there_next() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 8, 502, 1);
    w.make(502, Kind::CapSpace, 4, 500, 1);
    w.make(ram, Kind::Memory, 100, 700, 1);
    w.make(700, Kind::Frame, 12, 1000, 80);
    w.ok(Call::Move, &[0, 700, 500, 1]);
    assert_eq!(w.call(Call::Delete, &[0, 500]).0, Status::Again);
    // Others take away what is left to hand up, and the space goes.
    for n in 0..80 {
        w.ok(Call::Delete, &[0, 1000 + n]);
    }
    while w.call(Call::Delete, &[0, 500]).0 == Status::Again {}
    another_dies_beside_what_is_there_next(&mut w);
}

/// The space 500 has gone in the middle of handing up what was derived from its slot 1.
fn another_dies_beside_what_is_there_next(w: &mut World) {
    // In the same slot of the same memory is now a capability with a child, and another space dies.
    let ram = w.ram();
    w.make(502, Kind::CapSpace, 4, 500, 1);
    w.make(ram, Kind::Memory, 1, 701, 1);
    w.make(701, Kind::Frame, 12, 1000, 1);
    w.ok(Call::Move, &[0, 701, 500, 1]);
    w.make(ram, Kind::CapSpace, 1, 503, 1);
    w.make(ram, Kind::Memory, 2, 702, 1);
    w.make(702, Kind::Frame, 12, 1001, 2);
    w.ok(Call::Move, &[0, 702, 503, 1]);
    while w.call(Call::Delete, &[0, 503]).0 == Status::Again {}
    assert!(!is_empty(w, 1001) && !is_empty(w, 1002));
    w.ok(Call::Revoke, &[500, 1]);
    assert!(is_empty(w, 1000), "its child was handed up");
}

#[test]
fn a_space_that_moved_into_itself_hands_up_nothing_of_what_is_where_it_was() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, 8, 502, 1);
    w.make(502, Kind::CapSpace, 4, 500, 1);
    // A space whose name is lost keeps it in itself.
    w.make(ram, Kind::CapSpace, 1, 700, 1);
    for n in 0..80 {
        w.ok(Call::Copy, &[700, 0, 1000 + n, 0xff, 0, 0]);
    }
    w.ok(Call::Move, &[0, 700, 500, 1]);
    assert_eq!(w.call(Call::Delete, &[0, 500]).0, Status::Again);
    for n in 0..80 {
        w.ok(Call::Delete, &[0, 1000 + n]);
    }
    while w.call(Call::Delete, &[0, 500]).0 == Status::Again {}
    another_dies_beside_what_is_there_next(&mut w);
}
