//! `event_channel_op` and delivery.

use super::harness::*;
use crate::event::op;
use crate::shared_info::Layout;
use crate::*;

const SHARED: u64 = SpecialFrame::SharedInfo.address();

fn pending(guest: &Guest, port: u32) -> bool {
    let layout = Layout::of(guest.domain.width);
    guest.u32(layout.pending + u64::from(port / 32) * 4) >> (port % 32) & 1 != 0
}

fn set_mask(guest: &mut Guest, port: u32) {
    let layout = Layout::of(guest.domain.width);
    guest
        .memory
        .fetch_or_u32(layout.mask + u64::from(port / 32) * 4, 1 << (port % 32))
        .unwrap();
}

fn use_vector_callback(guest: &mut Guest, vector: u8) {
    guest.put_u32s(ARG, &[u32::from(SELF), 0]);
    guest.put_u64s(ARG + 8, &[2 << 56 | u64::from(vector)]);
    assert_eq!(guest.call(34, &[0, ARG]), 0);
    guest.effects();
}

#[test]
fn ipi_reaches_its_vcpu_through_pending_selector_and_upcall() {
    let mut guest = Guest::new(2);
    use_vector_callback(&mut guest, 0xf3);
    let port = guest.bind_ipi(1);
    assert_eq!(port, 1, "port 0 is reserved");
    assert_eq!(guest.event(op::SEND, &[port]), 0);
    assert!(pending(&guest, port));
    let info = SHARED + 64;
    assert_eq!(guest.u64(info + 8), 1, "selector");
    assert_eq!(guest.bytes::<1>(info), [1], "upcall pending");
    assert_eq!(guest.effects(), [Effect::Upcall(1, Upcall::Vector(0xf3))]);
    assert_eq!(guest.domain.pending_upcall(1, &guest.memory), Some(0xf3));
    assert_eq!(guest.domain.pending_upcall(0, &guest.memory), None);
}

#[test]
fn second_send_of_a_pending_port_does_nothing() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi(0);
    guest.event(op::SEND, &[port]);
    guest.effects();
    assert_eq!(guest.event(op::SEND, &[port]), 0);
    assert!(guest.effects().is_empty());
}

#[test]
fn masked_port_becomes_pending_without_upcall_and_unmask_delivers_it() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi(0);
    set_mask(&mut guest, port);
    assert_eq!(guest.event(op::SEND, &[port]), 0);
    assert!(pending(&guest, port));
    assert!(guest.effects().is_empty());
    assert_eq!(guest.u64(SHARED + 8), 0);
    assert_eq!(guest.event(op::UNMASK, &[port]), 0);
    assert_eq!(guest.u64(SHARED + 8), 1);
    assert_eq!(guest.effects(), [Effect::Upcall(0, Upcall::WakeOnly)]);
    assert_eq!(guest.event(op::UNMASK, &[5000]), error(Errno::Inval));
}

#[test]
fn thirty_two_bit_guest_gets_32_bit_selectors() {
    let mut guest = Guest::new_32(1);
    let mut port = 0;
    while port < 40 {
        port = guest.bind_ipi(0);
    }
    assert_eq!(guest.event(op::SEND, &[port]), 0);
    assert_eq!(guest.u32(SHARED + 2048 + 4), 1 << 8);
    assert_eq!(guest.u32(SHARED + 4), 1 << 1);
}

#[test]
fn per_vcpu_upcall_vector_goes_through_the_local_apic() {
    let mut guest = Guest::new(2);
    guest.put_u32s(ARG, &[1, 0x40]);
    assert_eq!(guest.call(34, &[23, ARG]), 0);
    assert_eq!(guest.effects(), [Effect::Upcall(1, Upcall::Lapic(0x40))]);
    let port = guest.bind_ipi(1);
    guest.event(op::SEND, &[port]);
    assert_eq!(guest.effects(), [Effect::Upcall(1, Upcall::Lapic(0x40))]);
    assert_eq!(guest.domain.pending_upcall(1, &guest.memory), None);
}

#[test]
fn alloc_unbound_answers_a_port_and_sends_to_it_are_dropped() {
    let mut guest = Guest::new(1);
    let doms = u32::from(SELF) | u32::from(STRANGER) << 16;
    assert_eq!(guest.event(op::ALLOC_UNBOUND, &[doms, 0]), 0);
    let port = guest.u32(ARG + 4);
    assert_eq!(guest.event(op::SEND, &[port]), 0);
    assert!(!pending(&guest, port));
    let other = u32::from(STRANGER);
    assert_eq!(
        guest.event(op::ALLOC_UNBOUND, &[other, 0]),
        error(Errno::Srch)
    );
}

