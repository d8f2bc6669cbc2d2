//! A client of the xenstore (interface `store`): for a guest's VMM, which hands on whole messages, and
//! for components, which read, write and watch.
//!
//! The store may be started again at any time. A request that it did not answer is sent again under
//! the same number, so it happens once; a call waits as long as that takes. When bit
//! [`crate::startup::PEERS`] comes, call [`Store::woken`] and fetch events: a new instance has to be
//! told whom to wake, and every watch fires.

use alloc::string::String;
use alloc::vec::Vec;

use idl::cap::Notification;
use idl::store::{PIECE, Rings, Session, StoreClient, StoreError};
use idl::xs_wire::{Header, PAYLOAD_MAX, kind};
use idl::{CallError, Cap, ConnectError, Failure, Piece};
use microvisor_abi::Status;

use crate::ipc::EndpointTransport;

/// Why the store did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It does not serve this client.
    Store(StoreError),
    /// It was built from another version of the interface.
    Schema,
    /// The call failed: the store is down for good, if it is not our own fault.
    Call(Failure<Status>),
    /// The answer is no message.
    Answer,
    /// The request was refused, by the error's name on the wire (`"ENOENT"`).
    Refused(String),
}

/// A watch that fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What changed, or the path of the watch itself.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

/// A session.
pub struct Store {
    client: StoreClient<EndpointTransport>,
    wake: Cap<Notification>,
    number: u32,
    /// The beginning of an event of which the rest was not fetched.
    part: Vec<u8>,
    /// Events wait, as far as is known.
    events: bool,
}

type Call<T> = Result<T, CallError<StoreError, Status>>;

/// Asks as often as the store is started again meanwhile, which root does not let it be for ever.
fn patiently<T>(mut ask: impl FnMut() -> Call<T>) -> Result<T, Error> {
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(CallError::Failure(Failure::Transport(Status::Restarted))) => {}
            Err(CallError::Answer(error)) => return Err(Error::Store(error)),
            Err(CallError::Failure(failure)) => return Err(Error::Call(failure)),
        }
    }
}

/// A message that begins with a header, as far as it is whole: its length.
fn whole(bytes: &[u8]) -> Option<usize> {
    let length = Header::decode(bytes.first_chunk()?).length as usize;
    let end = Header::BYTES + length.min(PAYLOAD_MAX);
    (bytes.len() >= end).then_some(end)
}

impl Store {
    /// Begins a session; watches and transactions of an earlier one are gone. A guest's VMM says where
    /// its rings are, which introduces its domain. The store signals `wake` when events wait.
    pub fn attach(
        transport: EndpointTransport,
        rings: Option<Rings>,
        wake: Cap<Notification>,
    ) -> Result<Store, Error> {
        let client = loop {
            match StoreClient::connect(transport) {
                Ok(client) => break client,
                Err(ConnectError::Failure(Failure::Transport(Status::Restarted))) => {}
                Err(ConnectError::Failure(failure)) => return Err(Error::Call(failure)),
                Err(ConnectError::Schema { .. }) => return Err(Error::Schema),
            }
        };
        patiently(|| client.attach(Session::New(rings), wake))?;
        Ok(Store {
            client,
            wake,
            number: 0,
            part: Vec::new(),
            events: false,
        })
    }

    /// Whether events wait, as far as is known.
    pub fn has_events(&self) -> bool {
        self.events
    }

    /// The store woke us, or was started again: events may wait.
    pub fn woken(&mut self) {
        self.events = true;
    }

    /// Sends a whole message, and waits for the whole answer.
    pub fn exchange(&mut self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.number = self.number.wrapping_add(1).max(1);
        // From the beginning as often as the server forgot how far it was.
        loop {
            match patiently(|| self.once(message)) {
                Err(Error::Store(StoreError::Gap)) => {}
                other => return other,
            }
        }
    }

