//! The store through its messages: what each request does, for whom, and after a restart.

mod journal;
mod model;

use std::cell::RefCell;
use std::rc::Rc;
use std::string::{String, ToString};
use std::vec::Vec;

use idl::store::{Rings, StoreError};
use idl::volume::{Backend, Disk};
use idl::xs_wire::{Header, kind};

use crate::journal::Area;
use crate::record::Record;
use crate::toolstack::{Facts, Link};
use crate::{Service, quota};

/// Kept memory that a test looks at; it may stop taking stores, as if its user had died.
#[derive(Clone)]
pub struct Memory {
    words: Rc<RefCell<Vec<u64>>>,
    left: Rc<RefCell<usize>>,
}

impl Memory {
    fn new(words: usize) -> Memory {
        Memory {
            words: Rc::new(RefCell::new(std::vec![0; words])),
            left: Rc::new(RefCell::new(usize::MAX)),
        }
    }

    /// From now on so many stores reach it.
    fn dies_after(&self, stores: usize) {
        *self.left.borrow_mut() = stores;
    }

    /// What another instance finds.
    fn copy(&self) -> Memory {
        let copy = Memory::new(0);
        *copy.words.borrow_mut() = self.words.borrow().clone();
        copy
    }
}

impl Area for Memory {
    fn words(&self) -> u64 {
        self.words.borrow().len() as u64
    }
    fn read(&self, word: u64) -> u64 {
        self.words.borrow()[word as usize]
    }
    fn write(&mut self, word: u64, value: u64) {
        let mut left = self.left.borrow_mut();
        if *left > 0 {
            *left -= 1;
            self.words.borrow_mut()[word as usize] = value;
        }
    }
}

/// A store with guests 7 and 8 (clients of the same numbers) and client 0 of domain 0.
pub struct Bench {
    service: Service<Memory>,
    memory: Memory,
    numbers: [u32; 9],
}

fn facts(domain: u16) -> Facts {
    Facts {
        domain,
        starts: 1,
        name: "guest".to_string(),
        vcpus: 2,
        memory_kib: 65_536,
        disks: Vec::new(),
        serves: Vec::new(),
        rings: Rings {
            console_frame: 1,
            console_port: 1,
            store_frame: 2,
            store_port: 2,
        },
    }
}

impl Bench {
    fn new() -> Bench {
        Bench::over(Memory::new(1 << 17))
    }

    fn over(memory: Memory) -> Bench {
        let (mut service, _) = Service::open(memory.clone());
        for domain in [7, 8] {
            service.introduce(&facts(domain)).unwrap();
            service.open_session(domain.into(), domain).unwrap();
        }
        service.open_session(0, 0).unwrap();
        Bench {
            service,
            memory,
            numbers: [0; 9],
        }
    }

    /// The next instance.
    fn restart(&mut self) {
        let (service, recovered) = Service::open(self.memory.clone());
        assert!(recovered.records > 0 && !recovered.damaged);
        self.service = service;
    }

    fn message(kind: u32, transaction: u32, payload: &[u8]) -> Vec<u8> {
        let header = Header {
            kind,
            request: 9,
            transaction,
            length: payload.len() as u32,
        };
        [&header.encode()[..], payload].concat()
    }

    /// Sends request `number` in pieces, and puts the answer together.
    fn send(&mut self, client: u32, number: u32, message: &[u8]) -> (Header, Vec<u8>) {
        let length = message.len() as u32;
        let mut answer = None;
        for (index, piece) in message.chunks(1500).enumerate() {
            let offset = 1500 * index as u32;
            answer = self
                .service
                .send(client, number, length, offset, piece)
                .unwrap();
        }
        let answer = answer.unwrap();
        let mut bytes = answer.piece.to_vec();
        while bytes.len() < answer.length as usize {
            let rest = self.service.rest(client, number, bytes.len() as u32);
            bytes.extend_from_slice(&rest.unwrap());
        }
        let header = Header::decode(bytes.first_chunk().unwrap());
        assert_eq!(header.length as usize + Header::BYTES, bytes.len());
        (header, bytes.split_off(Header::BYTES))
    }

