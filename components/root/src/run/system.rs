//! The system as root sees it: which instance is in which state, and what each event leads to.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use idl::builder::{BuildError, Builder, BuilderServer, Built};
use idl::manifest::{Component, Exit, Manifest, Restart};
use idl::name;
use idl::ring::RingPage;
use idl::supervisor::{Detail, StopReason, Supervisor, SupervisorServer};
use root_plan::guest::{self, Action, End, Event, Phase};
use root_plan::plan::{self, ROOT};
use sdk::abi::archive::Archive;
use sdk::abi::boot::{self, Info};
use sdk::memory::{LARGE, ORDER_2M, ORDER_4K, Shared, Window};
use sdk::prelude::*;
use sdk::slots;
use sdk::startup::Machine;

use super::instance::{Connection, GuestParts, Instance, Order};
use super::{exit, report, serial};

/// Bit of the console's notification by which root announces log lines.
pub const LOG_BIT: u64 = 1 << 63;
/// Interfaces in the low byte of a client's badge.
const SUPERVISOR: u64 = 1;
const BUILDER: u64 = 2;
/// Bits for faults; instances share them round robin.
const FAULT_BITS: usize = 60;
/// Restarts of one component within [`RESTART_SECONDS`] before it stays down.
const RESTARTS: u32 = 5;
const RESTART_SECONDS: u64 = 60;
/// Rings that a console gets: its clients at most.
const RING_PAGES: u32 = 32;
/// What the exit device is told: all guests off, or one of them failed.
const EXIT_OFF: u8 = 0x10;
const EXIT_FAILED: u8 = 0x11;

