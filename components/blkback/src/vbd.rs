//! A disk of a guest and its nodes in the store: says what the back end can, connects to the rings that the
//! front end names, parts from them. What a guest wrote into its nodes is checked like everything else of it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use blkback::device::{Device, Fault, Queue, Submission, Token};
use blkback::grants::{Gone, Guest};
use blkback::journal::{Key, Note};
use blkback::proto::{Abi, INDIRECT_MAX};
use blkback::ring::{RING_ORDER_MAX, Ring};
use blkback::xenbus::{State, Step, step};
use idl::requests::Status as Ended;
use sdk::keep::Kept;
use sdk::peer::{Channel, Error, Page};
use sdk::store;
use sdk::sync::Mutex;
use volume::{SECTOR, Volume};

use crate::guest::{Side, tell};
use crate::hub::{Hub, Way};
use crate::server::{BACKENDS, node};

/// Rings of one disk at most.
const QUEUES_MAX: u32 = 4;
/// Pages that all disks of a guest keep mapped, if its grants persist.
const KEPT_MAX: usize = 448;
/// `VDISK_READONLY` (Xen, public/io/blkif.h).
const READ_ONLY: u32 = 4;

/// A disk of a guest.
pub struct Vbd {
    domain: u16,
    number: u32,
    back: String,
    front: String,
    device: Option<Device<Page, Channel>>,
    /// For each ring, where its note is, and for which ring.
    notes: Vec<(u64, Key)>,
    /// Closed, and will be in this state when nothing of it is with the disk.
    parting: Option<Option<State>>,
    /// The front end broke it, and has to begin anew.
    failed: bool,
    /// Its nodes are gone.
    over: bool,
}

/// Why a front end's nodes lead to no connection.
enum Refused {
    Gone,
    Says(String),
    Store(store::Error),
}

impl From<Gone> for Refused {
    fn from(Gone: Gone) -> Refused {
        Refused::Gone
    }
}

impl From<store::Error> for Refused {
    fn from(error: store::Error) -> Refused {
        Refused::Store(error)
    }
}

impl Vbd {
    /// A disk whose nodes came, if it is ours.
    pub fn open(hub: &Hub, domain: u16, number: u32) -> Option<Vbd> {
        let back = format!("{BACKENDS}/{domain}/{number}");
        let front = format!("/local/domain/{domain}/device/vbd/{number}");
        let component = node(hub, &format!("{back}/component")).ok()??;
        if component != hub.name.as_bytes() {
            return None;
        }
        let token = format!("front:{domain}");
        let watch = hub.store(|store| store.watch(&format!("{front}/state"), &token));
        if let Err(error) = watch {
            log::error!("domain {domain}: disk {number} cannot be watched: {error:?}");
        }
        Some(Vbd {
            domain,
            number,
            back,
            front,
            device: None,
            notes: Vec::new(),
            parting: None,
            failed: false,
            over: false,
        })
    }

    fn states(&self, hub: &Hub) -> Result<(State, State), store::Error> {
        let back = node(hub, &format!("{}/state", self.back))?;
        let front = node(hub, &format!("{}/state", self.front))?;
        Ok((
            State::of_node(back.as_deref()),
            State::of_node(front.as_deref()),
        ))
    }

    fn next(&self, hub: &Hub) -> Step {
        match self.states(hub) {
            _ if self.parting.is_some() || self.over => Step::Stay,
            Ok((back, front)) => step(back, front, self.device.is_some(), self.failed),
            Err(error) => {
                log::error!("the store cannot be read: {error:?}");
                Step::Stay
            }
        }
    }

    /// The next step calls the guest.
    pub fn wants_guest(&self, hub: &Hub) -> bool {
        self.next(hub) == Step::Connect
    }

    /// Nothing is left of it.
    pub fn is_over(&self) -> bool {
        self.over && self.device.is_none()
    }

    fn write(&self, hub: &Hub, name: &str, value: &str) -> Result<(), store::Error> {
        let path = format!("{}/{name}", self.back);
        hub.store(|store| store.write(&path, value.as_bytes()))
    }

    fn set_state(&self, hub: &Hub, state: State) {
        if let Err(error) = self.write(hub, "state", state.node()) {
            log::error!("{}: no state: {error:?}", self.back);
        }
    }

