//! AMD-Vi (AMD IOMMU specification 3.08): a device table with an entry for every function, I/O page
//! tables, the command buffer, the event log, and an interrupt table for each function that may
//! interrupt. All units share the tables.

use super::memory::{Queue, Words};
use super::{Fault, Reach, Remapper, Remapping, address, config};
use crate::apic::{VECTOR_IOMMU, VECTOR_LINES};
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};
use heapless::Vec;
use microvisor_abi::cap::{LINES, LINES_ISA, Stopped};
use microvisor_objects::machine::DmaTables;

// Registers (3.4).
const DEVICE_TABLE: u64 = 0x00;
const COMMANDS: u64 = 0x08;
const EVENTS: u64 = 0x10;
const CONTROL: u64 = 0x18;
const EXCLUSION: u64 = 0x20;
const FEATURES: u64 = 0x30;
const COMMAND_HEAD: u64 = 0x2000;
const COMMAND_TAIL: u64 = 0x2008;
const EVENT_HEAD: u64 = 0x2010;
const EVENT_TAIL: u64 = 0x2018;
const STATUS: u64 = 0x2020;

/// Command buffer and event log are a page each, 256 entries: their length field.
const PAGE_OF_ENTRIES: u64 = 8 << 56;
/// Bytes of the device table: 65536 entries.
const TABLE_BYTES: u64 = 65536 * 32;
/// An interrupt table is as large as it can be, 2048 entries of 4 bytes, so that no index leads out
/// of it.
const INTERRUPTS_BYTES: u64 = 2048 * 4;
const INTERRUPTS_LENGTH: u64 = 11;
/// Functions that may interrupt at once, I/O APICs included.
const SENDERS: usize = 64;
/// Reports after which nothing is heard any more.
const FAULTS_MAX: u32 = 1000;

/// All units.
pub struct AmdVi {
    units: Vec<Words, 8>,
    queues: Vec<Queue, 8>,
    devices: Words,
    /// The root of tables that map nothing.
    nothing: Words,
    /// Interrupt tables: number 0 allows nothing, the others belong to `senders`.
    interrupts: Words,
    /// Function and number of its lines, by number of the table less 1.
    senders: [(AtomicU16, AtomicU16); SENDERS],
    /// Number of the table in which a line has an entry, 0 for none.
    lines: [AtomicU16; LINES as usize],
    events: Vec<Words, 8>,
    functions: Vec<u16, 8>,
    bits: u8,
    target: u32,
    io_apics: Vec<(u8, u16), 8>,
    faults: AtomicU32,
}

