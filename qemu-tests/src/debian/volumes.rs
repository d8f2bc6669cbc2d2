//! What disks are made of, by guests that look for its ends (`systems/volumes.toml`): a partition is left by
//! nobody, an overlay holds what it says and is not given back older than it was, an image stays as it is. A
//! control, in whose build a volume has no bounds, has to fail.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image_builder::controls::DISK_CONTROLS;
use image_builder::gpt::{self, BACKUP, LINUX, Partition, SECTOR};
use image_builder::qemu::Machine;

use super::hostile::{after, done, scratch};
use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;

/// Seconds until a role has done what it does.
const ROLE: u64 = 900;
/// Bytes of a partition.
const PARTITION: u64 = 1 << 20;
/// The partitions, one after the other from byte [`PARTITION`] on. `mine` lies between two that nobody is
/// given; which of the last two is meant is nobody's to say.
const PARTITIONS: &[&str] = &[
    "before", "mine", "after", "parted", "good", "twice", "twice",
];
/// What every byte of them is at first.
const FOREIGN: u8 = 0x55;
/// A word of the image, which has the same bytes.
const IMAGE: &str = "Some(5555555555555555)";
/// What role `bounds` writes (`hostile-guest/src/disk/volumes.rs`).
const MARK: u64 = 0x6d61_726b_0000_0000;
/// What it tries that is not in its partition.
const BEYOND: &[&str] = &[
    "read behind the end",
    "read across the end",
    "read far behind the end",
    "read before the beginning",
    "read across the beginning",
    "write behind the end",
    "write across the end",
    "write far behind the end",
    "write before the beginning",
    "write across the beginning",
    "list read",
    "list written",
    "discard behind the end",
    "discard across the end",
    "discard far behind the end",
    "discard before the beginning",
    "discard across the beginning",
    "discard of more than there is",
];
/// Sectors that it gives up inside, which QEMU's `discard=unmap` makes zeros in the file.
const GIVEN_UP: std::ops::Range<u64> = 37..37 + 1001;
/// Pages that the overlay of `systems/volumes.toml` holds.
const HELD: u64 = (256 << 10) / 4096;

/// A machine.
pub struct Subject {
    session: Session,
    disk: PathBuf,
}

const CLAIMS: &[Claim<Subject>] = &[
    ("a_partition_ends_where_it_ends", |s| {
        done(&mut s.session, "bounds")?;
        ends(&s.session.text())
    }),
    ("a_partition_gives_up_what_is_inside", |s| {
        let text = s.session.text();
        ensure!(after(&text, "bounds: discard inside: ")? == "0");
        let reads = after(&text, "bounds: it reads: ")?;
        ensure!(reads == "Some(0)", "{reads}");
        Ok(())
    }),
    ("a_partition_is_written_to_both_ends", |s| {
        let text = s.session.text();
        ensure!(after(&text, "bounds: sectors: ")? == (PARTITION / SECTOR).to_string());
        for what in ["first page", "last page", "a read afterwards"] {
            let status = after(&text, &format!("bounds: {what}: "))?;
            ensure!(status == "0", "{what}: {status}");
        }
        Ok(())
    }),
    (
        "a_guest_that_parts_amid_requests_keeps_no_page_in_use",
        |s| {
            done(&mut s.session, "part")?;
            parts(&s.session.text())
        },
    ),
    ("an_overlay_holds_as_much_as_it_may", |s| {
        done(&mut s.session, "overlay")?;
        overlay(&s.session.text())
    }),
    ("what_an_overlay_held_is_not_given_back_older", |s| {
        let text = s.session.text();
        let closed = after(&text, "overlay: after a kill: ")?;
        ensure!(closed == "closed true", "{closed}");
        let why = "domain 1: disk 51712: what was written to the volume's memory is lost";
        s.session.saw(&format!("[blkback] ERROR: {why}"), 60)?;
        // To the guest that is another disk, which has what the image has.
        let anew = after(&text, "overlay: anew it is: ")?;
        ensure!(anew == IMAGE, "{anew}");
        Ok(())
    }),
    ("an_image_without_an_overlay_is_not_written", |s| {
        done(&mut s.session, "fixed")?;
        let text = s.session.text();
        ensure!(after(&text, "fixed: a write: ")? == "-1");
        // It was not offered.
        ensure!(after(&text, "fixed: a discard: ")? == "-2");
        ensure!(after(&text, "fixed: unchanged: ")? == "true");
        ensure!(after(&text, "fixed: a read afterwards: ")? == "0");
        Ok(())
    }),
    (
        "a_partition_that_is_not_there_or_there_twice_is_nobodys",
        |s| {
            for (volume, why) in [
                ("none", "the disk has no such partition"),
                ("twice", "more than one partition has this label"),
            ] {
                let line = format!("[blkback] ERROR: volume {volume}: {why}");
                s.session.saw(&line, 60)?;
            }
            let line = "[blkback] ERROR: domain 6: disk 51712: the disk has no such partition";
            s.session.saw(line, ROLE)
        },
    ),
    ("a_neighbour_goes_on", |s| {
        let end = s.session.end();
        s.session.saw_after(end, " rounds right", ROLE)?;
        let text = s.session.text();
        ensure!(!text.contains("disk good: round"), "a round failed");
        Ok(())
    }),
    ("nobody_died_but_the_backend_that_was_killed", |s| {
        let text = s.session.text();
        let restarts = text.lines().filter(|line| line.contains(": restarted ("));
        let restarts: Vec<&str> = restarts.collect();
        let expected = matches!(*restarts, [one] if one.contains("component blkback: "));
        ensure!(expected, "{restarts:?}");
        Ok(())
    }),
    ("nothing_beside_the_partition_changed", |s| beside(&s.disk)),
];