    fn within(&mut self, client: u32, transaction: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
        self.numbers[client as usize] += 1;
        let number = self.numbers[client as usize];
        let message = Bench::message(kind, transaction, payload);
        let (header, answer) = self.send(client, number, &message);
        assert_eq!((header.request, header.transaction), (9, transaction));
        assert!(header.kind == kind || header.kind == kind::ERROR);
        answer
    }

    fn ask(&mut self, client: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
        self.within(client, 0, kind, payload)
    }

    fn say(&mut self, client: u32, kind: u32, payload: &[u8]) -> String {
        String::from_utf8(self.ask(client, kind, payload)).unwrap()
    }

    /// Events as "path token".
    fn events(&mut self, client: u32) -> Vec<String> {
        let mut bytes = Vec::new();
        loop {
            let (piece, more) = self.service.events(client).unwrap();
            bytes.extend_from_slice(&piece);
            if !more {
                break;
            }
        }
        let mut events = Vec::new();
        let mut rest = &bytes[..];
        while let Some(head) = rest.first_chunk() {
            let header = Header::decode(head);
            assert_eq!(header.kind, kind::WATCH_EVENT);
            let end = Header::BYTES + header.length as usize;
            let mut parts = rest[Header::BYTES..end].split(|byte| *byte == 0);
            let mut next = || String::from_utf8_lossy(parts.next().unwrap()).into_owned();
            let (path, token) = (next(), next());
            events.push(std::format!("{path} {token}"));
            rest = &rest[end..];
        }
        assert!(rest.is_empty());
        events
    }

    fn records(&self) -> Vec<Record> {
        self.service.state().records().collect()
    }
}

#[test]
fn relative_and_absolute_paths_name_the_same_node() {
    let mut b = Bench::new();
    assert_eq!(b.say(7, kind::READ, b"name\0"), "guest");
    assert_eq!(b.say(7, kind::READ, b"/local/domain/7/name\0"), "guest");
    assert_eq!(b.say(7, kind::DIRECTORY, b"cpu\0"), "0\x001\0");
    assert_eq!(b.say(7, kind::DIRECTORY, b"device/vbd\0"), "ENOENT\0");
    for bad in [&b"\0"[..], b"a//b\0", b"a/\0", b"a b\0", b"\xff\0"] {
        assert_eq!(b.say(7, kind::READ, bad), "EINVAL\0");
    }
}

#[test]
fn a_guest_writes_what_is_its_own_and_reads_what_it_may() {
    let mut b = Bench::new();
    assert_eq!(b.say(7, kind::WRITE, b"name\0evil"), "EACCES\0");
    assert_eq!(b.say(7, kind::READ, b"/local/domain/8/name\0"), "EACCES\0");
    assert_eq!(b.say(7, kind::READ, b"/local/domain/8/none\0"), "EACCES\0");
    assert_eq!(b.say(7, kind::DIRECTORY, b"/\0"), "EACCES\0");
    assert_eq!(b.say(7, kind::WRITE, b"data/a/b\0v\0w"), "OK\0");
    assert_eq!(b.say(7, kind::READ, b"data/a/b\0"), "v\0w");
    assert_eq!(b.say(7, kind::GET_PERMS, b"data/a\0"), "n7\0");
    assert_eq!(
        b.say(8, kind::READ, b"/local/domain/7/data/a/b\0"),
        "EACCES\0"
    );
    assert_eq!(b.say(7, kind::SET_PERMS, b"data/a/b\0n7\0r8\0"), "OK\0");
    assert_eq!(b.say(8, kind::READ, b"/local/domain/7/data/a/b\0"), "v\0w");
    assert_eq!(
        b.say(8, kind::WRITE, b"/local/domain/7/data/a/b\0x"),
        "EACCES\0"
    );
    assert_eq!(b.say(7, kind::SET_PERMS, b"data/a\0n0\0"), "EACCES\0");
    assert_eq!(b.say(7, kind::RM, b"data/a\0"), "OK\0");
    assert_eq!(b.say(7, kind::READ, b"data/a/b\0"), "ENOENT\0");
    assert_eq!(b.say(7, kind::RM, b"data/a\0"), "OK\0", "again");
    assert_eq!(b.say(0, kind::RM, b"/none/deep\0"), "ENOENT\0");
    assert_eq!(b.say(0, kind::RM, b"/\0"), "EINVAL\0");
}

