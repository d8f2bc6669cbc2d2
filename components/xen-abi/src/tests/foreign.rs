//! A driver domain: grants and ports of another domain.

use std::vec::Vec;

use super::harness::*;
use crate::domain::number::{EVENT_CHANNEL_OP, GRANT_TABLE_OP};
use crate::event::op as event;
use crate::grant::{op, status};
use crate::*;

/// The domain whose driver domain this one is.
const FRONT: u16 = 3;
const HOST_MAP: u32 = 2;
const READONLY: u32 = 4;

fn driver() -> Guest {
    let mut guest = Guest::new(1);
    let page = |fill: u8| std::vec![fill; PAGE_SIZE as usize];
    guest.env.front = Some(Front {
        domid: FRONT,
        grants: [(8, (true, page(8))), (9, (false, page(9)))].into(),
        unbound: Vec::from([17]),
        ..Front::default()
    });
    guest
}

fn front(guest: &Guest) -> &Front {
    guest.env.front.as_ref().unwrap()
}

/// Maps at guest frame 0x20: status and handle.
fn map(guest: &mut Guest, domid: u16, reference: u32, flags: u32) -> (i16, u32) {
    guest.put_u64s(ARG, &[0x20 * PAGE_SIZE]);
    guest.put_u32s(
        ARG + 8,
        &[flags, reference, u32::from(domid), 0xffff_ffff, 1, 1],
    );
    let list = [u64::from(op::MAP_GRANT_REF), ARG, 1];
    assert_eq!(guest.call(GRANT_TABLE_OP, &list), 0);
    (guest.u16(ARG + 18) as i16, guest.u32(ARG + 20))
}

fn unmap(guest: &mut Guest, address: u64, handle: u32) -> i16 {
    guest.put_u64s(ARG, &[address, 0]);
    guest.put_u32s(ARG + 16, &[handle, 0]);
    let list = [u64::from(op::UNMAP_GRANT_REF), ARG, 1];
    assert_eq!(guest.call(GRANT_TABLE_OP, &list), 0);
    guest.u16(ARG + 20) as i16
}

#[test]
fn a_driver_domain_maps_and_unmaps_by_handle() {
    let mut guest = driver();
    let (answer, handle) = map(&mut guest, FRONT, 8, HOST_MAP);
    assert_eq!(answer, status::OKAY);
    let used: Vec<_> = front(&guest).used.values().copied().collect();
    assert_eq!(used, [(8, true, Some(0x20))]);
    let (answer, reader) = map(&mut guest, FRONT, 9, HOST_MAP | READONLY);
    assert_eq!(answer, status::OKAY);
    assert_ne!(reader, handle);
    // Another address, no address, a handle that is nobody's.
    let at = 0x20 * PAGE_SIZE;
    assert_eq!(
        unmap(&mut guest, at + PAGE_SIZE, handle),
        status::GENERAL_ERROR
    );
    assert_eq!(unmap(&mut guest, 0, handle), status::OKAY);
    assert_eq!(unmap(&mut guest, at, 77), status::BAD_HANDLE);
    assert_eq!(front(&guest).used.len(), 2);
    assert_eq!(unmap(&mut guest, at, handle), status::OKAY);
    assert_eq!(unmap(&mut guest, at, handle), status::BAD_HANDLE);
    assert_eq!(unmap(&mut guest, at, reader), status::OKAY);
    assert!(front(&guest).used.is_empty());
}

#[test]
fn what_the_granter_refuses_is_refused_and_other_domains_do_not_exist() {
    let mut guest = driver();
    for (domid, reference, flags, expected) in [
        (FRONT, 9, HOST_MAP, status::GENERAL_ERROR),
        (FRONT, 10, HOST_MAP, status::BAD_GNTREF),
        (FRONT, 8, 0, status::BAD_GNTREF),
        // Where only a device, or a paravirtualised domain, maps.
        (FRONT, 8, HOST_MAP | 1, status::GENERAL_ERROR),
        (FRONT, 8, HOST_MAP | 16, status::GENERAL_ERROR),
        (FRONT, 8, HOST_MAP | 1 << 20, status::GENERAL_ERROR),
        (STRANGER, 8, HOST_MAP, status::BAD_DOMAIN),
        (0, 8, HOST_MAP, status::GENERAL_ERROR),
    ] {
        assert_eq!(map(&mut guest, domid, reference, flags).0, expected);
    }
    assert!(front(&guest).used.is_empty());
}

