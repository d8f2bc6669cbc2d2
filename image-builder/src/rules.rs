//! What makes a description wrong as a whole: names, wires, rights, files, sizes, CPUs. Used by
//! `check` and, before anything else, by `build`. Looks at files only to see whether they exist.

use std::collections::BTreeMap;
use std::fmt;

mod volumes;

pub use volumes::{backend_of, is_writable, overlay_memory};

use crate::description::{Component, Description, Guest, Input, ROOT};
use crate::problem::{Problems, nearest};
use idl::manifest::Restart;

mod files;

/// What the core, root and tables take of the machine's memory, at most, in MiB.
const SYSTEM_RESERVE_MIB: u64 = 64;
/// Limits of the start-up page (`sdk::startup`).
const WIRES_MAX: usize = 8;
const SERVES_MAX: usize = 4;
const RANGES_MAX: usize = 8;
const FILES_MAX: usize = 8;
const CMDLINE_MAX: usize = 2047;
/// Interfaces that root serves.
pub const ROOT_SERVES: &[&str] = &[
    "supervisor",
    "builder",
    "operator",
    "admin",
    "hardware",
    "domains",
    "peers",
];
/// The interface of which there is one holder: it lends every device.
const HARDWARE: &str = "hardware";
/// Most memory that one device is given.
const DMA_MAX: u64 = 64 << 20;
/// Most memory that is shared with one client: a frame, which is what interfaces hand over.
const CLIENT_MAX: u64 = 2 << 20;
/// Clients that a server shares memory with at most (`sdk::startup::SHARES_MAX`).
const SHARES_MAX: usize = 16;

/// What a package of the workspace says it cannot do without, in its `Cargo.toml` under
/// `[package.metadata.microvisor]`. A wish, never a right: only `system.toml` grants.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Interfaces.
    pub needs: Vec<String>,
    /// Interfaces it implements.
    pub serves: Vec<String>,
    /// Ports.
    pub ports: Vec<(u16, u16)>,
    /// ISA lines.
    pub interrupts: Vec<u32>,
}

/// Packages of the workspace that are bare-metal programs, by name.
pub type Packages = BTreeMap<String, Wishes>;

/// Adds everything that is wrong with `description` to `problems`.
pub fn judge(description: &Description, packages: &Packages, problems: &mut Problems) {
    let mut rules = Rules {
        description,
        packages,
        problems,
    };
    rules.machine();
    rules.names();
    for component in &description.components {
        rules.component(component);
    }
    for guest in &description.guests {
        rules.guest(guest);
    }
    rules.volumes();
    rules.files();
}

struct Rules<'a> {
    description: &'a Description,
    packages: &'a Packages,
    problems: &'a mut Problems,
}

