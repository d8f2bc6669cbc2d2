//! Group `devices`: Debian 12 lives on a disk. The operator creates it of an xl.cfg file; its stock kernel and
//! initial RAM disk start it from `root=/dev/xvda1` to a login under systemd; a package is installed as apt-get does it; then backend and
//! driver are killed again and again while blocks are written, and what the guest was told is on the disk is
//! looked for in the disk's file, as are holes where it gave blocks up (`systems/debian.toml`). Then guests whose disks' front ends misbehave
//! ([`hostile`]), a disk by version 2 of the grant table ([`versions`]), and guests that look for the ends of
//! what disks are made of ([`volumes`]).

mod blocks;
mod hostile;
mod rootfs;
mod versions;
mod volumes;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use image_builder::qemu::{Machine, POWERED_OFF};

use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Seconds until Debian asks who logs in.
const LOGIN: u64 = 900;
/// Seconds for a command that reads a few files.
const SOON: u64 = 180;
/// Seconds for the load, and for the blocks between two kills.
const LOAD: u64 = 900;
/// Kills of each component when the group is named, and with `--full`.
const KILLS: u64 = 4;
const KILLS_FULL: u64 = 20;
/// Bytes that the disk writes in a second: slow enough that a driver has requests open at most times. With
/// four times as much, a busy machine's backend copied data more slowly than the disk wrote it, and in 11 of 20
/// kills the driver had nothing to lose.
const WRITES: u64 = 1 << 20;
/// Blocks that are acknowledged between two kills, and writers.
const EVERY: u64 = 24;
const WRITERS: u64 = 8;
/// Blocks of partition `blocks`.
const BLOCKS: u64 = rootfs::BLOCKS_BYTES / 4096;

/// Where in partition `blocks` something is written and half of it given up, in MiB: behind the blocks.
const FILLED: Range<u64> = 48..52;
const GIVEN_UP: Range<u64> = 49..51;
const MIB: u64 = 1 << 20;
const _: () = assert!(EVERY * (KILLS_FULL + 1) * 2 <= FILLED.start * MIB / 4096);

/// A machine.
struct Kind {
    title: &'static str,
    /// Of `systems`; none for QEMU without a hypervisor in it.
    system: Option<&'static str>,
    /// The driver's component.
    driver: &'static str,
    /// QEMU's device for the drive `disk`.
    device: &'static str,
    /// With `--full` only.
    full: bool,
}

const KINDS: &[Kind] = &[
    Kind {
        title: "debian-virtio",
        system: Some("debian"),
        driver: "virtio-blk",
        device: "virtio-blk-pci,drive=disk,disable-legacy=on,num-queues=2",
        full: false,
    },
    Kind {
        title: "debian-nvme",
        system: Some("debian-nvme"),
        driver: "nvme",
        device: "nvme,drive=disk,serial=debian",
        full: true,
    },
    // What the same disk does without us: where this fails, the disk is to blame.
    Kind {
        title: "debian-plain",
        system: None,
        driver: "",
        device: "virtio-blk-pci,drive=disk,disable-legacy=on",
        full: true,
    },
];

/// A machine under test.
struct Subject {
    session: Session,
    disk: PathBuf,
    driver: &'static str,
    /// The guest's name of its disk.
    device: &'static str,
    kills: u64,
    /// The next block that nobody wrote yet.
    next: u64,
}

/// On the microvisor, before it boots: there is no guest in the description.
const CREATE: &[Claim<Subject>] = &[("the_operator_creates_it_of_a_file", |s| {
    // What is typed before the console listens is lost.
    s.session.expect("[toolstack] commands: ", SOON)?;
    s.session.send("\x1d0create -c debian.cfg\r")?;
    let created = s.session.expect("[console] guest console: debian", LOGIN);
    created.map(|_| ())
})];

const BEGIN: &[Claim<Subject>] = &[
    ("debian_boots_from_its_disk_to_a_login_prompt", |s| {
        s.session.expect("debian login: ", LOGIN).map(|_| ())
    }),
    ("root_logs_in", login),
    ("systemd_has_no_failed_unit", |s| {
        says(s, "systemctl --failed --no-legend --plain", "")?;
        says(s, "cat /proc/1/comm", "systemd")
    }),
    ("the_root_is_the_first_partition_of_the_disk", |s| {
        let expected = format!("/dev/{}1 ext4", s.device);
        says(s, "findmnt -n -o SOURCE,FSTYPE /", &expected)
    }),
    ("a_package_is_installed_as_apt_does_it", |s| {
        let said = s.session.shell("load 2>&1", LOAD)?;
        ensure!(said.contains(" files are what they were"), "{said:?}");
        Ok(())
    }),
];

