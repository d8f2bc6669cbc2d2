//! Executes a decoded memory operation whose memory operand is emulated: registers, flags, and
//! one read and/or write of the operand through [`Operand`].

use microvisor_abi::thread::Registers;

use crate::decode::{Alu, Bit, Kind, Operation, Source, Unary};
use crate::registers::{self, AF, CF, DF, OF, PF, RCX, RDI, RSI, RSP, SF, ZF, mask};

/// The emulated memory operand. Addresses are guest-physical.
pub trait Operand {
    /// Reads `bytes` (1, 2, 4, 8), zero-extended.
    fn read(&mut self, address: u64, bytes: u8) -> u64;
    /// Writes the low `bytes` of `value`.
    fn write(&mut self, address: u64, bytes: u8, value: u64);
}

/// The guest's ordinary memory, for operations with a second memory operand.
pub trait Linear {
    /// What stops an access, with everything needed to inject it.
    type Fault;
    /// Reads `bytes` at `offset` of segment number `segment`.
    fn load(&mut self, segment: u8, offset: u64, bytes: u8) -> Result<u64, Self::Fault>;
    /// Writes `bytes` at `offset` of segment number `segment`.
    fn store(&mut self, segment: u8, offset: u64, bytes: u8, value: u64)
    -> Result<(), Self::Fault>;
}

/// How far an operation came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Done: advance past it.
    Done,
    /// A repeated string operation did one step and has more to do: leave RIP, run again.
    Repeat,
}

/// Reads a source operand's low `bytes`.
fn value(regs: &Registers, source: Source, bytes: u8) -> u64 {
    match source {
        Source::Register { number, high } => {
            let whole = registers::get(regs, number);
            (if high { whole >> 8 } else { whole }) & mask(bytes)
        }
        Source::Immediate(value) => value & mask(bytes),
    }
}

fn set_register(regs: &mut Registers, number: u8, high: bool, bytes: u8, value: u64) {
    if high {
        let whole = registers::get(regs, number) & !0xff00;
        registers::set(regs, number, whole | (value & 0xff) << 8);
    } else {
        registers::set_sized(regs, number, bytes, value);
    }
}

fn set_source(regs: &mut Registers, source: Source, bytes: u8, value: u64) {
    if let Source::Register { number, high } = source {
        set_register(regs, number, high, bytes, value);
    }
}

fn sign(value: u64, bytes: u8) -> bool {
    value >> (u32::from(bytes) * 8 - 1) & 1 != 0
}

