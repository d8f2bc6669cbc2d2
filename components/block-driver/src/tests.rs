//! The engine over a device whose answers the test chooses.

use std::boxed::Box;
use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

use idl::block::Geometry;
use idl::requests::{
    Checked, ClientRing, NOBODY, Operation, PAGE_BYTES, Request, RequestPage, SLOTS,
    Status as Ended,
};

use crate::Failed;
use crate::engine::{Broken, Device, Engine, Full, LIMIT, LOOK, Tag};
use crate::memory::{Memory, Plain};

/// Bytes of each client's memory.
const SHARED: u32 = 1 << 20;

struct Fake {
    geometry: Geometry,
    /// By queue: tags and addresses that it has.
    with: Vec<Vec<(Tag, u64)>>,
    room: usize,
    done: VecDeque<Result<(Tag, Ended), Broken>>,
    fault: Option<&'static str>,
    recovers: bool,
    resets: u32,
    announced: u32,
    now: u64,
}

impl Device for Fake {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn queues(&self) -> usize {
        self.with.len()
    }
    fn has_room(&self, queue: usize) -> bool {
        self.with[queue].len() < self.room
    }
    fn submit(&mut self, queue: usize, _: &Checked, bus: u64, tag: Tag) -> Result<(), Full> {
        self.with[queue].push((tag, bus));
        Ok(())
    }
    fn announce(&mut self, _: usize) {
        self.announced += 1;
    }
    fn complete(&mut self, _: usize) -> Result<Option<(Tag, Ended)>, Broken> {
        self.done.pop_front().transpose()
    }
    fn fault(&self) -> Option<&'static str> {
        self.fault
    }
    fn recover(&mut self) -> Result<(), Failed> {
        self.resets += 1;
        self.with.iter_mut().for_each(Vec::clear);
        self.fault = None;
        match self.recovers {
            true => Ok(()),
            false => Err("it is dead".into()),
        }
    }
    fn halt(&mut self) {}
    fn now(&self) -> u64 {
        self.now
    }
}

/// An engine with so many clients, all attached, on two queues.
fn engine(clients: usize) -> (Engine<Fake>, Vec<ClientRing<'static>>) {
    let fake = Fake {
        geometry: Geometry {
            block_bytes: 512,
            blocks: 1000,
            request_bytes: 65536,
            read_only: false,
            write_cache: true,
            queues: 2,
            discard: None,
        },
        with: vec![Vec::new(), Vec::new()],
        room: 8,
        done: VecDeque::new(),
        fault: None,
        recovers: true,
        resets: 0,
        announced: 0,
        now: 5,
    };
    let pages: Vec<&'static RequestPage> = (0..clients)
        .map(|_| &*Box::leak(Box::new(RequestPage::new())))
        .collect();
    let known = pages.iter().enumerate();
    let known = known.map(|(index, page)| (*page, (index as u64 + 1) << 32, SHARED));
    let mut engine = Engine::new(fake, known);
    for client in 0..clients {
        assert_eq!(engine.attach(client), Some(SHARED));
    }
    (engine, pages.into_iter().map(ClientRing::new).collect())
}

fn request(id: u32, operation: Operation) -> Request {
    Request {
        id,
        operation: operation as u32,
        block: id.into(),
        offset: PAGE_BYTES,
        bytes: 512,
    }
}

fn answers(ring: &mut ClientRing<'static>) -> Vec<(u32, Ended)> {
    let mut all = Vec::new();
    while let Some(answer) = ring.collect().unwrap() {
        all.push((answer.id, answer.status));
    }
    all
}

#[test]
fn each_clients_requests_go_to_its_queue_with_its_memory_and_only_it_is_told() {
    let (mut engine, mut rings) = engine(3);
    for (id, ring) in rings.iter_mut().enumerate() {
        ring.submit(&request(id as u32, Operation::Read)).unwrap();
    }
    engine.work(|_| panic!("nobody has answers")).unwrap();
    let place = u64::from(PAGE_BYTES);
    let with = engine.device.with.clone();
    let buses = |queue: usize| with[queue].iter().map(|(_, bus)| bus >> 32).collect();
    let both: [Vec<u64>; 2] = [buses(0), buses(1)];
    assert_eq!(both, [vec![1, 3], vec![2]]);
    assert_eq!(
        (with[1][0].1 & 0xffff_ffff, engine.device.announced),
        (place, 3)
    );
    engine
        .device
        .done
        .push_back(Ok((with[1][0].0, Ended::Done)));
    let mut told = Vec::new();
    engine.work(|client| told.push(client)).unwrap();
    assert_eq!(
        (told, answers(&mut rings[1])),
        (vec![1], vec![(1, Ended::Done)])
    );
    assert!(answers(&mut rings[0]).is_empty() && engine.is_busy());
}