#[test]
fn copies_go_from_and_to_another_domains_pages() {
    let mut guest = driver();
    // `gnttab_copy`: source, target, length, flags.
    let copy = |guest: &mut Guest, source: (u64, u16, u16), target: (u64, u16, u16), flags: u16| {
        for (at, (name, domid, offset)) in [(ARG, source), (ARG + 16, target)] {
            guest.put_u64s(at, &[name]);
            guest.put_u32s(at + 8, &[u32::from(domid) | u32::from(offset) << 16]);
        }
        guest.put_u32s(ARG + 32, &[600 | u32::from(flags) << 16, 0]);
        let list = [u64::from(op::COPY), ARG, 1];
        assert_eq!(patiently(guest, GRANT_TABLE_OP, &list).0, 0);
        assert!(front(guest).copied.is_empty(), "fetched once");
        guest.u16(ARG + 36) as i16
    };
    let own = 0x10 * PAGE_SIZE;
    guest.put(own, &[1; 4096]);
    assert_eq!(
        copy(&mut guest, (9, FRONT, 100), (0x10, SELF, 8), 1),
        status::OKAY
    );
    let mut bytes = [0; 4];
    guest.memory.read(own + 6, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 1, 9, 9]);
    guest.memory.read(own + 606, &mut bytes).unwrap();
    assert_eq!(bytes, [9, 9, 1, 1]);
    assert_eq!(
        copy(&mut guest, (0x10, SELF, 0), (8, FRONT, 50), 2),
        status::OKAY
    );
    let page = &front(&guest).grants[&8].1;
    assert_eq!((page[49], page[50], page[58]), (8, 1, 9));
    for (source, target, flags, expected) in [
        // Not to be written, not there, over the end, by its frame.
        ((0x10, SELF, 0), (9, FRONT, 0), 2, status::GENERAL_ERROR),
        ((77, FRONT, 0), (0x10, SELF, 0), 1, status::BAD_GNTREF),
        ((9, FRONT, 4000), (0x10, SELF, 0), 1, status::BAD_COPY_ARG),
        ((9, FRONT, 0), (0x10, SELF, 0), 0, status::PERMISSION_DENIED),
        ((9, FRONT, 0), (77, FRONT, 0), 3, status::BAD_GNTREF),
        // Of two things that are wrong the grant comes first, and of two grants the one that is read.
        ((9, FRONT, 0), (9, FRONT, 4000), 3, status::GENERAL_ERROR),
        ((77, FRONT, 4000), (0x10, SELF, 0), 1, status::BAD_GNTREF),
        ((77, FRONT, 0), (0x10, 77, 0), 1, status::BAD_DOMAIN),
        ((77, FRONT, 0), (78, SELF, 0), 3, status::BAD_GNTREF),
        ((9, FRONT, 0), (8, SELF, 0), 3, status::GENERAL_ERROR),
        ((8, FRONT, 0), (9, FRONT, 0), 3, status::GENERAL_ERROR),
    ] {
        assert_eq!(copy(&mut guest, source, target, flags), expected);
    }
}

#[test]
fn a_driver_domain_binds_the_others_port_once() {
    let mut guest = driver();
    assert_eq!(
        guest.event(event::BIND_INTERDOMAIN, &[u32::from(FRONT), 17, 0]),
        0
    );
    let port = guest.u32(ARG + 8);
    let bind = guest.event(event::BIND_INTERDOMAIN, &[u32::from(FRONT), 17, 0]);
    assert_eq!(bind, error(Errno::Inval));
    let bind = guest.event(event::BIND_INTERDOMAIN, &[u32::from(STRANGER), 17, 0]);
    assert_eq!(bind, error(Errno::Srch));
    assert_eq!(guest.event(event::SEND, &[port]), 0);
    assert!(
        guest
            .env
            .effects
            .contains(&Effect::Channel(LinkId(300), 17))
    );
    assert_eq!(guest.event(event::CLOSE, &[port]), 0);
    assert_eq!(front(&guest).unbound, [17]);
    assert_eq!(guest.event(event::SEND, &[port]), error(Errno::Inval));
}

/// A driver domain of one that answers only when it is asked outside of the call.
fn slow_driver() -> Guest {
    let mut guest = driver();
    guest.env.front.as_mut().unwrap().slow = true;
    guest
}

fn answer(guest: &mut Guest) -> Vec<Question> {
    guest.env.front.as_mut().unwrap().answer(&guest.memory)
}

/// Makes a call until it ends: what the other domain was asked before each new attempt.
fn patiently(guest: &mut Guest, number: u64, arguments: &[u64]) -> (i64, Vec<Vec<Question>>) {
    let (mut arguments, mut asked) = (arguments.to_vec(), Vec::new());
    loop {
        let (outcome, left) = guest.outcome_and_left(number, &arguments);
        if outcome.next != Next::Restart {
            return (outcome.result as i64, asked);
        }
        assert!(asked.len() < 8, "it never ends: {asked:?}");
        asked.push(answer(guest));
        arguments = left.to_vec();
    }
}

