use super::*;
use alloc::collections::{BTreeMap as Map, BTreeSet};
use core::sync::atomic::Ordering;
use proptest::prelude::*;
use std::vec::Vec;
use xen_abi::{
    Access, Config, MapEntry, MapError, Mode, Registers, ServiceId, ShutdownReason, SpecialFrame,
    TestMemory, TscMode, Upcall, VcpuStart,
};

mod copies;

const PAGES: u64 = 32;
const GUEST: u16 = 5;
/// `GTF_permit_access`, `GTF_readonly`, `GTF_reading`, `GTF_writing`.
const PERMIT: u16 = 1;
const READONLY: u16 = 4;
const READING: u16 = 8;
const WRITING: u16 = 16;

#[derive(Default)]
struct Effects {
    sent: Vec<(u16, u16)>,
    upcalls: Vec<Upcall>,
}

impl Env for Effects {
    fn tsc(&mut self) -> u64 {
        0
    }
    fn translate(&mut self, linear: u64, _: Access) -> Option<u64> {
        Some(linear)
    }
    fn upcall(&mut self, _: u32, how: Upcall) {
        self.upcalls.push(how);
    }
    fn wake(&mut self, _: u32) {}
    fn service_event(&mut self, _: ServiceId) {}
    fn channel_event(&mut self, link: LinkId, channel: u16) {
        self.sent.push((link.0, channel));
    }
    fn shutdown(&mut self, _: ShutdownReason) {}
    fn console_write(&mut self, _: &[u8]) {}
    fn map_special(&mut self, _: SpecialFrame, _: u64) -> Result<(), MapError> {
        Ok(())
    }
    fn remove_page(&mut self, _: u64) -> bool {
        false
    }
    fn populate_page(&mut self, _: u64) -> Result<bool, MapError> {
        Ok(false)
    }
    fn is_ram(&mut self, gfn: u64) -> bool {
        gfn < PAGES
    }
    fn initialise_vcpu(&mut self, _: u32, _: VcpuStart) {}
    fn vcpu_up(&mut self, _: u32) {}
    fn vcpu_down(&mut self, _: u32) {}
    fn nmi(&mut self, _: u32) {}
    fn flush_tlb(&mut self, _: u128) {}
}

/// Frames are numbers; what they are of is remembered until they are revoked.
#[derive(Default)]
struct Made {
    next: u32,
    alive: Map<u32, (u64, bool)>,
    /// No slots are left.
    full: bool,
}

impl Frames for Made {
    type Frame = u32;
    fn grant(&mut self, gfn: u64, write: bool) -> Option<u32> {
        if self.full {
            return None;
        }
        self.next += 1;
        self.alive.insert(self.next, (gfn, write));
        Some(self.next)
    }
    fn revoke(&mut self, frame: u32) {
        assert!(self.alive.remove(&frame).is_some(), "revoked once");
    }
    fn is_ram(&self, gfn: u64) -> bool {
        gfn < PAGES
    }
}

struct Machine {
    domain: Domain,
    memory: TestMemory,
    frames: Made,
    links: Links<u32>,
    page: ChannelPage,
    effects: Effects,
}

impl Machine {
    fn new() -> Machine {
        let memory = TestMemory::new((PAGES * 4096) as usize, SpecialFrame::COUNT as usize);
        let config = Config {
            domid: GUEST,
            vcpus: 1,
            pages: PAGES,
            max_pages: PAGES,
            max_gfn: PAGES - 1,
            physical_address_bits: 40,
            memory_map: [MapEntry {
                address: 0,
                size: PAGES * 4096,
                kind: 1,
            }]
            .to_vec(),
            grant_frames: 2,
            max_grant_version: 2,
            tsc: TscMode {
                khz: 1_000_000,
                stable: true,
            },
            tsc_at_start: 0,
            wallclock_at_start: 0,
            store_gfn: 1,
            console_gfn: 2,
            callback_lines: false,
            rdtscp: true,
            uuid: [0; 16],
        };
        Machine {
            domain: Domain::new(config, &memory).unwrap(),
            memory,
            frames: Made::default(),
            links: Links::default(),
            page: ChannelPage::new(),
            effects: Effects::default(),
        }
    }

