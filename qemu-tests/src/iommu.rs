//! Group `iommu`: a driver, its device, and what holds the device. The images of `systems/disk.toml`
//! (virtio) and `systems/disk-nvme.toml` on machines without an IOMMU, with Intel's and with AMD's;
//! `components/disk-probe` verifies the disk and has its driver killed amid writes. What it logs is judged here, by functions of the text that
//! have tests of their own, and what the disk holds afterwards is read from its file.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use image_builder::image::Image;
use image_builder::qemu::Machine;

use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Seconds for the probe's script, kills included.
const SCRIPT: u64 = 900;
/// Bytes of the disk.
const DISK: u64 = 64 << 20;
/// Kills in the gate, and with `--full`.
const KILLS: usize = 20;
const KILLS_FULL: usize = 100;
/// What the probe writes (`components/disk-probe/src/pattern.rs`).
const UNIT: usize = 4096;
const UNITS: usize = 4096;

/// A machine.
struct Kind {
    title: &'static str,
    disk: &'static Disk,
    /// Its IOMMU, for QEMU.
    iommu: Option<&'static str>,
    /// What root says of it.
    says: &'static str,
}

const OPEN: &str = "WARN: DMA IS NOT PROTECTED";
const VTD: &str = "intel-iommu,intremap=on";
const BY_VTD: &str = "devices are kept to their drivers' memory by Intel VT-d";
/// With `pt=on`, its default, it lets pass what it should translate.
const AMDVI: &str = "amd-iommu,intremap=on,xtsup=on,pt=off";
const BY_AMDVI: &str = "devices are kept to their drivers' memory by AMD-Vi";

/// A kind of disk and its driver.
struct Disk {
    /// The driver's component.
    driver: &'static str,
    /// The file in `systems`.
    system: &'static str,
    /// What `pci` lists for it.
    listed: &'static str,
    /// For QEMU, behind the drive `disk`.
    device: &'static str,
}

const VIRTIO: &Disk = &Disk {
    driver: "virtio-blk",
    system: "disk",
    listed: "1af4:1042",
    device: "virtio-blk-pci,drive=disk,disable-legacy=on,num-queues=2,iommu_platform=on",
};

const NVME: &Disk = &Disk {
    driver: "nvme",
    system: "disk-nvme",
    listed: "class 010802",
    device: "nvme,drive=disk,serial=1",
};

const KINDS: &[Kind] = &[
    Kind {
        title: "disk-open",
        disk: VIRTIO,
        iommu: None,
        says: OPEN,
    },
    Kind {
        title: "disk-vtd",
        disk: VIRTIO,
        iommu: Some(VTD),
        says: BY_VTD,
    },
    Kind {
        title: "disk-amdvi",
        disk: VIRTIO,
        iommu: Some(AMDVI),
        says: BY_AMDVI,
    },
    Kind {
        title: "nvme-open",
        disk: NVME,
        iommu: None,
        says: OPEN,
    },
    Kind {
        title: "nvme-vtd",
        disk: NVME,
        iommu: Some(VTD),
        says: BY_VTD,
    },
    Kind {
        title: "nvme-amdvi",
        disk: NVME,
        iommu: Some(AMDVI),
        says: BY_AMDVI,
    },
];

/// A machine whose probe has come to its end.
struct Subject {
    text: String,
    kind: &'static Disk,
    disk: PathBuf,
    kills: usize,
    says: &'static str,
}

const ALWAYS: &[Claim<Subject>] = &[
    ("boot_says_what_holds_devices", |s| {
        said(&s.text, "root", s.says).map(|_| ())
    }),
    (
        "a_function_goes_to_the_driver_that_the_manifest_names",
        |s| handed_out(&s.text, s.kind),
    ),
    ("every_unit_is_read_as_it_was_written", |s| written(&s.text)),
    (
        "requests_that_no_disk_has_are_answered_with_their_fault",
        |s| faults(&s.text),
    ),
    ("a_ring_that_jumps_is_told_and_goes_on", |s| jumps(&s.text)),
    ("a_driver_killed_amid_writes_loses_none", |s| {
        kills(&s.text, s.kind, s.kills)
    }),
    ("the_disks_file_holds_what_was_written_last", |s| {
        let sum = said(
            &s.text,
            "probe",
            &format!("the first {UNITS} units sum up to "),
        )?;
        on_file(&read_units(&s.disk)?, sum)
    }),
    ("the_device_sends_messages", |s| messages(&s.text, s.kind)),
];

