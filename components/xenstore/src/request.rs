//! What one message leads to: an answer and the records that carry it out. Changes nothing itself.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use idl::xs_wire::{Errno, Header, PAYLOAD_MAX, kind};

use crate::path::{absolute, home, parent};
use crate::quota;
use crate::record::{Access, Content, Permission, RECORD_COST, Record};
use crate::session::{Session, Watch};
use crate::state::State;
use crate::toolstack;
use crate::view::{View, Who};

/// A path at which watches fire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    /// Where.
    pub path: String,
    /// It was removed with everything below.
    pub removed: bool,
}

/// What a message leads to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The answer's payload.
    pub answer: Vec<u8>,
    /// What carries it out.
    pub records: Vec<Record>,
    /// Where watches fire.
    pub fired: Vec<Fired>,
    /// What the transaction depends on from now on.
    pub seen: BTreeMap<String, u64>,
    /// The answer is this error.
    pub refused: Option<Errno>,
}

impl Outcome {
    fn answer(answer: Vec<u8>) -> Outcome {
        Outcome {
            answer,
            ..Outcome::default()
        }
    }

    fn ok(records: Vec<Record>) -> Outcome {
        Outcome {
            answer: b"OK\0".to_vec(),
            records,
            ..Outcome::default()
        }
    }
}

type Result<T> = core::result::Result<T, Errno>;

fn text(bytes: &[u8]) -> Result<&str> {
    core::str::from_utf8(bytes).map_err(|_| Errno::Inval)
}

fn number<T: core::str::FromStr>(bytes: &[u8]) -> Result<T> {
    text(bytes)?.parse().map_err(|_| Errno::Inval)
}

/// The parts of a payload that are separated by zero bytes.
fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let plain = payload.strip_suffix(b"\0").unwrap_or(payload);
    plain.split(|byte| *byte == 0)
}

/// A request, and who makes it.
pub struct Request<'a> {
    state: &'a State,
    client: u32,
    session: &'a Session,
    who: Who,
    header: Header,
    payload: &'a [u8],
}

