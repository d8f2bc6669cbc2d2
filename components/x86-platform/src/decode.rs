//! From instruction bytes to what the VMM has to do.
//!
//! Two ways: instructions of fixed shape (CPUID, VMMCALL, RDMSR, ...) are recognised by their
//! opcode after any legal prefixes, in a few steps, because their exits are frequent; whatever
//! has operands goes through iced-x86 into a [`Operation`]. In both, bytes that are not the
//! instruction the exit speaks of are an error: the guest may have changed them meanwhile, and
//! the VMM lets it run the instruction again.

use iced_x86::{
    Code as Form, Decoder, DecoderOptions, Instruction, MemorySize, Mnemonic, OpKind, Register,
};

use crate::mode::CodeSize;
use crate::paging::{Code, INSTRUCTION_MAX};

/// Why bytes were not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// They are another instruction than the exit's.
    Mismatch,
    /// An instruction that is not emulated.
    Unsupported,
}

/// Instructions of fixed shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// CPUID.
    Cpuid,
    /// VMMCALL or VMCALL.
    Hypercall,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// HLT.
    Hlt,
    /// XSETBV.
    Xsetbv,
    /// INVD, WBINVD or WBNOINVD.
    CacheFlush,
    /// PAUSE.
    Pause,
    /// IN, OUT, INS or OUTS.
    Port,
}

impl Fixed {
    /// Bytes of the opcode (with ModRM or immediate, where the shape has one), if `bytes` start
    /// with this instruction's.
    #[inline]
    fn opcode_length(self, bytes: &[u8]) -> Option<u8> {
        let matches = |opcode: &[u8]| bytes.starts_with(opcode).then_some(opcode.len() as u8);
        match self {
            Fixed::Cpuid => matches(&[0x0f, 0xa2]),
            Fixed::Hypercall => {
                matches(&[0x0f, 0x01, 0xd9]).or_else(|| matches(&[0x0f, 0x01, 0xc1]))
            }
            Fixed::Rdmsr => matches(&[0x0f, 0x32]),
            Fixed::Wrmsr => matches(&[0x0f, 0x30]),
            Fixed::Hlt => matches(&[0xf4]),
            Fixed::Xsetbv => matches(&[0x0f, 0x01, 0xd1]),
            Fixed::CacheFlush => matches(&[0x0f, 0x09]).or_else(|| matches(&[0x0f, 0x08])),
            Fixed::Pause => matches(&[0x90]),
            Fixed::Port => match *bytes.first()? {
                0xe4..=0xe7 if bytes.len() >= 2 => Some(2),
                0xec..=0xef | 0x6c..=0x6f => Some(1),
                _ => None,
            },
        }
    }

    /// Length of the instruction that `code` starts with, if it is this one. `rip` is not needed:
    /// none of these refers to it.
    #[inline]
    pub fn length(self, code: &Code, size: CodeSize) -> Result<u8, Error> {
        let bytes = code.bytes();
        let bytes = bytes.get(..code.count()).unwrap_or(&[]);
        if let Some(length) = self.opcode_length(bytes) {
            return Ok(length);
        }
        let prefixes = prefix_length(bytes, size);
        let (before, rest) = bytes.split_at_checked(prefixes).ok_or(Error::Mismatch)?;
        let length = self.opcode_length(rest).ok_or(Error::Mismatch)?;
        let total = prefixes + usize::from(length);
        if total > INSTRUCTION_MAX {
            return Err(Error::Mismatch);
        }
        if before.contains(&LOCK) {
            // None of these may be locked: #UD (Intel SDM vol. 2, LOCK). A CPU finds that before
            // it exits.
            return Err(Error::Unsupported);
        }
        Ok(total as u8)
    }
}

/// The prefix that makes an instruction atomic.
const LOCK: u8 = 0xf0;

