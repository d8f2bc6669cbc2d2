//! Controllers that behave, and ones that do not, with the engine that all drivers share.

use block_driver::engine::{Device, Engine, LIMIT};
use block_driver::memory::{Memory, Plain};
use idl::requests::{Answer, ClientRing, Operation, PAGE_BYTES, Request, RequestPage, Status};
use proptest::prelude::*;
use std::boxed::Box;
use std::cell::RefCell;
use std::rc::Rc;
use std::string::String;
use std::vec;
use std::vec::Vec;

use crate::controller::{self, Controller, Failure, Machine, message};
use crate::layout::{
    Capabilities, ControllerSaid, NamespaceSaid, PAGE, REQUEST_MOST, RangeMost, Unusable,
};
use crate::pair::Outcome;
use crate::prp::{LIST, Pages, Rest};
use crate::simulated::{BUS, CLIENT, Fault, Handle, SHARED, Sim};

type Simulated = Controller<Handle, Plain>;

fn stopped(sim: &Rc<RefCell<Sim>>) -> Result<Simulated, Failure> {
    let memory = sim.borrow().memory.part(0, controller::BYTES);
    Controller::stopped(Handle(sim.clone()), memory.unwrap(), 2, 3)
}

fn start(change: impl FnOnce(&mut Sim)) -> (Result<Simulated, Failure>, Rc<RefCell<Sim>>) {
    let mut sim = Sim::new();
    change(&mut sim);
    let sim = Rc::new(RefCell::new(sim));
    let started = stopped(&sim).and_then(|mut controller| {
        controller.bring_up()?;
        Ok(controller)
    });
    (started, sim)
}

fn why(change: impl FnOnce(&mut Sim)) -> Failure {
    let (started, _) = start(change);
    started.err().expect("it must not start")
}

/// A controller, the engine, and one client.
struct Rig {
    engine: Engine<Simulated>,
    sim: Rc<RefCell<Sim>>,
    ring: ClientRing<'static>,
    next: u32,
}

impl Rig {
    fn new(change: impl FnOnce(&mut Sim)) -> Rig {
        let (started, sim) = start(change);
        let page: &'static RequestPage = Box::leak(Box::new(RequestPage::new()));
        let mut engine = Engine::new(started.unwrap(), [(page, CLIENT, SHARED)]);
        assert_eq!(engine.attach(0), Some(SHARED));
        Rig {
            engine,
            sim,
            ring: ClientRing::new(page),
            next: 0,
        }
    }

    fn submit(&mut self, operation: Operation, block: u64, offset: u32, bytes: u32) -> u32 {
        let request = Request {
            id: self.next,
            operation: operation as u32,
            block,
            offset,
            bytes,
        };
        self.ring.submit(&request).unwrap();
        self.next += 1;
        request.id
    }

    fn work(&mut self) -> Result<(), String> {
        self.engine.work(|_| {})
    }

    fn collect(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(answer) = self.ring.collect().unwrap() {
            answers.push(answer);
        }
        answers
    }

    /// Lets time pass, as the server does, until the device has nothing any more.
    fn settle(&mut self) -> Result<Vec<Answer>, String> {
        self.work()?;
        let mut answers = self.collect();
        while self.engine.is_busy() {
            let at = self.engine.deadline().expect("a busy device is looked at");
            let later = at.saturating_sub(Device::now(&self.engine.device));
            self.sim.borrow_mut().pass(later);
            self.work()?;
            answers.extend(self.collect());
        }
        Ok(answers)
    }

    fn one(&mut self, operation: Operation, block: u64, offset: u32, bytes: u32) -> Status {
        let id = self.submit(operation, block, offset, bytes);
        let answers = self.settle().unwrap();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].id, id);
        answers[0].status
    }

    fn fill(&self, offset: u32, bytes: u32, seed: u8) -> Vec<u8> {
        let pattern = |at: u32| (at / 512) as u8 ^ (at as u8).wrapping_mul(31) ^ seed;
        let content: Vec<u8> = (0..bytes).map(pattern).collect();
        let pieces = content.as_chunks::<512>().0.iter();
        for (at, piece) in pieces.enumerate() {
            let bus = CLIENT + u64::from(offset) + 512 * at as u64;
            self.sim.borrow().memory.give(bus, *piece).unwrap();
        }
        content
    }

    fn read(&self, offset: u32, bytes: u32) -> Vec<u8> {
        let sim = self.sim.borrow();
        let pieces = (0..u64::from(bytes)).step_by(512);
        pieces
            .flat_map(|at| {
                sim.memory
                    .take::<512>(CLIENT + u64::from(offset) + at)
                    .unwrap()
            })
            .collect()
    }
}

