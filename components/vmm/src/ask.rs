//! Asks other guests' VMMs what a driver domain's hypercalls want of them, and tells them what is over. Runs on
//! the thread of the vCPU that made the hypercall, after it, with none of the VMM's locks held but that of
//! the connection: the guest's other vCPUs go on, unless they want something of the same VMM.
//!
//! The other VMM may be in the hands of a hostile guest and never answer. So there is a deadline
//! ([`PATIENCE_MS`]), at which the service thread ends the call ([`watch`]); that connection is then over.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use idl::Failure;
use idl::heapless;
use idl::peer::PeerError;
use idl::peers::PeersError;
use sdk::peer::{Channel, Error, GrantRef, Mapped, Peer};
use sdk::prelude::*;
use sdk::sync::Mutex;
use sdk::time;
use vmm_guest::desk::{Ask, GrantAsk, PortAsk};
use xen_abi::{CopySide, Errno, GrantCopy, GuestMemory};

use crate::foreign::{Ended, Work};
use crate::shared::{Shared, service};

/// `GNTST_general_error`, `GNTST_bad_domain`, `GNTST_no_device_space`.
pub const GENERAL_ERROR: i16 = -1;
const BAD_DOMAIN: i16 = -2;
const NO_DEVICE_SPACE: i16 = -7;

/// Grants that are asked for together at most, as many as one attempt of a hypercall wants.
const TOGETHER: usize = 32;

/// How long a vCPU waits for another guest's VMM: far more than one takes on a machine that is
/// busy, and less than Linux takes for a vCPU that hangs (20 s, its soft lockup detector's default).
const PATIENCE_MS: u64 = 10_000;
/// When a call that was cancelled between two messages is cancelled again.
const AGAIN_MS: u64 = 100;

/// A connection, for one thread at a time.
pub struct Line {
    peer: Mutex<Option<Peer>>,
    /// It is not asked any more.
    over: AtomicBool,
    /// `foreign` does not know it any more, so nobody sends events by it: what it held can be given back.
    forgotten: AtomicBool,
}

/// It ended.
const GONE: Error = Error::Gone(Failure::Transport(Status::Aborted));

impl Line {
    /// A connection.
    pub fn new(peer: Peer) -> Line {
        Line {
            peer: Mutex::new(Some(peer)),
            over: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
        }
    }

    /// Asks, on the thread of `vcpu`. An error that says that nobody will answer any more ends it.
    fn ask<R>(
        &self,
        shared: &Shared,
        vcpu: u32,
        work: impl FnOnce(&mut Peer) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut peer = self.peer.lock();
        let answer = match &mut *peer {
            Some(peer) if !self.over.load(Ordering::SeqCst) => {
                within_patience(shared, vcpu, || work(peer))
            }
            _ => Err(GONE),
        };
        if answer.as_ref().is_err_and(is_final) {
            self.over.store(true, Ordering::SeqCst);
        }
        drop(peer);
        self.clear();
        answer
    }

    /// Nobody asks any more, or sends events. Waits for nobody: a thread that is just asking clears up when
    /// it is done.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.forgotten.store(true, Ordering::SeqCst);
        self.clear();
    }

    fn clear(&self) {
        if self.forgotten.load(Ordering::SeqCst)
            && let Some(mut peer) = self.peer.try_lock()
            && let Some(peer) = peer.take()
        {
            peer.abandon();
        }
    }
}

fn is_final(error: &Error) -> bool {
    !matches!(error, Error::Refused(_) | Error::Core(_))
}

/// Whether the time was over.
fn is_late(error: &Error) -> bool {
    matches!(error, Error::Gone(Failure::Transport(Status::Cancelled)))
}

fn after(shared: &Shared, milliseconds: u64) -> u64 {
    let ticks = shared.tsc_khz.saturating_mul(milliseconds);
    time::now().saturating_add(ticks)
}

fn within_patience<R>(shared: &Shared, vcpu: u32, work: impl FnOnce() -> R) -> R {
    let index = vcpu as usize;
    if shared.deadlines.begin(index, after(shared, PATIENCE_MS)) {
        // Fails only when the capability is gone, and the VMM with it.
        let _ = shared.service.signal(service::WATCH);
    }
    let result = work();
    shared.deadlines.end(index, || {
        let _ = time::give_way();
    });
    result
}

/// Ends calls whose time is over; answers when to look again. The service thread's.
pub fn watch(shared: &Shared) -> u64 {
    let again = after(shared, AGAIN_MS);
    let next = shared.deadlines.look(time::now(), again, |vcpu| {
        if let Some(thread) = shared.threads.get(vcpu)
            && let Err(status) = thread.cancel()
        {
            log::error!("vCPU {vcpu} waits for another guest and cannot be freed: {status:?}");
        }
    });
    next.unwrap_or(FOREVER)
}

