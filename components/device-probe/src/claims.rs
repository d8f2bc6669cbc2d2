//! The claims. Each begins with the device attached anew to a space of its own, in which two frames
//! are mapped. What is not there is somebody else's ([`Victim`]): a component's, a guest's, the core's.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::calls::{self, Failure, call, same, until};
use crate::edu::Edu;
use sdk::abi::boot::{Info, SLOT_DEVICES, SLOT_INTERRUPTS, SLOT_LOG, feature};
use sdk::abi::cap::{ATTACHED, Role, Stopped};
use sdk::abi::{Call, Kind, NOW, Status};
use sdk::memory;

/// Slots.
const SPACE: u64 = 9010;
const TABLES: u64 = 9011;
const DEVICE: u64 = 9012;
const OTHER_DEVICE: u64 = 9013;
const NOTE: u64 = 9014;
const OWN_LINE: u64 = 9015;
const OTHER_LINE: u64 = 9016;
const OWN_NOTE: u64 = 9017;
const OTHER_NOTE: u64 = 9018;
const FREE_LINE: u64 = 9019;
const FRAMES: u64 = 9020;
const REGISTERS: u64 = 9030;
const FILLER: u64 = 9031;
const OTHER_SPACE: u64 = 9032;
const OTHER_FRAME: u64 = 9033;
const GUEST_SPACE: u64 = 9034;
const GUEST_FRAME: u64 = 9035;
const OBJECT: u64 = 9036;
/// Next slot for tables of this program's own.
static NEXT: AtomicU64 = AtomicU64::new(9050);
const DMA: u64 = Role::Dma as u64;

/// Where frames and registers are mapped here; the sdk hands out other addresses.
const HERE: u64 = 0x3000_0000_0000;
/// Where the core's log is mapped.
const LOG: u64 = HERE + (2 << 20);
/// Where frames are for the device.
const FIRST: u64 = 0x0765_4000;
const SECOND: u64 = 0x0012_3000;
/// Nothing is mapped there for the device.
const NOWHERE: u64 = 0x0888_8000;
/// Where the core is, physically (`microvisor/link.ld`), and how it begins: with the magic word of a
/// Multiboot2 header (Multiboot2 specification, 3.1.2).
const CORE: u64 = 0x20_0000;
const CORE_BEGINS: u32 = 0xe852_50d6;
/// What is in the frames: the victims', the device's two.
const OTHERS: u64 = 0x1111_0000;
const IN_FIRST: u64 = 0x2222_0000;
const IN_SECOND: u64 = 0x3333_0000;
const GUESTS: u64 = 0x4444_0000;
/// What waits in the notification that is a victim.
const SIGNALLED: u64 = 0x5555_0001;

/// A claim.
type Claim = fn(&mut Lab) -> Result<(), Failure>;

/// Memory that the device was not given, by its physical address, which no driver would know.
#[derive(Clone, Copy)]
struct Victim {
    whose: &'static str,
    address: u64,
}

/// What the claims work with.
pub struct Lab {
    edu: Edu,
    /// A frame in another component's address space, one in a guest's, an object of the core's, and the
    /// core itself.
    victims: [Victim; 4],
    vtd: bool,
}

/// Those that hold on this machine.
pub fn list(info: &Info) -> impl Iterator<Item = (&'static str, Claim)> {
    let has = |bit: u64| info.features & bit != 0;
    let (protected, remapped) = (
        has(feature::DMA_PROTECTION),
        has(feature::INTERRUPT_REMAPPING),
    );
    let all: [(bool, &str, Claim); 14] = [
        (true, "a_message_arrives", a_message_arrives),
        (true, "an_isa_line_arrives", an_isa_line_arrives),
        (
            !protected,
            "without_an_iommu_there_are_no_dma_spaces",
            no_spaces,
        ),
        (
            protected,
            "a_device_reaches_nothing_before_it_is_attached",
            nothing_at_first,
        ),
        // QEMU's AMD-Vi logs no event up to version 10.0 at least.
        (
            protected && !has(feature::AMDVI),
            "the_core_reports_the_device_by_name",
            report,
        ),
        (
            protected,
            "a_device_reaches_what_is_mapped_where_it_is_mapped",
            what_is_mapped,
        ),
        (
            protected,
            "a_write_outside_is_blocked_and_stops_the_device",
            write_outside,
        ),
        (
            protected,
            "a_read_outside_is_blocked_and_stops_the_device",
            read_outside,
        ),
        (
            protected,
            "a_write_to_what_is_read_only_is_blocked",
            read_only,
        ),
        (
            protected,
            "memory_taken_back_is_out_of_the_devices_reach",
            taken_back,
        ),
        (protected, "a_detached_device_reaches_nothing", detached),
        (
            remapped,
            "a_message_of_another_device_is_blocked",
            other_message,
        ),
        (
            remapped,
            "a_message_that_is_nobodys_is_blocked",
            nobodys_message,
        ),
        (
            // QEMU's VT-d lets interrupts in the old format pass, whatever the core says.
            remapped && has(feature::AMDVI),
            "a_message_that_bypasses_remapping_is_blocked",
            raw_message,
        ),
    ];
    let held = all.into_iter().filter(|(holds, ..)| *holds);
    held.map(|(_, name, claim)| (name, claim))
}

