//! Devices: what a function may reach, and which message it may send.

use crate::lookup::{Checked, require};
use crate::state::*;
use microvisor_abi::cap::{ATTACHED, LINES_ISA};
use microvisor_abi::{SpaceKind, Status};

/// Functions that can be attached at once.
const ATTACHED_MAX: usize = 64;

impl State {
    /// The only number of a range.
    fn only(&self, place: Place) -> Checked<u64> {
        match self.at(place).what {
            What::Range {
                first, count: 1, ..
            } => Ok(first),
            _ => Err(Status::InvalidArgument),
        }
    }

    /// `Bind` with `Role::Dma`: the only function of a `Device` capability reaches what is mapped in a
    /// *dma* space, and nothing else. 0: it reaches nothing, if it was attached through this
    /// capability.
    /// - `InvalidArgument`: more functions than one. `WrongKind`: not a *dma* space.
    /// - `Busy`: it is attached. `NoMemory`: as many are as can be.
    pub(crate) fn attach(&mut self, owner: Place, space: Option<Frame>) -> Checked<()> {
        let function = self.only(owner)?;
        let Some(space) = space else {
            self.detach_device(owner);
            return Ok(());
        };
        let dma = self.spaces[&space].kind == SpaceKind::Dma;
        require(dma, Status::WrongKind)?;
        require(!self.devices.contains_key(&function), Status::Busy)?;
        require(self.devices.len() < ATTACHED_MAX, Status::NoMemory)?;
        let device = Device {
            owner,
            space,
            tell: None,
            stopped: 0,
        };
        self.devices.insert(function, device);
        self.at_mut(owner).mapped = Some((space, 0));
        Ok(())
    }

    pub(crate) fn detach_device(&mut self, owner: Place) {
        self.devices.retain(|_, device| device.owner != owner);
        self.at_mut(owner).mapped = None;
    }

    /// What `Inspect` tells of the only function of a capability: whether it is attached, by whomever,
    /// and why it was stopped.
    pub(crate) fn device_word(&self, place: Place) -> u64 {
        let device = self.only(place).ok().and_then(|f| self.devices.get(&f));
        device.map_or(0, |device| ATTACHED | device.stopped)
    }

    /// `Bind` with `Role::Stops`: the notification gets its badge, or 1, when the function is stopped.
    /// `NotBound`: it is not attached through this capability.
    pub(crate) fn bind_stops(&mut self, owner: Place, tell: (Frame, u64)) -> Checked<()> {
        let mut all = self.devices.values_mut();
        let device = all.find(|device| device.owner == owner);
        device.ok_or(Status::NotBound)?.tell = Some(tell);
        Ok(())
    }

    /// The IOMMU blocked an access: from now on it blocks every one of that function.
    pub(crate) fn device_fault(&mut self, function: u64, why: u64) {
        if let Some(device) = self.devices.get_mut(&function)
            && device.stopped == 0
        {
            device.stopped = why;
            if let Some((notification, bits)) = device.tell {
                self.signal(notification, bits);
            }
        }
    }

    /// `Bind` with `Role::Source`: the only function of a `Device` capability may send the only message
    /// of an `Interrupt` capability; 0: nobody may, if it was bound through this capability. Ends with
    /// either capability.
    /// - `InvalidArgument`: more than one of either; not a message.
    /// - `Busy`: the message is somebody's.
    pub(crate) fn bind_source(&mut self, interrupt: Place, device: Option<Place>) -> Checked<()> {
        let line = self.only(interrupt)?;
        let message = (LINES_ISA..self.machine.lines).contains(&line);
        require(message, Status::InvalidArgument)?;
        let Some(device) = device else {
            self.sources.retain(|_, s| s.interrupt != interrupt);
            return Ok(());
        };
        let function = self.only(device)?;
        require(!self.sources.contains_key(&line), Status::Busy)?;
        let source = Source {
            interrupt,
            device,
            function,
        };
        self.sources.insert(line, source);
        Ok(())
    }

    pub(crate) fn unbind_sources(&mut self, cap: Place) {
        self.sources
            .retain(|_, s| s.interrupt != cap && s.device != cap);
    }

    /// What a device has to send for a line; the machine's choice.
    pub(crate) fn message_of(&self, interrupt: Place) -> u64 {
        let mut all = self.sources.iter();
        let line = all.find(|(_, s)| s.interrupt == interrupt);
        line.map_or(0, |(line, _)| self.machine.message | line << 32)
    }
}