/// Does what the last hypercall of `vcpu` left to do. True: answers wait for its next attempt.
#[cold]
#[inline(never)]
pub fn settle(shared: &Shared, vcpu: u32, finished: bool) -> bool {
    let Work {
        mut asks,
        mut ended,
    } = shared.foreign.lock().take_work(vcpu, finished);
    while let Some((number, _)) = ended.first() {
        let number = *number;
        let same = |(of, _): &(u64, Ended)| *of == number;
        if ended.iter().all(same) {
            tell(shared, vcpu, number, &ended);
            ended.clear();
            break;
        }
        let (of_it, others): (Vec<_>, _) = ended.into_iter().partition(same);
        tell(shared, vcpu, number, &of_it);
        ended = others;
    }
    let mut grants: heapless::Vec<GrantAsk, TOGETHER> = heapless::Vec::new();
    for ask in asks.drain(..) {
        // Neighbours of the same domain are asked for together.
        if let Some(first) = grants.first()
            && (grants.is_full() || !matches!(ask, Ask::Grant(next) if next.domid == first.domid))
        {
            open(shared, vcpu, &grants);
            grants.clear();
        }
        match ask {
            Ask::Reach(domid) => connect(shared, vcpu, domid),
            // Room was made.
            Ask::Grant(ask) => drop(grants.push(ask)),
            Ask::Port(ask) => bind(shared, vcpu, ask),
            Ask::Copy(copy) => {
                let answer = make_copy(shared, vcpu, copy);
                shared.foreign.lock().copied(vcpu, copy, answer);
            }
        }
    }
    open(shared, vcpu, &grants);
    let mut foreign = shared.foreign.lock();
    foreign.give_back(vcpu, Work { asks, ended });
    foreign.has_answers(vcpu)
}

/// Something went wrong with a connection for good.
fn lost(shared: &Shared, number: u64, error: &Error) {
    if is_final(error) {
        if is_late(error) {
            log::warn!("another guest's VMM has not answered for {PATIENCE_MS} ms");
        }
        shared.foreign.lock().end(number, is_late(error));
    }
}

fn connect(shared: &Shared, vcpu: u32, domid: u16) {
    // One at a time: a second connection to the same domain would end the first.
    let _turn = shared.connecting.lock();
    let (root, own, place) = {
        let foreign = shared.foreign.lock();
        if foreign.line(domid).is_some() {
            return;
        }
        (foreign.root, foreign.own, foreign.free_place())
    };
    let made = match (root, place) {
        (Some(root), Some((place, bit))) => {
            within_patience(shared, vcpu, || Peer::connect(root, domid, own, bit))
                .map(|peer| (place, peer))
        }
        _ => Err(Error::Root(PeersError::NotWired)),
    };
    let mut foreign = shared.foreign.lock();
    match made {
        Ok((place, peer)) => foreign.connected(place, domid, peer),
        Err(Error::Root(PeersError::NoDomain | PeersError::NotWired)) => {
            foreign.unreachable(vcpu, domid, true);
        }
        // The guest may be on its way: no news.
        Err(Error::Root(PeersError::NotRunning)) => foreign.unreachable(vcpu, domid, false),
        Err(error) => {
            log::warn!("domain {domid} cannot be reached: {error:?}");
            // Once, and not until a VMM has gone.
            foreign.unreachable(vcpu, domid, true);
        }
    }
}

/// Asks for grants of one domain.
fn open(shared: &Shared, vcpu: u32, asks: &[GrantAsk]) {
    let Some(domid) = asks.first().map(|ask| ask.domid) else {
        return;
    };
    let Some((number, line)) = line(shared, domid) else {
        let mut foreign = shared.foreign.lock();
        for ask in asks {
            foreign.opened(vcpu, 0, *ask, Err(BAD_DOMAIN));
        }
        return;
    };
    let list: heapless::Vec<GrantRef, TOGETHER> = asks
        .iter()
        .map(|ask| GrantRef {
            reference: ask.reference,
            write: ask.write,
        })
        .collect();
    let answer = line.ask(shared, vcpu, |peer| peer.map(&list));
    let status = match &answer {
        Err(Error::Refused(PeerError::Full) | Error::Core(_)) => NO_DEVICE_SPACE,
        _ => GENERAL_ERROR,
    };
    let answers: Vec<Result<Mapped, i16>> = match answer {
        Ok(answers) => answers,
        Err(error) => {
            lost(shared, number, &error);
            Vec::new()
        }
    };
    let mut answers = answers.into_iter();
    let mut foreign = shared.foreign.lock();
    for ask in asks {
        let answer = answers.next().unwrap_or(Err(status));
        foreign.opened(vcpu, number, *ask, answer);
    }
}

