//! TOML to [`Description`]: types, unknown keys, defaults. Every mistake is collected, none stops
//! the reading. What the values mean together is judged by `rules`. Never opens a file but the
//! description itself.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use idl::manifest::{Restart, Selector};
use toml::de::{DeTable, DeValue};

use crate::description::{At, Component, Description, Forbid, Guest, Input, Need, System};
use crate::problem::{Problems, Source, nearest};

mod files;
mod values;
mod volumes;

pub use values::bytes;
use values::{integer, port_range, restart};
use volumes::without_disk;

const DEFAULTS: &str = include_str!("defaults.toml");
/// The span of what is not in the user's file.
pub const NOWHERE: Range<usize> = usize::MAX..usize::MAX;

const SECTIONS: &[&str] = &["system", "component", "guest", "volume", "file", "forbid"];
const SYSTEM: &[&str] = &["cpus", "memory", "exit", "allow-unprotected-dma"];
const COMPONENT: &[&str] = &[
    "name",
    "package",
    "file",
    "per-guest",
    "priority",
    "share",
    "cpu",
    "memory",
    "threads",
    "serves",
    "needs",
    "ports",
    "interrupts",
    "files",
    "restart",
    "device",
    "dma",
    "client-memory",
    "keep",
];
const GUEST: &[&str] = &[
    "name",
    "kernel",
    "initrd",
    "cmdline",
    "memory",
    "vcpus",
    "cpus",
    "builder",
    "vmm",
    "console",
    "disks",
    "drivers",
    "max-grant-version",
];
const FORBID: &[&str] = &["component", "guests", "components", "ports", "interrupts"];
const NEED: &[&str] = &["interface", "server"];
const RESTART: &[&str] = &["times", "seconds"];

/// Reads the file at `path`. The problems found so far come with the description, so that `rules`
/// can add to them.
pub fn file(path: &Path) -> std::io::Result<(Description, Problems)> {
    Ok(text(path, std::fs::read_to_string(path)?))
}

/// Reads a text; `path` is only for messages and relative paths.
pub fn text(path: &Path, text: String) -> (Description, Problems) {
    let source = Source {
        path: path.to_owned(),
        text: text.clone(),
    };
    let mut reader = Reader {
        problems: Problems::new(source.clone()),
    };
    let (document, errors) = DeTable::parse_recoverable(&text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        reader.problems.add(&span, error.message(), "");
    }
    let mut description = Description {
        source,
        ..Description::default()
    };
    let (defaults, _) = DeTable::parse_recoverable(DEFAULTS);
    reader.sections(document.get_ref(), defaults.get_ref(), &mut description);
    (description, reader.problems)
}

/// A table of the file, with the defaults for keys that it lacks.
struct Table<'a> {
    what: String,
    span: Range<usize>,
    own: Option<&'a DeTable<'a>>,
    defaults: Option<&'a DeTable<'a>>,
}

impl<'a> Table<'a> {
    fn get(&self, key: &str) -> Option<(&'a DeValue<'a>, Range<usize>)> {
        let own = self.own.and_then(|table| table.get(key));
        if let Some(value) = own {
            return Some((value.get_ref(), value.span()));
        }
        let value = self.defaults.and_then(|table| table.get(key))?;
        Some((value.get_ref(), self.span.clone()))
    }
}

struct Reader {
    problems: Problems,
}

impl Reader {
    fn unknown_keys(&mut self, what: &str, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let advice = match nearest(name, known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.problems
                .add(&key.span(), format!("{what}: unknown key `{name}`"), advice);
        }
    }

    fn wrong(
        &mut self,
        table: &Table<'_>,
        key: &str,
        span: &Range<usize>,
        expected: impl fmt::Display,
    ) {
        self.problems.add(
            span,
            format!("{}: `{key}` is not what it should be", table.what),
            format!("write {expected}"),
        );
    }

    fn string(&mut self, table: &Table<'_>, key: &str) -> Option<At<String>> {
        let (value, span) = table.get(key)?;
        match value.as_str() {
            Some(text) => Some(At::new(text.to_owned(), span)),
            None => {
                self.wrong(table, key, &span, format!("{key} = \"text\""));
                None
            }
        }
    }

    fn boolean(&mut self, table: &Table<'_>, key: &str) -> bool {
        match table.get(key) {
            None => false,
            Some((value, span)) => value.as_bool().unwrap_or_else(|| {
                self.wrong(table, key, &span, format!("{key} = true or {key} = false"));
                false
            }),
        }
    }

