//! The machine under the library: pages that root lends, configuration space by memory or by ports.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use idl::hardware::HardwareClient;
use idl::pci::PciError;
use idl::{CallError, Failure};
use pci_bus::acpi::{self, Physical, Window};
use pci_bus::config::{Config, Id, port_address, window_offset};
use sdk::abi::FRAME;
use sdk::memory::{LARGE, ORDER_2M, ORDER_4K};
use sdk::mmio::Registers;
use sdk::port::Ports;
use sdk::prelude::*;

/// Root, as the one who lends.
pub type Root = HardwareClient<EndpointTransport>;

/// First port of the older way to configuration space, and how many.
const PORTS: (u16, u16) = (0xcf8, 8);

/// A frame of device memory.
pub fn frame(root: &Root, address: u64, order: u64) -> Result<Cap<cap::Frame>, PciError> {
    root.frame(address, order as u8).map_err(|error| {
        log::debug!("no device memory at {address:#x}: {error:?}");
        match error {
            CallError::Answer(_) => PciError::Unassigned,
            CallError::Failure(Failure::Transport(status)) => PciError::Core(status as u32),
            CallError::Failure(_) => PciError::Core(Status::Unsupported as u32),
        }
    })
}

/// Maps registers of `bytes` at physical `address`, page by page.
pub fn map(root: &Root, address: u64, bytes: u64) -> Result<Registers, PciError> {
    let first = address & !(FRAME - 1);
    let end = (address + bytes).next_multiple_of(FRAME);
    let pages: Result<Vec<_>, PciError> = (first..end)
        .step_by(FRAME as usize)
        .map(|page| frame(root, page, ORDER_4K))
        .collect();
    let core = |status: Status| PciError::Core(status as u32);
    let mapped = Registers::map(&pages?).map_err(core)?;
    let part = mapped.part(address - first, bytes);
    part.ok_or(PciError::Core(Status::InvalidArgument as u32))
}

/// Firmware's tables, read page by page.
struct Tables<'a> {
    root: &'a Root,
    pages: BTreeMap<u64, Option<Registers>>,
}

impl Physical for Tables<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> bool {
        for (index, byte) in into.iter_mut().enumerate() {
            let Some(at) = address.checked_add(index as u64) else {
                return false;
            };
            let page = at & !(FRAME - 1);
            let root = self.root;
            let known = self.pages.entry(page);
            let mapped = known.or_insert_with(|| map(root, page, FRAME).ok());
            let Some(registers) = mapped else {
                return false;
            };
            *byte = registers.read8(at - page);
        }
        true
    }
}

enum Way {
    /// Mapped by MCFG: windows, and what of them was mapped so far, by physical address.
    Memory(Root, Vec<Window>, BTreeMap<u64, Option<Registers>>),
    /// By ports 0xcf8 and 0xcfc.
    Ports(Ports),
    /// Not at all.
    None,
}

/// Configuration space.
pub struct Access(Way);

impl Access {
    /// Finds the way: by MCFG, otherwise by ports if there is a right to them.
    pub fn find(env: &Env, root: Root, rsdp: u64) -> Access {
        let mut tables = Tables {
            root: &root,
            pages: BTreeMap::new(),
        };
        let windows = acpi::windows(&mut tables, rsdp);
        match windows {
            Ok(windows) => {
                for window in &windows {
                    let Window { base, first, last } = window;
                    log::info!("configuration space at {base:#x}, buses {first} to {last}");
                }
                return Access(Way::Memory(root, windows, BTreeMap::new()));
            }
            Err(error) => log::info!("no configuration space in memory: {error:?}"),
        }
        let (first, count) = PORTS;
        let ports = env.ports(first, count);
        match ports.map(|ports| Ports::grant(ports, env.thread(), first, count)) {
            Some(Ok(ports)) => {
                log::info!("configuration space by ports 0xcf8 and 0xcfc");
                Access(Way::Ports(ports))
            }
            Some(Err(status)) => {
                log::error!("ports 0xcf8 and 0xcfc: {status:?}");
                Access(Way::None)
            }
            None => {
                log::error!("no way to configuration space: add ports = [\"0xcf8+8\"] to pci");
                Access(Way::None)
            }
        }
    }

    /// Buses that can be reached at all.
    pub fn buses(&self) -> [bool; 256] {
        let mut buses = [false; 256];
        match &self.0 {
            Way::Memory(_, windows, _) => {
                for window in windows {
                    let range = usize::from(window.first)..=usize::from(window.last);
                    if let Some(buses) = buses.get_mut(range) {
                        buses.fill(true);
                    }
                }
            }
            Way::Ports(_) => buses.fill(true),
            Way::None => {}
        }
        buses
    }

    /// The mapped register, and its offset in there.
    fn mapped(&mut self, id: Id, offset: u16) -> Option<(Registers, u64)> {
        let Way::Memory(root, windows, known) = &mut self.0 else {
            return None;
        };
        let covers = |window: &&Window| (window.first..=window.last).contains(&id.bus());
        let window = windows.iter().find(covers)?;
        let at = window.base + window_offset(id, offset);
        let large = at & !(LARGE - 1);
        let map = || Registers::map_large(frame(root, large, ORDER_2M).ok()?).ok();
        let registers = (*known.entry(large).or_insert_with(map))?;
        Some((registers, at - large))
    }
}

impl Config for Access {
    fn read(&mut self, id: Id, offset: u16) -> u32 {
        match &self.0 {
            Way::Memory(..) => match self.mapped(id, offset) {
                Some((registers, at)) => registers.read32(at),
                None => u32::MAX,
            },
            Way::Ports(ports) => match port_address(id, offset) {
                Some(address) => {
                    ports.write32(0, address);
                    ports.read32(4)
                }
                None => u32::MAX,
            },
            Way::None => u32::MAX,
        }
    }

    fn write(&mut self, id: Id, offset: u16, value: u32) {
        match &self.0 {
            Way::Memory(..) => {
                if let Some((registers, at)) = self.mapped(id, offset) {
                    registers.write32(at, value);
                }
            }
            Way::Ports(ports) => {
                if let Some(address) = port_address(id, offset) {
                    ports.write32(0, address);
                    ports.write32(4, value);
                }
            }
            Way::None => {}
        }
    }
}
