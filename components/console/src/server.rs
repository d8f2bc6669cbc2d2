//! The console on the machine: rings, notifications, the serial port's interrupt.
//!
//! It may die and be started again at any moment: the ring pages are root's and each belongs to one
//! client for good, so what clients wrote meanwhile is found where it is, and they attach again.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use console_mux::{ClientId, Mux};
use idl::Name;
use idl::console::{Badge, ClientKind, Console, ConsoleError, ConsoleServer, Named, Names};
use idl::ring::{IN_BYTES, OUT_BYTES, Reader, RingPage, Writer};
use sdk::memory;
use sdk::port::Ports;
use sdk::prelude::*;

use crate::uart::{COUNT, Uart};

const COM1: u16 = 0x3f8;
const COM1_LINE: u32 = 4;
/// Bit of the notification for the serial port.
const SERIAL_BIT: u64 = 1 << 62;
/// Bit by which clients say that they wrote or read; all of them are looked at then.
const CLIENT_BIT: u64 = 1;
/// Ring pages of each component: one for its log, one for its guest or for the operator's commands.
const PAGES: usize = 2;
/// Bytes taken from one client before the next one has its turn.
const TURN: usize = 512;

/// Who attached, as root says in the badge, and what for.
#[derive(Clone, Copy)]
struct Identity {
    badge: Badge,
    kind: ClientKind,
}

impl Identity {
    /// Number of its ring page.
    fn page(&self) -> Option<usize> {
        let place = usize::try_from(self.badge.component).ok()?;
        place.checked_mul(PAGES)?.checked_add(match self.kind {
            ClientKind::Log => 0,
            ClientKind::Guest | ClientKind::Operator => 1,
        })
    }

    /// Whose name it is shown under.
    fn named(&self, guest: u32) -> Named {
        match self.kind {
            ClientKind::Guest => Named::Guest(guest),
            ClientKind::Log | ClientKind::Operator => Named::Component(self.badge.component),
        }
    }

    fn is(&self, other: &Identity) -> bool {
        self.badge.component == other.badge.component && self.kind == other.kind
    }
}

struct Client {
    id: ClientId,
    /// `None` for root.
    identity: Option<Identity>,
    output: Reader<'static, OUT_BYTES>,
    input: Writer<'static, IN_BYTES>,
    /// Signalled when there is room or input; `None` for root, which does not wait, and for a
    /// client that has not attached since this console started.
    wake: Option<Cap<cap::Notification>>,
}

