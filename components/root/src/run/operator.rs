//! What the operator's console asks of root: answered from what root knows; an allowed order is
//! noted, and carried out when the caller has its answer.

use alloc::collections::VecDeque;

use idl::manifest::Manifest;
use idl::operator::{GuestInfo, GuestOrder, GuestState, MachineInfo, OperatorServer, OrderError};
use idl::{Name, name};
use root_plan::guest;
use sdk::abi::boot::Info;
use sdk::slots;

use super::bank::Bank;
use super::guests::GuestPlace;

/// Allowed orders, by guest, that wait to be carried out.
pub type Orders = VecDeque<(usize, GuestOrder)>;

/// Answers one request.
pub struct Desk<'a> {
    /// The core's facts.
    pub info: &'a Info,
    /// The system's description.
    pub manifest: &'a Manifest,
    /// Guests in the description's order.
    pub guests: &'a [GuestPlace],
    /// Memory.
    pub bank: &'a Bank,
    /// Where orders go.
    pub orders: &'a mut Orders,
}

impl OperatorServer for Desk<'_> {
    fn guest(&mut self, _: u64, index: u32) -> Option<GuestInfo> {
        let index = usize::try_from(index).ok()?;
        let (guest, place) = (self.manifest.guests.get(index)?, self.guests.get(index)?);
        Some(GuestInfo {
            name: name(&guest.name),
            state: place.phase().state(),
            vcpus: guest.vcpus.len() as u32,
            memory_mib: guest.memory_mib,
            starts: place.starts,
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
        let named = self
            .manifest
            .guests
            .iter()
            .position(|known| name(&known.name) == guest);
        let (index, place) = named
            .and_then(|index| Some((index, self.guests.get(index)?)))
            .ok_or(OrderError::NoGuest)?;
        let phase = place.phase();
        let (next, _) =
            guest::ordered(phase, order).ok_or_else(|| OrderError::State(phase.state()))?;
        self.orders.push_back((index, order));
        Ok(next.state())
    }
}