#[test]
fn bind_interdomain_loops_within_the_domain_and_starts_pending() {
    let mut guest = Guest::new(1);
    let doms = u32::from(SELF) | u32::from(SELF) << 16;
    guest.event(op::ALLOC_UNBOUND, &[doms, 0]);
    let far = guest.u32(ARG + 4);
    assert_eq!(
        guest.event(op::BIND_INTERDOMAIN, &[u32::from(SELF), far, 0]),
        0
    );
    let near = guest.u32(ARG + 8);
    assert!(pending(&guest, near));
    assert_eq!(guest.event(op::SEND, &[near]), 0);
    assert!(pending(&guest, far));
    // Closing one end leaves the other unbound.
    assert_eq!(guest.event(op::CLOSE, &[near]), 0);
    assert_eq!(
        guest.event(op::STATUS, &[u32::from(SELF), far, 0, 0, 0, 0]),
        0
    );
    assert_eq!(guest.u32(ARG + 8), 1);
    assert_eq!(guest.u16(ARG + 16), OWN);
}

#[test]
fn bind_interdomain_to_nothing_is_refused_and_leaks_no_port() {
    let mut guest = Guest::new(1);
    let own = u32::from(SELF);
    for remote in [0, 1, 3, 77, 5000] {
        assert_eq!(
            guest.event(op::BIND_INTERDOMAIN, &[own, remote, 0]),
            error(Errno::Inval)
        );
    }
    let stranger = u32::from(STRANGER);
    assert_eq!(
        guest.event(op::BIND_INTERDOMAIN, &[stranger, 1, 0]),
        error(Errno::Srch)
    );
    assert_eq!(guest.bind_ipi(0), 1);
}

#[test]
fn bind_virq_is_once_per_vcpu_and_global_ones_are_vcpu_0s() {
    let mut guest = Guest::new(2);
    assert_eq!(guest.event(op::BIND_VIRQ, &[0, 1, 0]), 0);
    let port = guest.u32(ARG + 8);
    assert_eq!(guest.event(op::BIND_VIRQ, &[0, 1, 0]), error(Errno::Exist));
    assert_eq!(guest.event(op::BIND_VIRQ, &[0, 0, 0]), 0);
    assert_eq!(guest.event(op::BIND_VIRQ, &[0, 2, 0]), error(Errno::NoEnt));
    assert_eq!(guest.event(op::BIND_VIRQ, &[24, 0, 0]), error(Errno::Inval));
    assert_eq!(guest.event(op::BIND_VIRQ, &[2, 1, 0]), error(Errno::Inval));
    assert_eq!(guest.event(op::BIND_VIRQ, &[2, 0, 0]), 0);
    let console = guest.u32(ARG + 8);
    guest.domain.raise_virq(1, 0, &guest.memory, &mut guest.env);
    assert!(pending(&guest, port));
    guest.domain.raise_virq(1, 2, &guest.memory, &mut guest.env);
    assert!(pending(&guest, console));
    // Closing frees the VIRQ.
    assert_eq!(guest.event(op::CLOSE, &[port]), 0);
    assert!(!pending(&guest, port));
    assert_eq!(guest.event(op::BIND_VIRQ, &[0, 1, 0]), 0);
    // A guest cannot send on a VIRQ's port.
    assert_eq!(guest.event(op::SEND, &[console]), error(Errno::Inval));
}

#[test]
fn bind_ipi_needs_a_vcpu() {
    let mut guest = Guest::new(2);
    assert_eq!(guest.event(op::BIND_IPI, &[2, 0]), error(Errno::NoEnt));
    assert_eq!(guest.bind_ipi(1), 1);
    assert_eq!(guest.bind_ipi(0), 2);
}

#[test]
fn close_frees_a_port_and_lowest_is_next() {
    let mut guest = Guest::new(1);
    let ports: [u32; 3] = core::array::from_fn(|_| guest.bind_ipi(0));
    assert_eq!(guest.event(op::CLOSE, &[ports[1]]), 0);
    assert_eq!(guest.event(op::CLOSE, &[ports[1]]), error(Errno::Inval));
    assert_eq!(guest.event(op::CLOSE, &[0]), error(Errno::Inval));
    assert_eq!(guest.event(op::CLOSE, &[4096]), error(Errno::Inval));
    assert_eq!(guest.bind_ipi(0), ports[1]);
}

#[test]
fn ports_end_at_4096_or_at_1024_for_32_bit_guests() {
    for (mut guest, last) in [(Guest::new(1), 4095), (Guest::new_32(1), 1023)] {
        for port in 1..=last {
            assert_eq!(guest.bind_ipi(0), port);
        }
        assert_eq!(guest.event(op::BIND_IPI, &[0, 0]), error(Errno::NoSpc));
    }
}

#[test]
fn status_names_every_kind_of_port() {
    let mut guest = Guest::new(2);
    let service = guest
        .domain
        .alloc_service_port(ServiceId(7), &guest.memory)
        .unwrap();
    guest.event(op::BIND_VIRQ, &[1, 1, 0]);
    let virq = guest.u32(ARG + 8);
    let ipi = guest.bind_ipi(1);
    for (port, status, vcpu) in [
        (0, 0, 0),
        (service, 2, 0),
        (virq, 4, 1),
        (ipi, 5, 1),
        (60, 0, 0),
    ] {
        assert_eq!(
            guest.event(op::STATUS, &[u32::from(SELF), port, 9, 9, 9, 9]),
            0
        );
        assert_eq!(
            (guest.u32(ARG + 8), guest.u32(ARG + 12)),
            (status, vcpu),
            "port {port}"
        );
    }
    assert_eq!(
        guest.event(op::STATUS, &[u32::from(SELF), 64]),
        error(Errno::Inval)
    );
    assert_eq!(
        guest.event(op::STATUS, &[u32::from(STRANGER), 1]),
        error(Errno::Srch)
    );
}

