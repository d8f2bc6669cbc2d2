//! Everything the store knows, how a record changes it, and all of it as records.

use alloc::collections::BTreeMap;
use alloc::string::ToString;

use crate::record::{RECORD_COST, Record};
use crate::session::{Session, Transaction, Watch};
use crate::store::Store;

/// A domain that was introduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Domain {
    /// How often its guest was built; 0 if a client introduced it.
    pub starts: u32,
    /// The domain whose rights it has, too.
    pub target: Option<u16>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Nodes.
    pub store: Store,
    /// Domains but 0, which is always there.
    pub domains: BTreeMap<u16, Domain>,
    /// By client.
    pub sessions: BTreeMap<u32, Session>,
}

impl State {
    fn transaction(&mut self, client: u32, id: u32) -> Option<&mut Transaction> {
        self.sessions.get_mut(&client)?.transactions.get_mut(&id)
    }

    /// Changes what the record says. One that does not fit changes nothing.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Put(path, content) => self.store.put(path, content),
            Record::Drop(path) => self.store.remove(&path),
            Record::Introduce(domain, starts) => {
                let target = None;
                self.domains.insert(domain, Domain { starts, target });
            }
            Record::Target(domain, target) => {
                if let Some(domain) = self.domains.get_mut(&domain) {
                    domain.target = Some(target);
                }
            }
            Record::Release(domain) => {
                self.domains.remove(&domain);
                self.sessions.retain(|_, session| session.domain != domain);
                for other in self.domains.values_mut() {
                    other.target = other.target.filter(|target| *target != domain);
                }
            }
            Record::Open(client, domain) => {
                self.sessions.insert(client, Session::of(domain));
            }
            Record::Reset(client) => {
                if let Some(session) = self.sessions.get_mut(&client) {
                    session.watches.clear();
                    session.transactions.clear();
                }
            }
            Record::Watch(client, given, token) => {
                if let Some(session) = self.sessions.get_mut(&client)
                    && let Some(watch) = Watch::new(&given, &token, session.domain)
                {
                    session.watches.push(watch);
                }
            }
            Record::Unwatch(client, given, token) => {
                if let Some(session) = self.sessions.get_mut(&client) {
                    let same = |watch: &Watch| watch.given == given && watch.token == token;
                    if let Some(found) = session.watches.iter().position(same) {
                        session.watches.remove(found);
                    }
                }
            }
            Record::Start(client, id) => {
                if let Some(session) = self.sessions.get_mut(&client) {
                    session.transactions.insert(id, Transaction::default());
                    session.next = id.wrapping_add(1);
                }
            }
            Record::Change(client, id, path, content) => {
                if let Some(transaction) = self.transaction(client, id) {
                    transaction.changes.insert(path, content);
                }
            }
            Record::End(client, id) => {
                if let Some(session) = self.sessions.get_mut(&client) {
                    session.transactions.remove(&id);
                }
            }
            Record::Answered(client, number, answer) => {
                if let Some(session) = self.sessions.get_mut(&client) {
                    session.last = (number, answer);
                }
            }
        }
    }

    /// Bytes that it takes in the journal, or more.
    pub fn bytes(&self) -> usize {
        let sessions = self.sessions.values();
        let sessions = sessions.map(|session| session.bytes() + session.last.1.len());
        self.store.bytes() + 2 * RECORD_COST * self.domains.len() + sessions.sum::<usize>()
    }

    /// All of it, as records that make it again.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let nodes = self.store.iter();
        let nodes = nodes.map(|(path, node)| Record::Put(path.to_string(), node.content.clone()));
        let domains = self.domains.iter().flat_map(|(&id, domain)| {
            let target = domain.target.map(|target| Record::Target(id, target));
            core::iter::once(Record::Introduce(id, domain.starts)).chain(target)
        });
        let sessions = self.sessions.iter().flat_map(|(&client, session)| {
            let watches = session.watches.iter();
            let watches = watches
                .map(move |watch| Record::Watch(client, watch.given.clone(), watch.token.clone()));
            let transactions = session.transactions.iter();
            let transactions = transactions.flat_map(move |(&id, transaction)| {
                let changes = transaction.changes.iter();
                core::iter::once(Record::Start(client, id)).chain(changes.map(
                    move |(path, content)| {
                        Record::Change(client, id, path.clone(), content.clone())
                    },
                ))
            });
            let (number, answer) = session.last.clone();
            core::iter::once(Record::Open(client, session.domain))
                .chain(watches)
                .chain(transactions)
                .chain([Record::Answered(client, number, answer)])
        });
        nodes.chain(domains).chain(sessions)
    }

    /// After all records were applied by a new instance: what no record keeps is gone. What
    /// transactions saw is not known, so they cannot be committed; events were lost.
    pub fn recovered(&mut self) {
        for session in self.sessions.values_mut() {
            session.lost();
            for transaction in session.transactions.values_mut() {
                transaction.doomed = true;
            }
        }
    }
}
