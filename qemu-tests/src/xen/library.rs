//! The hostile guest's calls, made on the host to the library that answers them in the VMM, and
//! held against what Xen answered: all seeds in seconds, where the guest itself makes a few
//! in every run and all with `--full`.
//!
//! For `cargo test`. What a VMM adds is here as plain as can be: RAM with holes, special frames,
//! pages one to one, a clock that goes on. It must not be kinder to the calls than the VMM is.

use std::cell::RefCell;
use std::path::Path;

use guest_loader::layout::{
    CONSOLE_GFN, LAPIC, SPECIAL_PAGES, SPECIAL_START, STORE_GFN, memory_map,
};
use hostile_calls::domain::{Domain as Hostile, Machine};
use hostile_calls::layout::{PAGE, RAM, READ_ONLY};
use hostile_calls::places::OWN;
use xen_abi::{
    Access, Config, Domain, Env, GuestMemory, LinkId, MAX_GRANT_FRAMES, MapEntry, MapError, Mode,
    Next, Registers, RunstateKind, ServiceId, ShutdownReason, SpecialFrame, TscMode, Unbacked,
    Upcall, VcpuStart,
};

use super::ORACLE;
use super::differences::{Pairs, compare, parse};
use super::recorded::{OWN as OWN_NUMBER, Recorded};
use crate::hostile::guests::ALL_SEEDS;

/// Special frames of the ABI, and with the pages at which rings are.
const XEN_FRAMES: u64 = 1 + MAX_GRANT_FRAMES as u64;
const FRAMES: u64 = XEN_FRAMES + SPECIAL_PAGES;
/// Bits of address of the machine that the seeds were recorded in.
const ADDRESS_BITS: u8 = 40;
/// TSC ticks between two calls, about what one takes in the emulator.
const BETWEEN_CALLS: u64 = 20_000;

/// Memory of the guest.
struct Ram {
    ram: RefCell<Vec<u8>>,
    special: RefCell<Vec<u8>>,
    /// Whether RAM is at a frame now.
    plain: RefCell<Vec<bool>>,
    /// Where each special frame is mapped.
    at: RefCell<Vec<Option<u64>>>,
}

impl Ram {
    fn new() -> Ram {
        let mut at = vec![None; XEN_FRAMES as usize];
        at.extend((0..SPECIAL_PAGES).map(|page| Some(SPECIAL_START / PAGE + page)));
        Ram {
            ram: RefCell::new(vec![0; RAM as usize]),
            special: RefCell::new(vec![0; (FRAMES * PAGE) as usize]),
            plain: RefCell::new(vec![true; (RAM / PAGE) as usize]),
            at: RefCell::new(at),
        }
    }

    fn is_plain(&self, gfn: u64) -> bool {
        let gfn = usize::try_from(gfn).unwrap_or(usize::MAX);
        self.plain.borrow().get(gfn).copied().unwrap_or(false)
    }

    fn special_at(&self, gfn: u64) -> Option<usize> {
        self.at.borrow().iter().position(|at| *at == Some(gfn))
    }

    /// Calls `each` with `length` bytes of one page.
    fn piece<T>(
        &self,
        address: u64,
        length: usize,
        each: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, Unbacked> {
        let (store, offset) = match address.checked_sub(SpecialFrame::BASE) {
            Some(offset) => (&self.special, offset),
            None if self.is_plain(address / PAGE) => (&self.ram, address),
            None => {
                let frame = self.special_at(address / PAGE).ok_or(Unbacked)?;
                (&self.special, frame as u64 * PAGE + address % PAGE)
            }
        };
        let start = usize::try_from(offset).map_err(|_| Unbacked)?;
        let mut store = store.borrow_mut();
        let bytes = store
            .get_mut(start..)
            .and_then(|rest| rest.get_mut(..length));
        bytes.map(each).ok_or(Unbacked)
    }

    /// Calls `each` with the pieces of a range and their offsets, if all of it is there.
    fn pieces(
        &self,
        address: u64,
        length: usize,
        mut each: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), Unbacked> {
        address.checked_add(length as u64).ok_or(Unbacked)?;
        let piece = |done: usize| {
            let at = address + done as u64;
            (at, (length - done).min((PAGE - at % PAGE) as usize))
        };
        for check in [true, false] {
            let mut done = 0;
            while done < length {
                let (at, bytes) = piece(done);
                self.piece(at, bytes, |own| {
                    if !check {
                        each(done, own);
                    }
                })?;
                done += bytes;
            }
        }
        Ok(())
    }

    fn word(&self, address: u64, change: impl FnOnce(u32) -> u32) -> Result<u32, Unbacked> {
        if !address.is_multiple_of(4) {
            return Err(Unbacked);
        }
        self.piece(address, 4, |bytes| {
            let old = bytes.first_chunk().copied().map_or(0, u32::from_le_bytes);
            bytes.copy_from_slice(&change(old).to_le_bytes());
            old
        })
    }
}

impl GuestMemory for Ram {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unbacked> {
        self.pieces(address, buffer.len(), |at, own| {
            buffer[at..at + own.len()].copy_from_slice(own);
        })
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unbacked> {
        self.pieces(address, bytes.len(), |at, own| {
            own.copy_from_slice(&bytes[at..at + own.len()]);
        })
    }

