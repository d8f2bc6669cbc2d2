//! Mapping memory: page tables on demand, and addresses of the own space that are never handed out
//! twice (so that nothing live ever changes under a reference).

use core::sync::atomic::{AtomicU64, Ordering};

use idl::Cap;
use idl::cap::{AddressSpace, Frame, Memory, Tables};
use microvisor_abi::cap::Map;
use microvisor_abi::{FRAME, Status};

use crate::caps::{AddressSpaceCap, AnyCap, MapError, MapKind, Mappable, MemoryCap};
use crate::startup::{MAP_ADDRESS, SLOT_ADDRESS_SPACE, SLOT_MEMORY};

/// Order of a 4 KiB frame.
pub const ORDER_4K: u64 = 12;
/// Order of a 2 MiB frame.
pub const ORDER_2M: u64 = 21;
/// Bytes of a 2 MiB frame.
pub const LARGE: u64 = 1 << ORDER_2M;
/// Frames given to an address space each time its pool is empty.
const TABLES: u64 = 4;

/// Readable and writable.
pub const READ_WRITE: u64 = Map::READ | Map::WRITE;
/// Readable.
pub const READ: u64 = Map::READ;

/// The own address space.
pub const OWN_SPACE: Cap<AddressSpace> = Cap::new(SLOT_ADDRESS_SPACE);

/// The memory that [`map`], the heap and page tables take from; root sets another.
static MEMORY: AtomicU64 = AtomicU64::new(SLOT_MEMORY as u64);
static NEXT: AtomicU64 = AtomicU64::new(MAP_ADDRESS);

/// Own memory.
pub fn own() -> Cap<Memory> {
    Cap::new(MEMORY.load(Ordering::Relaxed) as u32)
}

/// Takes own memory from another capability from now on. For root, which has many.
pub fn set_own(memory: Cap<Memory>) {
    MEMORY.store(memory.slot().into(), Ordering::Relaxed);
}

/// Maps into any address space, giving it page tables out of `memory` as they are missed.
pub fn map_into<K: MapKind>(
    memory: Cap<Memory>,
    space: Cap<AddressSpace>,
    what: Cap<K>,
    address: u64,
    flags: u64,
) -> Result<(), Status> {
    // At most one table per level is missing; a pool that stays empty after that is an error.
    for _ in 0..6 {
        match what.map(space, address, flags) {
            Ok(()) => return Ok(()),
            Err(MapError::NeedTable(_)) => {
                let tables: Cap<Tables> = memory.retype(TABLES)?;
                // The capability stays in its slot: deleting it would take the tables away.
                if let Err(status) = space.fill(tables) {
                    let _ = tables.delete();
                    return Err(status);
                }
            }
            Err(MapError::Status(status)) => return Err(status),
        }
    }
    Err(Status::NeedTable)
}

/// Addresses for `bytes` in the own space, aligned to 2 MiB, with an unmapped gap behind them.
pub fn reserve(bytes: u64) -> Result<u64, Status> {
    let rounded = bytes
        .checked_next_multiple_of(LARGE)
        .and_then(|bytes| bytes.checked_add(LARGE))
        .ok_or(Status::InvalidArgument)?;
    NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        next.checked_add(rounded)
            .filter(|&end| end <= crate::startup::GUEST_ADDRESS)
    })
    .map_err(|_| Status::NoMemory)
}

/// Maps something into the own space and answers where.
pub fn map<K: MapKind>(what: Cap<K>, bytes: u64, flags: u64) -> Result<u64, Status> {
    let address = reserve(bytes)?;
    map_into(own(), OWN_SPACE, what, address, flags)?;
    Ok(address)
}

/// Frames in order, mapped in one piece.
#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    /// The first frame; the others follow in consecutive slots.
    pub frames: Cap<Frame>,
    /// How many.
    pub count: u32,
    /// Where they are mapped.
    pub address: u64,
}

/// Makes `count` frames of 4 KiB out of own memory, zeroed, and maps them.
pub fn allocate(count: u32) -> Result<Mapped, Status> {
    let address = reserve(u64::from(count) * FRAME)?;
    let frames = own().retype_many::<Frame>(ORDER_4K, count)?;
    let mapped = map_run(
        own(),
        OWN_SPACE,
        frames,
        count,
        ORDER_4K,
        address,
        READ_WRITE,
    );
    if let Err(status) = mapped {
        for index in 0..count {
            let _ = Cap::<Frame>::new(frames.slot() + index).delete();
        }
        return Err(status);
    }
    Ok(Mapped {
        frames,
        count,
        address,
    })
}

/// Maps `count` frames in consecutive slots at consecutive addresses.
pub fn map_run(
    memory: Cap<Memory>,
    space: Cap<AddressSpace>,
    frames: Cap<Frame>,
    count: u32,
    order: u64,
    address: u64,
    flags: u64,
) -> Result<(), Status> {
    for index in 0..count {
        let frame = Cap::<Frame>::new(frames.slot() + index);
        map_into(
            memory,
            space,
            frame,
            address + (u64::from(index) << order),
            flags,
        )?;
    }
    Ok(())
}