impl Rules<'_> {
    fn add(
        &mut self,
        span: &std::ops::Range<usize>,
        message: impl fmt::Display,
        advice: impl fmt::Display,
    ) {
        self.problems.add(span, message, advice);
    }

    fn machine(&mut self) {
        let system = &self.description.system;
        if system.cpus.value == 0 {
            self.add(
                &system.cpus.span,
                "a machine without CPUs",
                "write cpus = 1 or more",
            );
        }
        let guests: u64 = self
            .description
            .guests
            .iter()
            .map(|g| g.memory_mib.value)
            .sum();
        let mut components = 0u64;
        for component in self.description.wired() {
            let copies = if component.per_guest {
                self.description.guests.len() as u64
            } else {
                1
            };
            let own = component.memory_bytes.value.saturating_mul(copies);
            let own = own.saturating_add(overlay_memory(self.description, component));
            let devices = component
                .dma_bytes
                .value
                .saturating_add(component.client_bytes.value)
                .saturating_add(component.keep_bytes.value);
            components = components.saturating_add(own).saturating_add(devices);
        }
        let needed = guests
            .saturating_add(components >> 20)
            .saturating_add(SYSTEM_RESERVE_MIB);
        let there = system.memory_mib.value;
        if needed <= there {
            return;
        }
        let span = match self
            .description
            .guests
            .iter()
            .max_by_key(|g| g.memory_mib.value)
        {
            Some(guest) => guest.memory_mib.span.clone(),
            None => system.memory_mib.span.clone(),
        };
        let message = format!(
            "the guests are larger than the machine: {guests} MiB for guests, {} MiB for components and \
             {SYSTEM_RESERVE_MIB} MiB for the system, of {there} MiB",
            components >> 20
        );
        let advice = format!(
            "make a guest smaller, or write memory = \"{needed}M\" under [system] if the machine has it"
        );
        self.add(&span, message, advice);
    }

    fn names(&mut self) {
        let mut seen: Vec<(&str, &str)> = Vec::new();
        let description = self.description;
        let components = description
            .components
            .iter()
            .map(|c| ("component", &c.name));
        let guests = description.guests.iter().map(|g| ("guest", &g.name));
        for (kind, name) in components.chain(guests) {
            let text = name.value.as_str();
            if text.is_empty() {
                continue;
            }
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if text.len() > 31 || !text.bytes().all(good) {
                let advice = "use lower case letters, digits and dashes, at most 31";
                self.add(
                    &name.span,
                    format!("{kind} name {text:?} cannot be used"),
                    advice,
                );
            }
            if seen.contains(&(kind, text)) {
                self.add(
                    &name.span,
                    format!("two {kind}s are called {text:?}"),
                    "rename one of them",
                );
            }
            seen.push((kind, text));
        }
        for guest in &description.guests {
            for component in [&guest.builder.value, &guest.vmm.value] {
                if component.len() + 1 + guest.name.value.len() > 31 {
                    let message =
                        format!("{component}-{} is too long for a name", guest.name.value);
                    self.add(&guest.name.span, message, "shorten the guest's name");
                }
            }
        }
    }

    fn count(&mut self, span: &std::ops::Range<usize>, what: &str, there: usize, most: usize) {
        if there > most {
            self.add(
                span,
                format!("{what}: {there}, at most {most}"),
                "split the component in two",
            );
        }
    }

    fn cpu(&mut self, span: &std::ops::Range<usize>, what: &str, cpu: u32) {
        let cpus = self.description.system.cpus.value;
        if cpu >= cpus && cpus > 0 {
            let message = format!("{what}: CPU {cpu} is not there, the machine has {cpus}");
            let advice = format!(
                "use 0 to {}, or write cpus = {} under [system]",
                cpus - 1,
                cpu + 1
            );
            self.add(span, message, advice);
        }
    }

    fn component(&mut self, component: &Component) {
        let name = &component.name.value;
        let what = format!("component {name}");
        if let (Some(_), Some(file)) = (&component.package, &component.file) {
            self.add(
                &file.span,
                format!("{what}: both `package` and `file`"),
                "leave out one of them",
            );
        }
        if let Some(file) = &component.file {
            let path = self.description.source.folder().join(&file.value);
            if !path.is_file() {
                let message = format!("{what}: there is no file {}", path.display());
                self.add(&file.span, message, "build it first, or use `package`");
            }
        }
        if name == ROOT {
            return;
        }
        self.cpu(&component.cpu.span, &what, component.cpu.value);
        self.count(
            &component.span,
            &format!("{what}: needs"),
            component.needs.len(),
            WIRES_MAX,
        );
        self.count(
            &component.span,
            &format!("{what}: serves"),
            component.serves.len(),
            SERVES_MAX,
        );
        self.count(
            &component.span,
            &format!("{what}: ports"),
            component.ports.len(),
            RANGES_MAX,
        );
        self.count(
            &component.span,
            &format!("{what}: interrupts"),
            component.interrupts.len(),
            RANGES_MAX,
        );
        self.count(
            &component.span,
            &format!("{what}: files"),
            component.files.len(),
            FILES_MAX,
        );
        for interrupt in component.interrupts.iter().filter(|line| line.value > 15) {
            let message = format!("{what}: there is no interrupt line {}", interrupt.value);
            self.add(&interrupt.span, message, "ISA lines go from 0 to 15");
        }
        for file in &component.files {
            self.input(&file.span, &what, &file.value);
        }
        if component.per_guest && component.restart != Restart::Never {
            self.add(
                &component.span,
                format!("{what}: `restart` with `per-guest`"),
                "leave it out: when a guest's VMM dies, its guest is gone, and a new VMM would have nothing to go on with",
            );
        }
        for need in &component.needs {
            if let Err((message, advice)) =
                server_of(self.description, &need.interface, need.server.as_deref())
            {
                self.add(&need.span, format!("{what}: {message}"), advice);
            }
        }
        self.device(component, &what);
        self.wishes(component, &what);
    }

    fn device(&mut self, component: &Component, what: &str) {
        if let Some(device) = &component.device {
            if component.per_guest {
                let message = format!("{what}: `device` with `per-guest`");
                self.add(&device.span, message, "a function has one driver");
            }
            if !component.needs.iter().any(|need| need.interface == "pci") {
                let message = format!("{what} has a device, but nobody to get it from");
                self.add(&device.span, message, "add \"pci\" to its `needs`");
            }
        }
        let memories = [
            ("dma", &component.dma_bytes, DMA_MAX),
            ("client-memory", &component.client_bytes, CLIENT_MAX),
            ("keep", &component.keep_bytes, DMA_MAX),
        ];
        for (key, bytes, most) in memories {
            if bytes.value > most {
                let message = format!("{what}: `{key}` has {} KiB", bytes.value >> 10);
                self.add(&bytes.span, message, format!("at most {} MiB", most >> 20));
            }
            if bytes.value > 0 && component.per_guest {
                let message = format!("{what}: `{key}` with `per-guest`");
                self.add(
                    &bytes.span,
                    message,
                    "it is for drivers, of which there is one each",
                );
            }
        }
        if component.client_bytes.value > 0 {
            let serves = |need: &crate::description::Need| {
                let server = server_of(self.description, &need.interface, need.server.as_deref());
                server.is_ok_and(|server| server == component.name.value)
            };
            let copies = |client: &Component| match client.per_guest {
                true => {
                    let guests = self.description.guests.iter();
                    let name = &client.name.value;
                    guests
                        .filter(|g| g.builder.value == *name || g.vmm.value == *name)
                        .count()
                }
                false => 1,
            };
            let all = self.description.components.iter();
            let clients: usize = all.filter(|c| c.needs.iter().any(serves)).map(copies).sum();
            self.count(
                &component.client_bytes.span,
                &format!("{what}: clients to share memory with"),
                clients,
                SHARES_MAX,
            );
        }
        if component
            .needs
            .iter()
            .any(|need| need.interface == HARDWARE)
        {
            let all = self.description.components.iter();
            let holders = all.filter(|c| c.needs.iter().any(|need| need.interface == HARDWARE));
            if component.per_guest || holders.count() > 1 {
                let message = format!("{what} is not the only one with {HARDWARE}");
                self.add(
                    &component.span,
                    message,
                    "one component hands devices out: `pci`",
                );
            }
        }
    }

    fn wishes(&mut self, component: &Component, what: &str) {
        let Some(package) = component.package() else {
            return;
        };
        let Some(wishes) = self.packages.get(&package.value) else {
            let advice = match nearest(&package.value, self.packages.keys().map(String::as_str)) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "name a package of this workspace, or a file = \"...\"".into(),
            };
            self.add(
                &package.span,
                format!("{what}: there is no package {:?}", package.value),
                advice,
            );
            return;
        };
        let lacks = |right: &str| format!("{what} lacks a right that it needs: {right}");
        let line = |key: &str, value: &str| {
            format!(
                "add {value} to `{key}` of component {}",
                component.name.value
            )
        };
        for interface in &wishes.needs {
            if !component
                .needs
                .iter()
                .any(|need| need.interface == *interface)
            {
                let right = lacks(&format!("to call {interface}"));
                self.add(
                    &component.span,
                    right,
                    line("needs", &format!("\"{interface}\"")),
                );
            }
        }
        for interface in &wishes.serves {
            if !component
                .serves
                .iter()
                .any(|serves| serves.value == *interface)
            {
                let right = lacks(&format!("to serve {interface}"));
                self.add(
                    &component.span,
                    right,
                    line("serves", &format!("\"{interface}\"")),
                );
            }
        }
        for &(first, count) in &wishes.ports {
            let covers = |(f, c): (u16, u16)| {
                f <= first && u32::from(f) + u32::from(c) >= u32::from(first) + u32::from(count)
            };
            if !component.ports.iter().any(|range| covers(range.value)) {
                let right = lacks(&format!("ports {first:#x} to {:#x}", first + (count - 1)));
                self.add(
                    &component.span,
                    right,
                    line("ports", &format!("\"{first:#x}+{count}\"")),
                );
            }
        }
        for interrupt in &wishes.interrupts {
            if !component
                .interrupts
                .iter()
                .any(|line| line.value == *interrupt)
            {
                let right = lacks(&format!("interrupt line {interrupt}"));
                self.add(
                    &component.span,
                    right,
                    line("interrupts", &interrupt.to_string()),
                );
            }
        }
    }

    fn guest(&mut self, guest: &Guest) {
        let what = format!("guest {}", guest.name.value);
        match &guest.kernel {
            Some(kernel) => self.input(&kernel.span, &what, &kernel.value),
            None => self.add(
                &guest.span,
                format!("{what} has no kernel"),
                "add kernel = \"debian:linux-image-amd64\", or a path",
            ),
        }
        if let Some(initrd) = &guest.initrd {
            self.input(&initrd.span, &what, &initrd.value);
        }
        let memory = guest.memory_mib.value;
        if memory == 0 || !memory.is_multiple_of(2) {
            let message = format!("{what}: {memory} MiB of memory");
            let advice = format!(
                "guest memory comes in pieces of 2 MiB: write \"{}M\"",
                (memory | 1) + 1
            );
            self.add(&guest.memory_mib.span, message, advice);
        }
        if guest.cmdline.value.len() > CMDLINE_MAX {
            let message = format!(
                "{what}: the command line has {} bytes",
                guest.cmdline.value.len()
            );
            self.add(
                &guest.cmdline.span,
                message,
                format!("at most {CMDLINE_MAX}"),
            );
        }
        if guest.cpus.is_empty() || guest.cpus.len() > 32 {
            let message = format!("{what}: {} vCPUs", guest.cpus.len());
            self.add(&guest.span, message, "write vcpus = 1 to 32");
        }
        let version = &guest.max_grant_version;
        if !(1..=2).contains(&version.value) {
            let message = format!("{what}: grant tables have no version {}", version.value);
            self.add(&version.span, message, "write max-grant-version = 1 or 2");
        }
        for cpu in &guest.cpus {
            self.cpu(&cpu.span, &what, cpu.value);
        }
        for (key, name) in [("builder", &guest.builder), ("vmm", &guest.vmm)] {
            match self.description.component(&name.value) {
                None => {
                    let message = format!("{what}: there is no component {:?}", name.value);
                    let known = self.description.components.iter().filter(|c| c.per_guest);
                    let known: Vec<_> = known.map(|c| c.name.value.as_str()).collect();
                    self.add(
                        &name.span,
                        message,
                        format!("write {key} = one of: {}", known.join(", ")),
                    );
                }
                Some(component) if !component.per_guest => {
                    let message = format!("{what}: component {} is not per guest", name.value);
                    self.add(
                        &name.span,
                        message,
                        format!("add per-guest = true to component {}", name.value),
                    );
                }
                Some(_) => {}
            }
        }
        let console = &guest.console;
        let shows = |c: &Component| c.serves.iter().any(|s| s.value == "console");
        if !console.value.is_empty()
            && !self
                .description
                .component(&console.value)
                .is_some_and(shows)
        {
            let message = format!("{what}: no component {:?} serves console", console.value);
            self.add(
                &console.span,
                message,
                "write console = \"console\", or \"\" for none",
            );
        }
    }

    fn input(&mut self, span: &std::ops::Range<usize>, what: &str, input: &Input) {
        match input {
            Input::Path(path) => {
                let full = self.description.source.folder().join(path);
                if !full.is_file() {
                    let message = format!("{what}: there is no file {}", full.display());
                    let advice = "paths start from the folder of this description; for a Debian kernel \
                                  write debian:linux-image-amd64";
                    self.add(span, message, advice);
                }
            }
            Input::Package(package) if !self.packages.contains_key(package) => {
                let message = format!("{what}: there is no package {package:?}");
                self.add(span, message, "name a package of this workspace");
            }
            _ => {}
        }
    }
}

