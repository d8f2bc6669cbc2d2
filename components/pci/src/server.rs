//! The bus on the machine: what drivers ask for, carried out.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use idl::hardware::{HardwareClient, Iommu, Lines};
use idl::pci::{self, Pci, PciError, PciServer};
use idl::{Bytes, Name};
use pci_bus::config::{Config, Id};
use pci_bus::enumerate::{Found, assign, functions};
use pci_bus::function::{self, Function, PAGE};
use pci_bus::message::{Message, Write};
use sdk::abi::cap::ATTACHED;
use sdk::memory::ORDER_4K;
use sdk::mmio::Registers;
use sdk::prelude::*;
use sdk::time;

use crate::access::{Access, Root, frame, map};

/// A function that was reset may not be touched for so long, and is given so much longer to come
/// back (PCIe 4.0, 6.6.2 and 2.3.1: 1 s).
const RESET_MICROSECONDS: u64 = 100_000;
const RESET_MOST: u32 = 10;
/// Pages of registers that one driver gets at most: each costs root and this component slots, for good.
const PAGES_MOST: usize = 256;
/// Messages that one driver gets at most: there are some hundred for all.
const VECTORS_MOST: u16 = 16;

/// A driver and its function.
struct Owner {
    badge: u64,
    name: Name,
    found: Found,
    open: Option<Open>,
    /// Pages of its registers that were asked for, by physical address, by any of its instances.
    pages: BTreeMap<u64, Cap<cap::Frame>>,
}

/// What its driver was given.
struct Open {
    function: Function,
    /// For this function only.
    device: Cap<cap::Device>,
    /// Interrupts by vector: the right, and its number.
    interrupts: BTreeMap<u16, (Cap<cap::Interrupt>, u32)>,
}

struct Bus {
    root: Root,
    config: Access,
    found: Vec<Found>,
    owners: Vec<Owner>,
    devices: Cap<cap::Device>,
    /// Message interrupts, and the numbers of those that nobody has.
    messages: Option<Cap<cap::Interrupt>>,
    free: Vec<u32>,
    /// MSI-X tables that were mapped, by function.
    tables: BTreeMap<Id, Registers>,
    /// There is an IOMMU.
    protected: bool,
}

fn core(status: Status) -> PciError {
    PciError::Core(status as u32)
}

/// Serves for ever.
pub fn main(env: Env) {
    let endpoint = env.endpoint("pci");
    let root = match HardwareClient::connect(env.transport("hardware")) {
        Ok(root) => root,
        Err(error) => panic!("root does not lend devices: {error:?}"),
    };
    let mut bus = match Bus::new(&env, root) {
        Ok(bus) => bus,
        Err(error) => panic!("no right to devices: {error:?}"),
    };
    bus.list();
    let receiver = Receiver::new(endpoint, REPLY, 0);
    match SupervisorClient::connect(env.transport("supervisor")).map(|root| root.ready()) {
        Ok(Ok(())) => {}
        other => log::error!("root does not hear that the bus is served: {other:?}"),
    }
    match receiver {
        Ok(mut receiver) => {
            let status = serve::<Pci, _>(&mut receiver, &mut bus);
            panic!("cannot serve: {status:?}");
        }
        Err(status) => panic!("cannot receive: {status:?}"),
    }
}

impl Bus {
    fn new(env: &Env, root: Root) -> Result<Bus, PciError> {
        let failed = |_| PciError::NoFunction;
        let facts = root.facts().map_err(failed)?;
        let devices = root.devices().map_err(|_| PciError::NoFunction)?;
        let (messages, free) = match root.interrupts() {
            Ok((Lines { first, count }, messages)) => (
                Some(messages),
                (first..first.saturating_add(count)).collect(),
            ),
            Err(error) => {
                log::warn!("no message interrupts: {error:?}");
                (None, Vec::new())
            }
        };
        let own = HardwareClient::connect(env.transport("hardware"));
        let own = own.map_err(|_| PciError::NoFunction)?;
        let mut config = Access::find(env, own, facts.rsdp);
        let buses = config.buses();
        let exists = |bus: u8| buses.get(usize::from(bus)).copied().unwrap_or(false);
        let found = functions(&mut config, exists);
        let mut wanted = Vec::new();
        // Bounded: root lists components.
        while let Ok(Some(assignment)) = root.assignment(wanted.len() as u32) {
            wanted.push(assignment);
        }
        let selectors: Vec<_> = wanted.iter().map(|wanted| wanted.selector).collect();
        let mut owners = Vec::new();
        for (assignment, index) in wanted.into_iter().zip(assign(&found, &selectors)) {
            match index.and_then(|index| found.get(index)) {
                Some(found) => owners.push(Owner {
                    badge: assignment.badge,
                    name: assignment.name,
                    found: *found,
                    open: None,
                    pages: BTreeMap::new(),
                }),
                None => log::error!(
                    "there is no {} in this machine for {}",
                    assignment.selector,
                    assignment.name
                ),
            }
        }
        Ok(Bus {
            root,
            config,
            found,
            owners,
            devices,
            messages,
            free,
            tables: BTreeMap::new(),
            protected: facts.iommu != Iommu::None,
        })
    }

