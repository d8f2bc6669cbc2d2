//! A back end that dies at any store, and the one after it.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

use super::front::{Bench, Shape, segments};
use crate::proto::{Abi, op};

/// Writes, flushes and gives up sectors until all are answered; the back end dies after so many stores, each time.
fn survive(deaths: &[usize], shape: Shape, count: u32) -> Result<(), TestCaseError> {
    let mut bench = Bench::new(shape);
    for page in 10..20 {
        bench.fill(page, page as u8);
    }
    bench.disk_is(0xff);
    let mut deaths = deaths.iter();
    let mut wanted: BTreeMap<u64, ()> = BTreeMap::new();
    let mut answered: Vec<u64> = Vec::new();
    let mut sent = 0;
    for _ in 0..1000 {
        while sent < count && bench.open_requests() < bench.entries() {
            let page = 10 + sent % 10;
            let id = match sent % 4 {
                3 => bench.put(op::FLUSH_DISKCACHE, 0, &[]),
                2 => bench.put_discard(0, u64::from(sent) * 8, 8),
                // Each its own sectors, from a page that is not written meanwhile.
                _ => bench.put(op::WRITE, u64::from(sent) * 8, &segments(&[(page, 0, 7)])),
            };
            wanted.insert(id, ());
            sent += 1;
        }
        if let Some(stores) = deaths.next() {
            bench.life.set(*stores);
            let _ = bench.try_run(50);
            // The next instance.
            prop_assert!(bench.open().is_ok());
        }
        prop_assert_eq!(bench.try_run(500), Ok(()));
        for (id, _, status) in bench.answers() {
            prop_assert_eq!(status, 0);
            answered.push(id);
        }
        if answered.len() as u32 == count {
            break;
        }
    }
    let all: Vec<u64> = wanted.into_keys().collect();
    prop_assert_eq!(answered, all, "each once, in order");
    for number in (0..count).filter(|number| number % 4 != 3) {
        let there = bench.disk(u64::from(number) * 8, 8);
        let expected = match number % 4 {
            2 => 0,
            _ => 10 + (number % 10) as u8,
        };
        prop_assert!(there.iter().all(|byte| *byte == expected), "{}", number);
    }
    Ok(())
}

#[test]
fn a_back_end_that_dies_at_any_store_loses_and_repeats_no_answer() {
    for stores in 0..120 {
        survive(&[stores], Shape::default(), 12).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn deaths_at_any_stores_lose_nothing(
        deaths in proptest::collection::vec(0usize..400, 1..12),
        small: bool, reverse: bool, pages in 1usize..3, persistent: bool,
    ) {
        let shape = Shape {
            abi: if small { Abi::X86_32 } else { Abi::X86_64 },
            pages,
            reverse,
            kept: if persistent { 8 } else { 0 },
            ..Shape::default()
        };
        survive(&deaths, shape, 60)?;
    }
}
