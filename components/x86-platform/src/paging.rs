//! The guest's page tables: linear to guest-physical addresses, for 32-bit, PAE and 4-level
//! paging (Intel SDM vol. 3, chapter 4). 5-level paging is refused: CPUID does not offer it.
//!
//! The tables are the guest's to change at any time: each entry is read once.

use crate::memory::GuestMemory;
use crate::mode::*;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Physical addresses that an entry can hold.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Page fault error code: the translation was present.
pub const CODE_PRESENT: u32 = 1;
/// Page fault error code: a write.
pub const CODE_WRITE: u32 = 2;
/// Page fault error code: from user mode.
pub const CODE_USER: u32 = 4;
/// Page fault error code: a reserved bit was set.
pub const CODE_RESERVED: u32 = 8;
/// Page fault error code: an instruction fetch.
pub const CODE_FETCH: u32 = 16;

/// What a translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// Why an access gets nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// #PF with this error code; CR2 becomes the address.
    Page {
        /// Linear address.
        address: u64,
        /// Error code.
        code: u32,
    },
    /// The address is not canonical: #GP(0), or #SS(0) through the stack segment.
    NonCanonical,
    /// A table lies outside RAM, or the paging mode is not supported.
    Unsupported,
}

/// True for addresses whose bits 48-63 repeat bit 47.
#[inline]
pub const fn canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

/// The guest-physical address of linear `address`, with permissions checked as the CPU does for
/// an access of privilege `mode.privilege()`; `rflags` for its AC. Sets accessed and dirty bits.
#[inline]
pub fn translate(
    memory: &impl GuestMemory,
    mode: &Mode,
    rflags: u64,
    address: u64,
    access: Access,
) -> Result<u64, Fault> {
    if let Some(physical) = usual(memory, mode, address, access) {
        return Ok(physical);
    }
    walk(memory, mode, rflags, address, access)
}

/// What nearly every walk is: four levels, everything present, marked and permitted. Touches
/// nothing; `None` says only that [`walk`] has to look closer. On the path of most exits.
#[inline]
fn usual(memory: &impl GuestMemory, mode: &Mode, address: u64, access: Access) -> Option<u64> {
    if mode.cr0 & CR0_PG == 0
        || mode.efer & EFER_LMA == 0
        || mode.cr4 & CR4_LA57 != 0
        || !canonical(address)
    {
        return None;
    }
    let needed = match access {
        Access::Write => PRESENT | ACCESSED | WRITABLE,
        _ => PRESENT | ACCESSED,
    };
    let next = |table: u64, index: u64| {
        let entry = memory.read_u64(table & ADDRESS | index & 0xff8).ok()?;
        (entry & needed == needed).then_some(entry)
    };
    let top = next(mode.cr3, address >> 36)?;
    let pointer = next(top, address >> 27)?;
    let (leaf, offset, all, any) = if pointer & LARGE != 0 {
        (pointer, (1 << 30) - 1, top & pointer, top | pointer)
    } else {
        let directory = next(pointer, address >> 18)?;
        let (all, any) = (top & pointer & directory, top | pointer | directory);
        if directory & LARGE != 0 {
            (directory, (1 << 21) - 1, all, any)
        } else {
            let page = next(directory, address >> 9)?;
            (page, 0xfff, all & page, any | page)
        }
    };
    let user = all & USER != 0;
    let permitted = if mode.privilege() == 3 {
        user
    } else {
        !user || mode.cr4 & (CR4_SMEP | CR4_SMAP) == 0
    };
    let dirty = access != Access::Write || leaf & DIRTY != 0;
    if top & LARGE != 0 || any & NO_EXECUTE != 0 && access == Access::Fetch || !permitted || !dirty
    {
        return None;
    }
    if any & NO_EXECUTE != 0 && mode.efer & EFER_NXE == 0 {
        return None;
    }
    Some(leaf & ADDRESS & !offset | address & offset)
}

#[cold]
fn walk(
    memory: &impl GuestMemory,
    mode: &Mode,
    rflags: u64,
    address: u64,
    access: Access,
) -> Result<u64, Fault> {
    if mode.cr0 & CR0_PG == 0 {
        return Ok(address & 0xffff_ffff);
    }
    let walk = Walk {
        memory,
        mode,
        access,
        address,
    };
    let (leaf, rights) = if mode.efer & EFER_LMA != 0 {
        if mode.cr4 & CR4_LA57 != 0 {
            return Err(Fault::Unsupported);
        }
        if !canonical(address) {
            return Err(Fault::NonCanonical);
        }
        walk.long()?
    } else if mode.cr4 & CR4_PAE != 0 {
        walk.pae()?
    } else {
        walk.legacy()?
    };
    walk.check(rights, rflags)?;
    Ok(leaf)
}

/// What all levels together allow; `NO_EXECUTE` is the union, the others the intersection.
type Rights = u64;

struct Walk<'a, M> {
    memory: &'a M,
    mode: &'a Mode,
    access: Access,
    address: u64,
}

