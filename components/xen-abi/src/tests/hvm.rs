//! `hvm_op`.

use super::harness::*;
use crate::domain::number::HVM_OP;
use crate::hvm::{op, parameter};
use crate::*;

fn set(guest: &mut Guest, dom: u16, index: u32, value: u64) -> i64 {
    guest.put_u32s(ARG, &[u32::from(dom), index]);
    guest.put_u64s(ARG + 8, &[value]);
    guest.call(HVM_OP, &[op::SET_PARAM, ARG])
}

fn get(guest: &mut Guest, index: u32) -> (i64, u64) {
    guest.put_u32s(ARG, &[u32::from(SELF), index]);
    guest.put_u64s(ARG + 8, &[0xbad]);
    let reply = guest.call(HVM_OP, &[op::GET_PARAM, ARG]);
    (reply, guest.u64(ARG + 8))
}

#[test]
fn guest_reads_where_store_and_console_are_but_cannot_move_them() {
    let mut guest = Guest::new(1);
    guest.domain.set_service_ports(3, 4);
    assert_eq!(get(&mut guest, parameter::STORE_PFN), (0, 0x30));
    assert_eq!(get(&mut guest, parameter::CONSOLE_PFN), (0, 0x31));
    assert_eq!(get(&mut guest, parameter::STORE_EVTCHN), (0, 3));
    assert_eq!(get(&mut guest, parameter::CONSOLE_EVTCHN), (0, 4));
    assert_eq!(
        set(&mut guest, SELF, parameter::STORE_PFN, 1),
        error(Errno::Perm)
    );
    assert_eq!(
        set(&mut guest, SELF, parameter::CONSOLE_PFN, 1),
        error(Errno::Perm)
    );
    assert_eq!(set(&mut guest, SELF, parameter::CONSOLE_EVTCHN, 9), 0);
    assert_eq!(get(&mut guest, parameter::CONSOLE_EVTCHN), (0, 9));
}

#[test]
fn every_parameter_has_xens_access_rule_for_oneself() {
    let settable = [0, 2, 15, 18, 34, 36, 37];
    let readable = [0, 1, 2, 15, 17, 18, 19, 34, 35, 36, 37];
    let deprecated = [4, 13, 20, 21, 22, 23, 24, 25, 26, 30];
    for index in 0..39 {
        let mut guest = Guest::new(1);
        let value = if index == 37 { 104 << 32 } else { 0 };
        let rule = |open: &[u32]| {
            if open.contains(&index) {
                0
            } else if deprecated.contains(&index) {
                error(Errno::Inval)
            } else {
                error(Errno::Perm)
            }
        };
        // The PM timer's location may be set where there is a PM timer.
        let expected = if index == 19 {
            error(Errno::NoDev)
        } else {
            rule(&settable)
        };
        assert_eq!(set(&mut guest, SELF, index, value), expected, "set {index}");
        assert_eq!(get(&mut guest, index).0, rule(&readable), "get {index}");
    }
    let mut guest = Guest::new(1);
    assert_eq!(set(&mut guest, SELF, 39, 0), error(Errno::Inval));
    assert_eq!(get(&mut guest, 39).0, error(Errno::Inval));
    assert_eq!(set(&mut guest, STRANGER, 0, 0), error(Errno::Srch));
}

#[test]
fn callback_latches_the_width_of_shared_info() {
    let mut guest = Guest::new(1);
    guest.mode = Mode::Bits32;
    assert_eq!(set(&mut guest, SELF, 0, 2 << 56 | 0xf3), 0);
    assert_eq!(guest.domain.width, Width::Bits32);
    guest.mode = Mode::Bits64;
    assert_eq!(set(&mut guest, SELF, 0, 2 << 56 | 0xf3), 0);
    assert_eq!(guest.domain.width, Width::Bits64);
}

#[test]
fn callback_set_while_events_wait_delivers_them() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi(0);
    guest.event(crate::event::op::SEND, &[port]);
    guest.effects();
    assert_eq!(set(&mut guest, SELF, 0, 2 << 56 | 0xf3), 0);
    assert_eq!(guest.effects(), [Effect::Upcall(0, Upcall::Vector(0xf3))]);
}

#[test]
fn a_tss_that_cannot_be_one_crashes_the_domain() {
    for (index, value) in [
        (parameter::VM86_TSS, 1 << 32),
        (parameter::VM86_TSS_SIZED, 103 << 32),
    ] {
        let mut guest = Guest::new(1);
        assert_eq!(set(&mut guest, SELF, index, value), error(Errno::Inval));
        assert_eq!(guest.effects(), [Effect::Shutdown(ShutdownReason::Crash)]);
    }
}

#[test]
fn callback_lines_are_gsis_and_pci_pins_that_exist() {
    let mut with_lines = config(1);
    with_lines.callback_lines = true;
    let mut guest = Guest::with(with_lines);
    let pin = LegacyLine::PciIntx { device: 3, pin: 2 };
    for (value, line) in [
        (47, Some(LegacyLine::Gsi(47))),
        (48, None),
        (1 << 56 | 3 << 11 | 2, Some(pin)),
        (0, None),
        (3 << 56, None),
    ] {
        assert_eq!(set(&mut guest, SELF, parameter::CALLBACK_IRQ, value), 0);
        let level = guest.domain.callback_line(&guest.memory);
        assert_eq!(level, line.map(|line| (line, false)), "{value:#x}");
    }
}

