//! A bootable ISO: GRUB with Multiboot2 on BIOS and UEFI, one menu entry, on screen and serial
//! line.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::image::Image;
use crate::progress::step;

/// A date for everything in the image: the same input gives the same bytes, as far as GRUB allows.
const EPOCH: &str = "1577836800";

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
    let tree = image.folder.join("iso");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let boot = tree.join("boot");
    fs::create_dir_all(boot.join("grub"))?;
    fs::copy(&image.core, boot.join("microvisor.elf"))?;
    fs::copy(&image.archive, boot.join("archive"))?;
    fs::write(boot.join("grub/grub.cfg"), menu(image))?;
    let path = image.folder.join(format!("{}.iso", image.name));
    let out = step("Writing", path.display(), || {
        Command::new("grub-mkrescue")
            .env("SOURCE_DATE_EPOCH", EPOCH)
            // The menu, boot image and archive need these and no others; all of them are 20 MB.
            .args([
                "--install-modules=normal multiboot2 serial terminal iso9660 search configfile",
                "--fonts=",
                "--themes=",
                "--locales=",
            ])
            .arg("-o")
            .arg(&path)
            .arg(&tree)
            .output()
    })
    .context("cannot start grub-mkrescue")?;
    fs::remove_dir_all(&tree)?;
    if !out.status.success() {
        bail!(
            "grub-mkrescue failed:\n{}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(path)
}
