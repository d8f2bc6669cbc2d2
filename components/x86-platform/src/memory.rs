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
    /// An aligned 8-byte word that was found once and can be loaded again.
    type Word: Copy + PartialEq;
    /// Finds the aligned 8-byte word at `address`.
    fn word(&self, address: u64) -> Result<Self::Word, Unbacked>;
    /// Loads a word, in one access.
    fn load(&self, word: Self::Word) -> u64;
    /// A number that is another one after [`GuestMemory::word`] began to answer otherwise for
    /// some address.
    fn layout(&self) -> u64;
    /// One aligned 8-byte load.
    #[inline]
    fn read_u64(&self, address: u64) -> Result<u64, Unbacked> {
        self.word(address).map(|word| self.load(word))
    }
    /// One aligned 4-byte load.
    fn read_u32(&self, address: u64) -> Result<u32, Unbacked>;
    /// Sets bits of an aligned 4-byte word by one locked OR, as the CPU sets accessed and dirty.
    fn set_bits(&self, address: u64, bits: u32) -> Result<(), Unbacked>;
}

/// A `Vec` as guest memory from address 0: for tests here and in users of this library. `moved`
/// stands for a change of layout: the addresses below it are found above it, and the other way
/// round, in halves of the memory.
#[derive(Clone, Debug, Default)]
pub struct TestMemory {
    bytes: core::cell::RefCell<alloc::vec::Vec<u8>>,
    layout: core::cell::Cell<u64>,
}

impl TestMemory {
    /// Zeroed memory of this many bytes.
    pub fn new(bytes: usize) -> TestMemory {
        TestMemory {
            bytes: core::cell::RefCell::new(alloc::vec![0; bytes]),
            layout: core::cell::Cell::new(0),
        }
    }

    /// Whether the same bytes are in the same places.
    pub fn same_bytes(&self, other: &TestMemory) -> bool {
        self.bytes == other.bytes
    }

    /// Exchanges the halves of the memory, which is a new layout.
    pub fn exchange_halves(&self) {
        self.layout.set(self.layout.get() + 1);
    }

    /// Where an address is in the vector.
    fn place(&self, address: u64) -> Result<usize, Unbacked> {
        let bytes = self.bytes.borrow().len() as u64;
        let half = bytes / 2;
        let place = if self.layout.get() & 1 == 0 {
            address
        } else if address < half {
            address + half
        } else {
            address.wrapping_sub(half)
        };
        usize::try_from(place).map_err(|_| Unbacked)
    }
}

impl GuestMemory for TestMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked> {
        let start = self.place(address)?;
        let memory = self.bytes.borrow();
        let end = start.checked_add(buffer.len()).ok_or(Unbacked)?;
        buffer.copy_from_slice(memory.get(start..end).ok_or(Unbacked)?);
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked> {
        let start = self.place(address)?;
        let mut memory = self.bytes.borrow_mut();
        let end = start.checked_add(bytes.len()).ok_or(Unbacked)?;
        memory
            .get_mut(start..end)
            .ok_or(Unbacked)?
            .copy_from_slice(bytes);
        Ok(())
    }

    type Word = usize;

    fn word(&self, address: u64) -> Result<usize, Unbacked> {
        let start = self.place(address)?;
        let inside = self
            .bytes
            .borrow()
            .get(start..)
            .is_some_and(|rest| rest.len() >= 8);
        if inside && start.is_multiple_of(8) {
            Ok(start)
        } else {
            Err(Unbacked)
        }
    }

    fn load(&self, word: usize) -> u64 {
        let memory = self.bytes.borrow();
        let bytes = memory.get(word..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn layout(&self) -> u64 {
        self.layout.get()
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
