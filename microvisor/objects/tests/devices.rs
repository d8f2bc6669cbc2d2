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

#[test]
fn a_device_is_attached_by_its_number_to_a_space_for_devices() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 2, SPACE, 1);
    let one = |w: &mut World, slot: u64, function: u64, count: u64| {
        w.ok(Call::Copy, &[10, 0, slot, 0xff, function | count << 32, 0]);
    };
    one(&mut w, DEVICE, 0x18, 2);
    one(&mut w, DEVICE + 1, 0x18, 1);
    one(&mut w, DEVICE + 2, 0x19, 1);
    let bind = |w: &mut World, slot: u64, space: u64| w.call(Call::Bind, &[slot, space, DMA]).0;
    assert_eq!(bind(&mut w, DEVICE, SPACE), Status::InvalidArgument);
    assert_eq!(bind(&mut w, DEVICE + 1, 2), Status::WrongKind);
    assert!(asked(&w).is_empty());
    for (slot, domain) in [(DEVICE + 1, 1), (DEVICE + 2, 2)] {
        assert_eq!(bind(&mut w, slot, SPACE), Status::Ok);
        let asked = asked(&w);
        let [
            Ask::Attach {
                function,
                domain: d,
                ..
            },
        ] = asked[..]
        else {
            panic!("{asked:?}");
        };
        assert_eq!((function, d), (0x17 + domain, domain));
        assert!(inspect(&mut w, slot).mapped);
        assert_eq!(bind(&mut w, slot, SPACE), Status::Busy);
    }
    assert!(asked(&w).is_empty());
    // Taken out by its own capability alone; then the domain is the next one's.
    w.ok(Call::Bind, &[DEVICE + 1, 0, DMA]);
    assert!(!inspect(&mut w, DEVICE + 1).mapped && inspect(&mut w, DEVICE + 2).mapped);
    let blocked = Ask::Block {
        function: 0x18,
        domain: 1,
        quiet: false,
    };
    assert_eq!(asked(&w), [blocked]);
    w.ok(Call::Bind, &[DEVICE + 1, 0, DMA]);
    assert!(asked(&w).is_empty());
    assert_eq!(bind(&mut w, DEVICE + 1, SPACE), Status::Ok);
    let asked = asked(&w);
    assert!(
        matches!(asked[..], [Ask::Attach { domain: 1, .. }]),
        "{asked:?}"
    );
}

#[test]
fn sixty_four_functions_can_be_attached() {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 2, SPACE, 1);
    for n in 0..65 {
        let slot = 600 + n;
        w.ok(Call::Copy, &[10, 0, slot, 0xff, n | 1 << 32, 0]);
        let wanted = if n < 64 { Status::Ok } else { Status::NoMemory };
        assert_eq!(w.call(Call::Bind, &[slot, SPACE, DMA]).0, wanted, "{n}");
    }
    // All of them are taken out when the space ends.
    asked(&w);
    w.ok(Call::Delete, &[0, SPACE]);
    let asked = asked(&w);
    assert_eq!(asked.len(), 64);
    for (n, ask) in (0u16..).zip(asked) {
        let blocked = Ask::Block {
            function: n,
            domain: n + 1,
            quiet: false,
        };
        assert_eq!(ask, blocked);
    }
    assert_eq!(w.call(Call::Bind, &[664, SPACE, DMA]).0, Status::InvalidCap);
}

#[test]
fn the_iommu_is_shown_every_table_that_was_written() {
    let mut w = attached();
    w.seen.wrote.borrow_mut().clear();
    w.ok(Call::Unmap, &[FRAME]);
    w.ok(Call::Map, &[FRAME, SPACE, 2 << 20, RW]);
    w.ok(Call::Delete, &[0, FRAME]);
    let wrote = w.seen.wrote.take();
    let addresses: Vec<u64> = wrote.iter().map(|(_, address)| *address).collect();
    assert_eq!(addresses, [1 << 20, 2 << 20, 2 << 20]);
    assert!(
        wrote
            .iter()
            .all(|(root, _)| *root == wrote[0].0 && root.0 != 0)
    );
    // Tables of components are none of its business.
    let ram = w.ram();
    w.make(ram, Kind::Frame, 12, FRAME, 1);
    w.ok(Call::Map, &[FRAME, 2, 0x4000_0000, RW]);
    w.ok(Call::Unmap, &[FRAME]);
    assert!(w.seen.wrote.take().is_empty());
}