    /// Says what there is, and whose it is.
    fn list(&self) {
        for found in &self.found {
            let owner = self.owners.iter().find(|owner| owner.found.id == found.id);
            log::info!(
                "{} {:04x}:{:04x} class {:06x}{}{}",
                found.id,
                found.vendor,
                found.device,
                found.class,
                if owner.is_some() { ", for " } else { "" },
                owner.map_or("", |owner| owner.name.as_str()),
            );
        }
    }

    fn owner(&mut self, badge: u64) -> Result<usize, PciError> {
        let owner = self.owners.iter().position(|owner| owner.badge == badge);
        owner.ok_or(PciError::NoFunction)
    }

    fn opened(&mut self, badge: u64) -> Result<(&mut Open, &mut Access), PciError> {
        let index = self.owner(badge)?;
        let owner = self.owners.get_mut(index).ok_or(PciError::NoFunction)?;
        let open = owner.open.as_mut().ok_or(PciError::NotOpen)?;
        Ok((open, &mut self.config))
    }

    fn write(&mut self, id: Id, table: Option<Registers>, writes: &[Write]) {
        for write in writes {
            match *write {
                Write::Config { offset, value } => self.config.write(id, offset, value),
                Write::Table { offset, value } => {
                    if let Some(table) = table {
                        table.write32(offset, value);
                    }
                }
            }
        }
    }

    /// Takes back what was given for a function before. A driver that still runs faults when it touches it.
    fn close(&mut self, open: Open) {
        for (right, line) in open.interrupts.into_values() {
            match right.delete() {
                Ok(()) => self.free.push(line),
                Err(status) => log::error!("interrupt {line} is lost: {status:?}"),
            }
        }
        if let Err(status) = open.device.delete() {
            log::error!("{} is not taken back: {status:?}", open.function.id);
        }
    }

    /// Resets a function that knows how.
    fn reset(&mut self, id: Id, express: u8) -> Result<(), PciError> {
        let saved = function::begin_reset(&mut self.config, id, express);
        for _ in 0..RESET_MOST {
            let wait = time::microseconds(RESET_MICROSECONDS);
            time::sleep_until(time::now().saturating_add(wait)).map_err(core)?;
            if function::end_reset(&mut self.config, id, &saved) {
                return Ok(());
            }
        }
        Err(PciError::Dead)
    }

    /// The MSI-X table of a function, mapped.
    fn table(&mut self, function: &Function) -> Result<Option<Registers>, PciError> {
        let Some(msix) = function.msix else {
            return Ok(None);
        };
        if let Some(known) = self.tables.get(&function.id) {
            return Ok(Some(*known));
        }
        let (bar, offset) = msix.table;
        let place = function.bars.get(usize::from(bar));
        let base = place.ok_or(PciError::NoSuch)?.base;
        let table = map(&self.root, base + offset, msix.table_bytes())?;
        self.tables.insert(function.id, table);
        Ok(Some(table))
    }

    /// True if registers of another function lie in a page: its driver would have them.
    fn is_shared(&mut self, id: Id, page: u64) -> bool {
        let others: Vec<(Id, usize)> = self
            .found
            .iter()
            .filter(|found| found.id != id)
            .map(|found| (found.id, if found.header == 0 { 6 } else { 2 }))
            .collect();
        others.into_iter().any(|(other, bars)| {
            function::bases(&mut self.config, other, bars)
                .into_iter()
                .any(|base| base & !(PAGE - 1) == page)
        })
    }

    /// The driver has attached it, or nobody can.
    fn is_attached(&self, device: Cap<cap::Device>) -> Result<bool, PciError> {
        let seen = inspect(OWN, device.slot()).map_err(core)?;
        Ok(!self.protected || seen.more & ATTACHED != 0)
    }
}

