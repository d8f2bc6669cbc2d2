//! A raw disk image that boots on BIOS and UEFI: to be copied onto a disk or stick (`dd`), or
//! given to an emulator as a disk. Same input, same bytes.
//!
//! | sectors | |
//! |---|---|
//! | 0 | GRUB's first sector, protective MBR |
//! | 1-33 | GUID partition table |
//! | 34-2047 | BIOS boot partition: GRUB's core image |
//! | from 2048 | EFI system partition, FAT32: GRUB for UEFI, core, archive, menu |
//! | last 33 | the table's second copy |

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::gpt::{self, BACKUP, BIOS_BOOT, EFI_SYSTEM, FIRST_USABLE, Partition, SECTOR};
use crate::grub;
use crate::image::Image;
use crate::progress::step;

/// First sector of the EFI system partition.
const ESP_FIRST: u64 = 2048;
/// Partition sizes are multiples of this.
const MIB: u64 = 1 << 20;
/// What FAT32 has at least, by definition, is 65525 clusters; firmware tells it from FAT16 by that.
const CLUSTERS_MIN: u64 = 65_600;

/// Offsets in GRUB's first sector, `boot.img` (GRUB, include/grub/i386/pc/boot.h): the sector of
/// the core image, and a jump over code that mends a wrong drive number. On hard disks the latter
/// becomes two no-operations, as grub-install does it.
const KERNEL_SECTOR: usize = 0x5c;
const DRIVE_CHECK: usize = 0x66;
/// Of the MBR: the table of partitions, and the signature.
const PARTITIONS: usize = 446;
/// In the core image's first sector: where the rest of it is, as a sector number.
const BLOCK_LIST: usize = 512 - 12;

/// Writes `<name>.disk` into the image's folder.
pub fn write(image: &Image) -> Result<PathBuf> {
    let path = image.folder.join(format!("{}.disk", image.name));
    step("Writing", path.display(), || {
        grub::with_folder(&image.folder.join("disk"), |tree| {
            assemble(image, tree, &path)
        })
    })?;
    Ok(path)
}

fn assemble(image: &Image, tree: &Path, path: &Path) -> Result<()> {
    let core = tree.join("core.img");
    grub::image("i386-pc", &["biosdisk"], &core)?;
    let core = core_image(fs::read(&core)?)?;
    let esp = tree.join("esp.img");
    let esp_bytes = system_partition(image, tree, &esp)?;

    let esp_last = ESP_FIRST + esp_bytes / SECTOR - 1;
    let sectors = esp_last + 1 + BACKUP;
    let partitions = [
        Partition {
            kind: BIOS_BOOT,
            first: FIRST_USABLE,
            last: ESP_FIRST - 1,
        },
        Partition {
            kind: EFI_SYSTEM,
            first: ESP_FIRST,
            last: esp_last,
        },
    ];
    let table = gpt::write(sectors, &partitions, grub::EPOCH);
    let first = fs::read(Path::new(grub::GRUB).join("i386-pc/boot.img"))?;
    let first = first_sector(first, sectors)?;

    let mut disk =
        File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    disk.set_len(sectors * SECTOR)?;
    let mut put = |sector: u64, bytes: &[u8]| -> Result<()> {
        disk.seek(SeekFrom::Start(sector * SECTOR))?;
        Ok(disk.write_all(bytes)?)
    };
    put(0, &first)?;
    put(1, &table.primary)?;
    put(FIRST_USABLE, &core)?;
    put(sectors - BACKUP, &table.backup)?;
    // Free space of the file system stays a hole in the file.
    for (index, piece) in (0..).zip(fs::read(&esp)?.chunks(MIB as usize)) {
        if piece.iter().any(|&byte| byte != 0) {
            put(ESP_FIRST + index * (MIB / SECTOR), piece)?;
        }
    }
    Ok(())
}

/// GRUB's first sector, told where the core image is, with the protective partition.
fn first_sector(mut sector: Vec<u8>, sectors: u64) -> Result<Vec<u8>> {
    if sector.len() != SECTOR as usize || sector.get(510..) != Some(&[0x55, 0xaa]) {
        bail!("GRUB's boot.img is not a boot sector; is grub-pc-bin damaged?");
    }
    sector[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&FIRST_USABLE.to_le_bytes());
    sector[DRIVE_CHECK..DRIVE_CHECK + 2].fill(0x90);
    sector[PARTITIONS..510].fill(0);
    sector[PARTITIONS..PARTITIONS + 16].copy_from_slice(&gpt::protective(sectors));
    Ok(sector)
}

