//! Which mitigations are chosen, for CPUs that exist. Vendor, family, model, stepping and most words are
//! those of the models of QEMU 10.0 (`target/i386/cpu.c`, as its `query-cpu-model-expansion` answers),
//! which tell what such a CPU has; where a row says "microcode", the bits that updates added are set as
//! Intel's documents about MDS, L1TF, TAA, GDS and RFDS and AMD's about BTC and SRSO have them. What is
//! expected was worked out by hand from the rules of Xen 4.20 for a build without retpolines.

use microvisor_vcpu_state::speculation::{Cpu, Mitigations, Vendor, Words, edge::*, exposed};
use proptest::prelude::*;

const SPEC_CTRL: u32 = 0x48;
const EFER: u32 = 0xc000_0080;
const DE_CFG: u32 = 0xc001_1029;
const TSX_CTRL: u32 = 0x122;
const MCU_OPT_CTRL: u32 = 0x123;
/// SMEP in leaf 7, EBX.
const SMEP: u32 = 1 << 7;
/// Leaf 7, EDX: VERW, IBRS, STIBP, L1D flush, SSBD.
const MICROCODE: u32 = 0x9c00_0400;
const CAPABILITIES: u32 = 1 << 29;

fn signature(family: u32, model: u32, stepping: u32) -> u32 {
    let (low, high) = (family.min(0xf), family.saturating_sub(0xf));
    high << 20 | (model >> 4) << 16 | low << 8 | (model & 0xf) << 4 | stepping
}

fn intel(model: u32, stepping: u32, edx7: u32, capabilities: u64) -> Cpu {
    Cpu {
        vendor: Vendor::Intel,
        signature: signature(6, model, stepping),
        leaf7: [SMEP, edx7],
        capabilities,
        ..Cpu::default()
    }
}

fn amd(family: u32, model: u32, ext8: u32, ext21: u32) -> Cpu {
    Cpu {
        vendor: Vendor::Amd,
        signature: signature(family, model, 0),
        leaf7: [SMEP, 0],
        ext8,
        ext21,
        ..Cpu::default()
    }
}

struct Row {
    name: &'static str,
    cpu: Cpu,
    guest: u32,
    user: u32,
    /// SPEC_CTRL inside and outside.
    spec_ctrl: [u32; 2],
    /// Registers that are set once, SPEC_CTRL aside.
    registers: &'static [(u32, u64, u64)],
    exposed: u32,
}

