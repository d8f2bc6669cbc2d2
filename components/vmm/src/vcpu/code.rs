//! The instruction that exited: its mode, its bytes, its length, and the step past it. What the CPU
//! tells is used; the rest is asked of the lookaside, which looks at the guest's memory.

use sdk::abi::vcpu::{blocked, group};
use sdk::field;
use sdk::prelude::*;
use sdk::vcpu::StatePage;
use x86_platform::decode::{Fixed, Operation};
use x86_platform::event::vector;
use x86_platform::mode::Mode;
use x86_platform::paging::{self, Code};
use x86_platform::registers;

use super::{Handled, Interruption, Vcpu};

/// What the page has of `group::MODE`.
#[inline(always)]
fn mode(page: &StatePage) -> Mode {
    Mode {
        cr0: page.get(field!(cr0)),
        cr3: page.get(field!(cr3)),
        cr4: page.get(field!(cr4)),
        efer: page.get(field!(efer)),
        cs: page.segment(field!(cs)),
        ss: page.segment(field!(ss)),
    }
}

impl Vcpu {
    /// The part of the state that fetching and translating need.
    pub(super) fn mode(&mut self) -> Result<Mode, Status> {
        self.need(group::MODE)?;
        Ok(mode(&self.page))
    }

    /// Tells the lookaside the mode of this exit.
    #[inline(always)]
    pub(super) fn observe(&mut self) -> Handled {
        self.need(group::MODE)?;
        let page = &self.page;
        self.lookaside.observe(|| mode(page));
        Ok(())
    }

    /// The bytes at the instruction pointer, if the CPU delivered them all.
    #[inline(always)]
    pub(super) fn delivered_code(&self) -> Option<Code> {
        let count = self.page.get(field!(instruction_count));
        if count != paging::INSTRUCTION_MAX as u64 {
            return None;
        }
        let bytes = field!(instruction_bytes);
        let words = [self.page.get_at(bytes, 0), self.page.get_at(bytes, 1)];
        Some(Code::from_words(words, count))
    }

    /// The bytes at the instruction pointer.
    pub(super) fn code(&mut self, mode: &Mode) -> Result<Code, Interruption> {
        if let Some(code) = self.delivered_code() {
            return Ok(code);
        }
        let rflags = self.page.get(field!(regs.rflags));
        Ok(paging::fetch(&self.shared.ram, mode, rflags, self.rip())?)
    }

    /// The instruction at the instruction pointer, which has a memory operand.
    #[inline(always)]
    pub(super) fn operation(&mut self) -> Result<Operation, Interruption> {
        self.observe()?;
        let rip = self.rip();
        if let Some(code) = self.delivered_code() {
            let size = self.lookaside.mode().code_size();
            return Ok(self.delivered.memory_operation(&code, size, rip)?);
        }
        let rflags = self.page.get(field!(regs.rflags));
        let ram = &self.shared.ram;
        Ok(self.lookaside.operation(ram, rflags, rip)?)
    }

    /// Length of the instruction that exited: the CPU's word, or decoded.
    #[inline(always)]
    pub(super) fn length(&mut self, fixed: Fixed) -> Result<u8, Interruption> {
        if let length @ 1..=15 = self.page.get(field!(instruction_length)) {
            return Ok(length as u8);
        }
        self.observe()?;
        self.decoded_length(fixed)
    }

    /// The same when the lookaside knows the mode of this exit.
    #[inline(always)]
    pub(super) fn decoded_length(&mut self, fixed: Fixed) -> Result<u8, Interruption> {
        if let length @ 1..=15 = self.page.get(field!(instruction_length)) {
            return Ok(length as u8);
        }
        let (rip, rflags) = (self.rip(), self.page.get(field!(regs.rflags)));
        let ram = &self.shared.ram;
        Ok(self.lookaside.length(ram, rflags, rip, fixed)?)
    }

    /// The instruction is complete: moves past it, out of any interrupt shadow.
    #[inline(always)]
    pub(super) fn skip(&mut self, length: u8) -> Handled {
        let next = self.rip().wrapping_add(length.into());
        let flags = self.page.get(field!(regs.rflags));
        let held = self.page.get(field!(interruptibility));
        self.modified |= group::GENERAL;
        // Within 64 KiB the width of the code makes no difference to the sum.
        let plain =
            next & 0xffff >= u64::from(length) && flags & (registers::RF | registers::TF) == 0;
        if !plain {
            self.complete_with_care(length, flags)?;
        } else {
            self.page.set(field!(regs.rip), next);
        }
        if held & blocked::SHADOW != 0 {
            self.page
                .set(field!(interruptibility), held & !blocked::SHADOW);
            self.modified |= group::EVENTS;
        }
        Ok(())
    }

    /// The same where the code's width, RF or TF matter.
    #[cold]
    #[inline(never)]
    fn complete_with_care(&mut self, length: u8, flags: u64) -> Handled {
        let next = self.mode()?.advance(self.rip(), length);
        self.page.set(field!(regs.rip), next);
        if flags & (registers::RF | registers::TF) != 0 {
            self.complete_flags(flags)?;
        }
        Ok(())
    }

    /// RF and single stepping, as the CPU treats them when an instruction completes.
    pub(super) fn complete_flags(&mut self, flags: u64) -> Handled {
        self.page.set(
            field!(regs.rflags),
            x86_platform::event::completed_flags(flags),
        );
        if flags & registers::TF != 0 {
            const DR6_SINGLE_STEP: u64 = 1 << 14;
            self.need(group::DEBUG)?;
            let dr6 = self.page.get(field!(dr6));
            self.page.set(field!(dr6), dr6 | DR6_SINGLE_STEP);
            self.modified |= group::DEBUG;
            self.raise(vector::DEBUG, 0);
        }
        Ok(())
    }

    /// Skips an instruction of fixed shape.
    #[inline]
    pub(super) fn skip_fixed(&mut self, fixed: Fixed) -> Handled {
        let length = self.length(fixed)?;
        self.skip(length)
    }
}