fn make(kind: Kind, size: u64, slot: u64, count: u64) -> Result<(), Failure> {
    let own = memory::own().slot().into();
    let mut made = 0;
    while made < count {
        let left = (slot + made) | (count - made) << 32;
        made += call(Call::Retype, &[own, kind as u64 | size << 8, 0, left])?[0];
    }
    Ok(())
}

fn page(index: u64) -> *mut u64 {
    (HERE + index * 4096) as *mut u64
}

fn fill(index: u64, value: u64) {
    for word in 0..512 {
        // SAFETY: the frame is mapped there for good; devices may write to it meanwhile.
        unsafe { page(index).add(word).write_volatile(value + word as u64) }
    }
}

/// Words that are not what `fill` wrote.
fn changed(index: u64, value: u64) -> u64 {
    // SAFETY: as `fill`.
    let differs =
        |word: &usize| unsafe { page(index).add(*word).read_volatile() } != value + *word as u64;
    (0..512).filter(differs).count() as u64
}

impl Lab {
    /// Finds the device, and makes what all claims need.
    pub fn new(info: &Info) -> Result<Lab, Failure> {
        let (function, base) = Edu::find()?;
        let range = |r: &&sdk::abi::boot::MemoryRange| {
            r.device == 1 && r.base <= base && base < r.base + r.frames * 4096
        };
        let found = info.memories[..info.memory_count as usize]
            .iter()
            .find(range);
        let found = found.ok_or(Failure::Wrong("device memory", base, 0))?;
        let (memory, before) = (found.slot.into(), (base - found.base) / 4096);
        if before > 0 {
            let filler = Kind::Memory as u64 | before << 8;
            call(Call::Retype, &[memory, filler, 0, FILLER | 1 << 32])?;
        }
        let frame = Kind::Frame as u64 | 12 << 8;
        call(Call::Retype, &[memory, frame, 0, REGISTERS | 1 << 32])?;
        // Physical addresses are nobody's business but this test's: where the next frame will be.
        let own = memory::own().slot();
        let ram = info.memories.iter().find(|r| r.slot == own);
        let base = ram.map_or(0, |r| r.base);
        let next = || Ok(base + call(Call::Inspect, &[0, own.into()])?[2] * 4096);
        // The first of the frames is another component's, the last one a guest's.
        let frames = next()?;
        make(Kind::Frame, 12, FRAMES, 4)?;
        let object = next()?;
        make(Kind::Notification, 0, OBJECT, 1)?;
        let own_space = memory::OWN_SPACE.slot().into();
        for (slot, index) in [
            (FRAMES, 0),
            (FRAMES + 1, 1),
            (FRAMES + 2, 2),
            (FRAMES + 3, 3),
            (REGISTERS, 8),
        ] {
            map_here(slot, own_space, HERE + index * 4096, 3)?;
        }
        for (frame, copy, space, kind) in [
            (FRAMES, OTHER_FRAME, OTHER_SPACE, 0),
            (FRAMES + 3, GUEST_FRAME, GUEST_SPACE, 1),
        ] {
            make(Kind::AddressSpace, kind, space, 1)?;
            call(Call::Copy, &[frame, 0, copy, 0xff, 0, 0])?;
            map_here(copy, space, 0x20_0000, 3)?;
        }
        let victim = |whose, address| Victim { whose, address };
        let victims = [
            victim("another component's", frames),
            victim("a guest's", frames + 3 * 4096),
            victim("an object of the core's", object),
            victim("the core's image", CORE),
        ];
        map_here(SLOT_LOG.into(), own_space, LOG, 1)?;
        make(Kind::Notification, 0, NOTE, 1)?;
        make(Kind::Notification, 0, OWN_NOTE, 2)?;
        let narrow = |from: u32, to: u64, number: u64| {
            call(Call::Copy, &[from.into(), 0, to, 0xff, number | 1 << 32, 0]).map(|_| ())
        };
        narrow(SLOT_DEVICES, DEVICE, function.into())?;
        narrow(SLOT_DEVICES, OTHER_DEVICE, 0x00fa)?;
        narrow(SLOT_INTERRUPTS, OWN_LINE, 20)?;
        narrow(SLOT_INTERRUPTS, OTHER_LINE, 21)?;
        narrow(SLOT_INTERRUPTS, FREE_LINE, 22)?;
        call(Call::Bind, &[FREE_LINE, OTHER_NOTE, Role::Line as u64])?;
        for (line, note, device) in [
            (OWN_LINE, OWN_NOTE, DEVICE),
            (OTHER_LINE, OTHER_NOTE, OTHER_DEVICE),
        ] {
            call(Call::Bind, &[line, note, Role::Line as u64])?;
            call(Call::Bind, &[line, device, Role::Source as u64])?;
        }
        let edu = Edu {
            function,
            registers: HERE + 8 * 4096,
        };
        same("the device is alive", edu.is_alive().into(), 1)?;
        Ok(Lab {
            edu,
            victims,
            vtd: info.features & feature::AMDVI == 0,
        })
    }