/// Where there is an IOMMU.
const HELD: &[Claim<Subject>] = &[("the_devices_addresses_are_not_the_machines", |s| {
    translated(&s.text)
})];

/// Runs the group.
pub fn run(machines: &mut Machines, report: &mut Report, full: bool) {
    for kind in KINDS
        .iter()
        .filter(|kind| machines.wants(kind.title))
        .collect::<Vec<_>>()
    {
        let subject = subject(machines, kind, full);
        let subject = report.prefixed(kind.title, subject, ALWAYS);
        if kind.iommu.is_some() {
            let subject = subject.context("the machine did not get so far");
            report.prefixed(kind.title, subject, HELD);
        }
    }
    if machines.wants("disk-refused") {
        report.claim(
            "without_an_iommu_and_without_leave_no_driver_starts",
            || refused(machines),
        );
    }
    if machines.wants("disk-past") {
        report.claim("a_device_that_goes_past_the_iommu_is_not_driven", || {
            past(machines)
        });
    }
}

/// The image with so many kills: the probe knows them by its name.
fn with_kills(image: &Image, kills: usize, allowed: bool) -> Result<Image> {
    let mut image = image.clone();
    for component in &mut image.manifest.components {
        if component.name.starts_with("probe-") {
            component.name = format!("probe-{kills}");
        }
    }
    image.manifest.allow_unprotected_dma = allowed;
    image.contents.manifest = image.manifest.encode();
    image.archive = image.folder.join(format!("archive-{kills}-{allowed}"));
    image.write_archive(&image.archive)?;
    Ok(image)
}

/// Boots with a new disk.
fn boot(
    machines: &Machines,
    title: &str,
    image: &Image,
    iommu: Option<&str>,
    device: &str,
) -> Result<(Session, PathBuf)> {
    let disk = machines.folder().join(format!("{title}.img"));
    fs::create_dir_all(machines.folder())?;
    File::create(&disk)
        .and_then(|file| file.set_len(DISK))
        .with_context(|| format!("cannot make {}", disk.display()))?;
    // A comma in an option's value is written twice.
    let file = disk.display().to_string().replace(',', ",,");
    let mut further = Vec::new();
    if let Some(iommu) = iommu {
        further.extend(["-device".to_owned(), iommu.to_owned()]);
    }
    further.extend([
        "-drive".to_owned(),
        format!("if=none,id=disk,format=raw,file={file}"),
        "-device".to_owned(),
        device.to_owned(),
    ]);
    let machine = Machine::of(image);
    let session = machines.boot_with(title, image, &machine, |qemu| {
        qemu.args(&further);
    })?;
    Ok((session, disk))
}

fn subject(machines: &mut Machines, kind: &Kind, full: bool) -> Result<Subject> {
    let kills = if full { KILLS_FULL } else { KILLS };
    let image = with_kills(&machines.image(kind.disk.system)?, kills, true)?;
    let device = kind.disk.device;
    let (mut session, disk) = boot(machines, kind.title, &image, kind.iommu, device)?;
    session.saw(&format!("[probe-{kills}] script "), SCRIPT)?;
    session.saw(&format!("[probe-{kills}] script ends"), 1)?;
    // The probe's name is the same in all that is judged.
    let text = session
        .text()
        .replace(&format!("[probe-{kills}] "), "[probe] ");
    Ok(Subject {
        text,
        kind: kind.disk,
        disk,
        kills,
        says: kind.says,
    })
}

fn refused(machines: &mut Machines) -> Result<()> {
    let image = with_kills(&machines.image("disk")?, 0, false)?;
    let (mut session, _) = boot(machines, "disk-refused", &image, None, VIRTIO.device)?;
    session.saw("component virtio-blk: not started: without an IOMMU", 120)?;
    session.saw(
        "component probe-0: not started: a component that it needs is down",
        60,
    )?;
    ensure!(
        !session.text().contains("goes to virtio-blk"),
        "it got its device"
    );
    Ok(())
}

fn past(machines: &mut Machines) -> Result<()> {
    let image = with_kills(&machines.image("disk")?, 0, true)?;
    let device = VIRTIO.device.replace("platform=on", "platform=off");
    let (mut session, _) = boot(machines, "disk-past", &image, Some(VTD), &device)?;
    session.saw("devices are kept to their drivers' memory", 120)?;
    session.saw("it would go past the IOMMU", 120)
}

