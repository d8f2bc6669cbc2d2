//! Claims about why entries fail (Intel SDM vol. 3, 27.3.1): states that a CPU takes pass every check,
//! and each check is named when it alone fails.

use microvisor_abi::vcpu::Segment;
use microvisor_vcpu_state::limits::{Cpuid, Limits};
use microvisor_vcpu_state::vmx_entry::*;
use microvisor_vcpu_state::vmx_state::{Use, access_rights, segment};
use microvisor_vcpu_state::{reset, sanitise};
use proptest::prelude::*;

const BITS: u32 = 48;

fn register(selector: u64, rights: u64, limit: u64, base: u64) -> Register {
    Register {
        selector,
        limit,
        rights,
        base,
    }
}

/// Linux in its kernel: 64 bits, null data segments, a base in GS.
fn linux() -> State {
    let null = register(0, 0x1_0000, 0, 0);
    State {
        cr0: 0x8005_0033,
        cr4: 0x0007_26f0,
        efer: 0xd01,
        entry: 0x200,
        rip: 0xffff_ffff_8100_0000,
        rflags: 0x246,
        segments: [
            null,
            register(0x10, 0xa09b, 0xffff_ffff, 0),
            register(0x18, 0xc093, 0xffff_ffff, 0),
            null,
            null,
            register(0, 0x1_0000, 0, 0xffff_8880_3ec0_0000),
            null,
            register(0x40, 0x8b, 0x206f, 0xffff_fe00_0000_3000),
        ],
        ..State::default()
    }
}

/// After SIPI: real mode, as an unrestricted guest has it.
fn real_mode() -> State {
    let data = register(0, 0x93, 0xffff, 0);
    State {
        cr0: 0x30,
        cr4: 0x2000,
        rflags: 2,
        segments: [
            data,
            register(0x9a00, 0x9b, 0xffff, 0x9a000),
            data,
            data,
            data,
            data,
            register(0, 0x82, 0xffff, 0),
            register(0, 0x8b, 0xffff, 0),
        ],
        ..State::default()
    }
}

fn virtual_8086() -> State {
    let segment = register(0x1234, 0xf3, 0xffff, 0x12340);
    let mut state = State {
        cr0: 0x8000_0031,
        cr4: 0x2000,
        rflags: 0x2_0202,
        segments: [segment; 8],
        ..State::default()
    };
    state.segments[6] = register(0, 0x1_0000, 0, 0);
    state.segments[7] = register(8, 0x8b, 0x67, 0x1000);
    state
}

#[test]
fn what_guests_run_in_passes() {
    for (name, state) in [
        ("linux", linux()),
        ("real", real_mode()),
        ("8086", virtual_8086()),
    ] {
        assert_eq!(state.failing(BITS), None, "{name}");
    }
}

/// A state spoilt in one way, and what is said of it.
type Spoilt = (&'static str, fn() -> State, fn(&mut State));

#[test]
fn each_check_is_named() {
    let spoilt: &[Spoilt] = &[
        ("CR0: PG without PE", linux, |s| s.cr0 &= !1),
        ("long mode without", linux, |s| s.cr4 &= !(1 << 5)),
        ("PCIDE", real_mode, |s| s.cr4 |= 1 << 17),
        ("EFER.LMA", linux, |s| s.efer &= !(1 << 10)),
        ("EFER.LME", linux, |s| s.efer &= !(1 << 8)),
        ("RFLAGS.VM in long mode", linux, |s| s.rflags |= 1 << 17),
        ("virtual-8086", virtual_8086, |s| s.segments[3].base += 16),
        ("CS: access", linux, |s| s.segments[1].rights &= !0x80),
        ("CS: type", linux, |s| s.segments[1].rights &= !1),
        ("CS: both", linux, |s| s.segments[1].rights |= 0x4000),
        ("CS: base", linux, |s| s.segments[1].base = 1 << 32),
        ("CS: privilege", linux, |s| s.segments[2].rights |= 0x60),
        ("SS: privilege", real_mode, |s| {
            s.segments[1].rights |= 0x60;
            s.segments[2].rights |= 0x60;
        }),
        ("SS: type", linux, |s| s.segments[2].rights &= !2),
        ("DS, ES, FS or GS: type", real_mode, |s| {
            s.segments[3].rights = 0x92
        }),
        ("data segment", real_mode, |s| {
            s.segments[4].limit = 0x10_0000
        }),
        ("base of FS or GS", linux, |s| s.segments[5].base = 1 << 60),
        ("LDTR", real_mode, |s| s.segments[6].rights = 0x83),
        ("TR", linux, |s| s.segments[7].rights = 0x89),
        ("RIP", real_mode, |s| s.rip = 1 << 32),
        ("blocked", linux, |s| {
            s.rflags = 2;
            s.injection = 0x8000_0030;
        }),
        ("interruptibility", linux, |s| s.interruptibility = 3),
    ];
    for (words, state, spoil) in spoilt {
        let mut state = state();
        spoil(&mut state);
        let said = state.failing(BITS).unwrap_or("nothing");
        assert!(said.contains(words), "{words:?}: {said:?}");
    }
}

proptest! {
    #[test]
    fn any_state_is_judged(words in prop::array::uniform12(any::<u64>()), rights in prop::array::uniform8(any::<u64>())) {
        let [cr0, cr4, efer, entry, rip, rflags, interruptibility, _, injection, limit, base, _] = words;
        let state = State {
            cr0, cr4, efer, entry, rip, rflags, interruptibility, injection,
            segments: rights.map(|rights| register(rights >> 32, rights & 0x1_ffff, limit & 0xffff_ffff, base)),
        };
        let _ = state.failing(48);
        let _ = state.failing(57);
        let _ = refusal(rip);
    }

    /// Of what a VMM may write into a page only few things are left for the CPU to refuse: data
    /// segments, whatever their words, are not among them but for their type and an odd limit.
    #[test]
    fn mended_data_segments_are_regular(word: u64, large: bool, base: u64) {
        // A limit that no descriptor can have stays one.
        let packed = if large { word | 0xfff << 32 } else { word & !(0xfff << 52) };
        let limits = Limits::new(&Cpuid::default());
        let given = sanitise::segment(Segment { packed, base }, &limits);
        let rights = u64::from(access_rights(given, Use::Memory));
        let mut state = real_mode();
        state.segments[4] = register(0, rights, given.limit().into(), given.base);
        let said = state.failing(BITS);
        prop_assert!(matches!(said, None | Some("DS, ES, FS or GS: type")), "{:?}", said);
        let back = segment(0, rights, given.limit().into(), given.base);
        prop_assert_eq!(back.base, given.base);
    }
}

#[test]
fn the_state_after_reset_passes() {
    let put = |segment: Segment, kind| {
        register(
            segment.selector().into(),
            access_rights(segment, kind).into(),
            segment.limit().into(),
            segment.base,
        )
    };
    let data = put(reset::DATA, Use::Memory);
    let state = State {
        cr0: 0x30,
        cr4: 0x2000,
        rip: reset::RIP,
        rflags: reset::RFLAGS,
        segments: [
            data,
            put(reset::CS, Use::Memory),
            data,
            data,
            data,
            data,
            put(reset::LDTR, Use::Local),
            put(reset::TR, Use::Task),
        ],
        ..State::default()
    };
    assert_eq!(state.failing(BITS), None);
}