/// Bytes of legacy prefixes and, in 64-bit code, of REX right before the opcode. A REX that
/// another prefix follows is ignored by the CPU and so counts as a prefix as well.
fn prefix_length(bytes: &[u8], size: CodeSize) -> usize {
    bytes
        .iter()
        .take(INSTRUCTION_MAX)
        .take_while(|&&byte| match byte {
            0x66 | 0x67 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | LOCK => true,
            0x40..=0x4f => size == CodeSize::Bits64,
            _ => false,
        })
        .count()
}

/// Where the other operand of a memory operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A general register by number; `high` for AH, CH, DH, BH.
    Register {
        /// 0-15.
        number: u8,
        /// Bits 8-15 of it.
        high: bool,
    },
    /// An immediate, sign-extended as the form has it.
    Immediate(u64),
}

/// Two-operand arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    /// ADD.
    Add,
    /// ADC.
    Adc,
    /// SUB.
    Sub,
    /// SBB.
    Sbb,
    /// CMP: writes no operand.
    Cmp,
    /// AND.
    And,
    /// TEST: writes no operand.
    Test,
    /// OR.
    Or,
    /// XOR.
    Xor,
}

/// One-operand arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// INC.
    Inc,
    /// DEC.
    Dec,
    /// NOT.
    Not,
    /// NEG.
    Neg,
}

/// Bit instructions with an immediate or a register bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bit {
    /// BT: writes nothing.
    Test,
    /// BTS.
    Set,
    /// BTR.
    Reset,
    /// BTC.
    Complement,
}

/// What an instruction does with the memory operand that did not translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory to register, `extend` says how the register is filled.
    Load {
        /// Register number.
        number: u8,
        /// Bits 8-15 of it.
        high: bool,
        /// Bytes of the register that are written.
        bytes: u8,
        /// Sign- instead of zero-extended.
        signed: bool,
    },
    /// Register or immediate to memory.
    Store(Source),
    /// `memory = memory op source`.
    AluMemory(Alu, Source),
    /// `register = register op memory`.
    AluRegister(Alu, Source),
    /// `memory = op memory`.
    Unary(Unary),
    /// Exchange with a register.
    Exchange(Source),
    /// Exchange and add with a register.
    ExchangeAdd(Source),
    /// Compare with the accumulator and exchange.
    CompareExchange(Source),
    /// Bit of the memory operand; a bit number in a register is used modulo the operand's width
    /// because the exit tells the address that the CPU computed.
    Bit(Bit, Source),
    /// STOS.
    StoreString,
    /// LODS.
    LoadString,
    /// MOVS; which side did not translate is for the executor to find.
    MoveString,
    /// PUSH of a memory operand.
    Push,
}

/// A decoded memory operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What to do.
    pub kind: Kind,
    /// Bytes of the memory operand: 1, 2, 4 or 8.
    pub bytes: u8,
    /// Bytes of the instruction.
    pub length: u8,
    /// Bytes of an address: 2, 4 or 8.
    pub address_bytes: u8,
    /// REP, REPE or REPNE, which mean the same to the strings here.
    pub repeat: bool,
    /// Segment of the source of MOVS and OUTS: an x86 segment number (ES CS SS DS FS GS).
    pub segment: u8,
}

fn register(register: Register) -> Option<(u8, bool)> {
    if !register.is_gpr() {
        return None;
    }
    let high = matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    );
    let number = register.full_register().number();
    (number < 16).then_some((number as u8, high))
}

fn operand(instruction: &Instruction, index: u32) -> Option<Source> {
    match instruction.op_kind(index) {
        OpKind::Register => {
            let (number, high) = register(instruction.op_register(index))?;
            Some(Source::Register { number, high })
        }
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Some(Source::Immediate(instruction.immediate(index))),
        _ => None,
    }
}