impl PciServer for Bus {
    fn open(&mut self, client: u64) -> Result<(pci::Function, Cap<cap::Device>), PciError> {
        let index = self.owner(client)?;
        let owner = self.owners.get_mut(index).ok_or(PciError::NoFunction)?;
        let (found, name) = (owner.found, owner.name.clone());
        let old = owner.open.take();
        for page in owner.pages.values() {
            if let Err(status) = page.revoke() {
                log::error!("registers are not taken back: {status:?}");
            }
        }
        function::set_bus(&mut self.config, found.id, false);
        if let Some(old) = old {
            self.close(old);
        }
        let function = Function::read(&mut self.config, found.id);
        self.write(found.id, None, &function.silence);
        if let Some(express) = function.reset {
            self.reset(found.id, express)?;
        }
        function::set_bus(&mut self.config, found.id, false);
        let table = self.table(&function)?;
        if let Some(msix) = function.msix {
            self.write(found.id, table, &msix.off());
        }
        let one = u64::from(found.id.0) | 1 << 32;
        let device = self.devices.mint(Rights::ALL, one).map_err(core)?;
        let vectors = match (self.messages, function.msix, function.msi) {
            (None, ..) | (_, None, None) => 0,
            (_, Some(msix), _) => msix.entries.min(VECTORS_MOST),
            (_, None, Some(_)) => 1,
        };
        let answer = pci::Function {
            id: found.id.0,
            vendor: found.vendor,
            device: found.device,
            subsystem_vendor: function.subsystem.0,
            subsystem: function.subsystem.1,
            class: found.class,
            revision: found.revision,
            bars: function.bars.map(|place| place.bar),
            vectors,
            vendor_capabilities: function.vendor.len() as u8,
            protected: self.protected,
        };
        log::info!("{} goes to {name}", found.id);
        if let Some(owner) = self.owners.get_mut(index) {
            owner.open = Some(Open {
                function,
                device,
                interrupts: BTreeMap::new(),
            });
        }
        Ok((answer, device))
    }

    fn page(&mut self, client: u64, bar: u8, page: u32) -> Result<Cap<cap::Frame>, PciError> {
        let (open, _) = self.opened(client)?;
        let (id, address) = (open.function.id, open.function.page(bar, page)?);
        if self.is_shared(id, address) {
            return Err(PciError::Reserved);
        }
        let index = self.owner(client)?;
        let owner = self.owners.get_mut(index).ok_or(PciError::NoFunction)?;
        if let Some(known) = owner.pages.get(&address) {
            return Ok(*known);
        }
        if owner.pages.len() >= PAGES_MOST {
            return Err(PciError::TooMany);
        }
        let frame = frame(&self.root, address, ORDER_4K)?;
        owner.pages.insert(address, frame);
        Ok(frame)
    }

    fn vendor_capability(&mut self, client: u64, index: u8) -> Result<Bytes<64>, PciError> {
        let (open, config) = self.opened(client)?;
        let bytes = open.function.vendor_bytes(config, index);
        bytes.map(Bytes).ok_or(PciError::NoSuch)
    }

    fn interrupt(&mut self, client: u64, vector: u16) -> Result<Cap<cap::Interrupt>, PciError> {
        let (open, _) = self.opened(client)?;
        if let Some((known, _)) = open.interrupts.get(&vector) {
            return Ok(*known);
        }
        let (function, device) = (open.function.clone(), open.device);
        let all = self.messages.ok_or(PciError::NoInterrupts)?;
        let there = match (function.msix, function.msi) {
            (Some(msix), _) => vector < msix.entries.min(VECTORS_MOST),
            (None, Some(_)) => vector == 0,
            (None, None) => false,
        };
        if !there {
            return Err(PciError::NoSuch);
        }
        let (right, line, word) = loop {
            let line = self.free.pop().ok_or(PciError::NoInterrupts)?;
            let right = all.mint(Rights::ALL, u64::from(line) | 1 << 32);
            let right = right.map_err(core)?;
            match right.source(device) {
                Ok(word) => break (right, line, word),
                Err(status) => {
                    let _ = right.delete();
                    // Another driver's, from before this component was started again.
                    if status != Status::Busy {
                        self.free.push(line);
                        return Err(core(status));
                    }
                }
            }
        };
        let message = Message::from_word(word).ok_or(PciError::NoInterrupts)?;
        let table = self.table(&function)?;
        let writes = match (function.msix, function.msi) {
            (Some(msix), _) => msix.on(vector, message),
            (None, Some(msi)) => Some(msi.on(message)),
            (None, None) => None,
        };
        self.write(function.id, table, &writes.ok_or(PciError::NoSuch)?);
        let (open, _) = self.opened(client)?;
        open.interrupts.insert(vector, (right, line));
        Ok(right)
    }

    fn enable(&mut self, client: u64) -> Result<(), PciError> {
        let (open, _) = self.opened(client)?;
        let (id, device) = (open.function.id, open.device);
        if !self.is_attached(device)? {
            return Err(PciError::NotAttached);
        }
        function::set_bus(&mut self.config, id, true);
        Ok(())
    }

    fn disable(&mut self, client: u64) -> Result<(), PciError> {
        let (open, config) = self.opened(client)?;
        function::set_bus(config, open.function.id, false);
        Ok(())
    }
}

impl Notified for Bus {
    fn notified(&mut self, _bits: u64) {}
}
