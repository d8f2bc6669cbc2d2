//! Rings in pages that are shared with somebody who may write anything: a guest's console ring, and the
//! request ring of disks.

use crate::take;
use idl::block::{Discard, Geometry};
use idl::requests::{Answer, ClientRing, DriverRing, Operation, PAGE_BYTES, Request, RequestPage};
use idl::requests::{SLOTS, Status};
use idl::ring::RingPage;
use vmm_guest::console::GuestRing;
use xen_abi::{GuestMemory, TestMemory};

/// A guest's console ring: the guest writes words of its page between the VMM's looks. At most a
/// whole ring moves at once, and the VMM comes to an end.
pub fn bytes(mut data: &[u8]) {
    let memory = TestMemory::new(0x3000, 0);
    let ring = GuestRing { address: 0x1000 };
    let page = RingPage::new();
    let (mut writer, mut reader) = (page.output.writer(), page.output.reader());
    let (mut to_guest, mut from_us) = (page.input.writer(), page.input.reader());
    while !data.is_empty() {
        let [what, word] = take(&mut data);
        let value = u32::from_le_bytes(take(&mut data));
        match what % 4 {
            0 => {
                // The four counters stand behind both rings (Xen public/io/console.h).
                let at = 0x1000 + 3072 + u64::from(word % 4) * 4;
                assert!(memory.write_u32(at, value).is_ok());
            }
            1 => {
                let _ = ring.output(&memory, &mut writer);
                let mut out = [0; 4096];
                let count = reader.read(&mut out).expect("our own counters");
                assert!(count <= 2048);
            }
            2 => {
                let _ = to_guest.write(&[word; 100]);
                let _ = ring.input(&memory, &mut from_us);
            }
            _ => assert!(writer.space() <= 2048),
        }
    }
}

/// The request ring: a client that jumps and asks for anything; a driver that believes only what was
/// checked.
pub fn requests(mut data: &[u8]) {
    const DISK: Geometry = Geometry {
        block_bytes: 512,
        blocks: 100,
        request_bytes: 65536,
        read_only: false,
        write_cache: true,
        queues: 1,
        discard: Some(Discard {
            bytes: 65536,
            granularity: 512,
        }),
    };
    const SHARED: u32 = 1 << 20;
    let page = RequestPage::new();
    let (mut driver, mut client) = (DriverRing::new(&page), ClientRing::new(&page));
    while !data.is_empty() {
        let [what, operation] = take(&mut data);
        let offset = u32::from_le_bytes(take(&mut data));
        match what % 5 {
            0 => {
                let request = Request {
                    id: u32::from(what),
                    operation: u32::from(operation) % 6,
                    block: u64::from_le_bytes(take(&mut data)),
                    offset,
                    bytes: u32::from_le_bytes(take(&mut data)),
                };
                let _ = client.submit(&request);
            }
            1 => client.jump(offset),
            2 => {
                // As a driver does it: everything that is there, at most a ring full.
                for turn in 0.. {
                    assert!(turn <= SLOTS, "more than a ring holds");
                    match driver.take() {
                        Ok(Some(request)) => {
                            let checked = request.check(&DISK, SHARED);
                            if let Ok(checked) = &checked
                                && checked.operation != Operation::Flush
                            {
                                let (end, bytes) =
                                    (u64::from(checked.offset), u64::from(checked.bytes));
                                assert!(
                                    !checked.operation.carries_data()
                                        || checked.offset >= PAGE_BYTES
                                            && end + bytes <= SHARED.into()
                                );
                                assert!(checked.block + bytes / 512 <= DISK.blocks);
                            }
                            let status = checked.map_or_else(|status| status, |_| Status::Done);
                            driver.answer(Answer {
                                id: request.id,
                                status,
                            });
                        }
                        Ok(None) => break,
                        Err(_) => {
                            driver.damaged();
                            break;
                        }
                    }
                }
            }
            3 => {
                let _ = client.collect();
            }
            _ => client.forget(),
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let write = |word: u8, value: u32| [&[0, word][..], &value.to_le_bytes()].concat();
    let look = |what: u8| vec![what, 7, 0, 0, 0, 0];
    let talk = [
        write(3, 100),
        look(1),
        write(2, 2000),
        look(2),
        write(0, 1),
        look(1),
        look(3),
    ];
    let request = [
        &[0, 1][..],
        &4096u32.to_le_bytes(),
        &3u64.to_le_bytes(),
        &512u32.to_le_bytes(),
    ];
    let asks = [
        request.concat(),
        look(2),
        look(3),
        look(1),
        look(2),
        look(4),
    ];
    vec![talk.concat(), asks.concat()]
}
