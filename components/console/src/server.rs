//! The console on the machine: rings, notifications, the serial port's interrupt.

use alloc::format;
use alloc::vec::Vec;

use console_mux::{ClientId, Mux};
use idl::Name;
use idl::console::{ClientKind, Console, ConsoleError, ConsoleServer};
use idl::ring::{IN_BYTES, OUT_BYTES, Reader, RingPage, Writer};
use sdk::memory;
use sdk::port::Ports;
use sdk::prelude::*;

use crate::orders::Orders;
use crate::uart::{COUNT, Uart};

const COM1: u16 = 0x3f8;
const COM1_LINE: u32 = 4;
/// Bit of the notification for the serial port; clients have the bits below.
const SERIAL_BIT: u64 = 1 << 62;
/// Bit for answers to the operator's commands.
const ANSWER_BIT: u64 = 1 << 61;
/// Clients that have a bit each.
const CLIENTS: usize = 56;
/// Bytes taken from one client before the next one has its turn.
const TURN: usize = 512;

/// Who attached: the badge that root gave, and what for.
#[derive(Clone, PartialEq, Eq)]
struct Identity {
    badge: u64,
    name: Name,
    kind: ClientKind,
}

struct Client {
    id: ClientId,
    /// `None` for root.
    identity: Option<Identity>,
    /// Its ring page's frame, for giving it to a restarted client; `None` for root.
    frame: Option<Cap<cap::Frame>>,
    output: Reader<'static, OUT_BYTES>,
    input: Writer<'static, IN_BYTES>,
    /// Signalled when there is room or input; `None` for root, which does not wait.
    wake: Option<Cap<cap::Notification>>,
    /// What the client signals.
    peer: Option<Cap<cap::Notification>>,
}

struct Server {
    mux: Mux,
    uart: Uart,
    orders: Orders,
    line: Cap<cap::Interrupt>,
    notification: Cap<cap::Notification>,
    clients: Vec<Client>,
    pages: sdk::startup::RingPages,
    /// Names of components by badge, counted from 1, as root has them.
    names: Vec<Name>,
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
    let mut server = Server {
        mux: Mux::new(),
        uart: Uart::new(ports),
        orders: Orders::start(env, notification.mint(Rights::SIGNAL, ANSWER_BIT)?)?,
        line,
        notification,
        clients: Vec::new(),
        pages: env.ring_pages,
        names: env.clients.iter().cloned().collect(),
    };
    for attached in &env.attached {
        // SAFETY: root mapped the page there, writable, for as long as this component lives.
        let page: &'static RingPage = unsafe { memory::shared_at(attached.address) };
        let id = server.mux.attach(&attached.name, ClientKind::Log);
        server.clients.push(Client::new(id, page));
    }
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
    /// The name under which a client is shown. A log has its component's name, whatever the
    /// client says; a guest has its own, unless that is another one's already.
    fn shown_name(&self, identity: &Identity) -> alloc::string::String {
        let component = usize::try_from(identity.badge)
            .ok()
            .and_then(|badge| self.names.get(badge.checked_sub(1)?))
            .map_or_else(
                || format!("client {}", identity.badge),
                |name| format!("{name}"),
            );
        let taken = self
            .clients
            .iter()
            .filter_map(|client| client.identity.as_ref())
            .any(|other| other.kind == ClientKind::Guest && other.name == identity.name);
        match identity.kind {
            ClientKind::Guest if !taken => format!("{}", identity.name),
            ClientKind::Guest => format!("{} of {component}", identity.name),
            ClientKind::Log => component,
        }
    }

    /// Takes what was typed and moves bytes, until the device has nothing to say.
    fn work(&mut self) {
        loop {
            while let Some(byte) = self.uart.receive() {
                self.mux.typed(byte);
            }
            self.operator();
            self.pump();
            if !self.uart.asks() {
                return;
            }
        }
    }

    /// Commands go to their thread, answers to the terminal.
    fn operator(&mut self) {
        while let Some(command) = self.mux.take_command() {
            self.orders.hand_in(command);
        }
        while let Some(answer) = self.orders.take_answer() {
            self.mux.answer(&answer);
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
                return;
            }
        }
    }

    fn attach_client(
        &mut self,
        identity: Identity,
        wake: Cap<cap::Notification>,
    ) -> Result<(Cap<cap::Frame>, Cap<cap::Notification>), Status> {
        let known = self
            .clients
            .iter_mut()
            .find(|client| client.identity.as_ref() == Some(&identity));
        if let Some(client) = known
            && let (Some(frame), Some(peer)) = (client.frame, client.peer)
        {
            // The old instance is gone, or has nothing to say here any more.
            if let Some(old) = client.wake.replace(wake) {
                let _ = old.delete();
            }
            return Ok((frame, peer));
        }
        let index = self.clients.len();
        let page = index as u32;
        if index >= CLIENTS || page >= self.pages.count {
            return Err(Status::NoMemory);
        }
        let frame: Cap<cap::Frame> = Cap::new(self.pages.slot + page);
        // One is mapped here, the other is for the client.
        let rights = Rights::READ.or(Rights::WRITE);
        let mapped = memory::map_shared(frame)?;
        let give = frame.copy(rights)?;
        let peer = self.notification.mint(Rights::SIGNAL, 1 << index)?;
        let name = self.shown_name(&identity);
        let id = self.mux.attach(&name, identity.kind);
        self.clients.push(Client {
            identity: Some(identity),
            frame: Some(give),
            wake: Some(wake),
            peer: Some(peer),
            ..Client::new(id, mapped)
        });
        Ok((give, peer))
    }
}

impl Client {
    fn new(id: ClientId, page: &'static RingPage) -> Client {
        Client {
            id,
            identity: None,
            frame: None,
            output: page.output.reader(),
            input: page.input.writer(),
            wake: None,
            peer: None,
        }
    }

    /// Takes output and brings input; true if something was moved.
    fn pump(&mut self, mux: &mut Mux) -> bool {
        let mut moved = 0;
        if mux.has_room() {
            let mut bytes = [0; TURN];
            match self.output.read(&mut bytes) {
                Ok(count) => {
                    mux.output(self.id, bytes.get(..count).unwrap_or(&[]));
                    moved += count;
                }
                Err(idl::ring::Damaged) => mux.output(self.id, b"(ring damaged)\n"),
            }
        }
        let pending = mux.pending(self.id);
        if !pending.is_empty() {
            let count = self.input.write(pending);
            mux.taken(self.id, count);
            moved += count;
        }
        if moved != 0
            && let Some(wake) = self.wake
            && wake.signal(1).is_err()
        {
            // Gone; what it wrote before is still shown.
            self.wake = None;
        }
        moved != 0
    }
}

impl ConsoleServer for Server {
    fn attach(
        &mut self,
        client: u64,
        name: Name,
        kind: ClientKind,
        wake: Cap<cap::Notification>,
    ) -> Result<(Cap<cap::Frame>, Cap<cap::Notification>), ConsoleError> {
        let identity = Identity {
            badge: client,
            name,
            kind,
        };
        let outcome = self.attach_client(identity, wake);
        if outcome.is_err() {
            let _ = wake.delete();
        }
        self.work();
        outcome.map_err(|status| match status {
            Status::NoMemory => ConsoleError::Full(self.pages.count),
            status => ConsoleError::Core(status as u32),
        })
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
