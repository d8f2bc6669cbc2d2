//! Who can reach what: `cargo image audit`. The graph of rights that root hands out by a manifest,
//! as text; `draw` makes pictures of it and `forbid` holds rules against it. The manifest is all
//! that root goes by, so nothing can be reached that is not here, and root itself, which starts
//! with everything, is named once instead of everywhere.

use std::collections::BTreeSet;
use std::fmt;

use idl::manifest::{Component, Manifest, Selector};
use idl::volume::Backend;

use crate::description::ROOT;
use crate::inspect::shown;

/// Something that holds rights, or that rights are to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// A running component: root, `console`, or `vmm-linux`, of the pattern `vmm` and for a guest.
    Component {
        /// Of the instance.
        name: String,
        /// Its name in the description.
        pattern: String,
        /// The guest that it is there for.
        guest: Option<String>,
    },
    /// A guest's memory.
    GuestMemory {
        /// The guest.
        guest: String,
        /// Its size.
        mib: u64,
    },
    /// A guest's virtual CPUs.
    Vcpus {
        /// The guest.
        guest: String,
        /// The CPU of each.
        cpus: Vec<u32>,
    },
    /// I/O ports.
    Ports {
        /// First.
        first: u16,
        /// Last.
        last: u16,
    },
    /// An ISA interrupt line.
    Interrupt(u32),
    /// A function of a device.
    Device(Selector),
    /// Memory that a device may use.
    DeviceMemory {
        /// Its driver.
        driver: String,
        /// Its size.
        mib: u64,
    },
    /// Memory that every instance of a component gets again.
    KeptMemory {
        /// Whose.
        component: String,
        /// Its size.
        mib: u64,
    },
    /// Memory that a server shares with a client.
    SharedMemory {
        /// The server.
        server: String,
        /// The client.
        client: String,
        /// Its size.
        mib: u64,
    },
    /// Everything that the machine has: what a device reaches that no IOMMU holds.
    AllMemory,
    /// A file of the archive.
    File(String),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thing::Component { name, .. } => f.write_str(&shown(name)),
            Thing::GuestMemory { guest, mib } => {
                write!(f, "memory of guest {} ({mib} MiB)", shown(guest))
            }
            Thing::Vcpus { guest, cpus } => {
                let cpus: Vec<String> = cpus.iter().map(u32::to_string).collect();
                write!(
                    f,
                    "vCPUs of guest {} (CPUs {})",
                    shown(guest),
                    cpus.join(", ")
                )
            }
            Thing::Ports { first, last } => write!(f, "ports {first:#x} to {last:#x}"),
            Thing::Interrupt(line) => write!(f, "interrupt line {line}"),
            Thing::Device(selector) => write!(f, "device {selector}"),
            Thing::DeviceMemory { driver, mib } => {
                write!(f, "memory for the device of {} ({mib} MiB)", shown(driver))
            }
            Thing::KeptMemory { component, mib } => {
                write!(f, "memory that outlives {} ({mib} MiB)", shown(component))
            }
            Thing::SharedMemory {
                server,
                client,
                mib,
            } => write!(
                f,
                "memory between {} and {} ({mib} MiB)",
                shown(server),
                shown(client)
            ),
            Thing::AllMemory => write!(f, "all memory of a machine without IOMMU"),
            Thing::File(name) => write!(f, "file {}", shown(name)),
        }
    }
}

/// A right: who, what for, to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// Index of the holder in [`Graph::things`].
    pub from: usize,
    /// Index of what it is to.
    pub to: usize,
    /// `call console`, `read and write`.
    pub does: String,
    /// A call's interface.
    pub call: bool,
}

/// Interfaces of root by which others rule: what they can do, root does for them.
const RULING: &[&str] = &["operator", "admin", "hardware"];

impl Right {
    /// Whether it gives power over guests and components that the holder has no other right to.
    pub fn rules(&self) -> bool {
        let interface = self.does.strip_prefix("call ");
        self.call && self.to == 0 && interface.is_some_and(|name| RULING.contains(&name))
    }
}

/// All rights of a system.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Components first, root the very first.
    pub things: Vec<Thing>,
    /// Everything that somebody but root holds.
    pub rights: Vec<Right>,
    /// Each guest: its name, who builds and runs it, who serves its disks.
    guests: Vec<(String, [String; 2], Vec<String>)>,
}

