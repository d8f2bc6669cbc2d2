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
        .chain(43..64)
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