/// The instruction by iced-x86, for those with operands.
pub fn instruction(code: &Code, size: CodeSize, rip: u64) -> Result<Instruction, Error> {
    let bytes = code.bytes();
    let bytes = bytes.get(..code.count()).unwrap_or(&[]);
    let mut decoder = Decoder::try_with_ip(size.bits(), bytes, rip, DecoderOptions::NONE)
        .map_err(|_| Error::Unsupported)?;
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Err(Error::Unsupported);
    }
    Ok(instruction)
}

/// Decodes an instruction with a memory operand.
pub fn memory_operation(code: &Code, size: CodeSize, rip: u64) -> Result<Operation, Error> {
    let instruction = instruction(code, size, rip)?;
    let bytes = match instruction.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => 1,
        MemorySize::UInt16 | MemorySize::Int16 => 2,
        MemorySize::UInt32 | MemorySize::Int32 => 4,
        MemorySize::UInt64 | MemorySize::Int64 => 8,
        _ => return Err(Error::Unsupported),
    };
    let kind = kind(&instruction).ok_or(Error::Unsupported)?;
    Ok(Operation {
        kind,
        bytes,
        length: instruction.len() as u8,
        address_bytes: address_bytes(&instruction, size),
        repeat: instruction.has_rep_prefix() || instruction.has_repne_prefix(),
        segment: segment(instruction.memory_segment()),
    })
}

fn segment(register: Register) -> u8 {
    match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}

fn address_bytes(instruction: &Instruction, size: CodeSize) -> u8 {
    let kind = (0..instruction.op_count())
        .map(|index| instruction.op_kind(index))
        .find(|kind| *kind >= OpKind::MemorySegSI);
    match kind {
        Some(OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI) => 2,
        Some(OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI) => 4,
        _ if size == CodeSize::Bits64 => 8,
        _ if size == CodeSize::Bits32 => 4,
        _ => 2,
    }
}

fn kind(instruction: &Instruction) -> Option<Kind> {
    let memory_first = instruction.op_kind(0) == OpKind::Memory;
    let two = |alu| {
        if memory_first {
            Some(Kind::AluMemory(alu, operand(instruction, 1)?))
        } else {
            Some(Kind::AluRegister(alu, operand(instruction, 0)?))
        }
    };
    let load = |signed| {
        let target = instruction.op0_register();
        let (number, high) = register(target)?;
        Some(Kind::Load {
            number,
            high,
            bytes: target.size() as u8,
            signed,
        })
    };
    let with = |index| operand(instruction, index);
    match instruction.mnemonic() {
        Mnemonic::Mov if memory_first => Some(Kind::Store(with(1)?)),
        Mnemonic::Mov | Mnemonic::Movzx => load(false),
        Mnemonic::Movsx | Mnemonic::Movsxd => load(true),
        Mnemonic::Add => two(Alu::Add),
        Mnemonic::Adc => two(Alu::Adc),
        Mnemonic::Sub => two(Alu::Sub),
        Mnemonic::Sbb => two(Alu::Sbb),
        Mnemonic::Cmp => two(Alu::Cmp),
        Mnemonic::And => two(Alu::And),
        Mnemonic::Test => two(Alu::Test),
        Mnemonic::Or => two(Alu::Or),
        Mnemonic::Xor => two(Alu::Xor),
        Mnemonic::Inc => Some(Kind::Unary(Unary::Inc)),
        Mnemonic::Dec => Some(Kind::Unary(Unary::Dec)),
        Mnemonic::Not => Some(Kind::Unary(Unary::Not)),
        Mnemonic::Neg => Some(Kind::Unary(Unary::Neg)),
        Mnemonic::Xchg => Some(Kind::Exchange(with(u32::from(memory_first))?)),
        Mnemonic::Xadd => Some(Kind::ExchangeAdd(with(1)?)),
        Mnemonic::Cmpxchg => Some(Kind::CompareExchange(with(1)?)),
        Mnemonic::Bt => Some(Kind::Bit(Bit::Test, with(1)?)),
        Mnemonic::Bts => Some(Kind::Bit(Bit::Set, with(1)?)),
        Mnemonic::Btr => Some(Kind::Bit(Bit::Reset, with(1)?)),
        Mnemonic::Btc => Some(Kind::Bit(Bit::Complement, with(1)?)),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            Some(Kind::StoreString)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            Some(Kind::LoadString)
        }
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            Some(Kind::MoveString)
        }
        Mnemonic::Push => Some(Kind::Push),
        _ => None,
    }
}

