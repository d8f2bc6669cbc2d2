//! What `inspect` and `audit` are given, opened: an archive, an ISO or a raw disk image. Finds the
//! core and the archive in it. Images come from anywhere: every mistake in them is an [`Error`],
//! nothing panics, and no loop is longer than the image.

use std::borrow::Cow;
use std::fmt;

use microvisor_abi::archive::MAGIC;

use crate::gpt::{self, EFI_SYSTEM, SECTOR};
use crate::{fat, grub, iso9660};

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The boot archive alone.
    Archive,
    /// A bootable ISO.
    Iso,
    /// A raw disk image.
    Disk,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Archive => "boot archive",
            Kind::Iso => "ISO",
            Kind::Disk => "raw disk image",
        })
    }
}

/// What is in an image.
#[derive(Clone, Debug)]
pub struct Medium<'a> {
    /// What it is.
    pub kind: Kind,
    /// The core's ELF; an archive has none.
    pub core: Option<Cow<'a, [u8]>>,
    /// The boot archive.
    pub archive: Cow<'a, [u8]>,
}

/// Why a file is not an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Neither archive nor ISO nor disk.
    Unknown,
    /// A disk whose partition table is damaged.
    Table,
    /// A disk without an EFI system partition.
    NoPartition,
    /// A file system that cannot be read, and why.
    FileSystem(&'static str),
    /// It lacks this file.
    NoFile(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unknown => f.write_str(
                "this is no boot archive, ISO or raw disk image; \
                 `cargo image build` writes them to build/<system>/",
            ),
            Error::Table => f.write_str("its partition table is damaged; build the image again"),
            Error::NoPartition => f.write_str("this disk has no EFI system partition"),
            Error::FileSystem(why) => write!(f, "its file system cannot be read: {why}"),
            Error::NoFile(file) => {
                write!(
                    f,
                    "there is no {file} in it: not made by `cargo image build`?"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

/// Opens an image.
pub fn open(image: &[u8]) -> Result<Medium<'_>, Error> {
    // A hybrid ISO is a disk as well, so this is looked for before.
    if iso9660::is(image) {
        return medium(Kind::Iso, |path| iso9660::file(image, path));
    }
    if image.starts_with(&MAGIC.to_le_bytes()) {
        return Ok(Medium {
            kind: Kind::Archive,
            core: None,
            archive: Cow::Borrowed(image),
        });
    }
    if image.get(510..512) != Some(&[0x55, 0xaa]) {
        return Err(Error::Unknown);
    }
    let partitions = gpt::read(image).ok_or(Error::Table)?;
    let esp = partitions
        .iter()
        .find(|partition| partition.kind == EFI_SYSTEM)
        .ok_or(Error::NoPartition)?;
    let start = bytes(esp.first).ok_or(Error::Table)?;
    let end = bytes(esp.last)
        .and_then(|last| last.checked_add(SECTOR as usize))
        .ok_or(Error::Table)?;
    let esp = image.get(start..end).ok_or(Error::Table)?;
    let volume = fat::Volume::open(esp).map_err(Error::FileSystem)?;
    medium(Kind::Disk, |path| {
        volume.file(path).map(|file| file.map(Cow::Owned))
    })
}

fn bytes(sector: u64) -> Option<usize> {
    usize::try_from(sector.checked_mul(SECTOR)?).ok()
}

fn medium<'a>(
    kind: Kind,
    find: impl Fn(&str) -> Result<Option<Cow<'a, [u8]>>, &'static str>,
) -> Result<Medium<'a>, Error> {
    let file = |path: &'static str| {
        let found = find(path).map_err(Error::FileSystem)?;
        found.ok_or(Error::NoFile(path))
    };
    Ok(Medium {
        kind,
        core: Some(file(grub::CORE)?),
        archive: file(grub::ARCHIVE)?,
    })
}
