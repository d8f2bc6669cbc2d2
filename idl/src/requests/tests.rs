use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const DISK: Geometry = Geometry {
    block_bytes: 512,
    blocks: 100,
    request_bytes: 65536,
    read_only: false,
    write_cache: true,
    queues: 1,
    discard: Some(Discard {
        bytes: 40 * 512,
        granularity: 4096,
    }),
};
const SHARED: u32 = 1 << 20;

fn request(id: u32) -> Request {
    Request {
        id,
        operation: Operation::Read as u32,
        block: 0,
        offset: PAGE_BYTES,
        bytes: 512,
    }
}

#[test]
fn a_request_comes_out_as_it_went_in_and_so_does_its_answer() {
    let page = RequestPage::new();
    let (mut driver, mut client) = (DriverRing::new(&page), ClientRing::new(&page));
    let sent = Request {
        id: 7,
        operation: 2,
        block: u64::MAX - 1,
        offset: 123,
        bytes: u32::MAX,
    };
    client.submit(&sent).unwrap();
    assert_eq!(driver.take(), Ok(Some(sent)));
    assert_eq!(driver.take(), Ok(None));
    assert_eq!(client.collect(), Ok(None));
    let answer = Answer {
        id: 7,
        status: Status::Range,
    };
    driver.answer(answer);
    assert_eq!(client.collect(), Ok(Some(answer)));
    assert_eq!(client.pending(), 0);
}

#[test]
fn a_client_that_collects_nothing_is_taken_from_no_more() {
    let page = RequestPage::new();
    let (mut driver, mut client) = (DriverRing::new(&page), ClientRing::new(&page));
    for id in 0..SLOTS {
        client.submit(&request(id)).unwrap();
    }
    assert_eq!(client.submit(&request(0)), Err(Full));
    while let Some(taken) = driver.take().unwrap() {
        driver.answer(Answer {
            id: taken.id,
            status: Status::Done,
        });
    }
    // It claims to have room, without having collected.
    client.jump(1);
    assert_eq!(driver.take(), Ok(None));
}

#[test]
fn a_jump_of_the_counter_is_told_and_the_ring_goes_on() {
    let page = RequestPage::new();
    let (mut driver, mut client) = (DriverRing::new(&page), ClientRing::new(&page));
    client.jump(SLOTS + 1);
    assert_eq!(driver.take(), Err(Damaged));
    driver.damaged();
    let told = client.collect().unwrap().unwrap();
    assert_eq!((told.id, told.status), (NOBODY, Status::Damaged));
    client.forget();
    client.submit(&request(5)).unwrap();
    assert_eq!(driver.take(), Ok(Some(request(5))));
}

#[test]
fn requests_that_do_not_fit_are_named_by_what_is_wrong() {
    let with = |change: fn(&mut Request)| {
        let mut wrong = request(1);
        change(&mut wrong);
        wrong.check(&DISK, SHARED).map(|_| ())
    };
    assert_eq!(with(|_| {}), Ok(()));
    assert_eq!(with(|r| r.block = 99), Ok(()));
    assert_eq!(with(|r| r.block = 100), Err(Status::Range));
    assert_eq!(with(|r| r.block = u64::MAX), Err(Status::Range));
    assert_eq!(with(|r| r.bytes = 0), Err(Status::Alignment));
    assert_eq!(with(|r| r.bytes = 513), Err(Status::Alignment));
    assert_eq!(with(|r| r.offset += 1), Err(Status::Alignment));
    assert_eq!(with(|r| r.offset = 0), Err(Status::Place));
    assert_eq!(with(|r| r.offset = SHARED), Err(Status::Place));
    assert_eq!(with(|r| r.offset = u32::MAX - 511), Err(Status::Place));
    assert_eq!(with(|r| r.bytes = 1 << 17), Err(Status::Length));
    assert_eq!(with(|r| r.operation = 9), Err(Status::Operation));
    let read_only = Geometry {
        read_only: true,
        ..DISK
    };
    let mut write = request(1);
    write.operation = Operation::Write as u32;
    assert_eq!(write.check(&read_only, SHARED), Err(Status::ReadOnly));
}

