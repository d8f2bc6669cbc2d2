//! Claims about what may reach the CPU from a state page.

use microvisor_abi::vcpu::{Segment, event};
use microvisor_vcpu_state::limits::{Cpuid, Limits};
use microvisor_vcpu_state::sanitise::*;
use proptest::prelude::*;

/// A CPU with everything that the limits know of.
fn rich() -> Limits {
    Limits::new(&Cpuid {
        leaf1_ecx: !0,
        leaf1_edx: !0,
        leaf7_ebx: !0,
        leaf7_ecx: !(1 << 16),
        leaf7_edx: !0,
        xcr0: !0,
        ext1_ecx: !0,
        ext1_edx: !0,
        ext8_eax: 48,
    })
}

/// A CPU with as little as can be.
fn poor() -> Limits {
    Limits::new(&Cpuid::default())
}

fn mode(cr0: u64, cr3: u64, cr4: u64, efer: u64, cs: u64, ss: u64) -> Mode {
    let segment = |packed| Segment { packed, base: 0 };
    Mode {
        cr0,
        cr3,
        cr4,
        efer,
        cs: segment(cs),
        ss: segment(ss),
    }
}

proptest! {
    /// The conditions under which VMRUN refuses a VMCB (AMD APM vol. 2, 15.5.1).
    #[test]
    fn an_accepted_mode_passes_vmruns_own_checks(
        bits in prop::array::uniform6(any::<u64>()),
        sparse in prop::array::uniform4(any::<u64>()),
        mask in any::<u64>(),
    ) {
        // Mostly-zero words, so that some are accepted.
        let [cr0, cr3, cr4, efer, cs, ss] = bits;
        let [a, b, c, d] = sparse.map(|word| word & mask & (word >> 7));
        for (cr0, cr3, cr4, efer) in [
            (cr0, cr3, cr4, efer),
            (cr0 & 0xe005_003f, cr3 & 0xffff_f000, c & 0x3f, d & 0xd01),
            (a & 0xe005_003f, b & 0xffff, c & 0x7f, d & 0x1d01),
        ] {
            let Ok(m) = mode(cr0, cr3, cr4, efer, cs, ss).sanitised(&rich()) else { continue };
            prop_assert_eq!(m.efer & EFER_SVME, 0);
            prop_assert!(m.cr0 & cr0::CD != 0 || m.cr0 & cr0::NW == 0);
            prop_assert!(m.cr0 & cr0::PG == 0 || m.cr0 & cr0::PE != 0);
            prop_assert_eq!(m.cr0 >> 32, 0);
            prop_assert_eq!(m.cr3 >> 48, 0);
            prop_assert_eq!(m.cr4 & !rich().cr4, 0);
            let long = m.efer & EFER_LME != 0 && m.cr0 & cr0::PG != 0;
            prop_assert_eq!(long, m.efer & EFER_LMA != 0);
            if long {
                prop_assert!(m.cr4 & CR4_PAE != 0);
                prop_assert_ne!(m.cs.attributes() & 0x600, 0x600);
            }
            prop_assert_eq!(m.sanitised(&rich()), Ok(m), "sanitising twice changes nothing");
        }
    }

    #[test]
    fn nothing_beyond_the_limits_passes(value in any::<u64>()) {
        for limits in [rich(), poor()] {
            if let Ok(v) = xcr0(value, &limits) { prop_assert_eq!(v & !limits.xcr0, 0); }
            if let Ok(m) = mode(0, 0, value, 0, 0, 0).sanitised(&limits) {
                prop_assert_eq!(m.cr4 & !limits.cr4, 0);
            }
            let six = dr6(value, &limits);
            prop_assert_eq!(six >> 32, 0);
            prop_assert_eq!(six & 0xff0, 0xff0);
        }
        if let Ok(seven) = dr7(value) {
            prop_assert_eq!(seven >> 32, 0);
            prop_assert_eq!(seven & 0xd800, 0);
        }
        prop_assert_eq!(rflags(value) & !0x3f_7fd5, 2);
    }

    /// AMD APM vol. 2, 15.20: other types, and exceptions that are none, end in VMEXIT_INVALID.
    #[test]
    fn an_accepted_event_is_one_the_cpu_takes(value in any::<u64>()) {
        let value = value | event::VALID;
        if let Ok(word) = inject(value) {
            prop_assert_ne!(word & event::VALID, 0);
            prop_assert_eq!(word & 0x7fff_f000, 0, "reserved bits");
            let (kind, vector) = (word & 0x700, word & 0xff);
            prop_assert!([0, 2 << 8, 3 << 8, 4 << 8].contains(&kind));
            if kind == event::EXCEPTION { prop_assert!(vector < 32 && vector != 2); }
            if word & event::ERROR_CODE == 0 { prop_assert_eq!(word >> 32, 0); }
            prop_assert_eq!(inject(word), Ok(word));
        }
    }

    #[test]
    fn an_interrupted_delivery_can_be_injected_again(value in any::<u64>()) {
        let again = interrupted_delivery(value);
        prop_assert_eq!(inject(again), Ok(again));
        if value & event::VALID == 0 { prop_assert_eq!(again, 0); }
    }

    #[test]
    fn canonical_addresses_repeat_the_sign(address in any::<u64>()) {
        let result = canonical(address, &rich());
        let top = result as i64 >> 47;
        prop_assert!(top == 0 || top == -1);
        prop_assert_eq!(result << 16, address << 16);
    }

    #[test]
    fn every_accepted_pat_byte_is_a_memory_type(value in any::<u64>(), pick in prop::array::uniform8(0u8..8)) {
        for value in [value, u64::from_le_bytes(pick)] {
            let good = value.to_le_bytes().iter().all(|&b| b < 8 && b != 2 && b != 3);
            prop_assert_eq!(pat(value).is_ok(), good);
        }
    }
}