    /// Attaches the device to a new space with two frames in it, the second read-only if so wanted.
    fn attach(&mut self, writable: bool) -> Result<(), Failure> {
        call(Call::Bind, &[DEVICE, 0, DMA])?;
        call(Call::Delete, &[0, FRAMES + 4])?;
        call(Call::Delete, &[0, FRAMES + 5])?;
        call(Call::Delete, &[0, SPACE])?;
        call(Call::Delete, &[0, TABLES])?;
        make(Kind::AddressSpace, 2, SPACE, 1)?;
        make(Kind::Tables, 8, TABLES, 1)?;
        call(Call::Fill, &[SPACE, TABLES])?;
        for (frame, address, flags) in [(1, FIRST, 3), (2, SECOND, if writable { 3 } else { 1 })] {
            // A copy for the device's mapping: a capability records one.
            let copy = FRAMES + 3 + frame;
            call(Call::Copy, &[FRAMES + frame, 0, copy, 0xff, 0, 0])?;
            call(Call::Map, &[copy, SPACE, address, flags])?;
        }
        call(Call::Bind, &[DEVICE, SPACE, DMA])?;
        call(Call::Bind, &[NOTE, DEVICE, Role::Stops as u64])?;
        same("attached", more(DEVICE)?, ATTACHED)?;
        fill(0, OTHERS);
        fill(1, IN_FIRST);
        fill(2, IN_SECOND);
        fill(3, GUESTS);
        Ok(())
    }

    /// The device was told to write to `victim`: nobody's memory is another, and the core goes on.
    fn are_untouched(&self, victim: &Victim) -> Result<(), Failure> {
        same(victim.whose, changed(0, OTHERS), 0)?;
        same(victim.whose, changed(3, GUESTS), 0)?;
        same(victim.whose, bits(OBJECT), SIGNALLED)
    }

    /// The IOMMU says who was stopped, where and why; the driver's notification is signalled; and the
    /// device reaches nothing any more.
    fn is_stopped(&self, at: u64, write: bool) -> Result<(), Failure> {
        until("the report", || {
            more(DEVICE).is_ok_and(|word| Stopped::from_word(word).is_some())
        })?;
        let word = more(DEVICE)?;
        let why = Stopped::from_word(word & !ATTACHED);
        let why = why.ok_or(Failure::Wrong("stopped", word, 1))?;
        same("its address", why.address, at)?;
        same("a write", why.write.into(), write.into())?;
        let bits = call(Call::Wait, &[NOTE, NOW])?[0];
        same("its notification", bits, 1)?;
        self.edu.store(FIRST, 4096)?;
        self.edu.store(SECOND, 4096)?;
        same("a stopped device writes", changed(1, IN_FIRST), 0)?;
        same("a stopped device writes", changed(2, IN_SECOND), 0)
    }
}

