//! IOMMUs: what devices reach, and what they may interrupt. The rest of the core calls these functions;
//! what differs between vendors stays behind [`Remapper`], chosen once at boot.
//!
//! Before the first component runs every function of every device is blocked, but for those that
//! firmware claims memory for, which reach that. Afterwards everything here is called with the kernel
//! lock held. Nothing waits for an IOMMU longer than a few microseconds; one that does not answer for a
//! second, or whose ring stays full, is taken for dead, and what it was asked is never done.

mod amdvi;
mod config;
mod memory;
mod vtd;

use crate::boot::remap::{Remapping, Reserved, function};
use crate::lock::Once;
use crate::paging::{DEVICES, DIRECT_MAP};
use crate::{apic, ioapic, time};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use memory::{Queue, Words};
use microvisor_abi::cap::Stopped;
use microvisor_objects::machine::{Answer, Ask, DmaTables};

/// What a vendor implements, for all IOMMUs of the machine together.
trait Remapper: Sync {
    /// Name, for the log.
    fn name(&self) -> &'static str;
    /// Tables of *dma* spaces.
    fn tables(&self) -> DmaTables;
    /// Interrupts are remapped.
    fn interrupts(&self) -> bool;
    /// The IOMMUs look into the caches of CPUs when they read tables.
    fn coherent(&self) -> bool;
    /// A ring for each IOMMU.
    fn queues(&self) -> &[Queue];
    /// An entry of a table of this level: a leaf for reads and writes, or the next table.
    fn entry(&self, physical: u64, level: u32, leaf: bool) -> u64;
    /// Writes what a function reaches.
    fn set(&self, function: u16, reach: Reach);
    /// Adds commands to forget what is cached of the function's entry.
    fn forget_function(&self, function: u16);
    /// Adds commands to forget translations of a domain.
    fn forget_domain(&self, domain: u16);
    /// Adds a command that writes `ticket` to the queue's status word when all before is done.
    fn add_wait(&self, queue: &Queue, ticket: u32);
    /// Lets a function, or nobody, send a message; adds commands. As `Machine::message`.
    fn message(&self, line: u32, function: Option<u16>) -> u64;
    /// Lets an I/O APIC interrupt as an ISA line; adds commands. High word of the redirection entry,
    /// if it is another than without remapping.
    fn line(&self, line: u32, io_apic: u8, level: bool) -> Option<u32>;
    /// Hands over what was blocked since the last time.
    fn faults(&self, each: &mut dyn FnMut(Fault));
    /// Switches it on: from here on devices reach what was set. Once, at the end of boot.
    fn enable(&self) -> Result<(), &'static str>;
}

/// What a function reaches.
#[derive(Clone, Copy)]
enum Reach {
    /// Nothing; its attempts are reported, or not.
    Nothing { quiet: bool },
    /// What the tables at `root` map.
    Tables { root: u64, domain: u16 },
}

/// Something that an IOMMU blocked.
pub struct Fault {
    /// Requester id.
    pub function: u16,
    /// Where, and why.
    pub why: Stopped,
    /// What the vendor's specification calls the reason.
    what: &'static str,
}

// There is one, in a static.
#[allow(clippy::large_enum_variant)]
enum Driver {
    VtD(vtd::VtD),
    AmdVi(amdvi::AmdVi),
}

static DRIVER: Once<Option<Driver>> = Once::new(None);
/// Ticket of the last thing asked.
static TICKET: AtomicU64 = AtomicU64::new(0);
/// An IOMMU stopped answering.
static DEAD: AtomicBool = AtomicBool::new(false);
/// What the IOMMUs had done when one was last waited for, and since when they have not done more.
static PROGRESS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Domain of the functions that reach what firmware reserved for them.
const RESERVED_DOMAIN: u16 = 255;
/// Most of one reserved range, bytes.
const RESERVED_MAX: u64 = 512 << 20;
/// Pages of registers of an IOMMU that are mapped.
pub const REGISTER_BYTES: u64 = 0x4000;

fn driver() -> Option<&'static dyn Remapper> {
    match DRIVER.get() {
        Some(Driver::VtD(driver)) => Some(driver),
        Some(Driver::AmdVi(driver)) => Some(driver),
        None => None,
    }
}

/// Where the registers of IOMMU `index` are mapped.
pub fn address(index: usize) -> u64 {
    DEVICES + (16 << 12) + index as u64 * REGISTER_BYTES
}

