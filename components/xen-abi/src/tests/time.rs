//! Clock, wallclock, CPUID, hypercall page, `set_timer_op`.

use super::harness::*;
use crate::domain::number::SET_TIMER_OP;
use crate::time::TscScale;
use crate::*;
use proptest::prelude::*;

const SHARED: u64 = SpecialFrame::SharedInfo.address();

#[test]
fn time_record_follows_pvclocks_arithmetic() {
    let mut slow = config(1);
    slow.tsc = TscMode {
        khz: 2_893_202,
        stable: false,
    };
    slow.tsc_at_start = 12345;
    let guest = Guest::with(slow);
    let time = SHARED + 32;
    assert_eq!(guest.u32(time) % 2, 0);
    assert_eq!(guest.u64(time + 8), 12345);
    assert_eq!(guest.u64(time + 16), 0);
    let [shift, flags] = guest.bytes::<2>(time + 28);
    assert_eq!(flags, 0, "not stable");
    // What Linux computes from the record as the TSC's frequency.
    let multiplier = u64::from(guest.u32(time + 24));
    let mut khz = (1_000_000u64 << 32) / multiplier;
    if (shift as i8) < 0 {
        khz <<= -(shift as i8);
    } else {
        khz >>= shift;
    }
    assert!(khz.abs_diff(2_893_202) <= 1, "{khz}");
}

#[test]
fn stable_tsc_sets_the_stable_bit() {
    let guest = Guest::new(1);
    assert_eq!(guest.bytes::<1>(SHARED + 32 + 29), [1]);
}

#[test]
fn wallclock_is_where_each_width_has_it() {
    let guest = Guest::new(1);
    assert_eq!(guest.u32(SHARED + 3076), 1_700_000_000);
    assert_eq!(guest.u32(SHARED + 3080), 123_456_789);
    assert_eq!(guest.u32(SHARED + 3072) % 2, 0);
    let guest = Guest::new_32(1);
    assert_eq!(guest.u32(SHARED + 2308), 1_700_000_000);
    assert_eq!(guest.u32(SHARED + 2312), 123_456_789);
    assert_eq!(guest.u32(SHARED + 2340), 0);
}

#[test]
fn cpuid_leaves_name_xen_and_the_tsc() {
    let guest = Guest::new(2);
    let leaf = |leaf, subleaf| guest.domain.cpuid(1, leaf, subleaf);
    let [last, ebx, ecx, edx] = leaf(0x4000_0000, 0).unwrap();
    let mut name = ebx.to_le_bytes().to_vec();
    name.extend(ecx.to_le_bytes());
    name.extend(edx.to_le_bytes());
    assert_eq!(name, b"XenVMMXenVMM");
    assert_eq!(last, 0x4000_0005);
    assert_eq!(leaf(0x4000_0001, 0), Some([0x4_0011, 0, 0, 0]));
    assert_eq!(leaf(0x4000_0002, 0), Some([1, 0x4000_0000, 0, 0]));
    assert_eq!(leaf(0x4000_0003, 0), Some([0b110, 2, 1_000_000, 1]));
    assert_eq!(leaf(0x4000_0003, 2), Some([1_000_000, 0, 0, 0]));
    assert_eq!(leaf(0x4000_0004, 0), Some([0x5c, 1, 5, 0]));
    assert_eq!(leaf(0x4000_0006, 0), Some([0; 4]));
    assert_eq!(leaf(0x4000_0100, 0), None);
    assert_eq!(leaf(0x3fff_ffff, 0), None);
}

#[test]
fn hypercall_page_has_an_entry_per_number_and_none_for_iret() {
    let page = hypercall_page(Vendor::Amd);
    assert_eq!(
        page[29 * 32..][..9],
        [0xb8, 29, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xc3]
    );
    assert_eq!(page[23 * 32..][..2], [0x0f, 0x0b]);
    assert_eq!(hypercall_page(Vendor::Intel)[7], 0xc1);
}

