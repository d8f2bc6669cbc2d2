//! What is in an image: `cargo image inspect`. Works on the boot archive, an ISO and a raw disk
//! image. Images come from anywhere, so nothing here trusts them: what cannot be read is an error,
//! what does not fit together is a problem in the answer.

use std::fmt;

use anyhow::{Context, Result};
use idl::manifest::{Component, Exit, Guest, Manifest, Restart};
use idl::volume::{Backend, Disk, Source, Volume};
use microvisor_abi::archive::Archive;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::description::ROOT;
use crate::medium::{self, Kind};

/// Bytes and what they hash to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// How many.
    pub bytes: usize,
    /// SHA-256, in hexadecimal digits.
    pub sha256: String,
}

impl Blob {
    fn of(bytes: &[u8]) -> Blob {
        let hash = Sha256::digest(bytes);
        Blob {
            bytes: bytes.len(),
            sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    fn json(&self) -> Value {
        json!({ "bytes": self.bytes, "sha256": self.sha256 })
    }
}

/// What an image holds.
#[derive(Clone, Debug)]
pub struct Contents {
    /// What kind of file it is.
    pub kind: Kind,
    /// The whole file.
    pub image: Blob,
    /// The core; not in an archive.
    pub core: Option<Blob>,
    /// The boot archive.
    pub archive: Blob,
    /// Root: its segments, one after the other.
    pub root: Blob,
    /// Root's entry point.
    pub entry: u64,
    /// The manifest.
    pub manifest: Manifest,
    /// Every file of the archive.
    pub files: Vec<(String, Blob)>,
    /// What each guest's kernel is, in the manifest's order.
    pub kernels: Vec<String>,
    /// What does not fit together.
    pub problems: Vec<String>,
}

/// Reads an image.
pub fn inspect(image: &[u8]) -> Result<Contents> {
    let medium = medium::open(image)?;
    let archive = Archive::parse(&medium.archive).map_err(|why| {
        anyhow::anyhow!("its boot archive is damaged: {why:?}; build the image again")
    })?;
    let manifest = Manifest::decode(archive.manifest())
        .map_err(|why| anyhow::anyhow!("{why}"))
        .context("its manifest cannot be read")?;
    let mut root = Vec::new();
    for segment in archive.segments() {
        root.extend_from_slice(archive.segment_bytes(&segment));
    }
    let kernel = |guest: &Guest| match archive.file(&guest.kernel) {
        Some((_, bytes)) => kernel(bytes),
        None => "missing".into(),
    };
    Ok(Contents {
        kind: medium.kind,
        image: Blob::of(image),
        core: medium.core.as_deref().map(Blob::of),
        archive: Blob::of(&medium.archive),
        root: Blob::of(&root),
        entry: archive.entry(),
        files: archive
            .files()
            .map(|(name, _, bytes)| (name.to_owned(), Blob::of(bytes)))
            .collect(),
        kernels: manifest.guests.iter().map(kernel).collect(),
        problems: problems(&archive, &manifest),
        manifest,
    })
}

fn problems(archive: &Archive<'_>, manifest: &Manifest) -> Vec<String> {
    let mut named: Vec<(String, &str)> = Vec::new();
    for component in &manifest.components {
        let who = format!("component {}", component.name);
        named.push((who.clone(), &component.file));
        named.extend(
            component
                .files
                .iter()
                .map(|file| (who.clone(), file.as_str())),
        );
    }
    for guest in &manifest.guests {
        let who = format!("guest {}", guest.name);
        named.push((who.clone(), &guest.kernel));
        named.extend(guest.initrd.iter().map(|file| (who.clone(), file.as_str())));
    }
    let mut out: Vec<String> = named
        .into_iter()
        .filter(|(_, file)| archive.file(file).is_none())
        .map(|(who, file)| format!("{who}: its file {file} is not in the archive"))
        .collect();
    for guest in &manifest.guests {
        for name in [&guest.builder, &guest.vmm] {
            if manifest.component(name).is_none_or(|c| !c.per_guest) {
                out.push(format!(
                    "guest {}: {name} is not a component with `per-guest = true`",
                    guest.name
                ));
            }
        }
    }
    out
}

/// What a kernel file is, as far as it says so itself.
fn kernel(file: &[u8]) -> String {
    const BANNER: &[u8] = b"Linux version ";
    if guest_loader::bzimage::is_bzimage(file) {
        // `kernel_version` (Linux, Documentation/arch/x86/boot.rst): from offset 0x200.
        let pointer = file.get(0x20e..0x210).and_then(|b| b.first_chunk());
        let version = pointer
            .map(|at| 0x200 + usize::from(u16::from_le_bytes(*at)))
            .and_then(|at| file.get(at..));
        return format!("Linux {}, compressed", word(version.unwrap_or(&[])));
    }
    if !guest_loader::kernel::is_elf(file) {
        return "no kernel".into();
    }
    let banner = file
        .windows(BANNER.len())
        .position(|window| window == BANNER)
        .and_then(|at| file.get(at + BANNER.len()..));
    match (banner, guest_loader::kernel::parse(file)) {
        (Some(banner), _) => format!("Linux {}", word(banner)),
        (None, Ok(_)) => "ELF with a PVH entry".into(),
        (None, Err(_)) => "ELF without a PVH entry".into(),
    }
}

/// The first word, of letters that can be shown.
fn word(bytes: &[u8]) -> String {
    let shown = bytes
        .iter()
        .take(100)
        .take_while(|byte| byte.is_ascii_graphic());
    shown.map(|&byte| char::from(byte)).collect()
}

/// `restart` as `system.toml` has it.
pub fn restart(restart: Restart) -> String {
    match restart {
        Restart::Never => "never".into(),
        Restart::Always => "always".into(),
        Restart::Limited { times, seconds } => {
            format!("at most {times} times in {seconds} seconds")
        }
    }
}

/// Text out of an image: control characters in it would reach the terminal.
pub fn shown(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

impl Contents {
    fn file(&self, name: &str) -> Option<&Blob> {
        let found = self.files.iter().find(|(file, _)| file == name);
        found.map(|(_, blob)| blob)
    }

    /// The same as an object; sizes in bytes unless a key says otherwise.
    pub fn json(&self) -> Value {
        let file = |name: &str| json!({ "file": name, "content": self.file(name).map(Blob::json) });
        let component = |c: &Component| {
            let needs = c.needs.iter();
            let ports = c.ports.iter();
            json!({
                "name": c.name,
                "program": file(&c.file),
                "per_guest": c.per_guest,
                "priority": c.priority,
                "share": c.share,
                "cpu": c.cpu,
                "memory_bytes": c.memory_bytes,
                "threads": c.threads,
                "serves": c.serves,
                "needs": needs.map(|n| json!({ "interface": n.interface, "server": n.server })).collect::<Vec<_>>(),
                "ports": ports.map(|p| json!({ "first": p.first, "count": p.count })).collect::<Vec<_>>(),
                "interrupts": c.interrupts,
                "files": c.files,
                "restart": restart(c.restart),
                "volumes": c.volumes.iter().map(volume).collect::<Vec<_>>(),
            })
        };
        let guest = |(g, kernel): (&Guest, &String)| {
            json!({
                "name": g.name,
                "memory_mib": g.memory_mib,
                "vcpus": g.vcpus,
                "kernel": file(&g.kernel),
                "kernel_is": kernel,
                "initrd": g.initrd.as_deref().map(file),
                "cmdline": g.cmdline,
                "builder": g.builder,
                "vmm": g.vmm,
                "console": g.console,
                "disks": g.disks.iter().map(disk).collect::<Vec<_>>(),
                "drivers": g.drivers,
                "max_grant_version": g.max_grant_version,
            })
        };
        let components: Vec<Value> = self.manifest.components.iter().map(component).collect();
        let guests = self.manifest.guests.iter().zip(&self.kernels);
        let files = self.files.iter();
        json!({
            "kind": self.kind.to_string(),
            "image": self.image.json(),
            "core": self.core.as_ref().map(Blob::json),
            "archive": self.archive.json(),
            "root": { "entry": self.entry, "content": self.root.json() },
            "exit": exit(self.manifest.exit),
            "components": components,
            "guests": guests.map(guest).collect::<Vec<_>>(),
            "files": files.map(|(name, blob)| json!({ "name": name, "content": blob.json() })).collect::<Vec<_>>(),
            "problems": self.problems,
        })
    }
}

/// `source` as `system.toml` has it, but for images, which are named by their place in the archive.
fn source(source: &Source) -> String {
    match source {
        Source::Disk => "disk".into(),
        Source::PartitionLabel(label) => format!("partition:label={label}"),
        Source::PartitionUuid(bytes) => {
            let hex = |order: &[usize]| {
                let digits = order.iter().filter_map(|&at| bytes.get(at));
                digits.map(|byte| format!("{byte:02x}")).collect::<String>()
            };
            // The first three groups are little-endian (UEFI specification 2.10, appendix A).
            let groups: [&[usize]; 5] = [
                &[3, 2, 1, 0],
                &[5, 4],
                &[7, 6],
                &[8, 9],
                &[10, 11, 12, 13, 14, 15],
            ];
            format!("partition:uuid={}", groups.map(hex).join("-"))
        }
        Source::File(name) => format!("file:{name}"),
    }
}

fn volume(v: &Volume) -> Value {
    json!({
        "name": v.name.as_str(),
        "source": source(&v.source),
        "read_only": v.read_only,
        "overlay_bytes": v.overlay_bytes,
    })
}

fn served_by(disk: &Disk) -> (&'static str, &str) {
    match &disk.backend {
        Backend::Component(name) => ("component", name),
        Backend::Guest(name) => ("guest", name),
    }
}

fn disk(d: &Disk) -> Value {
    let (kind, name) = served_by(d);
    json!({
        "volume": d.volume.as_str(),
        "device": d.device.as_str(),
        "read_only": d.read_only,
        "discard": d.discard,
        "backend": { kind: name },
    })
}

fn exit(exit: Exit) -> &'static str {
    match exit {
        Exit::Never => "never",
        Exit::WhenGuestsStop => "when-guests-stop",
    }
}

/// One right a line, as people read them; `None` for an empty list.
fn rights(c: &Component) -> Vec<String> {
    let mut out = Vec::new();
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
    let mut add = |what: &str, items: String| {
        if !items.is_empty() {
            out.push(format!("{what} {items}"));
        }
    };
    add("serves", list(&mut c.serves.iter().cloned()));
    let needs = &mut c
        .needs
        .iter()
        .map(|n| format!("{} of {}", n.interface, n.server));
    add("calls", list(needs));
    let ports = &mut c.ports.iter().map(|p| {
        let last = u32::from(p.first) + u32::from(p.count.max(1)) - 1;
        format!("{:#x} to {last:#x}", p.first)
    });
    add("ports", list(ports));
    let lines = &mut c.interrupts.iter().map(u32::to_string);
    add("interrupt lines", list(lines));
    add("reads", list(&mut c.files.iter().cloned()));
    for v in &c.volumes {
        let mode = match (v.read_only, v.overlay_bytes) {
            (true, _) => ", read-only".into(),
            (false, 0) => String::new(),
            (false, bytes) => format!(", writes to {} KiB of its memory", bytes >> 10),
        };
        out.push(format!("volume {}: {}{mode}", v.name, source(&v.source)));
    }
    if c.restart != Restart::Never {
        out.push(format!("restarted {}", restart(c.restart)));
    }
    out
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, blob: &Blob| {
            let (bytes, hash) = (blob.bytes, &blob.sha256);
            writeln!(f, "{:32} {bytes:>11}  {hash}", shown(name))
        };
        writeln!(f, "{:32} {:>11}  sha256", "", "bytes")?;
        line(f, &self.kind.to_string(), &self.image)?;
        match &self.core {
            Some(core) => line(f, "core", core)?,
            None => writeln!(f, "{:32} {:>11}", "core", "not in it")?,
        }
        line(f, "archive", &self.archive)?;
        line(f, "root", &self.root)?;
        for (name, blob) in &self.files {
            line(f, name, blob)?;
        }
        for c in &self.manifest.components {
            let each = if c.per_guest {
                ", one for each guest"
            } else {
                ""
            };
            writeln!(
                f,
                "\ncomponent {}: {} KiB, threads {}, CPU {}, priority {}{each}",
                shown(&c.name),
                c.memory_bytes >> 10,
                u64::from(c.threads) + 1,
                c.cpu,
                c.priority
            )?;
            for right in rights(c) {
                writeln!(f, "    {}", shown(&right))?;
            }
        }
        for (g, kernel) in self.manifest.guests.iter().zip(&self.kernels) {
            writeln!(
                f,
                "\nguest {}: {} MiB, vCPUs on CPUs {:?}",
                shown(&g.name),
                g.memory_mib,
                g.vcpus
            )?;
            writeln!(f, "    kernel {}: {kernel}", shown(&g.kernel))?;
            if let Some(initrd) = &g.initrd {
                writeln!(f, "    initrd {}", shown(initrd))?;
            }
            for d in &g.disks {
                let (kind, name) = served_by(d);
                let mode = match (d.read_only, d.discard) {
                    (true, _) => ", read-only",
                    (false, true) => "",
                    (false, false) => ", without discard",
                };
                let (device, volume) = (shown(&d.device), shown(&d.volume));
                let name = shown(name);
                writeln!(
                    f,
                    "    disk {device}: volume {volume} of {kind} {name}{mode}"
                )?;
            }
            for driver in &g.drivers {
                writeln!(f, "    driver domain {}", shown(driver))?;
            }
            writeln!(f, "    command line {:?}", g.cmdline)?;
            writeln!(
                f,
                "    built by {}, run by {}, console {}",
                shown(&g.builder),
                shown(&g.vmm),
                if g.console.is_empty() {
                    "none".into()
                } else {
                    shown(&g.console)
                }
            )?;
        }
        writeln!(
            f,
            "\n{ROOT}: switches the machine off {}",
            exit(self.manifest.exit)
        )?;
        for problem in &self.problems {
            writeln!(f, "problem: {}", shown(problem))?;
        }
        Ok(())
    }
}
