//! Lines to commands, commands to calls, answers to lines.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Debug;

use idl::operator::{FileInfo, GuestInfo, GuestOrder, OperatorClient, OrderError, Path};
use idl::{CallError, Name};
use sdk::prelude::*;
use sdk::startup::PEERS;
use sdk::store::Store;
use toolstack::command::{self, Command};
use toolstack::{definition, text};

use crate::terminal::Terminal;

/// Bit of the own notification that the store signals.
pub const STORE: u64 = 2;

/// Why a command ends without what it was for.
pub enum Failed {
    /// The operator is told this.
    Told(String),
    /// The console is gone.
    Gone(Status),
}

/// What a command leads to: a guest whose console is to be shown, or nothing more.
pub type Done = Result<Option<String>, Failed>;

impl From<Status> for Failed {
    fn from(status: Status) -> Failed {
        Failed::Gone(status)
    }
}

/// A call to root that came to nothing.
pub fn unanswered(failure: impl Debug) -> Failed {
    Failed::Told(format!("root did not answer: {failure:?}"))
}

/// The component's wires.
pub struct Shell {
    pub(crate) root: OperatorClient<EndpointTransport>,
    pub(crate) terminal: Terminal,
    /// The store, if it is there; otherwise why not.
    pub(crate) store: Result<Store, String>,
    pub(crate) own: Cap<cap::Notification>,
}

/// Carries out commands for ever.
pub fn main(env: Env) {
    let root = match OperatorClient::connect(env.transport("operator")) {
        Ok(root) => root,
        Err(error) => panic!("root does not listen: {error:?}"),
    };
    let own = env.notification();
    let store = own
        .mint(Rights::SIGNAL, STORE)
        .map_err(|status| format!("{status:?}"));
    let store = store.and_then(|wake| {
        Store::attach(env.transport("store"), None, wake).map_err(|error| format!("{error:?}"))
    });
    let terminal = match Terminal::new(&env) {
        Ok(terminal) => terminal,
        Err(error) => panic!("no place at the console: {error:?}"),
    };
    // Keys that were typed before the console listened are lost; from here on they are not.
    log::info!("commands: Ctrl-] 0, then help");
    let mut shell = Shell {
        root,
        terminal,
        store,
        own,
    };
    let status = shell.serve();
    panic!("cannot go on: {status:?}");
}

impl Shell {
    fn serve(&mut self) -> Status {
        loop {
            while let Some(line) = self.terminal.line() {
                let show = match self.line(&line) {
                    Ok(show) => show,
                    Err(Failed::Gone(status)) => return status,
                    Err(Failed::Told(why)) => match self.terminal.say(&why) {
                        Ok(()) => None,
                        Err(status) => return status,
                    },
                };
                if let Err(status) = self.terminal.end(show.as_deref()) {
                    return status;
                }
            }
            match self.own.wait(FOREVER) {
                Ok(bits) => self.woken(bits),
                Err(status) => return status,
            }
        }
    }

    /// Takes note of what woke us.
    pub(crate) fn woken(&mut self, bits: u64) {
        if bits & (STORE | PEERS) != 0
            && let Ok(store) = &mut self.store
        {
            store.woken();
        }
        if bits & PEERS != 0 {
            self.terminal.tell();
        }
    }

    fn line(&mut self, line: &str) -> Done {
        let command = match command::parse(line) {
            Ok(Some(command)) => command,
            Ok(None) => return Ok(None),
            Err(mistake) => return Err(Failed::Told(format!("{mistake}"))),
        };
        let lines = match command {
            Command::Help => command::help().collect(),
            Command::List(json) => text::guests(&self.guests()?, json),
            Command::Info(json) => text::machine(&self.root.machine().map_err(unanswered)?, json),
            Command::Files(json) => text::files(&self.files()?, json),
            // With the words that it takes, the console does it without asking.
            Command::Console | Command::Dmesg => {
                return Err(Failed::Told("the console does that; try help".into()));
            }
            Command::Create { what, show, dry } => return self.create(&what, show, dry),
            Command::Order(order, guest) => return self.order(order, &guest),
            Command::Ask { what, guest, wait } => return self.ask(what, &guest, wait),
        };
        self.say(&lines)?;
        Ok(None)
    }

