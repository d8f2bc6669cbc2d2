//! The guest's memory in the VMM's own addresses: RAM, which root mapped in one piece, and special
//! frames: those of the Xen ABI, then the pages of `layout`'s special range.
//!
//! The guest and all vCPU threads use it at the same time, so every access is atomic or a copy by
//! atomic pieces; there is never a reference to guest memory. Which guest frames are RAM just now
//! is a bitmap that the VMM's `map` changes. This is the only file of the VMM that turns
//! a guest's numbers into addresses.

use alloc::boxed::Box;
use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use guest_loader::layout::{HIGH_START, LOW_END};
use xen_abi::SpecialFrame;

const PAGE: u64 = 4096;
/// No guest frame.
const NOWHERE: u64 = u64::MAX;

/// The address is not memory of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unbacked;

/// An aligned word of guest memory, in own addresses. Only [`Ram`] makes one, of addresses that
/// stay mapped for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(NonZeroU64);

/// Memory of one guest.
#[derive(Debug)]
pub struct Ram {
    base: u64,
    bytes: u64,
    special: u64,
    special_bytes: u64,
    /// Changes after each change of what is where.
    layout: AtomicU64,
    /// Bit [`filter_bit`] of every guest frame at which a special frame ever was.
    special_filter: AtomicU64,
    /// One bit per guest frame from 0 to the end of RAM: set while RAM is mapped there.
    plain: Box<[AtomicU64]>,
    /// Where the guest has mapped each special frame, as a guest frame number.
    special_at: Box<[AtomicU64]>,
}

