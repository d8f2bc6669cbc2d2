//! What a file means here: a PVH guest with a kernel out of the archive, disks that are volumes, and
//! each vCPU on one CPU. Keys are those of xl.cfg(5).
//!
//! A key that is not supported is either ignored with a remark, where the guest would hardly notice
//! (how a console is shown, weights, security labels), or refused, where the guest would be another
//! one (a network interface that is not there). A key that asks for nothing (`vif = []`, `usb = 0`) is
//! neither.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::disk::{self, Disk};
use crate::syntax::{Config, Kind, Place, Setting, Value};

/// vCPUs of a guest at most (`sdk::startup::VCPUS_MAX`).
const VCPUS_MAX: u64 = 32;

/// A guest as a file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Name.
    pub name: String,
    /// Path of its kernel.
    pub kernel: String,
    /// Path of its initial RAM disk.
    pub ramdisk: Option<String>,
    /// Kernel command line.
    pub cmdline: String,
    /// Memory in MiB, even.
    pub memory_mib: u64,
    /// The CPU of each vCPU.
    pub vcpus: Vec<u32>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// It is built again when it switches itself off (`on_poweroff`).
    pub poweroff_restarts: bool,
    /// When it reboots (`on_reboot`).
    pub reboot_restarts: bool,
    /// When it crashes (`on_crash`).
    pub crash_restarts: bool,
    /// Highest version of the grant table that it may choose: 1 or 2.
    pub max_grant_version: u32,
}

/// Something to say about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Where, if it stands somewhere.
    pub place: Option<Place>,
    /// What.
    pub text: String,
    /// There is no guest because of it.
    pub refused: bool,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.text)
    }
}

/// Keys that are read here.
const KNOWN: &[&str] = &[
    "name",
    "type",
    "kernel",
    "ramdisk",
    "cmdline",
    "root",
    "extra",
    "memory",
    "maxmem",
    "vcpus",
    "maxvcpus",
    "cpus",
    "disk",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "on_watchdog",
    "on_soft_reset",
    "max_grant_version",
    "uuid",
];

/// Keys without which the guest would be another one, unless they ask for nothing.
const REFUSED: &[&str] = &[
    "acpi_firmware",
    "altp2m",
    "apic",
    "boot",
    "bootloader",
    "builder",
    "channel",
    "cpuid",
    "device_model_override",
    "device_tree",
    "driver_domain",
    "dtdev",
    "firmware",
    "hap",
    "iomem",
    "ioports",
    "irqs",
    "localtime",
    "nestedhvm",
    "p9",
    "passthrough",
    "pci",
    "pvcalls",
    "pvh",
    "pvshim",
    "rdm",
    "rtc_timeoffset",
    "smbios_firmware",
    "soundhw",
    "static_shm",
    "tsc_mode",
    "usb",
    "usbctrl",
    "usbdev",
    "usbdevice",
    "vdispl",
    "vfb",
    "vif",
    "viridian",
    "virtio",
    "vkb",
    "vsnd",
    "vtpm",
    "vuart",
    "xen_platform_pci",
];

/// The guest of a file, for a machine of so many CPUs, with remarks on what is ignored; or everything
/// that is wrong with it.
pub fn guest(config: &Config, cpus: u32) -> Result<(Guest, Vec<Remark>), Vec<Remark>> {
    let mut reader = Reader {
        config,
        remarks: Vec::new(),
    };
    let guest = reader.guest(cpus.max(1));
    let mut remarks = reader.remarks;
    remarks.sort_by_key(|remark| remark.place);
    match guest {
        Some(guest) if !remarks.iter().any(|remark| remark.refused) => Ok((guest, remarks)),
        _ => Err(remarks),
    }
}

struct Reader<'a> {
    config: &'a Config,
    remarks: Vec<Remark>,
}

