//! Claims about VMX's controls, exit reasons, MSR bitmap and formats.

use microvisor_abi::vcpu::{Exit, Segment, event, fault, io};
use microvisor_vcpu_state::exit::Report;
use microvisor_vcpu_state::sanitise::cr0;
use microvisor_vcpu_state::vmx_bitmap::*;
use microvisor_vcpu_state::vmx_controls::*;
use microvisor_vcpu_state::vmx_exit::*;
use microvisor_vcpu_state::vmx_state::*;
use microvisor_vcpu_state::{reset, sanitise};
use proptest::prelude::*;
use std::cell::Cell;

/// What a Haswell Core i7 has, as Intel SDM vol. 3, appendix A, words it.
fn haswell() -> Capabilities {
    Capabilities {
        feature_control: LOCKED | VMX_ENABLED,
        basic: 1 << 55 | 1 << 54 | 6 << 50 | 0x400 << 32 | 0x12,
        pin: 0x0000_007f_0000_0016,
        primary: 0xfff9_fffe_0400_6172,
        secondary: 0x0000_7fff << 32,
        exit: 0x007f_ffff_0003_6dfb,
        entry: 0x0000_ffff_0000_11fb,
        ept_vpid: 0x0f01_0673_4141,
    }
}

fn without(mut c: Capabilities, bit: u32) -> Capabilities {
    c.secondary &= !(u64::from(bit) << 32);
    c
}

#[test]
fn a_haswell_can_run_guests() {
    let controls = haswell().controls().expect("it has all");
    assert_eq!(controls.pin & PIN, PIN);
    assert_eq!(controls.primary & primary::NEEDED, primary::NEEDED);
    assert_eq!(controls.primary & primary::UNWANTED, 0);
    assert_eq!(controls.secondary & secondary::NEEDED, secondary::NEEDED);
    // RDTSCP and INVPCID are there, ENCLS and XSAVES are not.
    assert_eq!(controls.secondary & secondary::OPTIONAL, 1 << 3 | 1 << 12);
    assert_eq!(controls.exit & EXIT, EXIT);
    assert_eq!(controls.entry & (ENTRY | ENTRY_LONG), ENTRY);
    for window in [primary::INTERRUPT_WINDOW, primary::NMI_WINDOW] {
        assert_eq!(controls.primary & window, 0, "no window is asked for yet");
    }
}

