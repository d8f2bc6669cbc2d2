//! `vcpu_op`.

use super::harness::*;
use crate::domain::number::VCPU_OP;
use crate::vcpu::op;
use crate::*;

fn vcpu_op(guest: &mut Guest, operation: u32, vcpu: u32) -> i64 {
    guest.call(VCPU_OP, &[u64::from(operation), u64::from(vcpu), ARG])
}

/// A `struct vcpu_hvm_context` that starts in 64-bit mode.
fn put_context_64(guest: &mut Guest) {
    guest.put(ARG, &[0; 128]);
    guest.put_u32s(ARG, &[1, 0]);
    guest.put_u64s(
        ARG + 8 + 8 * 8,
        &[0x10_0000, 2, 1 << 31 | 1, 0x5000, 1 << 5, 1 << 8],
    );
}

/// One that starts in flat 32-bit mode.
fn put_context_32(guest: &mut Guest) {
    guest.put(ARG, &[0; 128]);
    guest.put_u32s(ARG + 8 + 8 * 4, &[0x10_0000, 2, 1]);
    guest.put_u32s(
        ARG + 8 + 21 * 4,
        &[u32::MAX, u32::MAX, u32::MAX, u32::MAX, 0x67],
    );
    for (index, attributes) in [0xc9bu16, 0xc93, 0xc93, 0xc93, 0x8b].iter().enumerate() {
        guest.put(ARG + 8 + 104 + index as u64 * 2, &attributes.to_le_bytes());
    }
}

#[test]
fn unknown_vcpus_and_operations_are_refused() {
    let mut guest = Guest::new(2);
    assert_eq!(vcpu_op(&mut guest, op::IS_UP, 2), error(Errno::NoEnt));
    assert_eq!(vcpu_op(&mut guest, 14, 0), error(Errno::NoSys));
}

#[test]
fn vcpu_is_initialised_once_then_goes_up_and_down() {
    let mut guest = Guest::new(2);
    assert_eq!(vcpu_op(&mut guest, op::UP, 1), error(Errno::Inval));
    put_context_64(&mut guest);
    assert_eq!(vcpu_op(&mut guest, op::INITIALISE, 1), 0);
    let effects = guest.effects();
    let [Effect::Initialise(1, VcpuStart::Mode64(state))] = effects.as_slice() else {
        panic!("{effects:?}");
    };
    assert_eq!(
        (state.rip, state.cr3, state.efer),
        (0x10_0000, 0x5000, 1 << 8 | 1 << 10)
    );
    assert_eq!(vcpu_op(&mut guest, op::INITIALISE, 1), error(Errno::Exist));
    assert_eq!(vcpu_op(&mut guest, op::INITIALISE, 0), error(Errno::Exist));
    assert_eq!(vcpu_op(&mut guest, op::IS_UP, 1), 0);
    assert_eq!(vcpu_op(&mut guest, op::UP, 1), 0);
    assert_eq!(vcpu_op(&mut guest, op::UP, 1), 0);
    assert_eq!(vcpu_op(&mut guest, op::IS_UP, 1), 1);
    assert_eq!(vcpu_op(&mut guest, op::DOWN, 1), 0);
    assert_eq!(vcpu_op(&mut guest, op::IS_UP, 1), 0);
    assert_eq!(guest.effects(), [Effect::Up(1), Effect::Down(1)]);
}

#[test]
fn bad_64_bit_contexts_are_refused() {
    for (offset, value) in [
        (0, 7u64),                  // mode
        (8 + 64, 0x8000_0000_0000), // rip not canonical
        (8 + 80, 1),                // no paging
        (8 + 96, 0),                // no PAE
        (8 + 104, 0),               // no long mode
    ] {
        let mut guest = Guest::new(2);
        put_context_64(&mut guest);
        guest.put_u64s(ARG + offset, &[value]);
        assert_eq!(
            vcpu_op(&mut guest, op::INITIALISE, 1),
            error(Errno::Inval),
            "{offset}"
        );
        assert!(guest.effects().is_empty());
    }
}