#[test]
fn modes_that_guests_start_in_are_accepted() {
    // Real mode after reset, a PVH start (32-bit, no paging), 64-bit with paging.
    let limits = rich();
    for (cr0, cr4, efer, lma) in [
        (0x6000_0010, 0, 0, 0),
        (0x11, 0, 0, 0),
        (0x8005_0033, 0x6f0, 0xd01, EFER_LMA),
        (0x8005_0033, 0x6f0, 0x901, EFER_LMA),
    ] {
        let m = mode(cr0, 0x1000, cr4, efer, 0x9b << 16, 0x93 << 16).sanitised(&limits);
        let m = m.expect("accepted");
        assert_eq!(m.efer & EFER_LMA, lma);
    }
}

#[test]
fn the_state_after_reset_is_accepted() {
    use microvisor_vcpu_state::reset;
    for limits in [rich(), poor()] {
        let m = Mode {
            cs: reset::CS,
            ss: reset::DATA,
            ..mode(reset::CR0, 0, 0, 0, 0, 0)
        };
        assert_eq!(m.sanitised(&limits), Ok(m));
        assert_eq!(m.cpl(reset::RFLAGS), 0);
        assert_eq!(rflags(reset::RFLAGS), reset::RFLAGS);
        assert_eq!(dr6(reset::DR6, &limits), reset::DR6);
    }
    assert_eq!(dr7(reset::DR7), Ok(reset::DR7));
    assert_eq!(pat(reset::PAT), Ok(reset::PAT));
    assert_eq!(xcr0(reset::XCR0, &rich()), Ok(reset::XCR0));
}

#[test]
fn the_offending_value_is_named() {
    let limits = rich();
    let refused = |m: Mode| m.sanitised(&limits).expect_err("refused");
    assert_eq!(
        refused(mode(1 << 31, 0, 0, 0, 0, 0)),
        (Reject::Cr0, 1 << 31)
    );
    assert_eq!(refused(mode(0, 1 << 52, 0, 0, 0, 0)).0, Reject::Cr3);
    assert_eq!(refused(mode(0, 0, 1 << 13, 0, 0, 0)).0, Reject::Cr4);
    assert_eq!(refused(mode(0, 0, 0, EFER_SVME, 0, 0)).0, Reject::Efer);
    let long = mode(0x8000_0011, 0, CR4_PAE, EFER_LME, 0x600 << 16, 0);
    assert_eq!(refused(long).0, Reject::Cs);
}

#[test]
fn privilege_comes_from_the_mode_then_from_ss() {
    let limits = rich();
    let user = 0x60 << 16;
    let at = |cr0, ss, rflags| {
        mode(cr0, 0, 0, 0, 0, ss)
            .sanitised(&limits)
            .unwrap()
            .cpl(rflags)
    };
    assert_eq!(at(0, user, 0), 0, "real mode");
    assert_eq!(at(1, user, 0), 3);
    assert_eq!(at(1, 0, 0), 0);
    assert_eq!(at(1, 0, RFLAGS_VM), 3, "virtual 8086 mode");
}

#[test]
fn xcr0_combinations_follow_the_manual() {
    let limits = rich();
    for good in [1, 3, 7, 0xe7, 0x1f, 0x2ff] {
        assert_eq!(xcr0(good, &limits), Ok(good), "{good:#x}");
    }
    for bad in [0, 2, 5, 0x9, 0x27, 0xe3, 1 << 62 | 1, 1 << 17 | 3] {
        assert!(xcr0(bad, &limits).is_err(), "{bad:#x}");
    }
}

#[test]
fn only_exceptions_with_an_error_code_push_one() {
    let with = |vector| {
        let word = event::EXCEPTION | event::ERROR_CODE | event::VALID | vector | 7 << 32;
        inject(word).unwrap() & event::ERROR_CODE != 0
    };
    let pushing: Vec<u64> = (0..32).filter(|&v| v != 2).filter(|&v| with(v)).collect();
    assert_eq!(pushing, [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]);
}