#[test]
fn a_watch_hears_of_what_another_domain_wrote_if_it_may_read_it() {
    let mut b = Bench::new();
    assert_eq!(b.say(7, kind::WRITE, b"data/x\x001"), "OK\0");
    let watch = b"/local/domain/7/data/x\0token\0";
    assert_eq!(b.say(8, kind::WATCH, watch), "OK\0");
    assert_eq!(b.events(8), ["/local/domain/7/data/x token"], "at once");
    assert_eq!(b.say(7, kind::WRITE, b"data/x\x002"), "OK\0");
    assert_eq!(b.events(8), [""; 0], "it may not know");
    assert_eq!(b.say(7, kind::SET_PERMS, b"data/x\0n7\0r8\0"), "OK\0");
    assert_eq!(b.events(8), ["/local/domain/7/data/x token"]);
    b.service.woken();
    assert_eq!(b.say(7, kind::WRITE, b"data/x\x003"), "OK\0");
    assert!(b.service.woken().contains(&8));
    assert_eq!(b.events(8), ["/local/domain/7/data/x token"]);
    assert_eq!(b.say(7, kind::RM, b"data/x\0"), "OK\0");
    assert_eq!(b.events(8), ["/local/domain/7/data/x token"]);
    assert_eq!(b.say(8, kind::UNWATCH, watch), "OK\0");
    assert_eq!(b.say(8, kind::UNWATCH, watch), "ENOENT\0");
}

#[test]
fn watches_fire_at_once_and_for_everything_below() {
    let mut b = Bench::new();
    assert_eq!(b.say(7, kind::WATCH, b"data\0token\0"), "OK\0");
    assert_eq!(b.events(7), ["data token"]);
    assert_eq!(b.say(7, kind::WATCH, b"data\0token\0"), "EEXIST\0");
    assert_eq!(b.events(7), [""; 0], "a refused watch does not fire");
    assert_eq!(b.say(7, kind::WRITE, b"data/x/y\x001"), "OK\0");
    assert_eq!(b.events(7), ["data/x/y token"]);
    assert_eq!(b.say(7, kind::WATCH, b"data/x/y\0below\0"), "OK\0");
    assert_eq!(b.say(7, kind::RM, b"data/x\0"), "OK\0");
    assert_eq!(
        b.events(7),
        ["data/x/y below", "data/x token", "data/x/y below"],
        "its first, then the removal at its place and below"
    );
    assert_eq!(b.say(7, kind::RESET_WATCHES, b"\0"), "OK\0");
    assert_eq!(b.say(7, kind::WRITE, b"data/x\x002"), "OK\0");
    assert_eq!(b.events(7), [""; 0]);
}

#[test]
fn events_that_nobody_fetches_are_bounded_and_made_up_for() {
    let mut b = Bench::new();
    assert_eq!(b.say(7, kind::WATCH, b"data\0token\0"), "OK\0");
    for index in 0..4000 {
        let payload = std::format!("data/number-{}\0{index}", index % 900);
        assert_eq!(b.say(7, kind::WRITE, payload.as_bytes()), "OK\0");
    }
    let events = b.events(7);
    assert!(events.len() < 1000);
    assert_eq!(events.last().unwrap(), "data token", "look again");
}

#[test]
fn transactions_show_nothing_until_they_commit() {
    let mut b = Bench::new();
    b.say(7, kind::WATCH, b"data\0t\0");
    b.events(7);
    assert_eq!(b.say(7, kind::TRANSACTION_START, b"\0"), "1\0");
    assert_eq!(b.within(7, 1, kind::WRITE, b"data/x\x001"), b"OK\0");
    assert_eq!(b.say(7, kind::READ, b"data/x\0"), "ENOENT\0");
    assert_eq!(b.within(7, 1, kind::READ, b"data/x\0"), b"1");
    assert_eq!(b.within(7, 1, kind::DIRECTORY, b"data\0"), b"x\0");
    assert_eq!(b.events(7), [""; 0]);
    assert_eq!(b.within(7, 1, kind::TRANSACTION_END, b"T\0"), b"OK\0");
    assert_eq!(b.events(7), ["data/x t"]);
    assert_eq!(b.say(7, kind::READ, b"data/x\0"), "1");
    assert_eq!(b.say(7, kind::TRANSACTION_START, b"\0"), "2\0");
    assert_eq!(b.within(7, 2, kind::RM, b"data/x\0"), b"OK\0");
    assert_eq!(b.within(7, 2, kind::READ, b"data/x\0"), b"ENOENT\0");
    assert_eq!(b.within(7, 2, kind::TRANSACTION_END, b"F\0"), b"OK\0");
    assert_eq!(b.say(7, kind::READ, b"data/x\0"), "1");
    let ended = b.within(7, 2, kind::TRANSACTION_END, b"T\0");
    assert_eq!(ended, b"ENOENT\0");
}

