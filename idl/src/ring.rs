//! Byte rings in a page that two components share: one writer and one reader each way.
//!
//! Neither side trusts the other: counters are read once, and a counter that makes no sense
//! counts as damage that is told to the caller and repaired by dropping what is in the ring. All
//! accesses are atomic, so that a peer who writes at the wrong moment can confuse the bytes but
//! nothing else. Works the same over any 4 KiB of zeroed memory, so hosts test it as it is.
//!
//! A writer signals its peer after [`Writer::write`], a reader after [`Reader::read`]; both check
//! the ring again after they were woken, so that no wake-up is lost.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Bytes from the client to the service.
pub const OUT_BYTES: usize = 2048;
/// Bytes from the service to the client.
pub const IN_BYTES: usize = 1024;

/// One ring. Counters run freely; `head - tail` is what is in it. All zeros is empty.
#[repr(C)]
#[derive(Debug)]
pub struct Ring<const N: usize> {
    /// Bytes ever written. Written by the writer.
    head: AtomicU32,
    /// Bytes ever read. Written by the reader.
    tail: AtomicU32,
    bytes: [AtomicU8; N],
}

/// What a `console` client and the console share.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct RingPage {
    /// From the client.
    pub output: Ring<OUT_BYTES>,
    /// To the client.
    pub input: Ring<IN_BYTES>,
}
const _: () = assert!(size_of::<RingPage>() == 4096);

/// The peer wrote a counter that no sequence of reads and writes leads to. The ring has been
/// emptied; what was in it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

impl<const N: usize> Ring<N> {
    const MASK: u32 = {
        assert!(N.is_power_of_two() && N <= 1 << 16);
        N as u32 - 1
    };

    /// An empty ring.
    pub const fn new() -> Self {
        Ring {
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            bytes: [const { AtomicU8::new(0) }; N],
        }
    }

    /// The writing side; `None` of the ring's state is kept outside of the shared page but the
    /// writer's own counter, which the peer must not be able to move.
    pub fn writer(&self) -> Writer<'_, N> {
        Writer {
            head: self.head.load(Ordering::Relaxed),
            ring: self,
        }
    }

    /// The reading side.
    pub fn reader(&self) -> Reader<'_, N> {
        let tail = self.tail.load(Ordering::Relaxed);
        Reader {
            tail,
            released: tail,
            ring: self,
        }
    }

    fn byte(&self, counter: u32) -> &AtomicU8 {
        // The mask is `N - 1`, so the index is in range; the compiler sees it too.
        &self.bytes[(counter & Self::MASK) as usize]
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Ring::new()
    }
}

impl RingPage {
    /// Two empty rings.
    pub const fn new() -> Self {
        RingPage {
            output: Ring::new(),
            input: Ring::new(),
        }
    }
}

impl Default for RingPage {
    fn default() -> Self {
        RingPage::new()
    }
}

/// Writes into a ring; there is one at a time.
#[derive(Debug)]
pub struct Writer<'a, const N: usize> {
    ring: &'a Ring<N>,
    head: u32,
}

impl<const N: usize> Writer<'_, N> {
    /// Bytes that fit now. A reader that claims to have read more than was written is treated as
    /// one that read all.
    pub fn space(&self) -> usize {
        let used = self
            .head
            .wrapping_sub(self.ring.tail.load(Ordering::Acquire));
        if used as usize <= N {
            N - used as usize
        } else {
            N
        }
    }

    /// Writes as much as fits and answers how much that was.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.space());
        for byte in bytes.iter().take(count) {
            self.ring.byte(self.head).store(*byte, Ordering::Relaxed);
            self.head = self.head.wrapping_add(1);
        }
        self.ring.head.store(self.head, Ordering::Release);
        count
    }
}

/// Reads from a ring; there is one at a time.
#[derive(Debug)]
pub struct Reader<'a, const N: usize> {
    ring: &'a Ring<N>,
    tail: u32,
    /// What the writer was told last.
    released: u32,
}

