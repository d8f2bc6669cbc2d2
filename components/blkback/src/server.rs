//! The main thread: opens volumes, fetches what the disk answered and what changed in the store, and tells
//! the threads that serve guests. It calls only those that it must trust: root, the store, the driver.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use idl::requests::{Operation, Status as Ended};
use idl::volume::Source;
use sdk::block::Disk;
use sdk::keep::Kept;
use sdk::prelude::*;
use sdk::startup::{DOMAINS, PEERS};
use sdk::store::{Error, Store};
use sdk::sync::Mutex;
use sdk::{memory, thread, time};
use volume::{Base, Extent, Missing, SECTOR, Volume, find, gpt};

use crate::guest;
use crate::hub::{GONE_BIT, Hub, Line, STORE_BIT, Seat, Served};

/// Bits of the own notification: the disk answered, the store has events, guests are to be looked for.
const DISK_ANSWERS: u64 = 1;
pub const STORE_EVENTS: u64 = 1 << 1;
pub const LOOK: u64 = 1 << 2;
/// How long one block of a partition table may take to be read.
const PATIENCE_MICROSECONDS: u64 = 60_000_000;
/// Where the disks of guests are.
pub const BACKENDS: &str = "/local/domain/0/backend/vbd";

/// Serves for ever.
pub fn main(env: Env) {
    let hub = match prepare(&env) {
        Ok(hub) => Arc::new(hub),
        Err(why) => panic!("cannot serve disks: {why}"),
    };
    for (index, right) in env.threads.iter().enumerate().take(hub.seats.len()) {
        let shared = Arc::clone(&hub);
        let started = thread::spawn(*right, move |_| guest::serve(&shared, index));
        if let Err(status) = started {
            panic!("a thread does not start: {status:?}");
        }
    }
    match SupervisorClient::connect(env.transport("supervisor")).map(|root| root.ready()) {
        Ok(Ok(())) => {}
        other => log::error!("root does not hear that disks are served: {other:?}"),
    }
    let why = run(&hub);
    panic!("{why}");
}

fn prepare(env: &Env) -> Result<Hub, String> {
    if env.keep.count == 0 {
        env.missing("keep", "2M");
    }
    if env.threads.is_empty() {
        env.missing("threads", "9");
    }
    let core = |status: Status| format!("{status:?}");
    let kept = Kept::map(&env.keep).map_err(core)?;
    let mut disk = match env.wire("block") {
        None => None,
        Some(_) => Some(
            Disk::attach(env.transport("block"), env.notification(), DISK_ANSWERS)
                .map_err(|error| format!("no disk: {error:?}"))?,
        ),
    };
    let volumes = volumes(env, disk.as_mut());
    let wake = env.notification().mint(Rights::SIGNAL, STORE_EVENTS);
    let mut store = Store::attach(env.transport("store"), None, wake.map_err(core)?)
        .map_err(|error| format!("no store: {error:?}"))?;
    store
        .watch(BACKENDS, "back")
        .map_err(|error| format!("no watch: {error:?}"))?;
    let mut seats = Vec::new();
    // The bits of `Line::waiting` are a word.
    for _ in env.threads.iter().take(64) {
        seats.push(Seat {
            bell: memory::own().retype(0).map_err(core)?,
            domain: AtomicU32::new(0),
            done: Mutex::new(Vec::new()),
        });
    }
    let geometry = disk.as_ref().map(Disk::geometry);
    Ok(Hub {
        name: env.name.clone(),
        store: Mutex::new(store),
        main: env.notification(),
        peers: env.transport("peers"),
        data: disk.as_ref().map(Disk::data),
        block_bytes: geometry.map_or(SECTOR as u32, |shape| shape.block_bytes),
        request_bytes: geometry.map_or(SECTOR as u32, |shape| shape.request_bytes),
        discard_bytes: geometry
            .and_then(|shape| shape.discard)
            .map_or(0, |discard| discard.bytes),
        line: disk.map(|disk| Mutex::new(Line::new(disk, seats.len()))),
        volumes,
        seats,
        kept,
        notes: Mutex::new(Vec::new()),
    })
}