struct Server {
    mux: Mux,
    uart: Uart,
    line: Cap<cap::Interrupt>,
    /// What clients signal.
    peer: Cap<cap::Notification>,
    clients: Vec<Client>,
    pages: sdk::startup::RingPages,
    /// Where the ring pages are mapped.
    base: u64,
    /// Names of components by the number in a badge, as root has them.
    names: Vec<Name>,
    /// Names of the guests that are shown here, likewise.
    guests: Vec<Name>,
    /// Names of those that came later: root's page, and the numbers that it begins with.
    later: Option<(&'static Names, u32, u32)>,
}

/// Serves for ever.
pub fn main(env: Env) {
    let Some(ports) = env.ports(COM1, COUNT) else {
        env.missing("ports", "0x3f8-0x3ff")
    };
    let Some(line) = env.line(COM1_LINE) else {
        env.missing("interrupts", "4")
    };
    let endpoint = env.endpoint("console");
    if let Err(status) = run(&env, ports, line, endpoint) {
        panic!("the console cannot go on: {status:?}");
    }
}

fn run(
    env: &Env,
    ports: Cap<cap::IoPorts>,
    line: Cap<cap::Interrupt>,
    endpoint: Cap<cap::Endpoint>,
) -> Result<(), Status> {
    let ports = Ports::grant(ports, env.thread(), COM1, COUNT)?;
    let notification = env.notification();
    notification.bind_messages(env.thread())?;
    line.bind(notification.mint(Rights::SIGNAL, SERIAL_BIT)?)?;
    let pages = env.ring_pages;
    let base = memory::reserve(u64::from(pages.count) * sdk::abi::FRAME)?;
    memory::map_run(
        memory::own(),
        memory::OWN_SPACE,
        Cap::new(pages.slot),
        pages.count,
        memory::ORDER_4K,
        base,
        memory::READ_WRITE,
    )?;
    let mut server = Server {
        mux: Mux::new(),
        uart: Uart::new(ports),
        line,
        peer: notification.mint(Rights::SIGNAL, CLIENT_BIT)?,
        clients: Vec::new(),
        pages,
        base,
        names: env.clients.iter().cloned().collect(),
        guests: env.guests.iter().cloned().collect(),
        later: (env.names.address != 0).then(|| {
            // SAFETY: root mapped the page there for as long as this component lives; it is only read.
            let page = unsafe { memory::shared_at(env.names.address) };
            (page, env.names.component, env.names.guest)
        }),
    };
    for attached in &env.attached {
        // SAFETY: root mapped the page there, writable, for as long as this component lives.
        let page: &'static RingPage = unsafe { memory::shared_at(attached.address) };
        let id = server.mux.attach_log(&attached.name);
        server.clients.push(Client::new(id, page));
    }
    server.find_logs();
    let mut receiver = Receiver::new(endpoint, REPLY, <Console as idl::Interface>::REQUEST_CAPS)?;
    if let Ok(root) = SupervisorClient::connect(env.transport("supervisor")) {
        // Without this root starts nobody who needs a console: it would be seen.
        let _ = root.ready();
    }
    // Interrupts that came before the line was bound.
    server.serial();
    Err(serve::<Console, _>(&mut receiver, &mut server))
}

impl Server {
    /// A name out of root's lists; a number where they have none.
    fn name(&self, which: Named) -> String {
        let (list, what, number) = match which {
            Named::Component(number) => (&self.names, "client", number),
            Named::Guest(number) => (&self.guests, "guest", number),
        };
        let later = || {
            let (page, component, guest) = self.later?;
            page.get(match which {
                Named::Component(number) => Named::Component(number.checked_sub(component)?),
                Named::Guest(number) => Named::Guest(number.checked_sub(guest)?),
            })
        };
        let listed = usize::try_from(number).ok().and_then(|at| list.get(at));
        let name = listed.cloned().or_else(later);
        name.map_or_else(|| format!("{what} {number}"), |name| format!("{name}"))
    }

    /// Takes what was typed and moves bytes, until the device has nothing to say.
    fn work(&mut self) {
        loop {
            while let Some(byte) = self.uart.receive() {
                self.mux.typed(byte);
            }
            self.pump();
            if !self.uart.asks() {
                return;
            }
        }
    }

    /// The interrupt.
    fn serial(&mut self) {
        self.work();
        // The line is level or edge as the chip set has it; both want this after the cause is
        // gone. It fails only if the line was taken away, and then nothing comes any more.
        let _ = self.line.acknowledge(COM1_LINE);
    }

    /// Moves bytes until nobody can move any.
    fn pump(&mut self) {
        loop {
            self.uart.send(|| self.mux.next_byte());
            let mut moved = false;
            for client in &mut self.clients {
                moved |= client.pump(&mut self.mux);
            }
            if !moved {
                self.uart.send(|| self.mux.next_byte());
                break;
            }
        }
        // What has left for the line is nobody's any more. A console that dies before leaves it in
        // the rings, and the next one shows it, some of it perhaps twice.
        if self.mux.is_drained() {
            for client in &mut self.clients {
                client.release(&self.mux);
            }
        }
    }

    /// The ring page with this number and its frame.
    fn page(&self, number: usize) -> Option<(&'static RingPage, Cap<cap::Frame>)> {
        let number = u32::try_from(number)
            .ok()
            .filter(|n| *n < self.pages.count)?;
        let address = self.base + u64::from(number) * sdk::abi::FRAME;
        // SAFETY: `run` mapped that many pages there, writable and for good; the frames are root's,
        // which takes them away from nobody.
        let page = unsafe { memory::shared_at(address) };
        Some((page, Cap::new(self.pages.slot + number)))
    }

    /// Lines that were written before this console started: their components need not be alive
    /// any more. A guest's output waits for its VMM, which attaches again.
    fn find_logs(&mut self) {
        for place in 0..self.pages.count as usize / PAGES {
            let identity = Identity {
                badge: Badge {
                    component: place as u32,
                    guest: None,
                    operator: false,
                },
                kind: ClientKind::Log,
            };
            if let Some((page, _)) = identity.page().and_then(|number| self.page(number))
                && page.output.reader().available() != Ok(0)
            {
                self.add_client(identity, 0, page);
            }
        }
    }