#[test]
fn transactions_fail_over_what_they_looked_at_and_nothing_else() {
    let mut b = Bench::new();
    b.say(7, kind::WRITE, b"data/x\x001");
    b.say(7, kind::WRITE, b"data/y\x001");
    let mut run = |look: &[u8], other: &[u8]| {
        let id = b.say(7, kind::TRANSACTION_START, b"\0");
        let id: u32 = id.trim_end_matches('\0').parse().unwrap();
        b.within(7, id, kind::READ, look);
        b.ask(0, kind::WRITE, other);
        let end = b.within(7, id, kind::TRANSACTION_END, b"T\0");
        String::from_utf8(end).unwrap()
    };
    assert_eq!(run(b"data/x\0", b"/local/domain/7/data/y\x002"), "OK\0");
    assert_eq!(run(b"data/x\0", b"/local/domain/7/data/x\x002"), "EAGAIN\0");
    assert_eq!(run(b"data/z\0", b"/local/domain/7/data/z\x002"), "EAGAIN\0");
    assert_eq!(run(b"data/n/m\0", b"/local/domain/8/data/z\x002"), "OK\0");
}

fn disk(front: u16, back: u16) -> Link {
    let backend = match back {
        0 => Backend::Component(idl::name("blkback")),
        _ => Backend::Guest(idl::name("storage")),
    };
    let device = "xvda".try_into().unwrap();
    let (volume, read_only) = (idl::name("root"), true);
    let disk = Disk {
        volume,
        backend,
        device,
        read_only,
        discard: false,
    };
    Link { front, back, disk }
}

#[test]
fn a_guest_with_a_disk_finds_its_back_end_and_is_found() {
    let mut b = Bench::new();
    b.say(0, kind::WATCH, b"/local/domain/0/backend/vbd\0t\0");
    b.events(0);
    let with_disk = Facts {
        disks: Vec::from([disk(7, 0)]),
        ..facts(7)
    };
    b.service.introduce(&with_disk).unwrap();
    b.service.open_session(7, 7).unwrap();
    b.numbers[7] = 0;
    assert_eq!(
        b.events(0),
        ["/local/domain/0/backend/vbd/7/51712 t"],
        "the back end is told"
    );
    let back = b.say(7, kind::READ, b"device/vbd/51712/backend\0");
    assert_eq!(back, "/local/domain/0/backend/vbd/7/51712");
    for (node, value) in [
        ("frontend", "/local/domain/7/device/vbd/51712"),
        ("frontend-id", "7"),
        ("state", "1"),
        ("mode", "r"),
        ("discard-enable", "0"),
        ("params", "root"),
        ("component", "blkback"),
    ] {
        let path = std::format!("{back}/{node}\0");
        assert_eq!(b.say(7, kind::READ, path.as_bytes()), value, "{node}");
        assert_eq!(b.say(8, kind::READ, path.as_bytes()), "EACCES\0", "{node}");
        let write = std::format!("{path}x");
        assert_eq!(b.say(7, kind::WRITE, write.as_bytes()), "EACCES\0");
    }
    assert_eq!(
        b.say(7, kind::WRITE, b"device/vbd/51712/state\x003"),
        "OK\0"
    );
    let folders = b.say(7, kind::DIRECTORY, b"device\0");
    assert_eq!(folders, "vbd\0");
    b.service.release(7);
    let gone = b.say(
        0,
        kind::READ,
        b"/local/domain/0/backend/vbd/7/51712/state\0",
    );
    assert_eq!(gone, "ENOENT\0");
}

