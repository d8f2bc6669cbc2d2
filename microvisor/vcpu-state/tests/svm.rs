//! Claims about SVM's exit codes and permission maps.

use microvisor_abi::vcpu::{Exit, fault, io};
use microvisor_vcpu_state::exit::Report;
use microvisor_vcpu_state::svm_bitmaps::*;
use microvisor_vcpu_state::svm_exit::*;
use proptest::prelude::*;

fn report(words: Words) -> Report {
    match words.decode() {
        Decoded::Report(report) => report,
        other => panic!("{other:?}"),
    }
}

fn code(code: u64) -> Words {
    Words {
        code,
        rip: 0x1000,
        ..Words::default()
    }
}

proptest! {
    #[test]
    fn any_words_decode_to_a_length_an_instruction_can_have(
        number in prop_oneof![0u64..0x100, Just(NPF), Just(INVALID), any::<u64>()],
        info1 in any::<u64>(), info2 in any::<u64>(), rip in any::<u64>(), next_rip in any::<u64>(),
    ) {
        let words = Words { code: number, info1, info2, rip, next_rip };
        if let Decoded::Report(what) = words.decode() {
            prop_assert!(what.length <= 15);
        }
    }

    #[test]
    fn io_details_survive(port: u16, size in 0u32..3, input: bool, string: bool, rep: bool, tail in 0u64..16) {
        let info1 = u64::from(port) << 16 | 1 << (4 + size) | u64::from(input)
            | u64::from(string) << 2 | u64::from(rep) << 3;
        let what = report(Words { info1, info2: 0x1000 + tail, ..code(0x7b) });
        prop_assert_eq!(what.exit, Exit::Io);
        let word = what.info[0];
        prop_assert_eq!(word & 0xffff, u64::from(port));
        prop_assert_eq!(word >> 16 & 0xff, 1 << size);
        prop_assert_eq!(word & io::IN != 0, input);
        prop_assert_eq!(word & io::STRING != 0, string);
        prop_assert_eq!(word & io::REP != 0, rep);
        prop_assert_eq!(what.length, tail);
        prop_assert_eq!(what.mode, string);
    }

    #[test]
    fn a_port_has_one_bit_of_its_own(a: u16, b: u16) {
        prop_assert_eq!(port(a) == port(b), a == b);
        prop_assert!(port(a).0 < IOPM_BYTES && port(a).1.count_ones() == 1);
    }

    #[test]
    fn an_msr_has_two_bits_of_its_own(number in prop_oneof![
        0u32..0x3000, 0xbfff_f000u32..0xc000_3000, 0xc001_0000u32..0xc001_3000, any::<u32>()
    ]) {
        let map = msr_map();
        match msr(number) {
            None => prop_assert!(!PASSED.contains(&number)),
            Some((byte, mask)) => {
                prop_assert!(byte < 0x1800 && mask.count_ones() == 2);
                let passed = map[byte] & mask == 0;
                prop_assert_eq!(passed, PASSED.contains(&number));
                prop_assert!(passed || map[byte] & mask == mask, "both bits or none");
            }
        }
    }
}

#[test]
fn the_map_denies_all_but_the_msrs_that_are_switched() {
    let clear: u32 = msr_map().iter().map(|byte| byte.count_zeros()).sum();
    assert_eq!(clear as usize, 2 * PASSED.len());
    // EFER, PAT, APIC_BASE, TSC_AUX, VM_CR, HSAVE_PA, DEBUGCTL, SPEC_CTRL, MTRRs: never passed.
    for number in [
        0xc000_0080,
        0x277,
        0x1b,
        0xc000_0103,
        0xc001_0114,
        0xc001_0117,
        0x1d9,
        0x48,
        0x2ff,
    ] {
        let (byte, mask) = msr(number).expect("covered");
        assert_eq!(msr_map()[byte] & mask, mask, "{number:#x}");
    }
}

#[test]
fn offsets_are_those_of_the_manual() {
    // AMD APM vol. 2, 15.11: ranges at 0, 0x800, 0x1000; two bits each.
    assert_eq!(msr(0x174), Some((0x5d, 0b11)));
    assert_eq!(msr(0xc000_0081), Some((0x820, 0b1100)));
    assert_eq!(msr(0xc001_0117), Some((0x1045, 0b1100_0000)));
    assert_eq!(msr(0x2000), None);
    assert_eq!(port(0x3f8), (0x7f, 1));
}

#[test]
fn nested_faults_tell_what_was_tried() {
    for (info1, flags) in [
        (0b100, fault::READ),
        (0b110, fault::WRITE),
        (0b1_0100, fault::FETCH),
        (0b111, fault::WRITE | fault::PRESENT),
        (0b110 | 1 << 33, fault::WRITE | fault::WALK),
        (0b100 | 1 << 32, fault::READ),
    ] {
        let what = report(Words {
            info1,
            info2: 0xfee0_0020,
            ..code(NPF)
        });
        assert_eq!(what.exit, Exit::NestedFault);
        assert_eq!(what.info, [0xfee0_0020, flags], "{info1:#b}");
        assert!(what.mode);
    }
}

#[test]
fn what_concerns_the_host_never_reaches_the_vmm() {
    for number in 0x60..=0x63 {
        assert_eq!(code(number).decode(), Decoded::Host);
    }
    assert_eq!(code(0x52).decode(), Decoded::MachineCheck);
    assert_eq!(code(0x41).decode(), Decoded::Reflect(1));
    assert_eq!(code(0x51).decode(), Decoded::Reflect(17));
}

#[test]
fn instructions_of_svm_itself_do_not_exist_for_guests() {
    for number in [0x7a, 0x80, 0x82, 0x83, 0x84, 0x85, 0x86] {
        assert_eq!(report(code(number)).exit, Exit::Undefined, "{number:#x}");
    }
    assert_eq!(report(code(0x81)).exit, Exit::Hypercall);
}

#[test]
fn a_length_is_told_only_when_the_cpu_tells_the_next_rip() {
    assert_eq!(report(code(0x72)).length, 0);
    let told = Words {
        next_rip: 0x1002,
        ..code(0x72)
    };
    assert_eq!(report(told).length, 2);
}

#[test]
fn msr_direction_is_in_the_low_bit() {
    assert_eq!(report(code(0x7c)).exit, Exit::MsrRead);
    let write = Words {
        info1: 1,
        ..code(0x7c)
    };
    assert_eq!(report(write).exit, Exit::MsrWrite);
}

#[test]
fn a_refused_vmcb_carries_the_exit_code() {
    let what = report(code(INVALID));
    assert_eq!((what.exit, what.info[0]), (Exit::Invalid, INVALID));
}
