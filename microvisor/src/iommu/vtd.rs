//! Intel VT-d (specification 3.3): legacy root and context tables, second-level paging, queued
//! invalidation, interrupt remapping, fault records. All units share the tables.

use super::memory::{Queue, Words};
use super::{Fault, Reach, Remapper, Remapping, address};
use crate::apic::{self, VECTOR_IOMMU, VECTOR_LINES};
use crate::time;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use heapless::Vec;
use microvisor_abi::cap::Stopped;
use microvisor_objects::machine::DmaTables;

// Registers (11.4).
const CAP: u64 = 0x08;
const ECAP: u64 = 0x10;
const GCMD: u64 = 0x18;
const GSTS: u64 = 0x1c;
const RTADDR: u64 = 0x20;
const FSTS: u64 = 0x34;
const FECTL: u64 = 0x38;
const FEDATA: u64 = 0x3c;
const FEADDR: u64 = 0x40;
const FEUADDR: u64 = 0x44;
const PMEN: u64 = 0x64;
const IQH: u64 = 0x80;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const IRTA: u64 = 0xb8;

// Bits of the global command and status registers.
const TRANSLATION: u32 = 31;
const ROOT_TABLE: u32 = 30;
const QUEUE: u32 = 26;
const INTERRUPTS: u32 = 25;
const INTERRUPT_TABLE: u32 = 24;
/// What a command register has to be written with to leave everything as it is.
const STANDING: u32 = 0x96ff_ffff;

/// Size field of the interrupt table: 256 entries, a page.
const TABLE_SIZE: u64 = 7;
/// Reports after which a unit is left unheard: a device can cause them as fast as it likes.
const FAULTS_MAX: u32 = 1000;

/// All units.
pub struct VtD {
    units: Vec<Words, 8>,
    queues: Vec<Queue, 8>,
    root: Words,
    /// Context tables, one for each bus.
    contexts: Words,
    /// Interrupt remapping table, an entry for each line.
    remapping: Words,
    tables: DmaTables,
    interrupts: bool,
    coherent: bool,
    /// Destinations have 32 bits.
    extended: bool,
    target: u32,
    io_apics: Vec<(u8, u16), 8>,
    faults: AtomicU32,
}

