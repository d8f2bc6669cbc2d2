//! The disk: clients' rings on one side, the device's queues on the other.

use alloc::string::String;
use alloc::vec::Vec;

use idl::block::{Attached, Block, BlockError, BlockServer};
use idl::requests::{
    Answer, Checked, Damaged, DriverRing, Operation, RequestPage, Status as Ended,
};
use sdk::dma::{Region, Space};
use sdk::memory;
use sdk::prelude::*;
use sdk::time;
use virtio_block::layout::SECTOR;
use virtio_block::queue::{Data, Kind};

use crate::device::{Device, POLL_MICROSECONDS, STOPPED_BIT, open};

/// Bit of the own notification by which clients say that they submitted.
const CLIENT_BIT: u64 = 1 << 41;
/// How long an attachment waits for requests of the one before.
const DRAIN_MICROSECONDS: u64 = 1_000_000;

/// Whose request: number of the client, and what it called it.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    client: usize,
    id: u32,
}

/// A client that root knows, attached or not.
struct Client {
    badge: u64,
    frame: Cap<cap::Frame>,
    memory: Region,
    page: &'static RequestPage,
    ring: Option<DriverRing<'static>>,
    wake: Option<Cap<cap::Notification>>,
    /// Requests with the device.
    open: u32,
    /// It has not been told of its last answers.
    tell: bool,
}

struct Server {
    device: Device,
    clients: Vec<Client>,
    peer: Cap<cap::Notification>,
}

/// Serves for ever.
pub fn main(env: Env) {
    let endpoint = env.endpoint("block");
    match prepare(&env) {
        Ok(mut server) => {
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
                    server.device.halt();
                    panic!("{why}");
                }
                Err(status) => panic!("cannot receive: {status:?}"),
            }
        }
        Err(why) => panic!("no disk: {why}"),
    }
}

fn prepare(env: &Env) -> Result<Server, String> {
    if env.dma.count == 0 {
        env.missing("dma", "2M");
    }
    let given = open(env)?;
    let core = |status: Status| alloc::format!("memory for the device: {status:?}");
    let mut space = Space::new(given.1.protected).map_err(core)?;
    let queues = space.map(&env.dma).map_err(core)?;
    let mut clients = Vec::new();
    for share in &env.shares {
        let memory = space.map(&share.memory).map_err(core)?;
        // SAFETY: just mapped, writable, for good: the memory is root's. Clients write it at any
        // time, and the page takes any bytes.
        let page: &'static RequestPage = unsafe { memory::shared_at(memory.address()) };
        clients.push(Client {
            badge: share.client,
            frame: Cap::new(share.memory.slot),
            memory,
            page,
            ring: None,
            wake: None,
            open: 0,
            tell: false,
        });
    }
    let device = Device::start(env, given, &space, queues)?;
    let peer = env.notification().mint(Rights::SIGNAL, CLIENT_BIT);
    Ok(Server {
        device,
        clients,
        peer: peer.map_err(core)?,
    })
}