/// Blocks all devices, if there is an IOMMU. Boot CPU, before other CPUs run; registers are mapped,
/// clocks run.
pub fn setup(take: &mut dyn FnMut(u64) -> u64, found: &Remapping) {
    let what = if found.amd { "IVRS" } else { "DMAR" };
    if found.units.is_empty() {
        return log::warn!("NO IOMMU: a driver's device can reach all memory (ACPI has no {what})");
    }
    let target = apic::id();
    let made = match found.amd {
        true => amdvi::AmdVi::new(take, found, target).map(Driver::AmdVi),
        false => vtd::VtD::new(take, found, target).map(Driver::VtD),
    };
    let made = match made {
        Ok(made) => made,
        Err(why) => return log::warn!("NO IOMMU: a driver's device can reach all memory: {why}"),
    };
    // SAFETY: other CPUs do not run yet.
    unsafe { DRIVER.set(Some(made)) };
    let Some(driver) = driver() else { return };
    reserve(take, driver, found);
    if let Err(why) = driver.enable() {
        panic!("the IOMMU cannot be switched on: {why}");
    }
    let tables = driver.tables();
    log::info!(
        "{}: {} IOMMUs, {} bits, interrupt remapping {}; every device is blocked",
        driver.name(),
        found.units.len(),
        tables.bits,
        if driver.interrupts() { "on" } else { "OFF" },
    );
    if found.ignored > 0 {
        log::warn!("{what}: {} entries ignored", found.ignored);
    }
}

/// Functions that firmware reserves memory for reach that, and nothing else, until they are attached
/// to something.
fn reserve(take: &mut dyn FnMut(u64) -> u64, driver: &dyn Remapper, found: &Remapping) {
    let mut root = None;
    for r in &found.reserved {
        let functions = match r.functions {
            Some(functions) => functions,
            None => match follow(r) {
                Some(function) => (function, function),
                None => continue,
            },
        };
        log::info!(
            "reserved memory {:#x}-{:#x} for {} to {}",
            r.start,
            r.end,
            Name(functions.0),
            Name(functions.1)
        );
        if r.end - r.start > RESERVED_MAX || r.end > 1 << driver.tables().bits {
            log::warn!("that is too much, or too far: it is not granted");
            continue;
        }
        let root = *root.get_or_insert_with(|| Words::take(take, 4096));
        // Small pages throughout: ranges of several devices may overlap.
        let mut at = r.start & !0xfff;
        while at < r.end {
            let mut table = root;
            for level in (1..=4).rev() {
                let place = (at >> (12 + 9 * (level - 1)) & 511) * 8;
                let mut entry = table.read64(place);
                if entry == 0 || level == 1 {
                    let leaf = level == 1;
                    let to = if leaf { at } else { take(4096) };
                    entry = driver.entry(to, level, leaf);
                    table.write64(place, entry);
                    table.write_back(place, 8);
                }
                let next = DIRECT_MAP + (entry & 0x000f_ffff_ffff_f000);
                // SAFETY: above the leaf: a table that was just taken, or was when its entry was made;
                // the leaf's own address is not used.
                table = unsafe { Words::new(next) };
            }
            at += 4096;
        }
        for function in functions.0..=functions.1 {
            let domain = RESERVED_DOMAIN;
            let root = root.physical();
            driver.set(function, Reach::Tables { root, domain });
        }
    }
}

/// The function at the end of a path through bridges.
fn follow(r: &Reserved) -> Option<u16> {
    let (mut bus, hops) = (r.path.0, &r.path.1);
    let (last, bridges) = hops.split_last()?;
    for bridge in bridges {
        bus = config::secondary_bus(function(bus, *bridge))?;
    }
    Some(function(bus, *last))
}

/// As `Machine::dma_tables`.
pub fn tables() -> Option<DmaTables> {
    driver().map(|driver| driver.tables())
}

/// The IOMMU is AMD's; interrupts are remapped.
pub fn facts() -> (bool, bool) {
    let amd = matches!(DRIVER.get(), Some(Driver::AmdVi(_)));
    (amd, driver().is_some_and(|driver| driver.interrupts()))
}

