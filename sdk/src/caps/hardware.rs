//! Hardware that a component may hold: interrupt lines, PCI functions, I/O ports.

use idl::Cap;
use idl::cap::{AddressSpace, Device, Interrupt, IoPorts, Notification, Thread, Vcpu};
use microvisor_abi::cap::{InterruptOp, Role};
use microvisor_abi::{Call, Status};

use super::{OWN, bind, inspect};
use crate::raw;

/// Interrupt lines.
pub trait InterruptCap {
    /// Interrupts signal `to` with the badge of that capability.
    fn bind(self, to: Cap<Notification>) -> Result<(), Status>;
    /// The interrupt was handled: the line may interrupt again.
    fn acknowledge(self, line: u32) -> Result<(), Status>;
    /// It is what the only function of `device` may send: what, as `Slot::more` has it.
    fn source(self, device: Cap<Device>) -> Result<u64, Status>;
}

impl InterruptCap for Cap<Interrupt> {
    fn bind(self, to: Cap<Notification>) -> Result<(), Status> {
        bind(self.slot(), to.slot(), Role::Line)
    }
    fn acknowledge(self, line: u32) -> Result<(), Status> {
        let op = InterruptOp::Acknowledge as u64;
        raw::status(
            Call::InterruptControl,
            [self.slot().into(), line.into(), op, 0, 0, 0],
        )
    }
    fn source(self, device: Cap<Device>) -> Result<u64, Status> {
        bind(self.slot(), device.slot(), Role::Source)?;
        inspect(OWN, self.slot()).map(|slot| slot.more)
    }
}

/// PCI functions.
pub trait DeviceCap {
    /// The only function of it reaches what `space`, of kind *dma*, maps.
    fn attach(self, space: Cap<AddressSpace>) -> Result<(), Status>;
    /// It reaches nothing.
    fn detach(self) -> Result<(), Status>;
    /// `to` is signalled, with the badge of that capability, when the IOMMU stops the function that
    /// was attached through this capability.
    fn bind_stops(self, to: Cap<Notification>) -> Result<(), Status>;
}

impl DeviceCap for Cap<Device> {
    fn attach(self, space: Cap<AddressSpace>) -> Result<(), Status> {
        bind(self.slot(), space.slot(), Role::Dma)
    }
    fn detach(self) -> Result<(), Status> {
        bind(self.slot(), 0, Role::Dma)
    }
    fn bind_stops(self, to: Cap<Notification>) -> Result<(), Status> {
        bind(to.slot(), self.slot(), Role::Stops)
    }
}

/// I/O ports.
pub trait PortsCap {
    /// `thread` may use them by IN and OUT; see [`crate::port`].
    fn grant_thread(self, thread: Cap<Thread>) -> Result<(), Status>;
    /// The guest in `vcpu` may use them without exits.
    fn grant_vcpu(self, vcpu: Cap<Vcpu>) -> Result<(), Status>;
}

impl PortsCap for Cap<IoPorts> {
    fn grant_thread(self, thread: Cap<Thread>) -> Result<(), Status> {
        raw::status_until_done(
            Call::PortsGrant,
            [self.slot().into(), thread.slot().into(), 0, 0, 0, 0],
        )
    }
    fn grant_vcpu(self, vcpu: Cap<Vcpu>) -> Result<(), Status> {
        raw::status_until_done(
            Call::PortsGrant,
            [self.slot().into(), vcpu.slot().into(), 0, 0, 0, 0],
        )
    }
}