    /// Does what is due, if anything.
    pub fn step(&mut self, hub: &Hub, side: Option<&mut Side>, disks: usize) -> Result<(), Gone> {
        match (self.next(hub), side) {
            (Step::Stay, _) | (Step::Connect, None) => Ok(()),
            (Step::Offer, _) => {
                self.failed = false;
                let offered = match hub.volume(&self.volume(hub)) {
                    Ok(volume) => self.offer(hub, volume),
                    Err(why) => {
                        self.fail(hub, None, &why);
                        return Ok(());
                    }
                };
                if let Err(error) = offered {
                    log::error!("{}: no features: {error:?}", self.back);
                }
                Ok(())
            }
            (Step::Part(state), side) => {
                if state == State::Closed {
                    self.failed = false;
                }
                match side {
                    Some(side) => self.let_go(side, Some(state)),
                    None => self.parting = Some(Some(state)),
                }
                Ok(())
            }
            (Step::Connect, Some(side)) => match self.connect(hub, side, disks) {
                Ok(()) => Ok(()),
                Err(Refused::Gone) => Err(Gone),
                Err(Refused::Says(why)) => {
                    self.fail(hub, Some(side), &why);
                    Ok(())
                }
                Err(Refused::Store(error)) => {
                    log::error!("{}: {error:?}", self.back);
                    Ok(())
                }
            },
        }
    }

    fn volume(&self, hub: &Hub) -> String {
        let name = node(hub, &format!("{}/params", self.back));
        let name = name.ok().flatten().unwrap_or_default();
        String::from_utf8_lossy(&name).into_owned()
    }

    /// The guest may not write.
    fn read_only(&self, hub: &Hub) -> Result<bool, store::Error> {
        let mode = node(hub, &format!("{}/mode", self.back))?;
        Ok(mode.as_deref() != Some(b"w"))
    }

    /// How the guest may give up sectors, if volume and toolstack let it.
    fn discard(
        &self,
        hub: &Hub,
        volume: &Mutex<Volume>,
    ) -> Result<Option<volume::Discard>, store::Error> {
        // Without the node it is the volume that says.
        let enable = node(hub, &format!("{}/discard-enable", self.back))?;
        let refused = enable.as_deref() == Some(b"0") || self.read_only(hub)?;
        Ok(volume.lock().discard().filter(|_| !refused))
    }

    fn offer(&self, hub: &Hub, volume: &Mutex<Volume>) -> Result<(), store::Error> {
        self.write(hub, "max-ring-page-order", &format!("{RING_ORDER_MAX}"))?;
        self.write(hub, "multi-queue-max-queues", &format!("{QUEUES_MAX}"))?;
        self.write(
            hub,
            "feature-max-indirect-segments",
            &format!("{INDIRECT_MAX}"),
        )?;
        self.write(hub, "feature-persistent", "1")?;
        self.write(hub, "feature-flush-cache", "1")?;
        self.write(hub, "feature-barrier", "0")?;
        match self.discard(hub, volume)? {
            Some(discard) => {
                for (name, number) in [
                    ("discard-granularity", discard.granularity),
                    ("discard-alignment", discard.alignment),
                    ("discard-secure", 0),
                    ("feature-discard", 1),
                ] {
                    self.write(hub, name, &format!("{number}"))?;
                }
            }
            None => self.write(hub, "feature-discard", "0")?,
        }
        self.write(hub, "state", State::InitWait.node())
    }

    /// A number in a node of the front end's; `default` if there is none.
    fn number(&self, hub: &Hub, name: &str, default: Option<u32>) -> Result<u32, Refused> {
        let value = node(hub, &format!("{}/{name}", self.front))?;
        let Some(value) = value else {
            return default.ok_or_else(|| Refused::Says(format!("there is no node {name}")));
        };
        let text = core::str::from_utf8(&value).unwrap_or("");
        let number = text.trim().parse();
        number.map_err(|_| Refused::Says(format!("node {name} is no number")))
    }

