//! A system of components, as a test describes and drives it. The description says what a
//! `system.toml` says; the names are the same.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use idl::console::{Badge, Console};
use idl::store::{self, Store};
use idl::{Interface, name};
use microvisor_abi::{Kind, Rights};
use sdk::entry::Env;
use sdk::host;
use sdk::startup::{self, LineRight, PortsRight, RingPages, SLOT_FIRST, Serve, Startup, Wire};

use crate::component::Component;
use crate::fault::{Fault, Plan, Random, Site};
use crate::graph::{CapId, State as ObjectState};
use crate::judge::{Death, Leak, Told};
use crate::seat::{self, Seat};
use crate::state::{Member, Run, Shared, State, Thread, Wire as Endpoint};
use crate::{SLOTS, log};

pub(crate) fn locked<T: ?Sized>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A simulated system. It goes, with all its threads, when it is dropped.
pub struct System {
    shared: Arc<Shared>,
    driven: BTreeMap<usize, (Rc<host::Thread>, Startup)>,
}

impl System {
    /// Makes the components, wires them, and runs them until each waits for something. Panics over
    /// a description that names what is not there: that is the test's mistake.
    pub fn start(plan: Plan, components: Vec<Component>) -> System {
        System::start_with(plan, None, components)
    }

    /// As [`System::start`], with turns in an order chosen by `seed`.
    pub fn start_shuffled(plan: Plan, seed: u64, components: Vec<Component>) -> System {
        System::start_with(plan, Some(seed), components)
    }

    fn start_with(plan: Plan, seed: Option<u64>, components: Vec<Component>) -> System {
        seat::install_hook();
        log::install();
        let mut state = State::new(plan);
        state.random = seed.map(Random);
        for component in components {
            state.graph.add_space();
            state.members.push(Member {
                memory_left: 0,
                spec: Arc::new(component),
                host: None,
                thread: None,
                notification: None,
                deaths: Vec::new(),
                told: Vec::new(),
                log: Vec::new(),
                restarts: 0,
                mapped: BTreeMap::new(),
                ports: Vec::new(),
                calls: BTreeMap::new(),
                system_calls: 0,
                mark: None,
            });
        }
        let mut served = vec![("supervisor".to_owned(), None)];
        for (number, member) in state.members.iter().enumerate() {
            let interfaces = member.spec.serves.iter();
            served.extend(interfaces.map(|interface| (interface.clone(), Some(number))));
        }
        for (interface, server) in served {
            let name = format!("endpoint {interface}");
            let endpoint = ObjectState::Endpoint { epoch: 0 };
            let cap = state.graph.make(Kind::Endpoint, endpoint, name, None, None);
            let object = object(&state, cap);
            state.wires.push(Endpoint {
                interface,
                server,
                object,
                cap,
            });
        }
        for _ in 0..state.members.len() * 2 {
            let page: &'static host::Page = Box::leak(Box::new(host::Page::new()));
            let frame = ObjectState::Frame { page };
            let name = "ring page".to_owned();
            let cap = state.graph.make(Kind::Frame, frame, name, None, None);
            state.ring_pages.push(cap);
        }
        let shared = Arc::new(Shared::new(state));
        let mut system = System {
            shared: Arc::clone(&shared),
            driven: BTreeMap::new(),
        };
        let mut state = shared.lock();
        for component in 0..state.members.len() {
            let started = instance(&shared, &mut state, component);
            if let Some((thread, startup)) = started {
                system.driven.insert(component, (Rc::new(thread), startup));
            }
        }
        drop(state);
        system.run();
        for name in system.driven_names() {
            // Its thread gets what every thread has before its first line.
            system.drive(&name, |_| ());
        }
        system
    }

    fn member<R>(&self, name: &str, work: impl FnOnce(&mut Member) -> R) -> R {
        let mut state = self.shared.lock();
        let number = number(&state, name);
        work(&mut state.members[number])
    }

