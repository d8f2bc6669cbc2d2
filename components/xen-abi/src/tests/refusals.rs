//! Hypercalls that are not for this domain, console output, `vm_assist`.

use super::harness::*;
use crate::domain::number;
use crate::*;

#[test]
fn control_interfaces_check_version_then_privilege() {
    let mut guest = Guest::new(1);
    for (call, version) in [
        (number::SYSCTL, 0x15),
        (number::DOMCTL, 0x15),
        (number::PLATFORM_OP, 0x0300_0001),
    ] {
        assert_eq!(guest.call(call, &[0xdead_0000]), error(Errno::Fault));
        guest.put_u32s(ARG, &[2, version - 1, u32::from(OWN)]);
        assert_eq!(guest.call(call, &[ARG]), error(Errno::Acces));
        guest.put_u32s(ARG, &[2, version, u32::from(OWN)]);
        assert_eq!(guest.call(call, &[ARG]), error(Errno::Perm));
    }
    guest.put_u32s(ARG, &[2, 0x15, u32::from(STRANGER)]);
    assert_eq!(guest.call(number::DOMCTL, &[ARG]), error(Errno::Srch));
    guest.put_u32s(ARG, &[1, 0x15, 0]);
    assert_eq!(guest.call(number::DOMCTL, &[ARG]), error(Errno::Perm));
}

/// A domctl: command, domain, then its arguments as 64-bit words.
fn domctl(guest: &mut Guest, command: u32, domid: u16, words: &[u64]) -> i64 {
    guest.put(ARG, &[0; 144]);
    guest.put_u32s(ARG, &[command, 0x15, u32::from(domid)]);
    guest.put_u64s(ARG + 16, words);
    guest.call(number::DOMCTL, &[ARG])
}

#[test]
fn domctls_find_the_domain_then_bad_arguments_then_no_privilege() {
    const INVALID: u16 = 0x7ff4;
    const IO: u16 = 0x7ff1;
    let low_high = |low: u64, high: u64| low | high << 32;
    let cases: &[(u32, u16, &[u64], Errno)] = &[
        // getdomaininfo: reserved numbers are none; one below the caller's is answered for the
        // next domain there is.
        (5, SELF, &[], Errno::Inval),
        (5, STRANGER, &[], Errno::Srch),
        (5, OWN - 1, &[], Errno::Perm),
        (5, OWN, &[], Errno::Perm),
        // Ranges that wrap, are empty, or go past the end: I/O memory, ports, interrupts.
        (20, OWN, &[u64::MAX, 2], Errno::Inval),
        (20, OWN, &[u64::MAX, 1], Errno::Perm),
        (20, STRANGER, &[u64::MAX, 2], Errno::Srch),
        (21, OWN, &[low_high(5, 0)], Errno::Inval),
        (21, OWN, &[low_high(0xffff, 1)], Errno::Perm),
        (21, OWN, &[low_high(0xffff, 2)], Errno::Inval),
        (19, OWN, &[55], Errno::Perm),
        (19, OWN, &[56], Errno::Inval),
        // memory_mapping: guest frame, machine frame, count. There are 40 bits of address.
        (39, OWN, &[0, (1 << 28) - 1, 1], Errno::Perm),
        (39, OWN, &[0, (1 << 28) - 1, 2], Errno::Inval),
        (39, OWN, &[u64::MAX, 0, 2], Errno::Inval),
        (39, OWN, &[0, 5, 0], Errno::Inval),
        // ioport_mapping: guest port, machine port, count; domain 0 is no HVM domain.
        (40, OWN, &[low_high(0, 0xfff0), 16], Errno::Perm),
        (40, OWN, &[low_high(0, 0xfff0), 17], Errno::Inval),
        (40, OWN, &[0, 0], Errno::Inval),
        (40, 0, &[0, 0], Errno::OpNotSupp),
        (38, 0, &[], Errno::Inval),
        (48, OWN, &[], Errno::Perm),
        // set_target: the target is looked for first.
        (46, OWN, &[STRANGER.into()], Errno::Srch),
        (46, OWN, &[OWN.into()], Errno::Inval),
        (46, OWN, &[0], Errno::OpNotSupp),
        (46, 0, &[OWN.into()], Errno::Perm),
        (50, OWN, &[], Errno::OpNotSupp),
        // Devices without an owner are DOMID_IO's; a test may name no domain.
        (37, IO, &[], Errno::Perm),
        (37, INVALID, &[], Errno::Srch),
        (45, INVALID, &[], Errno::Perm),
        (56, INVALID, &[0], Errno::Srch),
        (56, OWN, &[0], Errno::Perm),
        (56, STRANGER, &[3], Errno::Srch),
    ];
    let mut guest = Guest::new(1);
    for &(command, domid, words, errno) in cases {
        let reply = domctl(&mut guest, command, domid, words);
        assert_eq!(reply, error(errno), "{command} {domid:#x} {words:x?}");
    }
    // The version of vm_event is told to anybody.
    for domid in [OWN, 0, INVALID] {
        assert_eq!(domctl(&mut guest, 56, domid, &[3, 9]), 0);
        assert_eq!(guest.u32(ARG + 24), 7);
    }
}