impl<'a> Reader<'a> {
    fn say(&mut self, place: Option<Place>, text: impl Into<String>, refused: bool) {
        let text = text.into();
        self.remarks.push(Remark {
            place,
            text,
            refused,
        });
    }

    fn refuse(&mut self, place: Place, text: impl Into<String>) {
        self.say(Some(place), text, true);
    }

    fn expected(&mut self, setting: &Setting, what: &str) {
        let (name, found) = (&setting.name, setting.value.kind.word());
        self.refuse(
            setting.value.place,
            format!("{name}: {what} is expected, not {found}"),
        );
    }

    /// A string; a mistake if it is something else.
    fn text(&mut self, name: &str) -> Option<(&'a str, Place)> {
        let setting = self.config.get(name)?;
        match &setting.value.kind {
            Kind::Text(text) => Some((text, setting.value.place)),
            _ => {
                self.expected(setting, "a string");
                None
            }
        }
    }

    /// A number, in quotes or not, as xl takes it.
    fn number(&mut self, name: &str) -> Option<(u64, Place)> {
        let setting = self.config.get(name)?;
        let number = match &setting.value.kind {
            Kind::Number(number) => Some(*number),
            Kind::Text(text) => text.parse().ok(),
            Kind::List(_) => None,
        };
        if number.is_none() {
            self.expected(setting, "a number");
        }
        Some((number?, setting.value.place))
    }

    fn needed(&mut self, name: &str, example: &str) -> Option<(&'a str, Place)> {
        if self.config.get(name).is_none() {
            self.say(None, format!("{name} is missing: write {example}"), true);
        }
        let (text, place) = self.text(name)?;
        if text.is_empty() {
            self.refuse(place, format!("{name} is empty: write {example}"));
            return None;
        }
        Some((text, place))
    }

    fn guest(&mut self, cpus: u32) -> Option<Guest> {
        for (name, place) in self.config.again.clone() {
            self.say(
                Some(place),
                format!("{name} is set again; this value counts"),
                false,
            );
        }
        self.other_keys();
        self.kind();
        let name = self.name();
        let kernel = self.needed("kernel", "kernel = \"vmlinuz\"");
        let ramdisk = self.text("ramdisk").filter(|(path, _)| !path.is_empty());
        let cmdline = self.cmdline();
        let memory_mib = self.memory();
        let vcpus = self.vcpus(cpus);
        let disks = self.disks();
        let max_grant_version = self.max_grant_version();
        self.uuid();
        let poweroff_restarts = self.end("on_poweroff", false);
        let reboot_restarts = self.end("on_reboot", true);
        let crash_restarts = self.end("on_crash", false);
        // Both end as a crash does, or do not happen.
        for name in ["on_watchdog", "on_soft_reset"] {
            if let Some(setting) = self.config.get(name) {
                let text = format!("{name} is not supported and ignored");
                self.say(Some(setting.place), text, false);
            }
        }
        Some(Guest {
            name: name?,
            kernel: kernel?.0.into(),
            ramdisk: ramdisk.map(|(path, _)| path.into()),
            cmdline,
            memory_mib: memory_mib?,
            vcpus: vcpus?,
            disks,
            poweroff_restarts,
            reboot_restarts,
            crash_restarts,
            max_grant_version: max_grant_version?,
        })
    }

    fn other_keys(&mut self) {
        let config = self.config;
        for setting in &config.settings {
            let name = setting.name.as_str();
            if KNOWN.contains(&name) {
                continue;
            }
            let nothing = match &setting.value.kind {
                Kind::Number(number) => *number == 0,
                Kind::Text(text) => text.is_empty() || text == "default",
                Kind::List(list) => list.is_empty(),
            };
            if !REFUSED.contains(&name) {
                let text = format!("{name} is not supported and ignored");
                self.say(Some(setting.place), text, false);
            } else if !nothing {
                let text = format!("{name} is not supported, and the guest would miss it");
                self.refuse(setting.place, text);
            }
        }
    }