/// The component that a wire leads to. The error is message and advice.
pub fn server_of<'a>(
    description: &'a Description,
    interface: &str,
    server: Option<&'a str>,
) -> Result<&'a str, (String, String)> {
    let by_root = ROOT_SERVES.contains(&interface);
    let serves = |c: &&Component| c.serves.iter().any(|s| s.value == interface);
    match server {
        Some(ROOT) if by_root => Ok(ROOT),
        Some(name) => match description.component(name) {
            Some(component) if serves(&component) => Ok(name),
            Some(_) => Err((
                format!("{name} does not serve {interface}"),
                format!(
                    "add \"{interface}\" to `serves` of component {name}, or name another server"
                ),
            )),
            None => Err((
                format!("there is no component {name:?}"),
                "name one that is there".into(),
            )),
        },
        None if by_root => Ok(ROOT),
        None => {
            let mut found = description.components.iter().filter(serves);
            match (found.next(), found.next()) {
                (Some(one), None) => Ok(&one.name.value),
                (Some(one), Some(two)) => Err((
                    format!(
                        "{} and {} both serve {interface}",
                        one.name.value, two.name.value
                    ),
                    format!(
                        "write {{ interface = \"{interface}\", server = \"{}\" }}",
                        one.name.value
                    ),
                )),
                (None, _) => {
                    let all = description.components.iter().flat_map(|c| c.serves.iter());
                    let all = all
                        .map(|s| s.value.as_str())
                        .chain(ROOT_SERVES.iter().copied());
                    let advice = match nearest(interface, all) {
                        Some(meant) => format!("did you mean \"{meant}\"?"),
                        None => format!("add a component with serves = [\"{interface}\"]"),
                    };
                    Err((format!("nothing serves {interface}"), advice))
                }
            }
        }
    }
}
