//! Xen's block protocol as bytes (public/io/blkif.h and ring.h): how requests and responses lie in a
//! ring, for 64-bit and 32-bit front ends. What a front end wrote is believed in nothing but its width.

use alloc::vec::Vec;

/// Operations (`BLKIF_OP_*`).
pub mod op {
    /// Read.
    pub const READ: u8 = 0;
    /// Write.
    pub const WRITE: u8 = 1;
    /// Everything answered before is to survive a loss of power; then write, if there is data.
    pub const FLUSH_DISKCACHE: u8 = 3;
    /// Sectors hold nothing that anybody wants any more.
    pub const DISCARD: u8 = 5;
    /// With that: no copy of what they held may be left (`BLKIF_DISCARD_SECURE`).
    pub const SECURE: u8 = 1;
    /// A read or write whose segments are listed in pages.
    pub const INDIRECT: u8 = 6;
}

/// `BLKIF_RSP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub enum Outcome {
    /// Done.
    Okay = 0,
    /// Failed.
    Error = -1,
    /// There is no such operation.
    NotSupported = -2,
}

/// Bytes of the largest request.
pub const REQUEST_BYTES: usize = 112;
/// Segments in a direct request at most (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const SEGMENTS_MAX: usize = 11;
/// Segments in an indirect one: what this back end says in `feature-max-indirect-segments`.
pub const INDIRECT_MAX: usize = 256;
/// Grants of pages with segments in an indirect request (`BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`).
const INDIRECT_PAGES: usize = 8;
/// Bytes of a segment.
pub const SEGMENT_BYTES: usize = 8;
/// Where entries begin in a ring (`union __RING_HEADER`).
const ENTRIES: usize = 64;
/// Bytes of a page.
pub const PAGE: usize = 4096;

/// The layout that a front end uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `x86_64-abi`: 8-byte words are aligned.
    X86_64,
    /// `x86_32-abi`: they are aligned to 4 bytes.
    X86_32,
}

impl Abi {
    /// From the front end's node `protocol`; without one it is our own.
    pub fn of_node(node: Option<&[u8]>) -> Option<Abi> {
        match node {
            None | Some(b"x86_64-abi") => Some(Abi::X86_64),
            Some(b"x86_32-abi") => Some(Abi::X86_32),
            Some(_) => None,
        }
    }

    /// Bytes of an entry, the larger of request and response.
    const fn entry_bytes(self) -> usize {
        match self {
            Abi::X86_64 => REQUEST_BYTES,
            Abi::X86_32 => 108,
        }
    }

    /// Entries of a ring of so many pages: the largest power of two that fits.
    pub fn entries(self, pages: usize) -> u32 {
        let fit = (pages * PAGE).saturating_sub(ENTRIES) / self.entry_bytes();
        match fit.checked_ilog2() {
            Some(log) => 1 << log,
            None => 0,
        }
    }

    /// Where in the ring an entry is.
    pub fn entry(self, index: u32) -> usize {
        ENTRIES + index as usize * self.entry_bytes()
    }

    /// Where `id` is in a request.
    const fn id(self) -> usize {
        match self {
            Abi::X86_64 => 8,
            Abi::X86_32 => 4,
        }
    }

    /// A response's bytes: those that have a meaning.
    pub fn response(self, id: u64, operation: u8, outcome: Outcome) -> [u8; 12] {
        let mut bytes = [0; 12];
        let (head, tail) = bytes.split_at_mut(8);
        head.copy_from_slice(&id.to_le_bytes());
        let [low, high] = (outcome as i16).to_le_bytes();
        tail.copy_from_slice(&[operation, 0, low, high]);
        bytes
    }
}

/// A part of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The grant of the page.
    pub reference: u32,
    /// First sector of the page.
    pub first: u8,
    /// Last one.
    pub last: u8,
}

impl Segment {
    /// From its bytes.
    pub fn parse(bytes: &[u8]) -> Option<Segment> {
        let [a, b, c, d, first, last, _, _] = *bytes.first_chunk::<SEGMENT_BYTES>()?;
        Some(Segment {
            reference: u32::from_le_bytes([a, b, c, d]),
            first,
            last,
        })
    }