    fn kind(&mut self) {
        match self.text("type") {
            Some(("pvh", _)) => {}
            Some((other, place)) => {
                self.refuse(
                    place,
                    format!("type {other:?} is not supported, only \"pvh\""),
                );
            }
            None if self.config.get("type").is_none() => {
                let text = "type is missing: write type = \"pvh\"; xl would take \"pv\", which is not supported";
                self.say(None, text, true);
            }
            None => {}
        }
    }

    fn name(&mut self) -> Option<String> {
        let (name, place) = self.needed("name", "name = \"debian\"")?;
        let good = |letter: char| letter.is_ascii_alphanumeric() || "-_.+".contains(letter);
        if !name.chars().all(good) {
            let text = format!("{name:?} is no name: letters, digits and - _ . + make one");
            self.refuse(place, text);
            return None;
        }
        Some(name.into())
    }

    fn cmdline(&mut self) -> String {
        let (root, extra) = (self.text("root"), self.text("extra"));
        if let Some((cmdline, _)) = self.text("cmdline") {
            for (name, there) in [("root", root), ("extra", extra)] {
                if let Some((_, place)) = there {
                    let text = format!("{name} is ignored, because there is a cmdline");
                    self.say(Some(place), text, false);
                }
            }
            return cmdline.into();
        }
        let root = root.filter(|(root, _)| !root.is_empty());
        let root = root.map(|(root, _)| format!("root={root}"));
        let extra = extra.map(|(extra, _)| extra.to_string());
        let parts: Vec<String> = [root, extra].into_iter().flatten().collect();
        parts.join(" ")
    }

    fn memory(&mut self) -> Option<u64> {
        if self.config.get("memory").is_none() {
            self.say(None, "memory is missing: write memory = 512", true);
        }
        let (memory, place) = self.number("memory")?;
        if memory == 0 || !memory.is_multiple_of(2) || memory > 1 << 30 {
            self.refuse(
                place,
                format!("memory comes in pieces of 2 MiB: {memory} is not possible"),
            );
            return None;
        }
        if let Some((maxmem, place)) = self.number("maxmem")
            && maxmem != memory
        {
            let text = format!(
                "maxmem {maxmem} is not supported: memory does not grow, so write {memory}"
            );
            self.refuse(place, text);
        }
        Some(memory)
    }

    fn vcpus(&mut self, cpus: u32) -> Option<Vec<u32>> {
        let (count, place) = match self.config.get("vcpus") {
            None => (1, Place::default()),
            Some(_) => self.number("vcpus")?,
        };
        if !(1..=VCPUS_MAX).contains(&count) {
            self.refuse(place, format!("vcpus is 1 to {VCPUS_MAX}, not {count}"));
            return None;
        }
        if let Some((most, place)) = self.number("maxvcpus")
            && most != count
        {
            let text = format!(
                "maxvcpus {most} is not supported: vCPUs do not come later, so write {count}"
            );
            self.refuse(place, text);
        }
        let count = count as usize;
        let Some(setting) = self.config.get("cpus") else {
            return Some((0..cpus).cycle().take(count).collect());
        };
        match &setting.value.kind {
            Kind::List(list) => self.cpu_of_each(list, count, cpus),
            _ => self
                .cpu_set(&setting.value, cpus)
                .map(|set| set.into_iter().cycle().take(count).collect()),
        }
    }

    /// A list has the CPUs of one vCPU after the other; a vCPU runs on the first of its CPUs.
    fn cpu_of_each(&mut self, list: &[Value], count: usize, cpus: u32) -> Option<Vec<u32>> {
        let mut all = Vec::new();
        for value in list.iter().take(count) {
            all.push(*self.cpu_set(value, cpus)?.first()?);
        }
        // Those that the list does not name may run anywhere.
        let rest = (0..cpus).cycle().skip(all.len());
        let missing = count.saturating_sub(all.len());
        all.extend(rest.take(missing));
        Some(all)
    }