/// A CPU, and words of what it is told.
type Lacking = (&'static str, Capabilities, &'static [&'static str]);

#[test]
fn what_a_cpu_lacks_is_named_with_where_to_look() {
    let with = |change: fn(&mut Capabilities)| {
        let mut c = haswell();
        change(&mut c);
        c
    };
    let cpus: &[Lacking] = &[
        (
            "firmware locked VMX off",
            with(|c| c.feature_control = LOCKED),
            &["locked", "VT-x", "set-up"],
        ),
        (
            "the first CPUs with VMX",
            with(|c| c.basic &= !(1 << 55)),
            &["first kind"],
        ),
        (
            "Core 2 (Penryn): no EPT, no VPID",
            without(haswell(), 0xff),
            &["no EPT"],
        ),
        (
            "Lynnfield: no unrestricted guests",
            without(haswell(), secondary::UNRESTRICTED),
            &["unrestricted"],
        ),
        ("no VPID", without(haswell(), secondary::VPID), &["no VPID"]),
        ("no WBINVD exits", without(haswell(), 1 << 6), &["WBINVD"]),
        (
            "no large pages in EPT",
            with(|c| c.ept_vpid &= !(1 << 16)),
            &["2 MiB"],
        ),
        (
            "Arrandale: no 1 GiB pages in EPT",
            with(|c| c.ept_vpid &= !(1 << 17)),
            &["1 GiB"],
        ),
        ("no INVEPT", with(|c| c.ept_vpid &= !(1 << 25)), &["INVEPT"]),
        (
            "no INVVPID",
            with(|c| c.ept_vpid &= !(1 << 42)),
            &["INVVPID"],
        ),
        (
            "CR3 loads always exit",
            with(|c| c.primary |= 1 << 15),
            &["forces exits"],
        ),
        (
            "no virtual NMIs",
            with(|c| c.pin &= !(1 << (32 + 5))),
            &["virtual NMIs"],
        ),
    ];
    for (cpu, capabilities, words) in cpus {
        let why = capabilities.controls().expect_err(cpu);
        for word in *words {
            assert!(why.contains(word), "{cpu}: {why:?} does not say {word:?}");
        }
    }
}

/// SeaBIOS and coreboot may leave the register 0: the core sets it.
#[test]
fn an_unlocked_feature_control_is_no_obstacle() {
    for feature_control in [0, VMX_ENABLED] {
        let unlocked = Capabilities {
            feature_control,
            ..haswell()
        };
        assert_eq!(unlocked.controls(), haswell().controls());
    }
}

proptest! {
    /// Table 25-? of the SDM: a control may be 1 only if its bit in the high half is, and must be if
    /// its bit in the low half is.
    #[test]
    fn controls_obey_the_capabilities(words in prop::array::uniform6(any::<u64>()), sparse: bool) {
        let mut c = haswell();
        let [pin, primary, secondary, exit, entry, ept] = words;
        // Take only a few things away, so that some can still run.
        let keep = |word: u64, noise: u64| {
            let noise = if sparse { noise & noise >> 9 & noise >> 21 & noise >> 33 } else { noise };
            word & !(noise << 32)
        };
        c.pin = keep(c.pin, pin);
        c.primary = keep(c.primary, primary);
        c.secondary = keep(c.secondary, secondary);
        c.exit = keep(c.exit, exit);
        c.entry = keep(c.entry, entry);
        c.ept_vpid = keep(c.ept_vpid, ept);
        if let Ok(chosen) = c.controls() {
            for (word, capability) in [
                (chosen.pin, c.pin), (chosen.primary, c.primary), (chosen.secondary, c.secondary),
                (chosen.exit, c.exit), (chosen.entry, c.entry),
            ] {
                // A CPU that forces what it does not allow does not exist.
                let (forced, allowed) = (capability as u32, (capability >> 32) as u32);
                prop_assert_eq!(word & !(allowed | forced), 0);
                prop_assert_eq!(word & forced, forced);
            }
        }
    }

    #[test]
    fn any_exit_decodes_to_a_length_its_words_said(reason in 0u64..0x1_0000, words in prop::array::uniform5(any::<u64>())) {
        let decoded = decode(reason, |word| words[word as usize]);
        if let Decoded::Report(what) = decoded {
            prop_assert!(what.length == 0 || what.length == words[Word::Length as usize]);
            prop_assert!(Exit::from_raw(what.exit as u64) == Some(what.exit));
        }
    }

    #[test]
    fn io_details_survive(port: u16, size in 0u32..3, input: bool, string: bool, rep: bool, length in 1u64..16) {
        let size = (1u64 << size) - 1;
        let qualification = u64::from(port) << 16 | size | u64::from(input) << 3
            | u64::from(string) << 4 | u64::from(rep) << 5;
        let what = report(30, |word| match word {
            Word::Qualification => qualification,
            Word::Length => length,
            _ => panic!("{word:?} is not needed"),
        });
        prop_assert_eq!(what.exit, Exit::Io);
        let word = what.info[0];
        prop_assert_eq!(word & 0xffff, u64::from(port));
        prop_assert_eq!(word >> 16 & 0xff, size + 1);
        prop_assert_eq!(word & io::IN != 0, input);
        prop_assert_eq!(word & io::STRING != 0, string);
        prop_assert_eq!(word & io::REP != 0, rep);
        prop_assert_eq!((what.length, what.mode), (length, string));
    }

    #[test]
    fn an_msr_has_a_bit_of_its_own_for_each_direction(number in prop_oneof![
        0u32..0x3000, 0xbfff_f000u32..0xc000_3000, any::<u32>()
    ]) {
        let map = msr_bitmap();
        match read_bit(number) {
            None => prop_assert!(!PASSED.contains(&number) && !READABLE.contains(&number)),
            Some((byte, mask)) => {
                prop_assert!(byte < 0x800 && mask.count_ones() == 1);
                let read = map[byte] & mask == 0;
                let write = map[byte + 0x800] & mask == 0;
                prop_assert_eq!(write, PASSED.contains(&number));
                prop_assert_eq!(read, write || READABLE.contains(&number));
            }
        }
    }

    #[test]
    fn a_segment_that_an_entry_takes_comes_back_the_same(
        selector: u16, attributes in 0u16..0x1000, limit: u32, base: u64,
    ) {
        let given = Segment::new(selector, attributes, limit, base);
        let rights = access_rights(given, Use::Memory);
        let back = segment(selector.into(), rights.into(), limit.into(), base);
        prop_assert_eq!((back.selector(), back.limit(), back.base), (selector, limit, base));
        // Accessed and S are set, and G goes with the limit; the rest is as it was given.
        prop_assert_eq!((back.attributes() ^ attributes) & !0x811, 0);
        // What an entry asks of a segment that can be used (SDM vol. 3, 27.3.1.2).
        if attributes & 0x80 != 0 {
            prop_assert_eq!(rights & 0x1_0f11, 0x11);
            let granular = rights & 1 << 15 != 0;
            prop_assert!(limit >> 20 == 0 || granular);
            prop_assert!(limit & 0xfff == 0xfff || !granular || limit >> 20 != 0);
        } else {
            prop_assert!(rights & 1 << 16 != 0);
        }
    }

    /// SDM vol. 3, 27.2.1.3.
    #[test]
    fn an_injection_passes_the_entrys_own_checks(value: u64, registers: u64) {
        let Ok(event) = sanitise::inject(value | event::VALID) else { return Ok(()) };
        let Injection { info, error, software } = injection(event, registers);
        let (vector, kind) = (info & 0xff, info >> 8 & 7);
        prop_assert!(matches!(kind, 0 | 2 | 3 | 4 | 6), "type {}", kind);
        prop_assert!(kind != 2 || vector == 2);
        prop_assert!(kind != 3 || vector < 32);
        prop_assert_eq!(info & 0x7fff_f000, 0);
        prop_assert_eq!(software, kind >= 4);
        let coded = kind == 3 && matches!(vector, 8 | 10..=14 | 17) && registers & cr0::PE != 0;
        prop_assert_eq!(info & 1 << 11 != 0, coded);
        prop_assert_eq!(error & if coded { !0x7fff } else { !0 }, 0);
    }

    #[test]
    fn the_guest_sees_the_cr0_that_was_set(value: u64) {
        let value = value & cr0::DEFINED | cr0::ET;
        let actual = guest_cr0(value);
        prop_assert_eq!(seen(actual, value, CR0_OWNED), value);
        prop_assert_eq!(actual & (cr0::CD | cr0::NW | 1 << 5), 1 << 5);
    }
}

fn report(reason: u64, read: impl Fn(Word) -> u64) -> Report {
    match decode(reason, read) {
        Decoded::Report(report) => report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cpuid_exit_asks_for_one_word() {
    let reads = Cell::new(0);
    let what = report(10, |word| {
        reads.set(reads.get() + 1);
        assert_eq!(word, Word::Length);
        2
    });
    assert_eq!((what.exit, what.length, what.mode), (Exit::Cpuid, 2, false));
    assert_eq!(reads.get(), 1);
}

#[test]
fn an_external_interrupt_asks_for_none() {
    let decoded = decode(EXTERNAL_INTERRUPT, |word| panic!("{word:?}"));
    assert_eq!(decoded, Decoded::Host);
}

#[test]
fn ept_violations_tell_what_the_access_was() {
    let flags = |qualification| {
        let what = report(EPT_VIOLATION, |word| match word {
            Word::Qualification => qualification,
            Word::Physical => 0xfee0_0030,
            _ => panic!("{word:?}"),
        });
        assert_eq!((what.exit, what.length), (Exit::NestedFault, 0));
        assert_eq!(what.info[0], 0xfee0_0030);
        what.info[1]
    };
    // Linear address known, and translated to this one: bits 7 and 8.
    assert_eq!(flags(1 | 0x180), fault::READ);
    assert_eq!(flags(2 | 0x180), fault::WRITE);
    assert_eq!(flags(4 | 0x180), fault::FETCH);
    // A write to what can be read.
    assert_eq!(flags(2 | 1 << 3 | 0x180), fault::WRITE | fault::PRESENT);
    // The walk itself sets an accessed bit: read and write at once.
    assert_eq!(flags(3 | 1 << 7), fault::WRITE | fault::WALK);
}

#[test]
fn instructions_that_a_guest_does_not_have_are_undefined() {
    // GETSEC, RSM, VMCLEAR to VMXON, INVEPT, INVVPID, VMFUNC, ENCLS, XSAVES, XRSTORS.
    for reason in [
        11, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 50, 53, 59, 60, 63, 64,
    ] {
        assert_eq!(
            report(reason, |_| 3).exit,
            Exit::Undefined,
            "reason {reason}"
        );
    }
    assert_eq!(report(18, |_| 3).exit, Exit::Hypercall, "VMCALL");
}

#[test]
fn exceptions_that_exit_are_the_hosts_or_go_back() {
    let exception = |information| {
        decode(0, |word| match word {
            Word::Interruption => information | 1 << 31,
            Word::Qualification => 0x4000,
            Word::ErrorCode => 0,
            _ => panic!("{word:?}"),
        })
    };
    assert_eq!(exception(2 << 8 | 2), Decoded::Nmi);
    assert_eq!(exception(3 << 8 | 18), Decoded::MachineCheck);
    let step = 3 << 8 | 1;
    assert_eq!(exception(step), Decoded::Debug(0x4000, step | 1 << 31));
    assert_eq!(exception(3 << 8 | 17), Decoded::Alignment(0));
}

#[test]
fn the_state_after_reset_has_segments_that_an_entry_takes() {
    assert_eq!(access_rights(reset::CS, Use::Memory), 0x9b);
    assert_eq!(access_rights(reset::DATA, Use::Memory), 0x93);
    assert_eq!(access_rights(reset::LDTR, Use::Local), 0x82);
    assert_eq!(access_rights(reset::TR, Use::Task), 0x8b);
    // TR: one that can be used, and busy, whatever the VMM has.
    for (attributes, rights) in [
        (0, 0x8b),
        (0x89, 0x8b),
        (0x81, 0x83),
        (0x83, 0x83),
        (0x82, 0x8b),
    ] {
        let task = Segment::new(0, attributes, 0x67, 0);
        assert_eq!(access_rights(task, Use::Task), rights, "{attributes:#x}");
    }
}
