use super::*;
use idl::store::Rings;
use proptest::prelude::*;
use std::string::ToString;
use std::vec::Vec;
use xen_abi::TestMemory;
use xenstore::Service;
use xenstore::toolstack::Facts;

/// The store itself, without a core between.
struct Direct {
    service: Service<()>,
    number: u32,
    gone: bool,
}

impl Server for Direct {
    fn exchange(&mut self, message: &[u8]) -> Result<Vec<u8>, Gone> {
        if self.gone {
            return Err(Gone);
        }
        self.number += 1;
        let length = message.len() as u32;
        let answer = self.service.send(7, self.number, length, 0, message);
        let answer = answer.unwrap().unwrap();
        let mut bytes = answer.piece.to_vec();
        while bytes.len() < answer.length as usize {
            let at = bytes.len() as u32;
            bytes.extend_from_slice(&self.service.rest(7, self.number, at).unwrap());
        }
        Ok(bytes)
    }

    fn events(&mut self) -> Result<Vec<u8>, Gone> {
        Ok(self.service.events(7).unwrap().0.to_vec())
    }
}

struct Guest {
    memory: TestMemory,
    ring: StoreRing<Direct>,
    sent: u32,
    read: u32,
}

impl Guest {
    fn new() -> Guest {
        let (mut service, _) = Service::open(());
        let facts = Facts {
            domain: 1,
            starts: 1,
            name: "linux".to_string(),
            vcpus: 2,
            memory_kib: 524_288,
            rings: Rings {
                console_frame: 0xfefff,
                console_port: 1,
                store_frame: 0xfeffc,
                store_port: 2,
            },
            disks: Vec::new(),
            serves: Vec::new(),
        };
        service.introduce(&facts).unwrap();
        service.open_session(7, 1).unwrap();
        let server = Direct {
            service,
            number: 0,
            gone: false,
        };
        Guest {
            memory: TestMemory::new(0x3000, 0),
            ring: StoreRing::new(0x1000, server),
            sent: 0,
            read: 0,
        }
    }

    fn put(&mut self, bytes: impl IntoIterator<Item = u8>) {
        for byte in bytes {
            let at = 0x1000 + u64::from(self.sent % 1024);
            self.memory.write(at, &[byte]).unwrap();
            self.sent = self.sent.wrapping_add(1);
        }
        self.memory
            .write_u32(0x1000 + REQUEST_PROD, self.sent)
            .unwrap();
    }

    fn send(&mut self, kind: u32, payload: &[u8]) {
        let header = [kind, 5, 0, payload.len() as u32];
        let bytes = header.into_iter().flat_map(u32::to_le_bytes);
        self.put(bytes.chain(payload.iter().copied()));
    }

    fn serve(&mut self) -> bool {
        self.ring.serve(&self.memory).unwrap()
    }

    fn answers(&mut self) -> Vec<u8> {
        let producer = self.memory.read_u32(0x1000 + ANSWER_PROD).unwrap();
        let mut bytes = Vec::new();
        while self.read != producer {
            let mut byte = [0];
            let at = 0x1000 + 1024 + u64::from(self.read % 1024);
            self.memory.read(at, &mut byte).unwrap();
            bytes.push(byte[0]);
            self.read = self.read.wrapping_add(1);
        }
        self.memory
            .write_u32(0x1000 + ANSWER_CONS, self.read)
            .unwrap();
        bytes
    }

    fn ask(&mut self, kind: u32, payload: &[u8]) -> Vec<u8> {
        self.send(kind, payload);
        assert!(self.serve());
        self.answers()[16..].to_vec()
    }
}

#[test]
fn requests_are_answered_through_the_ring() {
    let mut guest = Guest::new();
    for _ in 0..200 {
        assert_eq!(guest.ask(2, b"name\0"), b"linux");
    }
    assert_eq!(guest.ask(1, b"cpu\0"), b"0\x001\0");
    assert_eq!(guest.ask(11, b"control/feature-poweroff\x001"), b"OK\0");
    assert_eq!(guest.ask(11, b"memory/target\x001"), b"EACCES\0");
    assert!(!guest.serve(), "nothing to do");
}

