//! Seeded hypercalls. [`Seed::next`] draws one, puts its arguments into the guest's memory and
//! says of which class it is: what an answer is filed under.

use core::fmt;

use crate::layout::{
    ARGUMENT_BYTES, ARGUMENTS, HOLE, HOLE_PAGES, LAPIC, LISTS, NON_CANONICAL,
    NON_CANONICAL_ARGUMENTS, NOT_PRESENT, PAGE, PLAYGROUND, PLAYGROUND_PAGES, READ_ONLY, UNMAPPED,
    UPPER_HALF,
};
use crate::operations;
use crate::random::Random;

/// The guest's memory, as far as drawing calls needs it.
pub trait Arena {
    /// Writes to the argument area.
    fn put(&mut self, address: u64, bytes: &[u8]);
    /// Whether a page of the playground or the hole has memory now.
    fn is_present(&self, frame: u64) -> bool;
}

/// On the host: nothing is there, and classes do not depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Nowhere;

impl Arena for Nowhere {
    fn put(&mut self, _: u64, _: &[u8]) {}
    fn is_present(&self, _: u64) -> bool {
        false
    }
}

/// What kind of pointer a call was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Pointer {
    /// The call takes none.
    None,
    /// To arguments, aligned.
    Good,
    /// To arguments, at an odd address.
    Odd,
    /// To arguments that lie across the border of two pages.
    Crossing,
    /// 0, where the guest has RAM.
    Null,
    /// To a page that may only be read.
    ReadOnly,
    /// Not present, not mapped, in the kernel's half, no address at all.
    Unmapped,
    /// No address, but for its upper bits that of arguments.
    NonCanonical,
    /// Mapped, but to a place without RAM.
    Hole,
    /// To the local APIC.
    Device,
    /// 64 random bits.
    Garbage,
}

/// Whose domain id a call names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Domid {
    /// The call names none.
    None,
    /// `DOMID_SELF`.
    Own,
    /// The caller's number.
    Number,
    /// 0.
    Zero,
    /// The number of no domain.
    Absent,
    /// `DOMID_IO`, `DOMID_XEN`, `DOMID_INVALID` and past them.
    Special,
}

/// What an answer is filed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// Hypercall; [`Class::BEYOND`] for all numbers past the table.
    pub number: u16,
    /// Sub-operation; [`Class::NO_OPERATION`] if there is none, [`Class::ODD_OPERATION`] for all
    /// that do not exist.
    pub operation: u8,
    /// Its pointer.
    pub pointer: Pointer,
    /// Its domain id.
    pub domid: Domid,
}

impl Class {
    /// Any number of 64 and up.
    pub const BEYOND: u16 = 64;
    /// The hypercall has no sub-operations.
    pub const NO_OPERATION: u8 = 255;
    /// A sub-operation that no Xen has.
    pub const ODD_OPERATION: u8 = 254;
}

impl fmt::Display for Class {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Class::BEYOND => out.write_str("64-up")?,
            number => write!(out, "{number}")?,
        }
        match self.operation {
            Class::NO_OPERATION => {}
            Class::ODD_OPERATION => out.write_str(".odd")?,
            operation => write!(out, ".{operation}")?,
        }
        let pointer = match self.pointer {
            Pointer::None => "",
            Pointer::Good => " good",
            Pointer::Odd => " odd",
            Pointer::Crossing => " crossing",
            Pointer::Null => " null",
            Pointer::ReadOnly => " read-only",
            Pointer::Unmapped => " unmapped",
            Pointer::NonCanonical => " non-canonical",
            Pointer::Hole => " hole",
            Pointer::Device => " device",
            Pointer::Garbage => " garbage",
        };
        let domid = match self.domid {
            Domid::None => "",
            Domid::Own => " self",
            Domid::Number => " own-number",
            Domid::Zero => " domain-0",
            Domid::Absent => " absent-domain",
            Domid::Special => " special-domain",
        };
        write!(out, "{pointer}{domid}")
    }
}

