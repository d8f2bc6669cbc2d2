//! Log lines that were shown, for the operator to see again: the last ones, as many as fit.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Bytes kept, of all logs together.
pub const HISTORY: usize = 32 * 1024;

/// The last lines.
#[derive(Default)]
pub struct History {
    lines: VecDeque<String>,
    bytes: usize,
}

impl History {
    /// A component said this; printable text.
    pub fn add(&mut self, name: &str, line: &str) {
        let line = format!("[{name}] {line}");
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > HISTORY
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }

    /// What is kept, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