#[test]
fn a_controller_by_the_book_becomes_a_disk() {
    let (started, sim) = start(|_| {});
    let disk = started.unwrap();
    let shape = disk.geometry();
    assert_eq!((shape.block_bytes, shape.blocks), (512, 2048));
    assert_eq!((shape.request_bytes, shape.queues), (REQUEST_MOST, 2));
    assert!(shape.write_cache && !shape.read_only);
    assert_eq!(sim.borrow().vectors, [Some(1), Some(2)]);
    assert_eq!(message(1, 0), None);
    assert_eq!([message(1, 1), message(3, 3)], [Some(0), Some(2)]);
}

#[test]
fn the_disks_shape_is_what_the_controller_says() {
    let shape = |change: fn(&mut Sim)| start(change).0.unwrap().geometry();
    let small = shape(|sim| {
        sim.controller = vec![(77, vec![3]), (525, vec![0])];
        sim.namespace = vec![(99, vec![1])];
        sim.block_bytes = 4096;
        sim.queues = 1;
        sim.active = 7;
    });
    assert_eq!((small.block_bytes, small.blocks), (4096, 256));
    assert_eq!((small.request_bytes, small.queues), (32768, 1));
    assert!(small.read_only && !small.write_cache);
    // The second of two formats.
    let format = shape(|sim| {
        sim.namespace = vec![(26, vec![1]), (130, vec![9]), (134, vec![12])];
    });
    assert_eq!(format.block_bytes, 4096);
    // Doorbells so far apart that those of one queue only are in the registers.
    let apart = shape(|sim| {
        sim.cap |= 8 << 32;
        sim.register_bytes = 0x1000 + 3 * 1024 + 4;
    });
    assert_eq!(apart.queues, 1);
    assert_eq!(shape(|sim| sim.version = 0x1_0000).queues, 2);
}

#[test]
fn controllers_that_cannot_be_used_are_told_apart() {
    let unusable = |change: fn(&mut Sim)| match why(change) {
        Failure::Unusable(why) => why,
        other => panic!("{other:?}"),
    };
    let namespace = |at: usize, byte: u8| match start(|sim| {
        sim.namespace = vec![(at, vec![byte])];
    }) {
        (Err(Failure::Unusable(why)), _) => why,
        _ => panic!("it starts"),
    };
    assert_eq!(unusable(|sim| sim.status = u32::MAX), Unusable::Gone);
    assert_eq!(unusable(|sim| sim.cap &= !(1 << 37)), Unusable::CommandSet);
    assert_eq!(unusable(|sim| sim.cap |= 1 << 48), Unusable::Pages);
    assert_eq!(unusable(|sim| sim.cap &= !0xffff), Unusable::Queues);
    assert_eq!(
        unusable(|sim| sim.register_bytes = 0x1008),
        Unusable::Doorbells
    );
    assert_eq!(
        unusable(|sim| sim.controller = vec![(512, vec![0x77])]),
        Unusable::Entries
    );
    assert_eq!(
        unusable(|sim| sim.controller = vec![(111, vec![2])]),
        Unusable::Kind
    );
    assert_eq!(unusable(|sim| sim.active = 0), Unusable::NoNamespace);
    assert_eq!(namespace(128, 8), Unusable::Metadata);
    assert_eq!(namespace(130, 13), Unusable::BlockSize);
    assert_eq!(namespace(130, 8), Unusable::BlockSize);
}

