//! Requests that no disk can carry out, and a ring whose counter jumps.

use idl::requests::{Operation, PAGE_BYTES, Request, SLOTS};
use sdk::block::{Disk, DiskError};

use crate::patience;
use crate::pattern;

/// Tries them all, and shows that the disk works afterwards.
pub fn all(disk: &mut Disk) -> Result<(), DiskError> {
    let geometry = disk.geometry();
    let (_, end) = disk.places();
    let good = Request {
        id: 0,
        operation: Operation::Read as u32,
        block: 0,
        offset: PAGE_BYTES,
        bytes: 4096,
    };
    let wrong = [
        (
            "beyond the end",
            Request {
                block: geometry.blocks,
                ..good
            },
        ),
        (
            "across the end",
            Request {
                block: geometry.blocks - 1,
                bytes: 8192,
                ..good
            },
        ),
        (
            "at the end of all numbers",
            Request {
                block: u64::MAX - 7,
                ..good
            },
        ),
        ("no multiple of a block", Request { bytes: 100, ..good }),
        ("nothing", Request { bytes: 0, ..good }),
        (
            "at an odd place",
            Request {
                offset: PAGE_BYTES + 1,
                ..good
            },
        ),
        ("in the ring", Request { offset: 0, ..good }),
        (
            "outside of the memory",
            Request {
                offset: end,
                ..good
            },
        ),
        (
            "across the memory's end",
            Request {
                offset: end - 4096,
                bytes: 8192,
                ..good
            },
        ),
        (
            "too long",
            Request {
                bytes: geometry.request_bytes.saturating_add(4096),
                ..good
            },
        ),
        (
            "no operation",
            Request {
                operation: 77,
                ..good
            },
        ),
    ];
    for (id, (what, request)) in wrong.into_iter().enumerate() {
        disk.submit_raw(Request {
            id: 1_000_000 + id as u32,
            ..request
        })?;
        let answer = disk.wait(patience())?;
        let same = answer.id == 1_000_000 + id as u32;
        log::info!(
            "{what}: {:?}{}",
            answer.status,
            if same { "" } else { ", of another" }
        );
    }
    for by in [SLOTS + 1, 1 << 31] {
        disk.jump(by);
        let answer = disk.wait(patience())?;
        log::info!("ring jumps by {by}: {:?}", answer.status);
    }
    let block = pattern::block(disk, 7);
    disk.submit(Operation::Read, block, PAGE_BYTES, pattern::UNIT)?;
    pattern::good(disk)?;
    let mut words = [0; 2];
    disk.get(PAGE_BYTES, &mut words);
    log::info!("after that unit 7 reads {words:?}");
    Ok(())
}