/// One hypercall.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 5],
    /// Its class.
    pub class: Class,
    /// Where the structure of its argument is, if the guest can read it.
    pub at: Option<u64>,
}

/// The calls of one seed.
#[derive(Clone, Debug)]
pub struct Seed {
    random: Random,
    own: u16,
}

/// Bytes that are filled wherever arguments go.
const FILLED: usize = 128;
/// `DOMID_SELF` (public/xen.h).
const DOMID_SELF: u16 = 0x7ff0;

impl Seed {
    /// The calls of seed `number`, of a domain with this id.
    #[must_use]
    pub fn new(number: u64, own: u16) -> Seed {
        Seed {
            random: Random::new(number),
            own,
        }
    }

    /// Draws the next call and puts its arguments into `arena`.
    pub fn next(&mut self, arena: &mut impl Arena) -> Call {
        let mut draft = Draft {
            random: &mut self.random,
            arena,
            own: self.own,
            bytes: [0; FILLED],
            domid: Domid::None,
        };
        let call = operations::draw(&mut draft);
        let Draft { bytes, domid, .. } = draft;
        if let Some(at) = call.at {
            arena.put(at, &bytes);
        }
        Call {
            class: Class {
                domid,
                ..call.class
            },
            ..call
        }
    }
}

/// A call in the making: its structure, and the numbers that go into it.
pub struct Draft<'a, A> {
    pub(crate) random: &'a mut Random,
    pub(crate) arena: &'a mut A,
    own: u16,
    bytes: [u8; FILLED],
    domid: Domid,
}