#[test]
fn no_reset_and_no_command_is_waited_for_for_ever() {
    assert_eq!(why(|sim| sim.stuck = true), Failure::NotReady);
    assert_eq!(why(|sim| sim.fails_at_once = true), Failure::Fatal);
    let stuck = why(|sim| {
        sim.stuck = true;
        sim.status = 1;
    });
    assert_eq!(stuck, Failure::NotStopped);
    let (started, sim) = start(|sim| sim.stuck = true);
    assert!(started.is_err());
    // What CAP.TO says is how long.
    assert!((2000..2010).contains(&Handle(sim).now()));
    for opcode in [1, 5, 6, 9] {
        let with = |fault: Fault| {
            let (started, sim) = start(|sim| {
                sim.admin_faults.insert(opcode, fault);
            });
            assert!(Handle(sim).now() <= LIMIT + 10);
            started.err().expect("it must not start")
        };
        assert!(matches!(with(Fault::Drop), Failure::Silent(_)));
        assert_eq!(with(Fault::Fatal), Failure::Fatal);
        assert_eq!(with(Fault::Gone), Failure::Unusable(Unusable::Gone));
        assert_eq!(with(Fault::Identity(1)), Failure::Broken);
        assert_eq!(with(Fault::Queue), Failure::Broken);
        assert_eq!(with(Fault::Head), Failure::Broken);
        let refused = with(Fault::Status(0x102));
        assert!(matches!(refused, Failure::Refused(_, Outcome(0x102))));
    }
}

#[test]
fn what_was_written_is_read_and_flushed() {
    let mut rig = Rig::new(|_| {});
    let content = rig.fill(PAGE_BYTES, 8192, 5);
    assert_eq!(
        rig.one(Operation::Write, 16, PAGE_BYTES, 8192),
        Status::Done
    );
    assert_eq!(rig.sim.borrow().disk[8192..16384], content[..]);
    assert_eq!(rig.one(Operation::Flush, 0, 0, 0), Status::Done);
    assert_eq!(rig.sim.borrow().flushes, 1);
    assert_eq!(rig.one(Operation::Read, 16, 65536, 8192), Status::Done);
    assert_eq!(rig.read(65536, 8192), content);
    assert_eq!(rig.one(Operation::Read, 2048, 65536, 512), Status::Range);
}

#[test]
fn what_is_given_up_is_given_up_and_nothing_beside_it() {
    for block_bytes in [512u32, 4096] {
        let mut rig = Rig::new(|sim| sim.block_bytes = block_bytes);
        rig.sim.borrow_mut().disk.fill(7);
        let bytes = 5 * block_bytes;
        assert_eq!(rig.one(Operation::Discard, 16, 0, bytes), Status::Done);
        assert_eq!(rig.sim.borrow().discarded, [(16, 5)]);
        let unit = block_bytes as usize;
        let disk = rig.sim.borrow().disk.clone();
        assert!(disk[16 * unit..21 * unit].iter().all(|byte| *byte == 0));
        let beside = disk[..16 * unit].iter().chain(&disk[21 * unit..]);
        assert!(beside.copied().all(|byte| byte == 7));
        let blocks = (1 << 20) / u64::from(block_bytes);
        for (block, bytes, status) in [
            (blocks, block_bytes, Status::Range),
            (blocks - 1, 2 * block_bytes, Status::Range),
            (u64::MAX, block_bytes, Status::Range),
            (0, 0, Status::Alignment),
        ] {
            assert_eq!(rig.one(Operation::Discard, block, 0, bytes), status);
        }
        assert_eq!(rig.sim.borrow().discarded.len(), 1);
    }
}

#[test]
fn a_controller_is_asked_to_give_up_no_more_than_it_says() {
    let discard = |change: fn(&mut Sim)| {
        let discard = start(change).0.unwrap().geometry().discard;
        discard.map(|said| (said.bytes, said.granularity))
    };
    assert_eq!(discard(|_| {}), Some((1 << 30, 512)));
    assert_eq!(
        discard(|sim| sim.limits = Some((0, 0))),
        Some((1 << 30, 512))
    );
    assert_eq!(discard(|sim| sim.limits = Some((8, 0))), Some((4096, 512)));
    assert_eq!(discard(|sim| sim.limits = Some((8, 3))), Some((1536, 512)));
    // NPDG, with OPTPERF and without.
    let granularity = discard(|sim| sim.namespace = vec![(24, vec![0x10]), (68, vec![7, 0])]);
    assert_eq!(granularity, Some((1 << 30, 4096)));
    let without = discard(|sim| sim.namespace = vec![(68, vec![7, 0])]);
    assert_eq!(without, Some((1 << 30, 512)));
    // No Dataset Management; write protected.
    assert_eq!(
        discard(|sim| sim.controller = vec![(520, vec![0xfb])]),
        None
    );
    assert_eq!(discard(|sim| sim.namespace = vec![(99, vec![1])]), None);
    let mut rig = Rig::new(|sim| sim.limits = Some((8, 0)));
    assert_eq!(rig.one(Operation::Discard, 0, 0, 4608), Status::Length);
    assert_eq!(rig.one(Operation::Discard, 0, 0, 4096), Status::Done);
    // A controller that has the command in its list and not in itself.
    let mut rig = Rig::new(|sim| sim.always = Some(Fault::Status(0x001)));
    let status = rig.one(Operation::Discard, 0, 0, 4096);
    assert_eq!(status, Status::Operation);
}