    fn grant(&self, reference: u32, flags: u16, domain: u16, gfn: u32) {
        let entry = SpecialFrame::GrantTable(0).address() + u64::from(reference) * 8;
        let word = u32::from(flags) | u32::from(domain) << 16;
        self.memory.write_u32(entry, word).unwrap();
        self.memory.write_u32(entry + 4, gfn).unwrap();
    }

    fn flags(&self, reference: u32) -> u16 {
        let entry = SpecialFrame::GrantTable(0).address() + u64::from(reference) * 8;
        self.memory.read_u32(entry).unwrap() as u16
    }

    fn with<R>(
        &mut self,
        work: impl FnOnce(&mut Links<u32>, &ChannelPage, &mut Side<'_, TestMemory, Made>) -> R,
    ) -> R {
        let mut side = Side {
            domain: &mut self.domain,
            memory: &self.memory,
            frames: &mut self.frames,
        };
        work(&mut self.links, &self.page, &mut side)
    }

    fn attach(&mut self, caller: u16, domain: u16) {
        self.with(|links, page, side| links.attach(caller, domain, page, side));
    }

    fn map(&mut self, caller: u16, reference: u32, write: bool) -> Result<u32, PeerError> {
        let grant = GrantRef { reference, write };
        self.with(|links, _, side| links.map(caller, grant, side))
            .map(|(handle, _)| handle)
    }

    fn copy(&mut self, caller: u16, part: GrantCopy) -> Result<(), PeerError> {
        self.with(|links, page, side| links.copy(caller, part, page, side))
    }

    fn unmap(&mut self, caller: u16, handle: u32) -> bool {
        self.with(|links, _, side| links.unmap(caller, handle, side))
    }

    /// `EVTCHNOP_alloc_unbound` for a domain.
    fn unbound(&mut self, remote: u16) -> u32 {
        self.memory
            .write_u32(0, 0x7ff0 | u32::from(remote) << 16)
            .unwrap();
        assert_eq!(self.event(6), 0);
        self.memory.read_u32(4).unwrap()
    }

    /// An event channel operation on the structure at address 0.
    fn event(&mut self, command: u64) -> i64 {
        self.hypercall(32, [command, 0, 0])
    }

    fn hypercall(&mut self, number: u64, [a, b, c]: [u64; 3]) -> i64 {
        let registers = Registers {
            number,
            arguments: [a, b, c, 0, 0, 0],
            mode: Mode::Bits64,
            cpl: 0,
            interrupts: true,
        };
        let outcome = self
            .domain
            .hypercall(0, &registers, &self.memory, &mut self.effects);
        outcome.result as i64
    }

    fn send(&mut self, port: u32) -> i64 {
        self.memory.write_u32(0, port).unwrap();
        self.event(4)
    }

    fn close(&mut self, port: u32) -> i64 {
        self.memory.write_u32(0, port).unwrap();
        self.event(3)
    }

    fn bind(&mut self, caller: u16, port: u32) -> Result<u32, PeerError> {
        self.links
            .bind(caller, port, None, &mut self.domain, &mut self.effects)
    }

    fn events(&mut self, caller: u16) {
        let Machine {
            links,
            page,
            domain,
            memory,
            effects,
            ..
        } = self;
        links.events(caller, page, domain, memory, effects);
    }

    /// The pending bit of a port in shared info.
    fn pending(&self, port: u32) -> bool {
        let word = SpecialFrame::SharedInfo.address() + 0x800 + u64::from(port / 32 * 4);
        self.memory.read_u32(word).unwrap() >> (port % 32) & 1 != 0
    }
}

#[test]
fn a_grant_is_marked_while_it_is_mapped_and_no_longer() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    machine.grant(8, PERMIT, 0, 7);
    let reader = machine.map(0, 8, false).unwrap();
    assert_eq!(machine.flags(8), PERMIT | READING);
    let writer = machine.map(0, 8, true).unwrap();
    assert_eq!(machine.flags(8), PERMIT | READING | WRITING);
    assert!(machine.unmap(0, writer));
    assert_eq!(machine.flags(8), PERMIT | READING);
    assert!(!machine.unmap(0, writer), "once");
    assert!(machine.unmap(0, reader));
    assert_eq!(machine.flags(8), PERMIT);
    assert!(machine.frames.alive.is_empty());
}