/// What `who` said after `what` on one line.
fn said<'a>(text: &'a str, who: &str, what: &str) -> Result<&'a str> {
    let start = format!("[{who}] {what}");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.map(str::trim_end)
        .with_context(|| format!("nobody said {start:?}"))
}

fn handed_out(text: &str, disk: &Disk) -> Result<()> {
    let driver = disk.driver;
    let listed = text.lines().find_map(|line| {
        let rest = line.strip_prefix("[pci] ")?;
        let (id, _) = rest.split_once(' ')?;
        rest.trim_end()
            .ends_with(&format!(", for {driver}"))
            .then_some((id, rest))
    });
    let (id, line) = listed.with_context(|| format!("no function is for {driver}"))?;
    ensure!(line.contains(disk.listed), "{line:?} is no such disk");
    said(text, "pci", &format!("{id} goes to {driver}")).map(|_| ())
}

fn written(text: &str) -> Result<()> {
    let wrong = said(
        text,
        "probe",
        &format!("wrote, flushed and read {UNITS} units: "),
    )?;
    ensure!(wrong == "0 wrong", "{wrong}");
    let large = said(text, "probe", "one request of 524288 bytes: ")?;
    ensure!(large == "128 of 128 units right", "{large}");
    Ok(())
}

fn faults(text: &str) -> Result<()> {
    for (what, status) in [
        ("beyond the end", "Range"),
        ("across the end", "Range"),
        ("at the end of all numbers", "Range"),
        ("no multiple of a block", "Alignment"),
        ("nothing", "Alignment"),
        ("at an odd place", "Alignment"),
        ("in the ring", "Place"),
        ("outside of the memory", "Place"),
        ("across the memory's end", "Place"),
        ("too long", "Length"),
        ("no operation", "Operation"),
    ] {
        let answer = said(text, "probe", &format!("{what}: "))?;
        ensure!(answer == status, "{what}: {answer}, not {status}");
    }
    Ok(())
}

fn jumps(text: &str) -> Result<()> {
    for by in [65, 1u32 << 31] {
        let answer = said(text, "probe", &format!("ring jumps by {by}: "))?;
        ensure!(
            answer == "Damaged",
            "a jump by {by} is answered with {answer}"
        );
    }
    let after = said(text, "probe", "after that unit 7 reads ")?;
    ensure!(after == "[7, 1]", "unit 7 reads {after}");
    Ok(())
}

fn kills(text: &str, disk: &Disk, kills: usize) -> Result<()> {
    let line = said(text, "probe", &format!("killed {kills} times, "))?;
    let (amid, rest) = line.split_once(" amid writes, ").context("no count")?;
    let amid: usize = amid.parse()?;
    // Where all were answered before, the kill shows nothing.
    ensure!(
        4 * amid >= 3 * kills,
        "only {amid} of {kills} kills came amid writes"
    );
    let expected = format!("attached again {kills} times: 0 of {UNITS} units wrong");
    ensure!(rest == expected, "{rest}, not {expected}");
    let restarted = format!("component {}: restarted (", disk.driver);
    let restarts = text.matches(&restarted).count();
    ensure!(
        restarts == kills,
        "root restarted it {restarts} times, not {kills}"
    );
    Ok(())
}

fn messages(text: &str, disk: &Disk) -> Result<()> {
    let start = format!("[{}] ", disk.driver);
    let line = text
        .lines()
        .find(|line| line.starts_with(&start) && line.contains(" blocks of 512 bytes"));
    let line = line.context("the driver says nothing of its disk")?;
    ensure!(line.contains(" message interrupt(s)"), "{line}");
    ensure!(line.contains("2 queue(s)"), "{line}");
    Ok(())
}

/// The number after `what`, in hexadecimal.
fn number(text: &str, what: &str) -> Result<u64> {
    let rest = text
        .split_once(what)
        .with_context(|| format!("nobody says {what:?}"))?
        .1;
    let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next();
    let digits = digits.context("no number")?;
    u64::from_str_radix(digits, 16).with_context(|| format!("{digits:?} is no number"))
}

/// The device works (other claims show it), and the addresses it is given lead elsewhere in the machine.
fn translated(text: &str) -> Result<()> {
    let physical = number(text, " MiB for devices at 0x")?;
    let device = number(text, "behind the IOMMU, its memory is at 0x")?;
    ensure!(physical != device, "the device uses physical addresses");
    Ok(())
}

