//! The end of an instance: who died of what, who is told, and whether it is started again. Part of
//! [`System`].
//!
//! An endpoint belongs to root, not to the server behind it. When that server is to come back, its
//! callers hear `Restarted` and those who still wait are served by the next one; when it is not,
//! the endpoint goes, so that nobody waits for ever.

use alloc::format;
use alloc::vec::Vec;

use idl::manifest::Restart;
use root_plan::guest::Event;
use sdk::prelude::*;
use sdk::startup::PEERS;

use super::system::{FAULT_BITS, State, System};
use super::{report, serial};

impl System {
    /// Reports the instances whose threads faulted, and ends them.
    pub(super) fn faults(&mut self, bits: u64) {
        for index in 0..self.places.len() {
            if bits & 1 << (index % FAULT_BITS) == 0 {
                continue;
            }
            let place = &mut self.places[index];
            let Some(instance) = &mut place.instance else {
                continue;
            };
            instance.mend(&mut self.tools.window);
            let component = &self.manifest.components[place.component];
            if Self::is_console(component) {
                // Its ring leads nowhere now.
                sdk::logging::set_direct(serial::write);
            }
            let file = format!("symbols/{}", component.name);
            let archive = &self.tools.archive;
            let symbols = archive.file(&file).map_or(&[][..], |(_, bytes)| bytes);
            let window = &mut self.tools.window;
            if report::faults(&place.name, instance, symbols, window, &mut place.causes) {
                self.died(index);
            }
        }
    }

    /// An instance is of no use any more: takes it down, and starts it again if it is to be.
    pub(super) fn died(&mut self, index: usize) {
        if self.places[index].guest.is_some() {
            self.take_down(index);
            self.tell_peers(index);
            if let Some(guest) = self.places[index].guest {
                self.guest_event(guest, Event::ComponentDied);
            }
            return;
        }
        let policy = self.manifest.components[self.places[index].component].restart;
        let seconds = sdk::time::now() / (1000 * self.tools.info.tsc_khz).max(1);
        let again = self.places[index].history.died(policy, seconds);
        if again {
            self.replace_server(index);
        }
        self.take_down(index);
        let name = &self.places[index].name;
        if again {
            let count = self.places[index].history.restarts;
            log::info!("component {name}: restarted ({count})");
            self.start_component(index);
        } else {
            match policy {
                Restart::Limited { times, seconds } => log::error!(
                    "component {name}: stays down after {times} restarts in {seconds} s"
                ),
                _ => log::error!("component {name}: stays down"),
            }
            self.close(index);
        }
        self.tell_peers(index);
        self.start();
    }

    /// The callers of a server that is about to be taken down will find another one.
    fn replace_server(&mut self, index: usize) {
        // None of its threads may take a message after this: its caller would hear of no restart.
        let place = &self.places[index];
        if let Some(instance) = &place.instance
            && let Err(status) = instance.stop()
        {
            log::error!(
                "component {}: a thread does not stop: {status:?}",
                place.name
            );
        }
        for (owner, interface, endpoint) in &self.endpoints {
            if *owner == place.component
                && let Err(status) = endpoint.replace_server()
            {
                log::error!("callers of {interface} hear of no restart: {status:?}");
            }
        }
    }

    /// Takes an instance down, if it runs.
    pub(super) fn take_down(&mut self, index: usize) {
        let component = &self.manifest.components[self.places[index].component];
        let console = Self::is_console(component);
        let place = &mut self.places[index];
        place.state = State::Down;
        let Some(instance) = place.instance.take() else {
            return;
        };
        if console {
            sdk::logging::set_direct(serial::write);
        }
        if let Err(status) = instance.destroy() {
            // What it held is lost, but nothing runs in it.
            log::error!("component {}: not taken down: {status:?}", place.name);
            place.kept = None;
        }
        self.give_kept(index);
    }

    /// Nobody will serve the endpoints of a component any more: whoever waits there is told so, and
    /// whoever calls later as well.
    pub(super) fn close(&mut self, index: usize) {
        let owner = self.places[index].component;
        if self.places[index].guest.is_some() {
            return;
        }
        let (gone, kept) = core::mem::take(&mut self.endpoints)
            .into_iter()
            .partition(|endpoint| endpoint.0 == owner);
        self.endpoints = kept;
        for (_, interface, endpoint) in gone {
            if let Err(status) = endpoint.delete() {
                log::error!("callers of {interface} wait for nobody: {status:?}");
            }
        }
    }

    /// Tells those at the other ends of an instance's wires that it is not what it was.
    pub(super) fn tell_peers(&self, index: usize) {
        let (servers, own) = (self.servers(index), &self.places[index].name);
        let mut told: Vec<&str> = Vec::new();
        for (other, place) in self.places.iter().enumerate() {
            let Some(instance) = &place.instance else {
                continue;
            };
            let wired = servers.contains(&place.name.as_str())
                || self.servers(other).contains(&own.as_str())
                || self.share_grants(index, other);
            if other != index && wired {
                match instance.notification.signal(PEERS) {
                    Ok(()) => told.push(&place.name),
                    Err(status) => log::error!("component {}: not told: {status:?}", place.name),
                }
            }
        }
        if !told.is_empty() {
            log::info!("component {own}: told {}", told.join(", "));
        }
    }
}
