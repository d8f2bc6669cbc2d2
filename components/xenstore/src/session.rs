//! What one client has beside nodes: watches, transactions, the last answer, events that wait.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use idl::xs_wire::{Header, PAYLOAD_MAX, kind};

use crate::path::{absolute, home};
use crate::quota;
use crate::record::{Content, RECORD_COST};

/// A watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// As the client wrote it.
    pub given: String,
    /// What that means.
    pub path: String,
    /// Chosen by the client.
    pub token: Vec<u8>,
}

impl Watch {
    /// A domain's watch; none if what it wrote is no path.
    pub fn new(given: &str, token: &[u8], domain: u16) -> Option<Watch> {
        let path = match given.starts_with('@') {
            true => given.into(),
            false => absolute(given, domain).ok()?,
        };
        Some(Watch {
            given: given.into(),
            path,
            token: token.into(),
        })
    }

    /// `path` as this watch speaks of it: a relative watch of relative paths.
    pub fn shown<'a>(&self, path: &'a str, domain: u16) -> &'a str {
        if self.given.starts_with(['/', '@']) {
            return path;
        }
        path.strip_prefix(home(domain).as_str())
            .and_then(|rest| rest.strip_prefix('/'))
            .unwrap_or(path)
    }

    fn bytes(&self) -> usize {
        RECORD_COST + self.given.len() + self.token.len()
    }
}

/// What a transaction would change: contents, or that nothing is there.
pub type Changes = BTreeMap<String, Option<Content>>;

/// A transaction.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// What it would change.
    pub changes: Changes,
    /// Nodes that it looked at, and when each had changed.
    pub seen: BTreeMap<String, u64>,
    /// It was begun before the store was started again: what it saw is not known any more, so it
    /// cannot be committed.
    pub doomed: bool,
}

/// A client's.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// As whom it speaks.
    pub domain: u16,
    /// Its watches.
    pub watches: Vec<Watch>,
    /// Its transactions.
    pub transactions: BTreeMap<u32, Transaction>,
    /// The next one's number, unless it is taken.
    pub next: u32,
    /// Number of the last request that was carried out, and the answer.
    pub last: (u32, Vec<u8>),
    /// A request that is not whole yet.
    pub input: Vec<u8>,
    /// Its number.
    pub number: u32,
    /// Events, whole messages.
    events: VecDeque<Vec<u8>>,
    /// Bytes of them.
    queued: usize,
    /// Bytes of the first one that were fetched.
    fetched: usize,
    /// Events were lost: each watch fires when the others were fetched.
    missed: bool,
}

impl Session {
    /// One that begins.
    pub fn of(domain: u16) -> Session {
        Session {
            domain,
            next: 1,
            ..Session::default()
        }
    }

    /// Bytes in the journal.
    pub fn bytes(&self) -> usize {
        let watches = self.watches.iter().map(Watch::bytes).sum::<usize>();
        let transactions = self.transactions.values().map(|transaction| {
            let changes = transaction.changes.iter();
            let changes = changes.map(|(path, content)| match content {
                Some(content) => content.cost(path),
                None => RECORD_COST + path.len(),
            });
            RECORD_COST + changes.sum::<usize>()
        });
        2 * RECORD_COST + watches + transactions.sum::<usize>()
    }

    /// Nodes that its transactions would leave in the tree.
    pub fn made(&self) -> usize {
        let all = self.transactions.values();
        all.flat_map(|transaction| transaction.changes.values())
            .filter(|content| content.is_some())
            .count()
    }

    /// Bytes of the paths that its transactions looked at.
    pub fn seen(&self) -> usize {
        let all = self.transactions.values();
        all.flat_map(|transaction| transaction.seen.keys())
            .map(|path| RECORD_COST + path.len())
            .sum()
    }

    /// Queues an event. The same one need not wait twice.
    pub fn event(&mut self, path: &str, token: &[u8]) {
        self.queue(path, token, quota::QUEUED);
    }

    fn queue(&mut self, path: &str, token: &[u8], most: usize) {
        if self.missed {
            // Every watch will fire: there is nothing to add.
            return;
        }
        let length = path.len() + token.len() + 2;
        if length > PAYLOAD_MAX {
            return;
        }
        let header = Header {
            kind: kind::WATCH_EVENT,
            length: length as u32,
            ..Header::default()
        };
        let mut message = Vec::from(header.encode());
        for part in [path.as_bytes(), token] {
            message.extend_from_slice(part);
            message.push(0);
        }
        // The first one may be fetched in part already.
        if self.events.iter().skip(1).any(|event| *event == message) {
            return;
        }
        if self.queued + message.len() > most {
            self.missed = true;
            return;
        }
        self.queued += message.len();
        self.events.push_back(message);
    }

    /// Every watch is to fire: what fired was lost.
    pub fn lost(&mut self) {
        self.events.clear();
        (self.queued, self.fetched) = (0, 0);
        self.missed = true;
    }

    /// Whether events wait.
    pub fn waiting(&self) -> bool {
        !self.events.is_empty() || (self.missed && !self.watches.is_empty())
    }

    /// At most `count` bytes of events.
    pub fn fetch(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < count {
            if self.events.is_empty() && core::mem::take(&mut self.missed) {
                // They are as many bytes as the watches, which have a quota of their own.
                for watch in self.watches.clone() {
                    self.queue(&watch.given, &watch.token, usize::MAX);
                }
            }
            let Some(first) = self.events.front() else {
                break;
            };
            let rest = first.get(self.fetched..).unwrap_or(&[]);
            let piece = rest.get(..rest.len().min(count - out.len())).unwrap_or(&[]);
            out.extend_from_slice(piece);
            self.fetched += piece.len();
            if self.fetched >= first.len() {
                self.queued = self.queued.saturating_sub(first.len());
                self.fetched = 0;
                self.events.pop_front();
            }
        }
        out
    }
}
