//! Event channels by queues, with a guest that takes events out of them as the ABI tells it to.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::harness::*;
use crate::event::op;
use crate::*;
use proptest::prelude::*;

const PENDING: u32 = 1 << 31;
const MASKED: u32 = 1 << 30;
const LINKED: u32 = 1 << 29;
const BUSY: u32 = 1 << 28;
const LINK: u32 = (1 << 17) - 1;
const INFO: u64 = SpecialFrame::SharedInfo.address();

/// Where the guest has its pages: blocks of its vCPUs, and words.
const BLOCKS: u64 = 0x20;
const WORDS: u64 = 0x21;

fn init(guest: &mut Guest, vcpu: u32, gfn: u64, offset: u32) -> i64 {
    guest.put_u64s(ARG, &[gfn, 0, 0]);
    guest.put_u32s(ARG + 8, &[offset, vcpu]);
    guest.call(32, &[op::INIT_CONTROL.into(), ARG])
}

fn expand(guest: &mut Guest, gfn: u64) -> i64 {
    guest.put_u64s(ARG, &[gfn]);
    guest.call(32, &[op::EXPAND_ARRAY.into(), ARG])
}

fn block(vcpu: u32) -> u64 {
    BLOCKS * PAGE_SIZE + u64::from(vcpu) * 0x100
}

fn word(port: u32) -> u64 {
    WORDS * PAGE_SIZE + u64::from(port) * 4
}

/// A guest with queues and one page of words.
fn queued(vcpus: u32) -> Guest {
    let mut guest = Guest::new(vcpus);
    for vcpu in 0..vcpus {
        assert_eq!(init(&mut guest, vcpu, BLOCKS, vcpu * 0x100), 0);
        assert_eq!(guest.bytes::<1>(ARG + 16), [17], "bits of a link");
    }
    assert_eq!(expand(&mut guest, WORDS), 0);
    guest
}

fn upcall_pending(guest: &Guest, vcpu: u32) -> bool {
    guest.bytes::<1>(INFO + u64::from(vcpu) * 64) != [0]
}

/// Takes all events of a vCPU: the ports, in their order.
fn take(guest: &mut Guest, vcpu: u32) -> Vec<u32> {
    let mut taken = Vec::new();
    let mut heads = [0; 16];
    guest.put(INFO + u64::from(vcpu) * 64, &[0]);
    let mut ready = 0;
    loop {
        ready |= guest.memory.fetch_and_u32(block(vcpu), 0).unwrap();
        if ready == 0 {
            return taken;
        }
        let priority = ready.trailing_zeros();
        let head = &mut heads[priority as usize];
        if *head == 0 {
            *head = guest.u32(block(vcpu) + 8 + 4 * u64::from(priority));
        }
        let port = *head;
        assert_ne!(port, 0, "a ready queue has a head");
        let before = guest
            .memory
            .fetch_and_u32(word(port), !(LINKED | LINK))
            .unwrap();
        assert_ne!(before & LINKED, 0, "what is in a queue is linked");
        assert_eq!(before & BUSY, 0);
        *head = before & LINK;
        if *head == 0 {
            ready &= !(1 << priority);
        }
        if before & (PENDING | MASKED) == PENDING {
            guest.memory.fetch_and_u32(word(port), !PENDING).unwrap();
            taken.push(port);
        }
    }
}

#[test]
fn first_control_block_ends_the_two_levels() {
    let mut guest = Guest::new(2);
    let port = guest.bind_ipi(0);
    assert_eq!(expand(&mut guest, WORDS), error(Errno::OpNotSupp));
    for (vcpu, gfn, offset, answer) in [
        (2, BLOCKS, 0, Errno::NoEnt),
        (0, BLOCKS, 4096 - 72 + 8, Errno::Inval),
        (0, BLOCKS, 4, Errno::Inval),
        (0, PAGES, 0, Errno::Inval),
        (0, u64::MAX, 0, Errno::Inval),
    ] {
        assert_eq!(init(&mut guest, vcpu, gfn, offset), error(answer));
        // Still with two levels.
        assert_eq!(expand(&mut guest, WORDS), error(Errno::OpNotSupp));
    }
    assert_eq!(init(&mut guest, 0, BLOCKS, 4096 - 72), 0);
    assert_eq!(init(&mut guest, 0, BLOCKS, 0), error(Errno::Inval), "once");
    assert_eq!(guest.event(op::SEND, &[port]), 0);
    assert_eq!(guest.u64(INFO + 2048), 0, "no bit of the two levels");
    // A reset goes back.
    assert_eq!(guest.event(op::RESET, &[u32::from(SELF)]), 0);
    let port = guest.bind_ipi(0);
    assert_eq!(guest.event(op::SEND, &[port]), 0);
    assert_eq!(guest.u64(INFO + 2048), 1 << port);
}

