//! The caller of one hypercall: its memory by linear address, its layout width, and what its vCPU
//! will do next. Xen's `copy_from_guest` and `copy_to_guest`.

use crate::PAGE_SIZE;
use crate::call::{Next, Width};
use crate::env::{Access, Env};
use crate::errno::Errno;
use crate::memory::GuestMemory;

/// What an operation answers: the hypercall's result, or an error.
pub(crate) type Reply = Result<i64, Errno>;

pub(crate) struct Caller<'a, M, E> {
    pub memory: &'a M,
    pub env: &'a mut E,
    pub vcpu: u32,
    pub width: Width,
    /// Whether it would take an upcall now.
    pub interrupts: bool,
    pub next: Next,
}

impl<M: GuestMemory, E: Env> Caller<'_, M, E> {
    /// Copies from the caller's linear addresses, a page at a time.
    pub fn read(&mut self, linear: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let mut linear = self.clip(linear);
        let mut rest = buffer;
        while !rest.is_empty() {
            let room = (PAGE_SIZE - linear % PAGE_SIZE) as usize;
            let take = rest.len().min(room);
            let (now, later) = rest.split_at_mut(take);
            let physical = self
                .env
                .translate(linear, Access::Read)
                .ok_or(Errno::Fault)?;
            self.memory.read(physical, now).map_err(|_| Errno::Fault)?;
            linear = self.clip(linear.wrapping_add(take as u64));
            rest = later;
        }
        Ok(())
    }

    /// Copies to the caller's linear addresses, a page at a time. Pages before one that faults
    /// keep what was written, as in Xen.
    pub fn write(&mut self, linear: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut linear = self.clip(linear);
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = (PAGE_SIZE - linear % PAGE_SIZE) as usize;
            let (now, later) = rest.split_at(rest.len().min(room));
            let physical = self
                .env
                .translate(linear, Access::Write)
                .ok_or(Errno::Fault)?;
            self.memory.write(physical, now).map_err(|_| Errno::Fault)?;
            linear = self.clip(linear.wrapping_add(now.len() as u64));
            rest = later;
        }
        Ok(())
    }

    /// Reads a structure of N bytes.
    pub fn fetch<const N: usize>(&mut self, linear: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        self.read(linear, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a word.
    pub fn fetch_u32(&mut self, linear: u64) -> Result<u32, Errno> {
        self.fetch_u32_inline(linear)
    }

    /// The same as a part of the caller; a word that is aligned, as compilers place them, in one
    /// load.
    #[inline(always)]
    pub fn fetch_u32_inline(&mut self, linear: u64) -> Result<u32, Errno> {
        if !linear.is_multiple_of(4) {
            return self.fetch(linear).map(u32::from_le_bytes);
        }
        let linear = self.clip(linear);
        let physical = self.env.translate(linear, Access::Read);
        self.memory
            .read_u32(physical.ok_or(Errno::Fault)?)
            .map_err(|_| Errno::Fault)
    }

    /// Bytes in the caller's `unsigned long`, `xen_pfn_t` and guest handles.
    pub fn word(&self) -> u64 {
        match self.width {
            Width::Bits32 => 4,
            Width::Bits64 => 8,
        }
    }

    pub fn is_compat(&self) -> bool {
        self.width == Width::Bits32
    }

    /// Reads element `index` of an array of the caller's `unsigned long` or `xen_pfn_t`.
    pub fn fetch_word(&mut self, array: u64, index: u64) -> Result<u64, Errno> {
        let at = array.wrapping_add(index.wrapping_mul(self.word()));
        match self.width {
            Width::Bits32 => self.fetch_u32(at).map(u64::from),
            Width::Bits64 => self.fetch(at).map(u64::from_le_bytes),
        }
    }

    /// Writes element `index` of such an array.
    pub fn store_word(&mut self, array: u64, index: u64, value: u64) -> Result<(), Errno> {
        let at = array.wrapping_add(index.wrapping_mul(self.word()));
        match self.width {
            Width::Bits32 => self.write(at, &(value as u32).to_le_bytes()),
            Width::Bits64 => self.write(at, &value.to_le_bytes()),
        }
    }

    /// The guest-physical address of a writable record that lies within one page, 4-aligned.
    pub fn physical(&mut self, linear: u64, size: u64) -> Result<u64, Errno> {
        let linear = self.clip(linear);
        if !linear.is_multiple_of(4) || linear % PAGE_SIZE + size > PAGE_SIZE {
            return Err(Errno::Fault);
        }
        self.env
            .translate(linear, Access::Write)
            .ok_or(Errno::Fault)
    }

    /// A 32-bit caller's addresses wrap at 4 GiB.
    fn clip(&self, linear: u64) -> u64 {
        match self.width {
            Width::Bits32 => linear & 0xffff_ffff,
            Width::Bits64 => linear,
        }
    }
}

/// Little-endian fields of a fetched structure. An offset past its end reads as zero; the
/// structures' sizes are constants, so that is a defect here, never the guest's doing.
pub(crate) trait Fields {
    fn u8_at(&self, offset: usize) -> u8;
    fn u16_at(&self, offset: usize) -> u16;
    fn u32_at(&self, offset: usize) -> u32;
    fn u64_at(&self, offset: usize) -> u64;
    fn put(&mut self, offset: usize, bytes: &[u8]);
}

fn piece<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let field = bytes.get(offset..).and_then(|tail| tail.first_chunk());
    debug_assert!(field.is_some(), "field past the end of its structure");
    field.copied().unwrap_or([0; N])
}

impl Fields for [u8] {
    fn u8_at(&self, offset: usize) -> u8 {
        u8::from_le_bytes(piece(self, offset))
    }
    fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes(piece(self, offset))
    }
    fn u32_at(&self, offset: usize) -> u32 {
        u32::from_le_bytes(piece(self, offset))
    }
    fn u64_at(&self, offset: usize) -> u64 {
        u64::from_le_bytes(piece(self, offset))
    }
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let place = self.get_mut(offset..offset.saturating_add(bytes.len()));
        debug_assert!(place.is_some(), "field past the end of its structure");
        if let Some(place) = place {
            place.copy_from_slice(bytes);
        }
    }
}
