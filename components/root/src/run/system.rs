//! The system as root sees it: which instance is in which state, and what each event leads to.

use alloc::string::String;
use alloc::vec::Vec;

use idl::admin::Admin;
use idl::builder::Builder;
use idl::domains::Domains;
use idl::hardware::Hardware as HardwareInterface;
use idl::manifest::{Component, Manifest};
use idl::operator::{DEFINED_MAX, Operator};
use idl::peers::Peers as PeersInterface;
use idl::ring::RingPage;
use idl::supervisor::{StopReason, Supervisor};
use root_plan::guest::{self, Event, Phase};
use root_plan::plan::{self, ROOT};
use root_plan::restart::History;
use sdk::abi::archive::Archive;
use sdk::abi::boot::{self, Info};
use sdk::memory::{ORDER_4K, Shared, Window};
use sdk::prelude::*;
use sdk::startup::{DmaRight, Machine, Share};

use super::admin::{self, Kills};
use super::bank::Bank;
use super::define::{Defined, add_guest};
use super::domains;
use super::guests::GuestPlace;
use super::hardware::{self, DmaMemory, Hardware};
use super::inbox::{Inbox, News};
use super::instance::{Connection, GuestParts, Instance, Order};
use super::operator::{Desk, Orders, Todo};
use super::{peers, report};

/// Bit of the console's notification by which root announces log lines.
pub const LOG_BIT: u64 = 1 << 63;
/// Interfaces in the low byte of a client's badge.
const SUPERVISOR: u64 = 1;
const BUILDER: u64 = 2;
const OPERATOR: u64 = 3;
const ADMIN: u64 = 4;
const HARDWARE: u64 = 5;
const DOMAINS: u64 = 6;
pub(super) const PEERS: u64 = 7;
/// Bits for faults; instances share them round robin.
pub(super) const FAULT_BITS: usize = 60;
/// Ring pages that a console gets for each possible client: one for its log, one for its guest.
const RING_PAGES: usize = 2;
/// What starting an instance needs.
pub struct Tools {
    /// The core's facts.
    pub info: &'static Info,
    /// The boot archive.
    pub archive: Archive<'static>,
    /// For writing into frames.
    pub window: Window,
    /// RAM.
    pub bank: Bank,
    /// All ports.
    pub ports: Cap<cap::IoPorts>,
    /// All lines.
    pub interrupts: Cap<cap::Interrupt>,
    /// Devices.
    pub hardware: Hardware,
}

