//! Claims about devices and an IOMMU that answers late or never: memory it may still reach is not
//! used again, and what it was asked is what keeps a device in its bounds.

mod world;

use microvisor_abi::cap::{ATTACHED, Role, Slot, Stopped};
use microvisor_abi::{Call, Kind, Status};
use microvisor_objects::{Answer, Ask};
use world::World;

const SPACE: u64 = 500;
const MEMORY: u64 = 501;
const FRAME: u64 = 502;
const DEVICE: u64 = 510;
const DMA: u64 = Role::Dma as u64;
const RW: u64 = 3;

/// A space for devices with a frame of its own memory at 1 MiB, and two functions attached to it.
fn attached() -> World {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 2, SPACE, 1);
    w.make(ram, Kind::Tables, 4, SPACE + 20, 1);
    w.ok(Call::Fill, &[SPACE, SPACE + 20]);
    w.make(ram, Kind::Memory, 8, MEMORY, 1);
    w.make(MEMORY, Kind::Frame, 12, FRAME, 1);
    w.ok(Call::Map, &[FRAME, SPACE, 1 << 20, RW]);
    for (slot, function) in [(DEVICE, 0x18), (DEVICE + 1, 0x20)] {
        w.ok(Call::Copy, &[10, 0, slot, 0xff, function | 1 << 32, 0]);
        w.ok(Call::Bind, &[slot, SPACE, DMA]);
    }
    w.seen.asked.borrow_mut().clear();
    w
}

fn asked(w: &World) -> Vec<Ask> {
    w.seen.asked.borrow_mut().drain(..).collect()
}

/// From now on the IOMMU does not carry out what it is asked.
fn mute(w: &World, answer: Answer) {
    w.seen.done.set(w.seen.asked.borrow().len() as u64 + 1);
    w.seen.mute.set(Some(answer));
}

fn inspect(w: &mut World, slot: u64) -> Slot {
    let [what, number, more, ..] = w.ok(Call::Inspect, &[0, slot]);
    Slot::from_words(what, number, more).expect("a slot")
}

#[test]
fn what_is_unmapped_is_forgotten_for_every_function_attached() {
    let mut w = attached();
    w.ok(Call::Unmap, &[FRAME]);
    let forgotten = [Ask::Forget { domain: 1 }, Ask::Forget { domain: 2 }];
    assert_eq!(asked(&w), forgotten);
}

#[test]
fn a_frame_is_not_used_again_before_the_iommu_has_answered() {
    let mut w = attached();
    mute(&w, Answer::Waiting);
    assert_eq!(w.call(Call::Revoke, &[0, MEMORY]).0, Status::Again);
    let again = [MEMORY, Kind::Frame as u64 | 12 << 8, 0, 530 | 8 << 32];
    // Seven frames are left; the one that the device may still write to is not among them.
    assert_eq!(w.ok(Call::Retype, &again)[0], 7);
    assert_eq!(w.call(Call::Delete, &[0, FRAME]).0, Status::Again);
    assert_eq!(
        w.call(Call::Map, &[FRAME, 2, 0x4000_0000, RW]).0,
        Status::AlreadyMapped
    );
    // What comes later does not keep it waiting.
    w.seen.done.set(w.seen.asked.borrow().len() as u64 + 1);
    w.ok(Call::Delete, &[0, FRAME]);
    assert_eq!(inspect(&mut w, FRAME).kind, Kind::Null);
}

#[test]
fn an_iommu_that_never_answers_keeps_memory_and_devices_out_of_use() {
    let mut w = attached();
    mute(&w, Answer::Never);
    assert_eq!(w.call(Call::Revoke, &[0, MEMORY]).0, Status::Timeout);
    assert_eq!(w.call(Call::Delete, &[0, FRAME]).0, Status::Timeout);
    assert_eq!(inspect(&mut w, FRAME).kind, Kind::Frame);
    // The tables that it may still walk, too.
    assert_eq!(w.call(Call::Delete, &[0, SPACE]).0, Status::Timeout);
    assert_eq!(w.call(Call::Delete, &[0, SPACE + 20]).0, Status::Timeout);
    // And nothing can be attached or bound any more, to that function or another.
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 2, 540, 1);
    assert_eq!(w.call(Call::Bind, &[DEVICE, 540, DMA]).0, Status::Timeout);
    w.ok(Call::Copy, &[6, 0, 541, 0xff, 40 | 1 << 32, 0]);
    let source = [541, DEVICE, Role::Source as u64];
    assert_eq!(w.call(Call::Bind, &source).0, Status::Timeout);
    let whole = w.call(Call::Revoke, &[0, ram]).0;
    assert_eq!(whole, Status::Timeout);
}