#[test]
fn what_was_not_granted_is_refused_and_leaves_no_mark() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    machine.attach(1, 3);
    machine.grant(8, PERMIT, 3, 7);
    machine.grant(9, PERMIT | READONLY, 0, 7);
    machine.grant(10, 0, 0, 7);
    // A transfer, a transitive grant, a part of a page.
    machine.grant(11, 2, 0, 7);
    machine.grant(12, 3, 0, 7);
    machine.grant(13, PERMIT | 1 << 8, 0, 7);
    machine.grant(14, PERMIT, 0, 4000);
    for (caller, reference, write, status) in [
        (0, 8, false, -1),
        (1, 9, false, -1),
        (0, 9, true, -1),
        (0, 10, false, -1),
        (0, 11, false, -1),
        (0, 12, false, -1),
        (0, 13, false, -1),
        (0, 14, true, -9),
        // Entries of the toolstack, and beyond the table.
        (0, 1, false, -1),
        (0, 512, false, -3),
        (0, u32::MAX, false, -3),
    ] {
        let before = (reference < 512).then(|| machine.flags(reference));
        let answer = machine.map(caller, reference, write);
        assert_eq!(answer, Err(PeerError::Grant(status)), "{reference}");
        assert_eq!((reference < 512).then(|| machine.flags(reference)), before);
    }
    assert_eq!(machine.domain.pinned_grants(), 0);
    assert!(machine.map(1, 8, true).is_ok());
    assert!(machine.map(0, 9, false).is_ok());
}

#[test]
fn a_guest_that_takes_a_grant_back_while_it_is_mapped_takes_nothing() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    machine.attach(1, 3);
    machine.grant(8, PERMIT, 0, 7);
    let handle = machine.map(0, 8, true).unwrap();
    machine.grant(8, PERMIT, 3, 9);
    // The frame that was found first stays, and no other domain comes in.
    assert_eq!(machine.frames.alive.values().next(), Some(&(7, true)));
    assert_eq!(machine.map(1, 8, false), Err(PeerError::Grant(-1)));
    assert!(machine.map(0, 8, true).is_ok());
    assert_eq!(machine.frames.alive.values().last(), Some(&(7, true)));
    assert!(machine.unmap(0, handle));
}

#[test]
fn four_are_mapped_or_none() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    for reference in 8..11 {
        machine.grant(reference, PERMIT, 0, reference);
    }
    let grants = [8, 9, 10, 11].map(|reference| GrantRef {
        reference,
        write: true,
    });
    let refused = machine.with(|links, _, side| links.map_four(0, grants, side));
    assert_eq!(refused.err(), Some(PeerError::Grant(-1)));
    assert!(machine.frames.alive.is_empty());
    assert_eq!(machine.flags(8), PERMIT);
    machine.grant(11, PERMIT, 0, 11);
    let made = machine.with(|links, _, side| links.map_four(0, grants, side));
    assert_eq!(made.unwrap().len(), 4);
    assert_eq!(machine.flags(11), PERMIT | READING | WRITING);
}

#[test]
fn who_does_not_attach_gets_nothing() {
    let mut machine = Machine::new();
    machine.grant(8, PERMIT, 0, 7);
    let port = machine.unbound(0);
    assert_eq!(machine.map(0, 8, false), Err(PeerError::Unattached));
    assert_eq!(machine.bind(0, port), Err(PeerError::Unattached));
    assert!(!machine.unmap(0, 0));
    machine.page.to_guest.set(0);
    machine.events(0);
    assert!(!machine.pending(port));
}

#[test]
fn attaching_anew_ends_what_was_there() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    machine.grant(8, PERMIT, 0, 7);
    machine.map(0, 8, true).unwrap();
    let port = machine.unbound(0);
    assert_eq!(machine.bind(0, port), Ok(0));
    machine.page.to_caller.set(0);
    machine.attach(0, 0);
    assert_eq!(machine.flags(8), PERMIT);
    assert!(machine.frames.alive.is_empty());
    assert_eq!(machine.page.to_caller.take().count(), 0);
    assert_eq!(machine.bind(0, port), Ok(0), "unbound again");
}