/// What starting an instance needs.
pub struct Tools {
    /// The core's facts.
    pub info: &'static Info,
    /// The boot archive.
    pub archive: Archive<'static>,
    /// For writing into frames.
    pub window: Window,
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

struct GuestPlace {
    phase: Phase,
    builder: usize,
    vmm: usize,
    memory: Option<Cap<cap::Memory>>,
    frames: Option<(Cap<cap::Frame>, u32)>,
}

/// What components told root, in order.
#[derive(Default)]
struct Inbox(VecDeque<(usize, News)>);

enum News {
    Ready,
    Exit,
    Failed(Detail),
    GuestStopped(StopReason, Detail),
    Built(Built),
    BuildFailed(BuildError),
}

impl Inbox {
    fn add(&mut self, client: u64, news: News) {
        // Badges are root's own: instance + 1, interface.
        let place = usize::try_from(client >> 8).unwrap_or(0).wrapping_sub(1);
        self.0.push_back((place, news));
    }
}

impl SupervisorServer for Inbox {
    fn ready(&mut self, client: u64) {
        self.add(client, News::Ready);
    }
    fn guest_stopped(&mut self, client: u64, reason: StopReason, detail: Detail) {
        self.add(client, News::GuestStopped(reason, detail));
    }
    fn failed(&mut self, client: u64, detail: Detail) {
        self.add(client, News::Failed(detail));
    }
    fn exit(&mut self, client: u64) {
        self.add(client, News::Exit);
    }
}

impl BuilderServer for Inbox {
    fn built(&mut self, client: u64, result: Built) {
        self.add(client, News::Built(result));
    }
    fn failed(&mut self, client: u64, error: BuildError) {
        self.add(client, News::BuildFailed(error));
    }
}

/// Everything.
pub struct System {
    tools: Tools,
    manifest: Manifest,
    receiver: Receiver,
    endpoint: Cap<cap::Endpoint>,
    /// Endpoints of the servers: component, interface, endpoint.
    endpoints: Vec<(usize, String, Cap<cap::Endpoint>)>,
    order: Vec<usize>,
    places: Vec<Place>,
    guests: Vec<GuestPlace>,
    log: Shared<RingPage>,
    inbox: Inbox,
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
                memory: None,
                frames: None,
            });
        }
        Ok(System {
            tools: Tools {
                info,
                archive,
                window: Window::new()?,
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
                let interface = if need.interface == "builder" {
                    BUILDER
                } else {
                    SUPERVISOR
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
    fn run(&mut self, index: usize, guest: Option<GuestParts<'_>>) -> bool {
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
                false
            }
        }
    }

    fn start_component(&mut self, index: usize) {
        self.run(index, None);
    }

    /// Takes an instance down, if it runs.
    fn take_down(&mut self, index: usize) {
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
    }

    /// Waits for events for ever.
    pub fn supervise(&mut self) -> Status {
        loop {
            match self.receiver.receive(FOREVER) {
                Ok(Received::Message(message)) => {
                    // The caller may be gone when the answer comes: nothing to do about that.
                    let _ = if message.badge & 0xff == BUILDER {
                        self.receiver.answer::<Builder, _>(message, &mut self.inbox)
                    } else {
                        self.receiver
                            .answer::<Supervisor, _>(message, &mut self.inbox)
                    };
                }
                Ok(Received::Notification(bits)) => self.faults(bits),
                Err(Status::Cancelled | Status::Aborted | Status::CapsRefused) => {}
                Err(status) => return status,
            }
            while let Some((index, news)) = self.inbox.0.pop_front() {
                if index < self.places.len() {
                    self.news(index, news);
                }
            }
            sdk::logging::flush();
        }
    }

    fn news(&mut self, index: usize, news: News) {
        let guest = self.places[index].guest;
        match news {
            News::Ready => {
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

    fn guest_event(&mut self, index: usize, event: Event) {
        let (phase, action) = guest::step(self.guests[index].phase, event);
        self.guests[index].phase = phase;
        let (builder, vmm) = (self.guests[index].builder, self.guests[index].vmm);
        let name = self.manifest.guests[index].name.clone();
        let started = match action {
            Action::Ignore => return,
            Action::Build => {
                self.take_down(builder);
                self.take_down(vmm);
                log::info!("guest {name}: building");
                self.build_guest(index)
            }
            Action::Run(built) => {
                self.take_down(builder);
                log::info!("guest {name}: starting at {:#x}", built.entry);
                self.run_guest(index, built)
            }
            Action::TearDown => {
                self.take_down(builder);
                self.take_down(vmm);
                true
            }
        };
        if !started {
            return self.guest_event(index, Event::ComponentDied);
        }
        if let Phase::Stopped(end) = phase {
            let word = if end == End::Off { "off" } else { "failed" };
            log::info!("guest {name}: {word}");
            self.maybe_exit();
        }
    }

    /// Fresh memory for a guest, zeroed by the core.
    fn guest_memory(&mut self, index: usize) -> Result<(Cap<cap::Frame>, u32), Status> {
        let mib = self.manifest.guests[index].memory_mib;
        let count = u32::try_from(mib * (1 << 20) / LARGE).map_err(|_| Status::NoMemory)?;
        let place = &mut self.guests[index];
        let memory = match place.memory {
            Some(memory) => memory,
            None => {
                // Room for aligning the first frame.
                let per = LARGE / sdk::abi::FRAME;
                let frames = u64::from(count) * per + per - 1;
                let memory = sdk::memory::own().retype(frames)?;
                place.memory = Some(memory);
                memory
            }
        };
        if let Some((first, count)) = place.frames.take() {
            memory.revoke()?;
            (first.slot()..first.slot() + count).for_each(slots::give_back);
        }
        let frames = memory.retype_many(ORDER_2M, count)?;
        place.frames = Some((frames, count));
        Ok((frames, count))
    }

    fn guest_start(&self, index: usize) -> GuestStart {
        let guest = &self.manifest.guests[index];
        let mut cmdline = heapless::String::new();
        if cmdline.push_str(&guest.cmdline).is_err() {
            log::error!(
                "guest {}: its command line is too long and is left out",
                guest.name
            );
        }
        GuestStart {
            name: name(&guest.name),
            memory_address: 0,
            memory_bytes: 0,
            frame_slot: 0,
            frame_count: 0,
            vcpus: guest.vcpus.len() as u32,
            vcpu_threads: heapless::Vec::new(),
            kernel: None,
            initrd: None,
            cmdline,
            built: None,
        }
    }

    fn build_guest(&mut self, index: usize) -> bool {
        let (frames, count) = match self.guest_memory(index) {
            Ok(frames) => frames,
            Err(status) => {
                let guest = &self.manifest.guests[index];
                let (name, mib) = (&guest.name, guest.memory_mib);
                match status {
                    Status::NoMemory => log::error!(
                        "guest {name}: needs {mib} MiB of memory, which this machine does not have left"
                    ),
                    _ => log::error!("guest {name}: its memory cannot be made: {status:?}"),
                }
                return false;
            }
        };
        let guest = self.manifest.guests[index].clone();
        let parts = GuestParts {
            start: self.guest_start(index),
            frames,
            count,
            cpus: &[],
            files: Some((&guest.kernel, guest.initrd.as_deref())),
        };
        self.run(self.guests[index].builder, Some(parts))
    }

    fn run_guest(&mut self, index: usize, built: Built) -> bool {
        let Some((frames, count)) = self.guests[index].frames else {
            return false;
        };
        let cpus = self.manifest.guests[index].vcpus.clone();
        let mut start = self.guest_start(index);
        start.cmdline.clear();
        start.built = Some(built);
        let parts = GuestParts {
            start,
            frames,
            count,
            cpus: &cpus,
            files: None,
        };
        self.run(self.guests[index].vmm, Some(parts))
    }

    fn maybe_exit(&mut self) {
        let ends = self.guests.iter().map(|guest| guest.phase);
        if self.manifest.exit != Exit::WhenGuestsStop
            || !ends.clone().all(|phase| matches!(phase, Phase::Stopped(_)))
        {
            return;
        }
        let failed = ends
            .clone()
            .any(|phase| phase == Phase::Stopped(End::Failed));
        log::info!("all guests have stopped");
        exit::exit(if failed { EXIT_FAILED } else { EXIT_OFF });
    }
}
