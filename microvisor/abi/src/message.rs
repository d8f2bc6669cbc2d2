//! Messages: the info word and the layout of a thread's message buffer.

/// Bytes of payload that one message carries at most.
pub const PAYLOAD_MAX: usize = 4032;
/// Capabilities that one message carries at most.
pub const CAPS_MAX: usize = 4;
/// Offset in the message buffer of the slots (`u32` each) whose capabilities are sent.
pub const SEND_SLOTS: usize = 4032;
/// Offset in the message buffer of the empty slots (`u32` each) that received capabilities go
/// into, in order.
pub const RECEIVE_SLOTS: usize = 4048;

/// Describes a message: bits 0-12 payload bytes, 16-18 capabilities, 32-63 label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct MessageInfo(pub u64);

impl MessageInfo {
    /// Info word by which a bound notification announces itself in `Receive`.
    pub const NOTIFICATION: MessageInfo = MessageInfo(1 << 31);

    /// An info word; sizes beyond what it can hold are cut to an invalid value that the core
    /// refuses.
    #[inline]
    pub const fn new(label: u32, bytes: usize, caps: usize) -> Self {
        MessageInfo(((label as u64) << 32) | ((caps as u64 & 7) << 16) | (bytes as u64 & 0x1fff))
    }

    /// What the message is about; meaning is between sender and receiver.
    #[inline]
    pub const fn label(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Payload bytes in the message buffer.
    #[inline]
    pub const fn bytes(self) -> usize {
        (self.0 & 0x1fff) as usize
    }

    /// Capabilities.
    #[inline]
    pub const fn caps(self) -> usize {
        (self.0 >> 16 & 7) as usize
    }

    /// True if the core would accept this word from a sender.
    #[inline]
    pub const fn valid(self) -> bool {
        self.bytes() <= PAYLOAD_MAX && self.caps() <= CAPS_MAX && self.0 & 0xfff8_e000 == 0
    }
}