#[test]
fn odd_values_of_parameters_are_refused() {
    let mut guest = Guest::new(1);
    assert_eq!(
        set(&mut guest, SELF, parameter::X87_FIP_WIDTH, 5),
        error(Errno::Inval)
    );
    assert_eq!(set(&mut guest, SELF, parameter::X87_FIP_WIDTH, 8), 0);
    assert_eq!(
        set(&mut guest, SELF, parameter::VM86_TSS, 1 << 32),
        error(Errno::Inval)
    );
    assert_eq!(set(&mut guest, SELF, parameter::VM86_TSS, 0x5000), 0);
    assert_eq!(get(&mut guest, parameter::VM86_TSS), (0, 0x5000));
    assert_eq!(
        get(&mut guest, parameter::VM86_TSS_SIZED),
        (0, 128 << 32 | 0x5000)
    );
    assert_eq!(
        set(&mut guest, SELF, parameter::VM86_TSS_SIZED, 5 << 32),
        error(Errno::Inval)
    );
    assert_eq!(
        set(&mut guest, SELF, parameter::VM86_TSS_SIZED, u64::MAX),
        0
    );
    assert_eq!(
        get(&mut guest, parameter::VM86_TSS_SIZED),
        (0, 8329 << 32 | 0xffff_ffff)
    );
}

#[test]
fn upcall_vector_must_be_a_vector_of_a_vcpu() {
    let mut guest = Guest::new(1);
    for (vcpu, vector, reply) in [
        (0, 0x0f, error(Errno::Inval)),
        (1, 0x40, error(Errno::NoEnt)),
        (0, 0x10, 0),
    ] {
        guest.put_u32s(ARG, &[vcpu, vector]);
        assert_eq!(
            guest.call(HVM_OP, &[op::SET_EVTCHN_UPCALL_VECTOR, ARG]),
            reply
        );
    }
}

#[test]
fn get_time_is_system_time() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.call(HVM_OP, &[op::GET_TIME, ARG]), 0);
    assert_eq!(guest.u64(ARG), guest.env.tsc);
}

#[test]
fn flush_tlbs_takes_no_argument() {
    let mut guest = Guest::new(3);
    assert_eq!(guest.call(HVM_OP, &[op::FLUSH_TLBS, 0]), 0);
    assert_eq!(guest.effects(), [Effect::Flush(0b111)]);
    assert_eq!(
        guest.call(HVM_OP, &[op::FLUSH_TLBS, ARG]),
        error(Errno::Inval)
    );
}

#[test]
fn pagetable_dying_is_for_shadow_paging() {
    let mut guest = Guest::new(1);
    guest.put_u32s(ARG, &[u32::from(SELF), 0, 0, 0]);
    assert_eq!(
        guest.call(HVM_OP, &[op::PAGETABLE_DYING, ARG]),
        error(Errno::Inval)
    );
    // Domain 0 is another one, and none with parameters.
    guest.put_u32s(ARG, &[0, 0, 0, 0]);
    for (operation, errno) in [
        (op::PAGETABLE_DYING, Errno::OpNotSupp),
        (op::SET_PARAM, Errno::Inval),
        (op::GET_PARAM, Errno::Inval),
    ] {
        assert_eq!(guest.call(HVM_OP, &[operation, ARG]), error(errno));
    }
    guest.put_u32s(ARG, &[u32::from(STRANGER), 0, 0, 0]);
    assert_eq!(
        guest.call(HVM_OP, &[op::PAGETABLE_DYING, ARG]),
        error(Errno::Srch)
    );
}

#[test]
fn xentrace_records_go_nowhere() {
    let mut guest = Guest::new(1);
    guest.put_u32s(ARG, &[28 << 16 | 0xfff, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.call(HVM_OP, &[op::XENTRACE, ARG]), 0);
    guest.put_u32s(ARG, &[29 << 16]);
    assert_eq!(
        guest.call(HVM_OP, &[op::XENTRACE, ARG]),
        error(Errno::Inval)
    );
    guest.put_u32s(ARG, &[0x1000]);
    assert_eq!(
        guest.call(HVM_OP, &[op::XENTRACE, ARG]),
        error(Errno::Inval)
    );
}

#[test]
fn memory_type_tells_ram_from_holes() {
    let mut guest = Guest::new(1);
    for (gfn, kind) in [(3, 0), (PAGES, 2)] {
        guest.put_u32s(ARG, &[u32::from(SELF) | 0xffff_0000, 0]);
        guest.put_u64s(ARG + 8, &[gfn]);
        assert_eq!(guest.call(HVM_OP, &[op::GET_MEM_TYPE, ARG]), 0);
        assert_eq!(guest.u16(ARG + 2), kind);
    }
}

#[test]
fn monitor_and_altp2m_are_absent() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.call(HVM_OP, &[op::GUEST_REQUEST_VM_EVENT, 0]), 0);
    let reply = guest.call(HVM_OP, &[op::GUEST_REQUEST_VM_EVENT, ARG]);
    assert_eq!(reply, error(Errno::Inval));
    assert_eq!(
        guest.call(HVM_OP, &[op::ALTP2M, ARG]),
        error(Errno::OpNotSupp)
    );
}

#[test]
fn operations_of_device_models_are_not_hvm_ops_any_more() {
    let mut guest = Guest::new(1);
    for operation in [2, 3, 4, 6, 7, 8, 12, 13, 14, 16, 17, 22, 26, 1 << 32] {
        assert_eq!(guest.call(HVM_OP, &[operation, ARG]), error(Errno::NoSys));
    }
}