/// On the microvisor.
const HERE: &[Claim<Subject>] = &[
    ("the_disk_is_xens", |s| {
        says(s, "cat /sys/hypervisor/guest_type", "PVH")?;
        says(s, "cat /sys/block/xvda/device/devtype", "vbd")
    }),
    ("a_backend_killed_amid_writes_fails_none", |s| {
        written(s, Some("blkback"))
    }),
    ("a_driver_killed_amid_writes_fails_none", |s| {
        let driver = s.driver;
        written(s, Some(driver))
    }),
    ("blocks_that_were_given_up_are_holes_in_the_disk", given_up),
    ("a_file_system_gives_up_what_is_free_in_it", |s| {
        let said = s.session.shell("fstrim -v / 2>&1", SOON)?;
        ensure!(said.contains(" trimmed"), "{said:?}");
        ensure!(!said.contains("/: 0 B"), "{said:?}");
        Ok(())
    }),
];

/// Elsewhere.
const PLAIN: &[Claim<Subject>] = &[("blocks_are_written", |s| written(s, None))];

const END: &[Claim<Subject>] = &[
    ("what_was_installed_is_read_back_from_the_disk", |s| {
        s.session.shell("echo 3 >/proc/sys/vm/drop_caches", SOON)?;
        says(s, "dpkg --verify xkb-data", "")?;
        let errors = "dmesg | grep -c -E 'I/O error|EXT4-fs error|blk_update_request'; true";
        says(s, errors, "0")
    }),
    ("debian_switches_off", |s| {
        s.session.send("systemctl poweroff\n")?;
        let (says, expected) = match s.driver {
            "" => ("Power down", 0),
            _ => ("[root] guest debian: poweroff", POWERED_OFF),
        };
        s.session.saw(says, LOGIN)?;
        let status = s.session.wait(SOON)?;
        ensure!(status == expected, "QEMU's status is {status}");
        Ok(())
    }),
    ("no_acknowledged_block_is_missing_on_the_disk", |s| {
        let told = blocks::acknowledged(&s.session.text());
        // What other lines broke into is not counted; that is little.
        let (seen, written) = (told.len() as u64, s.next);
        ensure!(
            20 * seen >= 19 * written,
            "of {written} blocks only {seen} were seen to be acknowledged"
        );
        blocks::are_there(&s.disk, rootfs::BLOCKS_AT, &told)
    }),
    ("the_file_system_on_the_disk_is_clean", |s| {
        let place = format!("{}?offset={}", s.disk.display(), rootfs::ROOT_AT);
        let checked = rootfs::run(Command::new("/sbin/e2fsck").args(["-f", "-n", &place]))?;
        ensure!(checked.contains("root: "), "{checked}");
        Ok(())
    }),
];

/// Runs the group: without the machines of Debian unless it is `named` or all is wanted.
pub fn run(machines: &mut Machines, report: &mut Report, named: bool, full: bool) {
    for kind in KINDS {
        if !machines.wants(kind.title) {
            continue;
        }
        if !full && (kind.full || !named) {
            report.leave_out(kind.title);
            continue;
        }
        let mut subject = boot(machines, kind, full);
        let (create, amid): (&[_], &[_]) = match kind.system {
            Some(_) => (CREATE, HERE),
            None => (&[], PLAIN),
        };
        // Without claims nobody would say why there is no machine.
        let parts = [create, BEGIN, amid, END];
        for claims in parts.into_iter().filter(|claims| !claims.is_empty()) {
            let left = report.prefixed(kind.title, subject, claims);
            subject = left.context("the machine did not start");
        }
        // It takes hundreds of MiB, and says nothing that the claims have not said.
        if let Ok(subject) = subject {
            let _ = std::fs::remove_file(subject.disk);
        }
    }
    hostile::run(machines, report);
    versions::run(machines, report);
    volumes::run(machines, report, full);
}

