//! `domctl` (`public/domctl.h`) and the call that continues one of its operations: a toolstack's,
//! so refused, but with the error that Xen finds first. Most operations are refused for want of
//! privilege once their domain was found; some look at their arguments before.
//!
//! Called by the dispatch in `domain`. It must never change anything but the one structure that
//! it answers with a version.

use crate::access::{Caller, Fields, Reply};
use crate::domain::{Domain, SYSTEM};
use crate::env::Env;
use crate::errno::Errno;
use crate::event::PIRQS;
use crate::memory::GuestMemory;
use crate::privileged::{CTL_VERSION, DOMID_IO};

/// `XEN_DOMCTL_*`, those that are not answered like any other.
mod op {
    pub const CREATE_DOMAIN: u32 = 1;
    pub const GET_DOMAIN_INFO: u32 = 5;
    pub const SHADOW_OP: u32 = 10;
    pub const IRQ_PERMISSION: u32 = 19;
    pub const IOMEM_PERMISSION: u32 = 20;
    pub const IOPORT_PERMISSION: u32 = 21;
    pub const ASSIGN_DEVICE: u32 = 37;
    pub const BIND_PT_IRQ: u32 = 38;
    pub const MEMORY_MAPPING: u32 = 39;
    pub const IOPORT_MAPPING: u32 = 40;
    pub const TEST_ASSIGN_DEVICE: u32 = 45;
    pub const SET_TARGET: u32 = 46;
    pub const DEASSIGN_DEVICE: u32 = 47;
    pub const UNBIND_PT_IRQ: u32 = 48;
    pub const GET_DEVICE_GROUP: u32 = 50;
    pub const VM_EVENT_OP: u32 = 56;
}

/// Bytes of `struct xen_domctl`, and where its union begins: after command, version and domain.
const SIZE: usize = 144;
const UNION: usize = 16;
/// `DOMID_FIRST_RESERVED` and `DOMID_INVALID`.
const FIRST_RESERVED: u16 = 0x7ff0;
const DOMID_INVALID: u16 = 0x7ff4;
/// `XEN_VM_EVENT_GET_VERSION`, where the version goes, and `VM_EVENT_INTERFACE_VERSION`.
const VM_EVENT_GET_VERSION: u32 = 3;
const VM_EVENT_VERSION_AT: usize = UNION + 8;
const VM_EVENT_VERSION: u32 = 7;
/// Ports of the machine.
const MAX_IOPORTS: u32 = 0x1_0000;
/// Bits of a page's offset.
const PAGE_SHIFT: u32 = 12;

/// Which domain an operation found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The caller.
    Own,
    /// Domain 0, which is no HVM domain.
    System,
    /// None, where the operation needs none.
    None,
}

/// Whether a range that begins at `first` goes past the last number.
fn wraps(first: u64, count: u64) -> bool {
    first.wrapping_add(count).wrapping_sub(1) < first
}

impl Domain {
    #[inline(never)]
    pub(crate) fn domctl<M: GuestMemory, E: Env>(
        &self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let mut bytes: [u8; SIZE] = caller.fetch(argument)?;
        if bytes.u32_at(4) != CTL_VERSION {
            return Err(Errno::Acces);
        }
        let command = bytes.u32_at(0);
        let target = self.domctl_target(command, bytes.u16_at(8))?;
        if command == op::VM_EVENT_OP {
            // For the version nobody is asked who he is.
            if bytes.u32_at(UNION) == VM_EVENT_GET_VERSION {
                bytes.put(VM_EVENT_VERSION_AT, &VM_EVENT_VERSION.to_le_bytes());
                caller.write(argument, &bytes)?;
                return Ok(0);
            }
            if target == Target::None {
                return Err(Errno::Srch);
            }
        }
        self.domctl_arguments(command, target, bytes.get(UNION..).unwrap_or(&[]))?;
        Err(Errno::Perm)
    }