#[test]
fn a_disk_of_a_driver_domain_comes_with_whichever_domain_is_last() {
    for back_first in [true, false] {
        let mut b = Bench::new();
        let front = Facts {
            disks: Vec::from([disk(7, 8)]),
            ..facts(7)
        };
        let back = Facts {
            serves: Vec::from([disk(7, 8)]),
            ..facts(8)
        };
        b.service.release(7);
        b.service.release(8);
        let order = match back_first {
            true => [(&facts(8), 8), (&front, 7)],
            false => [(&front, 7), (&back, 8)],
        };
        for (facts, domain) in order {
            b.service.introduce(facts).unwrap();
            b.service.open_session(u32::from(domain), domain).unwrap();
            b.numbers[usize::from(domain)] = 0;
        }
        let path = b.say(7, kind::READ, b"device/vbd/51712/backend\0");
        assert_eq!(path, "/local/domain/8/backend/vbd/7/51712");
        assert_eq!(
            b.say(8, kind::WRITE, b"backend/vbd/7/51712/state\x002"),
            "OK\0"
        );
        assert_eq!(
            b.say(
                7,
                kind::READ,
                b"/local/domain/8/backend/vbd/7/51712/state\0"
            ),
            "2"
        );
        assert_eq!(b.say(7, kind::READ, b"device/vbd/51712/backend-id\0"), "8");
    }
}

#[test]
fn quotas_end_growth() {
    let mut b = Bench::new();
    let mut made = 0;
    for index in 0..2000 {
        let path = std::format!("data/n{index}\0");
        match b.say(7, kind::MKDIR, path.as_bytes()).as_str() {
            "OK\0" => made += 1,
            answer => assert_eq!(answer, "ENOSPC\0"),
        }
    }
    assert!(made > 500 && made < quota::NODES);
    let mut long = b"data/n0\0".to_vec();
    long.resize(3000, b'x');
    assert_eq!(b.say(7, kind::WRITE, &long), "ENOSPC\0");
    assert_eq!(b.say(7, kind::DIRECTORY, b"data\0"), "E2BIG\0");
    let mut names = 0;
    let mut offset = 0;
    loop {
        let payload = std::format!("data\0{offset}\0");
        let part = b.ask(7, kind::DIRECTORY_PART, payload.as_bytes());
        let start = part.iter().position(|byte| *byte == 0).unwrap() + 1;
        let list = &part[start..];
        names += list
            .split(|byte| *byte == 0)
            .filter(|n| !n.is_empty())
            .count();
        offset += list.len();
        if list.ends_with(b"\0\0") || list == b"\0" {
            break;
        }
    }
    assert_eq!(names, made);
    // Others are not concerned.
    assert_eq!(b.say(8, kind::WRITE, b"data/x\x001"), "OK\0");
    let deep = std::format!("data{}\0", "/a".repeat(1000));
    assert_eq!(b.say(8, kind::MKDIR, deep.as_bytes()), "ENOSPC\0");
    let mut watches = 0;
    while b.say(8, kind::WATCH, std::format!("data\0{watches}\0").as_bytes()) == "OK\0" {
        watches += 1;
    }
    assert_eq!(watches, quota::WATCHES);
    let mut transactions = 0;
    while b.say(8, kind::TRANSACTION_START, b"\0") != "ENOSPC\0" {
        transactions += 1;
    }
    assert_eq!(transactions, quota::TRANSACTIONS);
}

#[test]
fn what_transactions_would_make_counts() {
    let mut b = Bench::new();
    let mut made = 0;
    for id in 1..=quota::TRANSACTIONS as u32 {
        b.say(7, kind::TRANSACTION_START, b"\0");
        for index in 0..300 {
            let path = std::format!("data/n{index}\0");
            let answer = b.within(7, id, kind::MKDIR, path.as_bytes());
            made += usize::from(answer == b"OK\0");
        }
    }
    assert!(made > 500 && made < quota::NODES);
}

