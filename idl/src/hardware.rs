//! `hardware`: what the component that knows the bus (`pci`) asks of root, which serves this
//! interface: pages of device memory, the right to every function and message interrupt, and who
//! is to have which function. This wire is power over every device of the machine; a system gives
//! it to one component.

use crate::manifest::Selector;
use crate::{Cap, Name, cap, interface, message};

/// The IOMMU that the core found and uses.
#[message]
#[derive(Copy)]
pub enum Iommu {
    /// None: what drivers' devices write is checked by nobody.
    None,
    /// Intel VT-d.
    Vtd,
    /// AMD-Vi.
    AmdVi,
}

/// What root knows of the machine.
#[message]
#[derive(Copy)]
pub struct Facts {
    /// Physical address of the ACPI RSDP, 0 if there is none.
    pub rsdp: u64,
    /// Whether devices are kept to their drivers' memory.
    pub iommu: Iommu,
    /// Whether interrupt messages are checked against their sender.
    pub remapping: bool,
}

/// Which function a component is to have.
#[message]
pub struct Assignment {
    /// By which `pci` knows the component.
    pub badge: u64,
    /// Its name, for messages.
    pub name: Name,
    /// Which of the functions that are there.
    pub selector: Selector,
}

/// Why something was not given.
#[message]
#[derive(Copy)]
pub enum HardwareError {
    /// The address is no device memory, or not all of the piece is.
    NotDeviceMemory,
    /// The size is none that frames have, or the address is no multiple of it.
    Misaligned,
    /// A part of it was given in pieces of another size.
    OtherSize,
    /// The core has none of it: message interrupts, for instance.
    None,
    /// The core refused: its status number.
    Core(u32),
}

/// Served by root.
#[interface]
pub trait Hardware {
    /// What there is.
    fn facts(&self) -> Facts;
    /// The component with the `index`-th assignment, in the order of the manifest.
    fn assignment(&self, index: u32) -> Option<Assignment>;
    /// The frame of 2^`order` bytes (12 or 21) of device memory at physical `address`. The same
    /// address answers the same frame. ACPI tables lie in device memory too.
    fn frame(&self, address: u64, order: u8) -> Result<Cap<cap::Frame>, HardwareError>;
    /// Every function of segment 0.
    fn devices(&self) -> Result<Cap<cap::Device>, HardwareError>;
    /// Every message interrupt, and the number of the first, and how many.
    fn interrupts(&self) -> Result<(Lines, Cap<cap::Interrupt>), HardwareError>;
}

/// Numbers of interrupts.
#[message]
#[derive(Copy)]
pub struct Lines {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}
