//! Puts a guest together in its memory.

use crate::error::{Error, Input};
use crate::layout::{ACPI_BYTES, PAGE, RAM_MIN, acpi_start, memory_map};
use crate::{acpi, bzimage, kernel, payload, start_info};
use alloc::vec::Vec;

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// ELF file or Linux boot image.
    pub kernel: &'a [u8],
    /// Initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// Command line, without a final zero.
    pub cmdline: &'a [u8],
    /// Number of vCPUs.
    pub vcpus: u32,
    /// All RAM of the guest, in bytes.
    pub ram: u64,
}

/// Where things are; all addresses are guest-physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The PVH entry point.
    pub entry: u32,
    /// `hvm_start_info`.
    pub start_info: u64,
    /// The RSDP.
    pub rsdp: u64,
    /// End of the kernel.
    pub kernel_end: u64,
}

/// The ELF kernel inside a Linux boot image. `limit` is the most bytes it may unpack to.
pub fn unpack_bzimage(file: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
    let found = bzimage::payload(file)?;
    if u64::from(found.unpacked) > limit {
        let needed = found.unpacked.into();
        return Err(Error::NoMemory {
            input: Input::Kernel,
            needed,
            available: limit,
        });
    }
    payload::unpack(found.bytes, found.unpacked as usize)
}

/// Loads a guest into `ram`, its memory from guest-physical 0 to the end of lower RAM, all zero.
pub fn load(guest: &Guest<'_>, ram: &mut [u8]) -> Result<Loaded, Error> {
    let limit = ram.len() as u64;
    if limit < RAM_MIN {
        return Err(Error::NoMemory {
            input: Input::Kernel,
            needed: RAM_MIN,
            available: limit,
        });
    }
    let unpacked;
    let file = if kernel::is_elf(guest.kernel) {
        guest.kernel
    } else {
        unpacked = unpack_bzimage(guest.kernel, limit)?;
        &unpacked
    };
    let kernel = kernel::parse(file)?;
    let tables = acpi_start(limit);
    let (_, kernel_end) = kernel.extent();
    for segment in &kernel.segments {
        let end = segment.address + segment.memory;
        if end > tables {
            return Err(Error::NoMemory {
                input: Input::Kernel,
                needed: end,
                available: tables,
            });
        }
        put(ram, segment.address, segment.bytes);
    }

    let rsdp = tables;
    let acpi = acpi::tables(guest.vcpus, tables);
    if acpi.len() as u64 > ACPI_BYTES {
        let needed = acpi.len() as u64;
        return Err(Error::NoMemory {
            input: Input::Kernel,
            needed,
            available: ACPI_BYTES,
        });
    }
    put(ram, tables, &acpi);

    // From the top down: initial RAM disk, start info; nothing below the kernel's end.
    let floor = kernel_end.next_multiple_of(PAGE);
    let mut top = tables;
    let mut initrd = None;
    if let Some(bytes) = guest.initrd.filter(|bytes| !bytes.is_empty()) {
        let at = place(top, floor, bytes.len() as u64, Input::Initrd)?;
        put(ram, at, bytes);
        initrd = Some((at, bytes.len() as u64));
        top = at;
    }
    let map = memory_map(guest.ram);
    let facts = start_info::Facts {
        cmdline: guest.cmdline,
        initrd,
        rsdp,
        map: &map,
    };
    let at = place(top, floor, start_info::size(&facts), Input::Cmdline)?;
    put(ram, at, &start_info::encode(&facts, at));
    Ok(Loaded {
        entry: kernel.entry,
        start_info: at,
        rsdp,
        kernel_end,
    })
}

/// A page-aligned place for `bytes` that ends at or below `top`.
fn place(top: u64, floor: u64, bytes: u64, input: Input) -> Result<u64, Error> {
    let available = top.saturating_sub(floor);
    match top.checked_sub(bytes).map(|at| at & !(PAGE - 1)) {
        Some(at) if at >= floor => Ok(at),
        _ => Err(Error::NoMemory {
            input,
            needed: bytes,
            available,
        }),
    }
}

/// Copies; the range was checked to lie in `ram`.
fn put(ram: &mut [u8], at: u64, bytes: &[u8]) {
    let at = at as usize;
    if let Some(place) = ram.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
