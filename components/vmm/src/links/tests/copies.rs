//! Copies between a grant and the page of a connection, and what version 2 of the table changes.

use super::*;

fn part(reference: u32, write: bool, offset: u16, length: u16) -> GrantCopy {
    GrantCopy {
        reference,
        write,
        offset,
        length,
    }
}

#[test]
fn a_copy_needs_the_grant_and_leaves_no_mark() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    machine.grant(8, PERMIT | READONLY, 0, 7);
    machine.grant(9, PERMIT, 3, 7);
    for (part, status) in [
        (part(8, true, 0, 8), -1),
        (part(8, true, 0, 0), -1),
        (part(9, false, 0, 0), -1),
        (part(10, false, 0, 8), -1),
        (part(512, false, 0, 8), -3),
        (part(8, false, 4095, 2), -10),
        (part(8, false, u16::MAX, 1), -10),
        (part(8, false, 0, COPY_MAX as u16 + 1), -10),
    ] {
        assert_eq!(
            machine.copy(0, part),
            Err(PeerError::Grant(status)),
            "{part:?}"
        );
    }
    for part in [part(8, false, 0, 0), part(8, false, 64, COPY_MAX as u16)] {
        assert_eq!(machine.copy(0, part), Ok(()));
    }
    assert_eq!(
        machine.copy(1, part(8, false, 0, 8)),
        Err(PeerError::Unattached)
    );
    assert_eq!(machine.flags(8), PERMIT | READONLY);
    assert_eq!(machine.domain.pinned_grants(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// What is copied is there, and nothing beside it has changed, in either direction.
    #[test]
    fn a_copy_moves_its_part_and_nothing_else(write: bool, offset in 0u16..4096, length in 0u16..4096, seed: u8) {
        let mut machine = Machine::new();
        machine.attach(0, 0);
        machine.grant(8, PERMIT, 0, 7);
        let pages: Vec<u8> = (0..3 * 4096u32).map(|n| n.wrapping_mul(31) as u8 ^ seed).collect();
        let sent: Vec<u8> = (0..COPY_MAX).map(|n| (n % 251) as u8 ^ !seed).collect();
        machine.memory.write(6 * 4096, &pages).unwrap();
        for (word, bytes) in machine.page.data.iter().zip(sent.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        let fits = usize::from(offset) + usize::from(length) <= 4096 && usize::from(length) <= COPY_MAX;
        let done = machine.copy(0, part(8, write, offset, length));
        prop_assert_eq!(done.is_ok(), fits);
        let (start, length) = (4096 + usize::from(offset), usize::from(length));
        let mut expected = pages.clone();
        let mut given = sent.clone();
        if fits && write {
            expected[start..start + length].copy_from_slice(&sent[..length]);
        } else if fits {
            given[..length].copy_from_slice(&pages[start..start + length]);
        }
        let mut now = std::vec![0; pages.len()];
        machine.memory.read(6 * 4096, &mut now).unwrap();
        prop_assert!(now == expected);
        let got = machine.page.data.iter().map(|word| word.load(Ordering::Relaxed));
        let got: Vec<u8> = got.flat_map(u64::to_le_bytes).take(length).collect();
        prop_assert!(got == given[..got.len()]);
    }
}

#[test]
fn grants_of_version_2_are_for_whole_pages_and_marked_in_their_status() {
    let mut machine = Machine::new();
    machine.attach(0, 0);
    // `GNTTABOP_set_version`.
    machine.memory.write_u32(0, 2).unwrap();
    assert_eq!(machine.hypercall(20, [8, 0, 1]), 0);
    let entry = SpecialFrame::GrantTable(0).address() + 8 * 16;
    let status = SpecialFrame::GrantStatus(0).address() + 8 * 2;
    for (flags, frame, expected) in [
        (PERMIT, 7u64, Ok(())),
        (PERMIT | 1 << 8, 7, Err(PeerError::Grant(-1))),
        (3, 7, Err(PeerError::Grant(-1))),
        (PERMIT, 1 << 40 | 7, Err(PeerError::Grant(-9))),
    ] {
        machine.memory.write(entry, &[0; 16]).unwrap();
        machine.memory.write_u32(entry, flags.into()).unwrap();
        let frame = frame.to_le_bytes();
        machine.memory.write(entry + 8, &frame).unwrap();
        let mapped = machine.map(0, 8, true);
        assert_eq!(mapped.map(|_| ()), expected, "{flags:#x}");
        let used = machine.memory.read_u32(status).unwrap() as u16;
        match mapped {
            Ok(handle) => {
                assert_eq!(used, READING | WRITING);
                assert!(machine.unmap(0, handle));
                assert_eq!(machine.memory.read_u32(status), Ok(0));
            }
            Err(_) => assert_eq!(used, 0),
        }
    }
    assert!(machine.frames.alive.is_empty());
    // 64 bytes from offset 160 on are granted.
    machine
        .memory
        .write_u32(entry, 1 << 8 | u32::from(PERMIT))
        .unwrap();
    machine.memory.write_u32(entry + 4, 64 << 16 | 160).unwrap();
    machine.memory.write_u32(entry + 12, 0).unwrap();
    for (offset, length, expected) in [
        (160, 64, Ok(())),
        (223, 1, Ok(())),
        (159, 8, Err(PeerError::Grant(-1))),
        (160, 65, Err(PeerError::Grant(-1))),
        (4095, 2, Err(PeerError::Grant(-10))),
    ] {
        for write in [false, true] {
            let done = machine.copy(0, part(8, write, offset, length));
            assert_eq!(done, expected, "{offset} {length}");
            assert_eq!(machine.memory.read_u32(status), Ok(0));
        }
    }
}
