//! What an administrator asks of root: answered from what root knows; who is to die is noted, and
//! dies when the caller has its answer.

use alloc::collections::VecDeque;

use idl::admin::{AdminError, AdminServer, Inventory};
use idl::{Name, name};
use sdk::prelude::*;
use sdk::slots;

use super::bank::Bank;
use super::system::Place;

/// Places of instances that are to die.
pub type Kills = VecDeque<usize>;

/// Answers one request.
pub struct Desk<'a> {
    /// All instances.
    pub places: &'a [Place],
    /// Memory.
    pub bank: &'a Bank,
    /// Where kills go.
    pub kills: &'a mut Kills,
}

impl AdminServer for Desk<'_> {
    fn inventory(&mut self, _: u64) -> Inventory {
        let [.., free_kib] = self.bank.kib();
        Inventory {
            own_frames: inspect(OWN, sdk::memory::own().slot()).map_or(0, |memory| memory.more),
            free_kib,
            free_slots: slots::free().into(),
            held_slots: held(),
            heap_bytes: sdk::heap_used() as u64,
            running: self
                .places
                .iter()
                .filter(|place| place.instance.is_some())
                .count() as u64,
        }
    }

    fn kill(&mut self, _: u64, component: Name) -> Result<(), AdminError> {
        let index = self
            .places
            .iter()
            .position(|place| name(&place.name) == component)
            .ok_or(AdminError::NoComponent)?;
        if self.places[index].instance.is_none() {
            return Err(AdminError::NotRunning);
        }
        self.kills.push_back(index);
        Ok(())
    }
}

/// Slots of root's own space in which the core finds something; the space ends where it refuses.
fn held() -> u64 {
    (1..)
        .map_while(|slot| inspect(OWN, slot).ok())
        .filter(|slot| slot.kind != sdk::abi::Kind::Null)
        .count() as u64
}