impl Graph {
    /// What root hands out by `manifest`.
    pub fn of(manifest: &Manifest) -> Graph {
        let mut graph = Graph::default();
        graph.component(ROOT, ROOT, None);
        let shared = manifest.components.iter().filter(|c| !c.per_guest);
        for component in shared.clone() {
            graph.component(&component.name, &component.name, None);
        }
        for guest in &manifest.guests {
            let names = [&guest.builder, &guest.vmm].map(|pattern| instance(pattern, &guest.name));
            for (name, pattern) in names.iter().zip([&guest.builder, &guest.vmm]) {
                graph.component(name, pattern, Some(&guest.name));
            }
            graph.guests.push((guest.name.clone(), names, Vec::new()));
        }
        for component in shared {
            graph.described(&component.name, component);
        }
        for guest in &manifest.guests {
            for pattern in [&guest.builder, &guest.vmm] {
                if let Some(component) = manifest.component(pattern) {
                    graph.described(&instance(pattern, &guest.name), component);
                }
            }
            let builder = instance(&guest.builder, &guest.name);
            let vmm = instance(&guest.vmm, &guest.name);
            let memory = Thing::GuestMemory {
                guest: guest.name.clone(),
                mib: guest.memory_mib,
            };
            graph.right(
                &builder,
                memory.clone(),
                "read and write, until the guest runs",
            );
            for file in [Some(&guest.kernel), guest.initrd.as_ref()]
                .into_iter()
                .flatten()
            {
                graph.right(&builder, Thing::File(file.clone()), "read");
            }
            graph.right(&vmm, memory, "read and write");
            let vcpus = Thing::Vcpus {
                guest: guest.name.clone(),
                cpus: guest.vcpus.clone(),
            };
            graph.right(&vmm, vcpus, "run");
        }
        graph.granted(manifest);
        graph.devices(manifest);
        graph
    }

    fn component(&mut self, name: &str, pattern: &str, guest: Option<&str>) {
        self.things.push(Thing::Component {
            name: name.to_owned(),
            pattern: pattern.to_owned(),
            guest: guest.map(str::to_owned),
        });
    }

    /// What a description gives to one instance of it.
    fn described(&mut self, name: &str, component: &Component) {
        for need in &component.needs {
            if let (Some(from), Some(to)) = (self.named(name), self.named(&need.server)) {
                self.rights.push(Right {
                    from,
                    to,
                    does: format!("call {}", shown(&need.interface)),
                    call: true,
                });
            }
        }
        for ports in component.ports.iter().filter(|ports| ports.count > 0) {
            let last = ports.first.saturating_add(ports.count - 1);
            let first = ports.first;
            self.right(name, Thing::Ports { first, last }, "read and write");
        }
        for &line in &component.interrupts {
            self.right(name, Thing::Interrupt(line), "wait for and acknowledge");
        }
        for file in &component.files {
            self.right(name, Thing::File(file.clone()), "read");
        }
        if let Some(selector) = component.device {
            self.right(name, Thing::Device(selector), "drive, as pci hands it out");
        }
        let mib = |bytes: u64| bytes.next_multiple_of(2 << 20) >> 20;
        if component.dma_bytes > 0 {
            let memory = Thing::DeviceMemory {
                driver: name.to_owned(),
                mib: mib(component.dma_bytes),
            };
            self.right(name, memory, "read and write, and let its device");
        }
        if component.keep_bytes > 0 {
            let memory = Thing::KeptMemory {
                component: name.to_owned(),
                mib: mib(component.keep_bytes),
            };
            self.right(name, memory, "read and write");
        }
    }

    /// What backends reach of guests: pages that the guests grant them.
    fn granted(&mut self, manifest: &Manifest) {
        for guest in &manifest.guests {
            let memory = || Thing::GuestMemory {
                guest: guest.name.clone(),
                mib: guest.memory_mib,
            };
            let mut backends: Vec<&str> = Vec::new();
            for disk in &guest.disks {
                if let Backend::Component(name) = &disk.backend
                    && !backends.contains(&name.as_str())
                {
                    backends.push(name);
                }
            }
            for backend in backends {
                let does = "pages that the guest grants, for its disks";
                self.right(backend, memory(), does);
                let served = self
                    .guests
                    .iter_mut()
                    .find(|(name, ..)| *name == guest.name);
                if let Some((.., servers)) = served {
                    servers.push(backend.to_owned());
                }
            }
            for driver in &guest.drivers {
                let pattern = manifest.guests.iter().find(|other| other.name == *driver);
                if let Some(other) = pattern {
                    let vmm = instance(&other.vmm, driver);
                    let does = "pages that the guest grants, as its driver domain";
                    self.right(&vmm, memory(), does);
                }
            }
        }
    }

