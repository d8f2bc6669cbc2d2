//! The operator's command line: keys to a line, a line to a command. Pure; [`crate::Mux`] shows it
//! and `orders` carries out what it cannot. What is typed is untrusted: any bytes may come.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use idl::Name;
use idl::operator::{GuestInfo, GuestOrder, GuestState, MachineInfo, OrderError};

/// Longest line; more is not taken.
pub const LINE: usize = 128;
/// Shown before the line.
pub const PROMPT: &str = "operator> ";

/// What the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The list of commands.
    Help,
    /// The guests.
    List,
    /// What the machine has left.
    Info,
    /// A guest's console.
    Console(Name),
    /// Something of a guest.
    Order(GuestOrder, Name),
}

/// Why a line is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// There is no such command.
    Unknown(String),
    /// The command needs a guest's name.
    NoName(&'static str),
    /// The command takes less than that.
    TooMany(&'static str),
    /// No guest has a name that long.
    LongName,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mistake::Unknown(word) => write!(f, "{word}: no such command; try help"),
            Mistake::NoName(command) => write!(f, "{command}: which guest? usage: {command} NAME"),
            Mistake::TooMany(command) => write!(f, "{command}: too many words; try help"),
            Mistake::LongName => write!(f, "no guest has a name that long"),
        }
    }
}

/// Command words, what follows them, and what they do.
const COMMANDS: &[(&str, &str, &str)] = &[
    ("list", "", "the guests and what they do"),
    ("info", "", "memory: all, guests', components', free"),
    (
        "create",
        "NAME",
        "build and start a guest of the system's description",
    ),
    ("pause", "NAME", "stop its vCPUs; its clocks go on"),
    ("unpause", "NAME", "let them go on"),
    ("reset", "NAME", "start it anew without asking it"),
    ("destroy", "NAME", "take it down without asking it"),
    ("console", "NAME", "show its console; Ctrl-] 0 leads back"),
    ("help", "", "this list"),
];

/// The lines of `help`.
pub fn help() -> impl Iterator<Item = String> {
    COMMANDS
        .iter()
        .map(|(word, name, does)| format!("  {word:<8}{name:<6}{does}"))
}

/// Reads a line; nothing if it is empty.
pub fn parse(line: &str) -> Result<Option<Command>, Mistake> {
    let mut words = line.split_ascii_whitespace();
    let Some(word) = words.next() else {
        return Ok(None);
    };
    let &(command, takes, _) = COMMANDS
        .iter()
        .find(|(known, ..)| *known == word)
        .ok_or_else(|| Mistake::Unknown(word.into()))?;
    let name = match (takes, words.next()) {
        ("", None) => Name::new(),
        ("", Some(_)) => return Err(Mistake::TooMany(command)),
        (_, None) => return Err(Mistake::NoName(command)),
        (_, Some(name)) => Name::try_from(name).map_err(|_| Mistake::LongName)?,
    };
    if words.next().is_some() {
        return Err(Mistake::TooMany(command));
    }
    Ok(Some(match command {
        "list" => Command::List,
        "info" => Command::Info,
        "console" => Command::Console(name),
        "create" => Command::Order(GuestOrder::Create, name),
        "pause" => Command::Order(GuestOrder::Pause, name),
        "unpause" => Command::Order(GuestOrder::Unpause, name),
        "reset" => Command::Order(GuestOrder::Reset, name),
        "destroy" => Command::Order(GuestOrder::Destroy, name),
        _ => Command::Help,
    }))
}

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

/// A guest's state as a word.
pub fn state(state: GuestState) -> &'static str {
    match state {
        GuestState::Waiting => "waiting",
        GuestState::Building => "building",
        GuestState::Running => "running",
        GuestState::Paused => "paused",
        GuestState::Off => "off",
        GuestState::Destroyed => "destroyed",
        GuestState::Failed => "failed",
    }
}

/// The heading of `list`.
pub fn heading() -> String {
    format!(
        "{:<24}{:<12}{:>6}{:>10}{:>8}",
        "guest", "state", "vCPUs", "MiB", "starts"
    )
}

/// A guest's line of `list`.
pub fn guest(guest: &GuestInfo) -> String {
    format!(
        "{:<24}{:<12}{:>6}{:>10}{:>8}",
        guest.name,
        state(guest.state),
        guest.vcpus,
        guest.memory_mib,
        guest.starts
    )
}

/// The lines of `info`.
pub fn machine(info: &MachineInfo) -> [String; 3] {
    let components = info
        .memory_kib
        .saturating_sub(info.guests_kib)
        .saturating_sub(info.free_kib);
    [
        format!(
            "{} CPUs, up for {}.{:03} s",
            info.cpus,
            info.uptime_ms / 1000,
            info.uptime_ms % 1000
        ),
        format!(
            "memory in KiB: {} in all, {} guests', {components} components', {} free",
            info.memory_kib, info.guests_kib, info.free_kib
        ),
        format!("root has {} empty slots", info.free_slots),
    ]
}

/// Why an order was refused.
pub fn refused(name: &str, error: OrderError) -> String {
    match error {
        OrderError::NoGuest => format!("there is no guest {name}; try list"),
        OrderError::State(now) => format!("guest {name} is {}: refused", state(now)),
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
    fn every_command_of_the_help_is_one() {
        for (word, takes, _) in COMMANDS {
            let line = format!("  {word} {takes}\t");
            let command = parse(&line).unwrap().unwrap();
            assert_eq!(command == Command::Help, *word == "help", "{word}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse(" \t "), Ok(None));
        assert_eq!(parse("reboot x"), Err(Mistake::Unknown("reboot".into())));
        assert_eq!(parse("pause"), Err(Mistake::NoName("pause")));
        assert_eq!(parse("list all"), Err(Mistake::TooMany("list")));
        assert_eq!(parse("pause a b"), Err(Mistake::TooMany("pause")));
        let long = format!("pause {}", "x".repeat(33));
        assert_eq!(parse(&long), Err(Mistake::LongName));
        assert_eq!(
            parse("pause a"),
            Ok(Some(Command::Order(
                GuestOrder::Pause,
                Name::try_from("a").unwrap()
            )))
        );
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
        fn any_keys_give_lines_that_are_commands_or_mistakes(
            keys in proptest::collection::vec(any::<u8>(), 0..300),
            word in 0usize..9,
            rest in "[ -~]{0,60}",
        ) {
            let mut line = Line::default();
            for text in typed(&mut line, &keys) {
                prop_assert!(text.len() <= LINE && text.bytes().all(|b| (b' '..=b'~').contains(&b)));
                if let Err(mistake) = parse(&text) {
                    let said = format!("{mistake}");
                    prop_assert!(!said.is_empty());
                }
            }
            let text = format!("{} {rest}", COMMANDS[word].0);
            let words = rest.split_ascii_whitespace().count();
            let wanted = usize::from(!COMMANDS[word].1.is_empty());
            prop_assert!(parse(&text).is_err() || words == wanted);
        }
    }
}