impl AmdVi {
    /// Stops what firmware left running, and makes tables that block everything.
    pub fn new(
        take: &mut dyn FnMut(u64) -> u64,
        found: &Remapping,
        target: u32,
    ) -> Result<AmdVi, &'static str> {
        let mut amdvi = AmdVi {
            units: Vec::new(),
            queues: Vec::new(),
            devices: Words::take(take, TABLE_BYTES),
            nothing: Words::take(take, 4096),
            interrupts: Words::take(take, (SENDERS as u64 + 1) * INTERRUPTS_BYTES),
            senders: [const { (AtomicU16::new(0), AtomicU16::new(0)) }; SENDERS],
            lines: [const { AtomicU16::new(0) }; LINES as usize],
            events: Vec::new(),
            functions: found.units.iter().map(|unit| unit.function).collect(),
            bits: 48,
            target,
            io_apics: found.io_apics.clone(),
            faults: AtomicU32::new(0),
        };
        for index in 0..found.units.len() {
            // SAFETY: the unit's registers, mapped for ever; nobody else uses them.
            let unit = unsafe { Words::new(address(index)) };
            if unit.read64(FEATURES) == u64::MAX {
                return Err("AMD-Vi: a unit has no registers");
            }
            unit.write64(CONTROL, 0);
            // Firmware may have let devices into a range past all tables.
            unit.write64(EXCLUSION, 0);
            let _ = amdvi.units.push(unit);
            let registers = (COMMAND_HEAD, COMMAND_TAIL);
            let _ = amdvi.queues.push(Queue::new(take, unit, registers, true));
            let _ = amdvi.events.push(Words::take(take, 4096));
        }
        for function in 0..=u16::MAX {
            amdvi.set(function, Reach::Nothing { quiet: false });
            amdvi.set_interrupts(function, 0);
        }
        Ok(amdvi)
    }

    fn entry_of(&self, function: u16) -> Words {
        self.devices.add(u64::from(function) * 32)
    }

    fn push(&self, command: [u64; 2]) {
        for queue in &self.queues {
            queue.push(command);
        }
    }

    /// INVALIDATE_DEVTAB_ENTRY and INVALIDATE_INTERRUPT_TABLE (2.4.2, 2.4.5).
    fn forget_entry(&self, function: u16) {
        self.push([2 << 60 | u64::from(function), 0]);
        self.push([5 << 60 | u64::from(function), 0]);
    }

    /// The function's interrupts go through the table with this number (table 7, bits 191:128): valid,
    /// its length, its place, remapped.
    fn set_interrupts(&self, function: u16, table: u16) {
        let table = self.interrupts.add(u64::from(table) * INTERRUPTS_BYTES);
        let entry = 1 | INTERRUPTS_LENGTH << 1 | table.physical() | 2 << 60;
        self.entry_of(function).write64(16, entry);
    }

    /// Where a line's entry is in a table: at the vector, for the ISA lines of an I/O APIC, whose
    /// entries have to name it (2.2.5.2); else at the line's own number.
    fn index(line: u32) -> u64 {
        u64::from(line)
            + if u64::from(line) < LINES_ISA {
                VECTOR_LINES.into()
            } else {
                0
            }
    }

    /// Lets a function send an interrupt; false if too many do.
    fn allow(&self, line: u32, function: u16) -> bool {
        let Some(number) = self.lines.get(line as usize) else {
            return false;
        };
        if number.load(Relaxed) != 0 {
            return true;
        }
        let used = |sender: &(AtomicU16, AtomicU16)| sender.1.load(Relaxed) != 0;
        let own = |s: &(AtomicU16, AtomicU16)| used(s) && s.0.load(Relaxed) == function;
        let found = self.senders.iter().position(own);
        let Some(at) = found.or_else(|| self.senders.iter().position(|s| !used(s))) else {
            return false;
        };
        let (owner, count) = &self.senders[at];
        owner.store(function, Relaxed);
        count.fetch_add(1, Relaxed);
        number.store(at as u16 + 1, Relaxed);
        // Enabled, fixed, physical (table 20).
        let vector = u32::from(VECTOR_LINES) + line;
        let entry = 1 | (self.target & 0xff) << 8 | vector << 16;
        self.interrupt_entry(at as u16 + 1, line).write32(0, entry);
        self.set_interrupts(function, at as u16 + 1);
        self.forget_entry(function);
        true
    }

    fn interrupt_entry(&self, table: u16, line: u32) -> Words {
        let table = self.interrupts.add(u64::from(table) * INTERRUPTS_BYTES);
        table.add(AmdVi::index(line) * 4)
    }

    fn refuse(&self, line: u32) {
        let Some(number) = self.lines.get(line as usize) else {
            return;
        };
        let table = number.swap(0, Relaxed);
        let Some((function, count)) = self.senders.get(usize::from(table).wrapping_sub(1)) else {
            return;
        };
        self.interrupt_entry(table, line).write32(0, 0);
        let function = function.load(Relaxed);
        if count.fetch_sub(1, Relaxed) == 1 {
            self.set_interrupts(function, 0);
        }
        self.forget_entry(function);
    }

    fn event(&self, event: [u64; 2], each: &mut dyn FnMut(Fault)) {
        let code = (event[0] >> 60) as u8;
        if !matches!(code, 1 | 2 | 8) {
            return log::error!("IOMMU: event {code:#x}: {event:#x?}");
        }
        each(Fault {
            function: event[0] as u16,
            why: Stopped {
                address: event[1] & !0xfff,
                write: event[0] >> 53 & 1 != 0,
                reason: code,
            },
            what: match code {
                2 if event[0] >> 51 & 1 != 0 => "an interrupt that it may not send",
                2 => "not mapped",
                1 => "its entry is malformed",
                _ => "a malformed request",
            },
        });
    }
}

