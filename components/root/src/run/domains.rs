//! Which guests there are, for those who keep something for each (interface `domains`), and telling
//! them that it changed. Root never calls them: they ask.

use idl::domains::{DomainInfo, DomainsServer};
use idl::manifest::Manifest;
use idl::name;
use idl::volume::DISKS_MAX;
use root_plan::guest::Phase;
use root_plan::plan::ROOT;
use sdk::prelude::*;
use sdk::startup::DOMAINS;

use super::guests::GuestPlace;
use super::system::System;

/// Answers one request.
pub struct Desk<'a> {
    /// The system's description.
    pub manifest: &'a Manifest,
    /// Guests in the description's order.
    pub guests: &'a [GuestPlace],
}

impl DomainsServer for Desk<'_> {
    fn domain(&mut self, _: u64, index: u32) -> Option<DomainInfo> {
        let index = usize::try_from(index).ok()?;
        let (guest, place) = (self.manifest.guests.get(index)?, self.guests.get(index)?);
        Some(DomainInfo {
            domain: place.domain,
            name: name(&guest.name),
            starts: place.starts,
            present: !matches!(place.phase, Phase::Waiting | Phase::Stopped(_)),
            vcpus: guest.vcpus.len() as u32,
            memory_kib: guest.memory_mib * 1024,
            // A guest's further disks are not there; `plan::check` says so at boot.
            disks: guest.disks.iter().take(DISKS_MAX).cloned().collect(),
        })
    }
}

impl System {
    /// Says that a guest came or went.
    pub(super) fn tell_of_domains(&self) {
        for place in &self.places {
            let component = &self.manifest.components[place.component];
            let asks =
                |need: &idl::manifest::Need| need.server == ROOT && need.interface == "domains";
            if let Some(instance) = &place.instance
                && component.needs.iter().any(asks)
                && let Err(status) = instance.notification.signal(DOMAINS)
            {
                log::error!("component {}: not told of domains: {status:?}", place.name);
            }
        }
    }
}
