//! `xen_version`.

use super::harness::*;
use crate::domain::number::XEN_VERSION;
use crate::*;

#[test]
fn version_is_4_17_in_both_widths() {
    assert_eq!(Guest::new(1).call(XEN_VERSION, &[0, 0]), 4 << 16 | 17);
    assert_eq!(Guest::new_32(1).call(XEN_VERSION, &[0, 0]), 4 << 16 | 17);
}

#[test]
fn texts_fill_their_fields() {
    let mut guest = Guest::new(1);
    for (operation, size, start) in [
        (1, 16, ".0-microvisor"),
        (2, 144, "rustc"),
        (3, 1024, "xen-3.0-x86_64 xen-3.0-x86_32p hvm-3.0-x86_32 "),
        (4, 64, "unavailable"),
    ] {
        guest.put(ARG, &[0xee; 2048]);
        assert_eq!(guest.call(XEN_VERSION, &[operation, ARG]), 0);
        let text = guest.bytes::<2048>(ARG);
        assert!(text.starts_with(start.as_bytes()));
        assert_eq!(
            (text[size - 1], text[size]),
            (0, 0xee),
            "operation {operation}"
        );
    }
}

#[test]
fn features_are_those_of_a_translated_hvm_domain() {
    let mut guest = Guest::new(1);
    guest.put_u32s(ARG, &[0, 0]);
    assert_eq!(guest.call(XEN_VERSION, &[6, ARG]), 0);
    let features = guest.u32(ARG + 4);
    for (bit, set) in [
        (0, true),
        (1, false),
        (2, true),
        (8, true),
        (9, true),
        (10, false),
        (11, false),
    ] {
        assert_eq!(features >> bit & 1 != 0, set, "feature {bit}");
    }
    guest.put_u32s(ARG, &[1, 0]);
    assert_eq!(guest.call(XEN_VERSION, &[6, ARG]), error(Errno::Inval));
}

#[test]
fn platform_parameters_have_the_callers_width() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.call(XEN_VERSION, &[5, ARG]), 0);
    assert_eq!(guest.u64(ARG), 0xffff_8000_0000_0000);
    let mut guest = Guest::new_32(1);
    guest.put_u64s(ARG, &[u64::MAX]);
    assert_eq!(guest.call(XEN_VERSION, &[5, ARG]), 0);
    assert_eq!(guest.u64(ARG), 0xffff_ffff_0000_0000);
}

#[test]
fn page_size_and_handle_are_open_command_line_and_build_id_are_not() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.call(XEN_VERSION, &[7, 0]), 4096);
    assert_eq!(guest.call(XEN_VERSION, &[7, ARG]), error(Errno::Inval));
    assert_eq!(guest.call(XEN_VERSION, &[8, ARG]), 0);
    assert_eq!(&guest.bytes::<16>(ARG), b"0123456789abcdef");
    assert_eq!(guest.call(XEN_VERSION, &[9, ARG]), 0);
    assert_eq!(&guest.bytes::<9>(ARG), b"<denied>\0");
    assert_eq!(guest.call(XEN_VERSION, &[10, 0]), error(Errno::Perm));
    assert_eq!(guest.call(XEN_VERSION, &[11, 0]), error(Errno::NoSys));
}

#[test]
fn unmapped_buffers_fault() {
    let mut guest = Guest::new(1);
    for operation in [1, 2, 3, 4, 5, 6, 8, 9] {
        let reply = guest.call(XEN_VERSION, &[operation, 0xdead_0000]);
        assert_eq!(reply, error(Errno::Fault), "operation {operation}");
    }
}

#[test]
fn only_the_kernel_may_call() {
    let mut guest = Guest::new(1);
    for (mode, cpl, answer) in [
        (Mode::Bits64, 3, error(Errno::Perm) as u64),
        (Mode::Bits64, 0, 0x4_0011),
        (Mode::Bits32, 3, error(Errno::Perm) as u64 & 0xffff_ffff),
        (Mode::Vm86, 3, error(Errno::Perm) as u64 & 0xffff_ffff),
        (Mode::Real, 0, 0x4_0011),
    ] {
        let registers = Registers {
            number: XEN_VERSION,
            arguments: [0; 6],
            mode,
            cpl,
            interrupts: true,
        };
        let outcome = guest
            .domain
            .hypercall(0, &registers, &guest.memory, &mut guest.env);
        assert_eq!(outcome.result, answer, "{mode:?} {cpl}");
    }
}

#[test]
fn what_is_answered_without_the_domain_is_what_the_domain_answers() {
    let mut guest = Guest::new(1);
    let numbers = (0..70).chain([1 << 31, 1 << 32 | XEN_VERSION, u64::MAX]);
    for (number, command) in numbers.flat_map(|number| {
        (0..12)
            .chain([1 << 32, u64::MAX])
            .map(move |command| (number, command))
    }) {
        let Some(result) = stateless(number, command) else {
            assert!(number <= 49, "call {number}");
            continue;
        };
        let outcome = guest.outcome(number, &[command]);
        let next = Next::Continue;
        assert_eq!(outcome, Outcome { result, next }, "call {number} {command}");
        assert!(guest.env.effects.is_empty());
    }
    assert!(stateless(XEN_VERSION, 0).is_some());
    assert_eq!(stateless(XEN_VERSION, 6), None);
}