fn boot(machines: &mut Machines, kind: &Kind, full: bool) -> Result<Subject> {
    let cache = machines.workspace.root.join("build/cache");
    let made = rootfs::ensure_made(&cache)?;
    let disk = machines.folder().join(format!("{}.img", kind.title));
    copy(&made.disk, &disk)?;
    // A comma in an option's value is written twice.
    let file = disk.display().to_string().replace(',', ",,");
    let drive = format!(
        "if=none,id=disk,format=raw,discard=unmap,throttling.bps-write={WRITES},file={file}"
    );
    let further = ["-drive", &drive, "-device", kind.device];
    let session = match kind.system {
        Some(system) => {
            let image = machines.image(system)?;
            machines.boot_with(kind.title, &image, &Machine::of(&image), |qemu| {
                qemu.args(further);
            })?
        }
        None => {
            let mut qemu = Command::new("qemu-system-x86_64");
            qemu.args(["-M", "q35", "-cpu", "max", "-m", "384M", "-no-reboot"]);
            qemu.args(["-display", "none", "-nic", "none", "-serial", "stdio"]);
            qemu.arg("-kernel").arg(made.kernel);
            qemu.arg("-initrd").arg(made.initrd);
            qemu.args(["-append", "console=ttyS0 root=/dev/vda1 loglevel=4"]);
            let transcript = machines.folder().join(format!("{}.log", kind.title));
            qemu.args(further);
            Session::start(qemu, &transcript)?
        }
    };
    Ok(Subject {
        session,
        disk,
        driver: kind.driver,
        device: if kind.system.is_some() { "xvda" } else { "vda" },
        kills: if full { KILLS_FULL } else { KILLS },
        next: 0,
    })
}

/// A copy that leaves holes holes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file without a folder")?;
    std::fs::create_dir_all(folder)?;
    rootfs::run(Command::new("cp").arg("--sparse=always").arg(from).arg(to)).map(|_| ())
}

fn login(s: &mut Subject) -> Result<()> {
    s.session.send("root\n")?;
    s.session.expect("debian:~# ", SOON)?;
    // A shell that does not edit lines, so that what is typed comes back as it is.
    s.session.send("exec sh\n")?;
    s.session.shell("stty -echo cols 200", SOON).map(|_| ())
}

/// What a command prints, without the lines that components log meanwhile.
fn says(s: &mut Subject, command: &str, expected: &str) -> Result<()> {
    let text = s.session.shell(command, SOON)?;
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !crate::store::is_log(line))
        .collect();
    let said = lines.join("\n");
    let said: Vec<&str> = said.split_whitespace().collect();
    let said = said.join(" ");
    ensure!(said == expected, "{command}: {said:?}, not {expected:?}");
    Ok(())
}

/// Blocks that were written and given up are zeros to the guest, and holes in the file; those beside them are
/// what was written.
fn given_up(s: &mut Subject) -> Result<()> {
    let partition = format!("/dev/{}2", s.device);
    let (first, count) = (FILLED.start, FILLED.end - FILLED.start);
    let bytes = count * MIB;
    let fill = format!(
        "head -c {bytes} /dev/zero | tr '\\0' U | dd of={partition} bs=1M seek={first} iflag=fullblock \
         oflag=direct conv=fsync status=none && echo filled"
    );
    says(s, &fill, "filled")?;
    let taken = |s: &Subject| -> Result<u64> { Ok(s.disk.metadata()?.blocks() * 512) };
    let before = taken(s)?;
    let (at, bytes) = (GIVEN_UP.start * MIB, (GIVEN_UP.end - GIVEN_UP.start) * MIB);
    let discard = format!("blkdiscard -o {at} -l {bytes} {partition} && echo gone");
    says(s, &discard, "gone")?;
    // Beside it, others may write a little.
    let after = taken(s)?;
    ensure!(
        after + bytes * 3 / 4 <= before,
        "the file takes {after} bytes, and took {before} before {bytes} were given up"
    );
    // A letter for each MiB, if it has one.
    let read = format!(
        "for n in $(seq {first} {}); do dd if={partition} bs=1M skip=$n count=1 iflag=direct status=none | \
         tr '\\0U' 01 | tr -s 01; echo; done",
        FILLED.end - 1
    );
    let letters = FILLED.map(|at| if GIVEN_UP.contains(&at) { "0" } else { "1" });
    says(s, &read, &letters.collect::<Vec<_>>().join(" "))?;
    let mut file = File::open(&s.disk)?;
    file.seek(SeekFrom::Start(rootfs::BLOCKS_AT + first * MIB))?;
    for at in FILLED {
        let mut piece = vec![0; MIB as usize];
        file.read_exact(&mut piece)?;
        let expected = if GIVEN_UP.contains(&at) { 0 } else { b'U' };
        let wrong = piece.iter().position(|byte| *byte != expected);
        ensure!(wrong.is_none(), "MiB {at} differs at {wrong:?}");
    }
    Ok(())
}

