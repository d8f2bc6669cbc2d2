//! The system as root sees it: which instance is in which state, and what each event leads to.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use idl::builder::Builder;
use idl::manifest::{Component, Manifest, Restart};
use idl::name;
use idl::operator::Operator;
use idl::ring::RingPage;
use idl::supervisor::{StopReason, Supervisor};
use root_plan::guest::{self, Event, Phase};
use root_plan::plan::{self, ROOT};
use sdk::abi::archive::Archive;
use sdk::abi::boot::{self, Info};
use sdk::memory::{ORDER_4K, Shared, Window};
use sdk::prelude::*;
use sdk::startup::Machine;

use super::bank::Bank;
use super::guests::GuestPlace;
use super::inbox::{Inbox, News};
use super::instance::{Connection, GuestParts, Instance, Order};
use super::operator::{Desk, Orders};
use super::{report, serial};

/// Bit of the console's notification by which root announces log lines.
pub const LOG_BIT: u64 = 1 << 63;
/// Interfaces in the low byte of a client's badge.
const SUPERVISOR: u64 = 1;
const BUILDER: u64 = 2;
const OPERATOR: u64 = 3;
/// Bits for faults; instances share them round robin.
const FAULT_BITS: usize = 60;
/// Restarts of one component within [`RESTART_SECONDS`] before it stays down.
const RESTARTS: u32 = 5;
const RESTART_SECONDS: u64 = 60;
/// Rings that a console gets: its clients at most.
const RING_PAGES: u32 = 32;
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
enum State {
    Waiting,
    /// Its thread runs; it has not said that it is ready.
    Starting,
    Ready,
    Down,
}

/// A component, or a guest's builder or VMM: started or not.
struct Place {
    name: String,
    component: usize,
    guest: Option<usize>,
    state: State,
    /// Memory of an earlier run, and its frames.
    kept: Option<(Cap<cap::Memory>, u64)>,
    instance: Option<Instance>,
    fault: Cap<cap::Notification>,
    restarts: u32,
    first_restart: u64,
}

/// Everything.
pub struct System {
    pub(super) tools: Tools,
    pub(super) manifest: Manifest,
    receiver: Receiver,
    endpoint: Cap<cap::Endpoint>,
    /// Endpoints of the servers: component, interface, endpoint.
    endpoints: Vec<(usize, String, Cap<cap::Endpoint>)>,
    order: Vec<usize>,
    places: Vec<Place>,
    pub(super) guests: Vec<GuestPlace>,
    log: Shared<RingPage>,
    inbox: Inbox,
    orders: Orders,
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
        let mut add = |component: usize, name: String, guest| {
            let bit = 1 << (places.len() % FAULT_BITS);
            places.push(Place {
                name,
                component,
                guest,
                state: State::Waiting,
                kept: None,
                instance: None,
                fault: note.mint(Rights::SIGNAL, bit)?,
                restarts: 0,
                first_restart: 0,
            });
            Ok(places.len() - 1)
        };
        // Components keep their index; those that are per guest have a place that stays empty.
        for (index, component) in manifest.components.iter().enumerate() {
            add(index, component.name.clone(), None)?;
        }
        let mut guests = Vec::new();
        for (index, guest) in manifest.guests.iter().enumerate() {
            let mut part = |pattern: &str| {
                let found = manifest.components.iter().position(|c| c.name == pattern);
                let component = found.ok_or(Status::InvalidArgument)?;
                add(component, format!("{pattern}-{}", guest.name), Some(index))
            };
            guests.push(GuestPlace {
                phase: Phase::Waiting,
                builder: part(&guest.builder)?,
                vmm: part(&guest.vmm)?,
                ready: false,
                starts: 0,
                memory: None,
            });
        }
        Ok(System {
            tools: Tools {
                info,
                archive,
                window: Window::new()?,
                bank: Bank::new(info),
                ports: Cap::new(boot::SLOT_IO_PORTS),
                interrupts: Cap::new(boot::SLOT_INTERRUPTS),
            },
            order: plan::start_order(&manifest).map_err(|_| Status::InvalidArgument)?,
            manifest,
            receiver,
            endpoint,
            endpoints,
            places,
            guests,
            log: sdk::memory::shared_page()?,
            inbox: Inbox::default(),
            orders: Orders::default(),
        })
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

    fn is_console(component: &Component) -> bool {
        component
            .serves
            .iter()
            .any(|interface| interface == "console")
    }

