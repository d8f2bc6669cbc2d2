//! Message interrupts: where a function's messages are written down, and which registers to write
//! (PCI Local Bus 3.0, 6.8; PCIe 4.0, 7.7). Planned here as lists, carried out by the binary.

use alloc::vec::Vec;

use idl::pci::Bar;

use crate::config::{Config, Id};
use crate::function::{PAGE, Place};

/// Bytes of an entry of the MSI-X table.
pub const ENTRY: u64 = 16;

/// A message, as the core says it has to be: an address below 4 GiB, and data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub address: u32,
    /// What.
    pub data: u32,
}

impl Message {
    /// From the core's word; `None` for 0, no message.
    pub const fn from_word(word: u64) -> Option<Message> {
        if word == 0 {
            return None;
        }
        Some(Message {
            address: word as u32,
            data: (word >> 32) as u32,
        })
    }
}

/// A register to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// In configuration space.
    Config {
        /// Offset.
        offset: u16,
        /// Value.
        value: u32,
    },
    /// In the MSI-X table.
    Table {
        /// Offset from the table's start.
        offset: u64,
        /// Value.
        value: u32,
    },
}

/// An MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    at: u8,
    control: u32,
}

const MSI_ON: u32 = 1 << 16;
/// Messages that it may use, as a power of two, in bits 22-20.
const MSI_MANY: u32 = 7 << 20;
const MSI_WIDE: u32 = 1 << 23;

impl Msi {
    /// Reads it.
    pub fn read(config: &mut impl Config, id: Id, at: u8) -> Msi {
        let control = config.read(id, at.into());
        Msi { at, control }
    }

    fn control(&self, on: bool) -> Write {
        let value = self.control & !(MSI_ON | MSI_MANY);
        Write::Config {
            offset: self.at.into(),
            value: value | if on { MSI_ON } else { 0 },
        }
    }

    /// Lets it send nothing.
    pub fn off(&self) -> Vec<Write> {
        Vec::from([self.control(false)])
    }

    /// Lets it send one message.
    pub fn on(&self, message: Message) -> Vec<Write> {
        let mut at = u16::from(self.at) + 4;
        let mut put = |value| {
            let write = Write::Config { offset: at, value };
            at += 4;
            write
        };
        let mut writes = Vec::from([self.control(false), put(message.address)]);
        if self.control & MSI_WIDE != 0 {
            writes.push(put(0));
        }
        writes.push(put(message.data & 0xffff));
        writes.push(self.control(true));
        writes
    }
}

/// An MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    at: u8,
    control: u32,
    /// Entries of the table.
    pub entries: u16,
    /// Register in which the table lies, and where.
    pub table: (u8, u64),
    /// The same of the pending bits.
    pub pending: (u8, u64),
}

const MSIX_ON: u32 = 1 << 31;
const MSIX_MASKED: u32 = 1 << 30;
/// In an entry's last word.
const ENTRY_MASKED: u32 = 1;

impl MsiX {
    /// Reads it. `None` if the table is not inside a memory register that has an address: then it
    /// cannot be used.
    pub fn read(config: &mut impl Config, id: Id, at: u8, bars: &[Place]) -> Option<MsiX> {
        // Its three words lie within the list's 256 bytes.
        if at > 256u16.saturating_sub(12) as u8 {
            return None;
        }
        let control = config.read(id, at.into());
        let place = |word: u32| ((word & 7) as u8, u64::from(word & !7));
        let msix = MsiX {
            at,
            control,
            entries: (control >> 16 & 0x7ff) as u16 + 1,
            table: place(config.read(id, u16::from(at) + 4)),
            pending: place(config.read(id, u16::from(at) + 8)),
        };
        let inside = |(bar, offset): (u8, u64), bytes: u64| {
            bars.get(usize::from(bar))
                .is_some_and(|place| match place.bar {
                    Bar::Memory { bytes: all } => place.base != 0 && offset + bytes <= all,
                    _ => false,
                })
        };
        let good =
            inside(msix.table, msix.table_bytes()) && inside(msix.pending, msix.pending_bytes());
        good.then_some(msix)
    }

    /// Bytes of the table.
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.entries) * ENTRY
    }

    fn pending_bytes(&self) -> u64 {
        u64::from(self.entries).div_ceil(64) * 8
    }

    fn areas(&self) -> [((u8, u64), u64); 2] {
        [
            (self.table, self.table_bytes()),
            (self.pending, self.pending_bytes()),
        ]
    }

    /// True if the page at `offset` of register `bar` holds a part of the table or of the pending bits.
    pub fn covers(&self, bar: u8, offset: u64) -> bool {
        let page = offset / PAGE;
        self.areas().into_iter().any(|((in_bar, start), bytes)| {
            in_bar == bar && (start / PAGE..=(start + bytes - 1) / PAGE).contains(&page)
        })
    }

    /// Physical pages of the table and of the pending bits: first and last of each.
    pub fn pages<'a>(&'a self, bars: &'a [Place]) -> impl Iterator<Item = (u64, u64)> + 'a {
        self.areas()
            .into_iter()
            .filter_map(|((bar, start), bytes)| {
                let base = bars.get(usize::from(bar))?.base;
                let (first, last) = (base + start, base + start + bytes - 1);
                Some((first & !(PAGE - 1), last & !(PAGE - 1)))
            })
    }

    fn control(&self, bits: u32) -> Write {
        Write::Config {
            offset: self.at.into(),
            value: self.control & !(MSIX_ON | MSIX_MASKED) | bits,
        }
    }

    /// What switches off the capability at `at`, whose first word is `control`.
    pub fn switched_off(at: u8, control: u32) -> Write {
        Write::Config {
            offset: at.into(),
            value: control & !(MSIX_ON | MSIX_MASKED),
        }
    }

    /// Lets it send nothing, and masks every entry, so that what an earlier driver left there says
    /// nothing when it is switched on.
    pub fn off(&self) -> Vec<Write> {
        // The table's registers take writes at any time, but for an entry in use: masked first.
        let mut writes = Vec::from([self.control(MSIX_ON | MSIX_MASKED)]);
        for entry in 0..u64::from(self.entries) {
            for (word, value) in [(12, ENTRY_MASKED), (0, 0), (4, 0), (8, 0)] {
                let offset = entry * ENTRY + word;
                writes.push(Write::Table { offset, value });
            }
        }
        writes.push(self.control(0));
        writes
    }

    /// Lets it send `message` as its number `vector`; `None` if it has no such entry.
    pub fn on(&self, vector: u16, message: Message) -> Option<Vec<Write>> {
        if vector >= self.entries {
            return None;
        }
        let start = u64::from(vector) * ENTRY;
        let mut writes = Vec::new();
        for (word, value) in [
            (12, ENTRY_MASKED),
            (0, message.address),
            (4, 0),
            (8, message.data),
            (12, 0),
        ] {
            let offset = start + word;
            writes.push(Write::Table { offset, value });
        }
        writes.push(self.control(MSIX_ON));
        Some(writes)
    }
}
