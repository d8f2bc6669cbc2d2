use super::*;
use crate::decode::memory_operation;
use crate::mode::CodeSize;
use crate::paging::Code;
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind};
use proptest::prelude::*;

struct Word(u64, u32);

impl Operand for Word {
    fn read(&mut self, _: u64, bytes: u8) -> u64 {
        self.0 & mask(bytes)
    }
    fn write(&mut self, _: u64, bytes: u8, value: u64) {
        self.0 = self.0 & !mask(bytes) | value & mask(bytes);
        self.1 += 1;
    }
}

struct Plain(u64);

impl Linear for Plain {
    type Fault = ();
    fn load(&mut self, _: u8, _: u64, bytes: u8) -> Result<u64, ()> {
        Ok(self.0 & mask(bytes))
    }
    fn store(&mut self, _: u8, _: u64, _: u8, value: u64) -> Result<(), ()> {
        self.0 = value;
        Ok(())
    }
}

fn run(bytes: &[u8], regs: &mut Registers, word: &mut Word, write: bool) -> Progress {
    let mut padded = [0u8; 16];
    padded[..bytes.len()].copy_from_slice(bytes);
    let half = |at: usize| u64::from_le_bytes(padded[at..at + 8].try_into().unwrap());
    let code = Code::from_words([half(0), half(8)], bytes.len() as u64);
    let operation = memory_operation(&code, CodeSize::Bits64, 0).unwrap();
    execute(
        &operation,
        regs,
        0xfee0_0000,
        write,
        word,
        &mut Plain(0x1234),
    )
    .unwrap()
}

#[test]
fn loads_fill_registers_by_width() {
    let mut regs = Registers {
        rax: u64::MAX,
        ..Registers::default()
    };
    let mut word = Word(0x8899_aabb, 0);
    run(&[0x8b, 0x07], &mut regs, &mut word, false);
    assert_eq!(regs.rax, 0x8899_aabb, "32 bits clear the upper half");
    regs.rax = u64::MAX;
    run(&[0x66, 0x8b, 0x07], &mut regs, &mut word, false);
    assert_eq!(regs.rax, 0xffff_ffff_ffff_aabb);
    run(&[0x8a, 0x27], &mut regs, &mut word, false);
    assert_eq!(regs.rax, 0xffff_ffff_ffff_bbbb, "AH");
    run(&[0x48, 0x0f, 0xbe, 0x07], &mut regs, &mut word, false);
    assert_eq!(regs.rax, 0xffff_ffff_ffff_ffbb, "MOVSX");
    run(&[0x48, 0x63, 0x07], &mut regs, &mut word, false);
    assert_eq!(regs.rax, 0xffff_ffff_8899_aabb, "MOVSXD");
    run(&[0x0f, 0xb6, 0x07], &mut regs, &mut word, false);
    assert_eq!(regs.rax, 0xbb, "MOVZX");
}

#[test]
fn arithmetic_writes_memory_once_and_sets_flags() {
    let mut regs = Registers {
        rax: 1,
        rflags: 2,
        ..Registers::default()
    };
    let mut word = Word(0xffff_ffff, 0);
    run(&[0x01, 0x07], &mut regs, &mut word, true);
    assert_eq!((word.0, word.1), (0, 1));
    assert_eq!(regs.rflags & ARITHMETIC, CF | ZF | PF | AF);
    run(&[0x81, 0x0f, 0x00, 0x01, 0, 0], &mut regs, &mut word, true);
    assert_eq!(word.0, 0x100);
    run(&[0xf7, 0x07, 0x00, 0x01, 0, 0], &mut regs, &mut word, false);
    assert_eq!((word.1, regs.rflags & ZF), (2, 0), "TEST writes nothing");
    run(&[0x3b, 0x07], &mut regs, &mut word, false);
    assert_eq!(regs.rflags & CF, CF, "1 is below 0x100");
    run(&[0x0f, 0xba, 0x37, 8], &mut regs, &mut word, true);
    assert_eq!((word.0, regs.rflags & CF), (0, CF), "BTR");
    run(&[0xf7, 0x17], &mut regs, &mut word, true);
    assert_eq!(word.0, 0xffff_ffff, "NOT");
}

#[test]
fn exchanges_swap() {
    let mut regs = Registers {
        rax: 5,
        rbx: 7,
        rflags: 2,
        ..Registers::default()
    };
    let mut word = Word(5, 0);
    run(&[0xf0, 0x0f, 0xb1, 0x1f], &mut regs, &mut word, true);
    assert_eq!((word.0, regs.rflags & ZF), (7, ZF), "CMPXCHG hit");
    run(&[0xf0, 0x0f, 0xb1, 0x1f], &mut regs, &mut word, true);
    assert_eq!((word.0, regs.rax), (7, 7), "CMPXCHG miss");
    run(&[0x87, 0x07], &mut regs, &mut word, true);
    regs.rbx = 1;
    run(&[0xf0, 0x0f, 0xc1, 0x1f], &mut regs, &mut word, true);
    assert_eq!((word.0, regs.rbx), (8, 7), "XADD");
}

