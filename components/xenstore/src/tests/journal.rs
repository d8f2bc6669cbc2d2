//! Restarts: what the next instance finds, wherever the last one died, and whatever became of the
//! kept memory.

use proptest::prelude::*;

use super::model::{Step, messages, steps};
use super::*;

fn reopened(memory: &Memory) -> Vec<Record> {
    let (service, recovered) = Service::open(memory.copy());
    assert!(!recovered.damaged);
    service.state().records().collect()
}

/// Answers that change nothing are not kept.
fn kept(records: Vec<Record>) -> Vec<Record> {
    let answer = |record: &Record| matches!(record, Record::Answered(..));
    records.into_iter().filter(|r| !answer(r)).collect()
}

#[test]
fn a_request_that_was_carried_out_is_not_carried_out_again() {
    let mut b = Bench::new();
    let message = Bench::message(kind::TRANSACTION_START, 0, b"\0");
    let first = b.send(7, 1, &message);
    assert_eq!(first.1, b"1\0");
    b.restart();
    assert_eq!(b.send(7, 1, &message), first, "the same again");
    assert_eq!(b.send(7, 2, &message).1, b"2\0", "another one");
}

#[test]
fn a_request_in_pieces_begins_anew() {
    let mut b = Bench::new();
    let message = Bench::message(kind::WRITE, 0, b"data/x\x00value");
    let length = message.len() as u32;
    assert_eq!(b.service.send(7, 1, length, 0, &message[..20]), Ok(None));
    b.restart();
    let rest = b.service.send(7, 1, length, 20, &message[20..]);
    assert_eq!(rest, Err(StoreError::Gap));
    assert_eq!(b.send(7, 1, &message).1, b"OK\0");
}

#[test]
fn watches_stay_and_fire_once() {
    let mut b = Bench::new();
    b.say(7, kind::WATCH, b"data\0a\0");
    b.say(7, kind::WATCH, b"/local/domain/7/name\0b\0");
    b.events(7);
    b.restart();
    assert_eq!(b.service.go_on(8, 7), Err(StoreError::NoSession));
    b.service.go_on(7, 7).unwrap();
    assert!(b.service.woken().contains(&7));
    assert_eq!(b.events(7), ["data a", "/local/domain/7/name b"]);
    assert_eq!(b.say(7, kind::WRITE, b"data/x\x001"), "OK\0");
    assert_eq!(b.events(7), ["data/x a"]);
}

#[test]
fn transactions_go_on_and_end_in_eagain() {
    let mut b = Bench::new();
    b.say(7, kind::TRANSACTION_START, b"\0");
    b.within(7, 1, kind::WRITE, b"data/x\x001");
    b.restart();
    assert_eq!(b.within(7, 1, kind::READ, b"data/x\0"), b"1");
    assert_eq!(b.within(7, 1, kind::WRITE, b"data/y\x001"), b"OK\0");
    assert_eq!(b.within(7, 1, kind::TRANSACTION_END, b"T\0"), b"EAGAIN\0");
    assert_eq!(b.say(7, kind::READ, b"data/x\0"), "ENOENT\0");
    assert_eq!(b.say(7, kind::TRANSACTION_START, b"\0"), "2\0");
    assert_eq!(b.within(7, 2, kind::WRITE, b"data/x\x001"), b"OK\0");
    assert_eq!(b.within(7, 2, kind::TRANSACTION_END, b"T\0"), b"OK\0");
}

#[test]
fn a_full_half_is_written_anew_and_nothing_is_lost() {
    let mut b = Bench::over(Memory::new(8192));
    for index in 0..3000 {
        let payload = std::format!("data/n{}\0{index}", index % 20);
        assert_eq!(b.say(7, kind::WRITE, payload.as_bytes()), "OK\0");
        if index % 500 == 0 {
            assert_eq!(reopened(&b.memory), b.records());
        }
    }
    assert_eq!(reopened(&b.memory), b.records());
}

#[test]
fn a_journal_that_is_full_for_good_refuses_and_stays_whole() {
    let mut b = Bench::over(Memory::new(8192));
    let mut refused = 0;
    for index in 0..300 {
        let payload = std::format!("/n{index}\0{}", "x".repeat(200));
        match b.say(0, kind::WRITE, payload.as_bytes()).as_str() {
            "OK\0" => assert_eq!(refused, 0),
            answer => {
                assert_eq!(answer, "ENOSPC\0");
                refused += 1;
            }
        }
    }
    assert!(refused > 100);
    assert_eq!(kept(reopened(&b.memory)), kept(b.records()));
    // Less is always possible.
    assert_eq!(b.say(0, kind::RM, b"/n0\0"), "OK\0");
    assert_eq!(b.say(0, kind::WRITE, b"/n0\x00again"), "OK\0");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_next_instance_is_what_the_last_one_was(steps in steps()) {
        let mut b = Bench::over(Memory::new(16384));
        for step in steps {
            messages(&mut b, &step);
            prop_assert_eq!(kept(reopened(&b.memory)), kept(b.records()));
        }
    }

    /// The instance dies after any store to the kept memory: the next one has the state before the
    /// request or the one after it.
    #[test]
    fn death_between_any_two_stores_leaves_a_whole_state(
        steps in steps(),
        stores in prop::collection::vec(0usize..120, 40),
    ) {
        let mut b = Bench::over(Memory::new(8192));
        for (step, stores) in steps.iter().zip(stores) {
            let before = kept(b.records());
            let whole = b.memory.copy();
            b.memory.dies_after(stores);
            messages(&mut b, step);
            b.memory.dies_after(usize::MAX);
            let after = kept(b.records());
            let found = kept(reopened(&b.memory));
            prop_assert!(found == before || found == after, "{:?}: torn", step);
            // Go on from the state in which the request was carried out.
            b.memory.words.replace(whole.words.borrow().clone());
            let (service, _) = Service::open(b.memory.clone());
            b.service = service;
            messages(&mut b, step);
        }
    }

    #[test]
    fn damaged_memory_is_found_and_survived(
        steps in steps(),
        damage in prop::collection::vec((2usize..2000, any::<u64>()), 1..4),
        commit in any::<Option<u64>>(),
    ) {
        let mut b = Bench::over(Memory::new(8192));
        for step in &steps {
            messages(&mut b, step);
        }
        let whole = kept(b.records());
        let copy = b.memory.copy();
        for (word, value) in damage {
            copy.words.borrow_mut()[word] ^= value;
        }
        if let Some(commit) = commit {
            copy.words.borrow_mut()[1] = commit;
        }
        let (mut service, recovered) = Service::open(copy);
        let found: Vec<Record> = service.state().records().collect();
        prop_assert!(recovered.damaged || commit.is_some() || kept(found) == whole);
        // Whatever is left of it works.
        service.introduce(&facts(7)).unwrap();
        service.open_session(7, 7).unwrap();
    }

    #[test]
    fn any_memory_is_opened(words in prop::collection::vec(any::<u64>(), 4200..4300), magic in any::<bool>()) {
        let memory = Memory::new(0);
        memory.words.replace(words);
        if magic {
            memory.words.borrow_mut()[0] = 0x7873_6a6f_7572_0001;
        }
        Service::open(memory);
    }
}

#[test]
fn steps_reach_every_kind() {
    // A story of one step each, so that the properties above are about something.
    let mut b = Bench::new();
    let step = |kind, path: &str| Step {
        client: 7,
        kind,
        transaction: 0,
        path: path.to_string(),
        value: 3,
    };
    messages(&mut b, &step(kind::WRITE, "data/a"));
    assert_eq!(b.say(7, kind::READ, b"data/a\0"), "vvv");
}
