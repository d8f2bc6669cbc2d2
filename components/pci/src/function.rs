//! One function's header: base address registers, capabilities, and what makes it quiet
//! (PCI Local Bus 3.0, chapter 6; PCIe 4.0, 7.5).

use alloc::vec::Vec;

use idl::pci::{BARS, Bar};

use crate::config::{Config, Id};
use crate::message::{Msi, MsiX, Write};

/// Bytes of a page, the unit in which registers are handed out.
pub const PAGE: u64 = 4096;

const COMMAND: u16 = 0x04;
const FIRST_BAR: u16 = 0x10;
const SUBSYSTEM: u16 = 0x2c;
const CAPABILITIES: u16 = 0x34;

const PORTS_ON: u32 = 1 << 0;
const MEMORY_ON: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;
const LINE_OFF: u32 = 1 << 10;
/// Bits of the command register; those above are the status register, whose ones clear.
const COMMAND_BITS: u32 = 0xffff;
/// In the status half: there are capabilities.
const HAS_CAPABILITIES: u32 = 1 << 20;

/// Capabilities are at least this far in, and as many as fit at most.
const CAPABILITY_FIRST: u8 = 0x40;
const CAPABILITY_MOST: usize = 48;
const MSI: u8 = 0x05;
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;

/// A base address register: what it asks for, and the address that firmware gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it asks for.
    pub bar: Bar,
    /// Physical address; 0: none.
    pub base: u64,
}

/// What a driver's function looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where.
    pub id: Id,
    /// Subsystem vendor and subsystem.
    pub subsystem: (u16, u16),
    /// Base address registers.
    pub bars: [Place; BARS],
    /// MSI, if it has it.
    pub msi: Option<Msi>,
    /// MSI-X, if it has it and its table lies inside of one of its registers.
    pub msix: Option<MsiX>,
    /// What switches all its messages off, also those of a capability that cannot be used.
    pub silence: Vec<Write>,
    /// Offsets of vendor-specific capabilities.
    pub vendor: Vec<u8>,
    /// Offset of the PCI Express capability of a function that can be reset through it.
    pub reset: Option<u8>,
}

/// A capability's offset and id, in the order of the list. Each is visited once, whatever the links
/// say.
pub fn capabilities(config: &mut impl Config, id: Id) -> Vec<(u8, u8)> {
    let mut found = Vec::new();
    if config.read(id, COMMAND) & HAS_CAPABILITIES == 0 {
        return found;
    }
    let mut at = config.read(id, CAPABILITIES) as u8 & 0xfc;
    while at >= CAPABILITY_FIRST && found.len() < CAPABILITY_MOST {
        if found.iter().any(|&(seen, _)| seen == at) {
            break;
        }
        let word = config.read(id, at.into());
        found.push((at, word as u8));
        at = (word >> 8) as u8 & 0xfc;
    }
    found
}

/// The addresses that memory registers of a function have, without touching them: for functions that
/// are in use. `None` where there is none.
pub fn bases(config: &mut impl Config, id: Id, bars: usize) -> Vec<u64> {
    let mut found = Vec::new();
    let mut index = 0;
    while index < bars.min(BARS) {
        let low = config.read(id, FIRST_BAR + 4 * index as u16);
        let wide = low & 7 == 4 && index + 1 < bars;
        let high = match wide {
            true => config.read(id, FIRST_BAR + 4 * index as u16 + 4),
            false => 0,
        };
        let base = u64::from(low & !0xf) | u64::from(high) << 32;
        if low & 1 == 0 && base != 0 && low != u32::MAX {
            found.push(base);
        }
        index += 1 + usize::from(wide);
    }
    found
}

/// The command register, with the ports and memory that it decodes changed for the time of `work`.
fn with_decoding_off<C: Config, R>(config: &mut C, id: Id, work: impl FnOnce(&mut C) -> R) -> R {
    let command = config.read(id, COMMAND) & COMMAND_BITS;
    config.write(id, COMMAND, command & !(PORTS_ON | MEMORY_ON));
    let result = work(config);
    config.write(id, COMMAND, command);
    result
}

/// Reads and sizes all base address registers. The function is quiet.
fn places(config: &mut impl Config, id: Id) -> [Place; BARS] {
    const NONE: Place = Place {
        bar: Bar::None,
        base: 0,
    };
    let mut places = [NONE; BARS];
    with_decoding_off(config, id, |config| {
        let mut index = 0;
        while index < BARS {
            let offset = FIRST_BAR + 4 * index as u16;
            let low = config.read(id, offset);
            let mut probe = |offset: u16, value: u32| {
                config.write(id, offset, u32::MAX);
                let mask = config.read(id, offset);
                config.write(id, offset, value);
                mask
            };
            let mask = probe(offset, low);
            let mut width = 1;
            let place = if mask == 0 || mask == u32::MAX {
                NONE
            } else if low & 1 != 0 {
                Place {
                    // Upper 16 bits may be wired to zero (PCI Local Bus 3.0, 6.2.5.1).
                    bar: Bar::Ports {
                        count: !(mask & !3 | 0xffff_0000) + 1,
                    },
                    base: u64::from(low & !3),
                }
            } else {
                let mut size = u64::from(mask & !0xf) | 0xffff_ffff << 32;
                let mut base = u64::from(low & !0xf);
                if low & 6 == 4 && index + 1 < BARS {
                    let high = config.read(id, offset + 4);
                    config.write(id, offset + 4, u32::MAX);
                    let mask = config.read(id, offset + 4);
                    config.write(id, offset + 4, high);
                    size = size & 0xffff_ffff | u64::from(mask) << 32;
                    base |= u64::from(high) << 32;
                    width = 2;
                }
                memory_place(size, base)
            };
            if let Some(into) = places.get_mut(index) {
                *into = place;
            }
            index += width;
        }
    });
    places
}