#[test]
fn a_discard_amid_a_failure_is_put_to_the_controller_again() {
    for fault in [Fault::Drop, Fault::Fatal, Fault::Identity(1), Fault::Twice] {
        let mut rig = Rig::new(|sim| {
            sim.faults.insert(0, fault);
        });
        let status = rig.one(Operation::Discard, 8, 0, 4096);
        assert_eq!((status, rig.sim.borrow().resets), (Status::Done, 1));
        assert_eq!(rig.sim.borrow().discarded.last(), Some(&(8, 8)));
    }
}

#[test]
fn statuses_become_the_clients() {
    for (status, answer) in [
        (0x080, Status::Range),
        (0x020, Status::ReadOnly),
        (0x182, Status::ReadOnly),
        (0x281, Status::Device),
        (0x001, Status::Operation),
        (0x002, Status::Device),
    ] {
        let mut rig = Rig::new(|sim| sim.always = Some(Fault::Status(status)));
        assert_eq!(rig.one(Operation::Read, 0, PAGE_BYTES, 512), answer);
        assert_eq!(rig.sim.borrow().resets, 0);
    }
}

#[test]
fn a_failure_amid_requests_is_survived_and_no_request_is_lost() {
    for fault in [
        Fault::Drop,
        Fault::Identity(1),
        Fault::Identity(0x40),
        Fault::Queue,
        Fault::Head,
        Fault::Twice,
        Fault::Fatal,
    ] {
        let mut rig = Rig::new(|sim| {
            sim.faults.insert(5, fault);
        });
        for number in 0..10 {
            let offset = PAGE_BYTES * (number + 1);
            rig.fill(offset, 4096, number as u8);
            rig.submit(Operation::Write, u64::from(number) * 8, offset, 4096);
        }
        let mut ids: Vec<u32> = rig
            .settle()
            .unwrap()
            .iter()
            .map(|answer| {
                assert_eq!(answer.status, Status::Done, "{fault:?}");
                answer.id
            })
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..10).collect::<Vec<_>>(), "{fault:?}");
        assert_eq!(rig.sim.borrow().resets, 1, "{fault:?}");
        let all: Vec<u8> = rig.read(PAGE_BYTES, 40960);
        assert_eq!(rig.sim.borrow().disk[..40960], all[..], "{fault:?}");
        assert!(Device::now(&rig.engine.device) <= LIMIT + 3000, "{fault:?}");
    }
}

#[test]
fn a_request_that_the_controller_fails_at_twice_is_answered_and_the_disk_goes_on() {
    for fault in [Fault::Drop, Fault::Fatal, Fault::Queue] {
        let mut rig = Rig::new(|sim| {
            sim.faults.insert(0, fault);
            sim.faults.insert(1, fault);
        });
        let status = rig.one(Operation::Write, 0, PAGE_BYTES, 512);
        assert_eq!(status, Status::Device, "{fault:?}");
        assert_eq!(rig.sim.borrow().resets, 2);
        let status = rig.one(Operation::Write, 0, PAGE_BYTES, 512);
        assert_eq!(status, Status::Done);
    }
}

