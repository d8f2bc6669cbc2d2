//! The multiplexer: what appears on the serial line and who gets what is typed.
//!
//! The focused guest's output goes through as it is, other guests' output waits in a scrollback
//! that is shown when they get the focus; log lines are always shown, prefixed with their
//! component's name and stripped of control characters. What is typed goes to the focused guest,
//! but for the escape key, Ctrl-], and the key after it. While no guest is focused, it goes to the
//! operator's command line, and whole lines to the client that carries them out; what concerns the
//! display alone (`console`, `dmesg`) is done here. Pure: no hardware, no system calls.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod history;
pub mod operator;
mod scrollback;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use history::History;
use idl::console::END;
use operator::{Line, PROMPT, Typed};
use scrollback::Scrollback;

/// The escape key: Ctrl-], because QEMU keeps Ctrl-A to itself.
pub const ESCAPE: u8 = 0x1d;
/// Bytes that may wait for the serial line before clients have to.
pub const LINE_HIGH: usize = 16 * 1024;
/// Longest log line shown in one piece.
const LOG_LINE: usize = 1024;
/// Typed bytes that wait for a guest.
const TYPED: usize = 4096;
/// Commands of the operator that wait for an answer.
const COMMANDS: usize = 16;

/// A client, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(pub usize);

enum Role {
    Guest {
        /// From 0, in the order of the system's description.
        number: u32,
        scrollback: Scrollback,
        typed: VecDeque<u8>,
    },
    Log {
        line: Vec<u8>,
    },
    /// Carries out commands.
    Operator {
        /// An answer's line, as far as it came.
        line: Vec<u8>,
        /// Commands, each with its end.
        typed: VecDeque<u8>,
    },
}

/// Adds bytes to `line`; the lines that are whole now.
fn lines(line: &mut Vec<u8>, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut done = Vec::new();
    for &byte in bytes {
        if byte != b'\n' {
            line.push(byte);
        }
        if byte == b'\n' || line.len() >= LOG_LINE {
            done.push(core::mem::take(line));
        }
    }
    done
}

struct Client {
    name: String,
    role: Role,
}

/// The state of the terminal.
#[derive(Default)]
pub struct Mux {
    clients: Vec<Client>,
    /// The guest that is shown; without one, the operator's command line is.
    focus: Option<usize>,
    /// The operator chose what is shown: a guest that attaches does not take its place.
    opened: bool,
    command: Line,
    /// Who carries out commands.
    operator: Option<usize>,
    /// Commands that are not answered.
    unanswered: usize,
    /// The guest that is to be shown when it attaches.
    wanted: Option<String>,
    /// Log lines that were shown.
    history: History,
    /// The prompt is the last thing shown.
    prompted: bool,
    escaped: bool,
    /// The cursor is not at the start of a line.
    in_line: bool,
    line: VecDeque<u8>,
}

impl Mux {
    /// No clients, nothing shown.
    pub fn new() -> Mux {
        Mux::default()
    }

    /// Adds a component's log.
    pub fn attach_log(&mut self, name: &str) -> ClientId {
        self.add(name, Role::Log { line: Vec::new() })
    }

    /// Adds a guest by its number in the order of the system's description. Guest 0 has the focus
    /// from the start, and no other one, however early it attaches: who gets what is typed must
    /// not depend on who is faster.
    pub fn attach_guest(&mut self, name: &str, number: u32) -> ClientId {
        let client = self.add(
            name,
            Role::Guest {
                number,
                scrollback: Scrollback::new(),
                typed: VecDeque::new(),
            },
        );
        self.show_wanted(client);
        if number == 0 && self.focus.is_none() && !self.opened {
            self.focus = Some(client.0);
            let text = format!("guest console: {} (Ctrl-] h for help)", plain(name));
            self.note(&text);
        }
        client
    }

    /// Adds the client that carries out commands. The last one that comes is it.
    pub fn attach_operator(&mut self, name: &str) -> ClientId {
        let (line, typed) = (Vec::new(), VecDeque::new());
        let client = self.add(name, Role::Operator { line, typed });
        self.operator = Some(client.0);
        self.prompt();
        client
    }

    /// A client attached again: its name may be another one, because another client has its place now.
    pub fn again(&mut self, client: ClientId, name: &str) {
        let name = plain(name);
        let Some(this) = self.clients.get_mut(client.0) else {
            return;
        };
        let other = this.name != name;
        this.name = name;
        match &mut this.role {
            Role::Guest {
                scrollback, typed, ..
            } if other => {
                *scrollback = Scrollback::new();
                typed.clear();
                if self.focus == Some(client.0) {
                    self.announce(client.0);
                }
                self.show_wanted(client);
            }
            Role::Operator { line, .. } => {
                line.clear();
                if core::mem::take(&mut self.unanswered) != 0 {
                    self.say("(started again: what was typed last may not have been carried out)");
                }
                self.prompt();
            }
            Role::Guest { .. } | Role::Log { .. } => {}
        }
    }

