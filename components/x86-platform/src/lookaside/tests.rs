use super::*;
use core::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::vec::Vec;

use crate::memory::{TestMemory, Unbacked};
use crate::mode::*;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use microvisor_abi::vcpu::Segment;
use proptest::prelude::*;

const FIXED: [Fixed; 9] = [
    Fixed::Cpuid,
    Fixed::Hypercall,
    Fixed::Rdmsr,
    Fixed::Wrmsr,
    Fixed::Hlt,
    Fixed::Xsetbv,
    Fixed::CacheFlush,
    Fixed::Pause,
    Fixed::Port,
];

fn put(memory: &impl GuestMemory, at: u64, value: u64) {
    memory.write(at, &value.to_le_bytes()).unwrap();
}

/// Long mode with its tables at `root`, in this privilege.
fn long(root: u64, privilege: u16) -> Mode {
    Mode {
        cr0: CR0_PE | CR0_PG | CR0_WP,
        cr3: root,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA | EFER_NXE,
        cs: Segment::new(8, 0x29b, u32::MAX, 0),
        ss: Segment::new(0x10, 0x93 | privilege << 5, u32::MAX, 0),
    }
}

/// A segment of this size with `base`, in protected mode without paging or in real mode.
fn flat(size: CodeSize, base: u64) -> Mode {
    let attributes = match size {
        CodeSize::Bits16 => 0x9b,
        _ => 0x49b,
    };
    Mode {
        cr0: u64::from(size != CodeSize::Bits16) * CR0_PE,
        cs: Segment::new(8, attributes, u32::MAX, base),
        ..Mode::default()
    }
}

/// A small address space: linear 0 to 0x3fff by one page table, and the 2 MiB from 0x20_0000 on
/// identically. All marked accessed and dirty.
const ROOT: u64 = 0x1000;
const TABLE: u64 = 0x4000;

fn tables() -> TestMemory {
    let memory = TestMemory::new(0x10000);
    put(&memory, ROOT, 0x2000 | 0x67);
    put(&memory, 0x2000, 0x3000 | 0x67);
    put(&memory, 0x3000, TABLE | 0x67);
    put(&memory, 0x3008, 0xe7);
    for page in 0..4 {
        put(&memory, TABLE + page * 8, (0x8000 + page * 0x1000) | 0x67);
    }
    memory
}

/// Memory that counts, or lies: with `stale` a word has for ever the value it had first.
struct Observed<'a> {
    memory: &'a TestMemory,
    found: Cell<u32>,
    loads: Cell<u32>,
    stale: Option<RefCell<HashMap<usize, u64>>>,
}

impl<'a> Observed<'a> {
    fn new(memory: &'a TestMemory, stale: bool) -> Self {
        Observed {
            memory,
            found: Cell::new(0),
            loads: Cell::new(0),
            stale: stale.then(RefCell::default),
        }
    }
}

impl GuestMemory for Observed<'_> {
    type Word = usize;
    fn word(&self, address: u64) -> Result<usize, Unbacked> {
        self.found.set(self.found.get() + 1);
        self.memory.word(address)
    }
    fn load(&self, word: usize) -> u64 {
        self.loads.set(self.loads.get() + 1);
        let now = self.memory.load(word);
        match &self.stale {
            Some(first) => *first.borrow_mut().entry(word).or_insert(now),
            None => now,
        }
    }
    fn layout(&self) -> u64 {
        self.memory.layout()
    }
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked> {
        self.memory.read(address, buffer)
    }
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked> {
        self.memory.write(address, bytes)
    }
    fn read_u32(&self, address: u64) -> Result<u32, Unbacked> {
        self.memory.read_u32(address)
    }
    fn set_bits(&self, address: u64, bits: u32) -> Result<(), Unbacked> {
        self.memory.set_bits(address, bits)
    }
}

/// Translates, lets the guest map another page there without any flush, and translates again.
fn remapped(stale: bool) -> (Result<u64, Fault>, Result<u64, Fault>) {
    let memory = tables();
    let seen = Observed::new(&memory, stale);
    let mut lookaside = Lookaside::default();
    lookaside.observe(|| long(ROOT, 0));
    let first = lookaside.translate(&seen, 0x1234, false);
    put(&memory, TABLE + 8, 0xb000 | 0x67);
    (first, lookaside.translate(&seen, 0x1234, false))
}

