//! The store as its clients use it: sessions, requests in pieces, events. Every change goes through
//! [`Service::carry_out`]: journal first, then the state, then the watches.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use idl::Piece;
use idl::store::{Answer, PIECE, StoreError};
use idl::xs_wire::{Errno, Header, PAYLOAD_MAX, kind};

use crate::PRIVILEGED;
use crate::journal::{Area, Full, Journal};
use crate::path::below;
use crate::quota;
use crate::record::{Access, Record};
use crate::request::{Fired, Outcome, Request};
use crate::state::State;
use crate::toolstack::{self, Facts};
use crate::view::{View, Who};

/// What was found in the kept memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Records that were applied; 0 for a store that begins.
    pub records: usize,
    /// Something was damaged; it and what followed is lost.
    pub damaged: bool,
}

/// The store.
pub struct Service<A> {
    state: State,
    journal: Journal<A>,
    woken: BTreeSet<u32>,
}

impl<A: Area> Service<A> {
    /// The store in `area`, or an empty one.
    pub fn open(area: A) -> (Service<A>, Recovered) {
        let mut state = State::default();
        let mut records = 0;
        let (journal, damaged) = Journal::open(area, |record| {
            records += 1;
            state.apply(record);
        });
        state.recovered();
        let mut service = Service {
            state,
            journal,
            woken: BTreeSet::new(),
        };
        if service.state.store.get("/").is_none() {
            // The shortest journal has room for this.
            let _ = service.carry_out(toolstack::empty(), &[]);
        }
        (service, Recovered { records, damaged })
    }

    /// The state, for tests.
    #[cfg(test)]
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Domains that were introduced, and how often their guests were built.
    pub fn domains(&self) -> Vec<(u16, u32)> {
        let all = self.state.domains.iter();
        all.map(|(domain, known)| (*domain, known.starts)).collect()
    }

    /// Clients for whom events wait that did not wait when this was called last.
    pub fn woken(&mut self) -> BTreeSet<u32> {
        core::mem::take(&mut self.woken)
    }

    /// A client begins anew, as this domain. A domain but 0 has to be introduced before.
    pub fn open_session(&mut self, client: u32, domain: u16) -> Result<(), StoreError> {
        if domain != PRIVILEGED && !self.state.domains.contains_key(&domain) {
            return Err(StoreError::NoDomain);
        }
        let sessions = &self.state.sessions;
        if sessions.len() >= quota::SESSIONS && !sessions.contains_key(&client) {
            return Err(StoreError::Full);
        }
        let records = Vec::from([Record::Open(client, domain)]);
        self.carry_out(records, &[])
            .map_err(|Full| StoreError::Full)
    }

    /// A client goes on with its session: each of its watches fires.
    pub fn go_on(&mut self, client: u32, domain: u16) -> Result<(), StoreError> {
        let session = self.state.sessions.get_mut(&client);
        let session = session.filter(|session| session.domain == domain);
        let session = session.ok_or(StoreError::NoSession)?;
        session.lost();
        if session.waiting() {
            self.woken.insert(client);
        }
        Ok(())
    }

    /// A guest's domain is there. One of its id that was there before is gone.
    pub fn introduce(&mut self, facts: &Facts) -> Result<(), StoreError> {
        self.release(facts.domain);
        let mut fired = toolstack::connected(facts, &self.state);
        fired.push(Fired {
            path: toolstack::INTRODUCED.into(),
            removed: false,
        });
        let records = toolstack::introduce(facts, &self.state);
        self.carry_out(records, &fired)
            .map_err(|Full| StoreError::Full)
    }

    /// A domain is gone, if it was there.
    pub fn release(&mut self, domain: u16) {
        if self.state.domains.contains_key(&domain) {
            let (records, fired) = toolstack::release(&self.state, domain);
            // Nothing grows by it; where the journal is too full for it, it is written anew.
            if self.carry_out(records, &fired) == Err(Full) {
                log::error!("domain {domain} stays: the journal has no room for its end");
            }
        }
    }

    /// A piece of a request; the answer when it is whole.
    pub fn send(
        &mut self,
        client: u32,
        number: u32,
        length: u32,
        offset: u32,
        piece: &[u8],
    ) -> Result<Option<Answer>, StoreError> {
        let length = length as usize;
        if !(Header::BYTES..=Header::BYTES + PAYLOAD_MAX).contains(&length) {
            return Err(StoreError::Length);
        }
        let session = self.state.sessions.get_mut(&client);
        let session = session.ok_or(StoreError::NoSession)?;
        if number == 0 {
            return Err(StoreError::Gap);
        }
        if number == session.last.0 {
            return Ok(Some(self.answer(client)));
        }
        if offset == 0 {
            session.input.clear();
            session.number = number;
        }
        if session.number != number
            || session.input.len() != offset as usize
            || piece.is_empty()
            || session.input.len() + piece.len() > length
        {
            return Err(StoreError::Gap);
        }
        session.input.extend_from_slice(piece);
        if session.input.len() < length {
            return Ok(None);
        }
        let message = core::mem::take(&mut session.input);
        let (head, payload) = message.split_first_chunk().ok_or(StoreError::Length)?;
        let header = Header::decode(head);
        if header.length as usize != payload.len() {
            return Err(StoreError::Length);
        }
        self.request(client, number, header, payload);
        Ok(Some(self.answer(client)))
    }

    /// The last answer of a client that has a session.
    fn answer(&mut self, client: u32) -> Answer {
        let session = self.state.sessions.get(&client);
        let answer = session.map_or(&[][..], |session| &session.last.1);
        Answer {
            length: answer.len() as u32,
            piece: Piece::<PIECE>::of(answer),
            events: session.is_some_and(|session| session.waiting()),
        }
    }