    pub(crate) fn say(&mut self, lines: &[String]) -> Result<(), Failed> {
        for line in lines {
            self.terminal.say(line)?;
        }
        Ok(())
    }

    /// All guests.
    pub(crate) fn guests(&self) -> Result<Vec<GuestInfo>, Failed> {
        let mut guests = Vec::new();
        while let Some(guest) = self.root.guest(guests.len() as u32).map_err(unanswered)? {
            guests.push(guest);
        }
        Ok(guests)
    }

    fn files(&self) -> Result<Vec<FileInfo>, Failed> {
        let mut files = Vec::new();
        while let Some(file) = self.root.listed(files.len() as u32).map_err(unanswered)? {
            files.push(file);
        }
        Ok(files)
    }

    /// The guest of this name, or of this domain id.
    pub(crate) fn guest(&self, name: &str) -> Result<GuestInfo, Failed> {
        let guests = self.guests()?;
        let domain: Option<u16> = name.parse().ok();
        let named = guests.iter().find(|guest| guest.name == name);
        let found = named.or_else(|| guests.iter().find(|guest| domain == Some(guest.domain)));
        let refused = || Failed::Told(text::refused(name, OrderError::NoGuest));
        found.cloned().ok_or_else(refused)
    }

    fn order(&mut self, order: GuestOrder, name: &str) -> Done {
        let guest = self.guest(name)?.name;
        match self.root.order(guest.clone(), order) {
            Ok(state) => {
                let line = format!("guest {guest}: {}", text::state(state));
                self.terminal.say(&line)?;
                Ok(None)
            }
            Err(CallError::Answer(error)) => Err(Failed::Told(text::refused(&guest, error))),
            Err(CallError::Failure(failure)) => Err(unanswered(failure)),
        }
    }

    fn create(&mut self, what: &str, show: bool, dry: bool) -> Done {
        let named = |guest: &GuestInfo| guest.name == what;
        if !dry && self.guests()?.iter().any(named) {
            self.order(GuestOrder::Create, what)?;
            return Ok(show.then(|| what.into()));
        }
        let bytes = self.read(what)?;
        let cpus = self.root.machine().map_err(unanswered)?.cpus;
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        let (definition, said) = definition::read(what, &bytes, cpus);
        self.say(&said)?;
        let Some(definition) = definition else {
            return Err(Failed::Told(format!("{what}: no guest was created")));
        };
        let name: Name = definition.name.clone();
        if dry {
            self.terminal
                .say(&format!("{what}: guest {name} could be created"))?;
            return Ok(None);
        }
        match self.root.define(definition) {
            Ok(domain) => {
                self.terminal
                    .say(&format!("guest {name}: building, domain {domain}"))?;
                Ok(show.then(|| name.as_str().into()))
            }
            Err(CallError::Answer(error)) => Err(Failed::Told(text::undefined(&name, error))),
            Err(CallError::Failure(failure)) => Err(unanswered(failure)),
        }
    }

    /// A file of the boot archive.
    fn read(&self, path: &str) -> Result<Vec<u8>, Failed> {
        let none = || {
            Failed::Told(format!(
                "there is no guest {path}, and no file; try list and files"
            ))
        };
        let named = Path::try_from(path).map_err(|_| none())?;
        let mut bytes = Vec::new();
        loop {
            let offset = bytes.len() as u64;
            let read = self.root.file(named.clone(), offset).map_err(unanswered)?;
            let read = read.ok_or_else(none)?;
            if read.length > definition::FILE_MAX as u64 {
                let length = read.length;
                return Err(Failed::Told(format!(
                    "{path}: {length} bytes are too many for a guest's file"
                )));
            }
            bytes.extend_from_slice(&read.piece);
            if read.piece.is_empty() || bytes.len() as u64 >= read.length {
                return Ok(bytes);
            }
        }
    }
}