    fn show_wanted(&mut self, client: ClientId) {
        let name = self.clients.get(client.0).map(|client| &client.name);
        if self.focus.is_none() && self.wanted.is_some() && self.wanted.as_ref() == name {
            self.wanted = None;
            self.switch(client.0);
        }
    }

    fn announce(&mut self, index: usize) {
        let name = self.clients.get(index).map_or("", |client| &client.name);
        let text = format!("guest console: {name}");
        self.note(&text);
    }

    fn add(&mut self, name: &str, role: Role) -> ClientId {
        let name = plain(name);
        self.clients.push(Client { name, role });
        ClientId(self.clients.len() - 1)
    }

    /// True while more output may be taken from clients.
    pub fn has_room(&self) -> bool {
        self.line.len() < LINE_HIGH
    }

    /// A client wrote this.
    pub fn output(&mut self, client: ClientId, bytes: &[u8]) {
        let Some(this) = self.clients.get_mut(client.0) else {
            return;
        };
        match &mut this.role {
            Role::Guest { scrollback, .. } => {
                let focused = self.focus == Some(client.0);
                scrollback.add(bytes, focused);
                if focused {
                    self.raw(bytes);
                }
            }
            Role::Log { line } => {
                let done = lines(line, bytes);
                let name = this.name.clone();
                for line in done {
                    let line = String::from_utf8_lossy(&line);
                    self.history.add(&name, &plain(&line));
                    self.note_from(&name, &line);
                }
            }
            Role::Operator { line, .. } => {
                for line in lines(line, bytes) {
                    self.answer(&String::from_utf8_lossy(&line));
                }
            }
        }
    }

    /// The operator typed this.
    pub fn typed(&mut self, byte: u8) {
        if core::mem::take(&mut self.escaped) {
            match byte {
                ESCAPE => self.type_to_guest(ESCAPE),
                b'0' => self.open(),
                b'1'..=b'9' => {
                    let wanted = u32::from(byte - b'1');
                    let guests = self.guests();
                    match guests.iter().find(|(number, _)| *number == wanted) {
                        Some(&(_, index)) => self.switch(index),
                        None => self.note("no guest with this number has a console now"),
                    }
                }
                b'n' => {
                    let guests = self.guests();
                    let shown = guests.iter().find(|(_, index)| Some(*index) == self.focus);
                    let after = |guest: &&(u32, usize)| shown.is_some_and(|shown| *guest > shown);
                    if let Some(&(_, index)) = guests.iter().find(after).or(guests.first()) {
                        self.switch(index);
                    }
                }
                _ => self.help(),
            }
        } else if byte == ESCAPE {
            self.escaped = true;
        } else if self.focus.is_some() {
            self.type_to_guest(byte);
        } else {
            self.type_to_operator(byte);
        }
    }

    /// A line of the answer to the oldest command, or its end.
    fn answer(&mut self, line: &str) {
        let Some(end) = line.strip_prefix(char::from(END)) else {
            return match self.focus {
                None => self.say(line),
                Some(_) => self.note_from("operator", line),
            };
        };
        self.unanswered = self.unanswered.saturating_sub(1);
        if !end.is_empty() {
            match self.named(end) {
                Some(index) => self.switch(index),
                None => self.wanted = Some(end.into()),
            }
        }
        self.prompt();
    }

    /// The next typed byte for this client stays where it is until [`Mux::taken`].
    pub fn pending(&mut self, client: ClientId) -> &[u8] {
        match self
            .clients
            .get_mut(client.0)
            .map(|client| &mut client.role)
        {
            Some(Role::Guest { typed, .. } | Role::Operator { typed, .. }) => {
                typed.make_contiguous()
            }
            _ => &[],
        }
    }

    /// The client took so many of the typed bytes.
    pub fn taken(&mut self, client: ClientId, count: usize) {
        let client = self.clients.get_mut(client.0);
        if let Some(Role::Guest { typed, .. } | Role::Operator { typed, .. }) =
            client.map(|client| &mut client.role)
        {
            typed.drain(..count.min(typed.len()));
        }
    }

    /// The next byte for the serial line.
    pub fn next_byte(&mut self) -> Option<u8> {
        self.line.pop_front()
    }

    /// The last bytes of a log that are no whole line yet, and shown nowhere.
    pub fn unfinished(&self, client: ClientId) -> usize {
        match self.clients.get(client.0).map(|client| &client.role) {
            Some(Role::Log { line } | Role::Operator { line, .. }) => line.len(),
            _ => 0,
        }
    }

    /// True if nothing waits for the line.
    pub fn is_drained(&self) -> bool {
        self.line.is_empty()
    }

    /// A line of the console's own.
    pub fn note(&mut self, text: &str) {
        self.note_from("console", text);
    }

