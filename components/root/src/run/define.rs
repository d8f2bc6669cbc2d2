//! Guests that are not in the system's description: their places, and what becomes of these when the
//! guests are gone. Part of [`System`]. A place is used again, so that guests may come and go for ever;
//! a domain id is not, see `root_plan::define`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use idl::console::{Named, Names};
use idl::manifest::{Component, Guest, Manifest};
use idl::operator::Ends;
use idl::{Name, name};
use root_plan::define::{self, Domains};
use root_plan::guest::{self, End, Event, Phase};
use root_plan::plan;
use root_plan::restart::History;
use sdk::memory::Shared;
use sdk::prelude::*;
use sdk::startup::{CLIENTS_MAX, DmaRight, NamesPage};

use super::guests::{GuestPlace, Origin};
use super::system::{FAULT_BITS, Place, State, System};

/// A guest that is to be.
pub struct New {
    /// What it is like.
    pub guest: Guest,
    /// What becomes of it when it ends.
    pub ends: Ends,
    /// Its domain id.
    pub domain: u16,
}

/// What is kept for guests that are defined.
pub struct Defined {
    /// Domain ids.
    pub domains: Domains,
    /// Their names, for the console.
    pub names: Shared<Names>,
    /// Guests of the description.
    pub described: usize,
    /// Places that there are without such guests.
    pub places: usize,
    /// One that is gone had failed.
    pub failed: bool,
}

impl Defined {
    /// None yet: `guests` and `places` are the description's.
    pub fn after(guests: usize, places: usize) -> Result<Defined, Status> {
        Ok(Defined {
            domains: Domains::after(guests),
            names: sdk::memory::shared_page()?,
            described: guests,
            places,
            failed: false,
        })
    }

    /// What the console `name` is told of the page with their names.
    pub fn page(&self, manifest: &Manifest, name: &str) -> NamesPage {
        let shown = plan::shown_by(manifest, name);
        NamesPage {
            address: super::instance::NAMES_ADDRESS,
            component: self.places as u32,
            guest: shown.filter(|guest| *guest < self.described).count() as u32,
        }
    }
}

impl Place {
    /// A place for instances of a component, or of a pattern for a guest.
    pub(super) fn new(
        note: Cap<cap::Notification>,
        number: usize,
        component: usize,
        name: String,
        guest: Option<usize>,
    ) -> Result<Place, Status> {
        let bit = 1 << (number % FAULT_BITS);
        Ok(Place {
            name,
            component,
            guest,
            fault: note.mint(Rights::SIGNAL, bit)?,
            state: State::Waiting,
            kept: None,
            dma: DmaRight::default(),
            keep: DmaRight::default(),
            shares: Vec::new(),
            rings: None,
            instance: None,
            history: History::default(),
            causes: Vec::new(),
        })
    }
}

/// A guest's place, and those of its builder and its VMM, which are appended to `places`.
pub fn add_guest(
    note: Cap<cap::Notification>,
    manifest: &Manifest,
    places: &mut Vec<Place>,
    index: usize,
    domain: u16,
) -> Result<GuestPlace, Status> {
    let guest = manifest.guests.get(index).ok_or(Status::InvalidArgument)?;
    let mut part = |pattern: &str| {
        let found = manifest.components.iter().position(|c| c.name == pattern);
        let component = found.ok_or(Status::InvalidArgument)?;
        let name = format!("{pattern}-{}", guest.name);
        places.push(Place::new(
            note,
            places.len(),
            component,
            name,
            Some(index),
        )?);
        Ok(places.len() - 1)
    };
    Ok(GuestPlace {
        phase: Phase::Waiting,
        ready: false,
        starts: 0,
        since: 0,
        domain,
        origin: Origin::Described,
        ends: guest::DESCRIBED,
        builder: part(&guest.builder)?,
        vmm: part(&guest.vmm)?,
        pages: Vec::new(),
        memory: None,
    })
}

impl System {
    /// For a console: names of its clients and of the guests that it shows, as far as the description
    /// has them.
    pub(super) fn known_names(&self, component: &Component) -> (Vec<Name>, Vec<Name>) {
        if !System::is_console(component) {
            return Default::default();
        }
        let clients = self.places.iter().take(self.defined.places);
        let clients = clients.map(|place| name(&place.name));
        let shown = plan::shown_by(&self.manifest, &component.name);
        let guests = shown
            .filter(|guest| *guest < self.defined.described)
            .map(|guest| name(&self.manifest.guests[guest].name));
        (
            clients.take(CLIENTS_MAX).collect(),
            guests.take(CLIENTS_MAX).collect(),
        )
    }

    /// Gives a new guest a place and starts it.
    pub(super) fn define(&mut self, new: New) {
        let name = new.guest.name.clone();
        match self.place_for(new) {
            Ok(index) => {
                self.name_for_console(index);
                log::info!("guest {name}: domain {}", self.guests[index].domain);
                self.guest_event(index, Event::Start);
            }
            Err(status) => log::error!("guest {name}: no place for it: {status:?}"),
        }
    }

    fn place_for(&mut self, new: New) -> Result<usize, Status> {
        let vacant = |place: &GuestPlace| place.origin == Origin::Vacant;
        let name = new.guest.name.clone();
        let index = match self.guests.iter().position(vacant) {
            Some(index) => {
                self.manifest.guests[index] = new.guest;
                index
            }
            None => {
                let index = self.guests.len();
                self.manifest.guests.push(new.guest);
                let (note, places) = (self.note, &mut self.places);
                let added = add_guest(note, &self.manifest, places, index, new.domain);
                match added {
                    Ok(place) => self.guests.push(place),
                    Err(status) => {
                        self.manifest.guests.pop();
                        return Err(status);
                    }
                }
                index
            }
        };
        let place = &mut self.guests[index];
        (place.phase, place.starts) = (Phase::Waiting, 0);
        (place.origin, place.ends, place.domain) = (Origin::Defined, new.ends, new.domain);
        for part in [place.builder, place.vmm] {
            let place = &mut self.places[part];
            let pattern = &self.manifest.components[place.component].name;
            place.name = format!("{pattern}-{name}");
            place.causes.clear();
        }
        Ok(index)
    }

    /// The console finds the names when the guest's components attach.
    fn name_for_console(&self, index: usize) {
        let place = &self.guests[index];
        let names = self.defined.names.page;
        for part in [place.builder, place.vmm] {
            let number = part.saturating_sub(self.defined.places) as u32;
            names.set(Named::Component(number), &self.places[part].name);
        }
        let number = index.saturating_sub(self.defined.described) as u32;
        names.set(Named::Guest(number), &self.manifest.guests[index].name);
    }

    /// A guest that was defined has stopped for good: its name is free, its place for another one.
    pub(super) fn vacate(&mut self, index: usize, end: End) {
        let place = &mut self.guests[index];
        if place.origin != Origin::Defined {
            return;
        }
        place.origin = Origin::Vacant;
        self.defined.failed |= end == End::Failed;
        // Who builds, runs and shows it stays, and with that its number at the console.
        let guest = &mut self.manifest.guests[index];
        *guest = Guest {
            builder: core::mem::take(&mut guest.builder),
            vmm: core::mem::take(&mut guest.vmm),
            console: core::mem::take(&mut guest.console),
            ..Guest::default()
        };
    }
}

/// The file of the archive that a path means, and its content.
pub fn file(archive: &sdk::abi::archive::Archive<'static>, path: &str) -> Option<&'static [u8]> {
    let name = define::file(path, |name| archive.file(name).is_some())?;
    Some(archive.file(&name)?.1)
}