    fn read_u32(&self, address: u64) -> Result<u32, Unbacked> {
        self.word(address, |old| old)
    }

    fn write_u32(&self, address: u64, value: u32) -> Result<(), Unbacked> {
        self.word(address, |_| value).map(|_| ())
    }

    fn fetch_or_u32(&self, address: u64, bits: u32) -> Result<u32, Unbacked> {
        self.word(address, |old| old | bits)
    }

    fn fetch_and_u32(&self, address: u64, bits: u32) -> Result<u32, Unbacked> {
        self.word(address, |old| old & bits)
    }

    fn compare_exchange_u32(&self, address: u64, current: u32, new: u32) -> Result<u32, Unbacked> {
        self.word(address, |old| if old == current { new } else { old })
    }
}

/// What a call causes: changes of the map, and nothing else that the guest could see, whose
/// interrupts are off.
struct Effects<'a> {
    ram: &'a Ram,
    tsc: &'a mut u64,
}

impl Env for Effects<'_> {
    fn tsc(&mut self) -> u64 {
        *self.tsc += 1;
        *self.tsc
    }

    fn translate(&mut self, linear: u64, access: Access) -> Option<u64> {
        if linear < 1 << 32 {
            Some(linear)
        } else if linear / PAGE == READ_ONLY / PAGE && access == Access::Read {
            Some(OWN + linear % PAGE)
        } else {
            // The guest maps more places above, but its calls name none of them.
            None
        }
    }

    fn map_special(&mut self, frame: SpecialFrame, gfn: u64) -> Result<(), MapError> {
        if gfn >> (ADDRESS_BITS - 12) != 0 || gfn == LAPIC / PAGE {
            return Err(MapError::OutOfRange);
        }
        let index = frame.index() as usize;
        if self.ram.at.borrow()[index] != Some(gfn) {
            self.ram.at.borrow_mut()[index] = None;
            self.remove_page(gfn);
            self.ram.at.borrow_mut()[index] = Some(gfn);
        }
        Ok(())
    }

    fn remove_page(&mut self, gfn: u64) -> bool {
        if let Some(frame) = self.ram.special_at(gfn) {
            self.ram.at.borrow_mut()[frame] = None;
            return true;
        }
        let there = self.ram.is_plain(gfn);
        if there {
            self.ram.plain.borrow_mut()[gfn as usize] = false;
        }
        there
    }

    fn populate_page(&mut self, gfn: u64) -> Result<bool, MapError> {
        if self.ram.is_plain(gfn) || self.ram.special_at(gfn).is_some() {
            return Ok(false);
        }
        if gfn >= RAM / PAGE {
            return Err(MapError::NoMemory);
        }
        self.ram.plain.borrow_mut()[gfn as usize] = true;
        let start = (gfn * PAGE) as usize;
        self.ram.ram.borrow_mut()[start..start + PAGE as usize].fill(0);
        Ok(true)
    }

    fn is_ram(&mut self, gfn: u64) -> bool {
        self.ram.is_plain(gfn)
    }

    fn shutdown(&mut self, reason: ShutdownReason) {
        panic!("the guest is to shut down: {reason:?}");
    }

    fn upcall(&mut self, _: u32, _: Upcall) {}
    fn wake(&mut self, _: u32) {}
    fn service_event(&mut self, _: ServiceId) {}
    fn channel_event(&mut self, _: LinkId, _: u16) {}
    fn console_write(&mut self, _: &[u8]) {}
    fn initialise_vcpu(&mut self, _: u32, _: VcpuStart) {}
    fn vcpu_up(&mut self, _: u32) {}
    fn vcpu_down(&mut self, _: u32) {}
    fn nmi(&mut self, _: u32) {}
    fn flush_tlb(&mut self, _: u128) {}
}