#[test]
fn a_request_longer_than_the_ring_goes_through_it_in_parts() {
    let mut guest = Guest::new();
    let value = [b'x'; 1500];
    let payload = [&b"data/long\0"[..], &value].concat();
    let header = [11, 5, 0, payload.len() as u32];
    let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.extend_from_slice(&payload);
    for part in bytes.chunks(600) {
        guest.put(part.iter().copied());
        assert!(guest.serve());
    }
    assert_eq!(guest.answers()[16..], *b"OK\0");
    guest.send(2, b"data/long\0");
    let mut read = Vec::new();
    while read.len() < 16 + value.len() {
        assert!(guest.serve());
        read.extend(guest.answers());
    }
    assert_eq!(read[16..], value);
}

#[test]
fn events_come_without_being_asked_for() {
    let mut guest = Guest::new();
    guest.send(4, b"data\0token\0");
    assert!(guest.serve());
    let answers = guest.answers();
    assert_eq!(answers[16..19], *b"OK\0");
    assert_eq!(answers[19 + 16..], *b"data\0token\0");
}

#[test]
fn a_guest_that_reads_no_answers_waits() {
    let mut guest = Guest::new();
    let mut sent = 0;
    loop {
        let consumer = guest.memory.read_u32(0x1000 + REQUEST_CONS).unwrap();
        if guest.sent.wrapping_sub(consumer) > 900 || sent > 2000 {
            break;
        }
        guest.send(2, b"name\0");
        guest.serve();
        sent += 1;
    }
    assert!(sent < 2000 && guest.ring.output.len() < 2 * BACKLOG);
    assert!(guest.ring.input.len() < 2 * PAYLOAD_MAX);
}

#[test]
fn nonsense_closes_the_connection() {
    let mut guest = Guest::new();
    guest.memory.write_u32(0x1000 + REQUEST_PROD, 5000).unwrap();
    assert!(guest.serve());
    assert_eq!(guest.memory.read_u32(0x1000 + ERROR), Ok(ERROR_INDEX));
    assert!(!guest.serve());
    let mut guest = Guest::new();
    guest.put([2, 5, 0, 5000].into_iter().flat_map(u32::to_le_bytes));
    assert!(guest.serve());
    let said = guest.memory.read_u32(0x1000 + ERROR);
    assert_eq!(said, Ok(ERROR_COMMUNICATION));
}

#[test]
fn a_store_that_is_gone_closes_the_connection() {
    let mut guest = Guest::new();
    guest.ring.server.gone = true;
    guest.send(2, b"name\0");
    assert!(guest.serve());
    let said = guest.memory.read_u32(0x1000 + ERROR);
    assert_eq!(said, Ok(ERROR_COMMUNICATION));
    assert!(!guest.serve());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_page_is_survived(
        indices in any::<[u32; 4]>(),
        bytes in prop::collection::vec(any::<u8>(), 1024),
        near in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        guest.memory.write(0x1000, &bytes).unwrap();
        for (index, value) in indices.into_iter().enumerate() {
            let value = if near { value % 1025 } else { value };
            guest.memory.write_u32(0x1000 + REQUEST_CONS + 4 * index as u64, value).unwrap();
        }
        for _ in 0..3 {
            guest.serve();
        }
        let mut around = [0; 0x1000];
        guest.memory.read(0x2000, &mut around).unwrap();
        prop_assert!(around.iter().all(|byte| *byte == 0));
    }

    /// Plausible messages and damaged ones, in a ring whose indices are right.
    #[test]
    fn any_stream_is_answered_or_closed(
        messages in prop::collection::vec(
            (0u32..24, 0u32..3, prop::collection::vec(
                prop::sample::select(std::vec![0u8, b'/', b'a', b'T', b'n', b'1', b'@', 200, b'd']),
                0..24,
            ), 0u32..40),
            1..20,
        ),
    ) {
        let mut guest = Guest::new();
        for (kind, transaction, payload, wrong) in messages {
            // One in 40 lies about its length.
            let length = payload.len() as u32 + if wrong == 0 { 4000 } else { 0 };
            let header = [kind, 5, transaction, length];
            let bytes = header.into_iter().flat_map(u32::to_le_bytes);
            guest.put(bytes.chain(payload));
            guest.serve();
            guest.answers();
        }
        while guest.serve() {
            guest.answers();
        }
        prop_assert!(guest.ring.broken || guest.ring.output.is_empty());
    }
}