    /// `0-3,5,^1` or a number: at least one CPU that is there.
    fn cpu_set(&mut self, value: &Value, cpus: u32) -> Option<Vec<u32>> {
        let set = match &value.kind {
            Kind::Number(cpu) => cpu_set(&cpu.to_string(), cpus),
            Kind::Text(text) => cpu_set(text, cpus),
            Kind::List(_) => Err("cpus within cpus".into()),
        };
        match set {
            Ok(set) => Some(set),
            Err(text) => {
                self.refuse(value.place, text);
                None
            }
        }
    }

    fn disks(&mut self) -> Vec<Disk> {
        let mut disks: Vec<Disk> = Vec::new();
        let Some(setting) = self.config.get("disk") else {
            return disks;
        };
        let Kind::List(list) = &setting.value.kind else {
            self.expected(setting, "a list");
            return disks;
        };
        for value in list {
            let Kind::Text(text) = &value.kind else {
                self.refuse(value.place, "disk: a list of strings is expected");
                continue;
            };
            match disk::parse(text) {
                Ok(disk) if disks.iter().any(|other| other.vdev == disk.vdev) => {
                    self.refuse(value.place, format!("disk: two are called {}", disk.vdev));
                }
                Ok(disk) => disks.push(disk),
                Err(error) => self.refuse(value.place, format!("disk: {error}")),
            }
        }
        disks
    }

    /// Without the key it is what xl takes on a machine whose Xen has both.
    fn max_grant_version(&mut self) -> Option<u32> {
        if self.config.get("max_grant_version").is_none() {
            return Some(2);
        }
        match self.number("max_grant_version")? {
            (1, _) => Some(1),
            (2, _) => Some(2),
            (other, place) => {
                self.refuse(place, format!("max_grant_version is 1 or 2, not {other}"));
                None
            }
        }
    }

    fn uuid(&mut self) {
        let Some((uuid, place)) = self.text("uuid") else {
            return;
        };
        let digits = uuid.bytes().filter(u8::is_ascii_hexdigit).count();
        let others = uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        if digits != 32 || !others {
            self.refuse(place, format!("{uuid:?} is no uuid"));
        }
    }

    /// True if the guest is built again.
    fn end(&mut self, name: &str, default: bool) -> bool {
        match self.text(name) {
            None => default,
            Some(("destroy", _)) => false,
            Some(("restart", _)) => true,
            Some((other, place)) => {
                let text =
                    format!("{name}: {other:?} is not supported, only \"destroy\" and \"restart\"");
                self.refuse(place, text);
                default
            }
        }
    }
}

fn cpu_set(text: &str, cpus: u32) -> Result<Vec<u32>, String> {
    let mut set = alloc::vec![false; cpus as usize];
    let mut without = set.clone();
    for part in text.split(',').map(str::trim) {
        let (into, range) = match part.strip_prefix('^') {
            Some(range) => (&mut without, range),
            None => (&mut set, part),
        };
        if range == "all" {
            into.fill(true);
            continue;
        }
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<usize>();
        let (Ok(first), Ok(last)) = (number(first), number(last)) else {
            return Err(format!("cpus: {part:?} is no CPU; write 0, 0-3, ^1 or all"));
        };
        let Some(range) = into.get_mut(first..last.saturating_add(1)) else {
            return Err(format!(
                "cpus: {part:?}, but the machine has CPUs 0 to {}",
                cpus - 1
            ));
        };
        range.fill(true);
    }
    let cpus = (0..cpus).zip(set.iter().zip(&without));
    let set: Vec<u32> = cpus
        .filter_map(|(cpu, (with, without))| (*with && !without).then_some(cpu))
        .collect();
    match set.is_empty() {
        true => Err(format!("cpus: {text:?} leaves no CPU")),
        false => Ok(set),
    }
}

#[cfg(test)]
mod tests;