#[test]
fn repeated_strings_go_one_step_at_a_time() {
    let mut regs = Registers {
        rax: 9,
        rcx: 2,
        rdi: 0x100,
        ..Registers::default()
    };
    let mut word = Word(0, 0);
    assert_eq!(
        run(&[0xf3, 0xab], &mut regs, &mut word, true),
        Progress::Repeat
    );
    assert_eq!((regs.rcx, regs.rdi), (1, 0x104));
    assert_eq!(
        run(&[0xf3, 0xab], &mut regs, &mut word, true),
        Progress::Done
    );
    assert_eq!((regs.rcx, regs.rdi, word.0, word.1), (0, 0x108, 9, 2));
    regs.rflags |= DF;
    run(&[0xa5], &mut regs, &mut word, true);
    assert_eq!(
        (word.0, regs.rdi),
        (0x1234, 0x104),
        "MOVS takes the other side from memory"
    );
}

#[test]
fn flags_are_those_of_wide_arithmetic() {
    for a in 0..=255u64 {
        for b in (0..=255u64).step_by(3) {
            for carry in [false, true] {
                let c = u64::from(carry);
                let (sum, flags) = alu(Alu::Adc, a, b, 1, carry);
                assert_eq!(sum, (a + b + c) & 0xff);
                assert_eq!(flags & CF != 0, a + b + c > 255);
                let signed = i32::from(a as i8) + i32::from(b as i8) + c as i32;
                assert_eq!(flags & OF != 0, !(-128..128).contains(&signed));
                let (difference, flags) = alu(Alu::Sbb, a, b, 1, carry);
                assert_eq!(difference, a.wrapping_sub(b + c) & 0xff);
                assert_eq!(flags & CF != 0, a < b + c);
                let signed = i32::from(a as i8) - i32::from(b as i8) - c as i32;
                assert_eq!(flags & OF != 0, !(-128..128).contains(&signed));
                assert_eq!(flags & AF != 0, (a & 15) < (b & 15) + c);
            }
        }
    }
}

/// Every instruction with an ordinary memory operand that kernels use on registers of devices.
const MNEMONICS: [Mnemonic; 26] = [
    Mnemonic::Mov,
    Mnemonic::Movzx,
    Mnemonic::Movsx,
    Mnemonic::Movsxd,
    Mnemonic::Add,
    Mnemonic::Adc,
    Mnemonic::Sub,
    Mnemonic::Sbb,
    Mnemonic::Cmp,
    Mnemonic::And,
    Mnemonic::Test,
    Mnemonic::Or,
    Mnemonic::Xor,
    Mnemonic::Inc,
    Mnemonic::Dec,
    Mnemonic::Not,
    Mnemonic::Neg,
    Mnemonic::Xchg,
    Mnemonic::Xadd,
    Mnemonic::Cmpxchg,
    Mnemonic::Bt,
    Mnemonic::Bts,
    Mnemonic::Btr,
    Mnemonic::Btc,
    Mnemonic::Stosd,
    Mnemonic::Lodsd,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    /// All encodings with any prefixes, ModRM, SIB and displacement: those of the list are
    /// executed, with the length that iced finds, and leave RIP and RSP alone.
    #[test]
    fn all_operand_forms_are_executed_with_their_length(
        prefixes in prop::collection::vec(prop::sample::select(std::vec![
            0x66u8, 0x67, 0xf2, 0xf3, 0x2e, 0x65, 0xf0, 0x48, 0x4d, 0x41,
        ]), 0..4),
        two in any::<bool>(),
        opcode in any::<u8>(),
        rest in any::<[u8; 9]>(),
        width in 0..3usize,
        values in any::<[u64; 3]>(),
    ) {
        let size = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64][width];
        let mut bytes = prefixes;
        if two {
            bytes.push(0x0f);
        }
        bytes.push(opcode);
        bytes.extend_from_slice(&rest);
        bytes.truncate(15);
        let iced = Decoder::with_ip(size.bits(), &bytes, 0x1000, DecoderOptions::NONE).decode();
        let memory = (0..iced.op_count()).any(|index| iced.op_kind(index) >= OpKind::MemorySegSI);
        let other_segment = iced.op0_register().is_segment_register()
            || iced.op1_register().is_segment_register()
            || iced.op0_register().is_cr() || iced.op0_register().is_dr();
        if iced.is_invalid() || !memory || other_segment || !MNEMONICS.contains(&iced.mnemonic()) {
            return Ok(());
        }
        bytes.resize(16, 0);
        let half = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let code = Code::from_words([half(0), half(8)], 15);
        let operation = memory_operation(&code, size, 0x1000)
            .unwrap_or_else(|error| panic!("{:?}: {error:?}", iced.code()));
        prop_assert_eq!(usize::from(operation.length), iced.len());
        prop_assert_eq!(usize::from(operation.bytes), iced.memory_size().size());
        let mut regs = Registers {
            rax: values[0], rbx: values[1], rcx: 1, rdx: values[2], rsi: 0x100, rdi: 0x200,
            rip: 0x1000, rflags: 2, ..Registers::default()
        };
        let mut word = Word(values[1], 0);
        let mut linear = Plain(values[2]);
        let progress = execute(&operation, &mut regs, 0xfee0_0000, true, &mut word, &mut linear);
        prop_assert_eq!(progress, Ok(Progress::Done));
        prop_assert_eq!(regs.rip, 0x1000);
        prop_assert_eq!(regs.rflags & !ARITHMETIC, 2);
        prop_assert!(word.1 <= 1, "one write at most");
    }
}
