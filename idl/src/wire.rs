//! Messages as bytes and capabilities: what generated code reads and writes. The only place that
//! knows that the encoding is postcard. Never allocates, never panics.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Cap, Refusal};

/// Capabilities in one message at most; the core's limit.
pub const CAPS_MAX: usize = 4;

/// A message did not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error;

/// Something that writes itself into a message.
pub trait Encode {
    /// Writes it.
    fn encode(&self, out: &mut Writer<'_>) -> Result<(), Error>;
}

/// Writes one message.
pub struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
    caps: [u32; CAPS_MAX],
    cap_count: usize,
}

impl<'a> Writer<'a> {
    /// A message that may fill `bytes`.
    #[inline(always)]
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Writer {
            bytes,
            at: 0,
            caps: [0; CAPS_MAX],
            cap_count: 0,
        }
    }

    /// Appends a value.
    #[inline(always)]
    pub fn put<T: Serialize>(&mut self, value: &T) -> Result<(), Error> {
        let space = self.bytes.get_mut(self.at..).ok_or(Error)?;
        let used = postcard::to_slice(value, space).map_err(|_| Error)?.len();
        self.at += used;
        Ok(())
    }

    /// Appends a capability.
    #[inline(always)]
    pub fn put_cap<K>(&mut self, cap: Cap<K>) -> Result<(), Error> {
        *self.caps.get_mut(self.cap_count).ok_or(Error)? = cap.slot();
        self.cap_count += 1;
        Ok(())
    }

    /// Bytes written so far.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.at
    }

    /// True if nothing was written.
    pub fn is_empty(&self) -> bool {
        self.at == 0 && self.cap_count == 0
    }

    /// Slots of the capabilities to send.
    #[inline(always)]
    pub fn caps(&self) -> &[u32] {
        self.caps.get(..self.cap_count).unwrap_or(&[])
    }

    /// What was written: the number of bytes and the slots, ending the borrow of the buffer.
    #[inline(always)]
    pub fn finish(self) -> (usize, [u32; CAPS_MAX], usize) {
        (self.at, self.caps, self.cap_count)
    }
}

/// Reads one message.
pub struct Reader<'a> {
    bytes: &'a [u8],
    caps: &'a [u32],
}

impl<'a> Reader<'a> {
    /// A message of these bytes and these received slots.
    #[inline(always)]
    pub fn new(bytes: &'a [u8], caps: &'a [u32]) -> Self {
        Reader { bytes, caps }
    }

    /// The next value.
    #[inline(always)]
    pub fn get<T: DeserializeOwned>(&mut self) -> Result<T, Refusal> {
        let (value, rest) =
            postcard::take_from_bytes(self.bytes).map_err(|_| Refusal::Malformed)?;
        self.bytes = rest;
        Ok(value)
    }

    /// The next capability.
    #[inline(always)]
    pub fn get_cap<K>(&mut self) -> Result<Cap<K>, Refusal> {
        let (&slot, rest) = self.caps.split_first().ok_or(Refusal::Malformed)?;
        self.caps = rest;
        Ok(Cap::new(slot))
    }

    /// Nothing may be left over.
    #[inline(always)]
    pub fn end(&self) -> Result<(), Refusal> {
        if self.bytes.is_empty() && self.caps.is_empty() {
            Ok(())
        } else {
            Err(Refusal::Malformed)
        }
    }
}

/// Writes a plain value into bytes, for pages that are read by another component (`Startup`).
/// Answers how many bytes it took.
pub fn write_value<T: Serialize>(value: &T, bytes: &mut [u8]) -> Result<usize, Error> {
    postcard::to_slice(value, bytes)
        .map(|used| used.len())
        .map_err(|_| Error)
}

/// Reads what [`write_value`] wrote; bytes after it do not matter.
pub fn read_value<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    postcard::take_from_bytes(bytes)
        .map(|(value, _)| value)
        .map_err(|_| Error)
}