    /// What follows `offset` of the last answer.
    pub fn rest(&self, client: u32, number: u32, offset: u32) -> Result<Piece<PIECE>, StoreError> {
        let session = self.state.sessions.get(&client);
        let session = session.ok_or(StoreError::NoSession)?;
        let rest = session.last.1.get(offset as usize..);
        match rest {
            Some(rest) if session.last.0 == number => Ok(Piece::of(rest)),
            _ => Err(StoreError::Gap),
        }
    }

    /// Bytes of events, and whether more wait.
    pub fn events(&mut self, client: u32) -> Result<(Piece<PIECE>, bool), StoreError> {
        let session = self.state.sessions.get_mut(&client);
        let session = session.ok_or(StoreError::NoSession)?;
        let piece = Piece::of(&session.fetch(PIECE));
        Ok((piece, session.waiting()))
    }

    /// Carries a whole request out; its answer is the session's last afterwards.
    fn request(&mut self, client: u32, number: u32, header: Header, payload: &[u8]) {
        let Some(request) = Request::new(&self.state, client, header, payload) else {
            return;
        };
        let mut outcome = request.outcome().unwrap_or_else(refused);
        if outcome.answer.len() > PAYLOAD_MAX {
            outcome = refused(Errno::TooBig);
        }
        let added = outcome.records.iter().map(Record::cost).sum::<usize>();
        if added > 0 && self.state.bytes() + added > self.journal.capacity() {
            outcome = refused(Errno::NoSpc);
        }
        let mut answer = message(header, &outcome);
        if !outcome.records.is_empty() {
            let answered = Record::Answered(client, number, answer.clone());
            outcome.records.push(answered);
            let fired = core::mem::take(&mut outcome.fired);
            let records = core::mem::take(&mut outcome.records);
            if self.carry_out(records, &fired) == Err(Full) {
                outcome = refused(Errno::NoSpc);
                answer = message(header, &outcome);
            }
        }
        let Some(session) = self.state.sessions.get_mut(&client) else {
            // It released its own domain.
            return;
        };
        session.last = (number, answer);
        if let Some(transaction) = session.transactions.get_mut(&header.transaction) {
            for (path, changed) in outcome.seen {
                transaction.seen.entry(path).or_insert(changed);
            }
        }
        if header.kind == kind::WATCH
            && outcome.refused.is_none()
            && let Some(watch) = session.watches.last().cloned()
        {
            // A new watch fires at once, so that its owner looks.
            session.event(&watch.given, &watch.token);
        }
    }

    /// Journal, state, watches. Nothing happens if the journal has no room.
    fn carry_out(&mut self, records: Vec<Record>, fired: &[Fired]) -> Result<(), Full> {
        if self.journal.append(&records).is_err() {
            self.journal.restate(self.state.records())?;
            self.journal.append(&records)?;
        }
        // Who may hear of a removal is known only before it.
        let removed = fired.iter().filter(|fired| fired.removed);
        let mut events: Vec<_> = removed.flat_map(|fired| self.heard(fired)).collect();
        for record in records {
            self.state.apply(record);
        }
        let changed = fired.iter().filter(|fired| !fired.removed);
        events.extend(changed.flat_map(|fired| self.heard(fired)));
        for (client, path, token) in events {
            if let Some(session) = self.state.sessions.get_mut(&client) {
                session.event(&path, &token);
                self.woken.insert(client);
            }
        }
        Ok(())
    }

    /// Events that a change leads to: of watches at or above it, and of those below what is removed,
    /// if their clients may read what changed.
    fn heard(&self, fired: &Fired) -> Vec<(u32, String, Vec<u8>)> {
        let mut events = Vec::new();
        for (client, session) in &self.state.sessions {
            let domain = session.domain;
            let target = self
                .state
                .domains
                .get(&domain)
                .and_then(|known| known.target);
            let who = Who { domain, target };
            // The same for every watch of this client.
            let mut readable = None;
            for watch in &session.watches {
                let path = if below(&fired.path, &watch.path) {
                    fired.path.as_str()
                } else if fired.removed
                    && below(&watch.path, &fired.path)
                    && self.state.store.get(&watch.path).is_some()
                {
                    watch.path.as_str()
                } else {
                    continue;
                };
                let reads = || match path.starts_with('@') {
                    true => who.is_privileged(),
                    false => self.may_read(path, who),
                };
                let may = match path == fired.path {
                    true => *readable.get_or_insert_with(reads),
                    false => reads(),
                };
                if may {
                    let shown = watch.shown(path, domain).to_string();
                    events.push((*client, shown, watch.token.clone()));
                }
            }
        }
        events
    }

    fn may_read(&self, path: &str, who: Who) -> bool {
        let view = View::new(&self.state.store, None, who);
        match view.node(path, Access::Read) {
            Ok(_) | Err(Errno::NoEnt) => true,
            Err(_) => false,
        }
    }
}

fn refused(error: Errno) -> Outcome {
    Outcome {
        refused: Some(error),
        ..Outcome::default()
    }
}

/// The answer as it travels.
fn message(header: Header, outcome: &Outcome) -> Vec<u8> {
    let mut error = Vec::new();
    let (kind, payload) = match outcome.refused {
        None => (header.kind, &outcome.answer),
        Some(name) => {
            error.extend_from_slice(name.name().as_bytes());
            error.push(0);
            (kind::ERROR, &error)
        }
    };
    let header = Header {
        kind,
        length: payload.len() as u32,
        ..header
    };
    let mut bytes = Vec::from(header.encode());
    bytes.extend_from_slice(payload);
    bytes
}