    fn number(&mut self, table: &Table<'_>, key: &str, most: u64, default: u64) -> At<u64> {
        let Some((value, span)) = table.get(key) else {
            return At::new(default, table.span.clone());
        };
        let read = integer(value).filter(|number| *number <= most);
        if read.is_none() {
            self.wrong(table, key, &span, format!("a number from 0 to {most}"));
        }
        At::new(read.unwrap_or(default), span)
    }

    /// Bytes; a bare integer counts `unit` bytes.
    fn size(&mut self, table: &Table<'_>, key: &str, unit: u64, default: u64) -> At<u64> {
        let Some((value, span)) = table.get(key) else {
            return At::new(default, table.span.clone());
        };
        let read = match value.as_str() {
            Some(text) => bytes(text),
            None => integer(value).and_then(|number| number.checked_mul(unit)),
        };
        if read.is_none() {
            self.wrong(
                table,
                key,
                &span,
                format!("{key} = \"512M\", or with K or G"),
            );
        }
        At::new(read.unwrap_or(default), span)
    }

    fn list<T>(
        &mut self,
        table: &Table<'_>,
        key: &str,
        expected: &str,
        mut item: impl FnMut(&mut Self, &DeValue<'_>, Range<usize>) -> Option<T>,
    ) -> Vec<T> {
        let Some((value, span)) = table.get(key) else {
            return Vec::new();
        };
        let Some(array) = value.as_array() else {
            self.wrong(table, key, &span, expected);
            return Vec::new();
        };
        let mut out = Vec::new();
        for value in array.iter() {
            // A list from the defaults has no place in the user's file.
            let at = if table.own.is_some_and(|own| own.get(key).is_some()) {
                value.span()
            } else {
                table.span.clone()
            };
            match item(self, value.get_ref(), at.clone()) {
                Some(read) => out.push(read),
                None => self.wrong(table, key, &at, expected),
            }
        }
        out
    }

    fn input(&mut self, table: &Table<'_>, key: &str) -> Option<At<Input>> {
        let text = self.string(table, key)?;
        match Input::parse(&text.value) {
            Ok(input) => Some(At::new(input, text.span)),
            Err(advice) => {
                let message = format!("{}: `{key}` names no file: {:?}", table.what, text.value);
                self.problems.add(&text.span, message, advice);
                None
            }
        }
    }

    fn sections(&mut self, document: &DeTable<'_>, defaults: &DeTable<'_>, into: &mut Description) {
        self.unknown_keys("the file", document, SECTIONS);
        self.system(document, into);
        let built_in: Vec<_> = named(defaults).collect();
        let mut mentioned = Vec::new();
        for (table, span) in self.tables(document, "component") {
            let name = table
                .get("name")
                .and_then(|name| name.get_ref().as_str())
                .unwrap_or("");
            // Only the first of that name: a second one is a duplicate, and judged as such.
            let fallback = built_in
                .iter()
                .find(|(n, _)| *n == name && !mentioned.contains(n))
                .map(|(n, table)| {
                    mentioned.push(*n);
                    *table
                });
            let component = self.component(Some(table), fallback, span);
            into.components.push(component);
        }
        let guests = document.get("guest").is_some() || document.get("file").is_some();
        for (name, table) in &built_in {
            // What serves guests only is not there without one.
            let volumes = document.get("volume").is_some();
            let needed = (guests || table.get("guests-only").is_none())
                && (volumes || table.get("volumes-only").is_none());
            if !mentioned.contains(name) && needed {
                let component = self.component(None, Some(table), NOWHERE);
                into.components.push(component);
            }
        }
        for (table, span) in self.tables(document, "guest") {
            let guest = self.guest(table, span, into.system.cpus.value);
            into.guests.push(guest);
        }
        for (table, span) in self.tables(document, "volume") {
            let volume = self.volume(table, span);
            into.volumes.push(volume);
        }
        without_disk(into);
        for (table, span) in self.tables(document, "file") {
            let file = self.archive_file(table, span);
            into.files.push(file);
        }
        for (table, span) in self.tables(document, "forbid") {
            let forbid = self.forbid(table, span);
            into.forbids.push(forbid);
        }
    }

    fn tables<'a>(
        &mut self,
        document: &'a DeTable<'a>,
        key: &str,
    ) -> Vec<(&'a DeTable<'a>, Range<usize>)> {
        let Some(value) = document.get(key) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for item in value
            .get_ref()
            .as_array()
            .into_iter()
            .flat_map(|array| array.iter())
        {
            if let Some(table) = item.get_ref().as_table() {
                out.push((table, item.span()));
            }
        }
        if out.is_empty() {
            self.problems.add(
                &value.span(),
                format!("`{key}` is a list of tables"),
                format!("write [[{key}]]"),
            );
        }
        out
    }

