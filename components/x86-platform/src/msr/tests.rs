use super::*;
use crate::cpuid::{Config, Cpuid};
use proptest::prelude::*;

fn msrs(vendor: u32) -> Msrs {
    let config = Config {
        apic_id: 0,
        vcpus: 1,
        thread_bits: 0,
        invariant_tsc: false,
    };
    let host = |leaf, _| match leaf {
        0 => [0xd, vendor, 0, 0],
        0x8000_0000 => [0x8000_0008, 0, 0, 0],
        1 => [0x0080_0f12, 0, 0, 0],
        0xd => [0; 4],
        _ => [u32::MAX; 4],
    };
    Msrs::new(&Cpuid::new(host, config))
}

const AMD: u32 = 0x6874_7541;

#[test]
fn efer_keeps_virtualisation_out_and_lma_in() {
    let msrs = msrs(AMD);
    assert_eq!(efer(&msrs, 0, 1 << 12, 0), None, "SVME");
    assert_eq!(
        efer(&msrs, 0, EFER_LME | EFER_SCE, 0),
        Some(EFER_LME | EFER_SCE)
    );
    let active = EFER_LME | EFER_LMA;
    assert_eq!(efer(&msrs, active, 0, CR0_PG), None, "LME while paging");
    assert_eq!(
        efer(&msrs, active, EFER_LME | EFER_NXE, CR0_PG),
        Some(active | EFER_NXE)
    );
    assert_eq!(efer(&msrs, 0, EFER_LMA, 0), Some(0));
}

#[test]
fn unknown_registers_fault() {
    let mut amd = msrs(AMD);
    for msr in [
        0x48,
        0x49,
        0x10a,
        0x1a0,
        0x480,
        0xc001_0117,
        0xc001_0020,
        0xc001_0008,
        0x4b56_4d00,
    ] {
        assert_eq!(amd.read(msr), Read::Fault, "{msr:#x}");
        let update = msr == 0xc001_0020;
        let expected = if update { Write::Done } else { Write::Fault };
        assert_eq!(amd.write(msr, 0), expected, "{msr:#x}");
    }
    // What can be read only.
    for msr in [0, 1, 0x2c, 0x8b, 0xc001_0015, 0xc001_0055] {
        assert!(matches!(amd.read(msr), Read::Value(_)), "{msr:#x}");
        assert_eq!(amd.write(msr, 0), Write::Fault, "{msr:#x}");
    }
    // Counters that count nothing.
    for msr in [0xc001_0000, 0xc001_0007, 0xc001_0200, 0xc001_020b] {
        assert_eq!(amd.write(msr, u64::MAX), Write::Done, "{msr:#x}");
        assert_eq!(amd.read(msr), Read::Value(0), "{msr:#x}");
    }
    assert_eq!(amd.read(0xc001_0114), Read::Value(1 << 4));
    assert_eq!(amd.write(0xc001_0114, 0), Write::Fault);
    assert!(matches!(msrs(0).read(0x1a0), Read::Value(_)));
    assert_eq!(msrs(0).read(0xc001_0015), Read::Fault);
}

#[test]
fn bad_values_fault() {
    let mut msrs = msrs(AMD);
    assert_eq!(msrs.write(0x277, 2), Write::Fault, "memory type 2");
    assert!(matches!(
        msrs.write(0x277, 0x0007_0406_0007_0406),
        Write::Register(Register::Pat, _)
    ));
    assert_eq!(
        msrs.write(0xc000_0082, 1 << 47),
        Write::Fault,
        "not canonical"
    );
    assert_eq!(msrs.write(0x2ff, 0x802), Write::Fault);
    assert_eq!(msrs.write(0x2ff, 0x806), Write::Done);
    assert_eq!(msrs.write(0x201, 0xff_c000_0800), Write::Done);
    assert_eq!(msrs.read(0x201), Read::Value(0xff_c000_0800));
}

#[test]
fn xcr0_needs_its_dependencies() {
    assert!(valid_xcr0(7, 7) && valid_xcr0(1, 7) && valid_xcr0(3, 7));
    assert!(!valid_xcr0(0, 7) && !valid_xcr0(5, 7) && !valid_xcr0(0x207, 7));
    assert!(valid_xcr0(0xe7, 0xe7) && !valid_xcr0(0x27, 0xe7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn any_access_has_an_answer(msr in any::<u32>(), value in any::<u64>(), amd in any::<bool>()) {
        let mut msrs = msrs(if amd { AMD } else { 0 });
        let low = msr & 0x1fff;
        for msr in [msr, low, 0xc000_0000 | low, 0xc001_0000 | low] {
            let _ = msrs.write(msr, value);
            let _ = msrs.read(msr);
        }
    }
}
