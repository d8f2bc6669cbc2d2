//! Guest-physical memory as this library sees it.

/// The address is not (wholly) RAM of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unbacked;

/// A guest's RAM, implemented by the VMM. The guest writes it at any time: each read may give
/// another answer, and a caller that needs one answer reads once.
pub trait GuestMemory {
    /// Copies RAM from guest-physical `address`; all or nothing.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked>;
    /// Copies into RAM at guest-physical `address`; all or nothing.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked>;
    /// One aligned 8-byte load.
    fn read_u64(&self, address: u64) -> Result<u64, Unbacked>;
    /// One aligned 4-byte load.
    fn read_u32(&self, address: u64) -> Result<u32, Unbacked>;
    /// Sets bits of an aligned 4-byte word by one locked OR, as the CPU sets accessed and dirty.
    fn set_bits(&self, address: u64, bits: u32) -> Result<(), Unbacked>;
}

/// A `Vec` as guest memory from address 0: for tests here and in users of this library.
#[derive(Debug, Default)]
pub struct TestMemory(pub core::cell::RefCell<alloc::vec::Vec<u8>>);

impl TestMemory {
    /// Zeroed memory of this many bytes.
    pub fn new(bytes: usize) -> TestMemory {
        TestMemory(core::cell::RefCell::new(alloc::vec![0; bytes]))
    }
}

impl GuestMemory for TestMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked> {
        let memory = self.0.borrow();
        let start = usize::try_from(address).map_err(|_| Unbacked)?;
        let end = start.checked_add(buffer.len()).ok_or(Unbacked)?;
        buffer.copy_from_slice(memory.get(start..end).ok_or(Unbacked)?);
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked> {
        let mut memory = self.0.borrow_mut();
        let start = usize::try_from(address).map_err(|_| Unbacked)?;
        let end = start.checked_add(bytes.len()).ok_or(Unbacked)?;
        memory
            .get_mut(start..end)
            .ok_or(Unbacked)?
            .copy_from_slice(bytes);
        Ok(())
    }

    fn read_u64(&self, address: u64) -> Result<u64, Unbacked> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn read_u32(&self, address: u64) -> Result<u32, Unbacked> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn set_bits(&self, address: u64, bits: u32) -> Result<(), Unbacked> {
        let word = self.read_u32(address)? | bits;
        self.write(address, &word.to_le_bytes())
    }
}
