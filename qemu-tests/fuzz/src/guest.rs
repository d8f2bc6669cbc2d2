//! What guests make a VMM and xenstore read: instructions and messages.

use crate::take;
use x86_platform::decode::{control_access, memory_operation};
use x86_platform::mode::CodeSize;
use x86_platform::paging::Code;
use xenstore::{Connection, Header, Store};

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

/// Bytes as a guest writes them, in pieces: every complete message gets one answer, besides watch
/// events, and none is longer than it says.
pub fn xenstore(mut data: &[u8]) {
    let [piece] = take(&mut data);
    let mut connection = Connection::new(1, Store::new());
    for bytes in data.chunks(usize::from(piece).max(1)) {
        if connection.receive(bytes).is_err() {
            assert!(connection.receive(&[]).is_err(), "broken, and then not");
            break;
        }
    }
    let out = connection.take(usize::MAX);
    let mut rest = &out[..];
    while let Some((head, body)) = rest.split_first_chunk() {
        let length = Header::decode(head).length as usize;
        assert!(length <= xenstore::PAYLOAD_MAX, "an answer is too long");
        rest = body
            .get(length..)
            .unwrap_or_else(|| panic!("an answer is cut off"));
    }
    assert!(rest.is_empty());
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