fn rows() -> Vec<Row> {
    let lfence = &[(DE_CFG, 0, 2)];
    let row = |name, cpu, guest, user, spec_ctrl, registers, exposed| Row {
        name,
        cpu,
        guest,
        user,
        spec_ctrl,
        registers,
        exposed,
    };
    let without_smep = |cpu: Cpu| Cpu {
        leaf7: [0, cpu.leaf7[1]],
        ..cpu
    };
    let history = |cpu: Cpu, leaf7_2| Cpu { leaf7_2, ..cpu };
    vec![
        row(
            "Nehalem, first microcode with IBRS",
            without_smep(intel(0x1a, 3, 1 << 26, 0)),
            FILL | IBRS | SWITCH,
            FILL | IBRS | SWITCH,
            [1, 0],
            &[],
            exposed::MELTDOWN | exposed::BUFFERS | exposed::L1TF,
        ),
        row(
            "Haswell as it came",
            intel(0x3c, 4, 0, 0),
            FILL,
            0,
            [0, 0],
            &[],
            exposed::MELTDOWN | exposed::TARGETS | exposed::BUFFERS | exposed::L1TF,
        ),
        row(
            "Haswell, last microcode, with SRBDS_CTRL",
            intel(0x3c, 3, MICROCODE | 1 << 9, 0),
            FILL | IBRS | VERW | L1D | SWITCH,
            IBRS | VERW | SWITCH,
            [3, 0],
            &[(MCU_OPT_CTRL, 1, 0)],
            exposed::MELTDOWN,
        ),
        row(
            "Skylake-SP, microcode before GDS",
            intel(0x55, 4, MICROCODE, 0),
            FILL | IBRS | VERW | L1D | SWITCH,
            IBRS | VERW | SWITCH,
            [3, 0],
            &[],
            exposed::MELTDOWN | exposed::GATHER,
        ),
        row(
            "Skylake client, last microcode: RSBA, GDS_CTRL",
            intel(0x5e, 3, MICROCODE | CAPABILITIES, 1 << 2 | 1 << 25),
            FILL | IBRS | VERW | L1D | SWITCH,
            IBRS | VERW | SWITCH,
            [3, 0],
            &[(MCU_OPT_CTRL, 1 << 4, 0)],
            exposed::MELTDOWN,
        ),
        row(
            "Cascade Lake, microcode with TSX_CTRL",
            intel(0x55, 6, MICROCODE | CAPABILITIES, 0xab),
            FILL | HISTORY | SWITCH,
            HISTORY | SWITCH,
            [3, 3],
            &[(TSX_CTRL, 0, 3)],
            exposed::GATHER,
        ),
        row(
            "Cooper Lake: TAA_NO",
            intel(0x55, 10, 0xac00_0000, 0x16b),
            FILL | HISTORY | SWITCH,
            HISTORY | SWITCH,
            [3, 3],
            &[],
            exposed::GATHER,
        ),
        row(
            "Ice Lake-SP, microcode: FB_CLEAR, GDS_CTRL",
            intel(0x6a, 6, 0xa400_0000, 0x16b | 1 << 17 | 1 << 25),
            FILL | HISTORY | VERW | SWITCH,
            HISTORY | VERW | SWITCH,
            [1, 1],
            &[(MCU_OPT_CTRL, 1 << 4, 0)],
            0,
        ),
        row(
            "Sapphire Rapids, BHI_CTRL hidden",
            intel(0x8f, 4, 0xa400_0000, 0xe16b),
            FILL | HISTORY | SWITCH,
            HISTORY | SWITCH,
            [1, 1],
            &[],
            0,
        ),
        row(
            "Sapphire Rapids",
            history(intel(0x8f, 4, 0xa400_0000, 0xe16b), 1 << 4),
            FILL | SWITCH,
            SWITCH,
            [0x401, 0x401],
            &[],
            0,
        ),
        row(
            "Sierra Forest",
            history(intel(0xaf, 3, 0xa400_0000, 0xd00_e06b), 0x36),
            FILL | SWITCH,
            SWITCH,
            [0x401, 0x401],
            &[],
            0,
        ),
        row(
            "Clearwater Forest: BHI_NO",
            history(intel(0xdd, 0, 0xa400_0000, 0xd10_e06b), 0x3e),
            FILL | SWITCH,
            SWITCH,
            [1, 1],
            &[],
            0,
        ),
        row(
            "Alder Lake-N, microcode: RFDS_CLEAR",
            history(intel(0xbe, 0, 0xa400_0000, 0x100_e16b | 1 << 28), 1 << 4),
            FILL | VERW | SWITCH,
            VERW | SWITCH,
            [0x401, 0x401],
            &[],
            0,
        ),
        row(
            "Bay Trail, microcode: half a return stack",
            intel(0x37, 8, 0x0c00_0400, 0),
            FILL | IBRS | VERW | SWITCH,
            FILL | IBRS | VERW | SWITCH,
            [3, 0],
            &[],
            exposed::MELTDOWN,
        ),
        row(
            "Denverton",
            intel(0x5f, 1, 0xa400_0000, 9),
            FILL | IBRS | SWITCH,
            IBRS | SWITCH,
            [1, 0],
            &[],
            exposed::BUFFERS,
        ),
        row(
            "Opteron 6300",
            without_smep(amd(0x15, 2, 0, 0)),
            FILL,
            FILL,
            [0, 0],
            lfence,
            exposed::TARGETS,
        ),
        row(
            "EPYC 7001 (Zen 1)",
            amd(0x17, 1, 0x1000, 0),
            IBPB | FILL | SWITCH,
            SWITCH,
            [0, 0],
            lfence,
            exposed::TARGETS | exposed::DIVIDER,
        ),
        row(
            "EPYC 7002 (Zen 2)",
            amd(0x17, 0x31, 0x100_d000, 0),
            IBPB | FILL | IBRS | SWITCH,
            IBRS | SWITCH,
            [3, 2],
            lfence,
            0,
        ),
        row(
            "EPYC 7003 (Zen 3)",
            amd(0x19, 1, 0x1102_d000, 0x45),
            IBPB | FILL | IBRS | SWITCH,
            IBRS | SWITCH,
            [3, 2],
            &[],
            0,
        ),
        row(
            "EPYC 9004 (Zen 4)",
            amd(0x19, 0x11, 0x1102_d000, 0x145),
            IBPB | FILL | SWITCH,
            SWITCH,
            [2, 2],
            &[(EFER, 0, 1 << 21)],
            0,
        ),
        row(
            "Zen 5: BTC_NO, SRSO_NO",
            amd(0x1a, 2, 0x3102_d000, 0x2000_0145),
            FILL | SWITCH,
            SWITCH,
            [2, 2],
            &[(EFER, 0, 1 << 21)],
            0,
        ),
        row(
            "QEMU's max without acceleration",
            amd(6, 6, 0, 0),
            0,
            0,
            [0, 0],
            &[],
            0,
        ),
        row(
            "another vendor",
            Cpu {
                vendor: Vendor::Other,
                ..intel(0x3b, 0, 0x0c00_0000, 0)
            },
            FILL | IBRS | SWITCH,
            IBRS | SWITCH,
            [3, 0],
            &[],
            0,
        ),
    ]
}