#[test]
fn frames_of_a_space_that_ended_wait_for_the_iommu_as_well() {
    let mut w = attached();
    mute(&w, Answer::Waiting);
    assert_eq!(w.call(Call::Delete, &[0, SPACE]).0, Status::Again);
    let blocked = |function, domain| Ask::Block {
        function,
        domain,
        quiet: false,
    };
    assert_eq!(
        w.seen.asked.borrow()[..],
        [blocked(0x18, 1), blocked(0x20, 2)]
    );
    assert_eq!(w.call(Call::Delete, &[0, FRAME]).0, Status::Again);
    assert_eq!(w.call(Call::Delete, &[0, SPACE + 20]).0, Status::Again);
    assert!(!inspect(&mut w, DEVICE).mapped);
    w.seen.mute.set(None);
    w.ok(Call::Delete, &[0, FRAME]);
    w.ok(Call::Delete, &[0, SPACE]);
    w.ok(Call::Delete, &[0, SPACE + 20]);
}

#[test]
fn a_function_is_blocked_when_the_capability_that_attached_it_goes() {
    let mut w = attached();
    w.ok(Call::Move, &[0, DEVICE, 0, DEVICE + 5]);
    w.ok(Call::Delete, &[0, DEVICE + 5]);
    let blocked = Ask::Block {
        function: 0x18,
        domain: 1,
        quiet: false,
    };
    assert_eq!(asked(&w), [blocked]);
    w.ok(Call::Revoke, &[0, 10]);
    assert_eq!(asked(&w).len(), 1);
}

#[test]
fn a_stopped_function_is_blocked_once_told_once_and_says_why() {
    let mut w = attached();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 520 + 10, 1);
    w.ok(Call::Bind, &[530, DEVICE, Role::Stops as u64]);
    let why = Stopped {
        address: 0x1234_5000,
        write: true,
        reason: 5,
    };
    for _ in 0..2 {
        w.kernel.device_fault(0x18, why);
    }
    let blocked = Ask::Block {
        function: 0x18,
        domain: 1,
        quiet: true,
    };
    assert_eq!(asked(&w), [blocked]);
    let more = inspect(&mut w, DEVICE).more;
    assert_eq!(Stopped::from_word(more), Some(why));
    assert_eq!(w.ok(Call::Wait, &[530, 0])[0], 1);
    assert_eq!(w.call(Call::Wait, &[530, 0]).0, Status::Timeout);
    assert_eq!(inspect(&mut w, DEVICE + 1).more, ATTACHED);
    // Attached anew it starts anew.
    w.ok(Call::Bind, &[DEVICE, 0, DMA]);
    assert_eq!(inspect(&mut w, DEVICE).more, 0);
    w.ok(Call::Bind, &[DEVICE, SPACE, DMA]);
    assert_eq!(inspect(&mut w, DEVICE).more, ATTACHED);
}

#[test]
fn a_function_that_nobody_has_is_blocked_and_silenced() {
    let mut w = attached();
    let why = Stopped {
        address: 0,
        write: false,
        reason: 1,
    };
    w.kernel.device_fault(0x99, why);
    let blocked = Ask::Block {
        function: 0x99,
        domain: 0,
        quiet: true,
    };
    assert_eq!(asked(&w), [blocked]);
}

#[test]
fn a_message_ends_with_either_capability() {
    let mut w = attached();
    for end in [550, DEVICE] {
        w.ok(Call::Copy, &[6, 0, 550, 0xff, 40 | 1 << 32, 0]);
        w.ok(Call::Bind, &[550, DEVICE, Role::Source as u64]);
        assert_eq!(inspect(&mut w, 550).more, 0xfee0_0000 | 40 << 32);
        assert_eq!(w.seen.senders.borrow().get(&40), Some(&0x18));
        w.ok(Call::Delete, &[0, end]);
        assert!(w.seen.senders.borrow().is_empty());
    }
    assert_eq!(inspect(&mut w, 550).more, 0);
}
