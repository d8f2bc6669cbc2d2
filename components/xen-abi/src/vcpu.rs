//! `vcpu_op` (`public/vcpu.h`): life cycle, registered areas, and the state of one vCPU.

use crate::access::{Caller, Fields, Reply};
use crate::call::Next;
use crate::domain::Domain;
use crate::env::Env;
use crate::errno::Errno;
use crate::event::VIRQS;
use crate::memory::{GuestMemory, SpecialFrame};
use crate::runstate::{Area, Runstate};
use crate::sched::Block;
use crate::shared_info::{LEGACY_VCPUS, VCPU_INFO_SIZE};
use crate::{PAGE_SIZE, start};

/// `VCPUOP_*`.
pub(crate) mod op {
    pub const INITIALISE: u32 = 0;
    pub const UP: u32 = 1;
    pub const DOWN: u32 = 2;
    pub const IS_UP: u32 = 3;
    pub const GET_RUNSTATE_INFO: u32 = 4;
    pub const REGISTER_RUNSTATE_MEMORY_AREA: u32 = 5;
    pub const SET_PERIODIC_TIMER: u32 = 6;
    pub const STOP_PERIODIC_TIMER: u32 = 7;
    pub const SET_SINGLESHOT_TIMER: u32 = 8;
    pub const STOP_SINGLESHOT_TIMER: u32 = 9;
    pub const REGISTER_VCPU_INFO: u32 = 10;
    pub const SEND_NMI: u32 = 11;
    pub const GET_PHYSID: u32 = 12;
    pub const REGISTER_VCPU_TIME_MEMORY_AREA: u32 = 13;
}

/// `SHUTDOWN_poweroff`.
const CODE_POWEROFF: u8 = 0;

/// Bytes in a `vcpu_time_info`.
const TIME_INFO_SIZE: u64 = 32;

#[derive(Debug)]
pub(crate) struct Vcpu {
    /// Address of its `vcpu_info`: in shared info, or where the guest registered it.
    pub info: Option<u64>,
    info_registered: bool,
    /// Guest-physical address of the second time record.
    pub time_area: Option<u64>,
    pub runstate_area: Option<Area>,
    pub runstate: Runstate,
    /// Port of each VIRQ, 0 for none.
    pub virqs: [u32; VIRQS],
    /// `HVMOP_set_evtchn_upcall_vector`, 0 for none.
    pub upcall_vector: u8,
    pub blocked: Option<Block>,
    pub singleshot: Option<u64>,
    /// Period and next deadline in ns.
    pub periodic: Option<(u64, u64)>,
    pub initialised: bool,
    pub up: bool,
}

impl Vcpu {
    pub fn new(index: u32) -> Vcpu {
        let info = SpecialFrame::SharedInfo.address() + u64::from(index) * VCPU_INFO_SIZE;
        Vcpu {
            info: (index < LEGACY_VCPUS).then_some(info),
            info_registered: false,
            time_area: None,
            runstate_area: None,
            runstate: Runstate::new(index == 0),
            virqs: [0; VIRQS],
            upcall_vector: 0,
            blocked: None,
            singleshot: None,
            periodic: None,
            initialised: index == 0,
            up: index == 0,
        }
    }
}

