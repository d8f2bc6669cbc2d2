//! What guests make a VMM and xenstore read: instructions and messages.

use std::cell::RefCell;
use std::rc::Rc;

use crate::take;
use idl::store::Rings;
use x86_platform::decode::{control_access, memory_operation};
use x86_platform::mode::CodeSize;
use x86_platform::paging::Code;
use xenstore::journal::Area;
use xenstore::toolstack::Facts;
use xenstore::{Header, PAYLOAD_MAX, Service};

/// Width, RIP, number of bytes, instruction.
pub fn instruction(mut data: &[u8]) {
    let [width, count] = take(&mut data);
    let rip = u64::from_le_bytes(take(&mut data));
    let words = [0; 2].map(|_: u64| u64::from_le_bytes(take(&mut data)));
    let size = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64][usize::from(width) % 3];
    let code = Code::from_words(words, u64::from(count) % 16);
    let fits = |length: u8| assert!((1..=code.count()).contains(&usize::from(length)));
    if let Ok(operation) = memory_operation(&code, size, rip) {
        fits(operation.length);
    }
    if let Ok(access) = control_access(&code, size) {
        fits(access.length);
    }
}

pub fn instruction_seeds() -> Vec<Vec<u8>> {
    let codes: [&[u8]; 8] = [
        &[0x89, 0x07],
        &[0x48, 0x8b, 0x04, 0x25, 0, 0, 0xe0, 0xfe],
        &[0xc7, 0x05, 0, 0, 0, 0, 1, 0, 0, 0],
        &[0xf3, 0x48, 0xa5],
        &[0x0f, 0x22, 0xd8],
        &[0x44, 0x0f, 0x20, 0xc0],
        &[0x0f, 0xb6, 0x17],
        &[0xf0, 0x0f, 0xb1, 0x0f],
    ];
    let with = |code: &&[u8]| {
        let mut seed = vec![2, code.len() as u8, 0, 0x10, 0, 0, 0, 0, 0, 0];
        seed.extend(*code);
        seed.resize(26, 0x90);
        seed
    };
    codes.iter().map(with).collect()
}

/// Memory that outlives the store.
#[derive(Clone)]
struct Kept(Rc<RefCell<Vec<u64>>>);

impl Area for Kept {
    fn words(&self) -> u64 {
        self.0.borrow().len() as u64
    }
    fn read(&self, word: u64) -> u64 {
        self.0.borrow()[word as usize]
    }
    fn write(&mut self, word: u64, value: u64) {
        self.0.borrow_mut()[word as usize] = value;
    }
}

/// A store in which guest 1 has a session.
fn store(kept: &Kept) -> Service<Kept> {
    let (mut service, _) = Service::open(kept.clone());
    let rings = Rings {
        console_frame: 1,
        console_port: 1,
        store_frame: 2,
        store_port: 2,
    };
    let facts = Facts {
        domain: 1,
        starts: 1,
        name: "guest".into(),
        vcpus: 1,
        memory_kib: 65_536,
        rings,
        disks: Vec::new(),
        serves: Vec::new(),
    };
    service
        .introduce(&facts)
        .expect("a guest of an empty store");
    service.open_session(1, 1).expect("its session");
    service
}

/// Messages as a guest writes them, in pieces as its VMM hands them on: each gets one answer, as long
/// as it says; so has each event; and who starts on what is kept finds nothing damaged.
pub fn xenstore(mut data: &[u8]) {
    let [piece] = take(&mut data);
    let kept = Kept(Rc::new(RefCell::new(vec![0; 1 << 16])));
    let mut service = store(&kept);
    let mut number = 0;
    while let Some((head, rest)) = data.split_first_chunk() {
        let mut header = Header::decode(head);
        let length = rest.len().min(header.length as usize).min(PAYLOAD_MAX);
        header.length = length as u32;
        let message = [&header.encode()[..], &rest[..length]].concat();
        data = &rest[length..];
        number += 1;
        let mut sent = 0;
        let mut answer = None;
        for bytes in message.chunks(usize::from(piece).max(1)) {
            assert!(answer.is_none(), "answered before it was whole");
            let whole = message.len() as u32;
            answer = service
                .send(1, number, whole, sent, bytes)
                .expect("a piece that follows");
            sent += bytes.len() as u32;
        }
        let answer = answer.expect("an answer to a whole request");
        let mut bytes = answer.piece.to_vec();
        while bytes.len() < answer.length as usize {
            let more = service.rest(1, number, bytes.len() as u32);
            bytes.extend_from_slice(&more.expect("the rest of an answer"));
        }
        whole(&bytes);
        let mut events = Vec::new();
        loop {
            let (piece, more) = service.events(1).expect("a session");
            events.extend_from_slice(&piece);
            if !more {
                break;
            }
        }
        whole(&events);
    }
    let (again, recovered) = Service::open(kept);
    assert!(!recovered.damaged, "damaged by its own store");
    assert_eq!(again.domains(), service.domains());
}

/// Messages, each as long as it says.
fn whole(mut bytes: &[u8]) {
    while let Some((head, body)) = bytes.split_first_chunk() {
        let length = Header::decode(head).length as usize;
        assert!(length <= PAYLOAD_MAX, "a message is too long");
        bytes = body
            .get(length..)
            .unwrap_or_else(|| panic!("a message is cut off"));
    }
    assert!(bytes.is_empty(), "half a header");
}

pub fn xenstore_seeds() -> Vec<Vec<u8>> {
    let message = |kind: u32, transaction: u32, payload: &[u8]| {
        let head = [kind, 1, transaction, payload.len() as u32].map(u32::to_le_bytes);
        [&head.concat()[..], payload].concat()
    };
    // Kinds by Xen public/io/xs_wire.h.
    let talk = [
        message(11, 0, b"data/a\0value"),
        message(2, 0, b"data/a\0"),
        message(1, 0, b"data\0"),
        message(4, 0, b"data\0token\0"),
        message(6, 0, b"\0"),
        message(12, 1, b"data/b\0"),
        message(14, 1, b"data/a\0n1\0r2\0"),
        message(3, 1, b"data/a\0"),
        message(7, 1, b"T\0"),
        message(13, 0, b"data\0"),
        message(5, 0, b"data\0token\0"),
    ];
    let whole = [&[64][..], &talk.concat()].concat();
    let single = talk.iter().map(|message| [&[255][..], message].concat());
    single.chain([whole]).collect()
}