    fn once(&mut self, message: &[u8]) -> Call<Vec<u8>> {
        let length = message.len() as u32;
        let mut sent = 0;
        let first = loop {
            let rest = message.get(sent..).unwrap_or(&[]);
            let piece = Piece::<PIECE>::of(rest);
            let count = piece.len();
            let answer = self.client.send(self.number, length, sent as u32, piece)?;
            sent += count;
            match answer {
                Some(answer) => break answer,
                // Nothing is left to send: the server counts otherwise than we do.
                None if sent >= message.len() => {
                    return Err(CallError::Answer(StoreError::Length));
                }
                None => {}
            }
        };
        let length = (first.length as usize).min(Header::BYTES + PAYLOAD_MAX);
        let mut answer = Vec::with_capacity(length);
        answer.extend_from_slice(&first.piece);
        while answer.len() < length {
            let piece = self.client.rest(self.number, answer.len() as u32)?;
            if piece.is_empty() {
                break;
            }
            answer.extend_from_slice(&piece);
        }
        self.events |= first.events;
        Ok(answer)
    }

    /// Fetches events: whole messages, some of what waits.
    pub fn fetch(&mut self) -> Result<Vec<u8>, Error> {
        let (piece, more) = loop {
            match patiently(|| self.client.events()) {
                Err(Error::Store(StoreError::Unattached)) => {
                    self.part.clear();
                    patiently(|| self.client.attach(Session::Again, self.wake))?;
                }
                other => break other?,
            }
        };
        self.events = more;
        self.part.extend_from_slice(&piece);
        let mut end = 0;
        while let Some(length) = whole(self.part.get(end..).unwrap_or(&[])) {
            end += length;
        }
        let rest = self.part.split_off(end);
        Ok(core::mem::replace(&mut self.part, rest))
    }

    /// The next events, if any wait.
    pub fn fired(&mut self) -> Result<Vec<Event>, Error> {
        let mut fired = Vec::new();
        while self.events {
            let bytes = self.fetch()?;
            let mut rest = bytes.as_slice();
            while let Some(end) = whole(rest) {
                let payload = rest.get(Header::BYTES..end).unwrap_or(&[]);
                let mut parts = payload.split(|byte| *byte == 0).map(text);
                let (path, token) = (parts.next(), parts.next());
                fired.push(Event {
                    path: path.unwrap_or_default(),
                    token: token.unwrap_or_default(),
                });
                rest = rest.get(end..).unwrap_or(&[]);
            }
        }
        Ok(fired)
    }

    /// Asks one thing, outside of transactions or within one; the answer's payload.
    pub fn ask(&mut self, kind: u32, transaction: u32, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let header = Header {
            kind,
            transaction,
            length: payload.len() as u32,
            ..Header::default()
        };
        let mut message = Vec::from(header.encode());
        message.extend_from_slice(payload);
        let mut answer = self.exchange(&message)?;
        let header = Header::decode(answer.first_chunk().ok_or(Error::Answer)?);
        let payload = answer.split_off(Header::BYTES.min(answer.len()));
        if header.kind == kind::ERROR {
            let name = payload.split(|byte| *byte == 0).next().unwrap_or(&[]);
            return Err(Error::Refused(text(name)));
        }
        Ok(payload)
    }

    /// The value of a node.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        self.ask(kind::READ, 0, &zero_ended(&[path]))
    }

    /// Sets the value of a node, making it if need be.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        let mut payload = zero_ended(&[path]);
        payload.extend_from_slice(value);
        self.ask(kind::WRITE, 0, &payload).map(|_| ())
    }

    /// Removes a node and everything below.
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.ask(kind::RM, 0, &zero_ended(&[path])).map(|_| ())
    }

    /// Names of a node's children.
    pub fn directory(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let list = self.ask(kind::DIRECTORY, 0, &zero_ended(&[path]))?;
        let names = list.split(|byte| *byte == 0).map(text);
        Ok(names.filter(|name| !name.is_empty()).collect())
    }

    /// Fires when something at `path` or below changes, and once at first.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.ask(kind::WATCH, 0, &zero_ended(&[path, token]))
            .map(|_| ())
    }

    /// Ends a watch.
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.ask(kind::UNWATCH, 0, &zero_ended(&[path, token]))
            .map(|_| ())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn zero_ended(parts: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
        bytes.push(0);
    }
    bytes
}