/// The bit of `Ram::special_filter` for a guest frame: by the top bits of a product with
/// 2^64 divided by the golden ratio, which tells neighbours apart.
#[inline]
fn filter_bit(gfn: u64) -> u64 {
    1 << (gfn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

/// Offset in RAM of a guest-physical address outside the hole.
#[inline]
fn offset(address: u64) -> u64 {
    if address < LOW_END {
        address
    } else {
        address - (HIGH_START - LOW_END)
    }
}

impl Ram {
    /// RAM of `bytes` mapped at `base`, and `special_frames` frames mapped at `special`.
    ///
    /// # Safety
    /// Both ranges are mapped, readable and writable, page aligned, stay so, and hold nothing
    /// that Rust knows of.
    pub unsafe fn new(base: u64, bytes: u64, special: u64, special_frames: u64) -> Ram {
        let end = Self::end_for(bytes);
        let frames = end / PAGE;
        let plain = (0..frames.div_ceil(64)).map(|word| {
            (0..64u64)
                .filter(|bit| {
                    let address = (word * 64 + bit) * PAGE;
                    address < end && !(LOW_END..HIGH_START).contains(&address)
                })
                .fold(0, |bits, bit| bits | 1 << bit)
        });
        Ram {
            base,
            bytes,
            special,
            special_bytes: special_frames * PAGE,
            layout: AtomicU64::new(0),
            special_filter: AtomicU64::new(0),
            plain: plain.map(AtomicU64::new).collect(),
            special_at: (0..special_frames)
                .map(|_| AtomicU64::new(NOWHERE))
                .collect(),
        }
    }

    fn end_for(bytes: u64) -> u64 {
        if bytes <= LOW_END {
            bytes
        } else {
            bytes + (HIGH_START - LOW_END)
        }
    }

    /// Guest-physical end of RAM.
    pub fn end(&self) -> u64 {
        Self::end_for(self.bytes)
    }

    /// True if RAM belongs at this guest frame, mapped just now or not.
    pub fn belongs(&self, gfn: u64) -> bool {
        gfn < self.end() / PAGE && !(LOW_END / PAGE..HIGH_START / PAGE).contains(&gfn)
    }

    /// True while RAM is mapped at this guest frame.
    #[inline(always)]
    pub fn is_plain(&self, gfn: u64) -> bool {
        usize::try_from(gfn >> 6)
            .ok()
            .and_then(|word| self.plain.get(word))
            .is_some_and(|word| word.load(Ordering::Relaxed) >> (gfn & 63) & 1 != 0)
    }

    /// Notes that RAM is or is not mapped at this guest frame; frames without RAM stay without.
    pub fn set_plain(&self, gfn: u64, mapped: bool) {
        if !self.belongs(gfn) {
            return;
        }
        if let Some(word) = usize::try_from(gfn >> 6)
            .ok()
            .and_then(|word| self.plain.get(word))
        {
            if mapped {
                word.fetch_or(1 << (gfn & 63), Ordering::SeqCst);
            } else {
                word.fetch_and(!(1 << (gfn & 63)), Ordering::SeqCst);
            }
            self.layout.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Where a special frame is mapped.
    pub fn special_at(&self, index: u64) -> Option<u64> {
        let gfn = self
            .special_at
            .get(usize::try_from(index).ok()?)?
            .load(Ordering::SeqCst);
        (gfn != NOWHERE).then_some(gfn)
    }

    /// Which special frame is mapped at a guest frame.
    #[inline]
    pub fn special_of(&self, gfn: u64) -> Option<u64> {
        if self.special_filter.load(Ordering::Relaxed) & filter_bit(gfn) == 0 {
            return None;
        }
        self.find_special(gfn)
    }

    #[cold]
    #[inline(never)]
    fn find_special(&self, gfn: u64) -> Option<u64> {
        // The number that stands for nowhere is one that a guest can name.
        if gfn == NOWHERE {
            return None;
        }
        self.special_at
            .iter()
            .position(|at| at.load(Ordering::Relaxed) == gfn)
            .map(|index| index as u64)
    }

    /// Notes where a special frame is mapped.
    pub fn set_special(&self, index: u64, gfn: Option<u64>) {
        if let Some(at) = usize::try_from(index)
            .ok()
            .and_then(|index| self.special_at.get(index))
        {
            if let Some(gfn) = gfn {
                self.special_filter
                    .fetch_or(filter_bit(gfn), Ordering::SeqCst);
            }
            at.store(gfn.unwrap_or(NOWHERE), Ordering::SeqCst);
            self.layout.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Fills a RAM page with zeros, mapped just now or not.
    pub fn clear(&self, gfn: u64) {
        if self.belongs(gfn) {
            let start = self.base + offset(gfn * PAGE);
            for word in 0..PAGE / 8 {
                // SAFETY: the page is inside RAM, which `new` was promised; aligned.
                unsafe { AtomicU64::from_ptr((start + word * 8) as *mut u64) }
                    .store(0, Ordering::Relaxed);
            }
        }
    }

    /// Own address of `bytes` bytes at `address`, if they are backed and in one page.
    #[inline]
    fn place(&self, address: u64, bytes: u64) -> Result<u64, Unbacked> {
        if (address & (PAGE - 1)) + bytes > PAGE {
            return Err(Unbacked);
        }
        self.byte_place(address)
    }

    /// Own address of an aligned word of `bytes` bytes.
    #[inline(always)]
    fn word_place(&self, address: u64, bytes: u64) -> Result<u64, Unbacked> {
        if address & (bytes - 1) != 0 {
            return Err(Unbacked);
        }
        self.byte_place(address)
    }

    /// Own address of what is at `address`, up to the end of its page.
    #[inline(always)]
    fn byte_place(&self, address: u64) -> Result<u64, Unbacked> {
        // Special frames by their own addresses first: those are constants of the Xen ABI's code,
        // which then has nothing to compare but the range's end.
        if let Some(offset) = address.checked_sub(SpecialFrame::BASE) {
            return self.special_place(offset);
        }
        if self.is_plain(address / PAGE) || cfg!(control = "guest-memory") {
            return Ok(self.base + offset(address));
        }
        self.mapped_special_place(address)
    }

    #[inline(always)]
    fn special_place(&self, offset: u64) -> Result<u64, Unbacked> {
        if offset < self.special_bytes {
            Ok(self.special + offset)
        } else {
            Err(Unbacked)
        }
    }

    /// The same for a special frame that the guest has mapped.
    #[cold]
    #[inline(never)]
    fn mapped_special_place(&self, address: u64) -> Result<u64, Unbacked> {
        let index = self.special_of(address / PAGE).ok_or(Unbacked)?;
        self.special_place(index * PAGE + address % PAGE)
    }

    #[inline(always)]
    fn word_u32(&self, address: u64) -> Result<&AtomicU32, Unbacked> {
        let place = self.word_place(address, 4)?;
        // SAFETY: `word_place` answers aligned addresses inside the ranges that `new` was
        // promised, which stay mapped; all accesses everywhere are atomic.
        Ok(unsafe { AtomicU32::from_ptr(place as *mut u32) })
    }

    /// Calls `each` with pieces of `range` that lie in one page: own address, offset, length.
    /// All pieces are checked before the first call.
    fn pieces(
        &self,
        address: u64,
        length: usize,
        mut each: impl FnMut(u64, usize, usize),
    ) -> Result<(), Unbacked> {
        let end = address.checked_add(length as u64).ok_or(Unbacked)?;
        let piece = |at: u64| (PAGE - at % PAGE).min(end - at);
        let mut at = address;
        while at < end {
            self.place(at, piece(at))?;
            at += piece(at);
        }
        at = address;
        while at < end {
            let bytes = piece(at);
            each(
                self.place(at, bytes)?,
                (at - address) as usize,
                bytes as usize,
            );
            at += bytes;
        }
        Ok(())
    }

    fn copy_out(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked> {
        self.pieces(address, buffer.len(), |place, at, bytes| {
            let Some(target) = buffer.get_mut(at..at + bytes) else {
                return;
            };
            let mut place = place;
            let mut chunks = target.chunks_exact_mut(8);
            if place.is_multiple_of(8) {
                for chunk in &mut chunks {
                    // SAFETY: as in `word_u32`; the piece has these bytes.
                    let word = unsafe { AtomicU64::from_ptr(place as *mut u64) };
                    chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
                    place += 8;
                }
                for byte in chunks.into_remainder() {
                    *byte = load_byte(place);
                    place += 1;
                }
            } else {
                for byte in target {
                    *byte = load_byte(place);
                    place += 1;
                }
            }
        })
    }

    fn move_out(&self, address: u64, into: &[AtomicU64], bytes: usize) -> Result<(), Unbacked> {
        let target = words_place(into, bytes)?;
        self.pieces(address, bytes, |place, at, count| {
            // SAFETY: the piece has these bytes, as in `word_u32`; the words have them too, are others'
            // memory than the guest's, and atomics.
            unsafe { move_shared(place, target + at as u64, count) }
        })
    }

    fn move_in(&self, address: u64, from: &[AtomicU64], bytes: usize) -> Result<(), Unbacked> {
        let source = words_place(from, bytes)?;
        self.pieces(address, bytes, |place, at, count| {
            // SAFETY: as in `move_out`.
            unsafe { move_shared(source + at as u64, place, count) }
        })
    }

    fn copy_in(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked> {
        self.pieces(address, bytes.len(), |place, at, count| {
            let Some(source) = bytes.get(at..at + count) else {
                return;
            };
            let mut place = place;
            let mut chunks = source.chunks_exact(8);
            let rest = if place.is_multiple_of(8) {
                for chunk in &mut chunks {
                    let mut word = [0; 8];
                    word.copy_from_slice(chunk);
                    // SAFETY: as in `word_u32`; the piece has these bytes.
                    unsafe { AtomicU64::from_ptr(place as *mut u64) }
                        .store(u64::from_le_bytes(word), Ordering::Relaxed);
                    place += 8;
                }
                chunks.remainder()
            } else {
                source
            };
            for byte in rest {
                // SAFETY: as in `word_u32`; bytes have no alignment.
                unsafe { AtomicU8::from_ptr(place as *mut u8) }.store(*byte, Ordering::Relaxed);
                place += 1;
            }
        })
    }
}

/// Copies bytes that others may use meanwhile: a hostile guest's vCPUs, another component. What they write
/// just then arrives or does not, byte by byte.
///
/// # Safety
/// So many bytes are mapped at both places, readable and writable respectively, they do not overlap, and
/// nothing that Rust knows of is there but atomics.
unsafe fn move_shared(from: u64, to: u64, bytes: usize) {
    // SAFETY: the caller's promise; the direction flag is clear wherever Rust code runs.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) bytes % 8,
            inout("rcx") bytes / 8 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Where bytes of these words are, if there are as many.
fn words_place(words: &[AtomicU64], bytes: usize) -> Result<u64, Unbacked> {
    let fits = bytes <= size_of_val(words);
    fits.then_some(words.as_ptr() as u64).ok_or(Unbacked)
}

fn load_byte(place: u64) -> u8 {
    // SAFETY: called with addresses that `Ram::pieces` handed out.
    unsafe { AtomicU8::from_ptr(place as *mut u8) }.load(Ordering::Relaxed)
}

impl From<Unbacked> for xen_abi::Unbacked {
    fn from(_: Unbacked) -> Self {
        xen_abi::Unbacked
    }
}

impl From<Unbacked> for x86_platform::memory::Unbacked {
    fn from(_: Unbacked) -> Self {
        x86_platform::memory::Unbacked
    }
}

impl xen_abi::GuestMemory for Ram {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), xen_abi::Unbacked> {
        Ok(self.copy_out(address, buffer)?)
    }
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), xen_abi::Unbacked> {
        Ok(self.copy_in(address, bytes)?)
    }
    fn read_shared(
        &self,
        address: u64,
        into: &[AtomicU64],
        bytes: usize,
    ) -> Result<(), xen_abi::Unbacked> {
        Ok(self.move_out(address, into, bytes)?)
    }
    fn write_shared(
        &self,
        address: u64,
        from: &[AtomicU64],
        bytes: usize,
    ) -> Result<(), xen_abi::Unbacked> {
        Ok(self.move_in(address, from, bytes)?)
    }
    #[inline(always)]
    fn read_u32(&self, address: u64) -> Result<u32, xen_abi::Unbacked> {
        Ok(self.word_u32(address)?.load(Ordering::SeqCst))
    }
    fn write_u32(&self, address: u64, value: u32) -> Result<(), xen_abi::Unbacked> {
        self.word_u32(address)?.store(value, Ordering::SeqCst);
        Ok(())
    }
    #[inline(always)]
    fn fetch_or_u32(&self, address: u64, bits: u32) -> Result<u32, xen_abi::Unbacked> {
        Ok(self.word_u32(address)?.fetch_or(bits, Ordering::SeqCst))
    }
    #[inline(always)]
    fn fetch_and_u32(&self, address: u64, bits: u32) -> Result<u32, xen_abi::Unbacked> {
        Ok(self.word_u32(address)?.fetch_and(bits, Ordering::SeqCst))
    }
    fn compare_exchange_u32(
        &self,
        address: u64,
        current: u32,
        new: u32,
    ) -> Result<u32, xen_abi::Unbacked> {
        let word = self.word_u32(address)?;
        let done = word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst);
        Ok(done.unwrap_or_else(|found| found))
    }
}

impl x86_platform::memory::GuestMemory for Ram {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), x86_platform::memory::Unbacked> {
        Ok(self.copy_out(address, buffer)?)
    }
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), x86_platform::memory::Unbacked> {
        Ok(self.copy_in(address, bytes)?)
    }
    type Word = Word;
    #[inline]
    fn word(&self, address: u64) -> Result<Word, x86_platform::memory::Unbacked> {
        let place = self.word_place(address, 8)?;
        // The ranges begin above address 0.
        let place = NonZeroU64::new(place).ok_or(x86_platform::memory::Unbacked)?;
        Ok(Word(place))
    }
    #[inline]
    fn load(&self, word: Word) -> u64 {
        // SAFETY: `word_place` answered this address, so it is aligned and inside ranges that
        // `new` of some `Ram` was promised, which stay mapped for good, whatever is mapped in the
        // guest meanwhile; all accesses everywhere are atomic.
        unsafe { AtomicU64::from_ptr(word.0.get() as *mut u64) }.load(Ordering::Relaxed)
    }
    #[inline]
    fn layout(&self) -> u64 {
        self.layout.load(Ordering::SeqCst)
    }
    #[inline]
    fn read_u32(&self, address: u64) -> Result<u32, x86_platform::memory::Unbacked> {
        Ok(self.word_u32(address)?.load(Ordering::Relaxed))
    }
    fn set_bits(&self, address: u64, bits: u32) -> Result<(), x86_platform::memory::Unbacked> {
        self.word_u32(address)?.fetch_or(bits, Ordering::SeqCst);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
