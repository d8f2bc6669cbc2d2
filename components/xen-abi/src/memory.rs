//! Guest-physical memory as this library sees it: implemented by the VMM over the guest's
//! frames, by [`TestMemory`] in host tests. Another vCPU may write at any time, so a value that
//! needs one answer is read once, and words shared with the guest change only by atomic
//! operations.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::grant::frames::status_frames;
use crate::{MAX_GRANT_FRAMES, PAGE_SIZE};

/// The address is not (wholly) memory of the guest, or it is not aligned to the word's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unbacked;

/// A frame that belongs to the hypervisor's side until the guest maps it with
/// `XENMEM_add_to_physmap`. The VMM donates it zeroed; this library addresses it through
/// [`GuestMemory`] at [`SpecialFrame::address`], whether the guest has mapped it or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialFrame {
    /// The `shared_info` page.
    SharedInfo,
    /// Frame of the grant table, below [`crate::Config::grant_frames`].
    GrantTable(u32),
    /// Frame of the grant table's status words, which version 2 has: one for 8 frames of the table.
    GrantStatus(u32),
}

impl SpecialFrame {
    /// Where the synthetic addresses of special frames start: above every guest-physical address.
    pub const BASE: u64 = 1 << 62;

    /// How many there are at most: the VMM backs so many from [`SpecialFrame::BASE`] on. A domain that
    /// may have version 1 of the grant table only does not use the last 8.
    pub const COUNT: u32 = 1 + MAX_GRANT_FRAMES + status_frames(MAX_GRANT_FRAMES);

    /// Position among the special frames: 0 is shared info, grant frames follow, then those of their
    /// status words. The VMM backs `BASE + index * 4096`.
    #[must_use]
    pub const fn index(self) -> u64 {
        match self {
            SpecialFrame::SharedInfo => 0,
            SpecialFrame::GrantTable(frame) => 1 + frame as u64,
            SpecialFrame::GrantStatus(frame) => 1 + MAX_GRANT_FRAMES as u64 + frame as u64,
        }
    }

    /// The synthetic address by which [`GuestMemory`] must reach this frame.
    #[must_use]
    pub const fn address(self) -> u64 {
        SpecialFrame::BASE + self.index() * PAGE_SIZE
    }
}

/// A guest's memory by guest-physical address, and the special frames by their synthetic
/// addresses. Frames that the guest has mapped are reached by both addresses.
///
/// The word operations need natural alignment and answer [`Unbacked`] without it; they are
/// sequentially consistent.
pub trait GuestMemory {
    /// Copies out of memory; all or nothing.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked>;
    /// Copies into memory; all or nothing.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked>;
    /// Copies `bytes` bytes out of memory into words that others use too; all or nothing. What is behind
    /// them in the last word becomes anything.
    fn read_shared(&self, address: u64, into: &[AtomicU64], bytes: usize) -> Result<(), Unbacked> {
        let mut copy = vec![0; bytes];
        self.read(address, &mut copy)?;
        if bytes > into.len() * 8 {
            return Err(Unbacked);
        }
        for (word, bytes) in into.iter().zip(copy.chunks(8)) {
            let mut whole = [0; 8];
            whole
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
        }
        Ok(())
    }
    /// The same in the other direction.
    fn write_shared(&self, address: u64, from: &[AtomicU64], bytes: usize) -> Result<(), Unbacked> {
        let words = from.iter().map(|word| word.load(Ordering::Relaxed));
        let copy: Vec<u8> = words.flat_map(u64::to_le_bytes).take(bytes).collect();
        if copy.len() < bytes {
            return Err(Unbacked);
        }
        self.write(address, &copy)
    }
    /// One 4-byte load.
    fn read_u32(&self, address: u64) -> Result<u32, Unbacked>;
    /// One 4-byte store.
    fn write_u32(&self, address: u64, value: u32) -> Result<(), Unbacked>;
    /// Locked OR of 4 bytes; answers the old value.
    fn fetch_or_u32(&self, address: u64, bits: u32) -> Result<u32, Unbacked>;
    /// Locked AND of 4 bytes; answers the old value.
    fn fetch_and_u32(&self, address: u64, bits: u32) -> Result<u32, Unbacked>;
    /// Locked compare-and-exchange of 4 bytes; answers the old value, which was `current` if `new`
    /// was stored.
    fn compare_exchange_u32(&self, address: u64, current: u32, new: u32) -> Result<u32, Unbacked>;
}

/// A `Vec` from guest-physical 0 and another for the special frames: for host tests, here and in
/// users of this library.
#[derive(Debug)]
pub struct TestMemory {
    ram: RefCell<Vec<u8>>,
    special: RefCell<Vec<u8>>,
}

impl TestMemory {
    /// Zeroed memory of this many bytes, and this many special frames.
    #[must_use]
    pub fn new(bytes: usize, special_frames: usize) -> TestMemory {
        TestMemory {
            ram: RefCell::new(vec![0; bytes]),
            special: RefCell::new(vec![0; special_frames * PAGE_SIZE as usize]),
        }
    }

    fn place(&self, address: u64) -> (&RefCell<Vec<u8>>, u64) {
        match address.checked_sub(SpecialFrame::BASE) {
            Some(offset) => (&self.special, offset),
            None => (&self.ram, address),
        }
    }

    fn update(&self, address: u64, change: impl FnOnce(u32) -> u32) -> Result<u32, Unbacked> {
        if !address.is_multiple_of(4) {
            return Err(Unbacked);
        }
        let mut old = [0; 4];
        self.read(address, &mut old)?;
        let old = u32::from_le_bytes(old);
        self.write(address, &change(old).to_le_bytes())?;
        Ok(old)
    }
}

impl GuestMemory for TestMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked> {
        let (store, offset) = self.place(address);
        let start = usize::try_from(offset).map_err(|_| Unbacked)?;
        let end = start.checked_add(buffer.len()).ok_or(Unbacked)?;
        buffer.copy_from_slice(store.borrow().get(start..end).ok_or(Unbacked)?);
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked> {
        let (store, offset) = self.place(address);
        let start = usize::try_from(offset).map_err(|_| Unbacked)?;
        let end = start.checked_add(bytes.len()).ok_or(Unbacked)?;
        store
            .borrow_mut()
            .get_mut(start..end)
            .ok_or(Unbacked)?
            .copy_from_slice(bytes);
        Ok(())
    }

    fn read_u32(&self, address: u64) -> Result<u32, Unbacked> {
        self.update(address, |old| old)
    }

    fn write_u32(&self, address: u64, value: u32) -> Result<(), Unbacked> {
        self.update(address, |_| value).map(|_| ())
    }

    fn fetch_or_u32(&self, address: u64, bits: u32) -> Result<u32, Unbacked> {
        self.update(address, |old| old | bits)
    }

    fn fetch_and_u32(&self, address: u64, bits: u32) -> Result<u32, Unbacked> {
        self.update(address, |old| old & bits)
    }

    fn compare_exchange_u32(&self, address: u64, current: u32, new: u32) -> Result<u32, Unbacked> {
        self.update(address, |old| if old == current { new } else { old })
    }
}