impl<M: GuestMemory> Walk<'_, M> {
    #[cold]
    fn fault(&self, code: u32) -> Fault {
        let mut code = code;
        if self.mode.privilege() == 3 {
            code |= CODE_USER;
        }
        match self.access {
            Access::Read => {}
            Access::Write => code |= CODE_WRITE,
            Access::Fetch => {
                if self.no_execute() || self.mode.cr4 & CR4_SMEP != 0 {
                    code |= CODE_FETCH;
                }
            }
        }
        Fault::Page {
            address: self.address,
            code,
        }
    }

    fn no_execute(&self) -> bool {
        self.mode.efer & EFER_NXE != 0
    }

    #[cold]
    fn mark(&self, at: u64, entry: u64, leaf: bool) -> Result<(), Fault> {
        let dirty = leaf && self.access == Access::Write && entry & WRITABLE != 0;
        let wanted = ACCESSED | if dirty { DIRTY } else { 0 };
        if entry & wanted != wanted {
            self.memory
                .set_bits(at, wanted as u32)
                .map_err(|_| Fault::Unsupported)?;
        }
        Ok(())
    }

    /// Reads an 8-byte entry, checks that it is present and sets its accessed (and dirty) bits.
    #[inline(always)]
    fn entry(&self, at: u64, leaf: impl FnOnce(u64) -> bool) -> Result<(u64, bool), Fault> {
        let entry = self.memory.read_u64(at).map_err(|_| Fault::Unsupported)?;
        if entry & PRESENT == 0 {
            return Err(self.fault(0));
        }
        let leaf = leaf(entry);
        if entry & ACCESSED == 0 || leaf && self.access == Access::Write {
            self.mark(at, entry, leaf)?;
        }
        Ok((entry, leaf))
    }

    fn long(&self) -> Result<(u64, Rights), Fault> {
        let mut table = self.mode.cr3 & ADDRESS;
        let mut shift = 39;
        let (mut all, mut any) = (u64::MAX, 0);
        loop {
            let at = table + (self.address >> shift & 0x1ff) * 8;
            let (entry, leaf) = self.entry(at, |entry| {
                shift == 12 || (entry & LARGE != 0 && shift < 39)
            })?;
            all &= entry;
            any |= entry;
            if leaf {
                self.reserved(any)?;
                let offset = (1 << shift) - 1;
                let rights = all & !NO_EXECUTE | any & NO_EXECUTE;
                return Ok((entry & ADDRESS & !offset | self.address & offset, rights));
            }
            if entry & LARGE != 0 {
                return Err(self.fault(CODE_PRESENT | CODE_RESERVED));
            }
            table = entry & ADDRESS;
            shift -= 9;
        }
    }

    /// Without EFER.NXE the no-execute bit is reserved.
    #[inline]
    fn reserved(&self, entries: u64) -> Result<(), Fault> {
        if entries & NO_EXECUTE != 0 && !self.no_execute() {
            return Err(self.fault(CODE_PRESENT | CODE_RESERVED));
        }
        Ok(())
    }

    fn pae(&self) -> Result<(u64, Rights), Fault> {
        let address = self.address & 0xffff_ffff;
        let pointer = (self.mode.cr3 & 0xffff_ffe0) + (address >> 30) * 8;
        // The CPU loaded these four when CR3 was written; they have neither rights nor accessed
        // bits.
        let pointer = self
            .memory
            .read_u64(pointer)
            .map_err(|_| Fault::Unsupported)?;
        if pointer & PRESENT == 0 {
            return Err(self.fault(0));
        }
        let at = (pointer & ADDRESS) + (address >> 21 & 0x1ff) * 8;
        let (directory, large) = self.entry(at, |entry| entry & LARGE != 0)?;
        if large {
            self.reserved(directory)?;
            return Ok((
                directory & ADDRESS & !0x1f_ffff | address & 0x1f_ffff,
                directory,
            ));
        }
        let at = (directory & ADDRESS) + (address >> 12 & 0x1ff) * 8;
        let (entry, _) = self.entry(at, |_| true)?;
        self.reserved(directory | entry)?;
        let rights = (directory & entry) | (directory | entry) & NO_EXECUTE;
        Ok((entry & ADDRESS | address & 0xfff, rights))
    }

    fn legacy(&self) -> Result<(u64, Rights), Fault> {
        let address = self.address & 0xffff_ffff;
        let load = |at, leaf: &dyn Fn(u64) -> bool| {
            let entry = u64::from(self.memory.read_u32(at).map_err(|_| Fault::Unsupported)?);
            if entry & PRESENT == 0 {
                return Err(self.fault(0));
            }
            self.mark(at, entry, leaf(entry))?;
            Ok(entry)
        };
        let large = |entry: u64| entry & LARGE != 0 && self.mode.cr4 & CR4_PSE != 0;
        let directory = load((self.mode.cr3 & 0xffff_f000) + (address >> 22) * 4, &large)?;
        if large(directory) {
            // Bits 13-20 are address bits 32-39 (PSE-36).
            let high = (directory >> 13 & 0xff) << 32;
            return Ok((
                high | directory & 0xffc0_0000 | address & 0x3f_ffff,
                directory,
            ));
        }
        let at = (directory & 0xffff_f000) + (address >> 12 & 0x3ff) * 4;
        let entry = load(at, &|_| true)?;
        Ok((entry & 0xffff_f000 | address & 0xfff, directory & entry))
    }

    #[inline]
    fn check(&self, rights: Rights, rflags: u64) -> Result<(), Fault> {
        let user_access = self.mode.privilege() == 3;
        let user_page = rights & USER != 0;
        let allowed = match self.access {
            _ if user_access && !user_page => false,
            Access::Fetch if rights & NO_EXECUTE != 0 && self.no_execute() => false,
            Access::Fetch => user_access || !user_page || self.mode.cr4 & CR4_SMEP == 0,
            _ if !user_access
                && user_page
                && self.mode.cr4 & CR4_SMAP != 0
                && rflags & RFLAGS_AC == 0 =>
            {
                false
            }
            Access::Read => true,
            Access::Write => {
                rights & WRITABLE != 0 || (!user_access && self.mode.cr0 & CR0_WP == 0)
            }
        };
        if allowed {
            Ok(())
        } else {
            Err(self.fault(CODE_PRESENT))
        }
    }
}

