//! Runstate: how long a vCPU ran, waited and blocked (`vcpu_runstate_info` in `public/vcpu.h`).
//!
//! The area that a guest registers is translated once, when it registers it; a guest that maps
//! something else at that address later must register anew.

use crate::PAGE_SIZE;
use crate::access::{Caller, Fields, Reply};
use crate::call::Width;
use crate::domain::Domain;
use crate::env::{Access, Env};
use crate::errno::Errno;
use crate::memory::{GuestMemory, Unbacked};

/// `RUNSTATE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunstateKind {
    /// Runs on a CPU.
    Running = 0,
    /// Could run, but has no CPU.
    Runnable = 1,
    /// Waits for an event.
    Blocked = 2,
    /// Is down or paused.
    Offline = 3,
}

/// `XEN_RUNSTATE_UPDATE`: the record is changing.
const UPDATE: u64 = 1 << 63;

/// Bytes of the record, native; compat is 4 shorter.
const SIZE: usize = 48;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Runstate {
    kind: RunstateKind,
    entered: u64,
    times: [u64; 4],
}

impl Runstate {
    pub fn new(up: bool) -> Runstate {
        Runstate {
            kind: if up {
                RunstateKind::Runnable
            } else {
                RunstateKind::Offline
            },
            entered: 0,
            times: [0; 4],
        }
    }

    /// The record at a time: what has passed in the present state is counted.
    fn at(mut self, now: u64) -> Runstate {
        if let Some(time) = self.times.get_mut(self.kind as usize) {
            *time = time.saturating_add(now.saturating_sub(self.entered));
        }
        self
    }

    fn encode(self, width: Width, flag: u64) -> ([u8; SIZE], usize) {
        let mut bytes = [0; SIZE];
        let (entry, times, size) = match width {
            Width::Bits32 => (4, 12, SIZE - 4),
            Width::Bits64 => (8, 16, SIZE),
        };
        bytes.put(0, &(self.kind as u32).to_le_bytes());
        bytes.put(entry, &(self.entered | flag).to_le_bytes());
        for (index, time) in self.times.iter().enumerate() {
            bytes.put(times + index * 8, &time.to_le_bytes());
        }
        (bytes, size)
    }
}

/// Where the record goes: it may cross a page, so two pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    first: u64,
    first_bytes: usize,
    second: u64,
}

impl Area {
    fn write<M: GuestMemory>(&self, memory: &M, bytes: &[u8]) -> Result<(), Unbacked> {
        let (head, tail) = bytes.split_at(bytes.len().min(self.first_bytes));
        memory.write(self.first, head)?;
        if tail.is_empty() {
            Ok(())
        } else {
            memory.write(self.second, tail)
        }
    }
}

impl Domain {
    /// The vCPU changes state: accounts the time and refreshes the registered area.
    pub fn set_runstate<M: GuestMemory>(
        &mut self,
        vcpu: u32,
        kind: RunstateKind,
        tsc: u64,
        memory: &M,
    ) {
        let now = self.system_time(tsc);
        if let Some(state) = self.vcpus.get_mut(vcpu as usize) {
            if state.runstate.kind == kind {
                return;
            }
            let mut accounted = state.runstate.at(now);
            accounted.kind = kind;
            accounted.entered = now;
            state.runstate = accounted;
        }
        self.refresh_runstate(vcpu, memory);
    }

    fn refresh_runstate<M: GuestMemory>(&self, vcpu: u32, memory: &M) {
        let Some(state) = self.vcpus.get(vcpu as usize) else {
            return;
        };
        let Some(area) = state.runstate_area else {
            return;
        };
        let flags = if self.runstate_update_flag {
            [UPDATE, 0].as_slice()
        } else {
            [0].as_slice()
        };
        for &flag in flags {
            let (bytes, size) = state.runstate.encode(self.width, flag);
            let _ = area.write(memory, bytes.get(..size).unwrap_or(&bytes));
        }
    }

    pub(crate) fn get_runstate<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        vcpu: u32,
        argument: u64,
    ) -> Reply {
        let now = self.system_time(caller.env.tsc());
        let state = self.vcpus.get(vcpu as usize).ok_or(Errno::NoEnt)?;
        let (bytes, size) = state.runstate.at(now).encode(caller.width, 0);
        caller.write(argument, bytes.get(..size).unwrap_or(&bytes))?;
        Ok(0)
    }

    pub(crate) fn register_runstate<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        vcpu: u32,
        argument: u64,
    ) -> Reply {
        let linear = caller.fetch_word(argument, 0)?;
        let area = if linear == 0 {
            None
        } else {
            let first_bytes = (PAGE_SIZE - linear % PAGE_SIZE).min(SIZE as u64);
            let first = caller
                .env
                .translate(linear, Access::Write)
                .ok_or(Errno::Fault)?;
            let second = if first_bytes < SIZE as u64 {
                caller
                    .env
                    .translate(linear.wrapping_add(first_bytes), Access::Write)
                    .ok_or(Errno::Fault)?
            } else {
                0
            };
            Some(Area {
                first,
                first_bytes: first_bytes as usize,
                second,
            })
        };
        if let Some(state) = self.vcpus.get_mut(vcpu as usize) {
            state.runstate_area = area;
        }
        self.refresh_runstate(vcpu, caller.memory);
        Ok(0)
    }
}