fn read_units(disk: &PathBuf) -> Result<Vec<u64>> {
    let mut bytes = vec![0; UNIT * UNITS];
    File::open(disk)?.read_exact(&mut bytes)?;
    let words = bytes.chunks_exact(8);
    Ok(words
        .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
        .collect())
}

/// The words of a unit that was written for the `sequence`-th time.
fn content(unit: u64, sequence: u64) -> impl Iterator<Item = u64> {
    (0..UNIT as u64 / 8).map(move |word| {
        let mixed = (unit << 40 ^ sequence << 12 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match word {
            0 => unit,
            1 => sequence,
            _ => mixed ^ mixed >> 29,
        }
    })
}

/// Each unit is whole and itself, and together they are what the probe knows to have written.
fn on_file(words: &[u64], sum: &str) -> Result<()> {
    let mut found = 0u64;
    for (index, unit) in words.chunks_exact(UNIT / 8).enumerate() {
        let sequence = unit.get(1).copied().unwrap_or(0);
        if !content(index as u64, sequence).eq(unit.iter().copied()) {
            bail!("unit {index} is torn, or another one");
        }
        found = unit
            .iter()
            .fold(found, |sum, word| sum.rotate_left(1) ^ word);
    }
    let found = format!("{found:#018x}");
    ensure!(
        found == sum,
        "the file sums up to {found}, the probe wrote {sum}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_write_is_noticed_in_the_file() {
        let mut words: Vec<u64> = (0..3).flat_map(|unit| content(unit, 5)).collect();
        let sum = words
            .iter()
            .fold(0u64, |sum, word| sum.rotate_left(1) ^ word);
        let sum = format!("{sum:#018x}");
        assert!(on_file(&words, &sum).is_ok());
        // An older version of one unit; a torn one; a misplaced one.
        let old: Vec<u64> = content(1, 4).collect();
        words[512..1024].copy_from_slice(&old);
        assert!(
            on_file(&words, &sum)
                .unwrap_err()
                .to_string()
                .contains("sums up")
        );
        words[900] ^= 1;
        assert!(
            on_file(&words, &sum)
                .unwrap_err()
                .to_string()
                .contains("torn")
        );
        let other: Vec<u64> = content(2, 5).collect();
        words[512..1024].copy_from_slice(&other);
        assert!(on_file(&words, &sum).is_err());
    }

    #[test]
    fn kills_that_came_too_late_are_no_kills() {
        let line = |amid: usize, again: usize, wrong: usize| {
            let restarts = "[root] component virtio-blk: restarted (1)\n".repeat(20);
            let told = format!(
                "[probe] killed 20 times, {amid} amid writes, attached again {again} times: \
                 {wrong} of 4096 units wrong\n"
            );
            restarts + &told
        };
        assert!(kills(&line(15, 20, 0), VIRTIO, 20).is_ok());
        assert!(kills(&line(14, 20, 0), VIRTIO, 20).is_err());
        assert!(kills(&line(20, 19, 0), VIRTIO, 20).is_err());
        assert!(kills(&line(20, 20, 1), VIRTIO, 20).is_err());
        assert!(kills("", VIRTIO, 20).is_err());
    }

    #[test]
    fn physical_addresses_are_noticed() {
        let text = |device: &str| {
            format!(
                "[root] 4 MiB for devices at 0x8000000\nbehind the IOMMU, its memory is at {device}\n"
            )
        };
        assert!(translated(&text("0x10000000")).is_ok());
        assert!(translated(&text("0x8000000")).is_err());
        assert!(translated("").is_err());
    }

    #[test]
    fn wrong_answers_are_noticed() {
        assert!(faults("[probe] beyond the end: Done\n").is_err());
        assert!(jumps("[probe] ring jumps by 65: Done\n").is_err());
        assert!(written("[probe] wrote, flushed and read 4096 units: 1 wrong\n").is_err());
        let listed = "[pci] 00:04.0 1af4:1042 class 010000, for virtio-blk\n";
        assert!(handed_out(listed, VIRTIO).is_err());
        assert!(
            handed_out(
                &format!("{listed}[pci] 00:04.0 goes to virtio-blk\n"),
                VIRTIO
            )
            .is_ok()
        );
    }
}