    /// Memory that servers share with their clients, and what drivers reach without an IOMMU.
    fn devices(&mut self, manifest: &Manifest) {
        let calls: Vec<(String, String)> = self
            .rights
            .iter()
            .filter(|right| right.call)
            .filter_map(
                |right| match (self.things.get(right.from)?, self.things.get(right.to)?) {
                    (
                        Thing::Component { name: client, .. },
                        Thing::Component { name: server, .. },
                    ) => Some((client.clone(), server.clone())),
                    _ => None,
                },
            )
            .collect();
        for component in &manifest.components {
            let mut clients: Vec<&String> = calls
                .iter()
                .filter(|(_, server)| component.client_bytes > 0 && *server == component.name)
                .map(|(client, _)| client)
                .collect();
            clients.sort();
            clients.dedup();
            for client in clients {
                let memory = Thing::SharedMemory {
                    server: component.name.clone(),
                    client: client.clone(),
                    mib: component.client_bytes.next_multiple_of(2 << 20) >> 20,
                };
                self.right(
                    &component.name,
                    memory.clone(),
                    "read and write, and let its device",
                );
                self.right(client, memory, "read and write");
            }
            if component.device.is_some() && manifest.allow_unprotected_dma {
                let does = "read and write, through its device, where there is no IOMMU";
                self.right(&component.name, Thing::AllMemory, does);
            }
        }
    }

    fn right(&mut self, holder: &str, thing: Thing, does: &str) {
        let Some(from) = self.named(holder) else {
            return;
        };
        let to = match self.things.iter().position(|known| *known == thing) {
            Some(known) => known,
            None => {
                self.things.push(thing);
                self.things.len() - 1
            }
        };
        self.rights.push(Right {
            from,
            to,
            does: does.to_owned(),
            call: false,
        });
    }

    /// The component instance of this name.
    pub fn named(&self, wanted: &str) -> Option<usize> {
        self.things
            .iter()
            .position(|thing| matches!(thing, Thing::Component { name, .. } if name == wanted))
    }

    /// Rights of one holder.
    pub fn held(&self, from: usize) -> impl Iterator<Item = &Right> {
        self.rights.iter().filter(move |right| right.from == from)
    }

    /// Components that `from` reaches by calls, one calling the next; not through root, which all
    /// trust and which does nothing for one component to another.
    pub fn called(&self, from: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        let mut ask = vec![from];
        while let Some(next) = ask.pop() {
            for right in self.held(next).filter(|right| right.call && right.to != 0) {
                if reached.insert(right.to) {
                    ask.push(right.to);
                }
            }
        }
        reached
    }

    fn names(&self, list: impl IntoIterator<Item = usize>) -> String {
        let names: Vec<String> = list
            .into_iter()
            .filter_map(|index| Some(self.things.get(index)?.to_string()))
            .collect();
        names.join(", ")
    }
}

/// What root calls the instance of a pattern that is there for a guest.
pub fn instance(pattern: &str, guest: &str) -> String {
    format!("{pattern}-{guest}")
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "who holds what, besides memory and threads of its own")?;
        for (index, thing) in self.things.iter().enumerate() {
            if !matches!(thing, Thing::Component { .. }) {
                continue;
            }
            writeln!(f, "\n{thing}")?;
            if index == 0 {
                writeln!(f, "    everything; it hands out what follows")?;
            } else if self.held(index).next().is_none() {
                writeln!(f, "    nothing")?;
            }
            for right in self.held(index) {
                match self.things.get(right.to) {
                    Some(to) if right.call => writeln!(f, "    {} of {to}", right.does)?,
                    Some(to) => writeln!(f, "    {to}: {}", right.does)?,
                    None => {}
                }
            }
        }
        writeln!(f, "\nwhat is reached by whom, besides root\n")?;
        for (index, thing) in self.things.iter().enumerate().skip(1) {
            let mut by: Vec<usize> = self
                .rights
                .iter()
                .filter(|right| right.to == index)
                .map(|right| right.from)
                .collect();
            by.dedup();
            if !by.is_empty() {
                writeln!(f, "{thing}: {}", self.names(by))?;
            }
        }
        if !self.guests.is_empty() {
            writeln!(f, "\nwhat a guest depends on\n")?;
        }
        for (guest, makers, backends) in &self.guests {
            let makers: Vec<usize> = makers.iter().filter_map(|name| self.named(name)).collect();
            let mut servers: BTreeSet<usize> = BTreeSet::new();
            for &maker in &makers {
                servers.extend(self.called(maker));
            }
            for backend in backends.iter().filter_map(|name| self.named(name)) {
                servers.insert(backend);
                servers.extend(self.called(backend));
            }
            write!(
                f,
                "{}: the core, root, {}",
                shown(guest),
                self.names(makers)
            )?;
            if !servers.is_empty() {
                write!(f, "; for services only: {}", self.names(servers))?;
            }
            writeln!(f)?;
        }
        let mut rulers = self.rights.iter().filter(|right| right.rules()).peekable();
        if rulers.peek().is_some() {
            writeln!(
                f,
                "\nwho may have root stop, restart or change guests and components, or lend devices: {}",
                self.names(rulers.map(|right| right.from).collect::<BTreeSet<_>>())
            )?;
        }
        writeln!(
            f,
            "\nA server and its caller may share pages that one of them hands over in a message."
        )?;
        Ok(())
    }
}
