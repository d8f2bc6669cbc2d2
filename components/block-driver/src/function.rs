//! A driver's PCI function on the machine: got from `pci`, its registers mapped, its messages and the
//! IOMMU's word bound to the driver's notification.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use idl::pci::{Function, PciClient};
use idl::{CallError, ConnectError};
use sdk::abi::FRAME;
use sdk::abi::cap::Stopped;
use sdk::mmio::Registers;
use sdk::prelude::*;

use crate::Failed;

/// Bit of the own notification for message 0; the others follow.
const MESSAGE_BIT: u64 = 1;
/// Bit for the IOMMU's word that it stopped the device.
pub const STOPPED_BIT: u64 = 1 << 40;

/// What a refusal of `pci` is told as.
pub fn pci<E: core::fmt::Debug>(what: &str) -> impl Fn(CallError<E, Status>) -> Failed + '_ {
    move |error| format!("{what}: {error:?}")
}

/// What a refusal of the core is told as.
pub fn core(what: &str) -> impl Fn(Status) -> Failed + '_ {
    move |status| format!("{what}: {status:?}")
}

/// A function and the connection to the one who gave it.
pub struct Given {
    /// Where more of it is asked for.
    pub bus: PciClient<EndpointTransport>,
    /// What it is.
    pub function: Function,
    /// The right to attach it.
    pub right: Cap<cap::Device>,
}

impl Given {
    /// The function that the manifest gives this driver. It is quiet.
    pub fn open(env: &Env) -> Result<Given, Failed> {
        loop {
            match PciClient::connect(env.transport("pci")) {
                Ok(bus) => {
                    let (function, right) = bus.open().map_err(pci("no function"))?;
                    return Ok(Given {
                        bus,
                        function,
                        right,
                    });
                }
                Err(ConnectError::Failure(idl::Failure::Transport(Status::Restarted))) => {}
                Err(error) => return Err(format!("no bus: {error:?}")),
            }
        }
    }

    /// Maps `bytes` of a base address register from `offset` on.
    pub fn registers(&self, bar: u8, offset: u64, bytes: u64) -> Result<Registers, Failed> {
        let first = offset / FRAME;
        let end = offset.saturating_add(bytes).div_ceil(FRAME);
        let pages: Result<Vec<_>, Failed> = (first..end)
            .map(|page| {
                let page = u32::try_from(page).map_err(|_| "registers are far off")?;
                let given = self.bus.page(bar, page);
                given.map_err(pci("registers are not given"))
            })
            .collect();
        let mapped = Registers::map(&pages?).map_err(core("registers are not mapped"))?;
        let part = mapped.part(offset - first * FRAME, bytes);
        part.ok_or_else(|| String::from("registers are not inside of their pages"))
    }

    /// Binds a message to the driver's notification.
    pub fn message(&self, env: &Env, vector: u16) -> Result<(), Failed> {
        let right = self.bus.interrupt(vector).map_err(pci("no interrupt"))?;
        // As many messages as there are bits below the one for stops.
        let bit = MESSAGE_BIT << (vector % 32);
        let to = env.notification().mint(Rights::SIGNAL, bit);
        match to.and_then(|to| right.bind(to)) {
            // Two queues with one message.
            Ok(()) | Err(Status::Busy) => Ok(()),
            Err(status) => Err(core("an interrupt is not bound")(status)),
        }
    }

    /// The device reaches what `space` maps, from now on; where there is an IOMMU, its word is heard.
    pub fn attach(&self, env: &Env, space: &sdk::dma::Space) -> Result<(), Failed> {
        let attached = space.attach(self.right);
        attached.map_err(core("it is not attached"))?;
        if !self.function.protected {
            return Ok(());
        }
        let told = env.notification().mint(Rights::SIGNAL, STOPPED_BIT);
        let bound = told.and_then(|told| self.right.bind_stops(told));
        bound.map_err(core("its stops are not heard of"))
    }

    /// What the IOMMU stopped it for.
    pub fn stopped(&self) -> Option<Stopped> {
        let slot = inspect(OWN, self.right.slot()).ok()?;
        Stopped::from_word(slot.more)
    }

    /// Where on the bus it is.
    pub fn place(&self) -> String {
        let id = self.function.id;
        format!("{:02x}:{:02x}.{}", id >> 8, id >> 3 & 31, id & 7)
    }

    /// How it interrupts, and what holds it, whose memory it sees at `bus`.
    pub fn manner(&self, bus: u64) -> String {
        let messages = match self.function.vectors {
            0 => format!(
                "no interrupts, looked at every {} us",
                crate::server::POLL_MICROSECONDS
            ),
            vectors => format!("{vectors} message interrupt(s)"),
        };
        match self.function.protected {
            true => format!("{messages}, behind the IOMMU, its memory is at {bus:#x}"),
            false => format!("{messages}, NOT PROTECTED by an IOMMU"),
        }
    }
}