#[test]
fn what_was_pending_before_is_queued_when_its_word_comes() {
    let mut guest = Guest::new(1);
    let before = guest.bind_ipi(0);
    let after = guest.bind_ipi(0);
    let closed = guest.bind_ipi(0);
    assert_eq!(guest.event(op::SEND, &[before]), 0);
    assert_eq!(init(&mut guest, 0, BLOCKS, 0), 0);
    assert_eq!(guest.event(op::SEND, &[after]), 0);
    assert_eq!(guest.event(op::SEND, &[closed]), 0);
    assert_eq!(guest.event(op::CLOSE, &[closed]), 0);
    guest.put(INFO, &[0]);
    assert_eq!(expand(&mut guest, WORDS), 0);
    assert!(upcall_pending(&guest, 0));
    assert_eq!(take(&mut guest, 0), [before, after]);
    assert_eq!(expand(&mut guest, PAGES), error(Errno::Inval));
    for _ in 1..128 {
        assert_eq!(expand(&mut guest, WORDS + 1), 0);
    }
    assert_eq!(expand(&mut guest, WORDS + 1), error(Errno::NoSpc));
}

#[test]
fn priorities_order_what_is_pending() {
    let mut guest = Guest::new(1);
    let early = guest.bind_ipi(0);
    assert_eq!(
        guest.event(op::SET_PRIORITY, &[early, 0]),
        error(Errno::NoSys)
    );
    let mut guest = queued(1);
    let ports: [u32; 4] = core::array::from_fn(|_| guest.bind_ipi(0));
    for (port, priority, answer) in [
        (ports[0], 15, 0),
        (ports[2], 0, 0),
        (ports[1], 16, error(Errno::Inval)),
        (ports[1], u32::MAX, error(Errno::Inval)),
        (0, 7, error(Errno::Acces)),
        (60, 16, error(Errno::Acces)),
        (4000, 7, error(Errno::Inval)),
    ] {
        assert_eq!(guest.event(op::SET_PRIORITY, &[port, priority]), answer);
    }
    for port in ports {
        assert_eq!(guest.event(op::SEND, &[port]), 0);
    }
    assert_eq!(
        take(&mut guest, 0),
        [ports[2], ports[1], ports[3], ports[0]]
    );
    // A port that is given out again has the priority of all.
    assert_eq!(guest.event(op::CLOSE, &[ports[0]]), 0);
    assert_eq!(guest.bind_ipi(0), ports[0]);
    for port in [ports[1], ports[0]] {
        guest.event(op::SEND, &[port]);
    }
    assert_eq!(take(&mut guest, 0), [ports[1], ports[0]]);
}

#[test]
fn queued_port_is_not_given_out_again() {
    let mut guest = queued(1);
    let port = guest.bind_ipi(0);
    guest.event(op::SEND, &[port]);
    assert_eq!(guest.event(op::CLOSE, &[port]), 0);
    assert_eq!(guest.bind_ipi(0), port + 1);
    assert_eq!(take(&mut guest, 0), [0; 0], "closed before it was seen");
    assert_eq!(guest.bind_ipi(0), port);
}

#[test]
fn poll_sees_a_queued_event() {
    let mut guest = queued(1);
    let port = guest.bind_ipi(0);
    guest.interrupts = false;
    guest.event(op::SEND, &[port]);
    guest.put_u64s(ARG, &[LIST, 1, 0]);
    guest.put_u32s(LIST, &[port]);
    assert_eq!(guest.outcome(29, &[3, ARG]).next, Next::Continue);
    take(&mut guest, 0);
    assert_eq!(guest.outcome(29, &[3, ARG]).next, Next::Block);
    guest.effects();
    // Also one that is masked.
    guest.memory.fetch_or_u32(word(port), MASKED).unwrap();
    guest
        .domain
        .raise_fifo(port, 0, &guest.memory, &mut guest.env);
    assert_eq!(guest.effects(), [Effect::Wake(0)]);
}