impl Server {
    /// Until the device fails, or the core refuses to receive.
    fn serve(&mut self, receiver: &mut Receiver) -> String {
        loop {
            let busy = self
                .device
                .queues
                .iter()
                .any(|line| line.queue.in_flight() > 0);
            let deadline = match busy && !self.device.interrupts {
                true => time::now().saturating_add(time::microseconds(POLL_MICROSECONDS)),
                false => FOREVER,
            };
            match receiver.receive(deadline) {
                Ok(Received::Message(message)) => {
                    // The caller may be gone when the answer comes: nothing to do about that.
                    let _ = receiver.answer::<Block, _>(message, self);
                }
                Ok(Received::Notification(bits)) if bits & STOPPED_BIT != 0 => {
                    return match self.device.stopped() {
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
            if let Err(why) = self.work() {
                return why.into();
            }
        }
    }

    /// Moves what can be moved, both ways.
    fn work(&mut self) -> Result<(), &'static str> {
        loop {
            let answered = self.complete()?;
            let taken = self.take();
            self.tell();
            if !answered && !taken {
                return match self.device.is_broken() {
                    true => Err("the device gave up"),
                    false => Ok(()),
                };
            }
        }
    }

    /// Answers what the device completed; true if there was something.
    fn complete(&mut self) -> Result<bool, &'static str> {
        let mut any = false;
        for line in &mut self.device.queues {
            loop {
                match line.queue.complete() {
                    Ok(None) => break,
                    Ok(Some(done)) => {
                        any = true;
                        if let Some(client) = self.clients.get_mut(done.token.client) {
                            client.open = client.open.saturating_sub(1);
                            client.answer(Answer {
                                id: done.token.id,
                                status: if done.good {
                                    Ended::Done
                                } else {
                                    Ended::Device
                                },
                            });
                        }
                    }
                    Err(_) => return Err("the device completed what it was not given"),
                }
            }
        }
        Ok(any)
    }

    /// Gives the device what clients submitted; true if there was something.
    fn take(&mut self) -> bool {
        let geometry = self.device.geometry;
        let count = self.device.queues.len().max(1);
        let mut any = false;
        for (index, client) in self.clients.iter_mut().enumerate() {
            let Some(line) = self.device.queues.get_mut(index % count) else {
                continue;
            };
            let mut announce = false;
            // One client's turn ends when the ring was gone through once.
            for _ in 0..idl::requests::SLOTS {
                if !line.queue.has_room() {
                    break;
                }
                let Some(ring) = &mut client.ring else {
                    break;
                };
                let request = match ring.take() {
                    Ok(Some(request)) => request,
                    Ok(None) => break,
                    Err(Damaged) => {
                        ring.damaged();
                        client.tell = true;
                        break;
                    }
                };
                any = true;
                let status = match request.check(&geometry, client.memory.bytes() as u32) {
                    Err(status) => Some(status),
                    Ok(checked)
                        if checked.operation == Operation::Flush && !geometry.write_cache =>
                    {
                        Some(Ended::Done)
                    }
                    Ok(checked) => {
                        let token = Token {
                            client: index,
                            id: checked.id,
                        };
                        let (kind, sector, data) =
                            wire(&checked, &client.memory, geometry.block_bytes);
                        match line.queue.submit(kind, sector, data, token) {
                            Ok(()) => {
                                client.open += 1;
                                announce = true;
                                None
                            }
                            // There was room a moment ago.
                            Err(_) => Some(Ended::Device),
                        }
                    }
                };
                if let Some(status) = status {
                    client.answer(Answer {
                        id: request.id,
                        status,
                    });
                }
            }
            if announce {
                line.announce();
            }
        }
        any
    }

    /// Wakes those who have answers.
    fn tell(&mut self) {
        for client in self.clients.iter_mut().filter(|client| client.tell) {
            client.tell = false;
            if let Some(wake) = client.wake
                && wake.signal(1).is_err()
            {
                // Gone; its next instance attaches anew.
                let _ = wake.delete();
                client.wake = None;
            }
        }
    }

    fn attach_client(
        &mut self,
        badge: u64,
        wake: Cap<cap::Notification>,
    ) -> Result<(Attached, Cap<cap::Frame>, Cap<cap::Notification>), BlockError> {
        let found = self.clients.iter().position(|client| client.badge == badge);
        let index = found.ok_or(BlockError::NoMemory)?;
        // Nothing of the attachment before may be written into the memory later.
        if let Some(client) = self.clients.get_mut(index) {
            client.ring = None;
        }
        let end = time::now().saturating_add(time::microseconds(DRAIN_MICROSECONDS));
        while self
            .clients
            .get(index)
            .is_some_and(|client| client.open > 0)
        {
            self.complete().map_err(|_| BlockError::NoDevice)?;
            if time::now() > end {
                return Err(BlockError::Busy);
            }
        }
        let geometry = self.device.geometry;
        let client = self.clients.get_mut(index).ok_or(BlockError::NoMemory)?;
        if let Some(old) = client.wake.replace(wake) {
            let _ = old.delete();
        }
        client.ring = Some(DriverRing::new(client.page));
        let attached = Attached {
            geometry,
            shared_bytes: client.memory.bytes() as u32,
        };
        Ok((attached, client.frame, self.peer))
    }
}

impl Client {
    fn answer(&mut self, answer: Answer) {
        if let Some(ring) = &mut self.ring {
            ring.answer(answer);
            self.tell = true;
        }
    }
}

/// A request as the device takes it.
fn wire(request: &Checked, memory: &Region, block_bytes: u32) -> (Kind, u64, Data) {
    let kind = match request.operation {
        Operation::Read => Kind::In,
        Operation::Write => Kind::Out,
        Operation::Flush => Kind::Flush,
    };
    let data = Data {
        bus: memory.bus() + u64::from(request.offset),
        bytes: request.bytes,
    };
    let sector = request.block * u64::from(block_bytes / SECTOR);
    (kind, sector, data)
}

impl BlockServer for Server {
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
