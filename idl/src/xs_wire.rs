//! The xenstore's messages: header, types, error names (Xen public/io/xs_wire.h), and what may be in a
//! guest's ring page. Used by the store, by what hands guests' messages on, and by clients.

/// Most bytes of a message's payload (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;

/// Message types.
pub mod kind {
    /// Orders to the daemon itself.
    pub const CONTROL: u32 = 0;
    /// Names of a node's children.
    pub const DIRECTORY: u32 = 1;
    /// A node's value.
    pub const READ: u32 = 2;
    /// A node's permissions.
    pub const GET_PERMS: u32 = 3;
    /// Sets a watch.
    pub const WATCH: u32 = 4;
    /// Removes a watch.
    pub const UNWATCH: u32 = 5;
    /// Starts a transaction.
    pub const TRANSACTION_START: u32 = 6;
    /// Ends a transaction.
    pub const TRANSACTION_END: u32 = 7;
    /// A domain is there now: its id, the frame of its ring, the event channel.
    pub const INTRODUCE: u32 = 8;
    /// A domain is gone.
    pub const RELEASE: u32 = 9;
    /// The path of a domain.
    pub const GET_DOMAIN_PATH: u32 = 10;
    /// Sets a value, making the node if need be.
    pub const WRITE: u32 = 11;
    /// Makes a node, if it is not there.
    pub const MKDIR: u32 = 12;
    /// Removes a node and everything below.
    pub const RM: u32 = 13;
    /// Sets a node's permissions.
    pub const SET_PERMS: u32 = 14;
    /// A watch fired.
    pub const WATCH_EVENT: u32 = 15;
    /// The request failed.
    pub const ERROR: u32 = 16;
    /// Whether a domain is known.
    pub const IS_DOMAIN_INTRODUCED: u32 = 17;
    /// A domain that was suspended runs again.
    pub const RESUME: u32 = 18;
    /// One domain gets the rights of another.
    pub const SET_TARGET: u32 = 19;
    /// Removes all watches and transactions of the connection.
    pub const RESET_WATCHES: u32 = 21;
    /// A part of a long directory.
    pub const DIRECTORY_PART: u32 = 22;
}

/// A message's header: four little-endian words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// A [`kind`].
    pub kind: u32,
    /// Echoed in the answer.
    pub request: u32,
    /// Transaction, 0 for none.
    pub transaction: u32,
    /// Bytes of payload.
    pub length: u32,
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = 16;

    /// Reads a header.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Header {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(word)
        };
        Header {
            kind: word(0),
            request: word(4),
            transaction: word(8),
            length: word(12),
        }
    }

    /// Writes a header.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let words = [self.kind, self.request, self.transaction, self.length];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// Errors that the store answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// The request or path makes no sense.
    Inval,
    /// No permission.
    Acces,
    /// It is there already.
    Exist,
    /// There is no such node, watch or transaction.
    NoEnt,
    /// The guest's quota is used up.
    NoSpc,
    /// There is no such request.
    NoSys,
    /// Somebody else changed the store: try the transaction again.
    Again,
    /// The answer is too long for one message.
    TooBig,
    /// Too many transactions.
    Busy,
}

impl Errno {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Errno::Inval => "EINVAL",
            Errno::Acces => "EACCES",
            Errno::Exist => "EEXIST",
            Errno::NoEnt => "ENOENT",
            Errno::NoSpc => "ENOSPC",
            Errno::NoSys => "ENOSYS",
            Errno::Again => "EAGAIN",
            Errno::TooBig => "E2BIG",
            Errno::Busy => "EBUSY",
        }
    }
}