/// Memory whose guest does something at each compare-and-exchange.
struct Busy<'a> {
    memory: &'a TestMemory,
    left: Cell<u32>,
    act: fn(&TestMemory, u32),
}

impl GuestMemory for Busy<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked> {
        self.memory.read(address, buffer)
    }
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked> {
        self.memory.write(address, bytes)
    }
    fn read_u32(&self, address: u64) -> Result<u32, Unbacked> {
        self.memory.read_u32(address)
    }
    fn write_u32(&self, address: u64, value: u32) -> Result<(), Unbacked> {
        self.memory.write_u32(address, value)
    }
    fn fetch_or_u32(&self, address: u64, bits: u32) -> Result<u32, Unbacked> {
        self.memory.fetch_or_u32(address, bits)
    }
    fn fetch_and_u32(&self, address: u64, bits: u32) -> Result<u32, Unbacked> {
        self.memory.fetch_and_u32(address, bits)
    }
    fn compare_exchange_u32(&self, address: u64, current: u32, new: u32) -> Result<u32, Unbacked> {
        if self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            (self.act)(self.memory, self.left.get());
        }
        self.memory.compare_exchange_u32(address, current, new)
    }
}

/// Sends 1, then 2 while the guest acts on 1's word.
fn race(times: u32, act: fn(&TestMemory, u32)) -> Guest {
    let mut guest = queued(1);
    let (one, two) = (guest.bind_ipi(0), guest.bind_ipi(0));
    assert_eq!((one, two), (1, 2));
    guest.event(op::SEND, &[one]);
    let busy = Busy {
        memory: &guest.memory,
        left: Cell::new(times),
        act,
    };
    guest.domain.raise_fifo(two, 0, &busy, &mut guest.env);
    guest
}

#[test]
fn tail_that_is_taken_meanwhile_leaves_a_new_head() {
    let mut guest = race(1, |memory, _| {
        memory.fetch_and_u32(word(1), !(LINKED | LINK)).unwrap();
        memory.fetch_and_u32(block(0), 0).unwrap();
    });
    assert_eq!(guest.u32(word(1)) & BUSY, 0);
    assert_eq!(guest.u32(block(0) + 8 + 4 * 7), 2);
    assert_eq!(take(&mut guest, 0), [2]);
}

#[test]
fn guest_that_spoils_a_link_loses_one_event_and_hangs_nobody() {
    let mut guest = race(100, |memory, left| {
        let bit = 1 << (17 + left % 2);
        let word = word(1);
        let value = memory.read_u32(word).unwrap();
        memory.write_u32(word, value ^ bit).unwrap();
    });
    assert_eq!(guest.u32(word(1)) & BUSY, 0);
    assert_eq!(take(&mut guest, 0), [1]);
}

#[derive(Clone, Debug)]
enum Step {
    Bind(u32),
    Close(u32),
    Send(u32),
    Mask(u32),
    Unmask(u32),
    Priority(u32, u32),
    /// Binds the port of the service elsewhere.
    Move(u32),
    Notify,
    Take(u32),
}

const VCPUS: u32 = 2;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = || 1u32..8;
    let step = prop_oneof![
        (0..VCPUS).prop_map(Step::Bind),
        port().prop_map(Step::Close),
        port().prop_map(Step::Send),
        port().prop_map(Step::Send),
        port().prop_map(Step::Mask),
        port().prop_map(Step::Unmask),
        (port(), 0u32..16).prop_map(|(port, priority)| Step::Priority(port, priority)),
        (0..VCPUS).prop_map(Step::Move),
        Just(Step::Notify),
        (0..VCPUS).prop_map(Step::Take),
    ];
    prop::collection::vec(step, 1..100)
}

/// What the guest may expect.
#[derive(Default)]
struct Model {
    /// vCPU and priority of the ports that are bound.
    bound: BTreeMap<u32, (u32, u32)>,
    pending: BTreeSet<u32>,
    masked: BTreeSet<u32>,
    /// Ports in queues, by vCPU and priority.
    queues: BTreeMap<(u32, u32), Vec<u32>>,
}

impl Model {
    fn is_linked(&self, port: u32) -> bool {
        self.queues.values().any(|queue| queue.contains(&port))
    }

    fn link(&mut self, port: u32) {
        if self.pending.contains(&port) && !self.masked.contains(&port) && !self.is_linked(port) {
            let queue = self.bound[&port];
            self.queues.entry(queue).or_default().push(port);
        }
    }