/// GRUB's core image, told where its second sector is; padded to whole sectors.
fn core_image(mut core: Vec<u8>) -> Result<Vec<u8>> {
    core.resize(core.len().next_multiple_of(SECTOR as usize), 0);
    let there = (ESP_FIRST - FIRST_USABLE) * SECTOR;
    if core.len() < 2 * SECTOR as usize || core.len() as u64 > there {
        bail!(
            "GRUB's core image has {} bytes, not 1024 to {there}",
            core.len()
        );
    }
    let start = (FIRST_USABLE + 1).to_le_bytes();
    core[BLOCK_LIST..BLOCK_LIST + 8].copy_from_slice(&start);
    let rest = core.len() / SECTOR as usize - 1;
    let length = core[BLOCK_LIST + 8..BLOCK_LIST + 10].first_chunk();
    let listed = length.map_or(0, |length| u16::from_le_bytes(*length));
    if usize::from(listed) != rest {
        bail!("GRUB's core image lists {listed} sectors and has {rest}");
    }
    Ok(core)
}

/// Makes the EFI system partition in the file `esp`; its bytes.
fn system_partition(image: &Image, tree: &Path, esp: &Path) -> Result<u64> {
    let files = tree.join("files");
    let efi = files.join("EFI/BOOT");
    fs::create_dir_all(&efi)?;
    grub::image("x86_64-efi", &[], &efi.join("BOOTX64.EFI"))?;
    grub::boot_files(image, &files)?;
    grub::dates(&files)?;

    let content = fs::metadata(&image.core)?.len() + fs::metadata(&image.archive)?.len() + 2 * MIB;
    let (bytes, per_cluster) = geometry(content);
    File::create(esp)?.set_len(bytes)?;
    grub::run(
        Command::new("mformat")
            .args(["-F", "-N", "4d565632", "-v", "MICROVISOR"])
            .args(["-c", &per_cluster.to_string()])
            // The partition's place on the disk, which FAT notes.
            .args(["-H", &ESP_FIRST.to_string()])
            .args(["-T", &(bytes / SECTOR).to_string()])
            .args(["-h", "255", "-s", "63", "-i"])
            .arg(esp)
            .arg("::"),
    )?;
    grub::run(
        Command::new("mcopy")
            .args(["-s", "-m", "-Q", "-i"])
            .arg(esp)
            .arg(files.join("EFI"))
            .arg(files.join("boot"))
            .arg("::/"),
    )?;
    Ok(bytes)
}

/// Bytes of a FAT32 partition for `content` bytes, and sectors in a cluster: the largest that
/// leaves it FAT32.
fn geometry(content: u64) -> (u64, u64) {
    let bytes = (content + content / 64).max(64 * MIB).next_multiple_of(MIB);
    let fits = |per: &u64| bytes / (per * SECTOR + 8) >= CLUSTERS_MIN;
    let per = [16, 8, 4, 2].into_iter().find(fits).unwrap_or(1);
    (bytes, per)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_is_fat32_and_holds_its_content() {
        for content in [0, 1, 60, 64, 100, 300, 1000, 4000].map(|mib| mib * MIB) {
            let (bytes, per) = geometry(content);
            let tables = 2 * (bytes / (per * SECTOR) * 4);
            assert!(bytes - tables > content, "{content}");
            assert!((bytes - tables) / (per * SECTOR) > 65_525, "{content}");
            assert_eq!(bytes % MIB, 0);
        }
    }

    #[test]
    fn the_first_sector_points_to_the_core_image() {
        let mut boot = vec![0xaa; 512];
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        let sector = first_sector(boot, 5000).unwrap();
        assert_eq!(sector[0x5c..0x64], 34u64.to_le_bytes());
        assert_eq!(sector[450], 0xee);
        assert_eq!(sector[462..510], [0; 48]);
        assert!(first_sector(vec![0; 512], 5000).is_err());
    }

    #[test]
    fn a_core_image_that_does_not_fit_is_refused() {
        assert!(core_image(vec![0; 2 << 20]).is_err());
        assert!(core_image(vec![0; 100]).is_err());
        let mut good = vec![0; 3 * 512];
        good[508] = 2;
        assert_eq!(core_image(good).unwrap()[500..508], 35u64.to_le_bytes());
    }
}
