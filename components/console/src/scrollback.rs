//! The last output of one guest, and how much of it nobody has seen.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Bytes kept for each guest.
pub const SCROLLBACK: usize = 16 * 1024;

/// A bounded history.
pub struct Scrollback {
    kept: VecDeque<u8>,
    /// Of the end of `kept`, not shown yet.
    missed: usize,
}

impl Scrollback {
    /// Empty.
    pub fn new() -> Self {
        Scrollback {
            kept: VecDeque::new(),
            missed: 0,
        }
    }

    /// Adds output that was `shown`, or not.
    pub fn add(&mut self, bytes: &[u8], shown: bool) {
        self.kept.extend(bytes);
        let over = self.kept.len().saturating_sub(SCROLLBACK);
        self.kept.drain(..over);
        self.missed = if shown {
            0
        } else {
            self.missed.saturating_add(bytes.len()).min(self.kept.len())
        };
    }

    /// What to show when the guest gets the focus: what was missed, from the start of its line, so
    /// that at least the prompt is there.
    pub fn take_missed(&mut self) -> Vec<u8> {
        let from = self.kept.len() - self.missed;
        let start = self
            .kept
            .iter()
            .take(from)
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |newline| newline + 1);
        self.missed = 0;
        self.kept.iter().skip(start).copied().collect()
    }
}