    /// Its sectors, if it is a part of a page at all.
    pub fn sectors(&self) -> Option<u64> {
        (self.first <= self.last && self.last < 8).then(|| u64::from(self.last - self.first) + 1)
    }
}

/// What is to be done with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the disk into the guest's pages.
    Read,
    /// From the guest's pages to the disk.
    Write,
    /// A flush, then a write if there is data.
    Flush,
}

/// Where a request's segments are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segments {
    /// In the request itself.
    Here(Vec<Segment>),
    /// So many, in these pages.
    Pages(usize, Vec<u32>),
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Data is moved.
    Transfer {
        /// Which way.
        kind: Kind,
        /// First sector.
        sector: u64,
        /// Where the data is.
        segments: Segments,
    },
    /// Sectors are of no use any more.
    Discard {
        /// The first.
        sector: u64,
        /// How many.
        sectors: u64,
        /// And no copy of what was in them is to be left.
        secure: bool,
    },
    /// Something that this protocol does not have, or that was not offered.
    Unknown,
    /// More segments than there can be, or none.
    Malformed,
}

/// A request: what to do, and how its answer is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Comes back with the answer.
    pub id: u64,
    /// Comes back with the answer, too.
    pub operation: u8,
    /// What it asks for.
    pub wanted: Wanted,
}

/// Little-endian words at any place; zeros beyond the end, where no request has one.
fn word<const N: usize>(bytes: &[u8; REQUEST_BYTES], at: usize) -> [u8; N] {
    let rest = bytes.get(at..).unwrap_or(&[]);
    *rest.first_chunk().unwrap_or(&[0; N])
}

fn kind(operation: u8) -> Option<Kind> {
    match operation {
        op::READ => Some(Kind::Read),
        op::WRITE => Some(Kind::Write),
        op::FLUSH_DISKCACHE => Some(Kind::Flush),
        _ => None,
    }
}

/// Reads a request out of a copy of its entry.
pub fn parse(abi: Abi, bytes: &[u8; REQUEST_BYTES]) -> Request {
    let [operation, second, ..] = *bytes;
    let at = abi.id();
    let id = u64::from_le_bytes(word(bytes, at));
    let sector = u64::from_le_bytes(word(bytes, at + 8));
    let after = at + 16;
    let wanted = match operation {
        op::DISCARD => Wanted::Discard {
            sector,
            sectors: u64::from_le_bytes(word(bytes, after)),
            secure: second & op::SECURE != 0,
        },
        op::INDIRECT => {
            let count = usize::from(u16::from_le_bytes(word(bytes, 2)));
            let pages = count.div_ceil(PAGE / SEGMENT_BYTES);
            match kind(second) {
                Some(kind @ (Kind::Read | Kind::Write)) if (1..=INDIRECT_MAX).contains(&count) => {
                    // The grants follow `handle` and two bytes of padding.
                    let grant = |n: usize| u32::from_le_bytes(word(bytes, after + 4 + 4 * n));
                    let pages = (0..pages.min(INDIRECT_PAGES)).map(grant).collect();
                    let segments = Segments::Pages(count, pages);
                    Wanted::Transfer {
                        kind,
                        sector,
                        segments,
                    }
                }
                Some(_) => Wanted::Malformed,
                None => Wanted::Unknown,
            }
        }
        _ => {
            let count = usize::from(second);
            let list = bytes.get(after..).unwrap_or(&[]);
            let list = list.chunks_exact(SEGMENT_BYTES);
            match kind(operation) {
                Some(kind) if count <= SEGMENTS_MAX && (count > 0 || kind == Kind::Flush) => {
                    let segments = list.take(count).filter_map(Segment::parse).collect();
                    let segments = Segments::Here(segments);
                    Wanted::Transfer {
                        kind,
                        sector,
                        segments,
                    }
                }
                Some(_) => Wanted::Malformed,
                None => Wanted::Unknown,
            }
        }
    };
    Request {
        id,
        // Front ends expect the operation that was listed, not that it was listed.
        operation: match operation {
            op::INDIRECT => second,
            direct => direct,
        },
        wanted,
    }
}