/// An access to a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlAccess {
    /// What it does.
    pub kind: ControlKind,
    /// Bytes of the instruction.
    pub length: u8,
}

/// What an instruction does with a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlKind {
    /// MOV from a control register.
    Read {
        /// Control register number.
        control: u8,
        /// General register number.
        register: u8,
    },
    /// MOV to a control register.
    Write {
        /// Control register number.
        control: u8,
        /// General register number.
        register: u8,
    },
    /// CLTS.
    ClearTaskSwitched,
    /// SMSW into a register.
    StoreStatus {
        /// General register number.
        register: u8,
        /// Bytes written.
        bytes: u8,
    },
    /// LMSW from a register.
    LoadStatus {
        /// General register number.
        register: u8,
    },
}

/// Decodes an access to a control register. SMSW and LMSW with memory operands are not emulated.
pub fn control_access(code: &Code, size: CodeSize) -> Result<ControlAccess, Error> {
    let instruction = instruction(code, size, 0)?;
    let number = |index: u32| {
        register(instruction.op_register(index))
            .map(|(number, _)| number)
            .ok_or(Error::Unsupported)
    };
    let kind = match instruction.code() {
        Form::Mov_r32_cr | Form::Mov_r64_cr => ControlKind::Read {
            control: instruction.op1_register().number() as u8,
            register: number(0)?,
        },
        Form::Mov_cr_r32 | Form::Mov_cr_r64 => ControlKind::Write {
            control: instruction.op0_register().number() as u8,
            register: number(1)?,
        },
        Form::Clts => ControlKind::ClearTaskSwitched,
        Form::Smsw_rm16 | Form::Smsw_r32m16 | Form::Smsw_r64m16 => ControlKind::StoreStatus {
            register: number(0)?,
            bytes: instruction.op0_register().size() as u8,
        },
        Form::Lmsw_rm16 | Form::Lmsw_r32m16 | Form::Lmsw_r64m16 => ControlKind::LoadStatus {
            register: number(0)?,
        },
        _ => return Err(Error::Mismatch),
    };
    Ok(ControlAccess {
        kind,
        length: instruction.len() as u8,
    })
}

/// Decoded operations by the address and bytes they were decoded from. An entry is used only if
/// all bytes are the same, so that nothing has to be flushed.
#[derive(Clone, Debug)]
pub struct Cache {
    entries: [Option<Entry>; CACHE_ENTRIES],
}

const CACHE_ENTRIES: usize = 32;

#[derive(Clone, Copy, Debug)]
struct Entry {
    words: [u64; 2],
    size: CodeSize,
    operation: Operation,
}

impl Default for Cache {
    fn default() -> Self {
        Cache {
            entries: [None; CACHE_ENTRIES],
        }
    }
}

impl Cache {
    /// [`memory_operation`], remembered. What an operation is does not depend on `rip` but on its
    /// bytes (the exit tells the address), so `rip` only chooses the entry.
    #[inline]
    pub fn memory_operation(
        &mut self,
        code: &Code,
        size: CodeSize,
        rip: u64,
    ) -> Result<Operation, Error> {
        let words = code.words();
        let index = (rip ^ rip >> 5) as usize % CACHE_ENTRIES;
        if let Some(Some(entry)) = self.entries.get(index)
            && entry.words == words
            && entry.size == size
        {
            return Ok(entry.operation);
        }
        let operation = memory_operation(code, size, rip)?;
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = Some(Entry {
                words,
                size,
                operation,
            });
        }
        Ok(operation)
    }
}

#[cfg(test)]
mod tests;