#[test]
fn toolstack_requests_are_domain_0s() {
    let mut b = Bench::new();
    let orders: [(u32, &[u8]); 4] = [
        (kind::INTRODUCE, b"9\x001\x002\0"),
        (kind::RELEASE, b"8\0"),
        (kind::SET_TARGET, b"7\x008\0"),
        (kind::RESUME, b"8\0"),
    ];
    for (order, payload) in orders {
        assert_eq!(b.say(7, order, payload), "EACCES\0");
    }
    assert_eq!(b.say(0, kind::WATCH, b"@introduceDomain\0i\0"), "OK\0");
    assert_eq!(b.say(0, kind::WATCH, b"@releaseDomain\0r\0"), "OK\0");
    assert_eq!(b.say(7, kind::WATCH, b"@releaseDomain\0r\0"), "OK\0");
    assert_eq!(b.events(0), ["@introduceDomain i", "@releaseDomain r"]);
    b.events(7);
    assert_eq!(b.say(7, kind::IS_DOMAIN_INTRODUCED, b"9\0"), "F\0");
    assert_eq!(b.say(0, kind::INTRODUCE, b"9\x001\x002\0"), "OK\0");
    assert_eq!(b.say(7, kind::IS_DOMAIN_INTRODUCED, b"9\0"), "T\0");
    assert_eq!(b.say(7, kind::GET_DOMAIN_PATH, b"9\0"), "/local/domain/9\0");
    assert_eq!(b.say(0, kind::RESUME, b"9\0"), "OK\0");
    assert_eq!(b.say(0, kind::RESUME, b"10\0"), "ENOENT\0");
    // A device model's domain may what its guest's may.
    let read = b"/local/domain/8/data/x\0";
    b.say(8, kind::WRITE, b"data/x\x001");
    assert_eq!(b.say(7, kind::READ, read), "EACCES\0");
    assert_eq!(b.say(0, kind::SET_TARGET, b"7\x008\0"), "OK\0");
    assert_eq!(b.say(7, kind::READ, read), "1");
    assert_eq!(b.say(0, kind::RELEASE, b"9\0"), "OK\0");
    assert_eq!(b.events(0), ["@introduceDomain i", "@releaseDomain r"]);
    assert_eq!(b.events(7), [""; 0], "that is not a guest's business");
    assert_eq!(b.say(0, kind::CONTROL, b"help\0"), "ENOSYS\0");
    assert_eq!(b.say(0, 77, b"\0"), "ENOSYS\0");
}

#[test]
fn the_next_domain_of_an_id_finds_nothing_of_the_last_one() {
    let mut b = Bench::new();
    b.say(8, kind::WRITE, b"data/mine\x001");
    b.say(0, kind::WRITE, b"/shared/by\x00all");
    b.say(0, kind::SET_PERMS, b"/shared/by\0n0\0b8\0r7\0");
    b.say(0, kind::SET_PERMS, b"/shared\0n0\0w8\0");
    assert_eq!(b.say(8, kind::WRITE, b"/shared/eight\x001"), "OK\0");
    b.say(0, kind::WATCH, b"/local/domain/8\0home\0");
    b.events(0);
    b.service.introduce(&facts(8)).unwrap();
    assert_eq!(b.service.events(8), Err(StoreError::NoSession));
    b.service.open_session(8, 8).unwrap();
    assert_eq!(b.say(8, kind::READ, b"data/mine\0"), "ENOENT\0");
    assert_eq!(b.say(8, kind::READ, b"/shared/by\0"), "EACCES\0");
    assert_eq!(b.say(0, kind::GET_PERMS, b"/shared/by\0"), "n0\0r7\0");
    assert_eq!(b.say(0, kind::READ, b"/shared/eight\0"), "ENOENT\0");
    assert_eq!(b.events(0), ["/local/domain/8 home"]);
}

#[test]
fn messages_that_lie_about_their_length_are_no_messages() {
    let mut b = Bench::new();
    let message = Bench::message(kind::READ, 0, b"name\0");
    let s = &mut b.service;
    assert_eq!(s.send(7, 1, 9000, 0, &message), Err(StoreError::Length));
    assert_eq!(s.send(7, 1, 3, 0, &message[..3]), Err(StoreError::Length));
    assert_eq!(s.send(7, 0, 21, 0, &message), Err(StoreError::Gap));
    assert_eq!(s.send(7, 1, 21, 4, &message[4..]), Err(StoreError::Gap));
    assert_eq!(s.send(7, 1, 22, 0, &message), Ok(None));
    assert_eq!(s.send(7, 1, 22, 21, b""), Err(StoreError::Gap));
    assert_eq!(s.send(7, 1, 22, 21, b"x"), Err(StoreError::Length));
    assert_eq!(s.send(7, 1, 21, 0, &message[..9]), Ok(None));
    assert_eq!(s.send(7, 2, 21, 9, &message[9..]), Err(StoreError::Gap));
    assert_eq!(s.send(9, 1, 21, 0, &message), Err(StoreError::NoSession));
}
