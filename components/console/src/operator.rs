//! The operator's line: keys to a line. Pure; [`crate::Mux`] shows it, and hands it to whoever carries
//! out commands. What is typed is untrusted: any bytes may come.

use alloc::string::String;
use alloc::vec::Vec;

/// Longest line; more is not taken.
pub const LINE: usize = idl::console::COMMAND_MAX;
/// Shown before the line.
pub const PROMPT: &str = "operator> ";

/// Where the bytes of a key that sends several are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sequence {
    #[default]
    None,
    /// After ESC.
    Escape,
    /// After ESC [ or ESC O: until a letter or ~.
    Parameters,
}

/// A line being typed.
#[derive(Debug, Default)]
pub struct Line {
    text: String,
    sequence: Sequence,
}

/// What a key led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// These bytes are to be shown.
    Echo(Vec<u8>),
    /// The line is complete.
    Done(String),
}

impl Line {
    /// What is typed so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Takes a byte of the operator's.
    pub fn key(&mut self, byte: u8) -> Typed {
        let nothing = Typed::Echo(Vec::new());
        match (self.sequence, byte) {
            (Sequence::Escape, b'[' | b'O') => self.sequence = Sequence::Parameters,
            (Sequence::Parameters, b' '..=b'?') => {}
            (Sequence::Escape | Sequence::Parameters, _) => self.sequence = Sequence::None,
            (Sequence::None, 0x1b) => self.sequence = Sequence::Escape,
            (Sequence::None, b'\r' | b'\n') => {
                return Typed::Done(core::mem::take(&mut self.text));
            }
            // Backspace and delete.
            (Sequence::None, 0x08 | 0x7f) if self.text.pop().is_some() => {
                return Typed::Echo(b"\x08 \x08".into());
            }
            // Ctrl-C and Ctrl-U: another line.
            (Sequence::None, 0x03 | 0x15) => {
                let erase = b"\x08 \x08".repeat(self.text.len());
                self.text.clear();
                return Typed::Echo(erase);
            }
            (Sequence::None, b' '..=b'~') if self.text.len() < LINE => {
                self.text.push(char::from(byte));
                return Typed::Echo([byte].into());
            }
            (Sequence::None, _) => {}
        }
        nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn typed(line: &mut Line, keys: &[u8]) -> Vec<String> {
        keys.iter()
            .filter_map(|&key| match line.key(key) {
                Typed::Done(text) => Some(text),
                Typed::Echo(_) => None,
            })
            .collect()
    }

    #[test]
    fn a_line_is_edited() {
        let mut line = Line::default();
        assert_eq!(
            typed(&mut line, b"lost\x08\x7fist\rab\x15cd\x03info\n\n"),
            ["loist", "info", ""]
        );
        // Arrow keys and function keys leave nothing behind.
        assert_eq!(typed(&mut line, b"\x1b[Al\x1bOBi\x1b[3~st\r"), ["list"]);
        assert_eq!(line.key(0x7f), Typed::Echo(Vec::new()));
    }

    #[test]
    fn a_line_has_an_end() {
        let mut line = Line::default();
        assert_eq!(typed(&mut line, &[b'x'; 500]), Vec::<String>::new());
        assert_eq!(line.text().len(), LINE);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_keys_give_lines_that_can_be_shown(keys in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut line = Line::default();
            for text in typed(&mut line, &keys) {
                prop_assert!(text.len() <= LINE && text.bytes().all(|b| (b' '..=b'~').contains(&b)));
            }
        }
    }
}