/// Runs it, and its control with `full`.
pub fn run(machines: &mut Machines, report: &mut Report, full: bool) {
    if machines.wants("volumes") {
        report.prefixed("volumes", boot(machines, "volumes"), CLAIMS);
    }
    for control in DISK_CONTROLS {
        let title = format!("volumes-control-{}", control.name);
        if !machines.wants(&title) {
            continue;
        }
        let name = format!("without_{}::{}_fails", control.name, control.claim);
        if !full {
            report.leave_out(&name);
            continue;
        }
        report.claim(&name, || {
            let mut machines = machines.control(control);
            let mut s = boot(&mut machines, &title)?;
            crate::hostile::says_so(&mut s.session, control)?;
            done(&mut s.session, "bounds")?;
            match (ends(&s.session.text()), beside(&s.disk)) {
                (Err(why), Err(changed)) => {
                    println!("     seen: {why}; {changed}");
                    Ok(())
                }
                (Ok(()), _) => bail!("the claim holds although nobody checks"),
                (_, Ok(())) => bail!("nothing changed beside the partition"),
            }
        });
    }
}

fn boot(machines: &mut Machines, title: &str) -> Result<Subject> {
    scratch(machines, "volume.img", FOREIGN)?;
    let disk = machines.folder().join(format!("{title}.img"));
    fs::create_dir_all(machines.folder())?;
    make(&disk).with_context(|| format!("cannot make {}", disk.display()))?;
    let image = machines.image("volumes")?;
    // A comma in an option's value is written twice.
    let file = disk.display().to_string().replace(',', ",,");
    let drive = format!("if=none,id=disk,format=raw,discard=unmap,file={file}");
    let device = "virtio-blk-pci,drive=disk,disable-legacy=on,num-queues=2";
    let session = machines.boot_with(title, &image, &Machine::of(&image), |qemu| {
        qemu.args(["-drive", &drive, "-device", device]);
    })?;
    Ok(Subject { session, disk })
}

/// Makes the disk.
fn make(path: &Path) -> Result<()> {
    let end = (1 + PARTITIONS.len() as u64) * PARTITION;
    let sectors = end / SECTOR + BACKUP;
    let partitions: Vec<Partition> = (1..=PARTITIONS.len() as u64)
        .map(|index| Partition {
            kind: LINUX,
            first: index * PARTITION / SECTOR,
            last: (index + 1) * PARTITION / SECTOR - 1,
        })
        .collect();
    let table = gpt::write_named(sectors, &partitions, PARTITIONS, 7);
    let mut bytes = vec![0; (sectors * SECTOR) as usize];
    let mut put = |at: u64, from: &[u8]| {
        let at = at as usize;
        bytes[at..at + from.len()].copy_from_slice(from);
    };
    put(446, &gpt::protective(sectors));
    put(510, &[0x55, 0xaa]);
    put(SECTOR, &table.primary);
    put((sectors - BACKUP) * SECTOR, &table.backup);
    bytes[PARTITION as usize..end as usize].fill(FOREIGN);
    Ok(File::create(path)?.write_all(&bytes)?)
}

/// Role `bounds` got an error for whatever is not in its partition.
fn ends(text: &str) -> Result<()> {
    for what in BEYOND {
        let status = after(text, &format!("bounds: {what}: "))?;
        ensure!(status == "-1", "{what}: {status}");
    }
    Ok(())
}

