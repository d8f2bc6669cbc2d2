//! What memory is made into: it holds nothing from before, reaches nothing beside it, and takes no
//! longer than one call may.

use microvisor_abi::{Call, Kind, Status};
use microvisor_objects::{PhysAddr, VcpuArea};

use crate::RW;
use crate::world::{OfVcpu, World};

const MEMORY: u64 = 600;
const BEHIND: u64 = 601;
/// Frames of a vCPU here: the object, its state page, the hardware's area.
const VCPU_FRAMES: u64 = 6;
/// What is found where nothing should have been changed, or everything.
const OLD: u64 = 0x6c6f_6e67_2067_6f6e;

/// A memory of as many frames as a vCPU takes, and one of two frames right behind it; all hold `OLD`.
/// Answers where they begin.
fn used_before() -> (World, PhysAddr) {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Memory, VCPU_FRAMES, MEMORY, 1);
    w.make(ram, Kind::Memory, 2, BEHIND, 1);
    w.make(MEMORY, Kind::Frame, 12, 700, VCPU_FRAMES);
    w.make(BEHIND, Kind::Frame, 12, 700 + VCPU_FRAMES, 2);
    let space = w.kernel.space_root(w.root).expect("a space");
    let mut first = None;
    for page in 0..VCPU_FRAMES + 2 {
        let address = 0x4000_0000 + (page << 12);
        w.ok(Call::Map, &[700 + page, 2, address, RW]);
        let (at, _) = w.kernel.arena.translate(space, address).expect("mapped");
        for word in 0..512 {
            w.kernel.arena.write(at.add(word * 8), OLD);
        }
        let begin = *first.get_or_insert(at);
        assert_eq!(at, begin.add(page << 12), "one after the other");
    }
    w.ok(Call::Revoke, &[0, MEMORY]);
    (w, first.expect("a frame"))
}

/// Words of a frame that are not zero.
fn words(w: &World, frame: PhysAddr) -> usize {
    let word = |n: u64| w.kernel.arena.read::<u64>(frame.add(n * 8));
    (0..512).filter(|n| word(*n) != 0).count()
}

#[test]
fn the_message_buffer_of_a_new_thread_is_empty() {
    let (mut w, first) = used_before();
    w.make(MEMORY, Kind::Thread, 0, 500, 1);
    let thread = w.kernel.thread_in(w.root, 500).expect("a thread");
    assert_eq!(thread.buffer(), first.add(4096));
    assert_eq!(words(&w, thread.buffer()), 0);
}

#[test]
fn a_new_vcpu_holds_nothing_from_before_and_reaches_nothing_behind_it() {
    let (mut w, first) = used_before();
    w.make(MEMORY, Kind::Vcpu, 0, 500, 1);
    for frame in 1..VCPU_FRAMES {
        assert_eq!(words(&w, first.add(frame << 12)), 0, "frame {frame}");
    }
    for frame in VCPU_FRAMES..VCPU_FRAMES + 2 {
        let at = first.add(frame << 12);
        assert!((0..512).all(|n| w.kernel.arena.read::<u64>(at.add(n * 8)) == OLD));
    }
    let area = VcpuArea {
        state: first.add(4096),
        area: first.add(8192),
    };
    assert_eq!(w.seen.vcpus.borrow()[..], [(area, OfVcpu::Init)]);
    w.ok(Call::Delete, &[0, 500]);
    let all = [(area, OfVcpu::Init), (area, OfVcpu::Forget)];
    assert_eq!(w.seen.vcpus.borrow()[..], all);
}

#[test]
fn a_new_space_translates_nothing() {
    // For components, where the upper half of the root table is the core's, for guests and for devices.
    for (kind, own) in [(0, 256), (1, 512), (2, 512)] {
        let (mut w, first) = used_before();
        w.make(MEMORY, Kind::AddressSpace, kind, 500, 1);
        let root = first.add(4096);
        for entry in 0..own {
            let entry: u64 = w.kernel.arena.read(root.add(entry * 8));
            assert_eq!(entry, 0, "{kind}");
        }
        let behind: u64 = w.kernel.arena.read(first.add(8192));
        assert_eq!(behind, OLD);
    }
}

#[test]
fn nothing_has_no_frames() {
    let mut w = World::new();
    let ram = w.ram();
    for kind in [Kind::Memory, Kind::Tables, Kind::CapSpace] {
        let one = [ram, kind as u64, 0, 500 | 1 << 32];
        let status = w.call(Call::Retype, &one).0;
        assert_eq!(status, Status::InvalidArgument, "{kind:?}");
    }
}

#[test]
fn one_call_makes_no_more_than_it_zeroes_in_its_time() {
    let mut w = World::new();
    let ram = w.ram();
    let made = |w: &mut World, size: u64, slot: u64| {
        w.ok(
            Call::Retype,
            &[ram, Kind::Frame as u64 | size << 8, 0, slot | 3 << 32],
        )[0]
    };
    assert_eq!(made(&mut w, 21, 500), 1);
    assert_eq!(made(&mut w, 12, 510), 3);
    // Memory is not zeroed, but capabilities take their time as well.
    let many = [ram, Kind::Memory as u64 | 1 << 8, 0, 600 | 100 << 32];
    assert_eq!(w.ok(Call::Retype, &many)[0], 64);
}