#[test]
fn a_controller_that_always_fails_is_given_up() {
    for fault in [Fault::Drop, Fault::Fatal, Fault::Head] {
        let mut rig = Rig::new(|sim| sim.always = Some(fault));
        let mut answered = 0;
        let outcome = loop {
            rig.submit(Operation::Read, 0, PAGE_BYTES, 512);
            match rig.settle() {
                Ok(answers) => answered += answers.len(),
                Err(why) => break why,
            }
            assert!(answered < 10);
        };
        assert!(outcome.contains("after each reset"), "{outcome}");
        assert!(Device::now(&rig.engine.device) < 5 * LIMIT);
    }
    let mut rig = Rig::new(|sim| sim.always = Some(Fault::Gone));
    rig.submit(Operation::Read, 0, PAGE_BYTES, 512);
    let why = rig.settle().unwrap_err();
    assert!(why.contains("not there any more"), "{why}");
}

#[test]
fn another_disk_after_a_reset_is_not_written_to() {
    let mut rig = Rig::new(|sim| {
        sim.faults.insert(0, Fault::Fatal);
    });
    rig.sim.borrow_mut().disk = vec![0; 1 << 19];
    rig.submit(Operation::Write, 0, PAGE_BYTES, 512);
    assert!(rig.settle().unwrap_err().contains("another disk"));
}

#[test]
fn data_in_two_pages_needs_no_list() {
    let of = |bus, bytes| Pages::of(bus, bytes).unwrap().rest;
    assert_eq!(of(0x1000, 4096), Rest::Nothing);
    assert_eq!(of(0x1200, 3584), Rest::Nothing);
    assert_eq!(of(0x1200, 4096), Rest::Page(0x2000));
    let list = Rest::List {
        from: 0x2000,
        count: 2,
    };
    assert_eq!(of(0x1200, 8192), list);
    let longest = Pages::of(0x1200, REQUEST_MOST).unwrap();
    assert!(matches!(longest.rest, Rest::List { count: LIST, .. }));
    assert_eq!(Pages::of(0x1200, REQUEST_MOST + 4096), None);
    assert_eq!(Pages::of(u64::MAX - 10, 512), None);
}

