//! What the operator's console asks of root: answered from what root knows; an allowed order is
//! noted, and carried out when the caller has its answer.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use idl::manifest::Manifest;
use idl::operator::{
    DefineError, Definition, FileInfo, FilePiece, GuestInfo, GuestOrder, GuestState, MachineInfo,
    OperatorServer, OrderError, Path,
};
use idl::{Name, Piece, name};
use root_plan::{define, guest};
use sdk::abi::archive::Archive;
use sdk::abi::boot::Info;
use sdk::slots;

use super::bank::Bank;
use super::define::{Defined, New, file};
use super::guests::{GuestPlace, Origin};

/// What is allowed and waits to be carried out.
pub enum Todo {
    /// An order for a guest.
    Order(usize, GuestOrder),
    /// Another guest.
    Define(Box<New>),
}

/// In the order in which it was allowed.
pub type Orders = VecDeque<Todo>;

/// Answers one request.
pub struct Desk<'a> {
    /// The core's facts.
    pub info: &'a Info,
    /// The system's description.
    pub manifest: &'a Manifest,
    /// Guests in the description's order.
    pub guests: &'a [GuestPlace],
    /// Those that are defined.
    pub defined: &'a mut Defined,
    /// The boot archive.
    pub archive: &'a Archive<'static>,
    /// Memory.
    pub bank: &'a Bank,
    /// Where orders go.
    pub orders: &'a mut Orders,
}

impl OperatorServer for Desk<'_> {
    fn guest(&mut self, _: u64, index: u32) -> Option<GuestInfo> {
        let all = self.manifest.guests.iter().zip(self.guests);
        let mut there = all.filter(|(_, place)| place.origin != Origin::Vacant);
        let (guest, place) = there.nth(usize::try_from(index).ok()?)?;
        Some(GuestInfo {
            name: name(&guest.name),
            state: place.phase().state(),
            vcpus: guest.vcpus.len() as u32,
            memory_mib: guest.memory_mib,
            starts: place.starts,
            domain: place.domain,
            described: place.origin == Origin::Described,
        })
    }

    fn machine(&mut self, _: u64) -> MachineInfo {
        let [memory_kib, guests_kib, free_kib] = self.bank.kib();
        let ticks = sdk::time::now().saturating_sub(self.info.boot_tsc);
        MachineInfo {
            cpus: self.info.cpus,
            uptime_ms: ticks / self.info.tsc_khz.max(1),
            memory_kib,
            guests_kib,
            free_kib,
            free_slots: slots::free().into(),
        }
    }

    fn order(&mut self, _: u64, guest: Name, order: GuestOrder) -> Result<GuestState, OrderError> {
        let all = self.manifest.guests.iter().zip(self.guests).enumerate();
        let there = |place: &GuestPlace| place.origin != Origin::Vacant;
        let (index, place) = all
            .filter(|(_, (known, place))| there(place) && name(&known.name) == guest)
            .map(|(index, (_, place))| (index, place))
            .next()
            .ok_or(OrderError::NoGuest)?;
        let phase = place.phase();
        let (next, _) =
            guest::ordered(phase, order).ok_or_else(|| OrderError::State(phase.state()))?;
        self.orders.push_back(Todo::Order(index, order));
        Ok(next.state())
    }

    fn define(&mut self, _: u64, definition: Definition) -> Result<u16, DefineError> {
        let guest = define::guest(
            self.manifest,
            self.defined.described,
            self.info.cpus,
            |file| self.archive.file(file).is_some(),
            &definition,
        )?;
        let taken = |domain| self.guests.iter().any(|place| place.domain == domain);
        let domain = self.defined.domains.take(taken);
        let ends = definition.ends;
        let new = New {
            guest,
            ends,
            domain,
        };
        self.orders.push_back(Todo::Define(Box::new(new)));
        Ok(domain)
    }

    fn file(&mut self, _: u64, path: Path, offset: u64) -> Option<FilePiece> {
        let content = file(self.archive, &path)?;
        let rest = usize::try_from(offset).ok();
        let rest = rest.and_then(|offset| content.get(offset..));
        Some(FilePiece {
            length: content.len() as u64,
            piece: Piece::of(rest.unwrap_or(&[])),
        })
    }

    fn listed(&mut self, _: u64, index: u32) -> Option<FileInfo> {
        let listed = |(name, ..): &(&str, u64, &[u8])| name.starts_with(define::FILES);
        let mut all = self.archive.files().filter(listed);
        let (path, _, content) = all.nth(usize::try_from(index).ok()?)?;
        Some(FileInfo {
            path: Path::try_from(path).ok()?,
            bytes: content.len() as u64,
        })
    }
}
