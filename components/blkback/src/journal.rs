//! Notes of answers that are about to be put into a ring, in memory that outlives this component (`keep`):
//! see [`crate::ring`]. A note belongs to a ring, known by its guest, disk and first grant; there is one
//! for each ring at a time.

use alloc::vec::Vec;

use sdk::keep::Area;

use crate::proto::Outcome;
use crate::ring::{Journal, Response};

/// Words of a note: whose it is, number of the first request and count, then two for each answer.
const WORDS: u64 = 64;
const HEAD: u64 = 4;
const ANSWERS: usize = ((WORDS - HEAD) / 2) as usize;

/// Which ring: a guest, a disk's number, a queue, and the grant of the ring's first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Domain id.
    pub domain: u16,
    /// The disk.
    pub device: u32,
    /// The queue.
    pub queue: u16,
    /// The grant.
    pub grant: u32,
}

impl Key {
    fn words(self) -> [u64; 2] {
        let ring = u64::from(self.domain) | u64::from(self.queue) << 16 | 1 << 32;
        [ring, u64::from(self.device) | u64::from(self.grant) << 32]
    }
}

/// The note of one ring, at a place of its own.
pub struct Note<A> {
    area: A,
    start: u64,
    key: Key,
}

impl<A: Area> Note<A> {
    /// The place where an earlier instance noted something for this ring and was not done, or one where
    /// nothing is noted that is not in `taken`; none if all are taken.
    pub fn place(area: &A, key: Key, taken: &[u64]) -> Option<u64> {
        let places = || (0..area.words() / WORDS).map(|place| place * WORDS);
        let [ring, grant] = key.words();
        let own = |start: &u64| area.read(*start) == ring && area.read(start + 1) == grant;
        let found = places().find(own);
        found.or_else(|| places().find(|start| !taken.contains(start) && area.read(*start) == 0))
    }

    /// The note at a place.
    pub fn at(area: A, start: u64, key: Key) -> Note<A> {
        Note { area, start, key }
    }
}

fn outcome(word: u64) -> Outcome {
    match (word >> 16) as u16 as i16 {
        0 => Outcome::Okay,
        -2 => Outcome::NotSupported,
        _ => Outcome::Error,
    }
}

impl<A: Area> Journal for Note<A> {
    const ANSWERS: usize = ANSWERS;

    fn note(&mut self, first: u32, answers: &[Response]) {
        let answers = answers.get(..ANSWERS).unwrap_or(answers);
        for (index, answer) in (0..).zip(answers) {
            let at = self.start + HEAD + 2 * index;
            self.area.write(at, answer.id);
            let status = u64::from(answer.outcome as i16 as u16);
            self.area
                .write(at + 1, u64::from(answer.operation) | status << 16);
        }
        let [ring, grant] = self.key.words();
        let count = answers.len() as u64;
        self.area
            .write(self.start + 2, u64::from(first) | count << 32);
        self.area.write(self.start + 1, grant);
        // From here on it counts.
        self.area.write(self.start, ring);
    }

    fn done(&mut self) {
        self.area.write(self.start, 0);
    }

    fn pending(&self) -> Option<(u32, Vec<Response>)> {
        let [ring, grant] = self.key.words();
        if self.area.read(self.start) != ring || self.area.read(self.start + 1) != grant {
            return None;
        }
        let word = self.area.read(self.start + 2);
        let count = (word >> 32).min(ANSWERS as u64);
        let answer = |index| {
            let at = self.start + HEAD + 2 * index;
            let word = self.area.read(at + 1);
            Response {
                id: self.area.read(at),
                operation: word as u8,
                outcome: outcome(word),
            }
        };
        Some((word as u32, (0..count).map(answer).collect()))
    }
}
