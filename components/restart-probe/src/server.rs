//! Serves `bench`, and dies in the way it is asked to.

use idl::Bytes;
use idl::bench::{Bench, BenchServer};
use sdk::prelude::*;
use sdk::startup::{SLOT_FIRST, SLOT_REPLY};

/// Answer with the same bytes.
pub const ECHO: u8 = b'e';
/// Log what is in the own capability space as root left it, then answer.
pub const LIST: u8 = b'l';
/// Write to memory that is not there.
pub const FAULT: u8 = b'f';
/// Use a capability for what it is not, and panic over the refusal.
pub const REFUSED: u8 = b'r';

/// Where [`FAULT`] writes: user addresses that nobody maps.
const FORBIDDEN: u64 = 0x7000_dead_b000;

struct Server {
    /// First slot that root left empty.
    free: u32,
}

impl BenchServer for Server {
    fn echo(&mut self, _client: u64, bytes: Bytes<31>) -> Bytes<31> {
        match bytes.0.first() {
            Some(&LIST) => list(self.free),
            Some(&FAULT) => write_to_forbidden_ground(FORBIDDEN),
            Some(&REFUSED) => misuse_a_capability(),
            _ => {}
        }
        bytes
    }
}

impl Notified for Server {
    fn notified(&mut self, _bits: u64) {}
}

/// The name that the crash report has to show.
#[inline(never)]
fn write_to_forbidden_ground(address: u64) {
    // SAFETY: nothing is mapped there, so nothing changes: the thread faults, which is what the
    // caller wants to see.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(address as usize).write_volatile(1) }
}

#[inline(never)]
fn misuse_a_capability() {
    let endpoint = Cap::<cap::Notification>::new(SLOT_FIRST);
    if let Err(status) = endpoint.signal(1) {
        panic!("an endpoint is no notification: {status:?}");
    }
}

fn list(free: u32) {
    for slot in 1..free {
        match inspect(OWN, slot) {
            Ok(found) if found.kind != sdk::abi::Kind::Null => log::info!(
                "holds {slot} {:?} {:#x} {:#x}",
                found.kind,
                found.rights.0,
                found.number
            ),
            Ok(_) => {}
            Err(status) => log::error!("slot {slot} cannot be looked at: {status:?}"),
        }
    }
    log::info!("holds no more");
}

/// Serves for ever.
pub fn run(env: &Env) {
    let receiver = Receiver::new(env.endpoint("bench"), Cap::new(SLOT_REPLY), 0);
    match SupervisorClient::connect(env.transport("supervisor")).map(|root| root.ready()) {
        Ok(Ok(())) => {}
        other => log::error!("root does not hear that {} serves: {other:?}", env.name),
    }
    let mut server = Server {
        free: env.free_slot,
    };
    match receiver {
        Ok(mut receiver) => {
            let status = serve::<Bench, _>(&mut receiver, &mut server);
            log::error!("cannot serve: {status:?}");
        }
        Err(status) => log::error!("cannot receive: {status:?}"),
    }
}