#[test]
fn a_list_of_maps_asks_for_all_its_grants_at_once_and_is_made_again() {
    let mut guest = slow_driver();
    // The last one is of a domain that is not there, so nobody is asked for it.
    let entries = [(FRONT, 8), (FRONT, 10), (FRONT, 8), (STRANGER, 8)];
    for (at, (domid, reference)) in (ARG..).step_by(32).zip(entries) {
        guest.put_u64s(at, &[0x20 * PAGE_SIZE]);
        guest.put_u32s(at + 8, &[HOST_MAP, reference, u32::from(domid), 0, 0, 0]);
    }
    let list = [u64::from(op::MAP_GRANT_REF), ARG, 4];
    let (result, asked) = patiently(&mut guest, GRANT_TABLE_OP, &list);
    assert_eq!(result, 0);
    let grants = [(8, true), (10, true), (8, true)].map(|(of, write)| Question::Grant(of, write));
    assert_eq!(asked, [std::vec![Question::Reach], grants.to_vec()]);
    let answers = [18, 50, 82, 114].map(|at| guest.u16(ARG + at) as i16);
    let refused = [status::BAD_GNTREF, status::BAD_DOMAIN];
    assert_eq!(
        answers,
        [status::OKAY, refused[0], status::OKAY, refused[1]]
    );
    assert_eq!(front(&guest).used.len(), 2);
    assert!(front(&guest).opened.is_empty(), "each was used once");
}

#[test]
fn what_a_guest_changes_meanwhile_is_asked_for_anew() {
    let mut guest = slow_driver();
    guest.put_u64s(ARG, &[0x20 * PAGE_SIZE]);
    guest.put_u32s(ARG + 8, &[HOST_MAP, 8, u32::from(FRONT), 0, 0, 0]);
    let list = [u64::from(op::MAP_GRANT_REF), ARG, 1];
    for expected in [Question::Reach, Question::Grant(8, true)] {
        assert_eq!(guest.outcome(GRANT_TABLE_OP, &list).next, Next::Restart);
        assert_eq!(answer(&mut guest), [expected]);
    }
    guest.put_u32s(ARG + 8, &[HOST_MAP | READONLY, 9]);
    let (_, asked) = patiently(&mut guest, GRANT_TABLE_OP, &list);
    assert_eq!(asked, [[Question::Grant(9, false)]]);
    assert_eq!(guest.u16(ARG + 18) as i16, status::OKAY);
    assert_eq!(front(&guest).opened.len(), 1, "left for the VMM to close");
}

#[test]
fn a_copy_between_two_grants_is_asked_for_once() {
    let mut guest = slow_driver();
    guest.env.front.as_mut().unwrap().reached = true;
    for (at, reference) in [(ARG, 9), (ARG + 16, 8)] {
        guest.put_u64s(at, &[reference]);
        guest.put_u32s(at + 8, &[FRONT.into()]);
    }
    guest.put_u32s(ARG + 32, &[100 | 3 << 16, 0]);
    let list = [u64::from(op::COPY), ARG, 1];
    let (_, asked) = patiently(&mut guest, GRANT_TABLE_OP, &list);
    let side = |reference| CopySide::Granted {
        domid: FRONT,
        reference,
        offset: 0,
    };
    let copy = GrantCopy {
        from: side(9),
        to: side(8),
        length: 100,
    };
    assert_eq!(asked, [[Question::Copy(copy)]]);
    assert_eq!(guest.u16(ARG + 36) as i16, status::OKAY);
    let page = &front(&guest).grants[&8].1;
    assert_eq!(page[..101], [[9; 100].as_slice(), &[8]].concat());
}

#[test]
fn a_port_is_bound_when_the_other_domain_has_answered() {
    let mut guest = slow_driver();
    guest.put_u32s(ARG, &[u32::from(FRONT), 17, 0]);
    let call = [u64::from(event::BIND_INTERDOMAIN), ARG];
    let free = guest.event(
        event::ALLOC_UNBOUND,
        &[u32::from(OWN) | u32::from(OWN) << 16, 0],
    );
    let next = guest.u32(ARG + 4) + 1;
    assert_eq!(free, 0);
    guest.put_u32s(ARG, &[u32::from(FRONT), 17, 0]);
    let (result, asked) = patiently(&mut guest, EVENT_CHANNEL_OP, &call);
    assert_eq!(result, 0);
    assert_eq!(asked, [[Question::Reach], [Question::Bind(17)]]);
    assert_eq!(guest.u32(ARG + 8), next, "no port was lost on the way");
}

#[test]
fn status_tells_the_other_domain_and_its_port() {
    let mut guest = driver();
    assert_eq!(
        guest.event(event::BIND_INTERDOMAIN, &[u32::from(FRONT), 17, 0]),
        0
    );
    let port = guest.u32(ARG + 8);
    let told = |guest: &mut Guest, port| {
        assert_eq!(
            guest.event(event::STATUS, &[SELF.into(), port, 0, 0, 0, 0]),
            0
        );
        (guest.u32(ARG + 8), guest.u16(ARG + 16), guest.u32(ARG + 20))
    };
    assert_eq!(told(&mut guest, port), (2, FRONT, 17));
    // The other end of such a channel.
    let waits = u32::from(SELF) | u32::from(FRONT) << 16;
    assert_eq!(guest.event(event::ALLOC_UNBOUND, &[waits, 0]), 0);
    let port = guest.u32(ARG + 4);
    let bound = guest.domain.bind_channel(port, FRONT, LinkId(3), 1, 44);
    assert_eq!(bound, Ok(()));
    assert_eq!(told(&mut guest, port), (2, FRONT, 44));
}