#[test]
fn hypercall_page_goes_to_ram_only() {
    let mut guest = Guest::new(1);
    let mut write = |value| {
        guest.domain.write_hypercall_page(
            value,
            Mode::Bits64,
            Vendor::Amd,
            &guest.memory,
            &mut guest.env,
        )
    };
    assert_eq!(write(0x4000), Ok(()));
    assert_eq!(write(0x4001), Err(GeneralProtection));
    assert_eq!(write(PAGES * PAGE_SIZE), Err(GeneralProtection));
    assert_eq!(write(!0xfff), Err(GeneralProtection));
}

#[test]
fn set_timer_op_sets_stops_and_survives_wrapped_times() {
    let mut guest = Guest::new(1);
    let due = guest.env.tsc + 5000;
    assert_eq!(guest.call(SET_TIMER_OP, &[due]), 0);
    assert_eq!(guest.domain.next_deadline(0), Some(due));
    assert_eq!(guest.call(SET_TIMER_OP, &[0]), 0);
    assert_eq!(guest.domain.next_deadline(0), None);
    for wrapped in [u64::MAX, 1 << 63, 1 << 60] {
        assert_eq!(guest.call(SET_TIMER_OP, &[wrapped]), 0);
        assert_eq!(
            guest.domain.next_deadline(0),
            Some(guest.env.tsc + 100_000_000)
        );
    }
}

#[test]
fn set_timer_op_of_a_32_bit_caller_comes_in_halves() {
    let mut guest = Guest::new_32(1);
    assert_eq!(guest.call(SET_TIMER_OP, &[7, 1]), 0);
    assert_eq!(guest.domain.next_deadline(0), Some(1 << 32 | 7));
}

#[test]
fn tsc_that_pvclock_cannot_express_is_a_config_error() {
    let mut bad = config(1);
    bad.tsc.khz = 0;
    let memory = TestMemory::new(0, 5);
    assert!(matches!(Domain::new(bad, &memory), Err(ConfigError::Tsc)));
}

#[test]
fn impossible_domains_are_config_errors() {
    let memory = TestMemory::new(0, 5);
    let refused = |change: fn(&mut Config)| {
        let mut config = config(1);
        change(&mut config);
        Domain::new(config, &memory).expect_err("refused")
    };
    assert_eq!(refused(|config| config.vcpus = 0), ConfigError::Vcpus);
    assert_eq!(refused(|config| config.vcpus = 129), ConfigError::Vcpus);
    assert_eq!(
        refused(|config| config.grant_frames = 0),
        ConfigError::GrantFrames
    );
    assert_eq!(
        refused(|config| config.grant_frames = 65),
        ConfigError::GrantFrames
    );
    assert_eq!(
        refused(|config| config.max_grant_version = 3),
        ConfigError::GrantVersion
    );
    let frames = |frames, version| {
        let config = Config {
            grant_frames: frames,
            max_grant_version: version,
            ..config(1)
        };
        Domain::new(config, &memory).err()
    };
    assert_eq!(frames(4, 1), None);
    assert_eq!(frames(5, 1), Some(ConfigError::SpecialFrames));
    assert_eq!(frames(4, 2), Some(ConfigError::SpecialFrames));
}

proptest! {
    #[test]
    fn deadlines_are_reached_at_their_tsc_and_not_before(
        khz in 1000u32..6_000_000,
        origin in 0u64..1 << 40,
        ns in 0u64..1 << 60,
    ) {
        let scale = TscScale::new(TscMode { khz, stable: true }, origin).unwrap();
        let tsc = scale.to_tsc(ns);
        prop_assert!(scale.to_ns(tsc) >= ns);
        // One step of the shifted counter before it is too early.
        let step = 1u64 << scale.shift.min(0).unsigned_abs();
        if tsc >= origin + step {
            prop_assert!(scale.to_ns(tsc - step) < ns.max(1));
        }
    }

    #[test]
    fn any_tsc_frequency_makes_a_scale(khz in 1u32.., tsc in any::<u64>(), origin in any::<u64>()) {
        let scale = TscScale::new(TscMode { khz, stable: true }, origin).unwrap();
        scale.to_tsc(scale.to_ns(tsc));
    }
}