    fn connections(&self, index: usize, component: &Component) -> Vec<Connection> {
        let place = &self.places[index];
        let id = index as u64 + 1;
        let console = place
            .guest
            .map(|guest| self.manifest.guests[guest].console.as_str())
            .filter(|console| !console.is_empty());
        let mut connections = Vec::new();
        for need in &component.needs {
            let (endpoint, rights, badge) = if need.server == ROOT {
                let interface = match need.interface.as_str() {
                    "builder" => BUILDER,
                    "operator" => OPERATOR,
                    _ => SUPERVISOR,
                };
                (Some(self.endpoint), Rights::CALL, id << 8 | interface)
            } else {
                // A guest says which console shows it.
                let server = match console {
                    Some(console) if need.interface == "console" => console,
                    _ => need.server.as_str(),
                };
                let found = self.endpoints.iter().find(|(owner, interface, _)| {
                    self.manifest.components[*owner].name == server && *interface == need.interface
                });
                let rights = Rights::CALL.or(Rights::GRANT);
                (found.map(|(.., endpoint)| *endpoint), rights, id)
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
        // New ones for each run: clients of an earlier one may still write into theirs.
        let ring_pages = console
            .then(|| sdk::memory::own().retype_many(ORDER_4K, RING_PAGES))
            .transpose();
        let ring_pages = ring_pages.unwrap_or_else(|status| {
            log::error!("no ring pages for the console: {status:?}");
            None
        });
        let clients = if console {
            self.places.iter().map(|place| name(&place.name)).collect()
        } else {
            Vec::new()
        };
        let place = &mut self.places[index];
        let order = Order {
            name: &place.name,
            component: &component,
            connections: &connections,
            serves: &serves,
            guest,
            attach: console.then_some(self.log.frame),
            ring_pages: ring_pages.map(|frames| (frames, RING_PAGES)),
            clients,
            fault: place.fault,
        };
        match Instance::start(&mut self.tools, &mut place.kept, &order) {
            Ok(instance) => {
                if console {
                    match instance.notification.mint(Rights::SIGNAL, LOG_BIT) {
                        Ok(wake) => sdk::logging::set_ring(self.log.page, wake, LOG_BIT),
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

    fn start_component(&mut self, index: usize) {
        self.run(index, None);
    }

    /// Takes an instance down, if it runs.
    pub(super) fn take_down(&mut self, index: usize) {
        let component = &self.manifest.components[self.places[index].component];
        let console = Self::is_console(component);
        let place = &mut self.places[index];
        place.state = State::Down;
        let Some(instance) = place.instance.take() else {
            return;
        };
        if console {
            sdk::logging::set_direct(serial::write);
        }
        if let Err(status) = instance.destroy() {
            // What it held is lost, but nothing runs in it.
            log::error!("component {}: not taken down: {status:?}", place.name);
            place.kept = None;
        }
        self.give_kept(index);
    }

    /// Gives back what a guest's builder or VMM ran in. Other components keep their memory for the
    /// next start; a guest may never come back.
    fn give_kept(&mut self, index: usize) {
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
                                bank: &self.tools.bank,
                                orders: &mut self.orders,
                            };
                            self.receiver.answer::<Operator, _>(message, &mut desk)
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
            while let Some((guest, order)) = self.orders.pop_front() {
                self.guest_event(guest, Event::Order(order));
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
                    self.guests[guest].ready = true;
                }
                if self.places[index].state == State::Starting {
                    self.places[index].state = State::Ready;
                    self.start();
                }
            }
            News::Exit => {
                log::info!("component {}: exited", self.places[index].name);
                self.take_down(index);
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
        self.guest_event(guest, Event::Stopped(reason));
    }

    fn faults(&mut self, bits: u64) {
        for index in 0..self.places.len() {
            if bits & 1 << (index % FAULT_BITS) == 0 {
                continue;
            }
            let place = &self.places[index];
            let Some(instance) = &place.instance else {
                continue;
            };
            let component = &self.manifest.components[place.component];
            if Self::is_console(component) {
                // Its ring leads nowhere now.
                sdk::logging::set_direct(serial::write);
            }
            let file = format!("symbols/{}", component.name);
            let symbols = self
                .tools
                .archive
                .file(&file)
                .map_or(&[][..], |(_, bytes)| bytes);
            if report::faults(&place.name, instance, symbols, &mut self.tools.window) {
                self.died(index);
            }
        }
    }

    /// An instance is of no use any more: takes it down, and starts it again if it is to be.
    fn died(&mut self, index: usize) {
        self.take_down(index);
        if let Some(guest) = self.places[index].guest {
            return self.guest_event(guest, Event::ComponentDied);
        }
        let component = &self.manifest.components[self.places[index].component];
        if component.restart == Restart::Always {
            let now = sdk::time::now();
            let place = &mut self.places[index];
            let window = self
                .tools
                .info
                .tsc_khz
                .saturating_mul(1000 * RESTART_SECONDS);
            if now.saturating_sub(place.first_restart) > window {
                place.first_restart = now;
                place.restarts = 0;
            }
            place.restarts += 1;
            if place.restarts <= RESTARTS {
                log::info!("component {}: restarted", place.name);
                self.start_component(index);
            } else {
                log::error!(
                    "component {}: stays down after {RESTARTS} restarts in {RESTART_SECONDS} s",
                    place.name
                );
            }
        }
        self.start();
    }
}