fn run(hub: &Hub) -> String {
    // The store's first event of the watch waits already.
    let mut bits = STORE_EVENTS | LOOK;
    loop {
        if bits & (DISK_ANSWERS | PEERS) != 0
            && let Err(error) = hub.collect(bits & PEERS != 0)
        {
            return format!("the disk cannot be used: {error:?}");
        }
        if bits & (PEERS | DOMAINS) != 0 {
            for seat in &hub.seats {
                let _ = seat.bell.signal(GONE_BIT);
            }
        }
        if bits & (STORE_EVENTS | PEERS) != 0
            && let Err(error) = events(hub, bits & LOOK != 0)
        {
            return format!("the store cannot be used: {error:?}");
        }
        if bits & LOOK != 0
            && let Err(error) = look(hub)
        {
            return format!("the store cannot be used: {error:?}");
        }
        bits = match hub.main.wait(FOREVER) {
            Ok(bits) => bits,
            Err(status) => return format!("cannot wait: {status:?}"),
        };
    }
}

/// Fetches events of the store, and tells those whom they concern; `all` are told anyway.
fn events(hub: &Hub, all: bool) -> Result<(), Error> {
    let fired = {
        let mut store = hub.store.lock();
        store.woken();
        store.fired()?
    };
    let mut looked = all;
    for event in fired {
        let back = event.path.strip_prefix(BACKENDS);
        match (event.token.strip_prefix("front:"), back) {
            (Some(domain), _) => {
                if let Some(seat) = domain.parse().ok().and_then(|domain| hub.seat_of(domain)) {
                    let _ = seat.bell.signal(STORE_BIT);
                }
            }
            (None, Some(rest)) => {
                // `/DOMAIN/DISK` came or went; what is below is what we write ourselves.
                let depth = rest.split('/').skip(1).count();
                if depth <= 2 && !core::mem::replace(&mut looked, true) {
                    look(hub)?;
                }
            }
            (None, None) => {}
        }
    }
    Ok(())
}

