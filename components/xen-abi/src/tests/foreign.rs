//! A driver domain: grants and ports of another domain.

use std::vec::Vec;

use super::harness::*;
use crate::domain::number::GRANT_TABLE_OP;
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
        assert_eq!(
            guest.call(GRANT_TABLE_OP, &[u64::from(op::COPY), ARG, 1]),
            0
        );
        assert!(front(guest).used.is_empty(), "in use for the copy only");
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
