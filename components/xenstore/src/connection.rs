//! One guest's connection: bytes of requests in, bytes of answers and watch events out.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::path::{absolute, below, home};
use crate::quota;
use crate::store::{Access, Permission, Store};
use crate::wire::{Errno, Header, PAYLOAD_MAX, kind};

/// The guest sent a message longer than messages may be: the stream makes no sense any more, and
/// the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

struct Watch {
    /// As the guest wrote it.
    given: String,
    path: String,
    token: Vec<u8>,
}

struct Transaction {
    store: Store,
    started: u64,
    /// Paths that it changed.
    changed: BTreeSet<String>,
}

/// A connection of one domain.
pub struct Connection {
    domain: u16,
    store: Store,
    input: Vec<u8>,
    output: VecDeque<u8>,
    watches: Vec<Watch>,
    transactions: BTreeMap<u32, Transaction>,
    next_transaction: u32,
    broken: bool,
}

type Answer = Result<Vec<u8>, Errno>;

fn ok() -> Answer {
    Ok(b"OK\0".to_vec())
}

/// The parts of a payload that are separated by zero bytes.
fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    payload
        .strip_suffix(b"\0")
        .unwrap_or(payload)
        .split(|byte| *byte == 0)
}

fn text(bytes: &[u8]) -> Result<&str, Errno> {
    core::str::from_utf8(bytes).map_err(|_| Errno::Inval)
}

impl Connection {
    /// A connection of `domain` to `store`.
    pub fn new(domain: u16, store: Store) -> Connection {
        Connection {
            domain,
            store,
            input: Vec::new(),
            output: VecDeque::new(),
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            next_transaction: 1,
            broken: false,
        }
    }