#[test]
fn a_discard_has_no_data_and_ends_where_the_disk_ends() {
    let with = |block: u64, bytes: u32, disk: &Geometry| {
        let discard = Request {
            id: 1,
            operation: Operation::Discard as u32,
            block,
            offset: u32::MAX,
            bytes,
        };
        let checked = discard.check(disk, PAGE_BYTES)?;
        assert_eq!((checked.offset, checked.bytes), (0, bytes));
        Ok(())
    };
    assert_eq!(with(60, 40 * 512, &DISK), Ok(()));
    assert_eq!(with(99, 512, &DISK), Ok(()));
    assert_eq!(with(0, 41 * 512, &DISK), Err(Status::Length));
    assert_eq!(with(61, 40 * 512, &DISK), Err(Status::Range));
    assert_eq!(with(u64::MAX, 512, &DISK), Err(Status::Range));
    assert_eq!(with(0, 0, &DISK), Err(Status::Alignment));
    assert_eq!(with(0, 513, &DISK), Err(Status::Alignment));
    let without = Geometry {
        discard: None,
        ..DISK
    };
    assert_eq!(with(0, 512, &without), Err(Status::Operation));
    let read_only = Geometry {
        read_only: true,
        ..DISK
    };
    assert_eq!(with(0, 512, &read_only), Err(Status::ReadOnly));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_passes_lies_inside_disk_and_memory(
        operation in 0u32..6, block in prop_oneof![0u64..200, any::<u64>()],
        offset in prop_oneof![(0u32..3000).prop_map(|n| n * 512), any::<u32>()],
        bytes in prop_oneof![(0u32..200).prop_map(|n| n * 512), any::<u32>()],
    ) {
        let sent = Request { id: 1, operation, block, offset, bytes };
        if let Ok(checked) = sent.check(&DISK, SHARED)
            && checked.operation != Operation::Flush
        {
            prop_assert!(checked.bytes > 0 && checked.bytes <= DISK.request_bytes);
            prop_assert!(checked.block + u64::from(checked.bytes / 512) <= DISK.blocks);
            prop_assert!(operation < 5);
            if !checked.operation.carries_data() {
                prop_assert!(checked.bytes <= 40 * 512);
                return Ok(());
            }
            prop_assert!(checked.offset >= PAGE_BYTES);
            prop_assert!(u64::from(checked.offset) + u64::from(checked.bytes) <= u64::from(SHARED));
        }
    }

    #[test]
    fn any_bytes_in_the_page_lead_to_values_and_no_more_work_than_slots(
        words in proptest::collection::vec(any::<u64>(), 60),
        counters: [u32; 3],
    ) {
        let page = RequestPage::new();
        let mut driver = DriverRing::new(&page);
        let mut client = ClientRing::new(&page);
        page.submitted.store(counters[0], Ordering::Release);
        page.collected.store(counters[1], Ordering::Release);
        page.answered.store(counters[2], Ordering::Release);
        for (slot, words) in page.requests.iter().zip(words.chunks(4)) {
            for (place, word) in slot.iter().zip(words) {
                place.store(*word, Ordering::Relaxed);
            }
        }
        let mut taken = 0;
        while let Ok(Some(request)) = driver.take() {
            let _ = request.check(&DISK, SHARED);
            taken += 1;
            prop_assert!(taken <= SLOTS);
        }
        driver.damaged();
        for _ in 0..=SLOTS {
            let _ = client.collect();
        }
    }

    #[test]
    fn honest_sides_lose_and_repeat_nothing(steps in proptest::collection::vec(0u8..4, 1..400)) {
        let page = RequestPage::new();
        let (mut driver, mut client) = (DriverRing::new(&page), ClientRing::new(&page));
        let (mut next, mut collected) = (0, Vec::new());
        let mut open: Vec<u32> = Vec::new();
        let finish = |driver: &mut DriverRing<'_>, id| driver.answer(Answer { id, status: Status::Done });
        for step in steps {
            match step {
                0 => if client.submit(&request(next)).is_ok() { next += 1 },
                1 => if let Some(taken) = driver.take().unwrap() { open.push(taken.id) },
                // The newest first: answers need not come in order.
                2 => if let Some(id) = open.pop() { finish(&mut driver, id) },
                _ => if let Some(answer) = client.collect().unwrap() { collected.push(answer.id) },
            }
        }
        loop {
            while let Some(taken) = driver.take().unwrap() { open.push(taken.id) }
            for id in open.drain(..) { finish(&mut driver, id) }
            while let Some(answer) = client.collect().unwrap() { collected.push(answer.id) }
            if client.pending() == 0 { break }
        }
        collected.sort_unstable();
        prop_assert_eq!(collected, (0..next).collect::<Vec<_>>());
    }
}