    fn system(&mut self, document: &DeTable<'_>, into: &mut Description) {
        let own = document.get("system");
        let table = Table {
            what: "[system]".into(),
            span: own.map_or(NOWHERE, |value| value.span()),
            own: own.and_then(|value| value.get_ref().as_table()),
            defaults: None,
        };
        if let Some(value) = own
            && table.own.is_none()
        {
            self.problems
                .add(&value.span(), "`system` is a table", "write [system]");
        }
        if let Some(own) = table.own {
            self.unknown_keys("[system]", own, SYSTEM);
        }
        let cpus = self.number(&table, "cpus", 256, 2);
        let memory = self.size(&table, "memory", 1 << 20, 2 << 30);
        let exit = self.string(&table, "exit");
        if let Some(exit) = &exit
            && !["never", "when-guests-stop"].contains(&exit.value.as_str())
        {
            self.wrong(
                &table,
                "exit",
                &exit.span,
                "\"never\" or \"when-guests-stop\"",
            );
        }
        into.system = System {
            cpus: At::new(cpus.value as u32, cpus.span),
            memory_mib: At::new(memory.value >> 20, memory.span),
            exit_with_guests: exit.is_some_and(|exit| exit.value == "when-guests-stop"),
            allow_unprotected_dma: self.boolean(&table, "allow-unprotected-dma"),
            span: table.span,
        };
    }

    fn name(&mut self, table: &Table<'_>) -> At<String> {
        self.string(table, "name").unwrap_or_else(|| {
            if table.get("name").is_none() {
                let advice = "add name = \"...\": lower case letters, digits and dashes";
                self.problems
                    .add(&table.span, format!("{} has no name", table.what), advice);
            }
            At::new(String::new(), table.span.clone())
        })
    }

    fn component(
        &mut self,
        own: Option<&DeTable<'_>>,
        defaults: Option<&DeTable<'_>>,
        span: Range<usize>,
    ) -> Component {
        let mut table = Table {
            what: "[[component]]".into(),
            span: span.clone(),
            own,
            defaults,
        };
        let name = self.name(&table);
        table.what = format!("component {}", name.value);
        if let Some(own) = own {
            self.unknown_keys(&table.what, own, COMPONENT);
        }
        let priority = self.number(&table, "priority", 31, 10);
        let share = self.number(&table, "share", 100, 0);
        let cpu = self.number(&table, "cpu", u64::from(u32::MAX), 0);
        let threads = self.number(&table, "threads", 16, 0);
        let restart = self.restart(&table);
        Component {
            span,
            package: self.string(&table, "package"),
            file: self.string(&table, "file"),
            per_guest: self.boolean(&table, "per-guest"),
            priority: At::new(priority.value as u8, priority.span),
            share: At::new(share.value as u8, share.span),
            cpu: At::new(cpu.value as u32, cpu.span),
            memory_bytes: self.size(&table, "memory", 1 << 20, 1 << 20),
            threads: At::new(threads.value as u32, threads.span),
            serves: self.words(&table, "serves", "serves = [\"interface\"]"),
            needs: self.list(
                &table,
                "needs",
                "needs = [\"interface\"] or needs = [{ interface = \"...\", server = \"...\" }]",
                Self::need,
            ),
            ports: self.ports(&table),
            interrupts: self.interrupts(&table),
            files: self.list(&table, "files", "files = [\"path\"]", |_, value, at| {
                Some(At::new(Input::parse(value.as_str()?).ok()?, at))
            }),
            restart,
            device: self.device(&table),
            dma_bytes: self.size(&table, "dma", 1 << 20, 0),
            client_bytes: self.size(&table, "client-memory", 1 << 20, 0),
            keep_bytes: self.size(&table, "keep", 1 << 20, 0),
            name,
        }
    }

    fn device(&mut self, table: &Table<'_>) -> Option<At<Selector>> {
        let text = self.string(table, "device")?;
        match text.value.parse() {
            Ok(selector) => Some(At::new(selector, text.span)),
            Err(()) => {
                let expected = "\"pci:1af4:1042\" (vendor and device), \"pci:class:01.08.02\" or \
                                \"pci:slot:00:1f.2\"";
                self.wrong(table, "device", &text.span, expected);
                None
            }
        }
    }

    fn words(&mut self, table: &Table<'_>, key: &str, expected: &str) -> Vec<At<String>> {
        self.list(table, key, expected, |_, value, at| {
            value.as_str().map(|text| At::new(text.to_owned(), at))
        })
    }

    fn ports(&mut self, table: &Table<'_>) -> Vec<At<(u16, u16)>> {
        let expected = "ports = [\"0x3f8+8\"]: first port and count";
        self.list(table, "ports", expected, |_, value, at| {
            Some(At::new(port_range(value.as_str()?)?, at))
        })
    }