/// A page shared with another component as a `T` made of atomics only.
pub struct Shared<T: 'static> {
    /// The frame, to be given to the peer.
    pub frame: Cap<Frame>,
    /// What both see.
    pub page: &'static T,
}

/// Types that any 4 KiB of bytes is a valid value of, with interior mutability everywhere.
///
/// # Safety
/// Every bit pattern is a value; every field is atomic; size and alignment are at most 4096.
pub unsafe trait SharedPage {}
// SAFETY: it consists of atomics and arrays of them, and is 4096 bytes.
unsafe impl SharedPage for idl::ring::RingPage {}
// SAFETY: likewise.
unsafe impl SharedPage for idl::console::Names {}

/// A new zeroed page of own memory as a `T`.
pub fn shared_page<T: SharedPage>() -> Result<Shared<T>, Status> {
    let mapped = allocate(1)?;
    Ok(Shared {
        frame: mapped.frames,
        // SAFETY: the page was just mapped, writable, and its address is not used again.
        page: unsafe { shared_at(mapped.address) },
    })
}

/// Maps a received frame of 4 KiB as a `T`. The giver may take it away: then touching it faults.
pub fn map_shared<T: SharedPage>(frame: Cap<Frame>) -> Result<&'static T, Status> {
    let address = map(frame, FRAME, READ_WRITE)?;
    // SAFETY: as in `shared_page`.
    Ok(unsafe { shared_at(address) })
}

/// The `T` at an address that root mapped it at (`Startup::attached`).
///
/// # Safety
/// A page is mapped there and stays: writable, or the caller only loads.
pub unsafe fn shared_at<T: SharedPage>(address: u64) -> &'static T {
    #[cfg(target_os = "none")]
    let page = address as *const T;
    #[cfg(not(target_os = "none"))]
    let page = core::ptr::from_ref(crate::host::page(address)).cast::<T>();
    // SAFETY: the caller's promise (on a host: a whole page for ever, of atomics, aligned as one);
    // `T` takes any bytes and is only changed atomically.
    unsafe { &*page }
}

/// Memory that root mapped for this component: a file of the archive.
pub fn file_bytes(file: &crate::startup::File) -> &'static [u8] {
    let length = usize::try_from(file.bytes).unwrap_or(0);
    if file.address < crate::startup::FILES_ADDRESS || length == 0 {
        return &[];
    }
    // SAFETY: root mapped this many bytes there before the component started; they are read-only
    // for everybody and stay.
    unsafe { core::slice::from_raw_parts(file.address as *const u8, length) }
}

/// A range of own addresses that frames are mapped into for a moment, to write or read them before
/// another component gets them. For root.
pub struct Window {
    address: u64,
}

impl Window {
    /// Bytes that fit.
    pub const BYTES: u64 = LARGE;

    /// Reserves the addresses.
    pub fn new() -> Result<Window, Status> {
        reserve(Self::BYTES).map(|address| Window { address })
    }

    /// Maps `count` frames of 4 KiB in consecutive slots, lets `work` use their bytes, and unmaps
    /// them. The frames are mapped nowhere else.
    pub fn with<R>(
        &mut self,
        frames: Cap<Frame>,
        count: u32,
        flags: u64,
        work: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, Status> {
        let bytes = u64::from(count) * FRAME;
        if bytes > Self::BYTES || flags & Map::READ == 0 {
            return Err(Status::InvalidArgument);
        }
        let mapped = map_run(
            own(),
            OWN_SPACE,
            frames,
            count,
            ORDER_4K,
            self.address,
            flags,
        );
        let outcome = mapped.map(|()| {
            // SAFETY: just mapped here and in no other window (`&mut self`). A caller that maps
            // without WRITE and writes takes a page fault.
            work(unsafe {
                core::slice::from_raw_parts_mut(self.address as *mut u8, bytes as usize)
            })
        });
        for index in 0..count {
            let unmapped = Cap::<Frame>::new(frames.slot() + index).unmap();
            if mapped.is_ok() {
                unmapped?;
            }
        }
        outcome
    }
}

/// Maps read-only frames of 2 MiB in consecutive slots for good and answers their bytes.
/// For root's view of the archive, which nobody can write.
pub fn map_read_only(frames: Cap<Frame>, count: u32, bytes: u64) -> Result<&'static [u8], Status> {
    let span = u64::from(count) << ORDER_2M;
    let length = usize::try_from(bytes.min(span)).map_err(|_| Status::InvalidArgument)?;
    let address = reserve(span)?;
    map_run(own(), OWN_SPACE, frames, count, ORDER_2M, address, READ)?;
    // SAFETY: mapped just now, for good, and these frames carry no right to write for anyone.
    Ok(unsafe { core::slice::from_raw_parts(address as *const u8, length) })
}