#[test]
fn thirty_two_bit_contexts_are_checked_as_xen_checks_them() {
    let mut guest = Guest::new(2);
    put_context_32(&mut guest);
    assert_eq!(vcpu_op(&mut guest, op::INITIALISE, 1), 0);
    let attributes = |index: u64| ARG + 8 + 104 + index * 2;
    for (at, value) in [
        (ARG + 4, 1u16),         // pad
        (attributes(5), 1),      // pad2
        (attributes(0), 0xc93),  // data segment for CS
        (attributes(0), 0),      // null CS
        (attributes(2), 0xc9b),  // code segment for SS
        (attributes(2), 0xcf3),  // SS.DPL differs
        (attributes(1), 0xcf3),  // DS.DPL above CS.DPL
        (attributes(4), 0xc93),  // data segment for TR
        (attributes(1), 0x1c93), // reserved bits
        (attributes(3), 0xc13),  // not present
    ] {
        let mut guest = Guest::new(2);
        put_context_32(&mut guest);
        guest.put(at, &value.to_le_bytes());
        let reply = vcpu_op(&mut guest, op::INITIALISE, 1);
        assert_eq!(reply, error(Errno::Inval), "{at:#x} {value:#x}");
    }
}

#[test]
fn last_vcpu_going_down_powers_off() {
    let mut guest = Guest::new(2);
    let outcome = guest.outcome(VCPU_OP, &[u64::from(op::DOWN), 0, 0]);
    assert_eq!(outcome.next, Next::Stop);
    assert_eq!(
        guest.effects(),
        [Effect::Shutdown(ShutdownReason::PowerOff)]
    );
}

#[test]
fn vcpus_that_the_vmm_started_count_as_up() {
    let mut guest = Guest::new(2);
    guest.domain.set_up(1, true);
    assert_eq!(vcpu_op(&mut guest, op::IS_UP, 1), 1);
    let outcome = guest.outcome(VCPU_OP, &[u64::from(op::DOWN), 0, 0]);
    assert_eq!(outcome.next, Next::Stop);
    assert_eq!(guest.effects(), [Effect::Down(0)]);
}

#[test]
fn registered_vcpu_info_takes_over_and_counts_everything_as_pending() {
    let mut guest = Guest::new(2);
    let place = 0x5040;
    guest.put_u64s(ARG, &[5, 0x40]);
    assert_eq!(vcpu_op(&mut guest, op::REGISTER_VCPU_INFO, 0), 0);
    assert_eq!(guest.bytes::<1>(place), [1]);
    assert_eq!(guest.u64(place + 8), u64::MAX);
    assert_eq!(
        guest.u32(place + 32 + 24),
        guest.domain.scale.multiplier,
        "time goes along"
    );
    assert_eq!(guest.effects(), [Effect::Upcall(0, Upcall::WakeOnly)]);
    // Events go to the new place.
    guest.put_u64s(place, &[0, 0]);
    let port = guest.bind_ipi(0);
    guest.event(crate::event::op::SEND, &[port]);
    assert_eq!((guest.bytes::<1>(place), guest.u64(place + 8)), ([1], 1));
    guest.put_u64s(ARG, &[6, 0]);
    assert_eq!(
        vcpu_op(&mut guest, op::REGISTER_VCPU_INFO, 0),
        error(Errno::Inval),
        "once only"
    );
}

#[test]
fn vcpu_info_must_be_aligned_ram_of_a_vcpu_that_does_not_run() {
    let mut guest = Guest::new(3);
    for (gfn, offset, errno) in [
        (5, 0x44, Errno::NxIo),
        (5, 4096 - 56, Errno::NxIo),
        (PAGES, 0, Errno::Inval),
        (u64::MAX, 0, Errno::Inval),
    ] {
        guest.put_u64s(ARG, &[gfn, offset]);
        assert_eq!(vcpu_op(&mut guest, op::REGISTER_VCPU_INFO, 0), error(errno));
    }
    guest.domain.set_up(1, true);
    guest.put_u64s(ARG, &[5, 0]);
    assert_eq!(
        vcpu_op(&mut guest, op::REGISTER_VCPU_INFO, 1),
        error(Errno::Inval)
    );
    assert_eq!(vcpu_op(&mut guest, op::REGISTER_VCPU_INFO, 2), 0);
}