/// What may be wrong, with how often.
fn a_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Drop),
        any::<u16>().prop_map(Fault::Identity),
        Just(Fault::Queue),
        Just(Fault::Head),
        Just(Fault::Twice),
        (0u16..0x800).prop_map(Fault::Status),
        Just(Fault::Fatal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn data_of_any_size_and_place_arrives(
        block in 0u64..1700, offset in 0u32..64, blocks in 1u32..300, seed: u8,
    ) {
        let mut rig = Rig::new(|_| {});
        let (from, to, bytes) = (PAGE_BYTES + offset * 512, (1 << 20) + offset * 512, blocks * 512);
        let content = rig.fill(from, bytes, seed);
        prop_assert_eq!(rig.one(Operation::Write, block, from, bytes), Status::Done);
        let start = block as usize * 512;
        prop_assert_eq!(&rig.sim.borrow().disk[start..start + bytes as usize], &content[..]);
        prop_assert!(rig.sim.borrow().disk[..start].iter().all(|byte| *byte == 0));
        prop_assert_eq!(rig.one(Operation::Read, block, to, bytes), Status::Done);
        prop_assert_eq!(rig.read(to, bytes), content);
    }

    #[test]
    fn in_whatever_order_every_request_is_answered_once(
        steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..600),
        entries in 1u64..64,
    ) {
        let mut rig = Rig::new(|sim| {
            sim.hold = true;
            sim.cap = sim.cap & !0xffff | entries;
        });
        let mut answered = Vec::new();
        for (submit, which) in steps {
            if submit && rig.ring.pending() < 64 {
                rig.submit(Operation::Read, 0, PAGE_BYTES, 512);
            }
            rig.work().unwrap();
            let pending = rig.sim.borrow().pending.len();
            prop_assert!(pending as u64 <= entries);
            if !submit && pending > 0 {
                rig.sim.borrow_mut().finish(which.index(pending));
            }
            rig.work().unwrap();
            answered.extend(rig.collect());
        }
        while rig.ring.pending() > 0 {
            rig.sim.borrow_mut().finish(0);
            rig.work().unwrap();
            answered.extend(rig.collect());
        }
        prop_assert!(answered.iter().all(|answer| answer.status == Status::Done));
        let mut ids: Vec<u32> = answered.iter().map(|answer| answer.id).collect();
        ids.sort_unstable();
        prop_assert_eq!(ids, (0..rig.next).collect::<Vec<_>>());
        prop_assert_eq!(rig.sim.borrow().resets, 0);
    }

    #[test]
    fn whatever_goes_wrong_every_request_ends_once_and_in_time(
        faults in proptest::collection::btree_map(0u32..60, a_fault(), 0..12),
        requests in 1u32..40,
    ) {
        let mut rig = Rig::new(|sim| sim.faults = faults);
        for number in 0..requests {
            rig.submit(Operation::Write, number.into(), PAGE_BYTES, 512);
        }
        // An error is the driver's end: clients put what is open to the next one.
        if let Ok(answers) = rig.settle() {
            let mut ids: Vec<u32> = answers.iter().map(|answer| answer.id).collect();
            ids.sort_unstable();
            prop_assert_eq!(ids, (0..requests).collect::<Vec<_>>());
        }
        prop_assert!(Device::now(&rig.engine.device) < 30 * LIMIT);
    }

    #[test]
    fn whatever_is_written_into_the_queues_no_request_ends_twice(
        writes in proptest::collection::vec((0u64..controller::BYTES / 4, any::<u32>()), 0..100),
        near in proptest::collection::vec((0u64..16, 0u32..0x400_0000), 0..60),
        status: u32,
    ) {
        let mut rig = Rig::new(|sim| sim.hold = true);
        let mut ended = [false; 20];
        for _ in 0..20 {
            rig.submit(Operation::Read, 0, PAGE_BYTES, 512);
        }
        rig.work().unwrap();
        // The completion queue of the client's I/O queue, where most matters.
        let completions = rig.sim.borrow().completions_of(1);
        let anywhere = writes.into_iter().map(|(at, value)| (BUS + at * 4, value));
        let entries = near.into_iter().flat_map(|(entry, value)| {
            let at = completions + entry * 16;
            [(at + 8, 0x1_0000 + value % 70), (at + 12, value)]
        });
        let mut lost = false;
        for (number, (at, value)) in anywhere.chain(entries).enumerate() {
            rig.sim.borrow().memory.give(at, value.to_le_bytes()).unwrap();
            if number % 30 == 29 {
                rig.sim.borrow_mut().status = status;
                rig.sim.borrow_mut().pass(2000);
            }
            lost = rig.work().is_err();
            for answer in rig.collect() {
                prop_assert!(!ended[answer.id as usize]);
                ended[answer.id as usize] = true;
            }
            if lost {
                break;
            }
        }
        prop_assert!(lost || rig.engine.open(0) as usize <= 20);
    }

    #[test]
    fn any_register_and_any_answer_is_read(cap: u64, bytes in proptest::collection::vec(any::<u8>(), 4096)) {
        if let Ok(capabilities) = Capabilities::parse(cap) {
            prop_assert!((2..=64).contains(&capabilities.entries));
            prop_assert!((500..=127_500).contains(&capabilities.patience));
            prop_assert!(capabilities.bytes(4) <= 0x1000 + 10 * (4 << 15));
        }
        let page: [u8; 4096] = bytes.try_into().unwrap();
        let memory = Plain::new(0, PAGE);
        memory.give(0, page).unwrap();
        let namespace = NamespaceSaid::parse(&memory);
        if let Ok(said) = namespace {
            prop_assert!((512..=4096).contains(&said.block_bytes));
        }
        if let Ok(said) = ControllerSaid::parse(&memory) {
            prop_assert!(said.model.is_ascii() && said.serial.is_ascii());
            let namespace = namespace.unwrap_or(NamespaceSaid {
                blocks: 1, block_bytes: 4096, read_only: false, granularity: 1,
            });
            let shape = crate::layout::geometry(&said, &namespace, RangeMost::parse(&memory), 1);
            if let Some(discard) = shape.discard {
                prop_assert!(discard.bytes > 0 && discard.bytes.is_multiple_of(shape.block_bytes));
                prop_assert!(discard.granularity >= shape.block_bytes);
            }
            prop_assert!(shape.request_bytes >= 4096 && shape.request_bytes <= REQUEST_MOST);
        }
    }
}
