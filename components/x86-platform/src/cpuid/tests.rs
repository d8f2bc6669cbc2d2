use super::*;

/// An AMD-like host with everything.
fn host(leaf: u32, subleaf: u32) -> Leaf {
    match (leaf, subleaf) {
        (0, _) => [0x1f, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        (0x8000_0000, _) => [0x8000_0021, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        (0xd, 0) => [0x207, 0x340, 0x988, 0],
        (0xd, 2) => [256, 576, 0, 0],
        (0x8000_001d, 0..4) => [0x0300_0121, 0, 0, 0],
        (0x8000_001d, _) => [0; 4],
        _ => [u32::MAX; 4],
    }
}

fn guest() -> Cpuid {
    let config = Config {
        apic_id: 3,
        vcpus: 4,
        thread_bits: 0,
        invariant_tsc: false,
    };
    Cpuid::new(host, config)
}

#[test]
fn virtualisation_and_monitoring_are_hidden() {
    let guest = guest();
    let context = Context::default();
    let [_, ebx, ecx, edx] = guest.get(1, 0, &context);
    assert_eq!(ebx >> 24, 3);
    for hidden in [2, 3, 5, 6, 7, 8, 10, 15, 18, 27] {
        assert_eq!(ecx >> hidden & 1, 0, "leaf 1 ECX bit {hidden}");
    }
    assert_eq!(ecx >> 31, 1);
    assert_eq!(ecx >> 21 & 1, 1);
    assert_eq!(edx >> 21 & 1, 0, "no debug store");
    assert_eq!(guest.get(0x8000_0001, 0, &context)[2] >> 2 & 1, 0, "no SVM");
    assert_eq!(guest.get(0x8000_000a, 0, &context), [0; 4]);
    assert_eq!(guest.get(0xa, 0, &context), [0; 4]);
    assert_eq!(guest.get(5, 0, &context), [0; 4]);
    assert_eq!(
        guest.get(0x8000_0007, 0, &context),
        [0; 4],
        "TSC not invariant"
    );
}

#[test]
fn osxsave_follows_cr4() {
    let on = Context {
        cr4: CR4_OSXSAVE,
        xcr0: 1,
    };
    assert_eq!(guest().get(1, 0, &on)[2] >> 27 & 1, 1);
    assert_eq!(guest().get(1, 0, &Context::default())[2] >> 27 & 1, 0);
}

#[test]
fn xsave_sizes_follow_xcr0() {
    let at = |xcr0, subleaf| guest().get(0xd, subleaf, &Context { cr4: 0, xcr0 });
    assert_eq!(at(3, 0), [7, 576, 832, 0]);
    assert_eq!(at(7, 0), [7, 832, 832, 0]);
    assert_eq!(at(7, 1), [1, 832, 0, 0]);
    assert_eq!(at(7, 2), [256, 576, 0, 0]);
    assert_eq!(at(7, 9), [0; 4], "no protection keys");
    assert_eq!(
        guest().get(7, 0, &Context::default())[1] & LEAF7_EBX_AVX512,
        0
    );
}

#[test]
fn topology_is_one_thread_per_core() {
    let guest = guest();
    let context = Context::default();
    assert_eq!(guest.get(0xb, 0, &context), [0, 1, 0x100, 3]);
    assert_eq!(guest.get(0xb, 1, &context), [2, 4, 0x201, 3]);
    assert_eq!(guest.get(0xb, 2, &context), [0, 0, 2, 3]);
    assert_eq!(guest.get(0x8000_001d, 0, &context)[0], 0x121);
    assert_eq!(guest.get(0x8000_001d, 4, &context), [0; 4]);
    assert_eq!(guest.get(0x8000_001e, 0, &context), [3, 3, 0, 0]);
}

#[test]
fn leaves_beyond_the_maxima_are_empty() {
    let guest = guest();
    let context = Context::default();
    assert_eq!(guest.get(0, 0, &context)[0], 0xd);
    assert_eq!(guest.get(0x8000_0000, 0, &context)[0], EXTENDED_MAX);
    for leaf in [0xe, 0x14, 0x1f, 0x7fff_ffff, 0x8000_001f, u32::MAX] {
        assert_eq!(guest.get(leaf, 0, &context), [0; 4]);
    }
}

#[test]
fn vendors_are_told_apart() {
    assert_eq!(guest().vendor(), Vendor::Amd);
    let config = Config {
        apic_id: 0,
        vcpus: 1,
        thread_bits: 0,
        invariant_tsc: true,
    };
    let empty = Cpuid::new(|_, _| [0; 4], config);
    assert_eq!(empty.vendor(), Vendor::Intel);
    assert_eq!(empty.xcr0(), 0);
}

#[test]
fn doubled_apic_ids_leave_a_thread_bit() {
    let config = Config {
        apic_id: 6,
        vcpus: 4,
        thread_bits: 1,
        invariant_tsc: false,
    };
    let guest = Cpuid::new(host, config);
    let context = Context::default();
    assert_eq!(guest.get(0xb, 0, &context), [1, 1, 0x100, 6]);
    assert_eq!(guest.get(0xb, 1, &context), [3, 4, 0x201, 6]);
    assert_eq!(guest.get(1, 0, &context)[1] >> 16, 6 << 8 | 8);
    assert_eq!(guest.get(0x8000_001e, 0, &context), [6, 3, 0, 0]);
    assert_eq!(guest.get(0x8000_0008, 0, &context)[0] >> 8, 48);
}
