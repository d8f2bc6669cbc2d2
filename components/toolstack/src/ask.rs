//! `shutdown` and `reboot`: the guest is asked by its node `control/shutdown` in the store, as libxl does.
//! A guest that understands takes the word out of the node (Linux: drivers/xen/manage.c) and does it; one
//! that does not never will, so every wait has a deadline and says what came of it.

use alloc::format;

use idl::operator::{GuestInfo, GuestState, OrderError};
use sdk::prelude::*;
use sdk::store::{Error, Store};
use toolstack::command::Request;
use toolstack::text;

use crate::server::{Done, Failed, Shell};

/// How long a guest has to take the word.
const TAKE_S: u64 = 15;
/// How long it has to do it, where the operator waits for that.
const DO_S: u64 = 180;
/// Of this component's watches.
const TOKEN: &str = "toolstack";
/// Fires when a domain is gone.
const RELEASED: &str = "@releaseDomain";
/// Fires when there is another one.
const INTRODUCED: &str = "@introduceDomain";

/// What the store says of the node.
enum Node {
    /// The guest has not taken the word.
    There,
    /// It has, or it is gone.
    Taken,
}

impl Shell {
    fn store(&mut self) -> Result<&mut Store, Failed> {
        let why = |why: &alloc::string::String| Failed::Told(format!("there is no store: {why}"));
        self.store.as_mut().map_err(|error| why(error))
    }

    /// Asks a guest for something.
    pub(crate) fn ask(&mut self, what: Request, name: &str, wait: bool) -> Done {
        let guest = self.guest(name)?;
        if guest.state != GuestState::Running {
            let refused = text::refused(&guest.name, OrderError::State(guest.state));
            return Err(Failed::Told(refused));
        }
        let control = format!("/local/domain/{}/control", guest.domain);
        let node = format!("{control}/shutdown");
        let feature = format!("{control}/feature-{}", what.word());
        let says = match self.store()?.read(&feature) {
            Ok(value) => value == b"1",
            Err(Error::Refused(_)) => false,
            Err(error) => return Err(failed(&error)),
        };
        let (name, word) = (guest.name.clone(), what.word());
        if !says {
            self.terminal.say(&format!(
                "guest {name} does not say that it obeys {word} (control/feature-{word}); it is asked all the same"
            ))?;
        }
        let watched = [node.as_str(), RELEASED, INTRODUCED];
        for path in watched {
            self.store()?
                .watch(path, TOKEN)
                .map_err(|error| failed(&error))?;
        }
        let done = self.asked(&guest, what, &node, wait);
        for path in watched {
            // A session that is gone has no watches either.
            let _ = self.store()?.unwatch(path, TOKEN);
        }
        done
    }

    fn asked(&mut self, guest: &GuestInfo, what: Request, node: &str, wait: bool) -> Done {
        let (name, word) = (&guest.name, what.word());
        let written = self.store()?.write(node, word.as_bytes());
        written.map_err(|error| failed(&error))?;
        let taken = self.until(TAKE_S, |shell| {
            Ok(matches!(shell.node(node, word)?, Node::Taken))
        })?;
        if !taken {
            return Err(Failed::Told(format!(
                "guest {name} did not take {word} within {TAKE_S} s; destroy and reset do not ask it"
            )));
        }
        self.terminal
            .say(&format!("guest {name}: asked for {word}"))?;
        if !wait {
            return Ok(None);
        }
        let done = self.until(DO_S, |shell| shell.has_done(guest, what))?;
        let said = match done {
            true => format!("guest {name}: {word} is done"),
            false => format!("guest {name} took {word}, and has not done it within {DO_S} s"),
        };
        self.terminal.say(&said)?;
        Ok(None)
    }

    fn node(&mut self, node: &str, word: &str) -> Result<Node, Failed> {
        match self.store()?.read(node) {
            Ok(value) if value == word.as_bytes() => Ok(Node::There),
            Ok(_) | Err(Error::Refused(_)) => Ok(Node::Taken),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Whether the guest that was asked is not there any more, or another instance of it is.
    fn has_done(&mut self, asked: &GuestInfo, what: Request) -> Result<bool, Failed> {
        let guests = self.guests()?;
        let now = guests.iter().find(|guest| guest.domain == asked.domain);
        Ok(now.is_none_or(|now| match now.state {
            GuestState::Running | GuestState::Paused => now.starts != asked.starts,
            GuestState::Building => what == Request::Reboot,
            _ => true,
        }))
    }

    /// Looks again whenever the store says that something changed, for so long at most.
    fn until(
        &mut self,
        seconds: u64,
        mut there: impl FnMut(&mut Shell) -> Result<bool, Failed>,
    ) -> Result<bool, Failed> {
        let wait = sdk::time::microseconds(seconds * 1_000_000);
        let deadline = sdk::time::now().saturating_add(wait);
        // A wake-up may have come while something was said.
        self.store()?.woken();
        loop {
            // What fired is not looked at: the answer is in what can be read now.
            self.store()?.fired().map_err(|error| failed(&error))?;
            if there(self)? {
                return Ok(true);
            }
            match self.own.wait(deadline) {
                Ok(bits) => self.woken(bits),
                Err(Status::Timeout) => return there(self),
                Err(status) => return Err(status.into()),
            }
        }
    }
}

fn failed(error: &Error) -> Failed {
    Failed::Told(format!("the store did not do it: {error:?}"))
}