impl<A: Arena> Draft<'_, A> {
    /// Sets a field.
    pub(crate) fn set(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    pub(crate) fn set16(&mut self, at: usize, value: u64) {
        self.set(at, &(value as u16).to_le_bytes());
    }

    pub(crate) fn set32(&mut self, at: usize, value: u64) {
        self.set(at, &(value as u32).to_le_bytes());
    }

    pub(crate) fn set64(&mut self, at: usize, value: u64) {
        self.set(at, &value.to_le_bytes());
    }

    /// Sets a field to one of these.
    pub(crate) fn one32(&mut self, at: usize, values: &[u64]) {
        let value = self.random.one_of(values);
        self.set32(at, value);
    }

    /// Fills the structure: mostly small numbers, sometimes anything.
    pub(crate) fn fill(&mut self) {
        let wild = self.random.once_in(6);
        for at in (0..FILLED).step_by(8) {
            let value = self.random.bits();
            let value = if wild { value } else { value & 0x3_0000_0007 };
            self.set64(at, value);
        }
    }

    /// A domain id.
    pub(crate) fn domid(&mut self) -> u64 {
        let (class, value) = match self.random.below(16) {
            0..=8 => (Domid::Own, DOMID_SELF),
            9..=11 => (Domid::Number, self.own),
            12 => (Domid::Zero, 0),
            13 => (Domid::Absent, 77),
            14 => (Domid::Absent, 0x7fef),
            _ => {
                let special = self
                    .random
                    .one_of(&[0x7ff1, 0x7ff2, 0x7ff3, 0x7ff4, 0x7fff, 0xffff]);
                (Domid::Special, special as u16)
            }
        };
        self.domid = class;
        value.into()
    }

    /// An event channel.
    pub(crate) fn port(&mut self) -> u64 {
        match self.random.below(12) {
            0..=8 => self.random.below(24),
            9 => self.random.below(200),
            10 => self.random.one_of(&[4095, 4096, 0x1_ffff, 0x2_0000]),
            _ => self.random.bits() & 0xffff_ffff,
        }
    }

    /// A vCPU; the guest has number 0 only.
    pub(crate) fn vcpu(&mut self) -> u64 {
        match self.random.below(8) {
            0..=4 => 0,
            _ => self
                .random
                .one_of(&[1, 2, 31, 32, 127, 128, 8192, 0xffff_ffff]),
        }
    }

    /// A guest frame: of the playground, of the hole, or such as cannot be.
    pub(crate) fn frame(&mut self) -> u64 {
        match self.random.below(10) {
            0..=4 => PLAYGROUND / PAGE + self.random.below(PLAYGROUND_PAGES),
            5..=6 => HOLE / PAGE + self.random.below(HOLE_PAGES),
            7 => self
                .random
                .one_of(&[1 << 34, 1 << 36, 1 << 40, 1 << 44, 1 << 52]),
            8 => u64::MAX - self.random.below(2),
            _ => self.random.bits() | 1 << 41,
        }
    }

    /// A frame that gets memory: one that has some already would lose it, so it becomes one that
    /// cannot have any.
    pub(crate) fn empty_frame(&mut self) -> u64 {
        let frame = self.frame();
        if self.arena.is_present(frame) {
            1 << 40
        } else {
            frame
        }
    }

    /// A grant reference.
    pub(crate) fn grant(&mut self) -> u64 {
        match self.random.below(8) {
            0..=5 => self.random.below(40),
            6 => self.random.one_of(&[511, 512, 32767, 32768]),
            _ => self.random.bits() & 0xffff_ffff,
        }
    }

    /// A number that is small, mostly.
    pub(crate) fn small(&mut self) -> u64 {
        match self.random.below(8) {
            0..=5 => self.random.below(4),
            6 => self.random.below(64),
            _ => self.random.bits() & 0xffff_ffff,
        }
    }

    /// Where a list of up to 16 elements of 8 bytes goes; or a pointer to none, and true.
    pub(crate) fn list(&mut self) -> (u64, bool) {
        if self.random.once_in(8) {
            let bad = self
                .random
                .one_of(&[0x1_2345_6780, NON_CANONICAL, UPPER_HALF, HOLE]);
            return (bad, true);
        }
        (LISTS + self.random.below(8) * 256, false)
    }

    /// Where the structure of `size` bytes goes, and whether the guest may read it there. With
    /// `delicate`, not to where other bytes than its own would be read.
    pub(crate) fn pointer(&mut self, size: u64, delicate: bool) -> (u64, Pointer, Option<u64>) {
        let good = |at| (at, Some(at));
        let kind = match self.random.below(32) {
            24 | 25 | 30 if delicate => 26,
            kind => kind,
        };
        let (pointer, (value, at)) = match kind {
            0..=19 => {
                let slot = self.random.below(64);
                (Pointer::Good, good(ARGUMENTS + slot * 256))
            }
            20..=21 => {
                let at = ARGUMENTS + self.random.below(64) * 256 + 1 + self.random.below(7);
                (Pointer::Odd, good(at))
            }
            22..=23 => {
                let border = ARGUMENTS + PAGE * (1 + self.random.below(4));
                let before = 4 + self.random.below(size.max(8) / 4) * 4;
                (Pointer::Crossing, good(border - before.min(FILLED as u64)))
            }
            24 => (Pointer::Null, (0, None)),
            25 => (
                Pointer::ReadOnly,
                (READ_ONLY + self.random.below(64) * 8, None),
            ),
            26..=27 => {
                let bad = [
                    NOT_PRESENT,
                    UNMAPPED,
                    UPPER_HALF,
                    NON_CANONICAL,
                    u64::MAX - 7,
                ];
                (Pointer::Unmapped, (self.random.one_of(&bad), None))
            }
            28 => {
                let hole = self
                    .random
                    .one_of(&[HOLE + (1 << 20), 1 << 30, 0xfeff_0000]);
                (Pointer::Hole, (hole, None))
            }
            29 => (Pointer::Device, (LAPIC + self.random.below(4) * 0x30, None)),
            30 => {
                let at = NON_CANONICAL_ARGUMENTS + self.random.below(64) * 256;
                (Pointer::NonCanonical, (at, None))
            }
            // In the upper half, without or with the bits that belong to it: nothing is mapped.
            _ => (Pointer::Garbage, (self.random.bits() | 1 << 47, None)),
        };
        debug_assert!(at.is_none_or(|at| at + (FILLED as u64) < ARGUMENTS + ARGUMENT_BYTES));
        (value, pointer, at)
    }
}
