//! Limits that a machine of a few MiB never meets.

use super::Memory;
use crate::id::{PhysAddr, Ref};
use crate::kernel::{Config, Kernel};
use crate::refinement::world::Fake;
use crate::slot::{Slot, SlotRef};
use crate::thread::Thread;
use microvisor_abi::{Kind, Status};

/// Frames below the address from which on no slot may lie.
const SLOT_FRAMES: u64 = 256 << 18;

/// A machine whose memory begins 16 frames below that, a thread in it, and its slots.
fn at_the_end_of_slots() -> (Memory, Kernel<Fake>, Ref<Thread>, impl Fn(u32) -> SlotRef) {
    let first = SLOT_FRAMES - 16;
    let mut memory = Memory::new(first, 32);
    let space = memory.arena.create_cap_space(PhysAddr(first << 12), 1);
    let thread = memory.arena.create::<Thread>(PhysAddr((first + 1) << 12));
    memory.arena.get_mut(thread).expect("a thread").caps = space;
    let slots = memory.arena;
    let mut kernel = Kernel::empty(Fake::default());
    let config = Config {
        cpus: 1,
        slice: 1000,
        core_root: PhysAddr(0),
        vcpu_frames: 4,
    };
    kernel.init(memory.arena, config);
    let slot = move |number| slots.slot_in(space, number).expect("a slot");
    (memory, kernel, thread, slot)
}

#[test]
fn slots_lie_below_256_gib() {
    let (_memory, mut kernel, thread, slot) = at_the_end_of_slots();
    // Twelve frames are below the limit, and four are not.
    let mut whole = Slot::original(Kind::Memory, (SLOT_FRAMES - 12) << 12);
    whole.extra = 16;
    for (kind, frames, wanted) in [
        (Kind::CapSpace, 13, Err(Status::Unsupported)),
        (Kind::CapSpace, 16, Err(Status::Unsupported)),
        (Kind::Memory, 13, Ok(1)),
        (Kind::CapSpace, 12, Ok(1)),
    ] {
        *kernel.arena.slot_mut(slot(1)) = whole;
        *kernel.arena.slot_mut(slot(2)) = Slot::EMPTY;
        let made = kernel.retype(thread, slot(1), (kind, frames), (0, 2), 1);
        assert_eq!(made, wanted, "{kind:?} {frames}");
    }
}