#[test]
fn arguments_are_where_the_page_tables_say_now() {
    assert_eq!(remapped(false), (Ok(0x9234), Ok(0xb234)));
    // The control: were the words not loaded anew, the old page would be the answer.
    assert_eq!(remapped(true), (Ok(0x9234), Ok(0x9234)));
}

#[test]
fn code_that_changed_is_decoded_again() {
    let run = |stale| {
        let memory = tables();
        let seen = Observed::new(&memory, stale);
        let mut lookaside = Lookaside::default();
        lookaside.observe(|| long(ROOT, 0));
        memory.write(0x8100, &[0x0f, 0xa2, 0x90]).unwrap();
        let first = lookaside.length(&seen, 0, 0x100, Fixed::Cpuid);
        memory.write(0x8100, &[0x66, 0x0f, 0xa2]).unwrap();
        (first, lookaside.length(&seen, 0, 0x100, Fixed::Cpuid))
    };
    assert_eq!(run(false), (Ok(2), Ok(3)));
    assert_eq!(run(true), (Ok(2), Ok(2)), "the control");
}

#[test]
fn what_is_known_is_not_worked_out_again() {
    let memory = tables();
    memory.write(0x8100, &[0x0f, 0xa2]).unwrap();
    memory.write(0x8200, &[0x8b, 0x07]).unwrap();
    let seen = Observed::new(&memory, false);
    let mut lookaside = Lookaside::default();
    let modes = [long(ROOT, 0), long(ROOT, 3), flat(CodeSize::Bits32, 0x8000)];
    for round in 0..3 {
        for mode in &modes {
            lookaside.observe(|| *mode);
            seen.found.set(0);
            seen.loads.set(0);
            assert_eq!(lookaside.length(&seen, 0, 0x100, Fixed::Cpuid), Ok(2));
            assert_eq!(lookaside.operation(&seen, 0, 0x200).unwrap().bytes, 4);
            if mode.cr0 & CR0_PG != 0 {
                lookaside.translate(&seen, 0x1000, true).unwrap();
            }
            if round > 0 {
                assert_eq!(seen.found.get(), 0, "no address is looked up");
                // Four tables, a word of code each; without paging that word alone, repeated.
                let loads = if mode.cr0 & CR0_PG != 0 {
                    6 + 6 + 4
                } else {
                    4 + 4
                };
                assert_eq!(seen.loads.get(), loads);
            }
        }
    }
}

#[test]
fn memory_that_moved_is_walked_again() {
    let memory = tables();
    let mut lookaside = Lookaside::default();
    lookaside.observe(|| long(ROOT, 0));
    assert_eq!(lookaside.translate(&memory, 0x1234, false), Ok(0x9234));
    memory.exchange_halves();
    // The tables are not where they were; there is nothing in their place.
    assert!(lookaside.translate(&memory, 0x1234, false).is_err());
}

/// What a guest may do between two exits.
#[derive(Clone, Debug)]
enum Step {
    Entry { level: u64, index: u64, value: u64 },
    Code { at: u64, bytes: Vec<u8> },
    Mode(usize),
    Move,
    Length { rip: u64, fixed: usize },
    Operation { rip: u64 },
    Argument { linear: u64, write: bool },
}

fn code_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(std::vec![
        std::vec![0x0f, 0xa2],
        std::vec![0x66, 0x0f, 0xa2],
        std::vec![0x0f, 0x01, 0xd9],
        std::vec![0x48, 0xf3, 0x2e, 0x66, 0x0f, 0xa2],
        std::vec![0x8b, 0x07],
        std::vec![0x89, 0x87, 0, 1, 0, 0],
        std::vec![0x48, 0xc7, 0x84, 0x24, 0, 1, 0, 0, 1, 2, 3, 4],
        std::vec![0xf0, 0x0f, 0xa2],
        std::vec![0xee],
    ])
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few addresses, so that questions repeat: some across pages and words.
    let rip = prop::sample::select(std::vec![0u64, 5, 0x7fd, 0xffb, 0xfff, 0x1000, 0x20_8000]);
    let linear = prop::sample::select(std::vec![0u64, 0x10, 0x1008, 0x2ff0, 0x3000, 0x20_9000]);
    let flags = prop::sample::select(std::vec![0u64, 0x21, 0x27, 0x63, 0x67, 0x67, 0x67, 0xe7]);
    let step = prop_oneof![
        2 => (0..4u64, 0..4u64, 0x8..0xcu64, flags, any::<bool>()).prop_map(
            |(level, index, frame, flags, no_execute)| Step::Entry {
                level,
                index,
                value: match level {
                    3 => frame << 12 | flags | u64::from(no_execute && frame & 1 != 0) << 63,
                    _ => (level + 2) << 12 | flags & 0x7f,
                },
            }
        ),
        2 => (rip.clone(), code_bytes()).prop_map(|(at, bytes)| Step::Code { at, bytes }),
        2 => (0..6usize).prop_map(Step::Mode),
        1 => Just(Step::Move),
        6 => (rip.clone(), 0..3usize).prop_map(|(rip, fixed)| Step::Length { rip, fixed }),
        4 => rip.prop_map(|rip| Step::Operation { rip }),
        6 => (linear, any::<bool>()).prop_map(|(linear, write)| Step::Argument { linear, write }),
    ];
    prop::collection::vec(step, 1..60)
}

