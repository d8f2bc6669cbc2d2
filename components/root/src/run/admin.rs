//! What an administrator asks of root: answered from what root knows; who is to die is noted, and
//! dies when the caller has its answer.

use alloc::collections::VecDeque;

use idl::admin::{AdminError, AdminServer, Inventory};
use idl::{Name, name};
use sdk::abi::Kind;
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
        let (held_slots, used_frames) = held();
        Inventory {
            used_frames,
            free_kib,
            free_slots: slots::free().into(),
            held_slots,
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

/// Slots of root's own space in which the core finds something, and frames that it made something
/// of. The space ends where the core refuses.
fn held() -> (u64, u64) {
    (1..)
        .map_while(|slot| inspect(OWN, slot).ok())
        .fold((0, 0), |(slots, frames), slot| match slot.kind {
            Kind::Null => (slots, frames),
            Kind::Memory => (slots + 1, frames + slot.more),
            _ => (slots + 1, frames),
        })
}
