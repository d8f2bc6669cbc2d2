//! Puts a guest together in its memory.

use crate::error::{Error, Input};
use crate::kernel::Kernel;
use crate::layout::{ACPI_BYTES, PAGE, RAM_MIN, START_INFO_END, acpi_start, low_end, memory_map};
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
    /// All RAM of the guest, in bytes, a multiple of [`PAGE`].
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
        return Err(too_large(found.unpacked.into(), limit));
    }
    payload::unpack(found.bytes, found.unpacked as usize)
}

/// Loads a guest into `ram`, its memory from guest-physical 0 to [`low_end`], all zero.
///
/// What is left in `ram` after an error means nothing.
pub fn load(guest: &Guest<'_>, ram: &mut [u8]) -> Result<Loaded, Error> {
    let limit = ram.len() as u64;
    let needed = low_end(guest.ram).max(RAM_MIN);
    if limit != needed {
        return Err(too_large(needed, limit));
    }
    let tables = acpi_start(limit);
    let (entry, kernel_end) = if kernel::is_elf(guest.kernel) {
        let kernel = kernel::parse(guest.kernel)?;
        (kernel.entry, put_kernel(&kernel, ram, tables)?)
    } else {
        load_bzimage(guest.kernel, ram, tables)?
    };

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
    let top = top.min(START_INFO_END);
    let at = place(top, floor, start_info::size(&facts), Input::Cmdline)?;
    put(ram, at, &start_info::encode(&facts, at));
    Ok(Loaded {
        entry,
        start_info: at,
        rsdp,
        kernel_end,
    })
}

/// Unpacks a boot image into the free top of `ram` below `tables`, and its segments from there to
/// where they belong: a guest's memory is larger than the loader's own. Answers the entry point and
/// the end of the kernel.
fn load_bzimage(file: &[u8], ram: &mut [u8], tables: u64) -> Result<(u32, u64), Error> {
    let payload = bzimage::payload(file)?;
    let size = payload.unpacked as usize;
    let start = place(tables, 0, size as u64, Input::Kernel)?;
    let (low, high) = ram.split_at_mut(start as usize);
    let unpacked = high.get_mut(..size).ok_or(too_large(size as u64, tables))?;
    payload::unpack_into(payload.bytes, unpacked)?;
    let kernel = kernel::parse(unpacked)?;
    let (entry, (_, end)) = (kernel.entry, kernel.extent());
    if end <= start {
        put_kernel(&kernel, low, start)?;
        unpacked.fill(0);
        return Ok((entry, end));
    }
    if end > tables {
        return Err(too_large(end, tables));
    }
    // The guest has room for the kernel, but not for its unpacked file beside it.
    let mut copy = Vec::new();
    copy.try_reserve_exact(size).map_err(|_| Error::OwnMemory)?;
    copy.extend_from_slice(unpacked);
    unpacked.fill(0);
    let kernel = kernel::parse(&copy)?;
    Ok((entry, put_kernel(&kernel, ram, tables)?))
}

/// Copies the segments into `ram`, all of them below `top`; answers the end of the highest.
fn put_kernel(kernel: &Kernel<'_>, ram: &mut [u8], top: u64) -> Result<u64, Error> {
    let (_, end) = kernel.extent();
    // Segments that overlap could otherwise have the loader copy the same bytes without end.
    let sum = kernel
        .segments
        .iter()
        .fold(0u64, |sum, segment| sum.saturating_add(segment.memory));
    if end > top || sum > top {
        return Err(too_large(end.max(sum), top));
    }
    for segment in &kernel.segments {
        put(ram, segment.address, segment.bytes);
    }
    Ok(end)
}

fn too_large(needed: u64, available: u64) -> Error {
    Error::NoMemory {
        input: Input::Kernel,
        needed,
        available,
    }
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
