//! A component as a test describes it: the keys of a `system.toml`, as methods, and its code.

use std::sync::{Arc, Mutex};

use sdk::entry::Env;

/// Frames of 4 KiB that a component has, unless it says otherwise.
const MEMORY_FRAMES: u64 = 1024;

/// Something behind I/O ports.
pub trait Device: Send {
    /// IN from the byte port at `offset` of the range.
    fn read(&mut self, offset: u16) -> u8;
    /// OUT to it.
    fn write(&mut self, offset: u16, value: u8);
}

/// A device that test and component share.
pub type SharedDevice = Arc<Mutex<dyn Device>>;

/// Whether a component that died is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// It stays down: its callers hear `Aborted`, later calls `InvalidCap`.
    #[default]
    Never,
    /// Every time: its callers hear `Restarted`.
    Always,
    /// So many times.
    Times(u32),
}

pub(crate) struct Need {
    pub interface: String,
    pub(crate) server: Option<String>,
}

pub(crate) struct PortRange {
    pub first: u16,
    pub count: u16,
    pub device: SharedDevice,
}

type Main = Arc<dyn Fn(Env) + Send + Sync>;

/// A component: its name, its rights, and its code.
pub struct Component {
    pub(crate) name: String,
    pub(crate) main: Option<Main>,
    pub(crate) serves: Vec<String>,
    pub(crate) needs: Vec<Need>,
    pub(crate) restart: Restart,
    pub(crate) memory_frames: u64,
    pub(crate) ports: Vec<PortRange>,
    pub(crate) lines: Vec<u32>,
    pub(crate) ring_pages: bool,
    pub(crate) guest: Option<String>,
}

impl Component {
    fn named(name: &str, main: Option<Main>) -> Component {
        Component {
            name: name.into(),
            main,
            serves: Vec::new(),
            needs: Vec::new(),
            restart: Restart::Never,
            memory_frames: MEMORY_FRAMES,
            ports: Vec::new(),
            lines: Vec::new(),
            ring_pages: false,
            guest: None,
        }
    }

    /// One whose code is `main`, the function that it gives to `sdk::entry!`. It is called again
    /// for each instance.
    pub fn new(name: &str, main: impl Fn(Env) + Send + Sync + 'static) -> Component {
        Component::named(name, Some(Arc::new(main)))
    }

    /// One that the test itself is, in [`crate::System::drive`].
    pub fn driven(name: &str) -> Component {
        Component::named(name, None)
    }

    /// Interface that it serves.
    pub fn serves(mut self, interface: &str) -> Component {
        self.serves.push(interface.into());
        self
    }

    /// Interface that it may call, whoever serves it. `supervisor` is served by the kit.
    pub fn needs(mut self, interface: &str) -> Component {
        let interface = interface.into();
        self.needs.push(Need {
            interface,
            server: None,
        });
        self
    }

    /// Interface of this server.
    pub fn needs_of(mut self, interface: &str, server: &str) -> Component {
        let (interface, server) = (interface.into(), Some(server.into()));
        self.needs.push(Need { interface, server });
        self
    }

    /// What becomes of it when it dies.
    pub fn restart(mut self, restart: Restart) -> Component {
        self.restart = restart;
        self
    }

    /// Its own memory, in frames of 4 KiB: when they are used up, it hears `NoMemory`.
    pub fn memory_frames(mut self, frames: u64) -> Component {
        self.memory_frames = frames;
        self
    }

    /// Ports, and what is behind them.
    pub fn ports(mut self, first: u16, count: u16, device: SharedDevice) -> Component {
        self.ports.push(PortRange {
            first,
            count,
            device,
        });
        self
    }

    /// An interrupt line; see [`crate::System::interrupt`].
    pub fn line(mut self, line: u32) -> Component {
        self.lines.push(line);
        self
    }

    /// The guest that it speaks for at a console and at a store, as a guest's VMM does.
    pub fn guest(mut self, name: &str) -> Component {
        self.guest = Some(name.into());
        self
    }

    /// Two ring pages for each component of the system, as the console has them.
    pub fn ring_pages(mut self) -> Component {
        self.ring_pages = true;
        self
    }
}
