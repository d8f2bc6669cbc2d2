//! A bootable ISO: GRUB with Multiboot2 on BIOS and UEFI, from CD or, since it is a hybrid, from
//! a disk that it was copied to. Same input, same bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::grub;
use crate::image::Image;
use crate::progress::step;

/// Bytes of the file system that UEFI looks into: GRUB fits.
const ESP_BYTES: usize = 4 << 20;

/// Writes `<name>.iso` into the image's folder.
pub fn write(image: &Image) -> Result<PathBuf> {
    let path = image.folder.join(format!("{}.iso", image.name));
    step("Writing", path.display(), || {
        grub::with_folder(&image.folder.join("iso"), |tree| {
            assemble(image, tree, &path)
        })
    })?;
    Ok(path)
}

fn assemble(image: &Image, tree: &Path, path: &Path) -> Result<()> {
    let folder = grub::boot_files(image, tree)?;
    grub::image("i386-pc-eltorito", &["biosdisk"], &folder.join("bios.img"))?;
    let efi = tree.join("bootx64.efi");
    grub::image("x86_64-efi", &[], &efi)?;
    grub::dates(&efi)?;

    let fat = folder.join("efi.img");
    fs::write(&fat, vec![0; ESP_BYTES])?;
    grub::run(
        Command::new("mformat")
            .args(["-N", "4d565631", "-i"])
            .arg(&fat)
            .arg("::"),
    )?;
    grub::run(
        Command::new("mmd")
            .arg("-i")
            .arg(&fat)
            .args(["::/EFI", "::/EFI/BOOT"]),
    )?;
    grub::run(
        Command::new("mcopy")
            .arg("-m")
            .arg("-i")
            .arg(&fat)
            .arg(&efi)
            .arg("::/EFI/BOOT/BOOTX64.EFI"),
    )?;
    fs::remove_file(&efi)?;

    grub::dates(tree)?;
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
        .arg(Path::new(grub::GRUB).join("i386-pc/boot_hybrid.img"));
    command.args([
        "-eltorito-alt-boot",
        "-e",
        "boot/grub/efi.img",
        "-no-emul-boot",
        "-isohybrid-gpt-basdat",
    ]);
    grub::run(command.arg(tree))
}
