//! The state page of a vCPU: shared with the core, so every word is read and written by volatile
//! accesses and never through a reference.
//!
//! ```ignore
//! let page = StatePage::map(vcpu)?;
//! let leaf = page.get(field!(regs.rax));
//! page.set(field!(regs.rax), 1);
//! page.set(field!(modified), group::GENERAL);
//! ```

use idl::Cap;
use idl::cap::Vcpu;
use microvisor_abi::vcpu::{Segment, State};
use microvisor_abi::{FRAME, Status};

use crate::memory::{self, READ_WRITE};

/// A word of the state page; made by [`field!`](crate::field).
#[derive(Clone, Copy, Debug)]
pub struct Field(usize);

impl Field {
    /// The word at this offset; evaluated when compiling, so a wrong one does not build.
    pub const fn new(offset: usize) -> Field {
        assert!(offset.is_multiple_of(8) && offset + 8 <= size_of::<State>());
        Field(offset)
    }

    /// The word `index` words further, for arrays; `None` beyond the page's layout.
    pub fn word(self, index: usize) -> Option<Field> {
        let offset = index.checked_mul(8)?.checked_add(self.0)?;
        (offset + 8 <= size_of::<State>()).then_some(Field(offset))
    }
}

/// Names a word of `abi::vcpu::State`: `field!(regs.rip)`, `field!(exit)`, `field!(info)`.
#[macro_export]
macro_rules! field {
    ($($path:tt)+) => {
        const { $crate::vcpu::Field::new(::core::mem::offset_of!($crate::abi::vcpu::State, $($path)+)) }
    };
}

/// A vCPU's state page, mapped.
#[derive(Debug)]
pub struct StatePage {
    address: u64,
}

impl StatePage {
    /// Maps the page of `vcpu`, once.
    pub fn map(vcpu: Cap<Vcpu>) -> Result<StatePage, Status> {
        memory::map(vcpu, FRAME, READ_WRITE).map(|address| StatePage { address })
    }

    /// Reads a word.
    #[inline(always)]
    pub fn get(&self, field: Field) -> u64 {
        // SAFETY: the page is mapped for as long as the vCPU exists (a component that deletes it
        // and goes on faults); the offset lies inside and is aligned.
        unsafe { core::ptr::read_volatile((self.address + field.0 as u64) as *const u64) }
    }

    /// Writes a word.
    #[inline(always)]
    pub fn set(&mut self, field: Field, value: u64) {
        // SAFETY: as for `get`; the page holds plain words that any value is valid for.
        unsafe { core::ptr::write_volatile((self.address + field.0 as u64) as *mut u64, value) }
    }

    /// Reads word `index` of an array; 0 beyond the layout.
    #[inline(always)]
    pub fn get_at(&self, field: Field, index: usize) -> u64 {
        field.word(index).map_or(0, |field| self.get(field))
    }

    /// Reads a segment register: `page.segment(field!(cs))`.
    pub fn segment(&self, field: Field) -> Segment {
        Segment {
            packed: self.get(field),
            base: self.get_at(field, 1),
        }
    }

    /// Writes a segment register.
    pub fn set_segment(&mut self, field: Field, segment: Segment) {
        self.set(field, segment.packed);
        if let Some(base) = field.word(1) {
            self.set(base, segment.base);
        }
    }

    /// The whole state, word by word. For code that works on a copy.
    pub fn snapshot(&self) -> State {
        const WORDS: usize = size_of::<State>() / 8;
        let mut words = [0u64; WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.get_at(Field(0), index);
        }
        // SAFETY: `State` is `repr(C)` and consists of `u64`s only, of which there are `WORDS`.
        unsafe { core::mem::transmute::<[u64; WORDS], State>(words) }
    }
}