#[test]
fn vcpus_past_32_have_no_vcpu_info_until_they_register_one() {
    let mut guest = Guest::new(40);
    let port = guest.bind_ipi(35);
    assert_eq!(guest.event(crate::event::op::SEND, &[port]), 0);
    assert!(guest.effects().is_empty());
    put_context_64(&mut guest);
    assert_eq!(vcpu_op(&mut guest, op::INITIALISE, 35), error(Errno::Inval));
    guest.put_u64s(ARG, &[5, 0]);
    assert_eq!(vcpu_op(&mut guest, op::REGISTER_VCPU_INFO, 35), 0);
    assert_eq!(guest.effects(), [Effect::Upcall(35, Upcall::WakeOnly)]);
}

#[test]
fn runstate_area_follows_the_vcpu_across_a_page_border() {
    let mut guest = Guest::new(1);
    let area = 0x6000 - 16;
    guest.put_u64s(ARG, &[area]);
    assert_eq!(vcpu_op(&mut guest, op::REGISTER_RUNSTATE_MEMORY_AREA, 0), 0);
    let (memory, domain) = (&guest.memory, &mut guest.domain);
    domain.set_runstate(0, RunstateKind::Running, 1_000, memory);
    domain.set_runstate(0, RunstateKind::Blocked, 5_000, memory);
    assert_eq!(guest.u32(area), 2);
    assert_eq!(guest.u64(area + 8), 5_000);
    assert_eq!(guest.u64(area + 16), 4_000, "running");
    assert_eq!(guest.u64(area + 24), 1_000, "runnable");
    guest.put_u64s(ARG, &[0xdead_0000]);
    let reply = vcpu_op(&mut guest, op::REGISTER_RUNSTATE_MEMORY_AREA, 0);
    assert_eq!(reply, error(Errno::Fault));
}

#[test]
fn runstate_info_counts_the_state_that_lasts() {
    let mut guest = Guest::new(2);
    guest
        .domain
        .set_runstate(0, RunstateKind::Running, 0, &guest.memory);
    assert_eq!(vcpu_op(&mut guest, op::GET_RUNSTATE_INFO, 0), 0);
    assert_eq!(guest.u64(ARG + 16), guest.env.tsc);
    assert_eq!(vcpu_op(&mut guest, op::GET_RUNSTATE_INFO, 1), 0);
    assert_eq!(guest.u32(ARG), 3, "offline");
}

#[test]
fn compat_runstate_is_four_bytes_shorter() {
    let mut guest = Guest::new_32(1);
    guest
        .domain
        .set_runstate(0, RunstateKind::Running, 0, &guest.memory);
    guest.put(ARG, &[0xee; 48]);
    assert_eq!(vcpu_op(&mut guest, op::GET_RUNSTATE_INFO, 0), 0);
    assert_eq!(guest.u64(ARG + 12), guest.env.tsc);
    assert_eq!(guest.u32(ARG + 44), 0xeeee_eeee);
}

#[test]
fn singleshot_timer_fires_once_at_its_time() {
    let mut guest = Guest::new(2);
    guest.event(crate::event::op::BIND_VIRQ, &[0, 0, 0]);
    let due = guest.env.tsc + 1000;
    guest.put_u64s(ARG, &[due, 0]);
    assert_eq!(vcpu_op(&mut guest, op::SET_SINGLESHOT_TIMER, 0), 0);
    assert_eq!(guest.domain.next_deadline(0), Some(due));
    guest.domain.expire(0, &guest.memory, &mut guest.env);
    assert!(guest.effects().is_empty());
    guest.env.tsc = due;
    guest.domain.expire(0, &guest.memory, &mut guest.env);
    assert_eq!(guest.effects(), [Effect::Upcall(0, Upcall::WakeOnly)]);
    assert_eq!(guest.domain.next_deadline(0), None);
    assert_eq!(
        vcpu_op(&mut guest, op::SET_SINGLESHOT_TIMER, 1),
        error(Errno::Inval)
    );
    assert_eq!(
        vcpu_op(&mut guest, op::STOP_SINGLESHOT_TIMER, 1),
        error(Errno::Inval)
    );
}