/// A memory register whose writable bits are `mask`.
fn memory_place(mask: u64, base: u64) -> Place {
    let bytes = mask.wrapping_neg();
    // A register whose size is no power of two, or that does not lie on a multiple of it, is broken.
    let good =
        bytes.is_power_of_two() && base.is_multiple_of(bytes) && base.checked_add(bytes).is_some();
    Place {
        bar: match good {
            true => Bar::Memory { bytes },
            false => Bar::None,
        },
        base: if good { base } else { 0 },
    }
}

impl Function {
    /// Reads everything about a function that is quiet.
    pub fn read(config: &mut impl Config, id: Id) -> Function {
        let bars = places(config, id);
        let subsystem = config.read(id, SUBSYSTEM);
        let mut function = Function {
            id,
            subsystem: (subsystem as u16, (subsystem >> 16) as u16),
            bars,
            msi: None,
            msix: None,
            silence: Vec::new(),
            vendor: Vec::new(),
            reset: None,
        };
        for (at, kind) in capabilities(config, id) {
            match kind {
                MSI => {
                    let msi = Msi::read(config, id, at);
                    function.silence.extend(msi.off());
                    function.msi = Some(msi);
                }
                MSIX => {
                    let control = config.read(id, at.into());
                    function.silence.push(MsiX::switched_off(at, control));
                    function.msix = MsiX::read(config, id, at, &bars);
                }
                VENDOR => function.vendor.push(at),
                // Device capabilities: function level reset (PCIe 4.0, 7.5.3.3).
                EXPRESS if config.read(id, u16::from(at) + 4) & 1 << 28 != 0 => {
                    function.reset = Some(at);
                }
                _ => {}
            }
        }
        function
    }

    /// The physical address of a page of a register, and whether its driver may have it.
    pub fn page(&self, bar: u8, page: u32) -> Result<u64, idl::pci::PciError> {
        use idl::pci::PciError;
        let place = self.bars.get(usize::from(bar)).ok_or(PciError::NoSuch)?;
        let Bar::Memory { bytes } = place.bar else {
            return Err(PciError::NoSuch);
        };
        let offset = u64::from(page) * PAGE;
        if offset >= bytes {
            return Err(PciError::NoSuch);
        }
        if place.base == 0 {
            return Err(PciError::Unassigned);
        }
        if self.msix.is_some_and(|msix| msix.covers(bar, offset)) {
            return Err(PciError::Reserved);
        }
        // Other registers of the same function may share the page; the MSI-X table must not.
        let page = (place.base + offset) & !(PAGE - 1);
        let table = self.msix.iter().any(|msix| {
            msix.pages(&self.bars)
                .any(|(first, last)| (first..=last).contains(&page))
        });
        match table {
            true => Err(PciError::Reserved),
            false => Ok(page),
        }
    }

    /// Bytes of a vendor-specific capability; its third byte is its length.
    pub fn vendor_bytes(
        &self,
        config: &mut impl Config,
        index: u8,
    ) -> Option<[u8; idl::pci::VENDOR_BYTES]> {
        let at = u16::from(*self.vendor.get(usize::from(index))?);
        let mut bytes = [0; idl::pci::VENDOR_BYTES];
        let length = usize::from((config.read(self.id, at) >> 16) as u8);
        // The list ends with the first 256 bytes of configuration space.
        let length = length.min(bytes.len()).min(256 - usize::from(at));
        for (step, place) in bytes.chunks_exact_mut(4).enumerate() {
            if step * 4 < length {
                let word = config.read(self.id, at + 4 * step as u16).to_le_bytes();
                place.copy_from_slice(&word);
            }
        }
        if let Some(rest) = bytes.get_mut(length..) {
            rest.fill(0);
        }
        Some(bytes)
    }
}

/// Lets a function use the bus, or not. Its memory is decoded; its
/// ports, which nobody is given, and its line are off.
pub fn set_bus(config: &mut impl Config, id: Id, on: bool) {
    let command = config.read(id, COMMAND) & COMMAND_BITS;
    let command = (command | MEMORY_ON | LINE_OFF) & !(BUS_MASTER | PORTS_ON);
    config.write(id, COMMAND, command | if on { BUS_MASTER } else { 0 });
}

/// True if a function may use the bus.
pub fn uses_bus(config: &mut impl Config, id: Id) -> bool {
    config.read(id, COMMAND) & BUS_MASTER != 0
}

/// Registers that a reset loses and that firmware, not the driver, set.
const KEPT: [u16; 9] = [0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x3c];

/// Registers to put back after a reset.
pub struct Saved([u32; KEPT.len()]);

/// Begins a function level reset: the function may not be touched for 100 ms (PCIe 4.0, 6.6.2).
pub fn begin_reset(config: &mut impl Config, id: Id, express: u8) -> Saved {
    let saved = Saved(KEPT.map(|offset| config.read(id, offset)));
    // Device control: initiate function level reset. The status half clears by ones.
    let control = u16::from(express) + 8;
    let value = config.read(id, control) & 0xffff;
    config.write(id, control, value | 1 << 15);
    saved
}

/// Ends it; false if the function is not back yet.
pub fn end_reset(config: &mut impl Config, id: Id, saved: &Saved) -> bool {
    if config.read(id, 0) == u32::MAX {
        return false;
    }
    for (offset, value) in KEPT.iter().zip(saved.0) {
        config.write(id, *offset, value);
    }
    true
}