fn wait(done: impl Fn() -> bool) -> Result<(), &'static str> {
    let limit = time::now() + time::tsc_khz() * 100;
    while !done() {
        if time::now() > limit {
            return Err("VT-d: a command is not carried out");
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// Sets or clears a bit by the global command register, and waits until the status says so.
fn command(unit: Words, bit: u32, on: bool) -> Result<(), &'static str> {
    let standing = unit.read32(GSTS) & STANDING & !(1 << bit);
    unit.write32(GCMD, standing | u32::from(on) << bit);
    wait(|| unit.read32(GSTS) >> bit & 1 == u32::from(on))
}

impl VtD {
    /// Looks at the units, stops what firmware left running, and makes tables that block everything.
    pub fn new(
        take: &mut dyn FnMut(u64) -> u64,
        found: &Remapping,
        target: u32,
    ) -> Result<VtD, &'static str> {
        let mut tables = DmaTables {
            amd: false,
            bits: 48,
            largest: 30,
        };
        let (mut interrupts, mut coherent, mut extended) = (found.interrupts, true, true);
        let mut units = Vec::new();
        for index in 0..found.units.len() {
            // SAFETY: the unit's registers, mapped for ever; nobody else uses them.
            let unit = unsafe { Words::new(address(index)) };
            let (cap, ecap) = (unit.read64(CAP), unit.read64(ECAP));
            if cap == u64::MAX || cap >> 10 & 1 == 0 {
                return Err("VT-d: a unit has no tables of four levels");
            }
            if ecap >> 1 & 1 == 0 || cap >> 4 & 1 != 0 {
                return Err("VT-d: a unit has no queued invalidation, or flushes write buffers");
            }
            tables.bits = tables.bits.min((cap >> 16 & 63) as u8 + 1);
            let largest = match cap >> 34 & 3 {
                3 => 30,
                1 => 21,
                _ => 12,
            };
            tables.largest = tables.largest.min(largest);
            interrupts &= ecap >> 3 & 1 != 0;
            extended &= ecap >> 4 & 1 != 0 && apic::is_x2apic();
            coherent &= ecap & 1 != 0;
            let _ = units.push(unit);
        }
        let mut queues = Vec::new();
        for unit in &units {
            for bit in [TRANSLATION, INTERRUPTS, QUEUE] {
                if unit.read32(GSTS) >> bit & 1 != 0 {
                    command(*unit, bit, false)?;
                }
            }
            let _ = queues.push(Queue::new(take, *unit, (IQH, IQT), coherent));
        }
        let vtd = VtD {
            root: Words::take(take, 4096),
            contexts: Words::take(take, 256 * 4096),
            remapping: Words::take(take, 4096),
            units,
            queues,
            tables,
            interrupts,
            coherent,
            extended,
            target,
            io_apics: found.io_apics.clone(),
            faults: AtomicU32::new(0),
        };
        for bus in 0..256 {
            // Present, and where the bus's context table is (9.1).
            vtd.root
                .write64(bus * 16, (vtd.contexts.physical() + bus * 4096) | 1);
        }
        vtd.root.write_back(0, 4096);
        vtd.contexts.write_back(0, 256 * 4096);
        vtd.remapping.write_back(0, 4096);
        Ok(vtd)
    }

    fn push(&self, command: [u64; 2]) {
        for queue in &self.queues {
            queue.push(command);
        }
    }

    /// Global invalidation of the interrupt entry cache (6.5.2.7).
    fn forget_interrupts(&self) {
        self.push([4, 0]);
    }

    /// An entry of the interrupt remapping table (9.10): fixed, physical, edge or level, checked
    /// against the whole requester id. Zero: nobody.
    fn remap(&self, line: u32, source: Option<Option<u16>>, level: bool) {
        let place = u64::from(line) * 16;
        let destination = match self.extended {
            true => self.target,
            false => (self.target & 0xff) << 8,
        };
        let vector = u64::from(VECTOR_LINES) + u64::from(line);
        let entry = source.map_or([0, 0], |source| {
            let low = 1 | u64::from(level) << 4 | vector << 16 | u64::from(destination) << 32;
            let checked = cfg!(not(control = "message-source"));
            let source = source.filter(|_| checked);
            [low, source.map_or(0, |source| 1 << 18 | u64::from(source))]
        });
        if entry
            == [
                self.remapping.read64(place),
                self.remapping.read64(place + 8),
            ]
        {
            return;
        }
        // Not present while the other half changes.
        self.remapping.write64(place, 0);
        self.remapping.write64(place + 8, entry[1]);
        self.remapping.write64(place, entry[0]);
        if !self.coherent {
            self.remapping.write_back(place, 16);
        }
        self.forget_interrupts();
    }

    fn enable_unit(&self, unit: Words, queue: &Queue) -> Result<(), &'static str> {
        unit.write64(RTADDR, self.root.physical());
        command(unit, ROOT_TABLE, true)?;
        unit.write64(IQT, 0);
        unit.write64(IQA, queue.ring());
        command(unit, QUEUE, true)?;
        // Contexts, translations and interrupt entries: everything (6.5.2).
        for command in [[1 | 1 << 4, 0], [2 | 1 << 4 | 3 << 6, 0], [4, 0]] {
            queue.push(command);
        }
        self.add_wait(queue, u32::MAX);
        queue.publish();
        wait(|| queue.done() == u32::MAX)?;
        // Tickets count from 1: what is done is behind them.
        self.add_wait(queue, 0);
        queue.publish();
        wait(|| queue.done() == 0)?;
        if self.interrupts {
            let table = self.remapping.physical() | u64::from(self.extended) << 11 | TABLE_SIZE;
            unit.write64(IRTA, table);
            command(unit, INTERRUPT_TABLE, true)?;
            command(unit, INTERRUPTS, true)?;
        }
        self.clear_faults(unit);
        unit.write32(FEDATA, VECTOR_IOMMU.into());
        unit.write32(FEADDR, 0xfee0_0000 | (self.target & 0xff) << 12);
        unit.write32(FEUADDR, self.target & !0xff);
        unit.write32(FECTL, 0);
        if cfg!(not(control = "dma-block")) {
            command(unit, TRANSLATION, true)?;
        }
        // Regions that firmware protected until now.
        unit.write32(PMEN, 0);
        Ok(())
    }

    /// Fault records: where they begin, and how many (11.4.2).
    fn records(unit: Words) -> impl Iterator<Item = u64> {
        let cap = unit.read64(CAP);
        let (first, count) = ((cap >> 24 & 0x3ff) * 16, (cap >> 40 & 0xff) + 1);
        (0..count).map(move |n| first + n * 16)
    }

    /// Hands over a fault record, if there is something in it, and empties it (11.4.7.6).
    fn record(&self, unit: Words, record: u64, each: &mut dyn FnMut(Fault)) {
        let high = unit.read64(record + 8);
        if high >> 63 == 0 {
            return;
        }
        let low = unit.read64(record);
        unit.write32(record + 12, 1 << 31);
        self.faults.fetch_add(1, Relaxed);
        let reason = (high >> 32) as u8;
        each(Fault {
            function: high as u16,
            why: Stopped {
                address: low & !0xfff,
                write: high >> 62 & 1 == 0,
                reason,
            },
            what: meaning(reason),
        });
    }

    fn clear_faults(&self, unit: Words) {
        for record in VtD::records(unit) {
            unit.write32(record + 12, 1 << 31);
        }
        // Overflow, and errors of the invalidation queue.
        unit.write32(FSTS, unit.read32(FSTS) & 0x71);
    }
}