fn map_here(slot: u64, space: u64, address: u64, flags: u64) -> Result<(), Failure> {
    loop {
        match call(Call::Map, &[slot, space, address, flags]) {
            Err(Failure::Refused(_, Status::NeedTable)) => {
                let next = NEXT.fetch_add(1, Relaxed);
                make(Kind::Tables, 1, next, 1)?;
                call(Call::Fill, &[space, next])?;
            }
            other => return other.map(|_| ()),
        }
    }
}

fn more(slot: u64) -> Result<u64, Failure> {
    Ok(call(Call::Inspect, &[0, slot])?[2])
}

fn bits(note: u64) -> u64 {
    call(Call::Wait, &[note, NOW]).map_or(0, |words| words[0])
}

fn no_spaces(_: &mut Lab) -> Result<(), Failure> {
    match make(Kind::AddressSpace, 2, SPACE, 1) {
        Err(Failure::Refused(_, Status::Unsupported)) => Ok(()),
        other => other.and(Err(Failure::Wrong("a space", 1, 0))),
    }
}

fn nothing_at_first(lab: &mut Lab) -> Result<(), Failure> {
    fill(0, OTHERS);
    lab.edu.store(lab.victims[0].address, 4096)?;
    same(lab.victims[0].whose, changed(0, OTHERS), 0)
}

/// The first attempt of the claim above, by its function. The log is text in a ring, which has not
/// wrapped yet: its second word says where it begins, its fourth how much there is.
fn report(lab: &mut Lab) -> Result<(), Failure> {
    let word = |index: u64| {
        // SAFETY: the core's log is mapped there, read-only, for good; the core writes to it.
        unsafe { ((LOG + index * 8) as *const u64).read_volatile() }
    };
    let digit = |n: u16| b"0123456789abcdef"[usize::from(n & 15)];
    let (device, function) = (lab.edu.function >> 3, lab.edu.function & 7);
    let name = [digit(device >> 4), digit(device), b'.', digit(function)];
    let mut text = *b"IOMMU: 00:dd.f stopped";
    text[10..14].copy_from_slice(&name);
    let is_there = || {
        // SAFETY: as above.
        let byte = |at: u64| unsafe { ((LOG + word(1) + at) as *const u8).read_volatile() };
        (0..word(3)).any(|from| (0..).zip(&text).all(|(at, b)| byte(from + at) == *b))
    };
    until("the core's report", is_there)
}

fn what_is_mapped(lab: &mut Lab) -> Result<(), Failure> {
    lab.attach(true)?;
    lab.edu.fetch(FIRST, 4096)?;
    lab.edu.store(SECOND, 4096)?;
    same("what went through the device", changed(2, IN_FIRST), 0)?;
    same("it was not stopped", more(DEVICE)?, ATTACHED)
}

fn write_outside(lab: &mut Lab) -> Result<(), Failure> {
    let nowhere = Victim {
        whose: "nobody's",
        address: NOWHERE,
    };
    for victim in lab.victims.into_iter().chain([nowhere]) {
        lab.attach(true)?;
        call(Call::Signal, &[OBJECT, SIGNALLED])?;
        lab.edu.fetch(FIRST, 4096)?;
        lab.edu.store(victim.address, 4096)?;
        lab.are_untouched(&victim)?;
        if lab.vtd {
            lab.is_stopped(victim.address, true)?;
        }
    }
    Ok(())
}

fn read_outside(lab: &mut Lab) -> Result<(), Failure> {
    for victim in lab.victims {
        lab.attach(true)?;
        lab.edu.fetch(FIRST, 4096)?;
        lab.edu.fetch(victim.address, 4096)?;
        if lab.vtd {
            lab.is_stopped(victim.address, false)?;
            lab.attach(true)?;
        }
        lab.edu.store(SECOND, 4096)?;
        // What the device has is what it was given, or what it got instead of an answer.
        same(victim.whose, 512 - changed(2, OTHERS), 0)?;
        same(victim.whose, 512 - changed(2, GUESTS), 0)?;
        // SAFETY: as in `fill`.
        let words = || (0..512).map(|word| unsafe { page(2).add(word).read_volatile() });
        let begins = words().next().unwrap_or_default() as u32;
        same(victim.whose, (begins == CORE_BEGINS).into(), 0)?;
        let found = words().filter(|word| *word == SIGNALLED).count();
        same(victim.whose, found as u64, 0)?;
    }
    Ok(())
}

