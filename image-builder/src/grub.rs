//! GRUB out of its parts, for media that boot on BIOS and UEFI: its images, the menu, and running
//! the tools that put media together so that the same input gives the same bytes. `iso` and `disk`
//! use it. Not grub-mkrescue or grub-install, which add 20 MB of modules, dates and random
//! numbers, or want a mounted disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::image::Image;

/// The date of everything in an image: 2020-01-01, UTC.
pub const EPOCH: u64 = 1_577_836_800;
/// Where Debian's packages put GRUB's parts.
pub const GRUB: &str = "/usr/lib/grub";
/// Where media hold the core.
pub const CORE: &str = "/boot/microvisor.elf";
/// Where media hold the archive.
pub const ARCHIVE: &str = "/boot/archive";

const MODULES: &[&str] = &[
    "normal",
    "configfile",
    "search",
    "search_fs_file",
    "iso9660",
    "part_msdos",
    "part_gpt",
    "fat",
    "multiboot2",
    "serial",
    "terminal",
    "test",
    "echo",
    "minicmd",
    "reboot",
    "halt",
];

/// `grub.cfg`: one entry, on screen and serial line.
pub fn menu(image: &Image) -> String {
    format!(
        "serial --unit=0 --speed=115200\n\
         terminal_input console serial\n\
         terminal_output console serial\n\
         set timeout=1\n\
         set default=0\n\
         menuentry \"microvisor: {}\" {{\n\
         \x20   multiboot2 {CORE}\n\
         \x20   module2 {ARCHIVE}\n\
         }}\n",
        image.name
    )
}

/// Writes GRUB's image of a `format` with all modules and `more`. It finds the medium that it came
/// from by the core on it, whatever the firmware calls that medium.
pub fn image(format: &str, more: &[&str], to: &Path) -> Result<()> {
    let find = to.with_extension("find");
    fs::write(
        &find,
        format!("search --no-floppy --file --set=root {CORE}\nset prefix=($root)/boot/grub\n"),
    )?;
    let mut command = Command::new("grub-mkimage");
    command
        .args(["-O", format, "-p", "/boot/grub", "-c"])
        .arg(&find)
        .arg("-o")
        .arg(to);
    let outcome = run(command.args(MODULES).args(more));
    fs::remove_file(&find)?;
    outcome
}

/// A folder that is made empty, and removed again when `work` is done.
pub fn with_folder<T>(folder: &Path, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let outcome = work(folder);
    fs::remove_dir_all(folder)?;
    outcome
}

/// Puts core, archive and menu into `tree` as media hold them; `tree/boot/grub`.
pub fn boot_files(image: &Image, tree: &Path) -> Result<PathBuf> {
    let boot = tree.join("boot");
    let grub = boot.join("grub");
    fs::create_dir_all(&grub)?;
    fs::copy(&image.core, boot.join("microvisor.elf"))?;
    fs::copy(&image.archive, boot.join("archive"))?;
    fs::write(grub.join("grub.cfg"), menu(image))?;
    Ok(grub)
}

/// Runs a tool; its standard error is the error.
pub fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
        .env("TZ", "UTC")
        .env("LC_ALL", "C");
    let out = command
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !out.status.success() {
        bail!(
            "{program} failed:\n{}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}

/// Gives everything in `path` the date of the image.
pub fn dates(path: &Path) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            dates(&entry?.path())?;
        }
    }
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH);
    Ok(fs::File::open(path)?.set_modified(date)?)
}
