//! A bootable ISO: GRUB with Multiboot2 on BIOS and UEFI, from CD or disk, one menu entry, on
//! screen and serial line. GRUB is put together from its parts, not by grub-mkrescue, which adds
//! 20 MB of modules and dates: here the same input gives the same bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::image::Image;
use crate::progress::step;

/// The date of everything in the image: 2020-01-01, UTC.
const EPOCH: u64 = 1_577_836_800;
/// Where GRUB's parts are.
const GRUB: &str = "/usr/lib/grub";
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
/// Finds the medium that GRUB came from, whatever it is called here.
const FIND: &str =
    "search --no-floppy --file --set=root /boot/microvisor.elf\nset prefix=($root)/boot/grub\n";

fn menu(image: &Image) -> String {
    format!(
        "serial --unit=0 --speed=115200\n\
         terminal_input console serial\n\
         terminal_output console serial\n\
         set timeout=1\n\
         set default=0\n\
         menuentry \"microvisor: {}\" {{\n\
         \x20   multiboot2 /boot/microvisor.elf\n\
         \x20   module2 /boot/archive\n\
         }}\n",
        image.name
    )
}

/// Writes `<name>.iso` into the image's folder.
pub fn write(image: &Image) -> Result<PathBuf> {
    let path = image.folder.join(format!("{}.iso", image.name));
    let tree = image.folder.join("iso");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let outcome = step("Writing", path.display(), || assemble(image, &tree, &path));
    fs::remove_dir_all(&tree)?;
    outcome?;
    Ok(path)
}

fn assemble(image: &Image, tree: &Path, path: &Path) -> Result<()> {
    let boot = tree.join("boot");
    let grub = boot.join("grub");
    fs::create_dir_all(&grub)?;
    fs::create_dir_all(tree.join("efi"))?;
    fs::copy(&image.core, boot.join("microvisor.elf"))?;
    fs::copy(&image.archive, boot.join("archive"))?;
    fs::write(grub.join("grub.cfg"), menu(image))?;
    let find = image.folder.join("find.cfg");
    fs::write(&find, FIND)?;

    let mkimage = |format: &str, more: &[&str], to: &Path| {
        let mut command = Command::new("grub-mkimage");
        command
            .args(["-O", format, "-p", "/boot/grub", "-c"])
            .arg(&find)
            .arg("-o")
            .arg(to);
        run(command.args(MODULES).args(more))
    };
    mkimage("i386-pc-eltorito", &["biosdisk"], &grub.join("bios.img"))?;
    let efi = tree.join("efi/bootx64.efi");
    mkimage("x86_64-efi", &[], &efi)?;
    fs::remove_file(&find)?;

    // The file system that UEFI looks into; 4 MiB hold GRUB.
    let fat = grub.join("efi.img");
    fs::write(&fat, vec![0; 4 << 20])?;
    set_date(&efi)?;
    run(Command::new("mformat")
        .args(["-N", "4d565631", "-i"])
        .arg(&fat)
        .arg("::"))?;
    run(Command::new("mmd")
        .arg("-i")
        .arg(&fat)
        .args(["::/EFI", "::/EFI/BOOT"]))?;
    run(Command::new("mcopy")
        .arg("-m")
        .arg("-i")
        .arg(&fat)
        .arg(&efi)
        .arg("::/EFI/BOOT/BOOTX64.EFI"))?;
    fs::remove_dir_all(tree.join("efi"))?;

    dates(tree)?;
    let mut command = Command::new("xorriso");
    command
        .args(["-as", "mkisofs", "-quiet", "-r", "-V", "MICROVISOR", "-o"])
        .arg(path);
    command.args([
        "-b",
        "boot/grub/bios.img",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-boot-info-table",
    ]);
    command
        .arg("--grub2-boot-info")
        .arg("--grub2-mbr")
        .arg(Path::new(GRUB).join("i386-pc/boot_hybrid.img"));
    command.args([
        "-eltorito-alt-boot",
        "-e",
        "boot/grub/efi.img",
        "-no-emul-boot",
        "-isohybrid-gpt-basdat",
    ]);
    run(command.arg(tree))
}

fn run(command: &mut Command) -> Result<()> {
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

fn set_date(path: &Path) -> Result<()> {
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH);
    Ok(fs::File::open(path)?.set_modified(date)?)
}

fn dates(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            dates(&entry.path())?;
        } else {
            set_date(&entry.path())?;
        }
    }
    set_date(folder)
}
