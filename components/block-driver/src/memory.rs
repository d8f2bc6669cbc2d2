//! Memory that driver and device share, as a queue sees it: a [`Region`] on the machine, plain bytes
//! in host tests. Offsets are from its start; what lies outside reads as 0 and takes no writes.

use sdk::dma::Region;

/// Memory that driver and device share. Accesses are not reordered among each other.
pub trait Memory {
    /// Reads a byte.
    fn read8(&self, offset: u64) -> u8;
    /// Reads 16 bits.
    fn read16(&self, offset: u64) -> u16;
    /// Reads 32 bits.
    fn read32(&self, offset: u64) -> u32;
    /// Writes a byte.
    fn write8(&mut self, offset: u64, value: u8);
    /// Writes 16 bits.
    fn write16(&mut self, offset: u64, value: u16);
    /// Writes 32 bits.
    fn write32(&mut self, offset: u64, value: u32);
    /// Writes 64 bits.
    fn write64(&mut self, offset: u64, value: u64);
    /// A part of it; `None` if it is not inside.
    fn part(&self, offset: u64, bytes: u64) -> Option<Self>
    where
        Self: Sized;
    /// Where the device sees its start.
    fn bus(&self) -> u64;
}

impl Memory for Region {
    fn read8(&self, offset: u64) -> u8 {
        Region::read8(*self, offset)
    }
    fn read16(&self, offset: u64) -> u16 {
        Region::read16(*self, offset)
    }
    fn read32(&self, offset: u64) -> u32 {
        Region::read32(*self, offset)
    }
    fn write8(&mut self, offset: u64, value: u8) {
        Region::write8(*self, offset, value);
    }
    fn write16(&mut self, offset: u64, value: u16) {
        Region::write16(*self, offset, value);
    }
    fn write32(&mut self, offset: u64, value: u32) {
        Region::write32(*self, offset, value);
    }
    fn write64(&mut self, offset: u64, value: u64) {
        Region::write64(*self, offset, value);
    }
    fn part(&self, offset: u64, bytes: u64) -> Option<Region> {
        Region::part(*self, offset, bytes)
    }
    fn bus(&self) -> u64 {
        Region::bus(*self)
    }
}

#[cfg(not(target_os = "none"))]
pub use plain::Plain;

#[cfg(not(target_os = "none"))]
mod plain {
    use alloc::rc::Rc;
    use alloc::vec;
    use alloc::vec::Vec;
    use core::cell::RefCell;

    use super::Memory;

    /// Bytes that a driver under test and its simulated device share.
    #[derive(Clone, Debug)]
    pub struct Plain {
        bytes: Rc<RefCell<Vec<u8>>>,
        bus: u64,
        start: u64,
        end: u64,
    }

    impl Plain {
        /// So many zeros, which the device sees at `bus`.
        pub fn new(bus: u64, bytes: u64) -> Plain {
            Plain {
                bytes: Rc::new(RefCell::new(vec![0; bytes as usize])),
                bus,
                start: 0,
                end: bytes,
            }
        }

        /// As the device reads: by its own addresses. `None` if not all of it is inside.
        pub fn take<const N: usize>(&self, bus: u64) -> Option<[u8; N]> {
            let at = self.start.checked_add(bus.checked_sub(self.bus)?)?;
            let end = at.checked_add(N as u64)?;
            let bytes = self.bytes.borrow();
            let found = bytes.get(usize::try_from(at).ok()?..)?.first_chunk();
            (end <= self.end).then(|| found.copied())?
        }

        /// As the device writes. `None` if not all of it is inside.
        pub fn give<const N: usize>(&self, bus: u64, value: [u8; N]) -> Option<()> {
            self.take::<N>(bus)?;
            self.put(bus - self.bus, value);
            Some(())
        }

        fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
            let bus = self.bus.wrapping_add(offset);
            self.take(bus).unwrap_or([0; N])
        }

        fn put<const N: usize>(&self, offset: u64, value: [u8; N]) {
            let inside = offset
                .checked_add(N as u64)
                .is_some_and(|end| end <= self.end - self.start);
            let at = usize::try_from(self.start.saturating_add(offset)).unwrap_or(usize::MAX);
            let mut bytes = self.bytes.borrow_mut();
            if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut())
                && inside
            {
                *place = value;
            }
        }
    }

    impl Memory for Plain {
        fn read8(&self, offset: u64) -> u8 {
            self.get::<1>(offset)[0]
        }
        fn read16(&self, offset: u64) -> u16 {
            u16::from_le_bytes(self.get(offset))
        }
        fn read32(&self, offset: u64) -> u32 {
            u32::from_le_bytes(self.get(offset))
        }
        fn write8(&mut self, offset: u64, value: u8) {
            self.put(offset, [value]);
        }
        fn write16(&mut self, offset: u64, value: u16) {
            self.put(offset, value.to_le_bytes());
        }
        fn write32(&mut self, offset: u64, value: u32) {
            self.put(offset, value.to_le_bytes());
        }
        fn write64(&mut self, offset: u64, value: u64) {
            self.put(offset, value.to_le_bytes());
        }
        fn part(&self, offset: u64, bytes: u64) -> Option<Plain> {
            let start = self.start.checked_add(offset)?;
            let end = start.checked_add(bytes)?;
            (end <= self.end).then(|| Plain {
                bytes: self.bytes.clone(),
                bus: self.bus + offset,
                start,
                end,
            })
        }
        fn bus(&self) -> u64 {
            self.bus
        }
    }
}
