//! The guest's xenstore: its ring page (Xen public/io/xs_wire.h) and what a toolstack would have
//! put into its store. So far each guest has a store of its own, in here; nobody else sees it.
//!
//! The ring is the guest's to write at any time. Requests are taken only while the answers to
//! earlier ones fit, so that a guest that does not read costs no memory.

use alloc::format;
use alloc::vec::Vec;

use xen_abi::{GuestMemory, Unbacked};
use xenstore::{Access, Connection, Permission, Store};

/// Bytes of each ring: requests at offset 0, answers after them.
const SIZE: u32 = 1024;
const REQUEST_CONS: u64 = 2048;
const REQUEST_PROD: u64 = REQUEST_CONS + 4;
const ANSWER_CONS: u64 = REQUEST_CONS + 8;
const ANSWER_PROD: u64 = REQUEST_CONS + 12;
/// `error`: XENSTORE_ERROR_COMM or XENSTORE_ERROR_RINGIDX.
const ERROR: u64 = REQUEST_CONS + 24;
const ERROR_COMMUNICATION: u32 = 1;
const ERROR_INDEX: u32 = 2;
/// Bytes that may wait for the guest before requests have to wait.
const BACKLOG: usize = 8192;

/// What the store says of a guest.
pub struct Facts<'a> {
    /// Domain id.
    pub domain: u16,
    /// Its name.
    pub name: &'a str,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Frame of its console ring, and the port.
    pub console: (u64, u32),
    /// Frame of its store ring, and the port.
    pub store: (u64, u32),
}

/// Nodes that the guest may write: its answers to orders, and facts about itself.
const OWN: [&str; 10] = [
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
];

/// A guest's store and its ring.
pub struct StoreRing {
    /// Guest-physical address of the page.
    address: u64,
    connection: Connection,
    broken: bool,
}

/// The store as a toolstack leaves it for a PVH guest without devices (libxl's layout).
fn fill(facts: &Facts<'_>) -> Result<Store, xenstore::Errno> {
    let mut store = Store::new();
    let home = format!("/local/domain/{}", facts.domain);
    let entry = |domain, access| Permission { domain, access };
    let read_only = || Vec::from([entry(0, Access::None), entry(facts.domain, Access::Read)]);
    store.make(&home, 0)?;
    store.set_permissions(&home, read_only(), 0)?;
    let mut put =
        |path: &str, value: &str| store.write(&format!("{home}/{path}"), value.as_bytes(), 0);
    put("name", facts.name)?;
    put("domid", &format!("{}", facts.domain))?;
    for vcpu in 0..facts.vcpus {
        put(&format!("cpu/{vcpu}/availability"), "online")?;
    }
    let memory = format!("{}", facts.memory_kib);
    put("memory/static-max", &memory)?;
    put("memory/target", &memory)?;
    put("console/ring-ref", &format!("{}", facts.console.0))?;
    put("console/port", &format!("{}", facts.console.1))?;
    put("console/type", "xenconsoled")?;
    put("store/ring-ref", &format!("{}", facts.store.0))?;
    put("store/port", &format!("{}", facts.store.1))?;
    put("device", "")?;
    for own in OWN {
        put(own, "")?;
    }
    for own in OWN {
        let owner = Vec::from([entry(facts.domain, Access::None)]);
        store.set_permissions(&format!("{home}/{own}"), owner, 0)?;
    }
    Ok(store)
}

impl StoreRing {
    /// The store of a guest whose ring page is at guest-physical `address`.
    pub fn new(address: u64, facts: &Facts<'_>) -> Result<StoreRing, xenstore::Errno> {
        Ok(StoreRing {
            address,
            connection: Connection::new(facts.domain, fill(facts)?),
            broken: false,
        })
    }

    /// Carries out what the guest asked and gives it answers, as far as there is room. Answers
    /// whether anything moved: then the guest is to be told.
    pub fn serve<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Unbacked> {
        if self.broken {
            return Ok(false);
        }
        let mut moved = false;
        // Each turn empties what the guest could put into the ring meanwhile; a guest that goes on
        // for ever gets its next turn with its next event.
        for _ in 0..16 {
            let took = self.requests(memory)?;
            let gave = self.answers(memory)?;
            moved |= took || gave;
            if !took || self.broken {
                break;
            }
        }
        Ok(moved)
    }

    fn requests<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Unbacked> {
        let consumer = memory.read_u32(self.address + REQUEST_CONS)?;
        let producer = memory.read_u32(self.address + REQUEST_PROD)?;
        let used = producer.wrapping_sub(consumer);
        if used > SIZE {
            return self.break_off(memory, ERROR_INDEX);
        }
        if used == 0 || self.connection.pending() > BACKLOG {
            return Ok(false);
        }
        let mut ring = [0; SIZE as usize];
        memory.read(self.address, &mut ring)?;
        let start = (consumer % SIZE) as usize;
        ring.rotate_left(start);
        let requests = ring.get(..used as usize).unwrap_or(&[]);
        let received = self.connection.receive(requests);
        memory.write_u32(self.address + REQUEST_CONS, producer)?;
        if received.is_err() {
            return self.break_off(memory, ERROR_COMMUNICATION);
        }
        Ok(true)
    }

    fn answers<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Unbacked> {
        let consumer = memory.read_u32(self.address + ANSWER_CONS)?;
        let mut producer = memory.read_u32(self.address + ANSWER_PROD)?;
        let used = producer.wrapping_sub(consumer);
        if used > SIZE {
            return self.break_off(memory, ERROR_INDEX);
        }
        let mut room = SIZE - used;
        let mut moved = false;
        while room > 0 && self.connection.pending() > 0 {
            let start = producer % SIZE;
            let piece = self.connection.take(room.min(SIZE - start) as usize);
            memory.write(self.address + u64::from(SIZE + start), &piece)?;
            producer = producer.wrapping_add(piece.len() as u32);
            room -= piece.len() as u32;
            moved = true;
        }
        if moved {
            memory.write_u32(self.address + ANSWER_PROD, producer)?;
        }
        Ok(moved)
    }

    /// The stream makes no sense any more: says so in the page and stops.
    fn break_off<M: GuestMemory>(&mut self, memory: &M, error: u32) -> Result<bool, Unbacked> {
        log::warn!("guest broke its xenstore ring ({error}): closed");
        self.broken = true;
        memory.write_u32(self.address + ERROR, error)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