fn result_flags(result: u64, bytes: u8) -> u64 {
    let mut flags = 0;
    if result == 0 {
        flags |= ZF;
    }
    if sign(result, bytes) {
        flags |= SF;
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// The result of `a op b` and the arithmetic flags; AF of the logical operations, which the
/// manuals leave undefined, is 0.
fn alu(op: Alu, a: u64, b: u64, bytes: u8, carry: bool) -> (u64, u64) {
    let width = mask(bytes);
    let (result, mut flags) = match op {
        Alu::And | Alu::Test => (a & b, 0),
        Alu::Or => (a | b, 0),
        Alu::Xor => (a ^ b, 0),
        Alu::Add | Alu::Adc => {
            let carry = u64::from(carry && op == Alu::Adc);
            let wide = u128::from(a) + u128::from(b) + u128::from(carry);
            let result = wide as u64 & width;
            let mut flags = 0;
            if wide > u128::from(width) {
                flags |= CF;
            }
            if sign((a ^ result) & (b ^ result), bytes) {
                flags |= OF;
            }
            (result, flags | (a ^ b ^ result) & AF)
        }
        Alu::Sub | Alu::Sbb | Alu::Cmp => {
            let borrow = u64::from(carry && op == Alu::Sbb);
            let result = a.wrapping_sub(b).wrapping_sub(borrow) & width;
            let mut flags = 0;
            if u128::from(a) < u128::from(b) + u128::from(borrow) {
                flags |= CF;
            }
            if sign((a ^ b) & (a ^ result), bytes) {
                flags |= OF;
            }
            (result, flags | (a ^ b ^ result) & AF)
        }
    };
    flags |= result_flags(result, bytes);
    (result, flags)
}

fn keeps_operand(op: Alu) -> bool {
    matches!(op, Alu::Cmp | Alu::Test)
}

/// Steps an index register of a string operation.
fn step(regs: &mut Registers, number: u8, address_bytes: u8, bytes: u8) {
    let delta = u64::from(bytes);
    let old = registers::get(regs, number);
    let new = if regs.rflags & DF != 0 {
        old.wrapping_sub(delta)
    } else {
        old.wrapping_add(delta)
    };
    registers::set_sized(regs, number, address_bytes, new);
}

/// Executes `operation` with its emulated operand at guest-physical `address`. `write` says what
/// the exit was: of MOVS it tells which side is emulated. RIP is the caller's to advance, by
/// [`Progress`]. Registers are untouched when a fault comes back.
pub fn execute<L: Linear>(
    operation: &Operation,
    regs: &mut Registers,
    address: u64,
    write: bool,
    operand: &mut impl Operand,
    linear: &mut L,
) -> Result<Progress, L::Fault> {
    let bytes = operation.bytes;
    let repeat = operation.repeat
        && matches!(
            operation.kind,
            Kind::StoreString | Kind::LoadString | Kind::MoveString
        );
    let count_mask = mask(operation.address_bytes);
    if repeat && registers::get(regs, RCX) & count_mask == 0 {
        return Ok(Progress::Done);
    }
    match operation.kind {
        Kind::Load {
            number,
            high,
            bytes: target,
            signed,
        } => {
            let mut value = operand.read(address, bytes);
            if signed {
                value = registers::sign_extend(value, bytes);
            }
            set_register(regs, number, high, target, value);
        }
        Kind::Store(source) => operand.write(address, bytes, value(regs, source, bytes)),
        Kind::AluMemory(op, source) => {
            let old = operand.read(address, bytes);
            let carry = regs.rflags & CF != 0;
            let (result, flags) = alu(op, old, value(regs, source, bytes), bytes, carry);
            if !keeps_operand(op) {
                operand.write(address, bytes, result);
            }
            regs.rflags = regs.rflags & !ARITHMETIC | flags;
        }
        Kind::AluRegister(op, source) => {
            let old = value(regs, source, bytes);
            let carry = regs.rflags & CF != 0;
            let (result, flags) = alu(op, old, operand.read(address, bytes), bytes, carry);
            if !keeps_operand(op) {
                set_source(regs, source, bytes, result);
            }
            regs.rflags = regs.rflags & !ARITHMETIC | flags;
        }
        Kind::Unary(op) => unary(op, regs, address, bytes, operand),
        Kind::Exchange(source) => {
            let old = operand.read(address, bytes);
            operand.write(address, bytes, value(regs, source, bytes));
            set_source(regs, source, bytes, old);
        }
        Kind::ExchangeAdd(source) => {
            let old = operand.read(address, bytes);
            let (sum, flags) = alu(Alu::Add, old, value(regs, source, bytes), bytes, false);
            set_source(regs, source, bytes, old);
            operand.write(address, bytes, sum);
            regs.rflags = regs.rflags & !ARITHMETIC | flags;
        }
        Kind::CompareExchange(source) => {
            let old = operand.read(address, bytes);
            let (_, flags) = alu(Alu::Cmp, regs.rax & mask(bytes), old, bytes, false);
            regs.rflags = regs.rflags & !ARITHMETIC | flags;
            if flags & ZF != 0 {
                operand.write(address, bytes, value(regs, source, bytes));
            } else {
                operand.write(address, bytes, old);
                registers::set_sized(regs, 0, bytes, old);
            }
        }
        Kind::Bit(op, source) => {
            let old = operand.read(address, bytes);
            let width = u64::from(bytes) * 8;
            let bit = 1u64 << (value(regs, source, bytes) % width);
            let new = match op {
                Bit::Test => old,
                Bit::Set => old | bit,
                Bit::Reset => old & !bit,
                Bit::Complement => old ^ bit,
            };
            if op != Bit::Test {
                operand.write(address, bytes, new);
            }
            regs.rflags = regs.rflags & !CF | if old & bit != 0 { CF } else { 0 };
        }
        Kind::StoreString => {
            operand.write(address, bytes, regs.rax & mask(bytes));
            step(regs, RDI, operation.address_bytes, bytes);
        }
        Kind::LoadString => {
            let value = operand.read(address, bytes);
            registers::set_sized(regs, 0, bytes, value);
            step(regs, RSI, operation.address_bytes, bytes);
        }
        Kind::MoveString => {
            if write {
                let offset = regs.rsi & count_mask;
                let value = linear.load(operation.segment, offset, bytes)?;
                operand.write(address, bytes, value);
            } else {
                let value = operand.read(address, bytes);
                linear.store(0, regs.rdi & count_mask, bytes, value)?;
            }
            step(regs, RSI, operation.address_bytes, bytes);
            step(regs, RDI, operation.address_bytes, bytes);
        }
        Kind::Push => {
            let value = operand.read(address, bytes);
            // The stack's address size follows SS in the CPU; code and stack agree in every
            // environment that pushes from device memory.
            let wide = if operation.address_bytes == 8 { 8 } else { 4 };
            let pointer = regs.rsp.wrapping_sub(bytes.into()) & mask(wide);
            linear.store(2, pointer, bytes, value)?;
            registers::set_sized(regs, RSP, wide, pointer);
        }
    }
    if repeat {
        let left = registers::get(regs, RCX).wrapping_sub(1);
        registers::set_sized(regs, RCX, operation.address_bytes, left);
        if left & count_mask != 0 {
            return Ok(Progress::Repeat);
        }
    }
    Ok(Progress::Done)
}

fn unary(op: Unary, regs: &mut Registers, address: u64, bytes: u8, operand: &mut impl Operand) {
    let old = operand.read(address, bytes);
    let (result, flags, changed) = match op {
        Unary::Not => (!old & mask(bytes), 0, 0),
        Unary::Inc => {
            let (result, flags) = alu(Alu::Add, old, 1, bytes, false);
            (result, flags & !CF, ARITHMETIC & !CF)
        }
        Unary::Dec => {
            let (result, flags) = alu(Alu::Sub, old, 1, bytes, false);
            (result, flags & !CF, ARITHMETIC & !CF)
        }
        Unary::Neg => {
            let (result, flags) = alu(Alu::Sub, 0, old, bytes, false);
            (result, flags, ARITHMETIC)
        }
    };
    operand.write(address, bytes, result);
    regs.rflags = regs.rflags & !changed | flags;
}

#[cfg(test)]
mod tests;
