//! Events: the words of `State::inject`, how exceptions combine, and what advancing past an
//! instruction does to flags and shadow.

use microvisor_abi::vcpu::event;

use crate::registers::RF;

/// Exception vectors (Intel SDM vol. 3, 6.3.1).
pub mod vector {
    /// #DB.
    pub const DEBUG: u8 = 1;
    /// #UD.
    pub const INVALID_OPCODE: u8 = 6;
    /// #NM.
    pub const DEVICE_NOT_AVAILABLE: u8 = 7;
    /// #DF.
    pub const DOUBLE_FAULT: u8 = 8;
    /// #TS.
    pub const INVALID_TSS: u8 = 10;
    /// #NP.
    pub const SEGMENT_NOT_PRESENT: u8 = 11;
    /// #SS.
    pub const STACK: u8 = 12;
    /// #GP.
    pub const GENERAL_PROTECTION: u8 = 13;
    /// #PF.
    pub const PAGE_FAULT: u8 = 14;
    /// #AC.
    pub const ALIGNMENT: u8 = 17;
}

/// True if the CPU pushes an error code for this exception.
pub const fn has_error_code(exception: u8) -> bool {
    matches!(exception, 8 | 10..=14 | 17 | 21)
}

/// The word that injects an exception; `error` is ignored for those without one.
pub const fn exception(vector: u8, error: u32) -> u64 {
    let word = vector as u64 | event::EXCEPTION | event::VALID;
    if has_error_code(vector) {
        word | event::ERROR_CODE | (error as u64) << 32
    } else {
        word
    }
}

/// The word that injects an external interrupt.
pub const fn interrupt(vector: u8) -> u64 {
    vector as u64 | event::INTERRUPT | event::VALID
}

/// The word that injects an NMI.
pub const NMI: u64 = 2 | event::NMI | event::VALID;

const TYPE: u64 = 7 << 8;

/// What becomes of an exception raised while another event was being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combined {
    /// Inject this. An interrupt or NMI that was being delivered is to stay pending.
    Inject(u64),
    /// Inject this; what was being delivered is repeated by the guest's own handling.
    Shutdown,
}

/// Combines an event whose delivery an exit interrupted with a `second` exception raised by the
/// VMM (Intel SDM vol. 3, table 6-5).
pub fn combine(delivering: u64, second: u64) -> Combined {
    if delivering & event::VALID == 0 || delivering & TYPE != event::EXCEPTION {
        return Combined::Inject(second);
    }
    let (first, next) = (delivering as u8, second as u8);
    let contributory = |vector: u8| matches!(vector, 0 | 10..=13);
    let double = first == vector::DOUBLE_FAULT;
    if double && (contributory(next) || next == vector::PAGE_FAULT) {
        return Combined::Shutdown;
    }
    let pair = (contributory(first) && contributory(next))
        || (first == vector::PAGE_FAULT && (contributory(next) || next == vector::PAGE_FAULT));
    if pair {
        Combined::Inject(exception(vector::DOUBLE_FAULT, 0))
    } else {
        Combined::Inject(second)
    }
}

/// RFLAGS after an instruction was completed for the guest: RF is cleared, as the CPU does.
pub const fn completed_flags(rflags: u64) -> u64 {
    rflags & !RF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contributory_pairs_make_a_double_fault_and_then_shut_down() {
        let gp = exception(13, 0);
        let pf = exception(14, 2);
        let df = exception(8, 0);
        assert_eq!(combine(0, gp), Combined::Inject(gp));
        assert_eq!(combine(gp, gp), Combined::Inject(df));
        assert_eq!(combine(pf, gp), Combined::Inject(df));
        assert_eq!(combine(pf, pf), Combined::Inject(df));
        assert_eq!(combine(gp, pf), Combined::Inject(pf));
        assert_eq!(combine(df, pf), Combined::Shutdown);
        assert_eq!(combine(exception(6, 0), gp), Combined::Inject(gp));
        assert_eq!(combine(interrupt(0x30), gp), Combined::Inject(gp));
    }

    #[test]
    fn only_exceptions_with_a_code_carry_one() {
        assert_eq!(exception(6, 7), 6 | 3 << 8 | 1 << 31);
        assert_eq!(exception(13, 7), 13 | 3 << 8 | 1 << 11 | 1 << 31 | 7 << 32);
    }
}