/// As `Machine::ask`.
pub fn ask(ask: Ask) {
    let Some(driver) = driver() else { return };
    match ask {
        Ask::Attach {
            function,
            domain,
            root,
        } => {
            let root = root.0;
            driver.set(function, Reach::Tables { root, domain });
            driver.forget_function(function);
            driver.forget_domain(domain);
        }
        Ask::Block {
            function,
            domain,
            quiet,
        } => {
            driver.set(function, Reach::Nothing { quiet });
            driver.forget_function(function);
            driver.forget_domain(domain);
            driver.forget_domain(RESERVED_DOMAIN);
        }
        Ask::Forget { domain } => driver.forget_domain(domain),
    }
    commit(driver);
}

/// Lets the IOMMUs carry out what was added to their rings.
fn commit(driver: &dyn Remapper) {
    let ticket = TICKET.load(Relaxed) + 1;
    for queue in driver.queues() {
        driver.add_wait(queue, ticket as u32);
        queue.publish();
    }
    TICKET.store(ticket, Relaxed);
}

/// As `Machine::asked`.
pub fn asked() -> u64 {
    TICKET.load(Relaxed)
}

/// As `Machine::answered`.
pub fn answered(ticket: u64) -> Answer {
    let Some(driver) = driver() else {
        return Answer::Done;
    };
    let begin = time::now();
    loop {
        // What was asked for since is less than half of what 32 bits can count.
        let behind = |queue: &Queue| (ticket as u32).wrapping_sub(queue.done()) as i32 > 0;
        if DEAD.load(Relaxed) {
            return Answer::Never;
        }
        if !driver.queues().iter().any(behind) {
            return Answer::Done;
        }
        if time::now() > begin + time::tsc_khz() / 50 {
            break;
        }
        core::hint::spin_loop();
    }
    let sum = driver
        .queues()
        .iter()
        .map(|queue| u64::from(queue.done()))
        .sum();
    if PROGRESS[0].swap(sum, Relaxed) != sum || PROGRESS[1].load(Relaxed) == 0 {
        PROGRESS[1].store(begin, Relaxed);
    } else if begin > PROGRESS[1].load(Relaxed) + time::tsc_khz() * 1000 {
        log::error!("the IOMMU does not answer: what it may still reach stays out of use");
        DEAD.store(true, Relaxed);
        return Answer::Never;
    }
    Answer::Waiting
}

/// As `Machine::wrote_table`.
pub fn wrote_table(root: u64, address: u64) {
    if driver().is_none_or(|driver| driver.coherent()) {
        return;
    }
    let mut table = DIRECT_MAP + root;
    for level in (1..=4).rev() {
        let place = (address >> (12 + 9 * (level - 1)) & 511) * 8;
        // SAFETY: the table of a space that exists, of which entries are read only.
        let words = unsafe { Words::new(table) };
        // A table that was just hung in is new from its first word on.
        words.write_back(0, 4096);
        let entry = words.read64(place);
        if entry & 3 == 0 || entry & 1 << 7 != 0 {
            return;
        }
        table = DIRECT_MAP + (entry & 0x000f_ffff_ffff_f000);
    }
}

/// As `Machine::message`.
pub fn message(line: u32, function: Option<u16>) -> u64 {
    match driver().filter(|driver| driver.interrupts()) {
        Some(driver) => {
            let message = driver.message(line, function);
            commit(driver);
            message
        }
        None => ioapic::message(line),
    }
}

/// An I/O APIC is about to be told of an ISA line: the high word of its redirection entry, if that is
/// another with remapping.
pub fn line(line: u32, io_apic: u8, level: bool) -> Option<u32> {
    let driver = driver().filter(|driver| driver.interrupts())?;
    let high = driver.line(line, io_apic, level);
    commit(driver);
    high
}

/// An IOMMU interrupted: reports what it blocked.
pub fn faults(each: &mut dyn FnMut(u16, Stopped)) {
    let Some(driver) = driver() else { return };
    driver.faults(&mut |fault| {
        let Stopped {
            address,
            write,
            reason,
        } = fault.why;
        log::error!(
            "IOMMU: {} stopped: {} at {address:#x}: {} ({reason:#x})",
            Name(fault.function),
            if write { "write" } else { "read" },
            fault.what,
        );
        each(fault.function, fault.why);
    });
}

/// A function as people write it.
struct Name(u16);

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Name(id) = *self;
        write!(f, "{:02x}:{:02x}.{}", id >> 8, id >> 3 & 31, id & 7)
    }
}