    /// `guest` is the number of the guest, for a guest's console.
    fn add_client(
        &mut self,
        identity: Identity,
        guest: u32,
        page: &'static RingPage,
    ) -> &mut Client {
        let name = self.name(identity.named(guest));
        let id = match identity.kind {
            ClientKind::Log => self.mux.attach_log(&name),
            ClientKind::Guest => self.mux.attach_guest(&name, guest),
            ClientKind::Operator => self.mux.attach_operator(&name),
        };
        self.clients.push(Client {
            identity: Some(identity),
            ..Client::new(id, page)
        });
        let last = self.clients.len() - 1;
        &mut self.clients[last]
    }

    fn attach_client(
        &mut self,
        client: u64,
        kind: ClientKind,
        wake: Cap<cap::Notification>,
    ) -> Result<(Cap<cap::Frame>, Cap<cap::Notification>), ConsoleError> {
        let full = ConsoleError::Full(self.pages.count);
        let badge = Badge::of(client).ok_or(full)?;
        let guest = match kind {
            ClientKind::Log => 0,
            ClientKind::Operator if badge.operator => 0,
            ClientKind::Operator => return Err(ConsoleError::NotOperator),
            // What is typed is for whom root says, not for whoever asks.
            #[cfg(not(control = "console-guest"))]
            ClientKind::Guest => badge.guest.ok_or(ConsoleError::NoGuest)?,
            #[cfg(control = "console-guest")]
            ClientKind::Guest => badge.guest.unwrap_or(0),
        };
        let identity = Identity { badge, kind };
        let number = identity.page().ok_or(full)?;
        let (page, frame) = self.page(number).ok_or(full)?;
        let peer = self.peer;
        let known = self
            .clients
            .iter()
            .position(|client| client.identity.as_ref().is_some_and(|i| i.is(&identity)));
        let client = match known {
            // It, or this console, was started again, or somebody else has its place now.
            Some(index) => {
                let name = self.name(identity.named(guest));
                let client = &mut self.clients[index];
                self.mux.again(client.id, &name);
                client
            }
            None => self.add_client(identity, guest, page),
        };
        if let Some(old) = client.wake.replace(wake) {
            let _ = old.delete();
        }
        Ok((frame, peer))
    }
}

impl Client {
    fn new(id: ClientId, page: &'static RingPage) -> Client {
        Client {
            id,
            identity: None,
            output: page.output.reader(),
            input: page.input.writer(),
            wake: None,
        }
    }

    /// Takes output and brings input; true if something was moved.
    fn pump(&mut self, mux: &mut Mux) -> bool {
        let mut moved = false;
        if mux.has_room() {
            let mut bytes = [0; TURN];
            match self.output.borrow(&mut bytes) {
                Ok(count) => {
                    mux.output(self.id, bytes.get(..count).unwrap_or(&[]));
                    moved = count != 0;
                }
                Err(idl::ring::Damaged) => mux.output(self.id, b"(ring damaged)\n"),
            }
        }
        let pending = mux.pending(self.id);
        if !pending.is_empty() {
            let count = self.input.write(pending);
            mux.taken(self.id, count);
            if count != 0 {
                self.tell();
                moved = true;
            }
        }
        moved
    }

    /// Gives the client the room of what was shown.
    fn release(&mut self, mux: &Mux) {
        if self.output.release(mux.unfinished(self.id)) {
            self.tell();
        }
    }

    fn tell(&mut self) {
        if let Some(wake) = self.wake
            && wake.signal(1).is_err()
        {
            // Gone; what it wrote before is still shown. The slot is free for others.
            let _ = wake.delete();
            self.wake = None;
        }
    }
}

impl ConsoleServer for Server {
    fn attach(
        &mut self,
        client: u64,
        // Everybody is shown under the name that root has for it.
        _: Name,
        kind: ClientKind,
        wake: Cap<cap::Notification>,
    ) -> Result<(Cap<cap::Frame>, Cap<cap::Notification>), ConsoleError> {
        let outcome = self.attach_client(client, kind, wake);
        if outcome.is_err() {
            let _ = wake.delete();
        }
        self.work();
        outcome
    }
}

impl Notified for Server {
    fn notified(&mut self, bits: u64) {
        if bits & SERIAL_BIT != 0 {
            self.serial();
        } else {
            self.work();
        }
    }
}
