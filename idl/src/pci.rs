//! `pci`: how a driver gets the one function that the manifest gives it. The component `pci` serves
//! it, alone knows configuration space and MSI-X tables, and tells callers apart by badge: a caller
//! names no function, so it cannot name another one's.

use crate::{Bytes, Cap, cap, interface, message};

/// Most base address registers of a function.
pub const BARS: usize = 6;
/// Bytes of a vendor capability that travel; the rest is cut.
pub const VENDOR_BYTES: usize = 64;

/// What a base address register asks for.
#[message]
#[derive(Copy)]
pub enum Bar {
    /// Not implemented, or the upper half of the one before.
    None,
    /// Memory of so many bytes.
    Memory {
        /// Its size, a power of two.
        bytes: u64,
    },
    /// Ports, which are not handed out.
    Ports {
        /// How many.
        count: u32,
    },
}

/// A function, as its driver sees it.
#[message]
#[derive(Copy)]
pub struct Function {
    /// Requester id: bus << 8 | device << 3 | function. For messages only.
    pub id: u16,
    /// Who made it.
    pub vendor: u16,
    /// What it is.
    pub device: u16,
    /// Subsystem's vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// Class, subclass and programming interface, in bits 23-16, 15-8 and 7-0.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// The base address registers.
    pub bars: [Bar; BARS],
    /// Messages that it can be given: MSI-X table entries, 1 for MSI, 0 if it has neither or the
    /// core has no message interrupts.
    pub vectors: u16,
    /// Vendor-specific capabilities (PCI Local Bus 3.0, 6.7, id 9).
    pub vendor_capabilities: u8,
    /// An IOMMU keeps it to what its driver's *dma* space maps. Without one, device addresses are
    /// physical.
    pub protected: bool,
}

/// Why something was not given.
#[message]
#[derive(Copy)]
pub enum PciError {
    /// The manifest gives the caller no function, or it is not in this machine.
    NoFunction,
    /// `open` comes first.
    NotOpen,
    /// There is no such register, page, vector or capability.
    NoSuch,
    /// The page holds the MSI-X table or its pending bits, or registers of another function too.
    Reserved,
    /// Firmware gave this register no address.
    Unassigned,
    /// The function is not attached to a *dma* space, and so may not use the bus.
    NotAttached,
    /// It did not come back from its reset.
    Dead,
    /// The machine has no message interrupts left.
    NoInterrupts,
    /// The caller has as many pages as one driver gets.
    TooMany,
    /// Root or the core refused: a status number.
    Core(u32),
}

/// Served by the component `pci`.
#[interface]
pub trait Pci {
    /// The caller's function, quiet: it uses neither bus nor interrupts, whatever an earlier driver
    /// left running, and it was reset if it knows how (PCIe function level reset). Everything
    /// that was given for it before is taken back.
    fn open(&self) -> Result<(Function, Cap<cap::Device>), PciError>;
    /// Page `page` (4 KiB) of base address register `bar`.
    fn page(&self, bar: u8, page: u32) -> Result<Cap<cap::Frame>, PciError>;
    /// Vendor-specific capability number `index`, from its first byte (the id) on.
    fn vendor_capability(&self, index: u8) -> Result<Bytes<64>, PciError>;
    /// The interrupt of message `vector`, to be bound to a notification. The function's table entry
    /// is written and unmasked here. Asked for again, it answers the same one.
    fn interrupt(&self, vector: u16) -> Result<Cap<cap::Interrupt>, PciError>;
    /// Lets the function use the bus. Refused while an IOMMU would have to block it: attach the
    /// `Device` capability first.
    fn enable(&self) -> Result<(), PciError>;
    /// It uses the bus no more.
    fn disable(&self) -> Result<(), PciError>;
}