#[test]
fn bind_vcpu_moves_ports_but_not_ipis_or_per_vcpu_virqs() {
    let mut guest = Guest::new(2);
    let service = guest
        .domain
        .alloc_service_port(ServiceId(1), &guest.memory)
        .unwrap();
    assert_eq!(guest.event(op::BIND_VCPU, &[service, 1]), 0);
    guest
        .domain
        .notify_guest(service, &guest.memory, &mut guest.env)
        .unwrap();
    assert_eq!(guest.effects(), [Effect::Upcall(1, Upcall::WakeOnly)]);
    assert_eq!(
        guest.event(op::BIND_VCPU, &[service, 2]),
        error(Errno::NoEnt)
    );
    assert_eq!(guest.event(op::BIND_VCPU, &[60, 1]), error(Errno::Inval));
    let ipi = guest.bind_ipi(0);
    assert_eq!(guest.event(op::BIND_VCPU, &[ipi, 1]), error(Errno::Inval));
    guest.event(op::BIND_VIRQ, &[0, 0, 0]);
    let timer = guest.u32(ARG + 8);
    assert_eq!(guest.event(op::BIND_VCPU, &[timer, 1]), error(Errno::Inval));
}

#[test]
fn reset_closes_everything() {
    let mut guest = Guest::new(1);
    let service = guest
        .domain
        .alloc_service_port(ServiceId(1), &guest.memory)
        .unwrap();
    let ipi = guest.bind_ipi(0);
    guest.event(op::SEND, &[ipi]);
    assert_eq!(guest.event(op::RESET, &[u32::from(SELF)]), 0);
    assert!(!pending(&guest, ipi));
    assert_eq!(
        guest
            .domain
            .notify_guest(service, &guest.memory, &mut guest.env),
        Err(Errno::Inval)
    );
    assert_eq!(
        guest.event(op::RESET, &[u32::from(STRANGER)]),
        error(Errno::Srch)
    );
    assert_eq!(guest.event(op::RESET, &[0]), error(Errno::Perm));
    assert_eq!(guest.bind_ipi(0), 1);
    // Nothing is left to be gone on with.
    assert_eq!(
        guest.event(op::RESET_CONT, &[u32::from(SELF)]),
        error(Errno::Busy)
    );
    assert_eq!(guest.bind_ipi(0), 2);
}

#[test]
fn numbers_of_physical_interrupts_are_bound_once_and_mean_nothing() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.event(op::BIND_PIRQ, &[56, 0, 0]), error(Errno::Inval));
    assert_eq!(guest.event(op::BIND_PIRQ, &[55, 0, 0]), 0);
    let port = guest.u32(ARG + 8);
    assert_eq!(guest.event(op::BIND_PIRQ, &[55, 0, 0]), error(Errno::Exist));
    assert_eq!(guest.event(op::SEND, &[port]), error(Errno::Inval));
    assert_eq!(guest.event(op::CLOSE, &[port]), 0);
    assert_eq!(guest.event(op::BIND_PIRQ, &[55, 0, 0]), 0);
}

#[test]
fn service_ports_carry_notifications_both_ways() {
    let mut guest = Guest::new(1);
    let port = guest
        .domain
        .alloc_service_port(ServiceId(3), &guest.memory)
        .unwrap();
    assert_eq!(guest.event(op::SEND, &[port]), 0);
    assert_eq!(guest.effects(), [Effect::Service(ServiceId(3))]);
    guest
        .domain
        .notify_guest(port, &guest.memory, &mut guest.env)
        .unwrap();
    assert!(pending(&guest, port));
}

#[test]
fn sends_to_ports_that_are_not_bound_are_refused() {
    let mut guest = Guest::new(1);
    for port in [0, 1, 63, 64, 4095, 4096, u32::MAX] {
        assert_eq!(guest.event(op::SEND, &[port]), error(Errno::Inval));
    }
    assert_eq!(guest.call(32, &[4, 0xdead_0000]), error(Errno::Fault));
}

#[test]
fn gsi_callback_follows_vcpu_0_where_there_is_a_controller() {
    let mut with_lines = config(1);
    with_lines.callback_lines = true;
    for (mut guest, line) in [
        (Guest::with(with_lines), Some((LegacyLine::Gsi(9), false))),
        (Guest::new(1), None),
    ] {
        guest.put_u32s(ARG, &[u32::from(SELF), 0]);
        guest.put_u64s(ARG + 8, &[9]);
        assert_eq!(guest.call(34, &[0, ARG]), 0);
        assert_eq!(guest.domain.callback_line(&guest.memory), line);
        let port = guest.bind_ipi(0);
        guest.event(op::SEND, &[port]);
        assert_eq!(
            guest.domain.callback_line(&guest.memory),
            line.map(|(line, _)| (line, true))
        );
    }
}
