//! General registers by number, as instructions name them, with the x86 rules for widths.

use microvisor_abi::thread::Registers;

/// Carry flag.
pub const CF: u64 = 1 << 0;
/// Parity flag.
pub const PF: u64 = 1 << 2;
/// Auxiliary carry flag.
pub const AF: u64 = 1 << 4;
/// Zero flag.
pub const ZF: u64 = 1 << 6;
/// Sign flag.
pub const SF: u64 = 1 << 7;
/// Single step.
pub const TF: u64 = 1 << 8;
/// Interrupts enabled.
pub const IF: u64 = 1 << 9;
/// String operations go down.
pub const DF: u64 = 1 << 10;
/// Overflow flag.
pub const OF: u64 = 1 << 11;
/// Resume: instruction breakpoints do not hit.
pub const RF: u64 = 1 << 16;

/// Number of `rcx`.
pub const RCX: u8 = 1;
/// Number of `rsp`.
pub const RSP: u8 = 4;
/// Number of `rsi`.
pub const RSI: u8 = 6;
/// Number of `rdi`.
pub const RDI: u8 = 7;

/// The 64-bit register with this number (0-15, in instruction encoding order); 0 for others.
pub fn get(regs: &Registers, number: u8) -> u64 {
    match number {
        0 => regs.rax,
        1 => regs.rcx,
        2 => regs.rdx,
        3 => regs.rbx,
        4 => regs.rsp,
        5 => regs.rbp,
        6 => regs.rsi,
        7 => regs.rdi,
        8 => regs.r8,
        9 => regs.r9,
        10 => regs.r10,
        11 => regs.r11,
        12 => regs.r12,
        13 => regs.r13,
        14 => regs.r14,
        15 => regs.r15,
        _ => 0,
    }
}

/// Sets the whole 64-bit register.
pub fn set(regs: &mut Registers, number: u8, value: u64) {
    let register = match number {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        15 => &mut regs.r15,
        _ => return,
    };
    *register = value;
}

/// All ones in the low `bytes` bytes; all ones for 8 and more.
pub const fn mask(bytes: u8) -> u64 {
    if bytes >= 8 {
        u64::MAX
    } else {
        (1 << (bytes * 8)) - 1
    }
}

/// Writes the low `bytes` of a register: 4 clears the upper half, 1 and 2 leave the rest.
pub fn set_sized(regs: &mut Registers, number: u8, bytes: u8, value: u64) {
    let value = value & mask(bytes);
    let whole = match bytes {
        1 | 2 => get(regs, number) & !mask(bytes) | value,
        _ => value,
    };
    set(regs, number, whole);
}

/// Sign-extends the low `bytes` of `value`.
pub const fn sign_extend(value: u64, bytes: u8) -> u64 {
    if bytes == 0 || bytes >= 8 {
        return value;
    }
    let shift = 64 - bytes as u32 * 8;
    ((value << shift) as i64 >> shift) as u64
}