/// Blocks are written, while a component is killed again and again if one is named: every write and every
/// fsync succeeds.
fn written(s: &mut Subject, victim: Option<&str>) -> Result<()> {
    let restarts = |s: &Subject| {
        let line = format!("component {}: restarted (", victim.unwrap_or_default());
        s.session.text().matches(&line).count() as u64
    };
    let before = restarts(s);
    let place = s.session.text().len();
    let count = EVERY * (s.kills + 1);
    ensure!(s.next + count <= BLOCKS, "the partition is too small");
    let (first, kills, device) = (s.next, s.kills, s.device);
    s.next += count;
    let order = victim.map_or(String::new(), |victim| format!("{EVERY} 'kill {victim}'"));
    let blocks = format!("blocks /dev/{device}2 {first} {count} {WRITERS} {order} 2>&1");
    // Beside it, two writers of many requests each go past the cache, so that ring and driver are hardly ever
    // idle: while one thinks, the other's data is under way.
    let command = match victim {
        None => blocks,
        Some(_) => format!(
            "rm -f /run/stop; for n in 1 2; do (until [ -e /run/stop ]; do dd if=/dev/zero of=/root/pressure$n \
             bs=1M count=16 conv=notrunc oflag=direct status=none || echo pressure failed; done) & done; \
             {blocks}; touch /run/stop; wait"
        ),
    };
    let said = s.session.shell(&command, LOAD + 60 * kills)?;
    ensure!(!said.contains("pressure failed"), "{said:?}");
    let all = format!("acknowledged {count} of {count}");
    ensure!(said.contains(&all), "{said:?}");
    let Some(victim) = victim else {
        return Ok(());
    };
    let restarts = restarts(s) - before;
    let text = s.session.text();
    ensure!(
        restarts == kills,
        "root restarted {victim} {restarts} times, not {kills}"
    );
    // Where all requests were answered before, a kill shows nothing.
    let amid = open_at_kills(text.get(place..).unwrap_or_default(), victim);
    ensure!(
        4 * amid >= 3 * kills,
        "only {amid} of {kills} kills of {victim} came while requests were open"
    );
    Ok(())
}

/// Kills of `victim` at which requests had no answer yet, by what blkback says: when it goes on with a ring of
/// an instance before it, or puts requests to a driver again.
fn open_at_kills(text: &str, victim: &str) -> u64 {
    let open = |line: &str| -> Option<u64> {
        let line = line.strip_prefix("[blkback] ")?;
        let (before, after) = match victim {
            "blkback" => (" goes on: ", " requests open"),
            _ => ("started again; ", " requests were put to it again"),
        };
        line.split_once(before)?.1.split_once(after)?.0.parse().ok()
    };
    let kills = text.lines().filter_map(open);
    kills.filter(|requests| *requests > 0).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_without_open_requests_are_no_kills() {
        let text = "[blkback] domain 1: disk 51712 is connected: 0 requests open, 700 MiB\r\n\
                    [blkback] domain 1: disk 51712 goes on: 3 requests open, 700 MiB\r\n\
                    ack 5;\r\n\
                    [blkback] domain 1: disk 51712 goes on: 0 requests open, 700 MiB\r\n\
                    [blkback] the disk's driver was started again; 2 requests were put to it again\r\n\
                    [blkback] the disk's driver was started again; 0 requests were put to it again\r\n\
                    [guest] the disk's driver was started again; 2 requests were put to it again\r\n";
        assert_eq!(open_at_kills(text, "blkback"), 1);
        assert_eq!(open_at_kills(text, "virtio-blk"), 1);
        assert_eq!(open_at_kills("", "blkback"), 0);
    }
}