    fn connect(&mut self, hub: &Hub, side: &mut Side, disks: usize) -> Result<(), Refused> {
        let says = |why: &str| Refused::Says(why.into());
        let (back, _) = self.states(hub)?;
        // The store has us connected, and this instance is not: the one before was.
        let taken_over = back == State::Connected;
        let volume = hub.volume(&self.volume(hub)).map_err(Refused::Says)?;
        if taken_over && volume.lock().forgets() {
            return Err(says("what was written to the volume's memory is lost"));
        }
        let protocol = node(hub, &format!("{}/protocol", self.front))?;
        let abi =
            Abi::of_node(protocol.as_deref()).ok_or_else(|| says("its protocol is unknown"))?;
        let order = self.number(hub, "ring-page-order", Some(0))?;
        let count = self.number(hub, "multi-queue-num-queues", Some(1))?;
        if order > RING_ORDER_MAX || !(1..=QUEUES_MAX).contains(&count) {
            return Err(says("more rings, or larger ones, than were offered"));
        }
        let single = node(hub, &format!("{}/multi-queue-num-queues", self.front))?.is_none();
        let persistent = self.number(hub, "feature-persistent", Some(0))? != 0;
        let ordered = node(hub, &format!("{}/ring-page-order", self.front))?.is_some();
        let read_only = self.read_only(hub)?;
        let discard = self.discard(hub, volume)?.is_some();
        let mut queues: Vec<Queue<Page, Channel>> = Vec::new();
        let mut outcome = Ok(());
        for index in 0..count {
            let prefix = match single {
                true => String::new(),
                false => format!("queue-{index}/"),
            };
            match self.queue(hub, side, &prefix, index, (order, ordered), abi) {
                Ok(queue) => queues.push(queue),
                Err(refused) => {
                    outcome = Err(refused);
                    break;
                }
            }
        }
        let unanswered: u32 = queues.iter().map(|queue| queue.ring.unanswered()).sum();
        let kept = match persistent {
            true => KEPT_MAX / disks.max(1),
            false => 0,
        };
        let mut device = Device::new(
            self.number,
            alloc::sync::Arc::clone(volume),
            read_only,
            discard,
            queues,
            kept,
        );
        if let Err(refused) = outcome {
            let channels = device.close(side)?;
            self.unbind(side, channels);
            self.forget_notes(hub);
            return Err(refused);
        }
        let (sectors, unit, info) = {
            let volume = volume.lock();
            let read_only = read_only || volume.read_only;
            let info = if read_only { READ_ONLY } else { 0 };
            (volume.sectors(), volume.block_bytes, info)
        };
        let say = || -> Result<(), store::Error> {
            self.write(hub, "sectors", &format!("{sectors}"))?;
            self.write(hub, "info", &format!("{info}"))?;
            self.write(hub, "sector-size", &format!("{unit}"))?;
            self.write(hub, "physical-sector-size", &format!("{unit}"))?;
            self.write(hub, "state", State::Connected.node())
        };
        let said = say();
        let channels: Vec<Channel> = device.channels().collect();
        self.device = Some(device);
        log::info!(
            "domain {}: disk {} {}: {unanswered} requests open, {} MiB, rings {count} of {} pages{}{}{}",
            self.domain,
            self.number,
            if taken_over {
                "goes on"
            } else {
                "is connected"
            },
            (sectors * SECTOR) >> 20,
            1 << order,
            if persistent { ", grants persist" } else { "" },
            if info == READ_ONLY { ", read-only" } else { "" },
            if discard { ", discards" } else { "" },
        );
        // An earlier instance may have died between an answer and its event.
        tell(side, &channels);
        Ok(said?)
    }

    /// Maps one ring and binds its channel.
    fn queue(
        &mut self,
        hub: &Hub,
        side: &mut Side,
        prefix: &str,
        index: u32,
        (order, ordered): (u32, bool),
        abi: Abi,
    ) -> Result<Queue<Page, Channel>, Refused> {
        let mut grants = Vec::new();
        for page in 0..1u32 << order {
            // With one page, and nothing said of pages, the node has no number.
            let name = match ordered {
                true => format!("{prefix}ring-ref{page}"),
                false => format!("{prefix}ring-ref"),
            };
            grants.push((self.number(hub, &name, None)?, true));
        }
        let port = self.number(hub, &format!("{prefix}event-channel"), None)?;
        let key = Key {
            domain: self.domain,
            device: self.number,
            queue: index as u16,
            grant: grants.first().map_or(0, |(grant, _)| *grant),
        };
        let mut pages = Vec::new();
        let mut refused = None;
        for page in side.map(&grants)? {
            match page {
                Ok(page) => pages.push(page),
                Err(status) => refused = Some(status),
            }
        }
        if let Some(status) = refused {
            side.unmap(pages)?;
            return Err(Refused::Says(format!(
                "a ring's page is not granted: status {status}"
            )));
        }
        let mut notes = hub.notes.lock();
        let Some(place) = Note::place(&hub.kept, key, &notes) else {
            drop(notes);
            side.unmap(pages)?;
            return Err(Refused::Says("there is no room for its ring".into()));
        };
        notes.push(place);
        drop(notes);
        self.notes.push((place, key));
        let mut note = Note::at(hub.kept, place, key);
        let ring = match Ring::open(pages, abi, &mut note) {
            Ok(ring) => ring,
            Err((_, pages)) => {
                side.unmap(pages)?;
                return Err(Refused::Says("its ring's counters make no sense".into()));
            }
        };
        match side.peer.bind(port) {
            Ok(channel) => Ok(Queue { ring, channel }),
            Err(Error::Refused(why)) => {
                side.unmap(ring.into_pages())?;
                Err(Refused::Says(format!(
                    "its port {port} is not ours: {why:?}"
                )))
            }
            Err(_) => Err(Refused::Gone),
        }
    }

