//! `vmm_exit_null`: from the VMM's thread into a guest that exits at once, and back. The smallest
//! guest there is: one page of CPUID instructions at the address where a vCPU starts after a reset
//! (Intel SDM vol. 3, 9.1.4), in real mode. The VMM does the least a VMM can do: it steps over the
//! instruction.

use measure::{Meter, SAMPLES, Summary};
use sdk::abi::FRAME;
use sdk::abi::cap::Map;
use sdk::abi::vcpu::{Exit, group};
use sdk::field;
use sdk::memory;
use sdk::prelude::*;
use sdk::vcpu::StatePage;

/// CPUID.
const CODE: [u8; 2] = [0x0f, 0xa2];
/// Where the code's page is in the guest: the last page below 4 GiB.
const CODE_FRAME: u64 = 0xffff_f000;
/// Offset of that page in the code segment after a reset, whose base is 0xffff_0000.
const CODE_START: u64 = 0xf000;
const _: () = assert!(CODE.len() * (SAMPLES + 1) <= FRAME as usize);

/// Why the row could not be measured.
#[derive(Debug)]
pub enum Error {
    /// The core refused something.
    #[allow(dead_code, reason = "for the log")]
    Status(Status),
    /// The guest left its path: the exit, and where.
    #[allow(dead_code, reason = "for the log")]
    Exit(u64, u64),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Error::Status(status)
    }
}

/// A vCPU that stands before its first CPUID.
fn guest(env: &Env) -> Result<(Cap<cap::Vcpu>, StatePage), Status> {
    let own = env.memory();
    let code = memory::allocate(1)?;
    // SAFETY: a page of this component's own that was just mapped, writable, and that nothing
    // else refers to.
    let page = unsafe { &mut *(code.address as *mut [u8; FRAME as usize]) };
    for instruction in page.chunks_exact_mut(CODE.len()) {
        instruction.copy_from_slice(&CODE);
    }
    let space = own.address_space(SpaceKind::Guest)?;
    let frame = code.frames.copy(Rights::ALL)?;
    memory::map_into(own, space, frame, CODE_FRAME, Map::READ | Map::EXECUTE)?;
    let vcpu: Cap<cap::Vcpu> = own.retype(0)?;
    vcpu.configure(space)?;
    let mut page = StatePage::map(vcpu)?;
    // The state is that after a reset; only the instruction pointer is ours.
    vcpu.fetch(group::ALL)?;
    page.set(field!(deadline), FOREVER);
    page.set(field!(regs.rip), CODE_START);
    page.set(field!(modified), group::GENERAL);
    Ok((vcpu, page))
}

/// Measures one step over a CPUID, the run that follows, and its exit.
pub fn null(env: &Env, meter: Meter) -> Result<Summary, Error> {
    let (vcpu, mut page) = guest(env)?;
    vcpu.run()?;
    check(&page, CODE_START)?;
    let (mut refused, mut others) = (Ok(()), 0);
    let summary = meter.measure(
        || (),
        |()| {
            let next = page.get(field!(regs.rip)) + CODE.len() as u64;
            page.set(field!(regs.rip), next);
            page.set(field!(modified), group::GENERAL);
            // A VMM looks at whether it ran, and why it is back.
            match vcpu.run() {
                Ok(()) if page.get(field!(exit)) == Exit::Cpuid as u64 => {}
                Ok(()) => others += 1,
                Err(status) => refused = Err(status),
            }
        },
    );
    refused?;
    check(&page, CODE_START + (CODE.len() * SAMPLES) as u64)?;
    if others != 0 {
        log::warn!("{others} of {SAMPLES} runs ended without a CPUID");
    }
    Ok(summary)
}

/// The guest stands before the CPUID at `rip`, if every run exited by one.
fn check(page: &StatePage, rip: u64) -> Result<(), Error> {
    let (exit, at) = (page.get(field!(exit)), page.get(field!(regs.rip)));
    if exit == Exit::Cpuid as u64 && at == rip {
        Ok(())
    } else {
        Err(Error::Exit(exit, at))
    }
}