/// Most bytes of one instruction.
pub const INSTRUCTION_MAX: usize = 15;

/// Instruction bytes as fetched from guest memory; fewer than 15 when the next page has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Code {
    words: [u64; 2],
    count: u8,
}

impl Code {
    /// From bytes that the CPU delivered; those beyond `count` do not matter.
    #[inline]
    pub fn from_words(words: [u64; 2], count: u64) -> Code {
        let count = count.min(INSTRUCTION_MAX as u64) as u8;
        let kept = u128::MAX >> (128 - u32::from(count).max(1) * 8);
        let kept = if count == 0 { 0 } else { kept };
        Code {
            words: [words[0] & kept as u64, words[1] & (kept >> 64) as u64],
            count,
        }
    }

    /// The bytes, zeros behind them.
    #[inline]
    pub fn bytes(&self) -> [u8; 16] {
        (u128::from(self.words[0]) | u128::from(self.words[1]) << 64).to_le_bytes()
    }

    /// How many there are.
    #[inline]
    pub fn count(&self) -> usize {
        self.count.into()
    }

    /// The bytes as two words, for comparing; those beyond the end are 0.
    #[inline]
    pub fn words(&self) -> [u64; 2] {
        self.words
    }
}

/// Fetches the instruction at `rip`. A fault on its first page is the answer; one on a second
/// page only cuts the bytes short, for the instruction may not reach there.
pub fn fetch(memory: &impl GuestMemory, mode: &Mode, rflags: u64, rip: u64) -> Result<Code, Fault> {
    let linear = mode.linear_rip(rip);
    let physical = translate(memory, mode, rflags, linear, Access::Fetch)?;
    fetch_at(memory, mode, rflags, linear, physical)
}

/// The same when `linear` is translated already. Reads the aligned words from `physical & !7` on
/// in order, each once, and nothing else as long as they lie in one page.
pub fn fetch_at(
    memory: &impl GuestMemory,
    mode: &Mode,
    rflags: u64,
    linear: u64,
    physical: u64,
) -> Result<Code, Fault> {
    let here = (PAGE - linear % PAGE).min(INSTRUCTION_MAX as u64);
    let mut bytes = load(memory, physical, here)?;
    let mut count = here;
    if here < INSTRUCTION_MAX as u64 {
        let next = match mode.code_size() {
            CodeSize::Bits64 => linear.wrapping_add(here),
            _ => linear.wrapping_add(here) & 0xffff_ffff,
        };
        // Bytes that cannot be had there may not be needed.
        if let Ok(physical) = translate(memory, mode, rflags, next, Access::Fetch)
            && let Ok(more) = load(memory, physical, INSTRUCTION_MAX as u64 - here)
        {
            bytes |= more << (here * 8);
            count = INSTRUCTION_MAX as u64;
        }
    }
    Ok(Code::from_words(
        [bytes as u64, (bytes >> 64) as u64],
        count,
    ))
}

/// `count` bytes, at most 15, from `physical`, all in one page; what lies behind them is 0.
fn load(memory: &impl GuestMemory, physical: u64, count: u64) -> Result<u128, Fault> {
    let skipped = physical % 8;
    let mut bytes = 0;
    for index in 0..(skipped + count).div_ceil(8) {
        let word = memory
            .read_u64(physical - skipped + index * 8)
            .map_err(|_| Fault::Unsupported)?;
        // Of the first word the bytes before `physical` go, of the last those beyond 16.
        bytes |= match (index * 8).checked_sub(skipped) {
            Some(at) => u128::from(word) << (at * 8),
            None => u128::from(word) >> (skipped * 8),
        };
    }
    Ok(bytes & (u128::MAX >> (128 - count.clamp(1, 16) * 8)))
}

#[cfg(test)]
mod tests;
