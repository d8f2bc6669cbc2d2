//! `xen_version` (`public/version.h`, `public/features.h`): what a 4.17 tells an unprivileged
//! HVM/PVH domain.

use crate::access::{Caller, Fields, Reply};
use crate::call::Width;
use crate::domain::Domain;
use crate::env::Env;
use crate::errno::Errno;
use crate::memory::GuestMemory;

/// `XENVER_*`.
pub(crate) mod op {
    pub const VERSION: u32 = 0;
    pub const EXTRAVERSION: u32 = 1;
    pub const COMPILE_INFO: u32 = 2;
    pub const CAPABILITIES: u32 = 3;
    pub const CHANGESET: u32 = 4;
    pub const PLATFORM_PARAMETERS: u32 = 5;
    pub const GET_FEATURES: u32 = 6;
    pub const PAGESIZE: u32 = 7;
    pub const GUEST_HANDLE: u32 = 8;
    pub const COMMANDLINE: u32 = 9;
    pub const BUILD_ID: u32 = 10;
}

/// Major and minor version, as `XENVER_version` and CPUID give it.
pub(crate) const VERSION: u32 = 4 << 16 | 17;

const EXTRAVERSION: &[u8] = b".0-microvisor";
const CAPABILITIES: &[u8] =
    b"xen-3.0-x86_64 xen-3.0-x86_32p hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ";
/// What Xen answers for a text that the domain may not see.
const DENIED: &[u8] = b"<denied>\0";
/// `HYPERVISOR_VIRT_START`.
const VIRT_START: u64 = 0xffff_8000_0000_0000;

/// `XENFEAT_*` of submap 0 for a translated HVM domU: writable_page_tables,
/// auto_translated_physmap, hvm_callback_vector, hvm_safe_pvclock, memory_op_vnode_supported,
/// not_direct_mapped.
const FEATURES: u32 = 1 | 1 << 2 | 1 << 8 | 1 << 9 | 1 << 13 | 1 << 16;

impl Domain {
    #[inline(always)]
    pub(crate) fn xen_version<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        command: u32,
        argument: u64,
    ) -> Reply {
        if command == op::VERSION {
            // Guests also ask it to have their events looked at.
            return Ok(i64::from(VERSION));
        }
        self.other_version(caller, command, argument)
    }

    #[inline(never)]
    fn other_version<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        command: u32,
        argument: u64,
    ) -> Reply {
        match command {
            op::EXTRAVERSION => {
                let mut text = [0; 16];
                text.put(0, EXTRAVERSION);
                caller.write(argument, &text)?;
                Ok(0)
            }
            op::COMPILE_INFO => {
                // compiler[64], compile_by[16], compile_domain[32], compile_date[32].
                let mut text = [0; 144];
                text.put(0, b"rustc");
                text.put(64, b"microvisor");
                caller.write(argument, &text)?;
                Ok(0)
            }
            op::CAPABILITIES => {
                let mut text = [0; 1024];
                text.put(0, CAPABILITIES);
                caller.write(argument, &text)?;
                Ok(0)
            }
            op::CHANGESET => {
                let mut text = [0; 64];
                text.put(0, b"unavailable");
                caller.write(argument, &text)?;
                Ok(0)
            }
            op::PLATFORM_PARAMETERS => {
                // The compat value is that of 32-bit PV domains: none here.
                let start = match caller.width {
                    Width::Bits64 => VIRT_START,
                    Width::Bits32 => 0,
                };
                caller.store_word(argument, 0, start)?;
                Ok(0)
            }
            op::GET_FEATURES => {
                let submap = caller.fetch_u32(argument)?;
                if submap != 0 {
                    return Err(Errno::Inval);
                }
                caller.write(argument.wrapping_add(4), &FEATURES.to_le_bytes())?;
                Ok(0)
            }
            op::PAGESIZE if argument == 0 => Ok(4096),
            op::PAGESIZE => Err(Errno::Inval),
            op::GUEST_HANDLE => {
                let uuid = self.config.uuid;
                caller.write(argument, &uuid)?;
                Ok(0)
            }
            op::COMMANDLINE => {
                caller.write(argument, DENIED)?;
                Ok(0)
            }
            op::BUILD_ID => Err(Errno::Perm),
            _ => Err(Errno::NoSys),
        }
    }
}
