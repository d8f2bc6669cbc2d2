use super::*;
use proptest::prelude::*;
use std::vec::Vec;
use xen_abi::TestMemory;

fn facts() -> Facts<'static> {
    Facts {
        domain: 1,
        name: "linux",
        vcpus: 2,
        memory_kib: 524_288,
        console: (0xfefff, 1),
        store: (0xfeffc, 2),
    }
}

struct Guest {
    memory: TestMemory,
    ring: StoreRing,
    sent: u32,
    read: u32,
}

impl Guest {
    fn new() -> Guest {
        Guest {
            memory: TestMemory::new(0x3000, 0),
            ring: StoreRing::new(0x1000, &facts()).unwrap(),
            sent: 0,
            read: 0,
        }
    }

    fn send(&mut self, kind: u32, payload: &[u8]) {
        let header = [kind, 5, 0, payload.len() as u32];
        let bytes = header.iter().flat_map(|word| word.to_le_bytes());
        for byte in bytes.chain(payload.iter().copied()) {
            let at = 0x1000 + u64::from(self.sent % 1024);
            self.memory.write(at, &[byte]).unwrap();
            self.sent = self.sent.wrapping_add(1);
        }
        self.memory
            .write_u32(0x1000 + REQUEST_PROD, self.sent)
            .unwrap();
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
}

#[test]
fn requests_are_answered_through_the_ring() {
    let mut guest = Guest::new();
    for _ in 0..200 {
        guest.send(2, b"name\0");
        assert_eq!(guest.ring.serve(&guest.memory), Ok(true));
        assert_eq!(guest.answers()[16..], *b"linux");
    }
    guest.send(1, b"cpu\0");
    guest.ring.serve(&guest.memory).unwrap();
    assert_eq!(guest.answers()[16..], *b"0\x001\0");
    guest.send(11, b"control/feature-poweroff\x001");
    guest.ring.serve(&guest.memory).unwrap();
    assert_eq!(guest.answers()[16..], *b"OK\0");
    guest.send(11, b"memory/target\x001");
    guest.ring.serve(&guest.memory).unwrap();
    assert_eq!(guest.answers()[16..], *b"EACCES\0");
    assert_eq!(guest.ring.serve(&guest.memory), Ok(false), "nothing to do");
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
        guest.ring.serve(&guest.memory).unwrap();
        sent += 1;
    }
    assert!(sent < 2000 && guest.ring.connection.pending() < 2 * BACKLOG);
}

#[test]
fn nonsense_closes_the_connection() {
    let mut guest = Guest::new();
    guest.memory.write_u32(0x1000 + REQUEST_PROD, 5000).unwrap();
    assert_eq!(guest.ring.serve(&guest.memory), Ok(true));
    assert_eq!(guest.memory.read_u32(0x1000 + ERROR), Ok(ERROR_INDEX));
    assert_eq!(guest.ring.serve(&guest.memory), Ok(false));
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
            guest.ring.serve(&guest.memory).unwrap();
        }
        let mut around = [0; 0x1000];
        guest.memory.read(0x2000, &mut around).unwrap();
        prop_assert!(around.iter().all(|byte| *byte == 0));
    }
}