impl Remapper for AmdVi {
    fn name(&self) -> &'static str {
        "AMD-Vi"
    }

    fn tables(&self) -> DmaTables {
        DmaTables {
            amd: true,
            bits: self.bits,
            largest: 30,
        }
    }

    fn interrupts(&self) -> bool {
        true
    }

    fn coherent(&self) -> bool {
        true
    }

    fn queues(&self) -> &[Queue] {
        &self.queues
    }

    fn entry(&self, physical: u64, level: u32, leaf: bool) -> u64 {
        let next = if leaf { 0 } else { u64::from(level - 1) };
        physical | 1 | next << 9 | 3 << 61
    }

    fn set(&self, function: u16, reach: Reach) {
        let entry = self.entry_of(function);
        // Valid, translated through four levels, readable and writable or neither (table 7). An entry
        // that is not valid would let everything pass.
        let [low, high] = match reach {
            Reach::Nothing { quiet } => [self.nothing.physical(), u64::from(quiet) << 34],
            Reach::Tables { root, domain } => [root | 3 << 61, domain.into()],
        };
        let valid = 3 | 4 << 9;
        if let Reach::Nothing { .. } = reach {
            entry.write64(0, low | valid);
            entry.write64(8, high);
        } else {
            entry.write64(8, high);
            entry.write64(0, low | valid);
        }
    }

    fn forget_function(&self, function: u16) {
        self.forget_entry(function);
    }

    fn forget_domain(&self, domain: u16) {
        // INVALIDATE_IOMMU_PAGES: all of it, directories included (2.4.3).
        let command = 3 << 60 | u64::from(domain) << 32;
        self.push([command, 0x7fff_ffff_ffff_f003]);
    }

    fn add_wait(&self, queue: &Queue, ticket: u32) {
        // COMPLETION_WAIT with a store (2.4.1).
        queue.push([1 << 60 | queue.status() | 1, ticket.into()]);
    }

    fn message(&self, line: u32, function: Option<u16>) -> u64 {
        match function {
            Some(function) if !self.allow(line, function) => 0,
            // The data is the index.
            Some(_) => 0xfee0_0000 | AmdVi::index(line) << 32,
            None => {
                self.refuse(line);
                0
            }
        }
    }

    fn line(&self, line: u32, io_apic: u8, _: bool) -> Option<u32> {
        match self.io_apics.iter().find(|(id, _)| *id == io_apic) {
            Some((_, function)) => {
                self.allow(line, *function);
            }
            None => log::warn!("IVRS does not know I/O APIC {io_apic}: its lines are blocked"),
        }
        None
    }

    fn faults(&self, each: &mut dyn FnMut(Fault)) {
        for (unit, log) in self.units.iter().zip(&self.events) {
            // Cleared first: what comes later interrupts again.
            unit.write64(STATUS, 3);
            let mut head = unit.read64(EVENT_HEAD) & 0xff0;
            while head != unit.read64(EVENT_TAIL) & 0xff0 {
                self.event([log.read64(head), log.read64(head + 8)], each);
                head = (head + 16) % 4096;
                unit.write64(EVENT_HEAD, head);
                if self.faults.fetch_add(1, Relaxed) == FAULTS_MAX {
                    log::error!("IOMMU: too many reports; no more are heard");
                    unit.write64(CONTROL, unit.read64(CONTROL) & !(1 << 3));
                }
            }
        }
    }

    fn enable(&self) -> Result<(), &'static str> {
        let all = self.units.iter().zip(&self.queues).zip(&self.events);
        for (((unit, queue), events), function) in all.zip(&self.functions) {
            unit.write64(
                DEVICE_TABLE,
                self.devices.physical() | (TABLE_BYTES / 4096 - 1),
            );
            unit.write64(COMMANDS, queue.ring() | PAGE_OF_ENTRIES);
            unit.write64(EVENTS, events.physical() | PAGE_OF_ENTRIES);
            for register in [COMMAND_HEAD, COMMAND_TAIL, EVENT_HEAD, EVENT_TAIL] {
                unit.write64(register, 0);
            }
            if !config::enable_msi(*function, self.target, VECTOR_IOMMU) {
                log::warn!("AMD-Vi cannot interrupt: what it blocks is not reported");
            }
            // Event log and its interrupt, coherent reads of tables, commands; then translation.
            let control = 1 << 2 | 1 << 3 | 1 << 10 | 1 << 12;
            unit.write64(CONTROL, control);
            unit.write64(CONTROL, control | 1);
        }
        Ok(())
    }
}