#[test]
fn every_cpu_gets_what_its_bugs_need() {
    for row in rows() {
        let found = row.cpu.mitigations();
        let got = format!("{}: {found:x?}", row.name);
        assert_eq!(found.guest, row.guest, "guests, {got}");
        assert_eq!(found.user, row.user, "components, {got}");
        assert_eq!([found.inside, found.outside], row.spec_ctrl, "{got}");
        assert_eq!(found.exposed, row.exposed, "exposed, {got}");
        let mut set = found.registers.to_vec();
        set.retain(|(number, ..)| ![0, SPEC_CTRL].contains(number));
        assert_eq!(set, row.registers, "{got}");
        let spec_ctrl = found
            .registers
            .iter()
            .find(|(number, ..)| *number == SPEC_CTRL);
        match spec_ctrl {
            Some(&(_, clear, set)) => {
                assert_eq!((clear, set), (u64::MAX, row.spec_ctrl[0].into()), "{got}");
            }
            None => assert_eq!(row.spec_ctrl, [0, 0], "{got}"),
        }
    }
}

#[test]
fn the_log_names_what_is_chosen() {
    assert_eq!(Words(0, NAMES).to_string(), "nothing");
    assert_eq!(
        Words(FILL | SWITCH, NAMES).to_string(),
        "RSB filling, IBPB on switches"
    );
    assert_eq!(
        Words(exposed::MELTDOWN, exposed::NAMES).to_string(),
        "Meltdown"
    );
    assert_eq!(NAMES.len(), SWITCH.trailing_zeros() as usize + 1);
    assert_eq!(
        exposed::NAMES.len(),
        exposed::DIVIDER.trailing_zeros() as usize + 1
    );
}

fn any_cpu() -> impl Strategy<Value = Cpu> {
    let vendor = prop_oneof![Just(Vendor::Intel), Just(Vendor::Amd), Just(Vendor::Other)];
    let words = any::<(u32, [u32; 2], u32, u32, u32, u64)>();
    (vendor, words).prop_map(
        |(vendor, (signature, leaf7, leaf7_2, ext8, ext21, capabilities))| Cpu {
            vendor,
            signature,
            leaf7,
            leaf7_2,
            ext8,
            ext21,
            capabilities,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Writing a register or a command that the CPU lacks is a fault at boot, or at every exit.
    #[test]
    fn nothing_is_used_that_the_cpu_does_not_have(cpu in any_cpu()) {
        let Mitigations { guest, user, inside, outside, registers, .. } = cpu.mitigations();
        let [_, edx7] = cpu.leaf7;
        let any = guest | user;
        let ibrs = (edx7 >> 26 | cpu.ext8 >> 14) & 1 != 0;
        let ibpb = (edx7 >> 26 | cpu.ext8 >> 12) & 1 != 0;
        let stibp = (edx7 >> 27 | cpu.ext8 >> 15) & 1 != 0;
        prop_assert!(any & (IBPB | SWITCH) == 0 || ibpb);
        prop_assert!(any & IBRS == 0 || ibrs);
        prop_assert!(any & L1D == 0 || edx7 >> 28 & 1 != 0);
        prop_assert!((inside | outside) & 1 == 0 || ibrs);
        prop_assert!((inside | outside) & 2 == 0 || stibp);
        prop_assert!((inside | outside) & 0x400 == 0 || cpu.leaf7_2 >> 4 & 1 != 0);
        prop_assert!((inside | outside) & !0x403 == 0);
        for (number, ..) in registers {
            match number {
                0 => {}
                SPEC_CTRL => prop_assert!(ibrs || stibp),
                EFER => prop_assert!(cpu.vendor == Vendor::Amd && cpu.ext21 >> 8 & 1 != 0),
                DE_CFG => prop_assert!(cpu.vendor == Vendor::Amd),
                TSX_CTRL => prop_assert!(cpu.capabilities >> 7 & 1 != 0),
                MCU_OPT_CTRL => prop_assert!(edx7 >> 9 & 1 != 0 || cpu.capabilities >> 25 & 1 != 0),
                other => prop_assert!(false, "{other:#x}"),
            }
        }
    }

    /// SPEC_CTRL is written at the edges just where it differs, and then at both edges.
    #[test]
    fn spec_ctrl_is_switched_where_it_differs(cpu in any_cpu()) {
        let found = cpu.mitigations();
        prop_assert_eq!(found.guest & IBRS, found.user & IBRS);
        prop_assert_eq!(found.guest & IBRS != 0, found.inside & 1 != found.outside & 1);
        prop_assert_eq!(found.outside & !found.inside, 0);
    }

    /// A hole is either closed or named.
    #[test]
    fn what_cannot_be_closed_is_named(cpu in any_cpu()) {
        let found = cpu.mitigations();
        let steered = found.inside & 1 == 0
            && !found.registers.iter().any(|(number, ..)| *number == EFER);
        if found != Mitigations::NONE {
            prop_assert_eq!(found.exposed & exposed::TARGETS != 0, steered);
        }
        prop_assert!(cpu.leaf7[1] >> 10 & 1 == 0 || found.exposed & exposed::BUFFERS == 0);
        prop_assert!(found.guest & L1D == 0 || found.exposed & exposed::L1TF == 0);
    }
}