    /// `paging_domctl_cont`: the rest of a `shadow_op`, made as a call of its own.
    #[inline(never)]
    pub(crate) fn paging_domctl_cont<M: GuestMemory, E: Env>(
        &self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let bytes: [u8; SIZE] = caller.fetch(argument)?;
        if bytes.u32_at(4) != CTL_VERSION || bytes.u32_at(0) != op::SHADOW_OP {
            return Err(Errno::OpNotSupp);
        }
        self.domctl_target(op::SHADOW_OP, bytes.u16_at(8))?;
        Err(Errno::Perm)
    }

    /// The domain that is meant. `DOMID_SELF` is not taken here.
    fn domctl_target(&self, command: u32, domid: u16) -> Result<Target, Errno> {
        match (command, domid) {
            (op::CREATE_DOMAIN, _)
            | (op::ASSIGN_DEVICE | op::DEASSIGN_DEVICE, DOMID_IO)
            | (op::TEST_ASSIGN_DEVICE | op::VM_EVENT_OP, DOMID_INVALID) => Ok(Target::None),
            (_, SYSTEM) => Ok(Target::System),
            (_, own) if own == self.config.domid => Ok(Target::Own),
            (op::GET_DOMAIN_INFO, FIRST_RESERVED..) => Err(Errno::Inval),
            // That is answered for the next domain there is.
            (op::GET_DOMAIN_INFO, absent) if absent < self.config.domid => Ok(Target::Own),
            _ => Err(Errno::Srch),
        }
    }

    /// The error in an operation's arguments that Xen finds before it asks for privilege.
    fn domctl_arguments(&self, command: u32, target: Target, union: &[u8]) -> Result<(), Errno> {
        let is_hvm = target != Target::System;
        let refused = match command {
            op::IRQ_PERMISSION => (union.u32_at(0) >= PIRQS).then_some(Errno::Inval),
            op::IOMEM_PERMISSION => wraps(union.u64_at(0), union.u64_at(8)).then_some(Errno::Inval),
            op::IOPORT_PERMISSION => {
                let (first, count) = (union.u32_at(0), union.u32_at(4));
                let end = first.wrapping_add(count);
                (end <= first || end > MAX_IOPORTS).then_some(Errno::Inval)
            }
            op::MEMORY_MAPPING => {
                let (gfn, mfn, count) = (union.u64_at(0), union.u64_at(8), union.u64_at(16));
                let last = mfn.wrapping_add(count).wrapping_sub(1);
                let bits = u32::from(self.config.physical_address_bits).saturating_sub(PAGE_SHIFT);
                let beyond = (mfn | last).checked_shr(bits).unwrap_or(0) != 0;
                (wraps(mfn, count) || beyond || wraps(gfn, count)).then_some(Errno::Inval)
            }
            op::IOPORT_MAPPING if !is_hvm => Some(Errno::OpNotSupp),
            op::IOPORT_MAPPING => {
                let (guest, machine, count) = (union.u32_at(0), union.u32_at(4), union.u32_at(8));
                let each = guest | machine | count.wrapping_sub(1);
                let past = |first: u32| first.wrapping_add(count) > MAX_IOPORTS;
                (each >= MAX_IOPORTS || past(guest) || past(machine)).then_some(Errno::Inval)
            }
            op::BIND_PT_IRQ | op::UNBIND_PT_IRQ => (!is_hvm).then_some(Errno::Inval),
            op::SET_TARGET => match union.u16_at(0) {
                SYSTEM if target == Target::System => Some(Errno::Inval),
                SYSTEM => Some(Errno::OpNotSupp),
                own if own == self.config.domid => (target == Target::Own).then_some(Errno::Inval),
                _ => Some(Errno::Srch),
            },
            // The domain has no IOMMU context.
            op::GET_DEVICE_GROUP => Some(Errno::OpNotSupp),
            _ => None,
        };
        refused.map_or(Ok(()), Err)
    }
}
