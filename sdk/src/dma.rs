//! Memory that a device uses: where the driver sees it and where the device does. The same for
//! drivers on a machine with an IOMMU, where the device's addresses are the driver's own choice and
//! nothing else can be reached, and on one without, where they are physical.
//!
//! The memory is root's (`Startup::dma`, `Startup::shares`), not the driver's own: when the driver
//! is gone, what its device still writes finds nobody else's data there.

use idl::Cap;
use idl::cap::{AddressSpace, Device, Frame};
use microvisor_abi::{Rights, SpaceKind, Status};

use crate::caps::{AnyCap, DeviceCap, MemoryCap};
use crate::memory::{self, LARGE, ORDER_2M, READ_WRITE};
use crate::startup::DmaRight;

/// First address that a device behind an IOMMU uses.
const FIRST: u64 = 0x1000_0000;
/// One past the last: below this, so that devices with 32-bit addresses reach it, and clear of where
/// a store is an interrupt (Intel SDM vol. 3, 11.11.1).
const END: u64 = 0xfe00_0000;

/// A stretch of memory that driver and device share. Kept for good.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    address: u64,
    bus: u64,
    bytes: u64,
}

macro_rules! access {
    ($($read:ident $write:ident $ty:ty)*) => {$(
        #[doc = concat!("Reads a `", stringify!($ty), "` at a multiple of its size; 0 outside.")]
        pub fn $read(self, offset: u64) -> $ty {
            match self.at(offset, size_of::<$ty>() as u64) {
                // SAFETY: inside of what was mapped for good, aligned; nobody has references into
                // it, because the device may change it at any time.
                Some(address) => unsafe { (address as *const $ty).read_volatile() },
                None => 0,
            }
        }

        #[doc = concat!("Writes a `", stringify!($ty), "` at a multiple of its size; nothing outside.")]
        pub fn $write(self, offset: u64, value: $ty) {
            if let Some(address) = self.at(offset, size_of::<$ty>() as u64) {
                // SAFETY: as for reading, and writable.
                unsafe { (address as *mut $ty).write_volatile(value) }
            }
        }
    )*};
}

impl Region {
    /// Address by which the device knows it.
    pub fn bus(self) -> u64 {
        self.bus
    }

    /// How many bytes there are.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// Where the driver sees it.
    pub fn address(self) -> u64 {
        self.address
    }

    /// A part of it.
    pub fn part(self, offset: u64, bytes: u64) -> Option<Region> {
        let end = offset.checked_add(bytes)?;
        (end <= self.bytes).then_some(Region {
            address: self.address + offset,
            bus: self.bus + offset,
            bytes,
        })
    }

    fn at(self, offset: u64, size: u64) -> Option<u64> {
        let end = offset.checked_add(size)?;
        let address = self.address.checked_add(offset)?;
        (end <= self.bytes && address.is_multiple_of(size)).then_some(address)
    }

    access! { read8 write8 u8 read16 write16 u16 read32 write32 u32 read64 write64 u64 }
}

/// What a driver's device can reach.
pub struct Space {
    /// With an IOMMU: what it walks.
    space: Option<Cap<AddressSpace>>,
    next: u64,
}

impl Space {
    /// Nothing yet. `protected` is what `pci` says of the function.
    pub fn new(protected: bool) -> Result<Space, Status> {
        let space = match protected {
            true => Some(memory::own().address_space(SpaceKind::Dma)?),
            false => None,
        };
        Ok(Space { space, next: FIRST })
    }

    /// Lets the device use memory that root gave, and maps it for the driver.
    pub fn map(&mut self, right: &DmaRight) -> Result<Region, Status> {
        let bytes = u64::from(right.count) * LARGE;
        let first = Cap::<Frame>::new(right.slot);
        let address = memory::reserve(bytes)?;
        let (own, host) = (memory::own(), memory::OWN_SPACE);
        memory::map_run(own, host, first, right.count, ORDER_2M, address, READ_WRITE)?;
        let bus = match self.space {
            None => right.bus,
            Some(space) => {
                let bus = self.next;
                let end = bus.checked_add(bytes).filter(|&end| end <= END);
                self.next = end.ok_or(Status::NoMemory)?;
                for index in 0..right.count {
                    // A capability records one mapping.
                    let frame = Cap::<Frame>::new(right.slot + index);
                    let copy = frame.copy(Rights::READ.or(Rights::WRITE))?;
                    let at = bus + u64::from(index) * LARGE;
                    memory::map_into(own, space, copy, at, READ_WRITE)?;
                }
                bus
            }
        };
        Ok(Region {
            address,
            bus,
            bytes,
        })
    }

    /// From now on the device reaches what is mapped here. Without an IOMMU it reaches everything
    /// anyway.
    pub fn attach(&self, device: Cap<Device>) -> Result<(), Status> {
        match self.space {
            Some(space) => device.attach(space),
            None => Ok(()),
        }
    }
}
