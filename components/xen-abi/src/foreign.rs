//! The user's side of another domain's grants, for a driver domain: mappings at guest frames that the
//! guest names, and copies. What the granter's table says is the granter's VMM's business, which
//! [`Env`] reaches; here are the handles that the guest knows (Xen's maptrack) and what its arguments
//! mean (`public/grant_table.h`; a domain whose physical map is translated).

use alloc::collections::BTreeMap;

use crate::PAGE_SIZE;
use crate::access::Caller;
use crate::domain::Domain;
use crate::env::{Env, GrantToken};
use crate::grant::status;
use crate::memory::GuestMemory;

/// `GNTMAP_host_map`, `GNTMAP_readonly`.
const HOST_MAP: u32 = 2;
const READONLY: u32 = 4;
/// Mappings that a domain has at most at a time: Xen's default has 1024 frames of them, of which a guest
/// here could not use more than its callers' quotas.
const MOST: usize = 16 << 10;

/// A mapped grant of another domain.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    token: GrantToken,
    gfn: u64,
}

/// All of them, by handle.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    mappings: BTreeMap<u32, Mapping>,
    next: u32,
}

/// One side of a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// This address of the own memory.
    Own(u64),
    /// This offset in another domain's page.
    Foreign(GrantToken, u64),
}

impl Place {
    /// So many bytes on.
    pub fn offset(self, bytes: u64) -> Place {
        match self {
            Place::Own(address) => Place::Own(address + bytes),
            Place::Foreign(token, at) => Place::Foreign(token, at + bytes),
        }
    }

    pub fn read<M: GuestMemory, E: Env>(
        self,
        caller: &mut Caller<M, E>,
        into: &mut [u8],
    ) -> Result<(), i16> {
        let done = match self {
            Place::Own(address) => caller.memory.read(address, into).is_ok(),
            Place::Foreign(token, at) => caller.env.grant_read(token, at as usize, into),
        };
        done.then_some(()).ok_or(status::GENERAL_ERROR)
    }

    pub fn write<M: GuestMemory, E: Env>(
        self,
        caller: &mut Caller<M, E>,
        from: &[u8],
    ) -> Result<(), i16> {
        let done = match self {
            Place::Own(address) => caller.memory.write(address, from).is_ok(),
            Place::Foreign(token, at) => caller.env.grant_write(token, at as usize, from),
        };
        done.then_some(()).ok_or(status::GENERAL_ERROR)
    }

    /// It is not used any more.
    pub fn close<E: Env>(self, env: &mut E) {
        if let Place::Foreign(token, _) = self {
            env.grant_close(token);
        }
    }
}

impl Domain {
    /// `GNTTABOP_map_grant_ref` of a domain that can be reached: the handle.
    pub(crate) fn map_foreign<E: Env>(
        &mut self,
        env: &mut E,
        domid: u16,
        reference: u32,
        flags: u32,
        host_address: u64,
    ) -> Result<u32, i16> {
        if self.foreign.mappings.len() >= MOST {
            return Err(status::NO_DEVICE_SPACE);
        }
        if flags & !READONLY != HOST_MAP {
            return Err(status::GENERAL_ERROR);
        }
        let gfn = host_address / PAGE_SIZE;
        if !self.is_mappable(gfn) {
            return Err(status::GENERAL_ERROR);
        }
        let token = env.grant_open(domid, reference, flags & READONLY == 0)?;
        if !env.grant_place(token, gfn) {
            env.grant_close(token);
            return Err(status::GENERAL_ERROR);
        }
        let foreign = &mut self.foreign;
        while foreign.mappings.contains_key(&foreign.next) {
            foreign.next = foreign.next.wrapping_add(1);
        }
        let handle = foreign.next;
        foreign.next = handle.wrapping_add(1);
        foreign.mappings.insert(handle, Mapping { token, gfn });
        Ok(handle)
    }

    /// `GNTTABOP_unmap_grant_ref`.
    pub(crate) fn unmap_foreign<E: Env>(
        &mut self,
        env: &mut E,
        host_address: u64,
        handle: u32,
    ) -> i16 {
        let Some(mapping) = self.foreign.mappings.get(&handle).copied() else {
            return status::BAD_HANDLE;
        };
        // Nothing is asked to be unmapped.
        if host_address == 0 {
            return status::OKAY;
        }
        if host_address / PAGE_SIZE != mapping.gfn {
            return status::GENERAL_ERROR;
        }
        self.foreign.mappings.remove(&handle);
        env.grant_close(mapping.token);
        status::OKAY
    }
}