#[test]
fn attaching_waits_for_requests_of_the_attachment_before() {
    let (mut engine, mut rings) = engine(1);
    rings[0].submit(&request(7, Operation::Write)).unwrap();
    engine.work(|_| {}).unwrap();
    engine.detach(0);
    assert_eq!((engine.open(0), engine.attach(0)), (1, None));
    engine.device.done.push_back(Ok((0, Ended::Done)));
    engine.complete();
    assert_eq!((engine.open(0), engine.attach(0)), (0, Some(SHARED)));
    // Its answer was nobody's.
    assert!(answers(&mut rings[0]).is_empty());
    assert_eq!(engine.attach(1), None);
}

#[test]
fn a_disk_without_a_cache_has_flushed_already() {
    let (mut engine, mut rings) = engine(1);
    engine.device.geometry.write_cache = false;
    rings[0].submit(&request(1, Operation::Flush)).unwrap();
    engine.work(|_| {}).unwrap();
    assert_eq!(answers(&mut rings[0]), [(1, Ended::Done)]);
    assert!(!engine.is_busy());
}

#[test]
fn a_ring_that_jumps_is_told_and_its_neighbour_is_served() {
    let (mut engine, mut rings) = engine(2);
    rings[0].jump(SLOTS + 1);
    rings[1].submit(&request(1, Operation::Read)).unwrap();
    engine.work(|_| {}).unwrap();
    assert_eq!(answers(&mut rings[0]), [(NOBODY, Ended::Damaged)]);
    assert_eq!(engine.open(1), 1);
}

#[test]
fn a_full_queue_takes_no_more_and_goes_on_when_it_has_room() {
    let (mut engine, mut rings) = engine(1);
    for id in 0..20 {
        rings[0].submit(&request(id, Operation::Read)).unwrap();
    }
    engine.work(|_| {}).unwrap();
    assert_eq!(engine.open(0), 8);
    let (tag, _) = engine.device.with[0].remove(3);
    engine.device.done.push_back(Ok((tag, Ended::Device)));
    engine.work(|_| {}).unwrap();
    assert_eq!(engine.open(0), 8);
    assert_eq!(answers(&mut rings[0]), [(3, Ended::Device)]);
}

#[test]
fn an_idle_device_is_not_looked_at_and_a_silent_one_is_reset_in_time() {
    let (mut engine, mut rings) = engine(1);
    assert_eq!(engine.deadline(), None);
    rings[0].submit(&request(1, Operation::Read)).unwrap();
    engine.work(|_| {}).unwrap();
    assert_eq!(engine.deadline(), Some(5 + LOOK));
    engine.device.now = 5 + LIMIT - 1;
    engine.work(|_| {}).unwrap();
    assert_eq!(engine.device.resets, 0);
    engine.device.now = 5 + LIMIT + LOOK;
    engine.work(|_| {}).unwrap();
    assert_eq!((engine.device.resets, engine.device.with[0].len()), (1, 1));
    let (tag, _) = engine.device.with[0][0];
    engine.device.done.push_back(Ok((tag, Ended::Done)));
    engine.device.now += LOOK;
    engine.work(|_| {}).unwrap();
    assert_eq!((answers(&mut rings[0]).len(), engine.deadline()), (1, None));
}

#[test]
fn a_completion_of_nothing_and_a_fault_reset_the_device() {
    for wrong in [Ok((77, Ended::Done)), Err(Broken)] {
        let (mut engine, mut rings) = engine(1);
        rings[0].submit(&request(1, Operation::Read)).unwrap();
        engine.work(|_| {}).unwrap();
        engine.device.done.push_back(wrong);
        engine.work(|_| {}).unwrap();
        assert_eq!((engine.device.resets, engine.open(0)), (1, 1));
        engine.device.fault = Some("it smokes");
        engine.device.now += LOOK;
        engine.work(|_| {}).unwrap();
        // It was with the device at two failures.
        assert_eq!((engine.device.resets, engine.open(0)), (2, 0));
        assert_eq!(answers(&mut rings[0]), [(1, Ended::Device)]);
    }
}

#[test]
fn a_device_that_does_not_come_back_ends_the_driver_with_both_reasons() {
    let (mut engine, mut rings) = engine(1);
    engine.device.recovers = false;
    engine.device.done.push_back(Err(Broken));
    rings[0].submit(&request(1, Operation::Read)).unwrap();
    let why = engine.work(|_| {}).unwrap_err();
    assert!(why.contains("what it was not given; it is dead"), "{why}");
}

#[test]
fn memory_ends_where_its_part_ends() {
    let whole = Plain::new(0x1000, 64);
    let mut part = whole.part(16, 16).unwrap();
    assert_eq!((part.bus(), part.part(8, 9).is_none()), (0x1010, true));
    part.write64(8, 1 << 32 | 2);
    part.write32(16, 3);
    part.write32(13, 3);
    assert_eq!((part.read32(12), whole.read32(24)), (1, 2));
    assert_eq!((part.read8(16), whole.read8(32)), (0, 0));
    assert_eq!(whole.take::<4>(0x0fff), None);
    assert_eq!(whole.give(0x103e, [1; 4]), None);
}