#[test]
fn only_a_shadow_operation_is_continued() {
    let mut guest = Guest::new(1);
    let call = |guest: &mut Guest, command, version, domid: u16| {
        guest.put_u32s(ARG, &[command, version, domid.into()]);
        guest.call(number::PAGING_DOMCTL_CONT, &[ARG])
    };
    assert_eq!(call(&mut guest, 2, 0x15, OWN), error(Errno::OpNotSupp));
    assert_eq!(call(&mut guest, 10, 0x14, OWN), error(Errno::OpNotSupp));
    assert_eq!(call(&mut guest, 10, 0x15, SELF), error(Errno::Srch));
    assert_eq!(call(&mut guest, 10, 0x15, OWN), error(Errno::Perm));
    assert_eq!(
        guest.call(number::PAGING_DOMCTL_CONT, &[0xdead_0000]),
        error(Errno::Fault)
    );
}

#[test]
fn device_model_and_file_system_operations_are_refused() {
    let mut guest = Guest::new(1);
    guest.put(ARG, &[0; 32]);
    for (domid, buffers, list, errno) in [
        (OWN, 1, ARG, Errno::Perm),
        (SELF, 2, ARG, Errno::Srch),
        (STRANGER, 1, ARG, Errno::Srch),
        (0, 1, ARG, Errno::Inval),
        (OWN, 0, 0, Errno::NoData),
        (OWN, 3, ARG, Errno::TooBig),
        (OWN, 1, 0xdead_0000, Errno::Fault),
    ] {
        let reply = guest.call(number::DM_OP, &[u64::from(domid), buffers, list]);
        assert_eq!(reply, error(errno));
    }
    assert_eq!(guest.call(number::HYPFS_OP, &[0]), error(Errno::Perm));
}

#[test]
fn performance_counters_are_not_xens_for_a_domain_with_an_apic() {
    let mut guest = Guest::new(1);
    assert_eq!(
        guest.call(number::XENPMU_OP, &[0, ARG]),
        error(Errno::OpNotSupp)
    );
}

#[test]
fn page_table_operations_are_for_pv() {
    let mut guest = Guest::new(1);
    for (dom, errno) in [
        (SELF, Errno::Inval),
        (0x7ff1, Errno::Perm),
        (0, Errno::Perm),
        (STRANGER, Errno::Srch),
    ] {
        let reply = guest.call(number::MMUEXT_OP, &[ARG, 1, 0, u64::from(dom)]);
        assert_eq!(reply, error(errno));
    }
}

#[test]
fn physical_interrupt_operations_are_refused() {
    let mut guest = Guest::new(1);
    guest.put(ARG, &[0; 32]);
    guest.put(ARG, &SELF.to_le_bytes());
    for operation in 0..32 {
        let reply = guest.call(number::PHYSDEV_OP, &[operation, ARG]);
        assert_eq!(reply, error(Errno::NoSys), "{operation}");
    }
}

#[test]
fn hypercalls_outside_an_hvm_domains_table_do_not_exist() {
    let mut guest = Guest::new(1);
    let absent = [
        0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 14, 16, 19, 22, 23, 25, 28, 30, 31, 37, 38, 39,
    ];
    for call in absent
        .into_iter()
        .chain(43..49)
        .chain(50..64)
        .chain([u64::MAX, 1 << 32 | 17])
    {
        assert_eq!(guest.call(call, &[]), error(Errno::NoSys), "{call}");
    }
}

#[test]
fn console_gets_printable_text_only() {
    let mut guest = Guest::new(1);
    guest.put(LIST, b"a\x1b[2Jb\tc\r\n\xff");
    assert_eq!(guest.call(number::CONSOLE_IO, &[0, 11, LIST]), 0);
    assert_eq!(guest.effects(), [Effect::Console(b"a[2Jb\tc\n".to_vec())]);
    assert_eq!(
        guest.call(number::CONSOLE_IO, &[0, 1, 0xdead_0000]),
        error(Errno::Fault)
    );
    assert_eq!(
        guest.call(number::CONSOLE_IO, &[1, 1, LIST]),
        error(Errno::Perm)
    );
    assert_eq!(
        guest.call(number::CONSOLE_IO, &[2, 1, LIST]),
        error(Errno::Perm)
    );
}

#[test]
fn long_console_output_is_preempted_and_finishes() {
    let mut guest = Guest::new(1);
    guest.put(0x8000, &[b'x'; 5000]);
    assert_eq!(
        guest.call_to_end(number::CONSOLE_IO, &[0, 5000, 0x8000]),
        (0, 4)
    );
}

#[test]
fn vm_assist_knows_the_runstate_flag_only() {
    let mut guest = Guest::new(1);
    for (command, kind, reply) in [
        (0, 5, 0),
        (1, 5, 0),
        (2, 5, error(Errno::NoSys)),
        (0, 4, error(Errno::Inval)),
        (0, 64, error(Errno::Inval)),
    ] {
        assert_eq!(guest.call(number::VM_ASSIST, &[command, kind]), reply);
    }
}