    fn note_from(&mut self, name: &str, text: &str) {
        let prompted = self.prompted;
        let text = format!("[{name}] {text}");
        self.say(&text);
        if prompted {
            self.prompt();
        }
    }

    /// A line of its own.
    fn say(&mut self, text: &str) {
        if core::mem::take(&mut self.prompted) {
            // The prompt makes room and comes back below.
            self.raw(b"\r\x1b[K");
        } else if self.in_line {
            self.raw(b"\r\n");
        }
        let text = format!("{}\r\n", plain(text));
        self.raw(text.as_bytes());
    }

    /// Shows the prompt and what was typed after it, if it is the operator's turn.
    fn prompt(&mut self) {
        if self.focus.is_some() || !self.opened || self.unanswered != 0 || self.prompted {
            return;
        }
        if self.in_line {
            self.raw(b"\r\n");
        }
        let text = format!("{PROMPT}{}", self.command.text());
        self.raw(text.as_bytes());
        self.prompted = true;
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.line.extend(bytes);
        if let Some(last) = bytes.last() {
            self.in_line = *last != b'\n';
        }
    }

    /// Numbers and places of the guests that have attached, by number.
    fn guests(&self) -> Vec<(u32, usize)> {
        let clients = self.clients.iter().enumerate();
        let mut guests: Vec<_> = clients
            .filter_map(|(index, client)| match client.role {
                Role::Guest { number, .. } => Some((number, index)),
                Role::Log { .. } | Role::Operator { .. } => None,
            })
            .collect();
        guests.sort_unstable();
        guests
    }

    fn type_to_guest(&mut self, byte: u8) {
        let focus = self.focus.and_then(|focus| self.clients.get_mut(focus));
        if let Some(Client {
            role: Role::Guest { typed, .. },
            ..
        }) = focus
        {
            // A guest that does not read loses what is typed, as on a real serial line.
            if typed.len() < TYPED {
                typed.push_back(byte);
            }
        }
    }

    /// The operator's command line instead of a guest.
    fn open(&mut self) {
        self.focus = None;
        self.opened = true;
        self.prompt();
    }

    fn type_to_operator(&mut self, byte: u8) {
        if !self.opened {
            // Nothing was shown so far: any key opens the command line and is its first.
            self.open();
        }
        self.wanted = None;
        match self.command.key(byte) {
            Typed::Echo(echo) => {
                // While a command is carried out there is no line to show it in.
                if self.prompted {
                    self.raw(&echo);
                }
            }
            Typed::Done(line) => {
                if core::mem::take(&mut self.prompted) {
                    self.raw(b"\r\n");
                }
                self.command_line(&line);
                self.prompt();
            }
        }
    }

    fn command_line(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (None, ..) => {}
            (Some("console"), Some(name), None) => self.show(name),
            (Some("dmesg"), None, _) => {
                for line in self.history.lines() {
                    self.say(&line);
                }
            }
            _ if self.unanswered >= COMMANDS => {
                self.say("too many commands wait for their answers");
            }
            _ => self.hand_on(line),
        }
    }

    fn hand_on(&mut self, line: &str) {
        let operator = self.operator.and_then(|index| self.clients.get_mut(index));
        match operator.map(|client| &mut client.role) {
            Some(Role::Operator { typed, .. }) => {
                typed.extend(line.bytes().chain([b'\n']));
                self.unanswered += 1;
            }
            _ => self.say("nobody is there to carry out commands; a system's toolstack does that"),
        }
    }

    fn named(&self, name: &str) -> Option<usize> {
        let named = |index: usize| self.clients.get(index).is_some_and(|c| c.name == name);
        let found = self.guests().into_iter().find(|(_, index)| named(*index));
        found.map(|(_, index)| index)
    }

    fn show(&mut self, name: &str) {
        match self.named(name) {
            Some(index) => self.switch(index),
            None => self.say(&format!(
                "guest {name} has no console, or there is no such guest"
            )),
        }
    }

    fn switch(&mut self, index: usize) {
        self.focus = Some(index);
        self.opened = false;
        let missed = match self.clients.get_mut(index).map(|client| &mut client.role) {
            Some(Role::Guest { scrollback, .. }) => scrollback.take_missed(),
            _ => return,
        };
        self.announce(index);
        self.raw(&missed);
    }

    fn help(&mut self) {
        self.note(
            "Ctrl-] then: 1-9 a guest, n the next guest, 0 the operator's command line, Ctrl-] itself, h this help",
        );
        for (number, index) in self.guests() {
            let name = self.clients.get(index).map_or("", |c| c.name.as_str());
            let mark = if self.focus == Some(index) {
                " (shown)"
            } else {
                ""
            };
            let text = format!("  {} {name}{mark}", number + 1);
            self.note(&text);
        }
    }
}

/// Text without what moves a cursor or changes a terminal.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => '.',
            c => c,
        })
        .collect()
}