/// Role `part` left nothing behind.
pub fn parts(text: &str) -> Result<()> {
    let parted = after(text, "part: parted: ")?;
    ensure!(parted == "8 of 8", "parted: {parted}");
    let in_use = after(text, "part: grants in use afterwards: ")?;
    ensure!(in_use == "0", "{in_use} grants are in use");
    let status = after(text, "part: a read afterwards: ")?;
    ensure!(status == "0", "a read afterwards: {status}");
    Ok(())
}

fn overlay(text: &str) -> Result<()> {
    for (what, expected) in [
        ("held", format!("{HELD} of 256 pages")),
        ("read back", HELD.to_string()),
        ("the rest is", IMAGE.to_owned()),
        ("a page that is held already", "0".to_owned()),
        ("a discard", "0".to_owned()),
        ("it reads", IMAGE.to_owned()),
        ("a page in its room", "0".to_owned()),
        ("a page without room", "-1".to_owned()),
    ] {
        let said = after(text, &format!("overlay: {what}: "))?;
        ensure!(said == expected, "{what}: {said:?}, not {expected:?}");
    }
    Ok(())
}

/// Both neighbours of partition `mine` are as they were, and so is `mine` but for its two ends and what it gave
/// up.
fn beside(disk: &Path) -> Result<()> {
    let mut file = File::open(disk).with_context(|| format!("cannot read {}", disk.display()))?;
    let mut bytes = vec![0; 3 * PARTITION as usize];
    file.seek(SeekFrom::Start(PARTITION))?;
    file.read_exact(&mut bytes)?;
    let (first, end) = (PARTITION as usize, 2 * PARTITION as usize);
    for (at, chunk) in (0..).step_by(8).zip(bytes.as_chunks::<8>().0) {
        let sector = (at as u64).wrapping_sub(PARTITION) / SECTOR;
        let written = (first..first + 4096).contains(&at) || (end - 4096..end).contains(&at);
        let expected = match written {
            true => (MARK | sector).to_le_bytes(),
            false if GIVEN_UP.contains(&sector) => [0; 8],
            false => [FOREIGN; 8],
        };
        ensure!(
            *chunk == expected,
            "byte {} of the disk is not what it should be: {chunk:02x?}, not {expected:02x?}",
            at as u64 + PARTITION
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_beside_the_partition_is_noticed() {
        let path = std::env::temp_dir().join(format!("suite-volumes-{}", std::process::id()));
        make(&path).unwrap();
        // Nobody wrote its ends.
        assert!(beside(&path).is_err());
        let mut bytes = fs::read(&path).unwrap();
        let mut start = bytes[..2 * PARTITION as usize].to_vec();
        start.truncate(40 * SECTOR as usize);
        let found = gpt::read(&start).unwrap();
        assert_eq!(found.len(), PARTITIONS.len());
        assert_eq!(found[1].first * SECTOR, 2 * PARTITION);
        let last = PARTITION / SECTOR - 8;
        for sector in (0..8).chain(last..last + 8) {
            let at = (2 * PARTITION + sector * SECTOR) as usize;
            for word in bytes[at..at + SECTOR as usize].chunks_exact_mut(8) {
                word.copy_from_slice(&(MARK | sector).to_le_bytes());
            }
        }
        // Nobody gave anything up.
        fs::write(&path, &bytes).unwrap();
        assert!(beside(&path).is_err());
        let given_up = [GIVEN_UP.start, GIVEN_UP.end].map(|at| 2 * PARTITION + at * SECTOR);
        bytes[given_up[0] as usize..given_up[1] as usize].fill(0);
        fs::write(&path, &bytes).unwrap();
        beside(&path).unwrap();
        let ends = [given_up[0], given_up[0] - 1, given_up[1]];
        let others = [2 * PARTITION - 1, 3 * PARTITION, 2 * PARTITION + 4096];
        for at in ends.into_iter().chain(others) {
            let mut changed = bytes.clone();
            changed[at as usize] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(beside(&path).is_err(), "{at}");
        }
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_answer_that_is_no_error_is_noticed() {
        assert!(ends("").is_err());
        let line = |what: &str, status: i32| format!("guest: disk bounds: {what}: {status}\r\n");
        let all: String = BEYOND.iter().map(|what| line(what, -1)).collect();
        ends(&all).unwrap();
        let one = line("list written", -1);
        assert!(ends(&all.replace(&one, &line("list written", 0))).is_err());
    }
}
