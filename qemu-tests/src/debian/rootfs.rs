//! Debian 12 on a disk: made by debootstrap from the machine's own mirror, once, and kept in `build/cache`
//! until what it is made of changes. The group `devices` boots copies of it; nothing else uses it.
//!
//! | sectors | |
//! |---|---|
//! | from 2048 | partition `root`: ext4, Debian with systemd |
//! | after it | partition `blocks`: zeros, for blocks with sequence numbers |
//!
//! What the script does with root's rights stays in a folder of its own and in its own mount namespace.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use image_builder::gpt::{self, BACKUP, LINUX, Partition, SECTOR};
use image_builder::packages;
use image_builder::progress::step;

/// What makes the tree and the file system.
const SCRIPT: &str = include_str!("rootfs.sh");
/// Programs that the tests start in the guest, in its `/usr/local/sbin`.
const PROGRAMS: &[(&str, &str)] = &[
    ("blocks", include_str!("blocks.pl")),
    ("load", include_str!("load.sh")),
];
/// Bytes of a MiB.
const MIB: u64 = 1 << 20;
/// Where partition `root` begins, in bytes.
pub const ROOT_AT: u64 = MIB;
/// Bytes of partition `root`: Debian takes 280 MiB of it.
const ROOT_BYTES: u64 = 640 * MIB;
/// Where partition `blocks` begins, in bytes.
pub const BLOCKS_AT: u64 = ROOT_AT + ROOT_BYTES;
/// Bytes of partition `blocks`.
pub const BLOCKS_BYTES: u64 = 64 * MIB;
/// Changes when this file makes another disk of the same tree.
const LAYOUT: u64 = 1;

/// What was made.
#[derive(Clone, Debug)]
pub struct RootFs {
    /// The whole disk.
    pub disk: PathBuf,
    /// Debian's kernel, as it installed it.
    pub kernel: PathBuf,
    /// The initial RAM disk that Debian made for it.
    pub initrd: PathBuf,
}

/// The disk, made if it is not there. All three files are in `cache/debian-root`, where
/// `systems/debian*.toml` name them.
pub fn ensure_made(cache: &Path) -> Result<RootFs> {
    let folder = cache.join("debian-root");
    let key = key();
    let made = RootFs {
        disk: folder.join("disk.img"),
        kernel: folder.join("vmlinuz"),
        initrd: folder.join("initrd.img"),
    };
    if fs::read_to_string(folder.join("key")).is_ok_and(|there| there == key) {
        return Ok(made);
    }
    packages::ensure(packages::ROOT_FS)?;
    if !packages::is_root() {
        bail!("a root file system can be made by root only; run this once as root");
    }
    let work = cache.join(format!(".debian-root-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let outcome = step("Making", "a root file system of Debian 12", || make(&work));
    let outcome = outcome.and_then(|()| {
        fs::create_dir_all(&folder)?;
        // The key comes last: without it, nothing of the rest counts.
        let _ = fs::remove_file(folder.join("key"));
        for name in ["disk.img", "vmlinuz", "initrd.img"] {
            fs::rename(work.join(name), folder.join(name))?;
        }
        Ok(fs::write(folder.join("key"), &key)?)
    });
    let removed = run(Command::new("rm")
        .args(["-rf", "--one-file-system"])
        .arg(&work));
    outcome.and(removed)?;
    Ok(made)
}

/// A number for everything that the disk is made of, but for Debian's packages.
fn key() -> String {
    let mut hash = DefaultHasher::new();
    for text in PROGRAMS.iter().map(|(_, text)| text).chain([&SCRIPT]) {
        hash.write(text.as_bytes());
        hash.write_u8(0xff);
    }
    for number in [ROOT_BYTES, BLOCKS_BYTES, LAYOUT] {
        hash.write_u64(number);
    }
    format!("{:016x}\n", hash.finish())
}

fn make(work: &Path) -> Result<()> {
    let programs = work.join("files/usr/local/sbin");
    fs::create_dir_all(&programs)?;
    for (name, text) in PROGRAMS {
        let path = programs.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let script = work.join("rootfs.sh");
    fs::write(&script, SCRIPT)?;
    let (mirror, keyring) = packages::bookworm_mirror()?;
    let work = work.canonicalize()?;
    run(Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh"])
        .arg(&script)
        .arg(&work)
        .arg(mirror)
        .arg(keyring.unwrap_or_default())
        .arg(work.join("files"))
        .arg(format!("{}k", ROOT_BYTES >> 10)))?;
    let root = work.join("root.ext4");
    let length = fs::metadata(&root)?.len();
    ensure!(length == ROOT_BYTES, "the file system has {length} bytes");
    assemble(&root, &work.join("disk.img"))
}

/// The file system as a partition of a disk; its free space stays a hole in the file.
fn assemble(root: &Path, path: &Path) -> Result<()> {
    let sectors = (BLOCKS_AT + BLOCKS_BYTES) / SECTOR + BACKUP;
    let partition = |at: u64, bytes: u64| Partition {
        kind: LINUX,
        first: at / SECTOR,
        last: (at + bytes) / SECTOR - 1,
    };
    let partitions = [
        partition(ROOT_AT, ROOT_BYTES),
        partition(BLOCKS_AT, BLOCKS_BYTES),
    ];
    let table = gpt::write_named(sectors, &partitions, &["root", "blocks"], LAYOUT);
    let mut first = vec![0; SECTOR as usize];
    first[446..462].copy_from_slice(&gpt::protective(sectors));
    first[510..].copy_from_slice(&[0x55, 0xaa]);

    let mut disk = File::create(path)?;
    disk.set_len(sectors * SECTOR)?;
    let mut put = |at: u64, bytes: &[u8]| -> Result<()> {
        disk.seek(SeekFrom::Start(at))?;
        Ok(disk.write_all(bytes)?)
    };
    put(0, &first)?;
    put(SECTOR, &table.primary)?;
    put((sectors - BACKUP) * SECTOR, &table.backup)?;
    let mut root = File::open(root)?;
    let mut piece = vec![0; MIB as usize];
    for at in (0..ROOT_BYTES).step_by(MIB as usize) {
        root.read_exact(&mut piece)?;
        if piece.iter().any(|&byte| byte != 0) {
            put(ROOT_AT + at, &piece)?;
        }
    }
    Ok(())
}

/// Runs a command; the error is the end of what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let out = command
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        let tail: Vec<&str> = text.lines().rev().take(15).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("{command:?} failed ({}):\n{}", out.status, tail.join("\n"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_has_both_partitions_where_they_are_looked_for() {
        let folder = std::env::temp_dir().join(format!("suite-rootfs-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (root, disk) = (folder.join("root"), folder.join("disk"));
        let mut file = File::create(&root).unwrap();
        file.write_all(b"begin").unwrap();
        file.set_len(ROOT_BYTES).unwrap();
        assemble(&root, &disk).unwrap();
        let mut start = vec![0; 2 * MIB as usize];
        File::open(&disk).unwrap().read_exact(&mut start).unwrap();
        let found = gpt::read(&start).unwrap();
        let places: Vec<u64> = found.iter().map(|part| part.first * SECTOR).collect();
        assert_eq!(places, [ROOT_AT, BLOCKS_AT]);
        assert!(start[ROOT_AT as usize..].starts_with(b"begin"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
