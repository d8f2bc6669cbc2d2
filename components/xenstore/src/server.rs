//! The endpoint: who calls, for which domain, and who is told.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;

use idl::Piece;
use idl::domains::{DomainInfo, DomainsClient};
use idl::store::{Answer, Badge, PIECE, Session, Store, StoreError, StoreServer};
use idl::volume::Backend;
use sdk::keep::{Area, Kept};
use sdk::prelude::*;
use sdk::startup::DOMAINS;
use xenstore::toolstack::{Facts, Link};
use xenstore::{PRIVILEGED, Recovered, Service};

/// Serves for ever.
#[cfg_attr(not(target_os = "none"), allow(dead_code))]
pub fn main(env: Env) {
    if env.keep.count == 0 {
        env.missing("keep", "4M");
    }
    match Kept::map(&env.keep) {
        Ok(kept) => run(&env, kept),
        Err(status) => panic!("no kept memory: {status:?}"),
    }
}

/// Serves the store in `area` for ever.
pub fn run(env: &Env, area: impl Area) {
    let (service, recovered) = Service::open(area);
    let Recovered { records, damaged } = recovered;
    if damaged {
        log::error!("the journal is damaged: what follows record {records} is lost");
    } else if records > 0 {
        log::info!("goes on after {records} records");
    }
    let domains = match DomainsClient::connect(env.transport("domains")) {
        Ok(domains) => domains,
        Err(error) => panic!("root tells no domains: {error:?}"),
    };
    let mut server = Server {
        service,
        domains,
        wakes: BTreeMap::new(),
    };
    server.look();
    let receiver = env
        .notification()
        .bind_messages(env.thread())
        .and_then(|()| Receiver::new(env.endpoint("store"), REPLY, 1));
    match SupervisorClient::connect(env.transport("supervisor")).map(|root| root.ready()) {
        Ok(Ok(())) => {}
        other => log::error!("root does not hear that the store is served: {other:?}"),
    }
    match receiver {
        Ok(mut receiver) => {
            let status = server.serve(&mut receiver);
            panic!("cannot serve: {status:?}");
        }
        Err(status) => panic!("cannot receive: {status:?}"),
    }
}

struct Server<A> {
    service: Service<A>,
    domains: DomainsClient<EndpointTransport>,
    /// By which clients are told of events.
    wakes: BTreeMap<u32, Cap<cap::Notification>>,
}

impl<A: Area> Server<A> {
    fn serve(&mut self, receiver: &mut Receiver) -> Status {
        loop {
            match receiver.receive(FOREVER) {
                Ok(Received::Message(message)) => {
                    // The caller may be gone when the answer comes: nothing to do about that.
                    let _ = receiver.answer::<Store, _>(message, self);
                }
                Ok(Received::Notification(bits)) if bits & DOMAINS != 0 => self.look(),
                Ok(Received::Notification(_)) => {}
                Err(
                    Status::CapsRefused | Status::Aborted | Status::Cancelled | Status::Restarted,
                ) => {}
                Err(status) => return status,
            }
            self.tell();
        }
    }

    /// Tells clients that events wait.
    fn tell(&mut self) {
        for client in self.service.woken() {
            if let Some(wake) = self.wakes.get(&client)
                && wake.signal(1).is_err()
            {
                // Gone; its next instance attaches anew.
                self.forget(client);
            }
        }
    }

    fn forget(&mut self, client: u32) {
        if let Some(old) = self.wakes.remove(&client) {
            let _ = old.delete();
        }
    }

    /// All domains, if root tells them.
    fn known(&self) -> Option<Vec<DomainInfo>> {
        let mut known = Vec::new();
        loop {
            match self.domains.domain(known.len() as u32) {
                Ok(Some(info)) => known.push(info),
                Ok(None) => return Some(known),
                Err(error) => {
                    log::error!("root tells no domain: {error:?}");
                    return None;
                }
            }
        }
    }

    /// Releases the domains that are gone, or are others by now. Of one that was defined while the
    /// system runs, root may know nothing any more.
    fn look(&mut self) {
        let Some(known) = self.known() else {
            return;
        };
        for (domain, starts) in self.service.domains() {
            let is = |info: &&DomainInfo| info.domain == domain;
            let there = |info: &DomainInfo| info.present && info.starts == starts;
            if !known.iter().find(is).is_some_and(there) {
                self.service.release(domain);
            }
        }
    }

    fn begin(&mut self, client: u32, domain: u16, session: Session) -> Result<(), StoreError> {
        match session {
            Session::Again => self.service.go_on(client, domain),
            Session::New(rings) => {
                if domain != PRIVILEGED {
                    let rings = rings.ok_or(StoreError::NoDomain)?;
                    let known = self.known().ok_or(StoreError::NoDomain)?;
                    let links = |info| links(info, &known);
                    let mut present = known.iter().filter(|info| info.present);
                    let served = present.clone().flat_map(links);
                    let info = present.find(|info| info.domain == domain);
                    let info = info.ok_or(StoreError::NoDomain)?;
                    self.service.introduce(&Facts {
                        domain,
                        starts: info.starts,
                        name: info.name.to_string(),
                        vcpus: info.vcpus,
                        memory_kib: info.memory_kib,
                        disks: links(info).collect(),
                        serves: served.filter(|link| link.back == domain).collect(),
                        rings,
                    })?;
                }
                self.service.open_session(client, domain)
            }
        }
    }
}

/// A guest's disks, and the domains that serve them, there or not.
fn links(front: &DomainInfo, known: &[DomainInfo]) -> impl Iterator<Item = Link> {
    front.disks.iter().filter_map(|disk| {
        let back = match &disk.backend {
            Backend::Component(_) => PRIVILEGED,
            Backend::Guest(name) => known.iter().find(|info| info.name == *name)?.domain,
        };
        Some(Link {
            front: front.domain,
            back,
            disk: disk.clone(),
        })
    })
}

/// The client and its domain.
fn speaker(badge: u64) -> Result<(u32, u16), StoreError> {
    let badge = Badge::of(badge).ok_or(StoreError::Nobody)?;
    Ok((badge.component, badge.domain.ok_or(StoreError::Nobody)?))
}

impl<A: Area> StoreServer for Server<A> {
    fn attach(
        &mut self,
        client: u64,
        session: Session,
        wake: Cap<cap::Notification>,
    ) -> Result<(), StoreError> {
        let outcome = speaker(client).and_then(|(client, domain)| {
            self.begin(client, domain, session)?;
            self.forget(client);
            self.wakes.insert(client, wake);
            Ok(())
        });
        if outcome.is_err() {
            let _ = wake.delete();
        }
        outcome
    }

    fn send(
        &mut self,
        client: u64,
        number: u32,
        length: u32,
        offset: u32,
        piece: Piece<PIECE>,
    ) -> Result<Option<Answer>, StoreError> {
        let (client, _) = speaker(client)?;
        self.service.send(client, number, length, offset, &piece)
    }

    fn rest(&mut self, client: u64, number: u32, offset: u32) -> Result<Piece<PIECE>, StoreError> {
        let (client, _) = speaker(client)?;
        self.service.rest(client, number, offset)
    }

    fn events(&mut self, client: u64) -> Result<(Piece<PIECE>, bool), StoreError> {
        let (client, _) = speaker(client)?;
        match self.wakes.contains_key(&client) {
            true => self.service.events(client),
            false => Err(StoreError::Unattached),
        }
    }
}
