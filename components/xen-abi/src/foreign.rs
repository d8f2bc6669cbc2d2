//! The user's side of another domain's grants, for a driver domain: mappings at guest frames that the
//! guest names, and copies. What the granter's table says is the granter's VMM's business, which
//! [`Env`] reaches; here are the handles that the guest knows (Xen's maptrack) and what its arguments
//! mean (`public/grant_table.h`; a domain whose physical map is translated).

use alloc::collections::BTreeMap;
use core::task::Poll;

use crate::PAGE_SIZE;
use crate::access::Fields;
use crate::domain::Domain;
use crate::env::{Env, GrantToken};
use crate::grant::status;

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

/// What `gnttab_map_grant_ref` asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    pub host_address: u64,
    pub flags: u32,
    pub reference: u32,
    pub domid: u16,
}

impl Map {
    pub fn read(bytes: &[u8; 20]) -> Map {
        Map {
            host_address: bytes.u64_at(0),
            flags: bytes.u32_at(8),
            reference: bytes.u32_at(12),
            domid: bytes.u16_at(16),
        }
    }

    pub fn writes(&self) -> bool {
        self.flags & READONLY == 0
    }
}

impl Domain {
    /// `GNTTABOP_map_grant_ref` of a domain that can be reached: the handle.
    pub(crate) fn map_foreign<E: Env>(&mut self, env: &mut E, map: &Map) -> Poll<Result<u32, i16>> {
        if self.foreign.mappings.len() >= MOST {
            return Poll::Ready(Err(status::NO_DEVICE_SPACE));
        }
        let Some(gfn) = self.place_of(map) else {
            return Poll::Ready(Err(status::GENERAL_ERROR));
        };
        env.grant_open(map.domid, map.reference, map.writes())
            .map(|opened| self.placed(env, opened?, gfn))
    }

    /// The guest frame where a page of another domain is to be, if that can be.
    pub(crate) fn place_of(&self, map: &Map) -> Option<u64> {
        let gfn = map.host_address / PAGE_SIZE;
        (map.flags & !READONLY == HOST_MAP && self.is_mappable(gfn)).then_some(gfn)
    }

    /// The handle of a grant that is in use, once its page is where it is to be.
    fn placed<E: Env>(&mut self, env: &mut E, token: GrantToken, gfn: u64) -> Result<u32, i16> {
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