    fn raise(&mut self, port: u32) {
        self.pending.insert(port);
        self.link(port);
    }

    fn take(&mut self, vcpu: u32) -> Vec<u32> {
        let mut taken = Vec::new();
        for (_, queue) in self.queues.range_mut((vcpu, 0)..(vcpu, 16)) {
            for port in core::mem::take(queue) {
                if !self.masked.contains(&port) && self.pending.remove(&port) {
                    taken.push(port);
                }
            }
        }
        taken
    }
}

fn apply(guest: &mut Guest, model: &mut Model, service: u32, step: &Step) {
    let known = |model: &Model, port: u32| model.bound.contains_key(&port);
    let answer = |good: bool| if good { 0 } else { error(Errno::Inval) };
    match *step {
        Step::Bind(vcpu) => {
            let free = |port: &u32| !known(model, *port) && !model.is_linked(*port);
            let Some(port) = (1..8).find(free) else {
                return;
            };
            assert_eq!(guest.bind_ipi(vcpu), port);
            model.bound.insert(port, (vcpu, 7));
        }
        Step::Close(port) if port != service => {
            let good = known(model, port);
            assert_eq!(guest.event(op::CLOSE, &[port]), answer(good));
            if good {
                model.bound.remove(&port);
                model.pending.remove(&port);
            }
        }
        Step::Send(port) if port != service => {
            let good = known(model, port);
            assert_eq!(guest.event(op::SEND, &[port]), answer(good));
            if good {
                model.raise(port);
            }
        }
        Step::Mask(port) => {
            guest.memory.fetch_or_u32(word(port), MASKED).unwrap();
            model.masked.insert(port);
        }
        Step::Unmask(port) => {
            assert_eq!(guest.event(op::UNMASK, &[port]), 0);
            model.masked.remove(&port);
            if known(model, port) {
                model.link(port);
            }
        }
        Step::Priority(port, priority) => {
            let reply = guest.event(op::SET_PRIORITY, &[port, priority]);
            if let Some((_, before)) = model.bound.get_mut(&port) {
                assert_eq!(reply, 0);
                *before = priority;
            } else {
                assert_eq!(reply, error(Errno::Acces));
            }
        }
        Step::Move(vcpu) => {
            assert_eq!(guest.event(op::BIND_VCPU, &[service, vcpu]), 0);
            model.bound.get_mut(&service).unwrap().0 = vcpu;
        }
        Step::Notify => {
            guest
                .domain
                .notify_guest(service, &guest.memory, &mut guest.env)
                .unwrap();
            model.raise(service);
        }
        Step::Take(vcpu) => assert_eq!(take(guest, vcpu), model.take(vcpu)),
        Step::Close(_) | Step::Send(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn queues_behave_as_the_model(steps in steps()) {
        let mut guest = queued(VCPUS);
        let mut model = Model::default();
        let service = guest
            .domain
            .alloc_service_port(ServiceId(1), &guest.memory)
            .unwrap();
        model.bound.insert(service, (0, 7));
        for step in &steps {
            apply(&mut guest, &mut model, service, step);
            for vcpu in 0..VCPUS {
                let queues = model.queues.range((vcpu, 0)..(vcpu, 16));
                let waits = queues.into_iter().any(|(_, queue)| !queue.is_empty());
                prop_assert!(!waits || upcall_pending(&guest, vcpu), "{:?}", step);
            }
        }
        for vcpu in 0..VCPUS {
            prop_assert_eq!(take(&mut guest, vcpu), model.take(vcpu));
        }
        prop_assert!(model.pending.is_subset(&model.masked));
    }

    #[test]
    fn random_words_and_blocks_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 8192),
        ports in prop::collection::vec(0u32..1024, 1..40),
        holes in any::<bool>(),
    ) {
        let mut guest = queued(2);
        guest.put(BLOCKS * PAGE_SIZE, &bytes);
        for port in ports {
            if holes && port % 7 == 0 {
                guest.env.map.remove(&WORDS);
            }
            let bind = [port % 2, 0];
            guest.event(op::BIND_IPI, &bind);
            guest.event(op::SET_PRIORITY, &[port, port % 16]);
            guest.event(op::SEND, &[port]);
            guest.event(op::UNMASK, &[port]);
            guest.event(op::CLOSE, &[port]);
        }
    }
}