    /// Runs `work` as component `name`, one made by [`Component::driven`]; everybody else goes on
    /// while it waits in a call. Panics if everybody waits for ever.
    pub fn drive<R>(&self, name: &str, work: impl FnOnce(&Env) -> R) -> R {
        let component = {
            let mut state = self.shared.lock();
            let component = number(&state, name);
            let thread = state.members[component].thread;
            assert!(
                self.driven.contains_key(&component),
                "{name} is not driven by the test"
            );
            assert!(state.current.is_none(), "{name} is driven by itself");
            state.driven = thread;
            state.current = thread;
            component
        };
        let (thread, startup) = &self.driven[&component];
        log::enter(&self.shared, component);
        let env = Env::of(startup.clone());
        let outcome = catch_unwind(AssertUnwindSafe(|| thread.enter(|| work(&env))));
        log::leave();
        let mut state = self.shared.lock();
        state.driven = None;
        state.current = None;
        drop(state);
        match outcome {
            Ok(result) => result,
            Err(payload) if payload.is::<seat::Killed>() => {
                panic!("{name} is the test and cannot die")
            }
            Err(payload) => {
                // The hook was silent: this thread was a component.
                eprintln!("{name}: {}", seat::text(&*payload));
                resume_unwind(payload)
            }
        }
    }