/// Whether a guest has a disk of ours.
pub fn is_ours(hub: &Hub, domain: u16) -> Result<bool, Error> {
    let folder = format!("{BACKENDS}/{domain}");
    for disk in directory(hub, &folder)? {
        let component = node(hub, &format!("{folder}/{disk}/component"))?;
        if component.is_some_and(|name| name == hub.name.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds guests with disks of ours, gives each a seat, and tells all seats.
fn look(hub: &Hub) -> Result<(), Error> {
    for name in directory(hub, BACKENDS)? {
        let Some(domain) = name.parse::<u16>().ok().filter(|domain| *domain != 0) else {
            continue;
        };
        if hub.seat_of(domain).is_some() || !is_ours(hub, domain)? {
            continue;
        }
        match hub
            .seats
            .iter()
            .find(|seat| seat.domain.load(Ordering::Acquire) == 0)
        {
            Some(seat) => seat.domain.store(u32::from(domain), Ordering::Release),
            None => log::error!(
                "domain {domain} gets no disks: all {} threads serve others; give component {} more `threads`",
                hub.seats.len(),
                hub.name
            ),
        }
    }
    for seat in &hub.seats {
        if seat.domain.load(Ordering::Acquire) != 0 {
            let _ = seat.bell.signal(STORE_BIT);
        }
    }
    Ok(())
}

/// A node's value, if there is one.
pub fn node(hub: &Hub, path: &str) -> Result<Option<Vec<u8>>, Error> {
    match hub.store(|store| store.read(path)) {
        Ok(value) => Ok(Some(value)),
        Err(Error::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Names of a node's children, if it is there.
pub fn directory(hub: &Hub, path: &str) -> Result<Vec<String>, Error> {
    match hub.store(|store| store.directory(path)) {
        Err(Error::Refused(_)) => Ok(Vec::new()),
        other => other,
    }
}

/// Opens the volumes of the description. One that is not there keeps no other from being served.
fn volumes(env: &Env, mut disk: Option<&mut Disk>) -> Vec<Served> {
    let mut table = None;
    let mut all = Vec::new();
    for described in &env.volumes {
        let base = match (&described.source, &mut disk) {
            (Source::File(name), _) => match env.files.iter().find(|file| file.name == *name) {
                Some(file) => Ok((Base::Image(memory::file_bytes(file)), SECTOR as u32)),
                None => Err("its image is not in the archive".into()),
            },
            (_, None) => Err("there is no disk: add \"block\" to `needs`".into()),
            (source, Some(disk)) => on_disk(disk, source, &mut table),
        };
        let read_only = described.read_only
            || (!matches!(described.source, Source::File(_))
                && described.overlay_bytes == 0
                && disk.as_ref().is_some_and(|disk| disk.geometry().read_only));
        let opened = base.map(|(base, block_bytes)| {
            let shape = disk.as_ref().map(|disk| disk.geometry());
            let discard = shape.and_then(|shape| shape.discard);
            let volume = Volume::new(base, block_bytes, read_only, described.overlay_bytes)
                .on_discarding_disk(discard.map_or(0, |discard| discard.granularity));
            log::info!(
                "volume {}: {} MiB{}",
                described.name,
                (volume.sectors() * SECTOR) >> 20,
                match (volume.read_only, volume.forgets()) {
                    (true, _) => ", read-only",
                    (_, true) => ", writes go to memory",
                    _ => "",
                }
            );
            Arc::new(Mutex::new(volume))
        });
        if let Err(why) = &opened {
            log::error!("volume {}: {why}", described.name);
        }
        all.push((described.name.clone(), opened));
    }
    all
}

type Table = Result<Vec<gpt::Partition>, Missing>;

fn on_disk(
    disk: &mut Disk,
    source: &Source,
    table: &mut Option<Table>,
) -> Result<(Base, u32), String> {
    let shape = disk.geometry();
    let unit = u64::from(shape.block_bytes) / SECTOR;
    let whole = Extent {
        first: 0,
        sectors: shape.blocks.saturating_mul(unit),
    };
    let read = |disk: &mut Disk| {
        gpt::read(shape.block_bytes, shape.blocks, |block, into| {
            read_block(disk, block, into)
        })
    };
    let mut partition = |matches: &dyn Fn(&gpt::Partition) -> bool| {
        let table = table.get_or_insert_with(|| read(disk));
        match table {
            Ok(partitions) => find(partitions, shape.block_bytes, matches),
            Err(missing) => Err(*missing),
        }
    };
    let extent = match source {
        Source::Disk | Source::File(_) => Ok(whole),
        Source::PartitionLabel(label) => partition(&|one| one.label == label.as_str()),
        Source::PartitionUuid(uuid) => partition(&|one| one.unique == *uuid),
    };
    match extent {
        Ok(extent) => Ok((Base::Disk(extent), shape.block_bytes)),
        Err(Missing::Table) => Err("the disk has no valid GUID partition table".into()),
        Err(Missing::Partition) => Err("the disk has no such partition".into()),
        Err(Missing::Ambiguous) => Err("more than one partition has this label".into()),
        Err(Missing::Overlap) => Err("its partition overlaps another one".into()),
        Err(Missing::Disk) => Err("the disk's partition table cannot be read".into()),
    }
}

/// Reads one block, before there are others who use the disk.
fn read_block(disk: &mut Disk, block: u64, into: &mut [u8]) -> bool {
    let (place, _) = disk.places();
    let Ok(id) = disk.submit(Operation::Read, block, place, into.len() as u32) else {
        return false;
    };
    let end = time::now().saturating_add(time::microseconds(PATIENCE_MICROSECONDS));
    loop {
        match disk.wait(end) {
            Ok(answer) if answer.id == id => {
                return answer.status == Ended::Done && disk.data().get(place, into);
            }
            Ok(_) => {}
            Err(error) => {
                log::error!("block {block} cannot be read: {error:?}");
                return false;
            }
        }
    }
}
