//! Registers of a device: pages that `pci` gave, mapped uncached. Accesses outside of them do
//! nothing and read as all ones, as a device that is not there does.

use idl::Cap;
use idl::cap::Frame;
use microvisor_abi::{FRAME, Status};

use crate::memory;

/// Mapped registers. Kept for good: their addresses are not used again.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    address: u64,
    bytes: u64,
}

macro_rules! access {
    ($($read:ident $write:ident $ty:ty)*) => {$(
        #[doc = concat!("Reads a `", stringify!($ty), "` at a multiple of its size.")]
        pub fn $read(self, offset: u64) -> $ty {
            match self.at(offset, size_of::<$ty>() as u64) {
                // SAFETY: inside of what was mapped for good, aligned; reading a device's register
                // touches no memory of ours.
                Some(address) => unsafe { (address as *const $ty).read_volatile() },
                None => <$ty>::MAX,
            }
        }

        #[doc = concat!("Writes a `", stringify!($ty), "` at a multiple of its size.")]
        pub fn $write(self, offset: u64, value: $ty) {
            if let Some(address) = self.at(offset, size_of::<$ty>() as u64) {
                // SAFETY: inside of what was mapped for good and writable, aligned. What the device
                // does then it does to memory that it was given (`crate::dma`).
                unsafe { (address as *mut $ty).write_volatile(value) }
            }
        }
    )*};
}

impl Registers {
    /// Maps pages of 4 KiB one after the other.
    pub fn map(pages: &[Cap<Frame>]) -> Result<Registers, Status> {
        let bytes = pages.len() as u64 * FRAME;
        let address = memory::reserve(bytes)?;
        for (index, page) in pages.iter().enumerate() {
            let at = address + index as u64 * FRAME;
            memory::map_into(
                memory::own(),
                memory::OWN_SPACE,
                *page,
                at,
                memory::READ_WRITE,
            )?;
        }
        Ok(Registers { address, bytes })
    }

    /// Maps one frame of 2 MiB.
    pub fn map_large(frame: Cap<Frame>) -> Result<Registers, Status> {
        let address = memory::map(frame, memory::LARGE, memory::READ_WRITE)?;
        Ok(Registers {
            address,
            bytes: memory::LARGE,
        })
    }

    /// A part of them.
    pub fn part(self, offset: u64, bytes: u64) -> Option<Registers> {
        let end = offset.checked_add(bytes)?;
        (end <= self.bytes).then_some(Registers {
            address: self.address + offset,
            bytes,
        })
    }

    /// How many bytes there are.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    fn at(self, offset: u64, size: u64) -> Option<u64> {
        let end = offset.checked_add(size)?;
        let address = self.address.checked_add(offset)?;
        (end <= self.bytes && address.is_multiple_of(size)).then_some(address)
    }

    access! { read8 write8 u8 read16 write16 u16 read32 write32 u32 read64 write64 u64 }
}