#[test]
fn only_functions_of_the_space_forget_what_was_unmapped() {
    let mut w = attached();
    let ram = w.ram();
    w.make(ram, Kind::AddressSpace, 2, 540, 1);
    w.ok(Call::Bind, &[DEVICE, 0, DMA]);
    w.ok(Call::Bind, &[DEVICE, 540, DMA]);
    asked(&w);
    w.ok(Call::Unmap, &[FRAME]);
    assert_eq!(asked(&w), [Ask::Forget { domain: 2 }]);
    w.ok(Call::Delete, &[0, 540]);
    let blocked = Ask::Block {
        function: 0x18,
        domain: 1,
        quiet: false,
    };
    assert_eq!(asked(&w), [blocked]);
}

#[test]
fn a_table_that_an_iommu_may_walk_is_not_used_again() {
    for mute in [true, false] {
        let mut w = World::new();
        let ram = w.ram();
        w.make(ram, Kind::AddressSpace, 2, SPACE, 1);
        w.make(ram, Kind::Tables, 3, SPACE + 20, 1);
        w.ok(Call::Fill, &[SPACE, SPACE + 20]);
        w.make(ram, Kind::Frame, 12, FRAME, 1);
        w.make(ram, Kind::Frame, 21, FRAME + 1, 1);
        w.ok(Call::Copy, &[10, 0, DEVICE, 0xff, 0x18 | 1 << 32, 0]);
        w.ok(Call::Bind, &[DEVICE, SPACE, DMA]);
        w.ok(Call::Map, &[FRAME, SPACE, 0x1000, RW]);
        w.ok(Call::Unmap, &[FRAME]);
        if mute {
            self::mute(&w, Answer::Waiting);
        }
        w.ok(Call::Map, &[FRAME + 1, SPACE, 0, RW]);
        let wanted = if mute { Status::NeedTable } else { Status::Ok };
        let again = [FRAME, SPACE, 0x20_0000, RW];
        assert_eq!(w.call(Call::Map, &again).0, wanted);
    }
}

#[test]
fn a_message_is_of_one_line_behind_those_of_the_isa() {
    let mut w = attached();
    let line = |w: &mut World, slot: u64, range: u64| {
        w.ok(Call::Copy, &[6, 0, slot, 0xff, range, 0]);
    };
    let source = Role::Source as u64;
    let isa = u64::from(microvisor_abi::cap::LINES_ISA as u32);
    line(&mut w, 550, (isa - 1) | 1 << 32);
    line(&mut w, 551, isa | 2 << 32);
    line(&mut w, 552, isa | 1 << 32);
    line(&mut w, 553, isa | 1 << 32);
    for (slot, wanted) in [
        (550, Status::InvalidArgument),
        (551, Status::InvalidArgument),
        (552, Status::Ok),
        (553, Status::Busy),
    ] {
        assert_eq!(
            w.call(Call::Bind, &[slot, DEVICE, source]).0,
            wanted,
            "{slot}"
        );
    }
    let sends = |w: &World| w.seen.senders.borrow().get(&(isa as u32)).copied();
    assert_eq!(sends(&w), Some(0x18));
    // Unbound by the capability it was bound through, and no other.
    w.ok(Call::Bind, &[553, 0, source]);
    assert_eq!(sends(&w), Some(0x18));
    assert_eq!(inspect(&mut w, 553).more, 0);
    w.ok(Call::Delete, &[0, 553]);
    assert_eq!(sends(&w), Some(0x18));
    w.ok(Call::Delete, &[0, DEVICE + 1]);
    assert_eq!(sends(&w), Some(0x18));
    w.ok(Call::Bind, &[552, 0, source]);
    assert_eq!((sends(&w), inspect(&mut w, 552).more), (None, 0));
    // Both capabilities may move.
    w.ok(Call::Bind, &[552, DEVICE, source]);
    w.ok(Call::Move, &[0, DEVICE, 0, 560]);
    w.ok(Call::Move, &[0, 552, 0, 561]);
    assert_ne!(inspect(&mut w, 561).more, 0);
    w.ok(Call::Delete, &[0, 560]);
    assert_eq!((sends(&w), inspect(&mut w, 561).more), (None, 0));
}
