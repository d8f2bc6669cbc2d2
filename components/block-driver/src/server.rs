//! Interface `block` over an [`Engine`]: attaches clients, sleeps until a client, the device or the
//! clock has something, and dies of a device that is lost: root starts the driver anew, and clients put
//! to it what was not answered.

use alloc::string::String;
use alloc::vec::Vec;

use idl::block::{Attached, Block, BlockError, BlockServer};
use idl::requests::RequestPage;
use sdk::dma::{Region, Space};
use sdk::memory;
use sdk::prelude::*;
use sdk::time;

use crate::Failed;
use crate::engine::{Device, Engine};
use crate::function::{Given, STOPPED_BIT};

/// Bit of the own notification by which clients say that they submitted.
const CLIENT_BIT: u64 = 1 << 41;
/// How long an attachment waits for requests of the one before.
const DRAIN_MICROSECONDS: u64 = 1_000_000;
/// How often a device without interrupts is looked at while it has requests.
pub const POLL_MICROSECONDS: u64 = 500;

/// What root gave for one client, and how to wake it.
struct Peer {
    badge: u64,
    frame: Cap<cap::Frame>,
    wake: Option<Cap<cap::Notification>>,
}

struct Server<D> {
    engine: Engine<D>,
    peers: Vec<Peer>,
    own: Cap<cap::Notification>,
    given: Given,
}

/// Milliseconds for [`Device::now`].
pub fn now() -> u64 {
    time::now() / time::tsc_khz()
}

/// Serves for ever what `start` brings up: given the function, what maps memory for it, and memory
/// for its queues.
pub fn main<D: Device>(
    env: Env,
    start: impl FnOnce(&Env, &Given, &Space, Region) -> Result<D, Failed>,
) {
    let endpoint = env.endpoint("block");
    let mut server = match prepare(&env, start) {
        Ok(server) => server,
        Err(why) => panic!("no disk: {why}"),
    };
    let receiver = env
        .notification()
        .bind_messages(env.thread())
        .and_then(|()| Receiver::new(endpoint, REPLY, 1));
    match SupervisorClient::connect(env.transport("supervisor")).map(|root| root.ready()) {
        Ok(Ok(())) => {}
        other => log::error!("root does not hear that the disk is served: {other:?}"),
    }
    match receiver {
        Ok(mut receiver) => {
            let why = server.serve(&mut receiver);
            server.engine.device.halt();
            panic!("{why}");
        }
        Err(status) => panic!("cannot receive: {status:?}"),
    }
}

/// The ring's page at the start of a client's memory.
#[allow(unsafe_code)]
fn page(memory: Region) -> &'static RequestPage {
    // SAFETY: `Space::map` mapped it, writable, for good: the memory is root's. Clients write it at
    // any time, and the page consists of atomics that take any bytes.
    unsafe { memory::shared_at(memory.address()) }
}

fn prepare<D: Device>(
    env: &Env,
    start: impl FnOnce(&Env, &Given, &Space, Region) -> Result<D, Failed>,
) -> Result<Server<D>, String> {
    if env.dma.count == 0 {
        env.missing("dma", "2M");
    }
    let given = Given::open(env)?;
    let core = |status: Status| alloc::format!("memory for the device: {status:?}");
    let mut space = Space::new(given.function.protected).map_err(core)?;
    let queues = space.map(&env.dma).map_err(core)?;
    let (mut clients, mut peers) = (Vec::new(), Vec::new());
    for share in &env.shares {
        let memory = space.map(&share.memory).map_err(core)?;
        clients.push((page(memory), memory.bus(), memory.bytes() as u32));
        peers.push(Peer {
            badge: share.client,
            frame: Cap::new(share.memory.slot),
            wake: None,
        });
    }
    let device = start(env, &given, &space, queues)?;
    let own = env.notification().mint(Rights::SIGNAL, CLIENT_BIT);
    Ok(Server {
        engine: Engine::new(device, clients),
        peers,
        own: own.map_err(core)?,
        given,
    })
}

impl<D: Device> Server<D> {
    /// When to wake although nothing came.
    fn deadline(&self) -> u64 {
        let look = self.engine.deadline();
        let look = look.map_or(FOREVER, |at| at.saturating_mul(time::tsc_khz()));
        let silent = self.given.function.vectors == 0;
        match self.engine.is_busy() && silent {
            true => time::now()
                .saturating_add(time::microseconds(POLL_MICROSECONDS))
                .min(look),
            false => look,
        }
    }

    /// Until the device is lost, or the core refuses to receive.
    fn serve(&mut self, receiver: &mut Receiver) -> String {
        loop {
            match receiver.receive(self.deadline()) {
                Ok(Received::Message(message)) => {
                    // The caller may be gone when the answer comes: nothing to do about that.
                    let _ = receiver.answer::<Block, _>(message, self);
                }
                Ok(Received::Notification(bits)) if bits & STOPPED_BIT != 0 => {
                    return match self.given.stopped() {
                        Some(why) => alloc::format!(
                            "the IOMMU stopped the device: it wanted to {} {:#x} (reason {:#x})",
                            if why.write { "write" } else { "read" },
                            why.address,
                            why.reason
                        ),
                        None => "the IOMMU stopped the device".into(),
                    };
                }
                Ok(Received::Notification(_)) | Err(Status::Timeout) => {}
                Err(
                    Status::CapsRefused | Status::Aborted | Status::Cancelled | Status::Restarted,
                ) => {}
                Err(status) => return alloc::format!("cannot serve: {status:?}"),
            }
            let peers = &mut self.peers;
            if let Err(why) = self.engine.work(|client| wake(peers, client)) {
                return why;
            }
        }
    }

    fn attach_client(
        &mut self,
        badge: u64,
        wake: Cap<cap::Notification>,
    ) -> Result<(Attached, Cap<cap::Frame>, Cap<cap::Notification>), BlockError> {
        let found = self.peers.iter().position(|peer| peer.badge == badge);
        let index = found.ok_or(BlockError::NoMemory)?;
        // Nothing of the attachment before may be written into the memory later.
        self.engine.detach(index);
        let end = time::now().saturating_add(time::microseconds(DRAIN_MICROSECONDS));
        while self.engine.open(index) > 0 {
            self.engine.complete();
            if time::now() > end {
                return Err(BlockError::Busy);
            }
        }
        let shared_bytes = self.engine.attach(index).ok_or(BlockError::Busy)?;
        let peer = self.peers.get_mut(index).ok_or(BlockError::NoMemory)?;
        if let Some(old) = peer.wake.replace(wake) {
            let _ = old.delete();
        }
        let attached = Attached {
            geometry: self.engine.device.geometry(),
            shared_bytes,
        };
        Ok((attached, peer.frame, self.own))
    }
}

/// Wakes a client that has answers.
fn wake(peers: &mut [Peer], client: usize) {
    if let Some(peer) = peers.get_mut(client)
        && let Some(wake) = peer.wake
        && wake.signal(1).is_err()
    {
        // Gone; its next instance attaches anew.
        let _ = wake.delete();
        peer.wake = None;
    }
}

impl<D: Device> BlockServer for Server<D> {
    fn attach(
        &mut self,
        client: u64,
        wake: Cap<cap::Notification>,
    ) -> Result<(Attached, Cap<cap::Frame>, Cap<cap::Notification>), BlockError> {
        let outcome = self.attach_client(client, wake);
        if outcome.is_err() {
            let _ = wake.delete();
        }
        outcome
    }
}