fn read_only(lab: &mut Lab) -> Result<(), Failure> {
    lab.attach(false)?;
    lab.edu.fetch(FIRST, 4096)?;
    lab.edu.store(SECOND, 4096)?;
    same("it is as it was", changed(2, IN_SECOND), 0)?;
    // After a read QEMU's VT-d blocks the write without a word; its AMD-Vi has none for anything.
    if lab.vtd {
        lab.is_stopped(SECOND, true)?;
    }
    lab.attach(false)?;
    lab.edu.fetch(SECOND, 4096)?;
    lab.edu.store(FIRST, 4096)?;
    same("it was read", changed(1, IN_SECOND), 0)
}

fn taken_back(lab: &mut Lab) -> Result<(), Failure> {
    lab.attach(true)?;
    lab.edu.fetch(FIRST, 4096)?;
    // The translation is cached now.
    lab.edu.store(SECOND, 4096)?;
    call(Call::Unmap, &[FRAMES + 5])?;
    fill(2, IN_SECOND);
    lab.edu.store(SECOND, 4096)?;
    same("what was taken back", changed(2, IN_SECOND), 0)
}

fn detached(lab: &mut Lab) -> Result<(), Failure> {
    lab.attach(true)?;
    lab.edu.fetch(FIRST, 4096)?;
    call(Call::Bind, &[DEVICE, 0, DMA])?;
    same("attached", more(DEVICE)?, 0)?;
    lab.edu.store(SECOND, 4096)?;
    same("what it had", changed(2, IN_SECOND), 0)
}

fn a_message_arrives(lab: &mut Lab) -> Result<(), Failure> {
    lab.edu.set_message(more(OWN_LINE)?);
    for _ in 0..3 {
        lab.edu.interrupt();
        until("its interrupt", || bits(OWN_NOTE) != 0)?;
    }
    Ok(())
}

/// COM1 interrupts when it has nothing to send (16550 datasheet): its line goes through an I/O APIC,
/// and with remapping through an entry of its own.
fn an_isa_line_arrives(_: &mut Lab) -> Result<(), Failure> {
    let line = 9040;
    call(
        Call::Copy,
        &[SLOT_INTERRUPTS.into(), 0, line, 0xff, 4 | 1 << 32, 0],
    )?;
    call(Call::Bind, &[line, NOTE, Role::Line as u64])?;
    bits(NOTE);
    for _ in 0..3 {
        calls::com1_interrupts(true);
        let came = until("the line", || bits(NOTE) != 0);
        calls::com1_interrupts(false);
        came?;
        call(Call::InterruptControl, &[line, 4, 0])?;
    }
    call(Call::Delete, &[0, line])?;
    bits(NOTE);
    Ok(())
}

/// What the device sends does not arrive; its own message does, so that the time was long enough.
fn blocked(lab: &mut Lab, message: u64) -> Result<(), Failure> {
    lab.attach(true)?;
    lab.edu.set_message(message);
    lab.edu.interrupt();
    a_message_arrives(lab)?;
    same("another's interrupt", bits(OTHER_NOTE), 0)?;
    if lab.vtd {
        until("the report", || {
            more(DEVICE).is_ok_and(|word| Stopped::from_word(word).is_some())
        })?;
        same("its notification", bits(NOTE), 1)?;
    }
    Ok(())
}

fn other_message(lab: &mut Lab) -> Result<(), Failure> {
    let message = more(OTHER_LINE)?;
    blocked(lab, message)
}

fn nobodys_message(lab: &mut Lab) -> Result<(), Failure> {
    // A line that somebody listens to, and no device was given. Intel's messages carry it in the
    // address (VT-d specification, 5.1.2.2), AMD's in the data.
    blocked(
        lab,
        match lab.vtd {
            true => 0xfee0_0010 | 22 << 5,
            false => 0xfee0_0000 | 22 << 32,
        },
    )
}

fn raw_message(lab: &mut Lab) -> Result<(), Failure> {
    // Vector of the other line, as it would be without remapping.
    blocked(lab, 0xfee0_0000 | (0x30 + 21) << 32)
}