#[test]
fn mappings_of_a_caller_are_counted() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    for reference in 8..40 {
        machine.grant(reference, PERMIT, 0, 7);
    }
    let mut mapped = 0;
    for reference in (8..40).cycle() {
        match machine.map(0, reference, false) {
            Ok(_) => mapped += 1,
            Err(error) => {
                assert_eq!(error, PeerError::Full);
                break;
            }
        }
    }
    assert_eq!(mapped, MAPPINGS_MAX);
    machine.attach(0, 0);
    machine.frames.full = true;
    assert_eq!(machine.map(0, 8, false), Err(PeerError::Full));
    assert_eq!(machine.flags(8), PERMIT);
}

#[test]
fn one_entry_is_mapped_as_often_as_xen_lets_it() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    machine.grant(8, PERMIT, 0, 7);
    let mapped = (0..200).take_while(|_| machine.map(0, 8, false).is_ok());
    assert_eq!(mapped.count(), 128);
}

#[test]
fn events_go_both_ways() {
    let mut machine = Machine::new();
    machine.attach(2, 0);
    let (one, other) = (machine.unbound(0), machine.unbound(3));
    assert_eq!(machine.bind(2, other), Err(PeerError::Event(EINVAL)));
    let channel = machine.bind(2, one).unwrap();
    assert_eq!(machine.bind(2, one), Err(PeerError::Event(EINVAL)), "taken");
    // Bound: whoever bound it looks once.
    assert_eq!(machine.effects.sent, [(2, channel as u16)]);
    assert_eq!(machine.send(one), 0);
    assert_eq!(machine.effects.sent.len(), 2);
    machine.page.to_guest.set(channel);
    machine.page.to_guest.set(200);
    machine.events(2);
    assert!(machine.pending(one));
    assert!(!machine.pending(other));
}

#[test]
fn a_port_that_the_guest_closed_is_nobodys_channel() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    let port = machine.unbound(0);
    let channel = machine.bind(0, port).unwrap();
    assert_eq!(machine.close(port), 0);
    machine.page.to_guest.set(channel);
    machine.events(0);
    assert!(!machine.pending(port));
    // The number is given again, to the same port of another meaning.
    let again = machine.unbound(3);
    assert_eq!(again, port);
    machine.links.unbind(0, channel, &mut machine.domain);
    machine.page.to_guest.set(channel);
    machine.events(0);
    assert!(!machine.pending(port));
    let fresh = machine.unbound(0);
    assert_eq!(machine.bind(0, fresh), Ok(channel));
}

#[test]
fn an_unbound_channel_lets_the_port_wait_for_the_same_domain() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    let port = machine.unbound(0);
    let channel = machine.bind(0, port).unwrap();
    machine.links.unbind(0, channel, &mut machine.domain);
    machine.links.unbind(0, 7777, &mut machine.domain);
    // Dropped in silence, as before anybody bound it.
    let sent = machine.effects.sent.len();
    assert_eq!(machine.send(port), 0);
    assert_eq!(machine.effects.sent.len(), sent);
    assert_eq!(machine.bind(0, port), Ok(channel));
}

