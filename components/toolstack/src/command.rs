//! A line to a command. The words are those of Xen's `xl` where it has the command.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use idl::operator::GuestOrder;

/// What the operator wants. Guests are names or domain ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The list of commands.
    Help,
    /// The guests; as JSON or not.
    List(bool),
    /// What the machine has left, likewise.
    Info(bool),
    /// The archive's files, likewise.
    Files(bool),
    /// A guest's console, which the console shows itself.
    Console,
    /// The log, likewise.
    Dmesg,
    /// A guest of the description that is not there, or one of a file.
    Create {
        /// Name or path.
        what: String,
        /// Its console is shown then (`-c`).
        show: bool,
        /// It is only said what is wrong with the file (`-n`).
        dry: bool,
    },
    /// Something of a guest that root does.
    Order(GuestOrder, String),
    /// Something of a guest that it does itself.
    Ask {
        /// What.
        what: Request,
        /// Which guest.
        guest: String,
        /// Until it has done it (`-w`).
        wait: bool,
    },
}

/// What a guest can be asked for, by node `control/shutdown` (Xen's xenstore-paths).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To switch itself off.
    Poweroff,
    /// To start anew.
    Reboot,
}

impl Request {
    /// The word in the store.
    pub fn word(self) -> &'static str {
        match self {
            Request::Poweroff => "poweroff",
            Request::Reboot => "reboot",
        }
    }
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
    /// The command has no such option.
    Option(&'static str, String),
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mistake::Unknown(word) => write!(f, "{word}: no such command; try help"),
            Mistake::NoName("create") => {
                write!(f, "create: which guest? usage: create NAME or create FILE")
            }
            Mistake::NoName(command) => write!(f, "{command}: which guest? usage: {command} NAME"),
            Mistake::TooMany(command) => write!(f, "{command}: too many words; try help"),
            Mistake::Option(command, option) => {
                write!(f, "{command}: no option {option}; try help")
            }
        }
    }
}

/// Command words, their options, whether a guest follows, and what they do.
const COMMANDS: &[(&str, &[&str], bool, &str)] = &[
    ("list", &["--json"], false, "the guests and what they do"),
    (
        "info",
        &["--json"],
        false,
        "memory: all, guests', components', free",
    ),
    (
        "files",
        &["--json"],
        false,
        "files that guests can be made of",
    ),
    (
        "create",
        &["-c", "-n"],
        true,
        "build and start a guest of the system's description, or of a file (xl.cfg); -c: show its console, -n: only say what is wrong with the file",
    ),
    (
        "shutdown",
        &["-w"],
        true,
        "ask it to switch itself off; -w: wait until it has",
    ),
    (
        "reboot",
        &["-w"],
        true,
        "ask it to start anew; -w: wait until it does",
    ),
    ("pause", &[], true, "stop its vCPUs; its clocks go on"),
    ("unpause", &[], true, "let them go on"),
    ("reset", &[], true, "start it anew without asking it"),
    ("destroy", &[], true, "take it down without asking it"),
    (
        "console",
        &[],
        true,
        "show its console; Ctrl-] 0 leads back",
    ),
    ("dmesg", &[], false, "what root and components said last"),
    ("help", &[], false, "this list"),
];

/// The lines of `help`.
pub fn help() -> impl Iterator<Item = String> {
    COMMANDS.iter().map(|(word, options, name, does)| {
        let mut takes: Vec<String> = options.iter().map(|option| format!("[{option}]")).collect();
        if *name {
            takes.push("NAME".into());
        }
        format!("  {word:<9}{:<15}{does}", takes.join(" "))
    })
}

/// Reads a line; nothing if it is empty.
pub fn parse(line: &str) -> Result<Option<Command>, Mistake> {
    let mut words = line.split_ascii_whitespace();
    let Some(word) = words.next() else {
        return Ok(None);
    };
    let &(command, known, takes, _) = COMMANDS
        .iter()
        .find(|(known, ..)| *known == word)
        .ok_or_else(|| Mistake::Unknown(word.into()))?;
    let mut options: Vec<&str> = Vec::new();
    let mut guest = None;
    for word in words {
        if word.starts_with('-') {
            if !known.contains(&word) {
                return Err(Mistake::Option(command, word.into()));
            }
            options.push(word);
        } else if !takes || guest.replace(word).is_some() {
            return Err(Mistake::TooMany(command));
        }
    }
    if takes && guest.is_none() {
        return Err(Mistake::NoName(command));
    }
    let guest = String::from(guest.unwrap_or_default());
    let has = |option| options.contains(&option);
    let order = |order, guest| Command::Order(order, guest);
    let ask = |what, guest, wait| Command::Ask { what, guest, wait };
    Ok(Some(match command {
        "list" => Command::List(has("--json")),
        "info" => Command::Info(has("--json")),
        "files" => Command::Files(has("--json")),
        "create" => Command::Create {
            what: guest,
            show: has("-c"),
            dry: has("-n"),
        },
        "shutdown" => ask(Request::Poweroff, guest, has("-w")),
        "reboot" => ask(Request::Reboot, guest, has("-w")),
        "pause" => order(GuestOrder::Pause, guest),
        "unpause" => order(GuestOrder::Unpause, guest),
        "reset" => order(GuestOrder::Reset, guest),
        "destroy" => order(GuestOrder::Destroy, guest),
        "console" => Command::Console,
        "dmesg" => Command::Dmesg,
        _ => Command::Help,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_command_of_the_help_is_one() {
        for (word, options, takes, _) in COMMANDS {
            let name = if *takes { "NAME" } else { "" };
            let line = format!("  {word} {} {name}\t", options.join(" "));
            let command = parse(&line).unwrap().unwrap();
            assert_eq!(command == Command::Help, *word == "help", "{word}");
        }
        assert_eq!(help().count(), COMMANDS.len());
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse(" \t "), Ok(None));
        assert_eq!(parse("reebot x"), Err(Mistake::Unknown("reebot".into())));
        assert_eq!(parse("pause"), Err(Mistake::NoName("pause")));
        assert_eq!(parse("list all"), Err(Mistake::TooMany("list")));
        assert_eq!(parse("pause a b"), Err(Mistake::TooMany("pause")));
        let option = Mistake::Option("pause", "-w".into());
        assert_eq!(parse("pause -w a"), Err(option));
        let said = format!("{}", parse("pause").unwrap_err());
        assert_eq!(said, "pause: which guest? usage: pause NAME");
    }

    #[test]
    fn options_come_anywhere() {
        let create = Command::Create {
            what: "a.cfg".into(),
            show: true,
            dry: false,
        };
        for line in ["create -c a.cfg", "create a.cfg -c"] {
            assert_eq!(parse(line), Ok(Some(create.clone())));
        }
        assert_eq!(
            parse("shutdown -w debian"),
            Ok(Some(Command::Ask {
                what: Request::Poweroff,
                guest: "debian".into(),
                wait: true
            }))
        );
        assert_eq!(parse("list --json"), Ok(Some(Command::List(true))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_line_is_a_command_or_a_mistake(
            line in prop_oneof![".{0,80}", "(list|create|shutdown|pause|help|-w|-c|--json| |a){0,8}"],
        ) {
            if let Err(mistake) = parse(&line) {
                let said = format!("{mistake}");
                prop_assert!(!said.is_empty());
            }
        }
    }
}