fn line(shared: &Shared, domid: u16) -> Option<(u64, Arc<Line>)> {
    shared.foreign.lock().line(domid)
}

fn bind(shared: &Shared, vcpu: u32, ask: PortAsk) {
    let Some((number, line)) = line(shared, ask.domid) else {
        let mut foreign = shared.foreign.lock();
        return foreign.bound(vcpu, 0, ask, Err(Errno::Srch));
    };
    let answer = line.ask(shared, vcpu, |peer| peer.bind_port(ask.port, ask.local));
    if let Err(error) = &answer {
        lost(shared, number, error);
    }
    let answer = answer.map_err(|_| Errno::Inval);
    shared.foreign.lock().bound(vcpu, number, ask, answer);
}

/// Copies by way of the pages that the other VMMs share with this one.
fn make_copy(shared: &Shared, vcpu: u32, copy: GrantCopy) -> Result<(), i16> {
    let GrantCopy { from, to, length } = copy;
    match (from, to) {
        (
            CopySide::Granted {
                domid,
                reference,
                offset,
            },
            CopySide::Own(address),
        ) => there(shared, vcpu, domid, |peer| {
            peer.read_grant(reference, offset, length, |at, words, bytes| {
                let address = address + at as u64;
                shared.ram.write_shared(address, words, bytes).is_ok()
            })
        }),
        (
            CopySide::Own(address),
            CopySide::Granted {
                domid,
                reference,
                offset,
            },
        ) => there(shared, vcpu, domid, |peer| {
            peer.write_grant(reference, offset, length, |at, words, bytes| {
                let address = address + at as u64;
                shared.ram.read_shared(address, words, bytes).is_ok()
            })
        }),
        (from @ CopySide::Granted { .. }, to @ CopySide::Granted { .. }) => {
            between_two(shared, vcpu, from, to, length)
        }
        // That is nobody else's business, and `xen_abi` does it.
        (CopySide::Own(_), CopySide::Own(_)) => Err(GENERAL_ERROR),
    }
}

/// A copy from one grant to another, which may be of the same domain.
fn between_two(
    shared: &Shared,
    vcpu: u32,
    from: CopySide,
    to: CopySide,
    length: u16,
) -> Result<(), i16> {
    let mut page: Vec<u64> = Vec::with_capacity(usize::from(length).div_ceil(8));
    let (
        CopySide::Granted {
            domid,
            reference,
            offset,
        },
        CopySide::Granted {
            domid: to_domid,
            reference: to_reference,
            offset: to_offset,
        },
    ) = (from, to)
    else {
        return Err(GENERAL_ERROR);
    };
    there(shared, vcpu, domid, |peer| {
        peer.read_grant(reference, offset, length, |_, words, bytes| {
            let words = words.iter().take(bytes.div_ceil(8));
            page.extend(words.map(|word| word.load(Ordering::Relaxed)));
            true
        })
    })?;
    there(shared, vcpu, to_domid, |peer| {
        peer.write_grant(to_reference, to_offset, length, |at, words, bytes| {
            let page = page.iter().skip(at / 8).take(bytes.div_ceil(8));
            let both = words.iter().zip(page);
            both.for_each(|(word, value)| word.store(*value, Ordering::Relaxed));
            true
        })
    })
}

/// Asks for one thing that a grant's status answers.
fn there(
    shared: &Shared,
    vcpu: u32,
    domid: u16,
    work: impl FnOnce(&mut Peer) -> Result<(), Error>,
) -> Result<(), i16> {
    let (number, line) = line(shared, domid).ok_or(BAD_DOMAIN)?;
    line.ask(shared, vcpu, work).map_err(|error| {
        lost(shared, number, &error);
        match error {
            Error::Refused(PeerError::Grant(status)) => status,
            _ => GENERAL_ERROR,
        }
    })
}

/// Tells a VMM what is over, so that its guest can use the pages and ports for something else.
fn tell(shared: &Shared, vcpu: u32, number: u64, ended: &[(u64, Ended)]) {
    let (mut handles, mut channels) = (Vec::new(), Vec::new());
    for (_, one) in ended {
        match one {
            Ended::Grant(mapped) => handles.push(mapped.handle),
            Ended::Channel(channel) => channels.push(Channel(*channel)),
        }
    }
    let line = shared.foreign.lock().line_of(number);
    // What a connection that ended had is gone already.
    let told = line.map_or(Err(GONE), |line| {
        line.ask(shared, vcpu, |peer| {
            peer.unmap(&handles)?;
            channels
                .into_iter()
                .try_for_each(|channel| peer.unbind(channel))
        })
    });
    if let Err(error) = &told {
        lost(shared, number, error);
    }
}