#[test]
fn singleshot_timer_in_the_past_fires_at_once() {
    let mut guest = Guest::new(1);
    guest.event(crate::event::op::BIND_VIRQ, &[0, 0, 0]);
    guest.put_u64s(ARG, &[5, 0]);
    assert_eq!(vcpu_op(&mut guest, op::SET_SINGLESHOT_TIMER, 0), 0);
    assert_eq!(guest.effects(), [Effect::Upcall(0, Upcall::WakeOnly)]);
    assert_eq!(guest.domain.next_deadline(0), None);
}

#[test]
fn stopped_singleshot_timer_does_not_fire() {
    let mut guest = Guest::new(1);
    guest.put_u64s(ARG, &[u64::MAX, 0]);
    assert_eq!(vcpu_op(&mut guest, op::SET_SINGLESHOT_TIMER, 0), 0);
    assert_eq!(vcpu_op(&mut guest, op::STOP_SINGLESHOT_TIMER, 0), 0);
    assert_eq!(guest.domain.next_deadline(0), None);
}

#[test]
fn periodic_timer_fires_until_it_is_stopped() {
    let mut guest = Guest::new(1);
    guest.event(crate::event::op::BIND_VIRQ, &[0, 0, 0]);
    for (period, errno) in [(999_999, Errno::Inval), (u64::MAX, Errno::Inval)] {
        guest.put_u64s(ARG, &[period]);
        assert_eq!(vcpu_op(&mut guest, op::SET_PERIODIC_TIMER, 0), error(errno));
    }
    guest.put_u64s(ARG, &[1_000_000]);
    assert_eq!(vcpu_op(&mut guest, op::SET_PERIODIC_TIMER, 0), 0);
    for _ in 0..3 {
        guest.env.tsc = guest.domain.next_deadline(0).unwrap();
        guest.effects();
        guest.domain.expire(0, &guest.memory, &mut guest.env);
        assert_eq!(guest.effects(), [Effect::Upcall(0, Upcall::WakeOnly)]);
        // The guest takes the event.
        guest.put_u64s(SpecialFrame::SharedInfo.address(), &[0, 0]);
        guest.put_u64s(SpecialFrame::SharedInfo.address() + 2048, &[0]);
    }
    assert_eq!(vcpu_op(&mut guest, op::STOP_PERIODIC_TIMER, 0), 0);
    assert_eq!(guest.domain.next_deadline(0), None);
}

#[test]
fn time_area_gets_a_record() {
    let mut guest = Guest::new(1);
    guest.put_u64s(ARG, &[0x7000]);
    assert_eq!(
        vcpu_op(&mut guest, op::REGISTER_VCPU_TIME_MEMORY_AREA, 0),
        0
    );
    assert_eq!(guest.u32(0x7000 + 24), guest.domain.scale.multiplier);
    assert_eq!(guest.u32(0x7000) % 2, 0, "an even version");
    guest.put_u64s(ARG, &[0xdead_0000]);
    let reply = vcpu_op(&mut guest, op::REGISTER_VCPU_TIME_MEMORY_AREA, 0);
    assert_eq!(reply, error(Errno::Fault));
}

#[test]
fn nmi_takes_no_argument() {
    let mut guest = Guest::new(2);
    let nmi = u64::from(op::SEND_NMI);
    assert_eq!(guest.call(VCPU_OP, &[nmi, 1, 0]), 0);
    assert_eq!(guest.effects(), [Effect::Nmi(1)]);
    assert_eq!(guest.call(VCPU_OP, &[nmi, 1, ARG]), error(Errno::Inval));
}

#[test]
fn physical_ids_are_for_a_pinned_dom0() {
    let mut guest = Guest::new(1);
    assert_eq!(vcpu_op(&mut guest, op::GET_PHYSID, 0), error(Errno::Inval));
}