impl Domain {
    #[inline(never)]
    pub(crate) fn vcpu_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        command: u32,
        vcpu: u32,
        argument: u64,
    ) -> Reply {
        let state = self.vcpus.get_mut(vcpu as usize).ok_or(Errno::NoEnt)?;
        match command {
            op::INITIALISE => {
                if state.info.is_none() {
                    return Err(Errno::Inval);
                }
                let context = caller.fetch(argument)?;
                if state.initialised {
                    return Err(Errno::Exist);
                }
                let context = start::parse(&context)?;
                state.initialised = true;
                caller.env.initialise_vcpu(vcpu, context);
                Ok(0)
            }
            op::UP => {
                if !state.initialised {
                    return Err(Errno::Inval);
                }
                if !state.up {
                    state.up = true;
                    caller.env.vcpu_up(vcpu);
                }
                Ok(0)
            }
            op::DOWN => {
                self.bring_down(caller, vcpu);
                Ok(0)
            }
            op::IS_UP => Ok(i64::from(state.up)),
            op::SEND_NMI => {
                if argument != 0 {
                    return Err(Errno::Inval);
                }
                caller.env.nmi(vcpu);
                Ok(0)
            }
            op::REGISTER_VCPU_INFO => {
                let bytes: [u8; 16] = caller.fetch(argument)?;
                self.register_info(caller, vcpu, bytes.u64_at(0), bytes.u32_at(8))
            }
            op::REGISTER_VCPU_TIME_MEMORY_AREA => self.register_time(caller, vcpu, argument),
            op::GET_RUNSTATE_INFO => self.get_runstate(caller, vcpu, argument),
            op::REGISTER_RUNSTATE_MEMORY_AREA => self.register_runstate(caller, vcpu, argument),
            op::SET_PERIODIC_TIMER => self.set_periodic(caller, vcpu, argument),
            op::STOP_PERIODIC_TIMER => {
                state.periodic = None;
                self.deadlines += 1;
                Ok(0)
            }
            op::SET_SINGLESHOT_TIMER => self.set_singleshot(caller, vcpu, argument),
            op::STOP_SINGLESHOT_TIMER => {
                if vcpu != caller.vcpu {
                    return Err(Errno::Inval);
                }
                state.singleshot = None;
                self.deadlines += 1;
                Ok(0)
            }
            // Only for a dom0 whose vCPUs are pinned.
            op::GET_PHYSID => Err(Errno::Inval),
            _ => Err(Errno::NoSys),
        }
    }

    /// Whether the vCPU is up: it was started by `VCPUOP_up` or the VMM said so.
    #[must_use]
    pub fn is_up(&self, vcpu: u32) -> bool {
        self.vcpus.get(vcpu as usize).is_some_and(|state| state.up)
    }

    /// The VMM started the vCPU (a start-up IPI) or reset it (INIT), past `vcpu_op`.
    pub fn set_up(&mut self, vcpu: u32, up: bool) {
        self.unblock(vcpu);
        if let Some(state) = self.vcpus.get_mut(vcpu as usize) {
            state.up = up;
            state.initialised = up;
        }
    }

    fn bring_down<M: GuestMemory, E: Env>(&mut self, caller: &mut Caller<M, E>, vcpu: u32) {
        let others = (0u32..)
            .zip(&self.vcpus)
            .any(|(index, state)| index != vcpu && state.up);
        if !others {
            self.shut_down(CODE_POWEROFF, caller.env);
            caller.next = Next::Stop;
            return;
        }
        self.unblock(vcpu);
        if let Some(state) = self.vcpus.get_mut(vcpu as usize)
            && state.up
        {
            state.up = false;
            caller.env.vcpu_down(vcpu);
        }
        if vcpu == caller.vcpu {
            caller.next = Next::Stop;
        }
    }

    /// Xen's `map_vcpu_info`.
    fn register_info<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        vcpu: u32,
        gfn: u64,
        offset: u32,
    ) -> Reply {
        let align = self.word_of_shared_info();
        if u64::from(offset) > PAGE_SIZE - VCPU_INFO_SIZE
            || !u64::from(offset).is_multiple_of(align)
        {
            return Err(Errno::NxIo);
        }
        let state = self.vcpus.get_mut(vcpu as usize).ok_or(Errno::NoEnt)?;
        if state.info_registered || (vcpu != caller.vcpu && state.up) {
            return Err(Errno::Inval);
        }
        if !caller.env.is_ram(gfn) {
            return Err(Errno::Inval);
        }
        let address = gfn.checked_mul(PAGE_SIZE).ok_or(Errno::Inval)? + u64::from(offset);
        let mut content = [0; VCPU_INFO_SIZE as usize];
        match state.info {
            Some(old) => caller
                .memory
                .read(old, &mut content)
                .map_err(|_| Errno::Inval)?,
            // As a dummy vcpu_info starts: upcalls masked.
            None => content.put(1, &[1]),
        }
        // Everything counts as pending, so that nothing gets lost on the way.
        content.put(
            align as usize,
            [0xff; 8].get(..align as usize).unwrap_or(&[]),
        );
        caller
            .memory
            .write(address, &content)
            .map_err(|_| Errno::Inval)?;
        state.info = Some(address);
        state.info_registered = true;
        let _ = self.mark_events_pending(vcpu, caller.memory, caller.env);
        self.publish_time(vcpu, caller.memory);
        Ok(0)
    }

    fn register_time<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        vcpu: u32,
        argument: u64,
    ) -> Reply {
        let linear = caller.fetch_word(argument, 0)?;
        if linear == 0 {
            if let Some(state) = self.vcpus.get_mut(vcpu as usize) {
                state.time_area = None;
            }
            return Ok(0);
        }
        let physical = caller.physical(linear, TIME_INFO_SIZE)?;
        if let Some(state) = self.vcpus.get_mut(vcpu as usize) {
            state.time_area = Some(physical);
        }
        self.publish_time(vcpu, caller.memory);
        Ok(0)
    }
}