impl Tools {
    /// Facts for start-up pages.
    pub fn machine(&self) -> Machine {
        Machine {
            tsc_khz: self.info.tsc_khz,
            cpus: self.info.cpus,
            features: self.info.features,
            wall_seconds: self.info.wall_seconds,
            wall_tsc: self.info.wall_tsc,
            object_frames: self.info.object_frames,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    /// Its thread runs; it has not said that it is ready.
    Starting,
    Ready,
    Down,
}

/// A component, or a guest's builder or VMM: started or not.
pub struct Place {
    /// Name of the instance.
    pub(super) name: String,
    pub(super) component: usize,
    pub(super) guest: Option<usize>,
    pub(super) state: State,
    /// Memory of an earlier run, and its frames.
    pub(super) kept: Option<(Cap<cap::Memory>, u64)>,
    /// Memory for its device, for good.
    pub(super) dma: DmaRight,
    /// Memory that each of its instances gets again.
    pub(super) keep: DmaRight,
    /// Memory that it shares with clients, for good.
    pub(super) shares: Vec<Share>,
    /// The console's ring pages: clients keep theirs over its restarts.
    pub(super) rings: Option<(Cap<cap::Frame>, u32)>,
    /// It runs.
    pub(super) instance: Option<Instance>,
    pub(super) fault: Cap<cap::Notification>,
    pub(super) history: History,
    /// What it died of last.
    pub(super) causes: Vec<report::Cause>,
}

/// Everything.
pub struct System {
    pub(super) tools: Tools,
    pub(super) manifest: Manifest,
    receiver: Receiver,
    pub(super) endpoint: Cap<cap::Endpoint>,
    /// Endpoints of the servers: component, interface, endpoint.
    pub(super) endpoints: Vec<(usize, String, Cap<cap::Endpoint>)>,
    order: Vec<usize>,
    pub(super) places: Vec<Place>,
    pub(super) guests: Vec<GuestPlace>,
    pub(super) defined: Defined,
    pub(super) note: Cap<cap::Notification>,
    log: Shared<RingPage>,
    /// By which root tells the console of log lines.
    log_wake: Option<Cap<cap::Notification>>,
    inbox: Inbox,
    orders: Orders,
    kills: Kills,
}

impl System {
    /// Makes what supervision itself needs; starts nothing.
    pub fn new(
        info: &'static Info,
        archive: Archive<'static>,
        manifest: Manifest,
    ) -> Result<System, Status> {
        let memory = sdk::memory::own();
        let note: Cap<cap::Notification> = memory.retype(0)?;
        note.bind_messages(super::THREAD)?;
        let endpoint: Cap<cap::Endpoint> = memory.retype(0)?;
        let receiver = Receiver::new(endpoint, memory.retype(0)?, 0)?;
        let mut endpoints = Vec::new();
        for (index, component) in manifest.components.iter().enumerate() {
            for interface in &component.serves {
                endpoints.push((index, interface.clone(), memory.retype(0)?));
            }
        }
        let mut places: Vec<Place> = Vec::new();
        // Components keep their index; those that are per guest have a place that stays empty.
        for (index, component) in manifest.components.iter().enumerate() {
            let name = component.name.clone();
            places.push(Place::new(note, index, index, name, None)?);
        }
        let mut guests = Vec::new();
        for index in 0..manifest.guests.len() {
            let domain = plan::domain(index);
            guests.push(add_guest(note, &manifest, &mut places, index, domain)?);
        }
        let defined = Defined::after(guests.len(), places.len())?;
        let clients = |server| hardware::clients(&manifest, &places, server).len() as u32;
        let dma = DmaMemory::needed(&manifest, clients);
        let mut system = System {
            tools: Tools {
                info,
                archive,
                window: Window::new()?,
                bank: Bank::new(info, dma),
                ports: Cap::new(boot::SLOT_IO_PORTS),
                interrupts: Cap::new(boot::SLOT_INTERRUPTS),
                hardware: Hardware::new(info),
            },
            order: plan::start_order(&manifest).map_err(|_| Status::InvalidArgument)?,
            manifest,
            receiver,
            endpoint,
            endpoints,
            places,
            guests,
            defined,
            note,
            log: sdk::memory::shared_page()?,
            log_wake: None,
            inbox: Inbox::default(),
            orders: Orders::default(),
            kills: Kills::default(),
        };
        system.share_out();
        system.say_protection();
        Ok(system)
    }

    /// Starts what can be started.
    pub fn start(&mut self) {
        for index in self.order.clone() {
            if self
                .places
                .get(index)
                .is_none_or(|place| place.state != State::Waiting)
            {
                continue;
            }
            match self.servers_of(index) {
                State::Ready => self.start_component(index),
                State::Down => {
                    log::error!(
                        "component {}: not started: a component that it needs is down",
                        self.places[index].name
                    );
                    self.places[index].state = State::Down;
                }
                State::Waiting | State::Starting => {}
            }
        }
        let settled =
            |index: &usize| matches!(self.places[*index].state, State::Ready | State::Down);
        if self.order.iter().all(settled) {
            for index in 0..self.guests.len() {
                if self.guests[index].phase == Phase::Waiting {
                    self.guest_event(index, Event::Start);
                }
            }
        }
    }

    /// The state of the servers that a component needs, together.
    fn servers_of(&self, index: usize) -> State {
        let component = &self.manifest.components[self.places[index].component];
        let mut all = State::Ready;
        for need in component.needs.iter().filter(|need| need.server != ROOT) {
            let server = self
                .manifest
                .components
                .iter()
                .position(|c| c.name == need.server);
            match server.map(|server| self.places[server].state) {
                Some(State::Ready) => {}
                Some(State::Waiting | State::Starting) => all = State::Starting,
                Some(State::Down) | None => return State::Down,
            }
        }
        all
    }

    pub(super) fn is_console(component: &Component) -> bool {
        component
            .serves
            .iter()
            .any(|interface| interface == "console")
    }

    /// Who serves what an instance needs, in the order of its needs. A guest says which console
    /// shows it.
    pub(super) fn servers(&self, index: usize) -> Vec<&str> {
        let place = &self.places[index];
        let console = place
            .guest
            .map(|guest| self.manifest.guests[guest].console.as_str())
            .filter(|console| !console.is_empty());
        let needs = self.manifest.components[place.component].needs.iter();
        needs
            .map(|need| match console {
                Some(console) if need.interface == "console" => console,
                _ => need.server.as_str(),
            })
            .collect()
    }

    fn connections(&self, index: usize, component: &Component) -> Vec<Connection> {
        let place = &self.places[index];
        let id = index as u64 + 1;
        let mut connections = Vec::new();
        for (need, server) in component.needs.iter().zip(self.servers(index)) {
            let (endpoint, rights, badge) = if need.server == ROOT {
                let interface = match need.interface.as_str() {
                    "builder" => BUILDER,
                    "operator" => OPERATOR,
                    "admin" => ADMIN,
                    "hardware" => HARDWARE,
                    "domains" => DOMAINS,
                    "peers" => PEERS,
                    _ => SUPERVISOR,
                };
                // Answers carry capabilities only where devices are handed out, or connections.
                let rights = match interface {
                    HARDWARE | PEERS => Rights::CALL.or(Rights::GRANT),
                    _ => Rights::CALL,
                };
                (Some(self.endpoint), rights, id << 8 | interface)
            } else {
                let found = self.endpoints.iter().find(|(owner, interface, _)| {
                    self.manifest.components[*owner].name == server && *interface == need.interface
                });
                let rights = Rights::CALL.or(Rights::GRANT);
                // A builder logs, but a guest's console and its domain's nodes are its VMM's.
                let vmm = |guest: &usize| self.guests[*guest].vmm == index;
                let guest = place.guest.filter(vmm);
                let badge = match need.interface.as_str() {
                    "console" => {
                        let operator = plan::rules_guests(component);
                        let number = index as u32;
                        plan::console_badge(&self.manifest, server, number, guest, operator).word()
                    }
                    "store" => {
                        let domain = guest.map(|guest| self.guests[guest].domain);
                        plan::store_badge(index as u32, place.guest, domain).word()
                    }
                    _ => id,
                };
                (found.map(|(.., endpoint)| *endpoint), rights, badge)
            };
            match endpoint {
                Some(endpoint) => connections.push(Connection {
                    interface: need.interface.clone(),
                    server: need.server.clone(),
                    endpoint,
                    rights,
                    badge,
                }),
                None => log::error!("component {}: nobody serves {}", place.name, need.interface),
            }
        }
        connections.extend(self.driver_wire(index));
        connections
    }

    /// Starts the instance at `index`; false if that failed, which is reported.
    pub(super) fn run(&mut self, index: usize, guest: Option<GuestParts<'_>>) -> bool {
        let component = self.manifest.components[self.places[index].component].clone();
        let connections = self.connections(index, &component);
        let serves: Vec<_> = self
            .endpoints
            .iter()
            .filter(|(owner, ..)| *owner == self.places[index].component)
            .map(|(_, interface, endpoint)| (interface.clone(), *endpoint))
            .collect();
        let console = Self::is_console(&component);
        let (clients, guests) = self.known_names(&component);
        let names = self.defined.page(&self.manifest, &component.name);
        if console && self.places[index].rings.is_none() {
            // Each guest that may be defined has a builder and a VMM.
            let places = self.defined.places + 2 * DEFINED_MAX;
            let count = (places * RING_PAGES) as u32;
            match sdk::memory::own().retype_many(ORDER_4K, count) {
                Ok(frames) => self.places[index].rings = Some((frames, count)),
                Err(status) => log::error!("no ring pages for the console: {status:?}"),
            }
        }
        let tell_bus = !self.is_protected();
        let place = &mut self.places[index];
        let order = Order {
            name: &place.name,
            component: &component,
            time: plan::time(component.share, self.tools.info.tsc_khz),
            connections: &connections,
            serves: &serves,
            guest,
            attach: console.then_some((self.log.frame, self.defined.names.frame, names)),
            ring_pages: place.rings,
            dma: place.dma,
            keep: place.keep,
            shares: &place.shares,
            tell_bus,
            clients,
            guests,
            fault: place.fault,
        };
        match Instance::start(&mut self.tools, &mut place.kept, &order) {
            Ok(instance) => {
                if console {
                    // The old one went with the console that it woke; its slot is empty.
                    if let Some(old) = self.log_wake.take() {
                        let _ = old.delete();
                    }
                    match instance.notification.mint(Rights::SIGNAL, LOG_BIT) {
                        Ok(wake) => {
                            sdk::logging::set_ring(self.log.page, wake, LOG_BIT);
                            self.log_wake = Some(wake);
                        }
                        Err(status) => log::error!("root's log stays on the port: {status:?}"),
                    }
                }
                place.instance = Some(instance);
                place.state = if component.serves.is_empty() {
                    State::Ready
                } else {
                    State::Starting
                };
                true
            }
            Err(error) => {
                log::error!("component {}: not started: {error}", place.name);
                place.state = State::Down;
                self.give_kept(index);
                false
            }
        }
    }

    pub(super) fn start_component(&mut self, index: usize) {
        if !self.may_drive(index) {
            self.places[index].state = State::Down;
            self.close(index);
            return;
        }
        if !self.run(index, None) {
            self.close(index);
        }
    }

    /// Gives back what a guest's builder or VMM ran in. Other components keep their memory for the
    /// next start; a guest may never come back.
    pub(super) fn give_kept(&mut self, index: usize) {
        let place = &mut self.places[index];
        if place.guest.is_some()
            && let Some((memory, _)) = place.kept.take()
        {
            self.tools.bank.give(memory);
        }
    }

    /// Waits for events for ever.
    pub fn supervise(&mut self) -> Status {
        loop {
            match self.receiver.receive(FOREVER) {
                Ok(Received::Message(message)) => {
                    // The caller may be gone when the answer comes: nothing to do about that.
                    let _ = match message.badge & 0xff {
                        BUILDER => self.receiver.answer::<Builder, _>(message, &mut self.inbox),
                        OPERATOR => {
                            let mut desk = Desk {
                                info: self.tools.info,
                                manifest: &self.manifest,
                                guests: &self.guests,
                                defined: &mut self.defined,
                                archive: &self.tools.archive,
                                bank: &self.tools.bank,
                                orders: &mut self.orders,
                            };
                            self.receiver.answer::<Operator, _>(message, &mut desk)
                        }
                        ADMIN => {
                            let mut desk = admin::Desk {
                                places: &self.places,
                                bank: &self.tools.bank,
                                kills: &mut self.kills,
                            };
                            self.receiver.answer::<Admin, _>(message, &mut desk)
                        }
                        DOMAINS => {
                            let mut desk = domains::Desk {
                                manifest: &self.manifest,
                                guests: &self.guests,
                            };
                            self.receiver.answer::<Domains, _>(message, &mut desk)
                        }
                        PEERS => {
                            let mut desk = peers::Desk {
                                manifest: &self.manifest,
                                guests: &self.guests,
                                places: &mut self.places,
                            };
                            self.receiver
                                .answer::<PeersInterface, _>(message, &mut desk)
                        }
                        HARDWARE => {
                            let mut desk = hardware::Desk {
                                info: self.tools.info,
                                manifest: &self.manifest,
                                places: &self.places,
                                hardware: &mut self.tools.hardware,
                            };
                            self.receiver
                                .answer::<HardwareInterface, _>(message, &mut desk)
                        }
                        _ => self
                            .receiver
                            .answer::<Supervisor, _>(message, &mut self.inbox),
                    };
                }
                Ok(Received::Notification(bits)) => self.faults(bits),
                Err(Status::Cancelled | Status::Aborted | Status::CapsRefused) => {}
                Err(status) => return status,
            }
            while let Some((index, news)) = self.inbox.take() {
                if index < self.places.len() {
                    self.news(index, news);
                }
            }
            while let Some(index) = self.kills.pop_front() {
                log::warn!("component {}: killed by order", self.places[index].name);
                self.died(index);
            }
            while let Some(todo) = self.orders.pop_front() {
                match todo {
                    Todo::Order(guest, order) => self.guest_event(guest, Event::Order(order)),
                    Todo::Define(new) => self.define(*new),
                }
            }
            sdk::logging::flush();
        }
    }

    /// Name of the guest of a running VMM, and its vCPUs' threads: they are made last.
    pub(super) fn vcpu_threads(&self, vmm: usize) -> Option<(&str, &[Cap<cap::Thread>])> {
        let place = self.places.get(vmm)?;
        let guest = self.manifest.guests.get(place.guest?)?;
        let threads = &place.instance.as_ref()?.threads;
        let first = threads.len().checked_sub(guest.vcpus.len())?;
        Some((&guest.name, threads.get(first..)?))
    }

    fn news(&mut self, index: usize, news: News) {
        let guest = self.places[index].guest;
        match news {
            News::Ready => {
                if let Some(guest) = guest.filter(|&guest| self.guests[guest].vmm == index) {
                    if !core::mem::replace(&mut self.guests[guest].ready, true) {
                        log::info!("guest {}: runs", self.manifest.guests[guest].name);
                    }
                    let place = &self.places[index];
                    let component = &self.manifest.components[place.component];
                    let set = place
                        .instance
                        .as_ref()
                        .map(|instance| instance.serve_guest(&self.tools, component));
                    if let Some(Err(status)) = set {
                        log::error!("component {}: keeps its priority: {status:?}", place.name);
                    }
                }
                if self.places[index].state == State::Starting {
                    self.places[index].state = State::Ready;
                    self.start();
                }
            }
            News::Exit => {
                log::info!("component {}: exited", self.places[index].name);
                self.take_down(index);
                self.close(index);
                self.tell_peers(index);
                if let Some(guest) = guest {
                    self.guest_event(guest, Event::ComponentDied);
                }
                self.start();
            }
            News::Failed(detail) => {
                let detail = report::plain(&detail);
                log::error!("component {}: failed: {detail}", self.places[index].name);
                self.died(index);
            }
            News::GuestStopped(reason, detail) => {
                if let Some(guest) = guest.filter(|&guest| self.guests[guest].vmm == index) {
                    self.guest_stopped(guest, reason, &detail);
                }
            }
            News::Built(built) => {
                if let Some(guest) = guest.filter(|&guest| self.guests[guest].builder == index) {
                    self.guest_event(guest, Event::Built(built));
                }
            }
            News::BuildFailed(error) => {
                if let Some(guest) = guest.filter(|&guest| self.guests[guest].builder == index) {
                    let name = &self.manifest.guests[guest].name;
                    log::error!("guest {name}: cannot be built: {error:?}");
                    self.guest_event(guest, Event::BuildFailed(error));
                }
            }
        }
    }

    fn guest_stopped(&mut self, guest: usize, reason: StopReason, detail: &str) {
        let name = &self.manifest.guests[guest].name;
        let word = guest::reason(&reason);
        match reason {
            StopReason::TripleFault { vcpu, rip } => {
                log::error!("guest {name}: {word} of vCPU {vcpu} at {rip:#x}");
            }
            _ => log::info!("guest {name}: {word}"),
        }
        if !detail.is_empty() {
            log::info!("guest {name}: {}", report::plain(detail));
        }
        let place = &self.guests[guest];
        let lived = sdk::time::now().saturating_sub(place.since) / self.tools.info.tsc_khz.max(1);
        self.guest_event(guest, guest::ended(reason, place.ends, lived));
    }
}