/// Whether a lookaside over `memory` answered each question as paging and decoding over a copy of
/// the memory do, and left the same bytes in memory.
fn agrees<M: GuestMemory>(memory: &TestMemory, seen: &M, steps: &[Step]) -> bool {
    let modes = [
        long(ROOT, 0),
        long(ROOT, 3),
        long(ROOT + 0x4000, 0),
        flat(CodeSize::Bits32, 0x8000),
        flat(CodeSize::Bits16, 0x8000),
        Mode {
            cr4: CR4_PAE | CR4_SMEP | CR4_SMAP,
            ..long(ROOT, 0)
        },
    ];
    let mut lookaside = Lookaside::default();
    let mut mode = modes[0];
    for step in steps {
        // Each question is one exit.
        lookaside.observe(|| mode);
        let copy = memory.clone();
        let same = match step {
            Step::Entry {
                level,
                index,
                value,
            } => {
                let index = if *level == 3 { *index } else { index & 1 };
                let large = u64::from(*level == 2 && index == 1) << 7;
                let _ = memory.write(
                    (ROOT + level * 0x1000) + index * 8,
                    &(value | large).to_le_bytes(),
                );
                continue;
            }
            Step::Code { at, bytes } => {
                let _ = memory.write(0x8000 + (at & 0x3fff), bytes);
                continue;
            }
            Step::Mode(index) => {
                mode = modes[*index];
                continue;
            }
            Step::Move => {
                memory.exchange_halves();
                continue;
            }
            Step::Length { rip, fixed } => {
                let fixed = [Fixed::Cpuid, Fixed::Hypercall, Fixed::Port][*fixed];
                let wanted = paging::fetch(&copy, &mode, 0, *rip)
                    .map_err(Error::Fault)
                    .and_then(|code| Ok(fixed.length(&code, mode.code_size())?));
                lookaside.length(seen, 0, *rip, fixed) == wanted
            }
            Step::Operation { rip } => {
                let wanted = paging::fetch(&copy, &mode, 0, *rip)
                    .map_err(Error::Fault)
                    .and_then(|code| Ok(decode::memory_operation(&code, mode.code_size(), *rip)?));
                lookaside.operation(seen, 0, *rip) == wanted
            }
            Step::Argument { linear, write } => {
                let access = if *write { Access::Write } else { Access::Read };
                let wanted = paging::translate(&copy, &mode, RFLAGS_AC, *linear, access);
                lookaside.translate(seen, *linear, *write) == wanted
            }
        };
        if !same || !memory.same_bytes(&copy) {
            return false;
        }
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn answers_are_those_of_a_fresh_walk_whatever_the_guest_does(steps in steps()) {
        let memory = tables();
        prop_assert!(agrees(&memory, &memory, &steps));
    }
}

/// The control of the property above: over memory that is not loaded anew, it finds the lie.
#[test]
fn the_property_finds_a_lookaside_that_does_not_look() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let lied = runner.run(&steps(), |steps| {
        let memory = tables();
        let seen = Observed::new(&memory, true);
        prop_assert!(agrees(&memory, &seen, &steps));
        Ok(())
    });
    assert!(lied.is_err());
}

fn mnemonics(fixed: Fixed) -> &'static [Mnemonic] {
    match fixed {
        Fixed::Cpuid => &[Mnemonic::Cpuid],
        Fixed::Hypercall => &[Mnemonic::Vmmcall, Mnemonic::Vmcall, Mnemonic::Vmgexit],
        Fixed::Rdmsr => &[Mnemonic::Rdmsr],
        Fixed::Wrmsr => &[Mnemonic::Wrmsr],
        Fixed::Hlt => &[Mnemonic::Hlt],
        Fixed::Xsetbv => &[Mnemonic::Xsetbv],
        Fixed::CacheFlush => &[Mnemonic::Invd, Mnemonic::Wbinvd, Mnemonic::Wbnoinvd],
        Fixed::Pause => &[Mnemonic::Pause, Mnemonic::Nop, Mnemonic::Xchg],
        Fixed::Port => &[
            Mnemonic::In,
            Mnemonic::Out,
            Mnemonic::Insb,
            Mnemonic::Insw,
            Mnemonic::Insd,
            Mnemonic::Outsb,
            Mnemonic::Outsw,
            Mnemonic::Outsd,
        ],
    }
}