/// A machine with the library for a hypervisor.
struct Library {
    domain: Domain,
    ram: Ram,
    tsc: u64,
}

impl Library {
    fn new() -> Library {
        let ram = Ram::new();
        let config = Config {
            domid: OWN_NUMBER,
            vcpus: 1,
            pages: RAM / PAGE,
            max_pages: RAM / PAGE,
            max_gfn: RAM / PAGE - 1,
            physical_address_bits: ADDRESS_BITS,
            memory_map: memory_map(RAM)
                .iter()
                .map(|entry| MapEntry {
                    address: entry.start,
                    size: entry.bytes,
                    kind: entry.kind as u32,
                })
                .collect(),
            grant_frames: MAX_GRANT_FRAMES,
            // As the domain in which the seeds were recorded.
            max_grant_version: 1,
            tsc: TscMode {
                khz: 2_000_000,
                stable: false,
            },
            tsc_at_start: 0,
            wallclock_at_start: 1_700_000_000_000_000_000,
            store_gfn: STORE_GFN,
            console_gfn: CONSOLE_GFN,
            callback_lines: false,
            rdtscp: true,
            uuid: [0; 16],
        };
        let mut domain = Domain::new(config, &ram).expect("a valid configuration");
        let console = domain
            .alloc_service_port(ServiceId(1), &ram)
            .expect("a port");
        let store = domain
            .alloc_service_port(ServiceId(2), &ram)
            .expect("a port");
        domain.set_service_ports(store, console);
        let tsc = 10_000_000_000;
        domain.set_runstate(0, RunstateKind::Running, tsc, &ram);
        Library { domain, ram, tsc }
    }

    /// Time goes on, and fires what is due.
    fn passes(&mut self, ticks: u64) {
        self.tsc += ticks;
        let now = self.domain.system_time(self.tsc);
        if self.domain.next_deadline(0).is_some_and(|due| due <= now) {
            let Library { domain, ram, tsc } = self;
            domain.expire(0, ram, &mut Effects { ram, tsc });
        }
    }
}

impl Machine for Library {
    fn call(&mut self, number: u64, arguments: &[u64; 5]) -> i64 {
        let [a, b, c, d, e] = *arguments;
        let mut arguments = [a, b, c, d, e, 0];
        loop {
            self.passes(BETWEEN_CALLS);
            let registers = Registers {
                number,
                arguments,
                mode: Mode::Bits64,
                cpl: 0,
                interrupts: false,
            };
            let Library { domain, ram, tsc } = self;
            let outcome = domain.hypercall(0, &registers, ram, &mut Effects { ram, tsc });
            match outcome.next {
                Next::Restart => arguments = self.domain.arguments_left(),
                Next::Stop => panic!("call {number} {arguments:x?} ends the guest"),
                Next::Continue | Next::Yield | Next::Block => {
                    // Polls end in the past.
                    while self.domain.is_blocked(0) {
                        self.passes(BETWEEN_CALLS);
                    }
                    return outcome.result as i64;
                }
            }
        }
    }

    fn load(&self, address: u64) -> u32 {
        self.ram.read_u32(address).unwrap_or(u32::MAX)
    }

    fn store(&mut self, address: u64, value: u32) {
        let _ = self.ram.write_u32(address, value);
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        self.ram.write(address, bytes).expect("the argument area");
    }

    fn clear(&mut self, address: u64, bytes: u64) {
        let _ = self
            .ram
            .pieces(address, bytes as usize, |_, own| own.fill(0));
    }
}

/// All seeds, one after the other as the guest makes them: every answer is Xen's or has its reason,
/// and every reason is needed.
#[test]
fn all_seeds_are_answered_as_by_xen_or_with_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pairs = Pairs::default();
    let mut guest = Hostile::new(Library::new(), OWN_NUMBER);
    for seed in ALL_SEEDS {
        let mut log = Vec::new();
        guest.seed(seed.into(), |record| log.extend(record));
        let xen = Recorded::load(&root, seed).expect("a recorded seed");
        xen.compare(&Recorded::of_bytes(log), seed, &mut pairs);
    }
    let path = root.join(format!("{ORACLE}/differences-calls.txt"));
    let list = std::fs::read_to_string(path).expect("the list of reasons");
    let found = compare(&pairs, &parse(&list).expect("a list"));
    assert!(
        found.unexplained.is_empty() && found.unused.is_empty(),
        "without a reason: {:#?}\nnot needed: {:#?}",
        found.unexplained,
        found.unused
    );
}