    fn interrupts(&mut self, table: &Table<'_>) -> Vec<At<u32>> {
        self.list(table, "interrupts", "interrupts = [4]", |_, value, at| {
            Some(At::new(u32::try_from(integer(value)?).ok()?, at))
        })
    }

    fn forbid(&mut self, own: &DeTable<'_>, span: Range<usize>) -> Forbid {
        let table = Table {
            what: "[[forbid]]".into(),
            span: span.clone(),
            own: Some(own),
            defaults: None,
        };
        self.unknown_keys(&table.what, own, FORBID);
        let component = self.string(&table, "component").unwrap_or_else(|| {
            if own.get("component").is_none() {
                let advice = "add component = \"...\": who must not; \"*\" for all";
                self.problems.add(&span, "[[forbid]] says not whom", advice);
            }
            At::new("*".to_owned(), span.clone())
        });
        Forbid {
            component,
            guests: self.words(&table, "guests", "guests = [\"name\"]"),
            components: self.words(&table, "components", "components = [\"name\"]"),
            ports: self.ports(&table),
            interrupts: self.interrupts(&table),
        }
    }

    fn restart(&mut self, table: &Table<'_>) -> Restart {
        let Some((value, span)) = table.get("restart") else {
            return Restart::Never;
        };
        if let Some(limits) = value.as_table() {
            self.unknown_keys("restart", limits, RESTART);
        }
        restart(value).unwrap_or_else(|| {
            let expected = "\"never\", \"always\" or { times = 5, seconds = 60 }";
            self.wrong(table, "restart", &span, expected);
            Restart::Never
        })
    }

    fn need(&mut self, value: &DeValue<'_>, span: Range<usize>) -> Option<Need> {
        if let Some(text) = value.as_str() {
            return Some(Need {
                span,
                interface: text.to_owned(),
                server: None,
            });
        }
        let table = value.as_table()?;
        self.unknown_keys("needs", table, NEED);
        let field = |key| table.get(key)?.get_ref().as_str().map(str::to_owned);
        Some(Need {
            span,
            interface: field("interface")?,
            server: field("server"),
        })
    }

    fn guest(&mut self, own: &DeTable<'_>, span: Range<usize>, machine_cpus: u32) -> Guest {
        let mut table = Table {
            what: "[[guest]]".into(),
            span: span.clone(),
            own: Some(own),
            defaults: None,
        };
        let name = self.name(&table);
        table.what = format!("guest {}", name.value);
        self.unknown_keys(&table.what, own, GUEST);
        let memory = self.size(&table, "memory", 1 << 20, 256 << 20);
        let vcpus = self.number(&table, "vcpus", 32, 1);
        let version = self.number(&table, "max-grant-version", 2, 2);
        let mut cpus = self.list(
            &table,
            "cpus",
            "cpus = [0, 1]: one CPU for each vCPU",
            |_, value, at| Some(At::new(u32::try_from(integer(value)?).ok()?, at)),
        );
        if cpus.is_empty() {
            cpus = (0..vcpus.value as u32)
                .map(|vcpu| At::new(vcpu % machine_cpus.max(1), vcpus.span.clone()))
                .collect();
        } else if own.get("vcpus").is_some() && vcpus.value != cpus.len() as u64 {
            let message = format!(
                "{}: {} vcpus, but {} cpus",
                table.what,
                vcpus.value,
                cpus.len()
            );
            self.problems.add(
                &vcpus.span,
                message,
                "leave out one of the two, or make them agree",
            );
        }
        let or = |reader: &mut Self, key: &str, default: &str| {
            reader
                .string(&table, key)
                .unwrap_or_else(|| At::new(default.to_owned(), table.span.clone()))
        };
        Guest {
            cmdline: or(self, "cmdline", "console=hvc0"),
            builder: or(self, "builder", "builder"),
            vmm: or(self, "vmm", "vmm"),
            console: or(self, "console", "console"),
            disks: self.disks(&table),
            drivers: self.words(&table, "drivers", "drivers = [\"guest\"]"),
            max_grant_version: At::new(version.value as u32, version.span),
            kernel: self.input(&table, "kernel"),
            initrd: self.input(&table, "initrd"),
            memory_mib: At::new(memory.value >> 20, memory.span),
            cpus,
            span,
            name,
        }
    }
}

fn named<'a>(document: &'a DeTable<'a>) -> impl Iterator<Item = (&'a str, &'a DeTable<'a>)> {
    let list = document
        .get("component")
        .and_then(|value| value.get_ref().as_array());
    list.into_iter()
        .flat_map(|array| array.iter())
        .filter_map(|item| {
            let table = item.get_ref().as_table()?;
            Some((table.get("name")?.get_ref().as_str()?, table))
        })
}