#[derive(Clone, Debug)]
enum Step {
    Grant(u32, u16, u16, u32),
    Attach(u16),
    Detach(u16),
    Map(u16, u32, bool),
    Unmap(u16, usize),
    Unknown(u16, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop::sample::select(Vec::from([
        0,
        PERMIT,
        PERMIT,
        PERMIT | READONLY,
        2,
        3,
        0xffff,
    ]));
    prop_oneof![
        3 => (2u32..8, flags, 0u16..2, 0u32..40).prop_map(|(r, f, d, g)| Step::Grant(r, f, d, g)),
        1 => (0u16..3).prop_map(Step::Attach),
        1 => (0u16..3).prop_map(Step::Detach),
        6 => (0u16..3, 0u32..9, any::<bool>()).prop_map(|(c, r, w)| Step::Map(c, r, w)),
        4 => (0u16..3, 0usize..8).prop_map(|(c, i)| Step::Unmap(c, i)),
        1 => (0u16..3, any::<u32>()).prop_map(|(c, h)| Step::Unknown(c, h)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Against a plain list of what is mapped: nobody has a frame that was not granted to its domain
    /// when it was mapped, nobody keeps one, and an entry is marked exactly while it is used, whatever
    /// the guest writes meanwhile.
    #[test]
    fn grants_behave_like_a_list(steps in prop::collection::vec(step(), 0..60)) {
        let mut machine = Machine::new();
        // Callers 0 and 2 speak as domain 0, caller 1 as domain 1.
        let domain = |caller: u16| caller % 2;
        // Caller, handle, reference, write, frame.
        let mut list: Vec<(u16, u32, u32, bool, u64)> = Vec::new();
        let mut attached = BTreeSet::new();
        let mut entries: Map<u32, (u16, u16, u32)> = Map::new();
        for step in steps {
            match step {
                Step::Grant(reference, flags, domain, gfn) => {
                    let flags = flags & !(READING | WRITING);
                    let used = list.iter().filter(|m| m.2 == reference);
                    let marks = used.fold(0, |marks, m| {
                        marks | READING | if m.3 { WRITING } else { 0 }
                    });
                    // Honest about the marks: the guest cannot see what it overwrote otherwise.
                    machine.grant(reference, flags | marks, domain, gfn);
                    entries.insert(reference, (flags, domain, gfn));
                }
                Step::Attach(caller) => {
                    machine.attach(caller, domain(caller));
                    attached.insert(caller);
                    list.retain(|m| m.0 != caller);
                }
                Step::Detach(caller) => {
                    machine.with(|links, page, side| links.detach(caller, page, side));
                    attached.remove(&caller);
                    list.retain(|m| m.0 != caller);
                }
                Step::Map(caller, reference, write) => {
                    let (flags, grantee, gfn) =
                        entries.get(&reference).copied().unwrap_or_default();
                    let used: Vec<_> = list.iter().filter(|m| m.2 == reference).copied().collect();
                    let first = used.first();
                    let refused = reference < 2
                        || first.is_some_and(|m| domain(m.0) != domain(caller))
                        || (first.is_none()
                            && (flags & 0x103 != PERMIT || grantee != domain(caller)))
                        || (write && !used.iter().any(|m| m.3) && flags & READONLY != 0);
                    let expected = if !attached.contains(&caller) {
                        Err(PeerError::Unattached)
                    } else if refused {
                        Err(PeerError::Grant(-1))
                    } else {
                        let gfn = first.map_or(u64::from(gfn), |m| m.4);
                        if gfn < PAGES { Ok(gfn) } else { Err(PeerError::Grant(-9)) }
                    };
                    let grant = GrantRef { reference, write };
                    let answer = machine.with(|links, _, side| links.map(caller, grant, side));
                    match answer {
                        Ok((handle, frame)) => {
                            let made = machine.frames.alive[&frame];
                            prop_assert_eq!(expected, Ok(made.0));
                            prop_assert_eq!(made.1, write);
                            list.push((caller, handle, reference, write, made.0));
                        }
                        Err(error) => prop_assert_eq!(expected, Err(error)),
                    }
                }
                Step::Unmap(caller, index) => {
                    let own: Vec<_> = list.iter().filter(|m| m.0 == caller).copied().collect();
                    if let Some(one) = own.get(index) {
                        prop_assert!(machine.unmap(caller, one.1));
                        list.retain(|m| m != one);
                    }
                }
                Step::Unknown(caller, handle) => {
                    if !list.iter().any(|m| (m.0, m.1) == (caller, handle)) {
                        prop_assert!(!machine.unmap(caller, handle));
                    }
                }
            }
            prop_assert_eq!(machine.frames.alive.len(), list.len());
            for reference in 2..9 {
                let used = list.iter().filter(|m| m.2 == reference);
                let marks = used.fold(0, |marks, m| {
                    marks | READING | if m.3 { WRITING } else { 0 }
                });
                prop_assert_eq!(machine.flags(reference) & (READING | WRITING), marks);
            }
        }
    }
}
