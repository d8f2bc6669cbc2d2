//! `sched_op` and the watchdogs.

use super::harness::*;
use crate::domain::number::SCHED_OP;
use crate::event::op as event_op;
use crate::sched::op;
use crate::*;

fn sched(guest: &mut Guest, operation: u32, words: &[u32]) -> Outcome {
    guest.put_u32s(ARG, words);
    guest.outcome(SCHED_OP, &[u64::from(operation), ARG])
}

fn result(guest: &mut Guest, operation: u32, words: &[u32]) -> i64 {
    sched(guest, operation, words).result as i64
}

/// `struct sched_poll` for 64-bit callers.
fn poll(guest: &mut Guest, ports: &[u32], timeout: u64) -> Outcome {
    guest.put_u32s(LIST, ports);
    guest.put_u64s(ARG, &[LIST, ports.len() as u64, timeout]);
    guest.outcome(SCHED_OP, &[u64::from(op::POLL), ARG])
}

#[test]
fn yield_gives_up_the_cpu_once() {
    let mut guest = Guest::new(1);
    let outcome = sched(&mut guest, op::YIELD, &[]);
    assert_eq!((outcome.result, outcome.next), (0, Next::Yield));
}

#[test]
fn block_waits_for_an_event_and_does_not_wait_if_one_is_there() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi(0);
    assert_eq!(sched(&mut guest, op::BLOCK, &[]).next, Next::Block);
    assert!(guest.domain.is_blocked(0));
    guest.event(event_op::SEND, &[port]);
    assert!(!guest.domain.is_blocked(0));
    assert_eq!(sched(&mut guest, op::BLOCK, &[]).next, Next::Continue);
}

#[test]
fn block_opens_the_upcall_mask() {
    let mut guest = Guest::new(1);
    let info = SpecialFrame::SharedInfo.address();
    guest.put(info + 1, &[1]);
    sched(&mut guest, op::BLOCK, &[]);
    assert_eq!(guest.bytes::<2>(info), [0, 0]);
}

#[test]
fn an_interrupt_of_the_vmm_ends_a_block() {
    let mut guest = Guest::new(1);
    sched(&mut guest, op::BLOCK, &[]);
    guest.domain.unblock(0);
    assert!(!guest.domain.is_blocked(0));
}

#[test]
fn poll_ends_at_its_port_even_if_that_is_masked() {
    let mut guest = Guest::new(2);
    let port = guest.bind_ipi(0);
    let other = guest.bind_ipi(1);
    let mask = SpecialFrame::SharedInfo.address() + 2560;
    guest.memory.fetch_or_u32(mask, u32::MAX).unwrap();
    assert_eq!(poll(&mut guest, &[port], 0).next, Next::Block);
    guest.event(event_op::SEND, &[other]);
    assert!(guest.domain.is_blocked(0), "another port does not end it");
    guest.event(event_op::SEND, &[port]);
    assert!(!guest.domain.is_blocked(0));
    assert_eq!(guest.effects(), [Effect::Wake(0)]);
    assert_eq!(
        poll(&mut guest, &[port], 0).next,
        Next::Continue,
        "still pending"
    );
}

#[test]
fn upcall_ends_a_poll_only_if_it_can_be_delivered() {
    let mut guest = Guest::new(1);
    let (polled, other) = (guest.bind_ipi(0), guest.bind_ipi(0));
    assert_eq!(guest.event(event_op::SEND, &[other]), 0);
    let answer = poll(&mut guest, &[polled], 0);
    assert_eq!((answer.result, answer.next), (0, Next::Continue));
    guest.interrupts = false;
    assert_eq!(
        poll(&mut guest, &[77], 0).result as i64,
        error(Errno::Inval)
    );
    assert_eq!(poll(&mut guest, &[polled], 0).next, Next::Block);
    assert!(guest.domain.is_blocked(0));
    assert_eq!(guest.event(event_op::SEND, &[polled]), 0);
    assert!(!guest.domain.is_blocked(0));
}

#[test]
fn poll_of_several_ports_ends_at_any_event() {
    let mut guest = Guest::new(1);
    let ports = [guest.bind_ipi(0), guest.bind_ipi(0)];
    assert_eq!(poll(&mut guest, &ports, 0).next, Next::Block);
    guest.event(event_op::SEND, &[ports[1]]);
    assert!(!guest.domain.is_blocked(0));
}

#[test]
fn poll_ends_at_its_timeout() {
    let mut guest = Guest::new(1);
    let port = guest.bind_ipi(0);
    let timeout = guest.env.tsc + 500;
    assert_eq!(poll(&mut guest, &[port], timeout).next, Next::Block);
    assert_eq!(guest.domain.next_deadline(0), Some(timeout));
    guest.env.tsc = timeout - 1;
    guest.domain.expire(0, &guest.memory, &mut guest.env);
    assert!(guest.domain.is_blocked(0));
    guest.env.tsc = timeout;
    guest.domain.expire(0, &guest.memory, &mut guest.env);
    assert!(!guest.domain.is_blocked(0));
    assert_eq!(guest.domain.next_deadline(0), None);
}