impl Remapper for VtD {
    fn name(&self) -> &'static str {
        "VT-d"
    }

    fn tables(&self) -> DmaTables {
        self.tables
    }

    fn interrupts(&self) -> bool {
        self.interrupts
    }

    fn coherent(&self) -> bool {
        self.coherent
    }

    fn queues(&self) -> &[Queue] {
        &self.queues
    }

    fn entry(&self, physical: u64, level: u32, leaf: bool) -> u64 {
        physical | 3 | u64::from(leaf && level > 1) << 7
    }

    fn set(&self, function: u16, reach: Reach) {
        let place = u64::from(function) * 16;
        // 9.3: present, or no reports; second-level translation only; four levels.
        let [low, high] = match reach {
            Reach::Nothing { quiet } => [u64::from(quiet) << 1, 0],
            Reach::Tables { root, domain } => [root | 1, 2 | u64::from(domain) << 8],
        };
        self.contexts.write64(place, 0);
        self.contexts.write64(place + 8, high);
        self.contexts.write64(place, low);
        if !self.coherent {
            self.contexts.write_back(place, 16);
        }
    }

    fn forget_function(&self, _: u16) {
        // All contexts, and all translations, since the function may have been in any domain: rare.
        self.push([1 | 1 << 4, 0]);
        self.push([2 | 1 << 4 | 3 << 6, 0]);
    }

    fn forget_domain(&self, domain: u16) {
        // By domain, reads and writes drained (6.5.2.3).
        self.push([2 | 2 << 4 | 3 << 6 | u64::from(domain) << 16, 0]);
    }

    fn add_wait(&self, queue: &Queue, ticket: u32) {
        // With a status write (6.5.2.8).
        queue.push([5 | 1 << 5 | u64::from(ticket) << 32, queue.status()]);
    }

    fn message(&self, line: u32, function: Option<u16>) -> u64 {
        self.remap(line, function.map(Some), false);
        // Remappable format, the entry's number as handle (5.1.2.2).
        0xfee0_0000 | u64::from(line) << 5 | 1 << 4
    }

    fn line(&self, line: u32, io_apic: u8, level: bool) -> Option<u32> {
        let source = self.io_apics.iter().find(|(id, _)| *id == io_apic);
        self.remap(line, Some(source.map(|(_, function)| *function)), level);
        Some(line << 17 | 1 << 16)
    }

    fn faults(&self, each: &mut dyn FnMut(Fault)) {
        for unit in &self.units {
            // It interrupts again only after it was seen with nothing left to say.
            for _ in 0..64 {
                let status = unit.read32(FSTS);
                if status & 0x70 != 0 {
                    log::error!("IOMMU: error in the invalidation queue: {status:#x}");
                }
                unit.write32(FSTS, status & 0x71);
                VtD::records(*unit).for_each(|record| self.record(*unit, record, each));
                if unit.read32(FSTS) & 3 == 0 {
                    break;
                }
            }
            if self.faults.load(Relaxed) > FAULTS_MAX {
                log::error!("IOMMU: too many reports; no more are heard");
                unit.write32(FECTL, 1 << 31);
            }
        }
    }

    fn enable(&self) -> Result<(), &'static str> {
        let mut pairs = self.units.iter().zip(&self.queues);
        pairs.try_for_each(|(unit, queue)| self.enable_unit(*unit, queue))
    }
}

/// Fault reasons (appendix A).
fn meaning(reason: u8) -> &'static str {
    match reason {
        1 | 2 => "it is attached to nothing",
        5 => "not mapped writable",
        6 => "not mapped",
        4 => "beyond the widest address",
        0x20 | 0x23 | 0x24 => "a malformed interrupt",
        0x21 | 0x22 => "an interrupt that is nobody's",
        0x25 => "an interrupt that bypasses remapping",
        0x26 => "another device's interrupt",
        _ => "the specification knows why",
    }
}