    /// Takes bytes from the guest and carries out what is complete of them.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if self.broken {
            return Err(Broken);
        }
        self.input.extend_from_slice(bytes);
        while let Some(head) = self.input.first_chunk() {
            let header = Header::decode(head);
            let length = header.length as usize;
            if length > PAYLOAD_MAX {
                self.broken = true;
                self.input = Vec::new();
                return Err(Broken);
            }
            let Some(payload) = self.input.get(Header::BYTES..Header::BYTES + length) else {
                break;
            };
            let payload = payload.to_vec();
            self.input.drain(..Header::BYTES + length);
            self.request(header, &payload);
        }
        Ok(())
    }

    /// Bytes that wait for the guest.
    pub fn pending(&self) -> usize {
        self.output.len()
    }

    /// Takes at most `count` of them.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let count = count.min(self.output.len());
        self.output.drain(..count).collect()
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        let header = Header {
            length: payload.len() as u32,
            ..header
        };
        self.output.extend(header.encode());
        self.output.extend(payload);
    }

    fn request(&mut self, header: Header, payload: &[u8]) {
        let mut fired = Vec::new();
        let watches = self.watches.len();
        match self.answer(header, payload, &mut fired) {
            Ok(payload) if payload.len() <= PAYLOAD_MAX => self.send(header, &payload),
            Ok(_) => self.refuse(header, Errno::TooBig),
            Err(error) => self.refuse(header, error),
        }
        for (path, removed) in fired {
            self.fire(&path, removed);
        }
        if self.watches.len() > watches
            && let Some(index) = self.watches.len().checked_sub(1)
            && let Some(path) = self.watches.get(index).map(|watch| watch.given.clone())
        {
            // A new watch fires at once, so that its owner looks.
            self.event(index, &path);
        }
    }

    fn refuse(&mut self, header: Header, error: Errno) {
        let header = Header {
            kind: kind::ERROR,
            ..header
        };
        let mut name = error.name().as_bytes().to_vec();
        name.push(0);
        self.send(header, &name);
    }

    /// Tells watches of a change at `path`; after a removal also those below.
    fn fire(&mut self, path: &str, removed: bool) {
        for index in 0..self.watches.len() {
            let Some(watch) = self.watches.get(index) else {
                return;
            };
            let changed = if below(path, &watch.path) {
                path
            } else if removed && below(&watch.path, path) {
                &watch.path
            } else {
                continue;
            };
            let home = home(self.domain);
            // A relative watch speaks of relative paths.
            let shown = if watch.given.starts_with('/') {
                changed
            } else {
                changed
                    .strip_prefix(home.as_str())
                    .and_then(|rest| rest.strip_prefix('/'))
                    .unwrap_or(changed)
            };
            let shown = shown.to_string();
            self.event(index, &shown);
        }
    }

    fn event(&mut self, index: usize, path: &str) {
        if self.output.len() > quota::QUEUED {
            return;
        }
        let Some(watch) = self.watches.get(index) else {
            return;
        };
        let mut payload = path.as_bytes().to_vec();
        payload.push(0);
        payload.extend_from_slice(&watch.token);
        payload.push(0);
        let header = Header {
            kind: kind::WATCH_EVENT,
            ..Header::default()
        };
        self.send(header, &payload);
    }

    /// The store that a request speaks of: the transaction's or everybody's.
    fn view(&mut self, transaction: u32) -> Result<&mut Store, Errno> {
        if transaction == 0 {
            return Ok(&mut self.store);
        }
        let transaction = self
            .transactions
            .get_mut(&transaction)
            .ok_or(Errno::NoEnt)?;
        if transaction.changed.len() >= quota::CHANGES {
            return Err(Errno::NoSpc);
        }
        Ok(&mut transaction.store)
    }

    /// Notes a change: fired now, or when the transaction is committed.
    fn note(
        &mut self,
        transaction: u32,
        path: String,
        removed: bool,
        fired: &mut Vec<(String, bool)>,
    ) {
        match self.transactions.get_mut(&transaction) {
            Some(transaction) => {
                transaction.changed.insert(path);
            }
            None => fired.push((path, removed)),
        }
    }

    fn answer(
        &mut self,
        header: Header,
        payload: &[u8],
        fired: &mut Vec<(String, bool)>,
    ) -> Answer {
        let domain = self.domain;
        let transaction = header.transaction;
        let mut parts = strings(payload);
        let first = parts.next().unwrap_or(&[]);
        let path = || absolute(text(first)?, domain);
        match header.kind {
            kind::DIRECTORY => {
                let path = path()?;
                let names = self.view(transaction)?.directory(&path, domain)?;
                Ok(names.fold(Vec::new(), |mut list, name| {
                    list.extend_from_slice(name.as_bytes());
                    list.push(0);
                    list
                }))
            }
            kind::DIRECTORY_PART => self.directory_part(header, payload),
            kind::READ => {
                let path = path()?;
                Ok(self.view(transaction)?.read(&path, domain)?.to_vec())
            }
            kind::GET_PERMS => {
                let path = path()?;
                let permissions = self.view(transaction)?.permissions(&path, domain)?;
                Ok(permissions.iter().fold(Vec::new(), |mut list, entry| {
                    let letter = entry.access.letter();
                    list.extend_from_slice(format!("{letter}{}\0", entry.domain).as_bytes());
                    list
                }))
            }
            kind::WRITE => {
                let path = path()?;
                // The value is all after the first zero byte, zeros included.
                let value = payload.get(first.len() + 1..).ok_or(Errno::Inval)?;
                self.view(transaction)?.write(&path, value, domain)?;
                self.note(transaction, path, false, fired);
                ok()
            }
            kind::MKDIR => {
                let path = path()?;
                if self.view(transaction)?.make(&path, domain)? {
                    self.note(transaction, path, false, fired);
                }
                ok()
            }
            kind::RM => {
                let path = path()?;
                self.view(transaction)?.remove(&path, domain)?;
                self.note(transaction, path, true, fired);
                ok()
            }
            kind::SET_PERMS => {
                let path = path()?;
                let permissions = parts.map(permission).collect::<Result<Vec<_>, _>>()?;
                if permissions.is_empty() {
                    return Err(Errno::Inval);
                }
                self.view(transaction)?
                    .set_permissions(&path, permissions, domain)?;
                self.note(transaction, path, false, fired);
                ok()
            }
            kind::WATCH => self.watch(first, parts.next()),
            kind::UNWATCH => {
                let token = parts.next().ok_or(Errno::Inval)?;
                let given = text(first)?;
                let found = self
                    .watches
                    .iter()
                    .position(|watch| watch.given == given && watch.token == token)
                    .ok_or(Errno::NoEnt)?;
                self.watches.remove(found);
                ok()
            }
            kind::RESET_WATCHES => {
                self.watches.clear();
                self.transactions.clear();
                ok()
            }
            kind::TRANSACTION_START => self.start_transaction(transaction),
            kind::TRANSACTION_END => self.end_transaction(transaction, first, fired),
            kind::GET_DOMAIN_PATH => {
                let asked: u16 = text(first)?.parse().map_err(|_| Errno::Inval)?;
                Ok(format!("{}\0", home(asked)).into_bytes())
            }
            kind::IS_DOMAIN_INTRODUCED => {
                let asked: u16 = text(first)?.parse().map_err(|_| Errno::Inval)?;
                let known = asked == domain || asked == 0;
                Ok(if known { b"T\0" } else { b"F\0" }.to_vec())
            }
            // CONTROL, INTRODUCE, RELEASE, RESUME, SET_TARGET: a toolstack's.
            0 | 8 | 9 | 18 | 19 => Err(Errno::Acces),
            _ => Err(Errno::NoSys),
        }
    }

    /// Path and offset in; generation, then names from the offset on, as many as fit.
    fn directory_part(&mut self, header: Header, payload: &[u8]) -> Answer {
        let domain = self.domain;
        let mut parts = strings(payload);
        let path = absolute(text(parts.next().unwrap_or(&[]))?, domain)?;
        let offset: usize = text(parts.next().ok_or(Errno::Inval)?)?
            .parse()
            .map_err(|_| Errno::Inval)?;
        let store = self.view(header.transaction)?;
        let mut answer = format!("{}\0", store.generation()).into_bytes();
        let mut list = Vec::new();
        for name in store.directory(&path, domain)? {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        let rest = list.get(offset..).ok_or(Errno::Inval)?;
        let room = PAYLOAD_MAX - answer.len() - 1;
        if rest.len() <= room {
            answer.extend_from_slice(rest);
            // An empty name says that this was the last part.
            answer.push(0);
        } else {
            let fits = rest.get(..room).unwrap_or(&[]);
            let whole = fits
                .iter()
                .rposition(|byte| *byte == 0)
                .map_or(0, |at| at + 1);
            answer.extend_from_slice(fits.get(..whole).unwrap_or(&[]));
        }
        Ok(answer)
    }

    fn watch(&mut self, given: &[u8], token: Option<&[u8]>) -> Answer {
        let token = token.ok_or(Errno::Inval)?;
        let given = text(given)?;
        if given.starts_with('@') {
            // Domains coming and going are the toolstack's business.
            return Err(Errno::Acces);
        }
        let path = absolute(given, self.domain)?;
        let same = |watch: &Watch| watch.path == path && watch.token == token;
        if self.watches.iter().any(same) {
            return Err(Errno::Exist);
        }
        if self.watches.len() >= quota::WATCHES {
            return Err(Errno::NoSpc);
        }
        self.watches.push(Watch {
            given: given.to_string(),
            path,
            token: token.to_vec(),
        });
        ok()
    }

    fn start_transaction(&mut self, within: u32) -> Answer {
        if within != 0 {
            return Err(Errno::Busy);
        }
        if self.transactions.len() >= quota::TRANSACTIONS {
            return Err(Errno::NoSpc);
        }
        while self.next_transaction == 0 || self.transactions.contains_key(&self.next_transaction) {
            self.next_transaction = self.next_transaction.wrapping_add(1);
        }
        let id = self.next_transaction;
        self.next_transaction = id.wrapping_add(1);
        let transaction = Transaction {
            store: self.store.clone(),
            started: self.store.generation(),
            changed: BTreeSet::new(),
        };
        self.transactions.insert(id, transaction);
        Ok(format!("{id}\0").into_bytes())
    }

    fn end_transaction(&mut self, id: u32, word: &[u8], fired: &mut Vec<(String, bool)>) -> Answer {
        let commit = match word {
            b"T" => true,
            b"F" => false,
            _ => return Err(Errno::Inval),
        };
        let transaction = self.transactions.remove(&id).ok_or(Errno::NoEnt)?;
        if commit {
            if self.store.generation() != transaction.started {
                return Err(Errno::Again);
            }
            self.store = transaction.store;
            fired.extend(transaction.changed.into_iter().map(|path| (path, true)));
        }
        ok()
    }
}

/// A letter and a domain id.
fn permission(word: &[u8]) -> Result<Permission, Errno> {
    let word = text(word)?;
    let mut letters = word.chars();
    let access = letters
        .next()
        .and_then(Access::from_letter)
        .ok_or(Errno::Inval)?;
    let domain = letters.as_str().parse().map_err(|_| Errno::Inval)?;
    Ok(Permission { domain, access })
}

#[cfg(test)]
mod tests;
