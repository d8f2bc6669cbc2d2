use super::*;
use proptest::prelude::*;

const DOMAIN: u16 = 7;

fn connection() -> Connection {
    let mut store = Store::new();
    let own = |access| {
        Vec::from([
            Permission {
                domain: 0,
                access: Access::None,
            },
            Permission {
                domain: DOMAIN,
                access,
            },
        ])
    };
    store.write("/local/domain/7", b"", 0).unwrap();
    store
        .set_permissions("/local/domain/7", own(Access::Read), 0)
        .unwrap();
    store.write("/local/domain/7/name", b"guest", 0).unwrap();
    store.write("/local/domain/7/data", b"", 0).unwrap();
    let owner = Vec::from([Permission {
        domain: DOMAIN,
        access: Access::None,
    }]);
    store
        .set_permissions("/local/domain/7/data", owner, 0)
        .unwrap();
    store.write("/local/domain/8/secret", b"x", 0).unwrap();
    Connection::new(DOMAIN, store)
}

fn message(kind: u32, transaction: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind,
        request: 9,
        transaction,
        length: payload.len() as u32,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn next(connection: &mut Connection) -> Option<(Header, Vec<u8>)> {
    let head = connection.take(Header::BYTES);
    let header = Header::decode(head.first_chunk()?);
    Some((header, connection.take(header.length as usize)))
}

fn ask(connection: &mut Connection, kind: u32, transaction: u32, payload: &[u8]) -> Vec<u8> {
    connection
        .receive(&message(kind, transaction, payload))
        .unwrap();
    let (header, payload) = next(connection).unwrap();
    assert_eq!((header.request, header.transaction), (9, transaction));
    assert!(header.kind == kind || header.kind == kind::ERROR);
    payload
}

#[test]
fn relative_and_absolute_paths_name_the_same_node() {
    let mut c = connection();
    assert_eq!(ask(&mut c, kind::READ, 0, b"name\0"), b"guest");
    assert_eq!(
        ask(&mut c, kind::READ, 0, b"/local/domain/7/name\0"),
        b"guest"
    );
    assert_eq!(
        ask(&mut c, kind::DIRECTORY, 0, b"/local/domain/7\0"),
        b"data\0name\0"
    );
    assert_eq!(
        ask(&mut c, kind::DIRECTORY, 0, b"device/vbd\0"),
        b"ENOENT\0"
    );
    for bad in [&b"\0"[..], b"a//b\0", b"a/\0", b"a b\0", b"\xff\0"] {
        assert_eq!(ask(&mut c, kind::READ, 0, bad), b"EINVAL\0");
    }
}

#[test]
fn permissions_hold_both_ways() {
    let mut c = connection();
    assert_eq!(ask(&mut c, kind::WRITE, 0, b"name\0evil"), b"EACCES\0");
    assert_eq!(
        ask(&mut c, kind::READ, 0, b"/local/domain/8/secret\0"),
        b"EACCES\0"
    );
    assert_eq!(ask(&mut c, kind::WRITE, 0, b"data/a/b\0v\0w"), b"OK\0");
    assert_eq!(ask(&mut c, kind::READ, 0, b"data/a/b\0"), b"v\0w");
    assert_eq!(ask(&mut c, kind::GET_PERMS, 0, b"data/a\0"), b"n7\0");
    assert_eq!(
        ask(&mut c, kind::SET_PERMS, 0, b"data/a\0n7\0r0\0"),
        b"OK\0"
    );
    assert_eq!(ask(&mut c, kind::GET_PERMS, 0, b"data/a\0"), b"n7\0r0\0");
    assert_eq!(
        ask(&mut c, kind::SET_PERMS, 0, b"data/a\0n0\0"),
        b"EACCES\0",
        "given away"
    );
    assert_eq!(ask(&mut c, kind::RM, 0, b"data/a\0"), b"OK\0");
    assert_eq!(ask(&mut c, kind::READ, 0, b"data/a/b\0"), b"ENOENT\0");
}

#[test]
fn watches_fire_at_once_and_for_everything_below() {
    let mut c = connection();
    assert_eq!(ask(&mut c, kind::WATCH, 0, b"data\0token\0"), b"OK\0");
    let (header, payload) = next(&mut c).unwrap();
    assert_eq!(
        (header.kind, &payload[..]),
        (kind::WATCH_EVENT, &b"data\0token\0"[..])
    );
    assert_eq!(ask(&mut c, kind::WATCH, 0, b"data\0token\0"), b"EEXIST\0");
    assert!(next(&mut c).is_none(), "a refused watch does not fire");
    assert_eq!(ask(&mut c, kind::WRITE, 0, b"data/x\x001"), b"OK\0");
    assert_eq!(next(&mut c).unwrap().1, b"data/x\0token\0");
    assert_eq!(ask(&mut c, kind::UNWATCH, 0, b"data\0token\0"), b"OK\0");
    assert_eq!(ask(&mut c, kind::WRITE, 0, b"data/x\x002"), b"OK\0");
    assert!(next(&mut c).is_none());
}

#[test]
fn transactions_show_nothing_until_they_commit() {
    let mut c = connection();
    assert_eq!(ask(&mut c, kind::WATCH, 0, b"data\0t\0"), b"OK\0");
    next(&mut c);
    assert_eq!(ask(&mut c, kind::TRANSACTION_START, 0, b"\0"), b"1\0");
    assert_eq!(ask(&mut c, kind::WRITE, 1, b"data/x\x001"), b"OK\0");
    assert_eq!(ask(&mut c, kind::READ, 0, b"data/x\0"), b"ENOENT\0");
    assert_eq!(ask(&mut c, kind::READ, 1, b"data/x\0"), b"1");
    assert_eq!(ask(&mut c, kind::TRANSACTION_END, 1, b"T\0"), b"OK\0");
    assert_eq!(next(&mut c).unwrap().1, b"data/x\0t\0");
    assert_eq!(ask(&mut c, kind::READ, 0, b"data/x\0"), b"1");
    assert_eq!(ask(&mut c, kind::TRANSACTION_START, 0, b"\0"), b"2\0");
    assert_eq!(ask(&mut c, kind::WRITE, 0, b"data/y\x001"), b"OK\0");
    next(&mut c);
    assert_eq!(ask(&mut c, kind::TRANSACTION_END, 2, b"T\0"), b"EAGAIN\0");
    assert_eq!(ask(&mut c, kind::TRANSACTION_END, 2, b"T\0"), b"ENOENT\0");
}

#[test]
fn quotas_end_growth() {
    let mut c = connection();
    let mut made = 0;
    for index in 0..2000 {
        let path = format!("data/n{index}\0");
        match &ask(&mut c, kind::MKDIR, 0, path.as_bytes())[..] {
            b"OK\0" => made += 1,
            answer => assert_eq!(answer, b"ENOSPC\0"),
        }
    }
    assert!(made < quota::NODES);
    let mut long = b"data/n0\0".to_vec();
    long.resize(3000, b'x');
    assert_eq!(ask(&mut c, kind::WRITE, 0, &long), b"ENOSPC\0");
    assert_eq!(ask(&mut c, kind::DIRECTORY, 0, b"data\0"), b"E2BIG\0");
    let part = ask(&mut c, kind::DIRECTORY_PART, 0, b"data\x000\0");
    assert!(part.len() <= PAYLOAD_MAX && !part.ends_with(b"\0\0"));
}

#[test]
fn a_message_too_long_breaks_the_connection() {
    let mut c = connection();
    let header = Header {
        kind: kind::READ,
        length: 5000,
        ..Header::default()
    };
    assert_eq!(c.receive(&header.encode()), Err(Broken));
    assert_eq!(c.receive(b"x"), Err(Broken));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_requests_are_answered_in_whole_messages(
        requests in prop::collection::vec(
            (0u32..24, 0u32..4, prop::collection::vec(
                prop::sample::select(alloc::vec![0u8, b'/', b'a', b'T', b'n', b'7', b'@', 200, b'd']),
                0..24,
            )),
            1..40,
        ),
        split in 1usize..50,
    ) {
        let mut c = connection();
        let mut bytes = Vec::new();
        for (kind, transaction, payload) in &requests {
            bytes.extend(message(*kind, *transaction, payload));
        }
        for piece in bytes.chunks(split) {
            c.receive(piece).unwrap();
        }
        let mut answers = 0;
        while let Some((header, payload)) = next(&mut c) {
            prop_assert_eq!(header.length as usize, payload.len());
            answers += usize::from(header.kind != kind::WATCH_EVENT);
        }
        prop_assert_eq!(c.pending(), 0);
        prop_assert_eq!(answers, requests.len());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = connection().receive(&bytes);
    }
}
