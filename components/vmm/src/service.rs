//! The service thread: carries bytes between the guest's console ring and the console component, and
//! messages between its store ring and the store, and tells root when the domain stops. It runs when
//! its notification has bits, otherwise not.

use alloc::vec::Vec;
use core::fmt::Write;

use idl::console::ClientKind;
use idl::supervisor::Detail;
use sdk::console::{self, Attached};
use sdk::prelude::*;
use sdk::startup::PEERS;

use crate::ask;
use crate::env::{Effects, NOBODY};
use crate::peers::Peers;
use crate::shared::{Shared, service};
use crate::stop::Reason;
use vmm_guest::console::GuestRing;
use vmm_guest::store::{Gone, Server, StoreRing};

/// Attaches the guest to the console component.
pub fn attach(
    transport: EndpointTransport,
    guest: &str,
    own: Cap<cap::Notification>,
) -> Result<Attached, console::AttachError> {
    let wake = own
        .mint(Rights::SIGNAL, service::CONSOLE)
        .map_err(console::AttachError::Core)?;
    console::attach(transport, guest, ClientKind::Guest, wake)
}

/// The store at the other end of the guest's ring.
pub struct StoreServer(pub sdk::store::Store);

fn gone(error: sdk::store::Error) -> Gone {
    log::error!("the guest's store is gone: {error:?}");
    Gone
}

impl Server for StoreServer {
    fn exchange(&mut self, message: &[u8]) -> Result<Vec<u8>, Gone> {
        self.0.exchange(message).map_err(gone)
    }

    fn events(&mut self) -> Result<Vec<u8>, Gone> {
        let mut events = Vec::new();
        // What is fetched may be less than one event.
        while events.is_empty() && self.0.has_events() {
            events = self.0.fetch().map_err(gone)?;
        }
        Ok(events)
    }
}

/// What the service thread serves.
pub struct Service {
    /// What all threads share.
    pub shared: &'static Shared,
    /// The guest's console ring and its event channel.
    pub console: (GuestRing, u32),
    /// Where the console comes out, if anywhere.
    pub attached: Option<Attached>,
    /// The guest's store ring and its event channel, if it is wired to a store.
    pub store: Option<(StoreRing<StoreServer>, u32)>,
    /// Who may use the guest's grants and event channels, if anybody.
    pub peers: Option<(Peers, Receiver)>,
    /// When to look for vCPUs' threads that have waited too long.
    pub watch: u64,
}

impl Service {
    /// Waits for bits, and answers requests meanwhile.
    fn next(&mut self) -> Result<u64, Status> {
        loop {
            let bits = match self.next_before(self.watch) {
                Err(Status::Timeout) => service::WATCH,
                other => other?,
            };
            if bits & service::WATCH != 0 {
                self.watch = ask::watch(self.shared);
            }
            if bits & !service::WATCH != 0 {
                return Ok(bits);
            }
        }
    }

    fn next_before(&mut self, deadline: u64) -> Result<u64, Status> {
        let Some((peers, receiver)) = &mut self.peers else {
            return self.shared.service.wait(deadline);
        };
        loop {
            match receiver.receive(deadline) {
                Ok(Received::Notification(bits)) => return Ok(bits),
                Ok(Received::Message(message)) => peers.answer(receiver, message),
                // A caller that vanished, or whose capability did not fit.
                Err(
                    Status::CapsRefused | Status::Aborted | Status::Cancelled | Status::Restarted,
                ) => {}
                Err(status) => return Err(status),
            }
        }
    }

    /// Serves until the domain stops.
    pub fn run(&mut self, supervisor: EndpointTransport) {
        let shared = self.shared;
        let page = self.attached.as_ref().map(|attached| attached.page);
        let mut writer = page.map(|page| page.output.writer());
        let mut reader = page.map(|page| page.input.reader());
        loop {
            let bits = match self.next() {
                Ok(bits) => bits,
                Err(status) => {
                    log::error!("service thread cannot wait: {status:?}");
                    return;
                }
            };
            let (ring, port) = &self.console;
            let mut gone = false;
            // In the end, what the guest wrote last.
            let console = service::CONSOLE | service::GUEST_CONSOLE | service::STOPPED | PEERS;
            if let (Some(attached), Some(writer), Some(reader)) =
                (&mut self.attached, writer.as_mut(), reader.as_mut())
                && bits & console != 0
            {
                // A ring page that the guest took out of its memory carries nothing.
                let out = ring.output(&shared.ram, writer).unwrap_or(false);
                let input = ring.input(&shared.ram, reader).unwrap_or(false);
                // A console that was started again has to be told who is here.
                if (out || input || bits & PEERS != 0)
                    && let Err(error) = attached.signal()
                {
                    // It stays down; the guest goes on without one.
                    log::warn!("the guest's console is gone: {error:?}");
                    gone = true;
                }
                if out || input {
                    notify_guest(shared, *port);
                }
            }
            if gone {
                self.attached = None;
            }
            let store = bits & (service::GUEST_STORE | service::STORE | PEERS);
            if let Some((ring, port)) = &mut self.store
                && store != 0
            {
                if store != service::GUEST_STORE {
                    ring.server.0.woken();
                }
                if ring.serve(&shared.ram).unwrap_or(false) {
                    notify_guest(shared, *port);
                }
            }
            if let Some((peers, _)) = &mut self.peers
                && bits & (service::CALLERS | PEERS) != 0
            {
                peers.woken(bits);
                if bits & PEERS != 0 {
                    peers.lost();
                }
            }
            if bits & PEERS != 0 {
                shared.foreign.lock().lost();
            }
            if bits & service::FOREIGN != 0 {
                let mut domain = shared.domain.lock();
                shared.foreign.lock().woken(bits, shared, &mut domain);
            }
            if bits & service::STOPPED != 0
                && let Some(reason) = shared.stop.reason()
            {
                report(shared, reason, supervisor);
                return;
            }
        }
    }
}

fn notify_guest(shared: &Shared, port: u32) {
    let mut effects = Effects::new(shared, NOBODY, None);
    let mut domain = shared.domain.lock();
    // The guest may have closed the port: then it does not want to know.
    let _ = domain.notify_guest(port, &shared.ram, &mut effects);
}

fn report(shared: &Shared, reason: Reason, supervisor: EndpointTransport) {
    let mut detail = Detail::new();
    // A text that is cut is still a text.
    let _ = match reason {
        Reason::Unsupported {
            vcpu,
            rip,
            what,
            word,
        } => write!(detail, "vCPU {vcpu} at {rip:#x}: {what} ({word:#x})"),
        Reason::TripleFault { vcpu, rip } => {
            write!(detail, "vCPU {vcpu} at {rip:#x}: triple fault")
        }
        Reason::AllDown => write!(detail, "every vCPU halted with interrupts off"),
        Reason::Guest(reason) => write!(detail, "SCHEDOP_shutdown: {reason:?}"),
    };
    shared.lines.lock().flush();
    log::info!("stopped: {detail}");
    sdk::logging::flush();
    match SupervisorClient::connect(supervisor) {
        Ok(client) => {
            if let Err(error) = client.guest_stopped(reason.report(), detail) {
                log::error!("root did not take the guest's end: {error:?}");
            }
        }
        Err(error) => log::error!("root does not listen: {error:?}"),
    }
}