/// The opcodes of the instructions whose exits are skipped by a length, and two immediates.
const OPCODES: [&[u8]; 33] = [
    &[0x0f, 0xa2],
    &[0x0f, 0x01, 0xd9],
    &[0x0f, 0x01, 0xc1],
    &[0x0f, 0x32],
    &[0x0f, 0x30],
    &[0xf4],
    &[0x0f, 0x01, 0xd1],
    &[0x0f, 0x08],
    &[0x0f, 0x09],
    &[0x0f, 0x01, 0xc8],
    &[0x0f, 0x01, 0xc9],
    &[0x0f, 0x01, 0xfa],
    &[0x0f, 0x01, 0xfb],
    &[0x0f, 0x33],
    &[0x90],
    &[0xe4, 0x10],
    &[0xe5, 0xf0],
    &[0xe6, 0x66],
    &[0xe7, 0x0f],
    &[0xec],
    &[0xed],
    &[0xee],
    &[0xef],
    &[0x6c],
    &[0x6d],
    &[0x6e],
    &[0x6f],
    // Near misses.
    &[0x0f, 0xa3, 0xc0],
    &[0x0f, 0x31],
    &[0x0f, 0x01, 0xd0],
    &[0x0f, 0x01, 0xda],
    &[0xeb, 0x00],
    &[0x6b, 0xc0, 0x01],
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6_000))]
    /// CPUID, hypercalls, MSR and port accesses, HLT and their like, with any prefixes up to and
    /// beyond the longest instruction, in code of each width, at any place of a page: the length
    /// that a guest's RIP moves by is iced-x86's, twice, the second time from memory. A locked
    /// one, a too long one and another instruction have none.
    #[test]
    fn every_encoding_resumes_behind_the_instruction(
        prefixes in prop::collection::vec(prop::sample::select(std::vec![
            0x66u8, 0x67, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x48, 0x41, 0x4f, 0xf0,
        ]), 0..15),
        opcode in prop::sample::select(OPCODES.to_vec()),
        place in prop_oneof![0x1000u64..0x1010, 0x1fecu64..0x2000],
        width in 0..3usize,
        wanted in 0..FIXED.len(),
    ) {
        let (mode, size) = [
            (flat(CodeSize::Bits16, 0x8000), CodeSize::Bits16),
            (flat(CodeSize::Bits32, 0x8000), CodeSize::Bits32),
            (long(ROOT, 0), CodeSize::Bits64),
        ][width];
        let mut bytes = prefixes;
        bytes.extend_from_slice(opcode);
        let memory = tables();
        memory.write(0x8000 + place, &bytes).unwrap();
        let iced = Decoder::new(size.bits(), &bytes, DecoderOptions::NONE).decode();
        let fixed = FIXED[wanted];
        let is_it = mnemonics(fixed).contains(&iced.mnemonic())
            // REX.B makes an exchange with r8 of the NOP that PAUSE is made of.
            && (fixed != Fixed::Pause || (opcode == [0x90]));
        // XSETBV and its neighbours refuse these prefixes on some CPUs: there they do not exit, and
        // where they exit they are what they look like.
        let refused = iced.is_invalid() && opcode.starts_with(&[0x0f, 0x01])
            && bytes.iter().any(|byte| matches!(byte, 0x66 | 0xf2 | 0xf3))
            && bytes.len() <= 15 && !bytes.contains(&0xf0);
        let mut lookaside = Lookaside::default();
        lookaside.observe(|| mode);
        for _ in 0..2 {
            let length = lookaside.length(&memory, 0, place, fixed);
            if is_it && !iced.is_invalid() {
                prop_assert_eq!(length, Ok(iced.len() as u8), "{:?}", iced.mnemonic());
            } else if refused {
                prop_assert!(length.is_err() || length == Ok(bytes.len() as u8));
            } else {
                prop_assert!(length.is_err(), "{:?} is not {:?}", iced.mnemonic(), fixed);
            }
        }
    }
}