    fn unbind(&self, side: &mut Side, channels: Vec<Channel>) {
        for channel in channels {
            // A VMM that is gone has no channels.
            let _ = side.peer.unbind(channel);
        }
    }

    fn forget_notes(&mut self, hub: &Hub) {
        let own = core::mem::take(&mut self.notes);
        let mut notes = hub.notes.lock();
        notes.retain(|place| !own.iter().any(|(own, _)| own == place));
    }

    /// Lets go of the rings; it will be in `state`, if it is said, when nothing of it is with the disk.
    pub fn let_go(&mut self, side: &mut Side, state: Option<State>) {
        if let Some(device) = &mut self.device {
            // Whatever fails, the VMM is gone then, and with it what was mapped.
            if let Ok(channels) = device.close(side) {
                self.unbind(side, channels);
            }
        }
        self.parting = Some(state);
    }

    /// Its nodes are gone.
    pub fn removed(&mut self, hub: &Hub, side: Option<&mut Side>) {
        if core::mem::replace(&mut self.over, true) {
            return;
        }
        let path = format!("{}/state", self.front);
        let token = format!("front:{}", self.domain);
        // With the domain its watches went.
        let _ = hub.store(|store| store.unwatch(&path, &token));
        if let Some(side) = side {
            self.let_go(side, None);
        }
        self.parted(hub);
    }

    /// Says what is wrong, as Xen's back ends do, and parts.
    fn fail(&mut self, hub: &Hub, side: Option<&mut Side>, why: &str) {
        log::error!("domain {}: disk {}: {why}", self.domain, self.number);
        let path = format!(
            "/local/domain/0/error/backend/vbd/{}/{}/error",
            self.domain, self.number
        );
        let _ = hub.store(|store| store.write(&path, why.as_bytes()));
        self.failed = true;
        match side {
            Some(side) => self.let_go(side, Some(State::Closing)),
            None => self.parting = Some(Some(State::Closing)),
        }
    }

    /// If it was parting and nothing of it is with the disk any more: it has parted. True if so.
    pub fn parted(&mut self, hub: &Hub) -> bool {
        let idle = self.device.as_ref().is_none_or(Device::is_idle);
        let Some(state) = self.parting.filter(|_| idle) else {
            return false;
        };
        self.parting = None;
        self.device = None;
        self.forget_notes(hub);
        if let Some(state) = state
            && !self.over
        {
            self.set_state(hub, state);
        }
        true
    }

    /// The disk answered.
    pub fn complete(
        &mut self,
        token: Token,
        request: Submission,
        status: Ended,
        side: Option<&mut Side>,
        way: &mut Way<'_>,
    ) -> Result<(), Fault> {
        match (&mut self.device, side) {
            (Some(device), Some(side)) => device.complete(token, request, status, side, way),
            // Only counted: it is closed.
            (Some(device), None) => {
                device.drained();
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    /// Goes through the rings; true if there is more to do at once.
    pub fn work(&mut self, hub: &Hub, side: &mut Side, way: &mut Way<'_>) -> Result<bool, Gone> {
        let Some(device) = &mut self.device else {
            return Ok(false);
        };
        let notes = &self.notes;
        let journal = |index: usize| -> Note<Kept> {
            // There is one for each ring.
            let (place, key) = notes.get(index).copied().unwrap_or((
                u64::MAX >> 8,
                Key {
                    domain: 0,
                    device: 0,
                    queue: 0,
                    grant: 0,
                },
            ));
            Note::at(hub.kept, place, key)
        };
        match device.work(side, way, journal) {
            Ok(work) => {
                tell(side, &work.tell);
                Ok(work.more)
            }
            Err(Fault::Gone) => Err(Gone),
            Err(Fault::Broken) => {
                self.fail(hub, Some(side), "its ring's counters make no sense");
                Ok(false)
            }
        }
    }
}
