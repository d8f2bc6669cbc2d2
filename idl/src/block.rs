//! `block`: a disk. A client attaches once; after that requests flow through a ring in memory that
//! both share ([`crate::requests`]) and two notifications, without calls.
//!
//! The shared memory is root's, one piece for each client, and the device reads and writes it
//! directly: either side may die without the other faulting on it. It begins with the ring's page;
//! what follows is the client's, to put data in as it likes.

use crate::{Cap, cap, interface, message};

/// How blocks that nobody wants any more are given up.
#[message]
#[derive(Copy)]
pub struct Discard {
    /// Bytes of the disk that one request gives up at most: whole blocks, one at least.
    pub bytes: u32,
    /// Bytes that the disk gives up together, whole blocks, at multiples of so many. What a request
    /// covers only in part may stay as it was.
    pub granularity: u32,
}

/// A disk's shape. It does not change while the driver runs.
#[message]
#[derive(Copy)]
pub struct Geometry {
    /// Bytes of a block: the unit of addresses and lengths, a power of two from 512 to 4096.
    pub block_bytes: u32,
    /// Blocks.
    pub blocks: u64,
    /// Bytes that one request carries at most.
    pub request_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// What was answered may still be lost with the power until a flush was answered. Otherwise
    /// flushes are answered at once.
    pub write_cache: bool,
    /// Queues that the device has and the driver uses.
    pub queues: u16,
    /// Blocks can be given up; none of a disk that is read-only.
    pub discard: Option<Discard>,
}

/// What attaching leads to.
#[message]
#[derive(Copy)]
pub struct Attached {
    /// The disk.
    pub geometry: Geometry,
    /// Bytes of the shared memory, the ring's page included.
    pub shared_bytes: u32,
}

/// Why `attach` failed.
#[message]
#[derive(Copy)]
pub enum BlockError {
    /// Root shares no memory between this client and the driver.
    NoMemory,
    /// There is no device, or it failed.
    NoDevice,
    /// Requests of an earlier attachment are still with the device; ask again.
    Busy,
    /// The core refused something: its status number.
    Core(u32),
}

/// Serves one disk.
#[interface]
pub trait Block {
    /// Gives the caller its shared memory and a notification to signal (with any bit) after
    /// submitting. The driver signals `wake` after answering. The ring is empty afterwards: requests
    /// of an earlier attachment have ended, unanswered, and a client that wants them submits them
    /// again. `sdk::block` does all of this.
    fn attach(
        &self,
        wake: Cap<cap::Notification>,
    ) -> Result<(Attached, Cap<cap::Frame>, Cap<cap::Notification>), BlockError>;
}
