//! A disk in memory, for the bench of [`super::front`].

use std::vec::Vec;

use idl::requests::{Operation, Status};

use super::front::Life;
use crate::device::{Blocks, Submission, Token};
use crate::pool::Pool;

/// A disk that answers when it is told to.
pub struct Disk {
    pub data: Vec<u8>,
    pub memory: Vec<u8>,
    pub pool: Pool,
    pub places: usize,
    pub waiting: Vec<(Token, Submission)>,
    pub life: Life,
    pub most_discarded: u32,
    /// It says that it does not discard, when it is asked to.
    pub unable: bool,
    /// First sector of the disk and count of all that it discarded.
    pub discarded: Vec<(u64, u64)>,
    /// Most discards that it had at a time.
    pub at_once: usize,
}

impl Blocks for Disk {
    fn most(&self) -> u32 {
        32768
    }
    fn most_discarded(&self) -> u32 {
        self.most_discarded
    }
    fn reserve(&mut self, bytes: u32) -> Option<u32> {
        self.pool.take(0, bytes.min(32768))
    }
    fn release(&mut self, place: u32, bytes: u32) {
        self.pool.give_back(0, place, bytes);
    }
    fn put(&mut self, place: u32, from: &[u8]) {
        self.memory[place as usize..][..from.len()].copy_from_slice(from);
    }
    fn get(&self, place: u32, into: &mut [u8]) {
        into.copy_from_slice(&self.memory[place as usize..][..into.len()]);
    }
    fn submit(&mut self, token: Token, request: Submission) -> bool {
        let room = self.waiting.len() < self.places;
        if room && self.life.get() > 0 {
            self.waiting.push((token, request));
            let discards = self.waiting.iter();
            let discards = discards.filter(|(_, one)| one.operation == Operation::Discard);
            self.at_once = self.at_once.max(discards.count());
        }
        room
    }
}

impl Disk {
    /// Does what a request asks for; how it ends.
    pub fn carry_out(&mut self, request: Submission) -> Status {
        let start = request.sector as usize * 512;
        let (disk, place) = (
            start..start + request.bytes as usize,
            request.place as usize,
        );
        let memory = place..place + request.room() as usize;
        match request.operation {
            Operation::Read => self.memory[memory].copy_from_slice(&self.data[disk]),
            Operation::Write => self.data[disk].copy_from_slice(&self.memory[memory]),
            Operation::Discard if self.unable => return Status::Operation,
            Operation::Discard => {
                self.data[disk].fill(0);
                let sectors = u64::from(request.bytes) / 512;
                self.discarded.push((request.sector, sectors));
            }
            Operation::Flush => {}
        }
        Status::Done
    }
}
