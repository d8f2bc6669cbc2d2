//! Hypercalls that are a toolstack's or dom0's: answered as Xen answers a domain that is neither,
//! in the order in which Xen checks. And `console_io`, `vm_assist`, which are small.

use crate::access::{Caller, Fields, Reply};
use crate::domain::{DOMID_SELF, Domain, SYSTEM};
use crate::env::Env;
use crate::errno::Errno;
use crate::memory::GuestMemory;

/// `XEN_SYSCTL_INTERFACE_VERSION` and `XEN_DOMCTL_INTERFACE_VERSION` of 4.17.
pub(crate) const CTL_VERSION: u32 = 0x15;
/// `XENPF_INTERFACE_VERSION`.
const PLATFORM_VERSION: u32 = 0x0300_0001;

/// Buffers that Xen's `do_dm_op` has room for.
const MOST_BUFFERS: u32 = 2;

const CONSOLEIO_WRITE: u32 = 0;
const CONSOLEIO_READ: u32 = 1;
/// Bytes written to the console before the guest is re-entered.
const CONSOLE_BATCH: u32 = 1024;
/// Bytes at a time, as in Xen.
const CONSOLE_CHUNK: u32 = 128;

const VMASST_ENABLE: u32 = 0;
const VMASST_DISABLE: u32 = 1;
/// `VMASST_TYPE_runstate_update_flag`, the only one for HVM domains.
const VMASST_RUNSTATE_UPDATE_FLAG: u32 = 5;

pub(crate) const DOMID_IO: u16 = 0x7ff1;
const DOMID_XEN: u16 = 0x7ff2;

impl Domain {
    #[inline(never)]
    pub(crate) fn platform_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let bytes: [u8; 8] = caller.fetch(argument)?;
        match bytes.u32_at(4) {
            PLATFORM_VERSION => Err(Errno::Perm),
            _ => Err(Errno::Acces),
        }
    }

    #[inline(never)]
    pub(crate) fn sysctl<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let bytes: [u8; 8] = caller.fetch(argument)?;
        match bytes.u32_at(4) {
            CTL_VERSION => Err(Errno::Perm),
            _ => Err(Errno::Acces),
        }
    }

    #[inline(never)]
    pub(crate) fn dm_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        domid: u16,
        buffers: u32,
        list: u64,
    ) -> Reply {
        match buffers {
            0 => return Err(Errno::NoData),
            1..=MOST_BUFFERS => {}
            _ => return Err(Errno::TooBig),
        }
        for index in 0..u64::from(buffers) {
            // struct xen_dm_op_buf: a handle and its size.
            let size = 2 * caller.word();
            let mut bytes = [0; 16];
            let bytes = bytes.get_mut(..size as usize).ok_or(Errno::Fault)?;
            caller.read(list.wrapping_add(index * size), bytes)?;
        }
        // DOMID_SELF is not taken here.
        match domid {
            // Not an HVM domain.
            SYSTEM => Err(Errno::Inval),
            own if own == self.config.domid => Err(Errno::Perm),
            _ => Err(Errno::Srch),
        }
    }

    /// Page-table operations are PV's: refused for a domain that is not.
    pub(crate) fn mmuext_op(&self, foreign: u32) -> Reply {
        match foreign as u16 {
            DOMID_SELF => Err(Errno::Inval),
            DOMID_IO | DOMID_XEN | SYSTEM => Err(Errno::Perm),
            _ => Err(Errno::Srch),
        }
    }

    /// Writing is allowed, as by a Xen built to be verbose; reading is for dom0.
    #[inline(never)]
    pub(crate) fn console_io<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        arguments: [u64; 6],
    ) -> Reply {
        let [command, count, buffer, ..] = arguments;
        match command as u32 {
            CONSOLEIO_WRITE => {}
            CONSOLEIO_READ => return Err(Errno::Perm),
            _ => return Err(Errno::Perm),
        }
        let count = count as u32;
        let mut done = 0;
        while done < count {
            if done >= CONSOLE_BATCH {
                let mut arguments = arguments;
                arguments[1] = u64::from(count - done);
                arguments[2] = buffer.wrapping_add(u64::from(done));
                self.restart(caller, arguments);
                return Ok(0);
            }
            let take = (count - done).min(CONSOLE_CHUNK) as usize;
            let mut chunk = [0; CONSOLE_CHUNK as usize];
            let Some(chunk) = chunk.get_mut(..take) else {
                return Err(Errno::Inval);
            };
            caller.read(buffer.wrapping_add(u64::from(done)), chunk)?;
            let mut kept = 0;
            for index in 0..take {
                let byte = chunk[index];
                if matches!(byte, b' '..=b'~' | b'\t' | b'\n') {
                    chunk[kept] = byte;
                    kept += 1;
                }
            }
            caller.env.console_write(&chunk[..kept]);
            done += take as u32;
        }
        Ok(0)
    }

    pub(crate) fn vm_assist(&mut self, command: u32, kind: u32) -> Reply {
        if kind != VMASST_RUNSTATE_UPDATE_FLAG {
            return Err(Errno::Inval);
        }
        self.runstate_update_flag = match command {
            VMASST_ENABLE => true,
            VMASST_DISABLE => false,
            _ => return Err(Errno::NoSys),
        };
        Ok(0)
    }
}