    /// Runs everybody until each waits. Does not move the clock.
    pub fn run(&self) {
        let mut state = self.shared.lock();
        assert!(state.current.is_none(), "called by a component");
        loop {
            start_waiting(&self.shared, &mut state);
            if state.ready.is_empty() {
                return;
            }
            state.switch(&self.shared);
            while state.current.is_some() {
                state = self
                    .shared
                    .idle
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Moves the clock by so many ticks, and runs everybody.
    pub fn advance(&self, ticks: u64) {
        let mut state = self.shared.lock();
        let clock = state.clock.saturating_add(ticks);
        state.advance_to(clock);
        drop(state);
        self.run();
    }

    /// The clock, which `sdk::time::now` reads.
    pub fn now(&self) -> u64 {
        self.shared.lock().clock
    }

    /// A component dies, as if it had faulted; everybody runs until each waits.
    pub fn kill(&self, name: &str) {
        let mut state = self.shared.lock();
        let component = number(&state, name);
        if let Some(thread) = state.members[component].thread {
            state.threads[thread].doomed = Some(Death::Killed);
            if !state.ready.contains(&thread) {
                state.ready.push_back(thread);
            }
        }
        drop(state);
        self.run();
    }

    /// Signals a component's own notification, as somebody with a capability for it would.
    pub fn signal(&self, name: &str, bits: u64) {
        let mut state = self.shared.lock();
        let component = number(&state, name);
        if let Some(notification) = state.members[component].notification {
            state.signal(notification, bits);
        }
        drop(state);
        self.run();
    }

    /// The interrupt of a line that a component has and bound.
    pub fn interrupt(&self, name: &str, line: u32) {
        let mut state = self.shared.lock();
        let component = number(&state, name);
        let wanted = format!("line {line}");
        let bound = state
            .graph
            .held(component)
            .find_map(|(_, _, object)| match object.state {
                ObjectState::Interrupt { to } if object.name == wanted => to,
                _ => None,
            });
        if let Some((object, bits)) = bound {
            state.signal(object, bits);
        }
        drop(state);
        self.run();
    }

    /// How the instances of a component ended, oldest first.
    pub fn deaths(&self, name: &str) -> Vec<Death> {
        self.member(name, |member| member.deaths.clone())
    }

    /// What a component told root.
    pub fn told(&self, name: &str) -> Vec<Told> {
        self.member(name, |member| member.told.clone())
    }

    /// Its log lines.
    pub fn log(&self, name: &str) -> Vec<String> {
        self.member(name, |member| member.log.clone())
    }

    /// How often it was started again.
    pub fn restarts(&self, name: &str) -> u32 {
        self.member(name, |member| member.restarts)
    }

    /// What components hold when each of them waits is all they may hold: [`System::leaks`]
    /// compares with it.
    pub fn mark(&self) {
        self.run();
        let mut state = self.shared.lock();
        for component in 0..state.members.len() {
            let counts = state.counts(component);
            state.members[component].mark = Some(counts);
        }
    }

    /// Capabilities and slots that components hold beyond [`System::mark`]. A component that was
    /// started again since is compared as well.
    pub fn leaks(&self) -> Vec<Leak> {
        self.shared.lock().leaks()
    }

    /// What a component holds, one line each.
    pub fn held(&self, name: &str) -> Vec<String> {
        let state = self.shared.lock();
        let component = number(&state, name);
        let held = state.graph.held(component);
        held.map(|(slot, cap, object)| format!("{slot}: {} ({})", object.name, cap.how))
            .collect()
    }

    /// Places that this run came to, where a plan can let something go wrong: every call, and
    /// every system call of a component that is not the test itself.
    pub fn sites(&self) -> Vec<Site> {
        let driven = self.driven_names();
        let mut sites = self.shared.lock().sites.clone();
        sites.retain(|site| match site {
            Site::Call { .. } => true,
            Site::SystemCall { component, .. } => !driven.contains(component),
        });
        sites
    }

    /// Faults that are planned and did not happen.
    pub fn pending(&self) -> Vec<(Site, Fault)> {
        self.shared.lock().plan.left().to_vec()
    }

    /// Everything that is wrong whatever the test is about: panics, calls without end, leaks. Empty
    /// if all is well.
    pub fn faults(&self) -> Vec<String> {
        let state = self.shared.lock();
        let mut wrong = Vec::new();
        for member in &state.members {
            for death in member.deaths.iter().filter(|death| !death.is_clean()) {
                wrong.push(format!("{} died: {death:?}", member.spec.name));
            }
        }
        for leak in state.leaks() {
            let Leak {
                component,
                what,
                more,
            } = leak;
            wrong.push(format!("{component} keeps {more} more: {what}"));
        }
        wrong
    }

    /// Names of the components that the test drives.
    fn driven_names(&self) -> Vec<String> {
        let state = self.shared.lock();
        let numbers = self.driven.keys();
        numbers.map(|&n| state.name(n).to_owned()).collect()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.over = true;
        for thread in &state.threads {
            thread.turn.notify_all();
        }
        let joins = std::mem::take(&mut state.joins);
        drop(state);
        for join in joins {
            // What it died of was told already.
            let _ = join.join();
        }
    }
}

fn number(state: &State, name: &str) -> usize {
    let found = state.members.iter().position(|m| m.spec.name == name);
    found.unwrap_or_else(|| panic!("there is no component {name}"))
}

fn object(state: &State, cap: CapId) -> crate::graph::ObjectId {
    match state.graph.cap(cap) {
        Some(cap) => cap.object,
        None => panic!("the kit lost a capability that it just made"),
    }
}

/// Starts components that wait for it.
pub(crate) fn start_waiting(shared: &Arc<Shared>, state: &mut State) {
    for component in std::mem::take(&mut state.starts) {
        instance(shared, state, component);
    }
}

/// Makes an instance of a component. For one that the test drives, its thread is answered.
fn instance(
    shared: &Arc<Shared>,
    state: &mut State,
    component: usize,
) -> Option<(host::Thread, Startup)> {
    let startup = wire(state, component);
    let seat = Seat {
        shared: Arc::clone(shared),
        component,
    };
    let host = host::Component::new(Box::new(seat), startup.free_slot, startup.slots);
    let host = Arc::new(host);
    let number = state.threads.len();
    state.threads.push(Thread {
        component,
        run: Run::Ready,
        regs: [0; 6],
        answer: None,
        buffer: Box::new([0; crate::message::BUFFER]),
        faults: Vec::new(),
        doomed: None,
        turn: Arc::new(Condvar::new()),
    });
    let member = &mut state.members[component];
    member.host = Some(Arc::clone(&host));
    member.thread = Some(number);
    match member.spec.main.clone() {
        None => Some((host::Thread::new(host, number), startup)),
        Some(main) => {
            state.ready.push_back(number);
            let join = seat::spawn(shared, number, &host, move || main(Env::of(startup)));
            match join {
                Ok(join) => state.joins.push(join),
                Err(error) => panic!("no thread for a component: {error}"),
            }
            None
        }
    }
}

/// Components that speak for guests, and the guests' names, in order.
fn guests(state: &State) -> impl Iterator<Item = (usize, &str)> {
    let members = state.members.iter().enumerate();
    members.filter_map(|(number, member)| Some((number, member.spec.guest.as_deref()?)))
}

/// Gives a new instance its capabilities, as root does, and says where they are.
fn wire(state: &mut State, component: usize) -> Startup {
    let spec = Arc::clone(&state.members[component].spec);
    let mut facts = Startup {
        name: name(&spec.name),
        slots: SLOTS,
        memory_frames: spec.memory_frames,
        ..Startup::default()
    };
    facts.machine.tsc_khz = sdk::time::tsc_khz();
    facts.machine.cpus = 1;
    state.members[component].memory_left = spec.memory_frames;
    let fixed = [
        (startup::SLOT_CAP_SPACE, Kind::CapSpace),
        (startup::SLOT_ADDRESS_SPACE, Kind::AddressSpace),
        (startup::SLOT_THREAD, Kind::Thread),
        (startup::SLOT_SCHED, Kind::SchedContext),
        (startup::SLOT_MEMORY, Kind::Memory),
        (startup::SLOT_REPLY, Kind::Reply),
        (startup::SLOT_NOTIFICATION, Kind::Notification),
    ];
    for (slot, kind) in fixed {
        let what = match kind {
            Kind::Reply => ObjectState::Reply { caller: None },
            Kind::Notification => ObjectState::Notification {
                bits: 0,
                bound: None,
            },
            _ => ObjectState::Plain,
        };
        let name = format!("own {kind:?}");
        let place = Some((component, slot));
        let cap = state.graph.make(kind, what, name, Some(component), place);
        if kind == Kind::Notification {
            state.members[component].notification = Some(object(state, cap));
        }
    }
    let mut slot = SLOT_FIRST;
    let mut give = |state: &mut State, cap: CapId, rights: Rights, badge: u64| {
        let at = slot;
        slot += 1;
        let how = "wired".to_owned();
        // A server that is down for good has no endpoint: the wire is there and leads nowhere.
        let _ = state.graph.derive(cap, (component, at), rights, badge, how);
        at
    };
    for need in &spec.needs {
        let serves = |wire: &&Endpoint| {
            wire.interface == need.interface
                && need
                    .server
                    .as_ref()
                    .is_none_or(|server| wire.server.is_some_and(|s| state.name(s) == server))
        };
        let Some(wire) = state.wires.iter().find(serves) else {
            panic!(
                "{} needs {}, which nobody serves",
                spec.name, need.interface
            );
        };
        let (cap, server) = (wire.cap, wire.server);
        let server = server.map_or("root".to_owned(), |s| state.name(s).to_owned());
        let rights = Rights::CALL.or(Rights::GRANT);
        let speaks_for = guests(state).position(|(of, _)| of == component);
        let badge = match need.interface.as_str() {
            Console::NAME => Badge {
                component: component as u32,
                guest: speaks_for.map(|at| at as u32),
                operator: spec.needs.iter().any(|need| need.interface == "operator"),
            }
            .word(),
            Store::NAME => store::Badge {
                component: component as u32,
                domain: Some(speaks_for.map_or(0, |at| at as u16 + 1)),
            }
            .word(),
            _ => component as u64 + 1,
        };
        let wire = Wire {
            interface: name(&need.interface),
            server: name(&server),
            slot: give(state, cap, rights, badge),
        };
        assert!(facts.wires.push(wire).is_ok(), "too many needs");
    }
    for interface in &spec.serves {
        let own = |w: &&Endpoint| w.interface == *interface && w.server == Some(component);
        let cap = state.wires.iter().find(own).map(|wire| wire.cap);
        if let Some(cap) = cap {
            let serve = Serve {
                interface: name(interface),
                slot: give(state, cap, Rights::RECEIVE.or(Rights::GRANT), 0),
            };
            assert!(facts.serves.push(serve).is_ok(), "serves too much");
        }
    }
    for range in &spec.ports {
        let (first, count) = (range.first, range.count);
        let (what, text) = (ObjectState::Ports { first, count }, "ports".to_owned());
        let cap = state.graph.make(Kind::IoPorts, what, text, None, None);
        let slot = give(state, cap, Rights::ALL, 0);
        let right = PortsRight { first, count, slot };
        assert!(facts.ports.push(right).is_ok(), "too many ports");
    }
    for &line in &spec.lines {
        let (what, text) = (ObjectState::Interrupt { to: None }, format!("line {line}"));
        let cap = state.graph.make(Kind::Interrupt, what, text, None, None);
        let slot = give(state, cap, Rights::ALL, 0);
        assert!(facts.lines.push(LineRight { line, slot }).is_ok(), "lines");
    }
    if spec.ring_pages {
        let pages = state.ring_pages.clone();
        let mut first = None;
        for page in &pages {
            let slot = give(state, *page, Rights::READ.or(Rights::WRITE), 0);
            first.get_or_insert(slot);
        }
        facts.ring_pages = RingPages {
            slot: first.unwrap_or(0),
            count: pages.len() as u32,
        };
        for member in &state.members {
            let fits = facts.clients.push(name(&member.spec.name));
            assert!(fits.is_ok(), "too many clients");
        }
        for (_, guest) in guests(state) {
            assert!(facts.guests.push(name(guest)).is_ok(), "too many guests");
        }
    }
    facts.free_slot = slot;
    facts
}