#[test]
fn poll_of_too_many_or_unbound_ports_is_refused() {
    let mut guest = Guest::new(1);
    assert_eq!(
        poll(&mut guest, &[1; 129], 0).result as i64,
        error(Errno::Inval)
    );
    assert_eq!(poll(&mut guest, &[1], 0).result as i64, error(Errno::Inval));
    assert!(!guest.domain.is_blocked(0));
    guest.put_u64s(ARG, &[0xdead_0000, 1, 0]);
    let outcome = guest.outcome(SCHED_OP, &[u64::from(op::POLL), ARG]);
    assert_eq!(outcome.result as i64, error(Errno::Fault));
}

#[test]
fn poll_of_a_32_bit_caller_has_its_own_layout() {
    let mut guest = Guest::new_32(1);
    let port = guest.bind_ipi(0);
    guest.put_u32s(LIST, &[port]);
    guest.put_u32s(ARG, &[LIST as u32, 1, 77_000_000, 0]);
    let outcome = guest.outcome(SCHED_OP, &[u64::from(op::POLL), ARG]);
    assert_eq!(outcome.next, Next::Block);
    assert_eq!(guest.domain.next_deadline(0), Some(77_000_000));
}

#[test]
fn shutdown_reports_its_reason_once_and_stops_the_vcpu() {
    for (code, reason) in [
        (0, ShutdownReason::PowerOff),
        (1, ShutdownReason::Reboot),
        (2, ShutdownReason::Suspend),
        (3, ShutdownReason::Crash),
        (5, ShutdownReason::SoftReset),
        (77, ShutdownReason::Unknown(77)),
    ] {
        let mut guest = Guest::new(1);
        let outcome = sched(&mut guest, op::SHUTDOWN, &[code]);
        assert_eq!((outcome.result, outcome.next), (0, Next::Stop));
        assert_eq!(guest.effects(), [Effect::Shutdown(reason)]);
        sched(&mut guest, op::SHUTDOWN, &[0]);
        assert!(guest.effects().is_empty());
        assert!(guest.domain.is_shut_down());
    }
}

#[test]
fn shutdown_code_given_before_counts() {
    let mut guest = Guest::new(1);
    assert_eq!(result(&mut guest, op::SHUTDOWN_CODE, &[3]), 0);
    sched(&mut guest, op::SHUTDOWN, &[0]);
    assert_eq!(guest.effects(), [Effect::Shutdown(ShutdownReason::Crash)]);
}

#[test]
fn watchdog_bites_unless_it_is_fed() {
    let mut guest = Guest::new(1);
    assert_eq!(result(&mut guest, op::WATCHDOG, &[0, 2]), 1);
    assert_eq!(result(&mut guest, op::WATCHDOG, &[0, 5]), 2);
    // Xen's -ENOSPC, without its sign in 64 bits.
    assert_eq!(
        result(&mut guest, op::WATCHDOG, &[0, 5]),
        error(Errno::NoSpc) & 0xffff_ffff
    );
    assert_eq!(
        result(&mut guest, op::WATCHDOG, &[3, 5]),
        error(Errno::Inval)
    );
    guest.env.tsc += 1_500_000_000;
    assert_eq!(result(&mut guest, op::WATCHDOG, &[1, 2]), 0);
    guest.env.tsc += 1_000_000_000;
    guest.domain.expire(0, &guest.memory, &mut guest.env);
    assert!(!guest.domain.is_shut_down());
    assert_eq!(result(&mut guest, op::WATCHDOG, &[1, 0]), 0);
    guest.effects();
    guest.env.tsc = guest.domain.tsc_at(guest.domain.next_deadline(0).unwrap());
    guest.domain.expire(0, &guest.memory, &mut guest.env);
    assert_eq!(
        guest.effects(),
        [Effect::Shutdown(ShutdownReason::Watchdog)]
    );
}

#[test]
fn remote_shutdown_and_pinning_are_not_for_a_domu() {
    let mut guest = Guest::new(1);
    let own = u32::from(OWN);
    assert_eq!(
        result(&mut guest, op::REMOTE_SHUTDOWN, &[own, 0]),
        error(Errno::Perm)
    );
    assert_eq!(
        result(&mut guest, op::REMOTE_SHUTDOWN, &[9, 0]),
        error(Errno::Srch)
    );
    assert_eq!(
        result(&mut guest, op::PIN_OVERRIDE, &[0]),
        error(Errno::Perm)
    );
}