impl<const N: usize> Reader<'_, N> {
    /// Bytes that can be read now.
    pub fn available(&mut self) -> Result<usize, Damaged> {
        let head = self.ring.head.load(Ordering::Acquire);
        let used = head.wrapping_sub(self.tail) as usize;
        if used <= N {
            return Ok(used);
        }
        self.tail = head;
        self.released = head;
        self.ring.tail.store(head, Ordering::Release);
        Err(Damaged)
    }

    /// Reads as much as there is, up to the length of `bytes`; answers how much that was.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Damaged> {
        let count = self.borrow(bytes)?;
        self.release(0);
        Ok(count)
    }

    /// As [`Reader::read`], but what was read stays in the ring until [`Reader::release`]: a reader
    /// that dies before it is done with it leaves it to the next one.
    pub fn borrow(&mut self, bytes: &mut [u8]) -> Result<usize, Damaged> {
        let count = self.available()?.min(bytes.len());
        for byte in bytes.iter_mut().take(count) {
            *byte = self.ring.byte(self.tail).load(Ordering::Relaxed);
            self.tail = self.tail.wrapping_add(1);
        }
        Ok(count)
    }

    /// Gives the writer the room of everything that was read but the last `keep` bytes. True if
    /// there was any.
    pub fn release(&mut self, keep: usize) -> bool {
        let done = self.tail.wrapping_sub(keep.min(N) as u32);
        // Only forward: what was dropped as damaged is not taken back.
        let forward = (1..=N as u32).contains(&done.wrapping_sub(self.released));
        if forward {
            self.released = done;
            self.ring.tail.store(done, Ordering::Release);
        }
        forward
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use proptest::prelude::*;

    #[test]
    fn bytes_come_out_in_order_across_the_wrap() {
        let page = RingPage::new();
        let (mut writer, mut reader) = (page.output.writer(), page.output.reader());
        let mut next = 0u32;
        let mut expected = 0u32;
        for round in 0..5000usize {
            let chunk: alloc::vec::Vec<u8> = (0..round % 300)
                .map(|_| {
                    next = next.wrapping_add(1);
                    next as u8
                })
                .collect();
            let written = writer.write(&chunk);
            next = next.wrapping_sub((chunk.len() - written) as u32);
            let mut out = [0; 257];
            let count = reader.read(&mut out).unwrap();
            for byte in &out[..count] {
                expected = expected.wrapping_add(1);
                assert_eq!(*byte, expected as u8);
            }
        }
    }

    #[test]
    fn a_writer_that_lies_is_found_out_and_the_ring_goes_on() {
        let ring = Ring::<1024>::new();
        let mut reader = ring.reader();
        ring.head.store(5000, Ordering::Release);
        assert_eq!(reader.read(&mut [0; 16]), Err(Damaged));
        let mut writer = ring.writer();
        assert_eq!(writer.write(b"on"), 2);
        let mut out = [0; 16];
        assert_eq!(reader.read(&mut out), Ok(2));
        assert_eq!(&out[..2], b"on");
    }

    #[test]
    fn a_restarted_side_goes_on_where_the_counters_are() {
        let ring = Ring::<1024>::new();
        ring.writer().write(b"abc");
        let mut out = [0; 2];
        assert_eq!(ring.reader().read(&mut out), Ok(2));
        assert_eq!(ring.writer().write(b"d"), 1);
        assert_eq!(ring.reader().read(&mut out), Ok(2));
        assert_eq!(&out, b"cd");
    }

    #[test]
    fn what_a_dead_reader_did_not_release_is_read_again() {
        let ring = Ring::<1024>::new();
        let mut writer = ring.writer();
        writer.write(b"one\ntwo\nthr");
        let mut reader = ring.reader();
        let mut out = [0; 16];
        assert_eq!(reader.borrow(&mut out), Ok(11));
        assert_eq!(writer.space(), 1013);
        assert!(reader.release(3));
        assert!(!reader.release(3));
        assert_eq!(writer.space(), 1021);
        let mut next = ring.reader();
        assert_eq!(next.read(&mut out), Ok(3));
        assert_eq!(&out[..3], b"thr");
        assert_eq!(writer.space(), 1024);
    }

    #[test]
    fn two_threads_lose_nothing() {
        let ring = Ring::<1024>::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut writer = ring.writer();
                let mut sent = 0u32;
                while sent < 200_000 {
                    if writer.write(&[sent as u8]) == 1 {
                        sent += 1;
                    } else {
                        std::thread::yield_now();
                    }
                }
            });
            let mut reader = ring.reader();
            let mut got = 0u32;
            let mut out = [0; 100];
            while got < 200_000 {
                let count = reader.read(&mut out).unwrap();
                for byte in &out[..count] {
                    assert_eq!(*byte, got as u8);
                    got += 1;
                }
                if count == 0 {
                    std::thread::yield_now();
                }
            }
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn behaves_like_a_queue_until_the_peer_lies(
            steps in proptest::collection::vec((0usize..1500, 0usize..1500), 0..20),
            lie: Option<u32>,
        ) {
            let ring = Ring::<1024>::new();
            let (mut writer, mut reader) = (ring.writer(), ring.reader());
            let mut model = VecDeque::new();
            for (index, (write, read)) in steps.iter().enumerate() {
                let chunk = alloc::vec![index as u8; *write];
                let written = writer.write(&chunk);
                prop_assert_eq!(written, (*write).min(1024 - model.len()));
                model.extend(&chunk[..written]);
                let mut out = alloc::vec![0; *read];
                let count = reader.read(&mut out).unwrap();
                prop_assert_eq!(count, (*read).min(model.len()));
                for byte in &out[..count] {
                    prop_assert_eq!(Some(*byte), model.pop_front());
                }
            }
            if let Some(lie) = lie {
                ring.head.store(lie, Ordering::Release);
                ring.tail.store(lie.rotate_left(7), Ordering::Release);
                let mut out = [0; 2000];
                let _ = reader.read(&mut out);
                prop_assert!(writer.space() <= 1024);
                prop_assert!(writer.write(&out) <= 1024);
            }
        }
    }
}