impl<'a> Request<'a> {
    /// Of a client that has a session.
    pub fn new(
        state: &'a State,
        client: u32,
        header: Header,
        payload: &'a [u8],
    ) -> Option<Request<'a>> {
        let session = state.sessions.get(&client)?;
        let domain = session.domain;
        let target = state.domains.get(&domain).and_then(|known| known.target);
        Some(Request {
            state,
            client,
            session,
            who: Who { domain, target },
            header,
            payload,
        })
    }

    /// What it leads to, or why it is refused.
    pub fn outcome(&self) -> Result<Outcome> {
        let mut parts = strings(self.payload);
        let first = parts.next().unwrap_or(&[]);
        match self.header.kind {
            kind::DIRECTORY
            | kind::DIRECTORY_PART
            | kind::READ
            | kind::GET_PERMS
            | kind::WRITE
            | kind::MKDIR
            | kind::RM
            | kind::SET_PERMS => self.on_node(first, parts),
            kind::WATCH => self.watch(first, parts.next()),
            kind::UNWATCH => {
                let token = parts.next().ok_or(Errno::Inval)?;
                let given = text(first)?;
                let same = |watch: &&Watch| watch.given == given && watch.token == token;
                let watch = self.session.watches.iter().find(same).ok_or(Errno::NoEnt)?;
                let record = Record::Unwatch(self.client, watch.given.clone(), watch.token.clone());
                Ok(Outcome::ok(Vec::from([record])))
            }
            kind::RESET_WATCHES => Ok(Outcome::ok(Vec::from([Record::Reset(self.client)]))),
            kind::TRANSACTION_START => self.start(),
            kind::TRANSACTION_END => self.end(first),
            kind::GET_DOMAIN_PATH => {
                let domain = number(first)?;
                Ok(Outcome::answer(format!("{}\0", home(domain)).into_bytes()))
            }
            kind::IS_DOMAIN_INTRODUCED => {
                let known = self.known(number(first)?);
                Ok(Outcome::answer(
                    if known { b"T\0" } else { b"F\0" }.to_vec(),
                ))
            }
            kind::CONTROL | kind::INTRODUCE | kind::RELEASE | kind::RESUME | kind::SET_TARGET => {
                if !self.who.is_privileged() {
                    return Err(Errno::Acces);
                }
                self.toolstack(first, parts)
            }
            _ => Err(Errno::NoSys),
        }
    }

    fn known(&self, domain: u16) -> bool {
        domain == crate::PRIVILEGED || self.state.domains.contains_key(&domain)
    }

    /// What concerns one node, in the transaction or outside of one.
    fn on_node(&self, first: &[u8], parts: impl Iterator<Item = &'a [u8]>) -> Result<Outcome> {
        let path = absolute(text(first)?, self.who.domain)?;
        let changes = match self.header.transaction {
            0 => None,
            id => {
                let transaction = self.session.transactions.get(&id).ok_or(Errno::NoEnt)?;
                if self.session.seen() >= quota::SEEN && !self.who.is_privileged() {
                    return Err(Errno::NoSpc);
                }
                Some(&transaction.changes)
            }
        };
        let view = View::new(&self.state.store, changes, self.who);
        let outcome = self.in_view(&view, &path, first.len(), parts);
        let mut outcome = outcome.unwrap_or_else(|error| Outcome {
            refused: Some(error),
            ..Outcome::default()
        });
        // A client learns from a refusal as well.
        outcome.seen = view.seen();
        Ok(outcome)
    }

    fn in_view(
        &self,
        view: &View<'_>,
        path: &str,
        given: usize,
        mut parts: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Outcome> {
        match self.header.kind {
            kind::DIRECTORY => Ok(Outcome::answer(view.directory(path)?)),
            kind::DIRECTORY_PART => {
                let offset = number(parts.next().ok_or(Errno::Inval)?)?;
                self.directory_part(view, path, offset)
            }
            kind::READ => {
                let content = view.node(path, Access::Read)?;
                Ok(Outcome::answer(content.value.clone()))
            }
            kind::GET_PERMS => {
                let content = view.node(path, Access::Read)?;
                let mut list = String::new();
                for entry in &content.permissions {
                    list += &format!("{}{}\0", entry.access.letter(), entry.domain);
                }
                Ok(Outcome::answer(list.into_bytes()))
            }
            kind::WRITE => {
                // The value is all after the first zero byte, zeros included.
                let value = self.payload.get(given + 1..).ok_or(Errno::Inval)?;
                let made = self.made(view, path, Some(value))?;
                Ok(self.change(made, path, false))
            }
            kind::MKDIR => match self.made(view, path, None)? {
                made if made.is_empty() => Ok(Outcome::ok(made)),
                made => Ok(self.change(made, path, false)),
            },
            kind::RM => self.remove(view, path),
            kind::SET_PERMS => self.set_permissions(view, path, parts),
            _ => Err(Errno::NoSys),
        }
    }

    fn record(&self, path: String, content: Content) -> Record {
        match self.header.transaction {
            0 => Record::Put(path, content),
            id => Record::Change(self.client, id, path, Some(content)),
        }
    }

    /// An outcome that changes a node, now or when the transaction is committed.
    fn change(&self, records: Vec<Record>, path: &str, removed: bool) -> Outcome {
        let mut outcome = Outcome::ok(records);
        if self.header.transaction == 0 {
            let path = path.to_string();
            outcome.fired.push(Fired { path, removed });
        }
        outcome
    }

    /// Records that make a node, with what is missing above it, and set its value. New nodes have the
    /// permissions of what they are below, and belong to who made them.
    fn made(&self, view: &View<'_>, path: &str, value: Option<&[u8]>) -> Result<Vec<Record>> {
        let length = value.map_or(0, <[u8]>::len);
        if let Some(there) = view.get(path) {
            if !self.who.may(there, Access::Write) {
                return Err(Errno::Acces);
            }
            let Some(value) = value else {
                return Ok(Vec::new());
            };
            let nodes = usize::from(self.header.transaction != 0);
            self.within_quota(path, length, nodes, RECORD_COST + path.len() + length)?;
            let content = Content {
                value: value.to_vec(),
                permissions: there.permissions.clone(),
            };
            return Ok(Vec::from([self.record(path.to_string(), content)]));
        }
        let (top, above) = view.above(path).ok_or(Errno::NoEnt)?;
        if !self.who.may(above, Access::Write) {
            return Err(Errno::Acces);
        }
        let mut content = Content {
            value: Vec::new(),
            permissions: above.permissions.clone(),
        };
        if !self.who.is_privileged()
            && let Some(owner) = content.permissions.first_mut()
        {
            owner.domain = self.who.domain;
        }
        let mut missing = Vec::from([path]);
        while let Some(next) = missing.last().and_then(|path| parent(path))
            && next != top
        {
            missing.push(next);
        }
        // Before anything is made of it: a path of many levels is many names.
        let bytes = missing.iter().map(|path| content.cost(path)).sum::<usize>();
        self.within_quota(path, length, missing.len(), bytes + length)?;
        let records = missing.into_iter().rev().map(|made| {
            if made == path {
                content.value = value.unwrap_or(&[]).to_vec();
            }
            self.record(made.to_string(), content.clone())
        });
        Ok(records.collect())
    }

    /// Whether the one who asks may have this much more.
    fn within_quota(&self, path: &str, value: usize, nodes: usize, bytes: usize) -> Result<()> {
        if self.who.is_privileged() {
            return Ok(());
        }
        let usage = self.state.store.usage(self.who.domain);
        let has = usage.bytes + self.session.bytes();
        if path.len() + value > quota::ENTRY
            || usage.nodes + self.session.made() + nodes > quota::NODES
            || has + bytes > quota::BYTES
        {
            return Err(Errno::NoSpc);
        }
        Ok(())
    }

    fn remove(&self, view: &View<'_>, path: &str) -> Result<Outcome> {
        if path == "/" {
            return Err(Errno::Inval);
        }
        if let Err(error) = view.node(path, Access::Write) {
            // Removing what is not there is fine where its parent is.
            let there = parent(path).and_then(|parent| view.get(parent));
            return match (error, there) {
                (Errno::NoEnt, Some(_)) => Ok(Outcome::ok(Vec::new())),
                _ => Err(error),
            };
        }
        let records = match self.header.transaction {
            0 => Vec::from([Record::Drop(path.to_string())]),
            id => {
                let mut gone = view.below(path);
                gone.insert(path.to_string());
                for path in &gone {
                    // The commit depends on each of them.
                    view.get(path);
                }
                let bytes = gone.iter().map(|path| path.len() + RECORD_COST).sum();
                self.within_quota(path, 0, 0, bytes)?;
                let gone = gone.into_iter();
                gone.map(|path| Record::Change(self.client, id, path, None))
                    .collect()
            }
        };
        Ok(self.change(records, path, true))
    }

    /// Only the owner may, and only the privileged may give a node away.
    fn set_permissions(
        &self,
        view: &View<'_>,
        path: &str,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Outcome> {
        let permissions = parts.map(permission).collect::<Result<Vec<_>>>()?;
        let first = permissions.first().ok_or(Errno::Inval)?;
        let there = view.node(path, Access::Write)?;
        if !self.who.is_privileged() {
            if !self.who.owns(there) || first.domain != there.owner() {
                return Err(Errno::Acces);
            }
            if permissions.len() > quota::PERMISSIONS {
                return Err(Errno::NoSpc);
            }
        }
        let content = Content {
            value: there.value.clone(),
            permissions,
        };
        let record = self.record(path.to_string(), content);
        if self.header.transaction != 0 {
            self.within_quota(path, 0, 1, record.cost())?;
        }
        Ok(self.change(Vec::from([record]), path, false))
    }

    /// Path and offset in; when the list changed, then names from the offset on, as many as fit.
    fn directory_part(&self, view: &View<'_>, path: &str, offset: usize) -> Result<Outcome> {
        let list = view.directory(path)?;
        let changed = self.state.store.get(path).map_or(0, |node| node.changed);
        let mut answer = format!("{changed}\0").into_bytes();
        let rest = list.get(offset..).ok_or(Errno::Inval)?;
        let room = PAYLOAD_MAX - answer.len() - 1;
        if rest.len() <= room {
            answer.extend_from_slice(rest);
            // An empty name says that this was the last part.
            answer.push(0);
        } else {
            let fits = rest.get(..room).unwrap_or(&[]);
            let end = fits.iter().rposition(|byte| *byte == 0);
            let whole = fits.get(..end.map_or(0, |end| end + 1)).unwrap_or(&[]);
            answer.extend_from_slice(whole);
        }
        Ok(Outcome::answer(answer))
    }

    fn watch(&self, given: &[u8], token: Option<&[u8]>) -> Result<Outcome> {
        let token = token.ok_or(Errno::Inval)?;
        let given = text(given)?;
        let watch = Watch::new(given, token, self.who.domain).ok_or(Errno::Inval)?;
        if watch.given.len() > quota::ENTRY {
            return Err(Errno::Inval);
        }
        if self.session.watches.contains(&watch) {
            return Err(Errno::Exist);
        }
        let record = Record::Watch(self.client, watch.given, watch.token);
        if !self.who.is_privileged() {
            if self.session.watches.len() >= quota::WATCHES {
                return Err(Errno::NoSpc);
            }
            self.within_quota("", 0, 0, record.cost())?;
        }
        Ok(Outcome::ok(Vec::from([record])))
    }

    fn start(&self) -> Result<Outcome> {
        if self.header.transaction != 0 {
            return Err(Errno::Busy);
        }
        let open = &self.session.transactions;
        if open.len() >= quota::TRANSACTIONS && !self.who.is_privileged() {
            return Err(Errno::NoSpc);
        }
        let mut id = self.session.next;
        while id == 0 || open.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        let mut outcome = Outcome::answer(format!("{id}\0").into_bytes());
        outcome.records.push(Record::Start(self.client, id));
        Ok(outcome)
    }

    fn end(&self, word: &[u8]) -> Result<Outcome> {
        let id = self.header.transaction;
        let transaction = self.session.transactions.get(&id).ok_or(Errno::NoEnt)?;
        let commit = match word {
            b"T" => true,
            b"F" => false,
            _ => return Err(Errno::Inval),
        };
        let mut outcome = Outcome::ok(Vec::from([Record::End(self.client, id)]));
        if !commit {
            return Ok(outcome);
        }
        let store = &self.state.store;
        let same = |(path, seen): (&String, &u64)| {
            store.get(path).is_some_and(|node| node.changed == *seen)
        };
        if transaction.doomed || !transaction.seen.iter().all(same) {
            // It is over nevertheless; the client begins another one.
            outcome.refused = Some(Errno::Again);
            return Ok(outcome);
        }
        for (path, content) in &transaction.changes {
            let removed = content.is_none();
            if removed && store.get(path).is_none() {
                continue;
            }
            outcome.records.push(match content {
                Some(content) => Record::Put(path.clone(), content.clone()),
                None => Record::Drop(path.clone()),
            });
            let path = path.clone();
            outcome.fired.push(Fired { path, removed });
        }
        Ok(outcome)
    }

    fn toolstack(
        &self,
        first: &[u8],
        mut parts: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Outcome> {
        let order = self.header.kind;
        if order == kind::CONTROL {
            return Err(Errno::NoSys);
        }
        let domain: u16 = number(first)?;
        if domain == crate::PRIVILEGED {
            return Err(Errno::Inval);
        }
        let known = self.state.domains.contains_key(&domain);
        if order == kind::INTRODUCE {
            // Frame and event channel: rings are served by VMMs, but a client has to say them.
            let _frame: u64 = number(parts.next().ok_or(Errno::Inval)?)?;
            let _port: u32 = number(parts.next().ok_or(Errno::Inval)?)?;
            let mut outcome = Outcome::ok(Vec::new());
            if !known {
                outcome.records.push(Record::Introduce(domain, 0));
            }
            outcome.fired.push(Fired {
                path: toolstack::INTRODUCED.into(),
                removed: false,
            });
            return Ok(outcome);
        }
        if !known {
            return Err(Errno::NoEnt);
        }
        match order {
            kind::RELEASE => {
                let (records, fired) = toolstack::release(self.state, domain);
                let mut outcome = Outcome::ok(records);
                outcome.fired = fired;
                Ok(outcome)
            }
            kind::SET_TARGET => {
                let target: u16 = number(parts.next().ok_or(Errno::Inval)?)?;
                if !self.known(target) {
                    return Err(Errno::NoEnt);
                }
                let record = Record::Target(domain, target);
                Ok(Outcome::ok(Vec::from([record])))
            }
            // Nothing is kept of a domain's suspension.
            _ => Ok(Outcome::ok(Vec::new())),
        }
    }
}

/// A letter and a domain id.
fn permission(word: &[u8]) -> Result<Permission> {
    let word = text(word)?;
    let mut letters = word.chars();
    let access = letters.next().and_then(Access::from_letter);
    let access = access.ok_or(Errno::Inval)?;
    let domain = letters.as_str().parse().map_err(|_| Errno::Inval)?;
    Ok(Permission { domain, access })
}
