//! A message as it lies in registers and buffer, and how a fault damages it. Knows the convention
//! of `sdk::ipc` (short payloads in words), which is not the core's business and therefore here.

use microvisor_abi::MessageInfo;
use microvisor_abi::message::PAYLOAD_MAX;
use sdk::ipc::INLINE;

use crate::fault::{Mangle, Random};

/// Bytes of a thread's message buffer.
pub(crate) const BUFFER: usize = 4096;
/// No interface has so many methods, and no refusal has this number.
const NO_LABEL: u32 = 0xfff;

/// A message of a thread that sends.
pub(crate) struct Message<'a> {
    pub info: &'a mut u64,
    pub words: &'a mut [u64],
    pub buffer: &'a mut [u8; BUFFER],
}

impl Message<'_> {
    /// Method, or refusal.
    pub fn code(&self) -> u32 {
        MessageInfo(*self.info).label() & 0xffff
    }

    /// The payload.
    pub fn bytes(&self) -> Vec<u8> {
        let info = MessageInfo(*self.info);
        if info.bytes() != 0 {
            return self.buffer[..info.bytes().min(PAYLOAD_MAX)].to_vec();
        }
        let inline: Vec<u8> = self.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let length = (info.label() >> 16) as usize;
        inline.get(..length).unwrap_or(&[]).to_vec()
    }

    /// Writes another payload.
    pub fn set(&mut self, code: u32, bytes: &[u8], caps: usize) {
        if bytes.len() > INLINE {
            let length = bytes.len().min(PAYLOAD_MAX);
            self.buffer[..length].copy_from_slice(&bytes[..length]);
            *self.info = MessageInfo::new(code, length, caps).0;
            return;
        }
        let mut padded = [0; INLINE];
        padded[..bytes.len()].copy_from_slice(bytes);
        for (word, chunk) in self.words.iter_mut().zip(padded.chunks_exact(8)) {
            *word = chunk.try_into().map_or(0, u64::from_le_bytes);
        }
        *self.info = MessageInfo::new(code | (bytes.len() as u32) << 16, 0, caps).0;
    }

    /// Damages it.
    pub fn mangle(&mut self, how: Mangle) {
        let (mut code, mut bytes) = (self.code(), self.bytes());
        let mut caps = MessageInfo(*self.info).caps();
        match how {
            Mangle::Truncate => {
                bytes.pop();
            }
            Mangle::Empty => bytes.clear(),
            Mangle::Oversize => bytes.resize(PAYLOAD_MAX, 0xa5),
            Mangle::Random(seed) => {
                let mut random = Random(seed);
                bytes.resize(1 + random.next() as usize % 200, 0);
                bytes.fill_with(|| random.next() as u8);
            }
            Mangle::DropCaps => caps = 0,
            Mangle::Label => code = NO_LABEL,
        }
        self.set(code, &bytes, caps);
    }

    /// Another schema hash: a varint whose lowest bit differs.
    pub fn other_hash(&mut self) {
        let mut bytes = self.bytes();
        if let Some(first) = bytes.first_mut() {
            *first ^= 1;
        }
        self.set(self.code(), &bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_of_every_length_come_back() {
        for length in [0, 1, 8, 31, 32, 33, 500, PAYLOAD_MAX] {
            let (mut info, mut words, mut buffer) = (0, [0; 4], [0; BUFFER]);
            let mut message = Message {
                info: &mut info,
                words: &mut words,
                buffer: &mut buffer,
            };
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            message.set(7, &bytes, 2);
            assert_eq!((message.code(), message.bytes()), (7, bytes));
            assert!(MessageInfo(info).valid());
        }
    }
}
