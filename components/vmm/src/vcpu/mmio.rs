//! Accesses that the guest's address space does not translate: the local APIC page is emulated,
//! other addresses read as all ones and ignore writes (as for a Xen domain without a device
//! model), memory that is just being re-mapped is tried again.

use sdk::abi::vcpu::{event, fault, group};
use sdk::field;
use sdk::time;
use sdk::vcpu::Field;
use x86_platform::apic::{self, Effect, LocalApic};
use x86_platform::decode::{Kind, Operation, Source};
use x86_platform::execute::{Operand, Progress, execute};
use x86_platform::registers::mask;

use super::{Handled, Interruption, Vcpu};

/// How often in a row memory that is mapped may fault: many times what re-mapping takes.
const RETRIES_MAX: u32 = 100_000;

/// General registers by number.
const REGISTERS: [Field; 16] = [
    field!(regs.rax),
    field!(regs.rcx),
    field!(regs.rdx),
    field!(regs.rbx),
    field!(regs.rsp),
    field!(regs.rbp),
    field!(regs.rsi),
    field!(regs.rdi),
    field!(regs.r8),
    field!(regs.r9),
    field!(regs.r10),
    field!(regs.r11),
    field!(regs.r12),
    field!(regs.r13),
    field!(regs.r14),
    field!(regs.r15),
];

/// The local APIC's page as an operand. Registers are 32 bits at multiples of 16 bytes; narrower
/// accesses reach their bytes, wider ones only the register (Xen's `vlapic_mmio_read`).
struct ApicPage<'a> {
    apic: &'a mut LocalApic,
    effect: Effect,
}

impl Operand for ApicPage<'_> {
    fn read(&mut self, address: u64, bytes: u8) -> u64 {
        let offset = (address % apic::PAGE_BYTES) as u32;
        if offset & 0xc != 0 {
            return 0;
        }
        let value = self.apic.mmio_read(offset & !3, time::now());
        u64::from(value >> ((offset & 3) * 8)) & mask(bytes)
    }

    fn write(&mut self, address: u64, bytes: u8, value: u64) {
        let offset = (address % apic::PAGE_BYTES) as u32;
        if offset & 0xc != 0 {
            return;
        }
        let (register, shift) = (offset & !3, (offset & 3) * 8);
        let now = time::now();
        let value = if bytes >= 4 && shift == 0 {
            value as u32
        } else {
            let kept = !((mask(bytes) as u32) << shift);
            self.apic.mmio_read(register, now) & kept | ((value & mask(bytes)) as u32) << shift
        };
        self.effect = self.apic.mmio_write(register, value, now);
    }
}

/// Nothing at all.
struct Nowhere;

impl Operand for Nowhere {
    fn read(&mut self, _address: u64, bytes: u8) -> u64 {
        mask(bytes)
    }
    fn write(&mut self, _address: u64, _bytes: u8, _value: u64) {}
}

impl Vcpu {
    pub(super) fn nested_fault(&mut self) -> Handled {
        let info = field!(info);
        let address = self.page.get_at(info, 0);
        let flags = self.page.get_at(info, 1);
        let ram = &self.shared.ram;
        let gfn = address / 4096;
        if ram.is_plain(gfn) || ram.special_of(gfn).is_some() {
            return self.try_again(address);
        }
        if flags & fault::FETCH != 0 {
            // Xen's emulator finds no instruction there.
            return Err(Interruption::INVALID_OPCODE);
        }
        if flags & fault::WALK != 0 {
            return Err(Interruption::Unsupported {
                what: "page tables outside memory",
                word: address,
            });
        }
        let write = flags & fault::WRITE != 0;
        if gfn != apic::BASE_ADDRESS / 4096 && self.shared.map.lock().stands_in(gfn, write) {
            return self.try_again(address);
        }
        if self.page.get(field!(delivering)) & event::VALID != 0 {
            // The access was not an instruction's but that of an event's delivery.
            return Err(Interruption::Unsupported {
                what: "event delivered through an address without memory",
                word: address,
            });
        }
        self.emulate(address, write)
    }

    fn try_again(&mut self, address: u64) -> Handled {
        let (last, count) = self.retry;
        let count = if last == address { count + 1 } else { 0 };
        self.retry = (address, count);
        if count > RETRIES_MAX {
            return Err(Interruption::Unsupported {
                what: "mapped memory faults",
                word: address,
            });
        }
        Err(Interruption::Again)
    }

    fn emulate(&mut self, address: u64, write: bool) -> Handled {
        let operation = self.operation()?;
        let in_apic = address & !(apic::PAGE_BYTES - 1) == apic::BASE_ADDRESS
            && self.apic.mode() == apic::Mode::XApic;
        if in_apic && self.move_word(&operation, address) {
            return self.skip(operation.length);
        }
        self.execute(&operation, address, write, in_apic)
    }

    /// Any other operation, on a copy of the registers.
    #[cold]
    #[inline(never)]
    fn execute(
        &mut self,
        operation: &Operation,
        address: u64,
        write: bool,
        in_apic: bool,
    ) -> Handled {
        let mode = self.mode()?;
        let mut registers = self.registers();
        let needs_segments = matches!(operation.kind, Kind::MoveString | Kind::Push);
        if needs_segments {
            self.need(group::SEGMENTS)?;
        }
        let mut linear = super::exits::Segmented {
            shared: self.shared,
            mode: &mode,
            rflags: registers.rflags,
            bases: [0; 6],
        };
        if needs_segments {
            linear.bases = self.segmented(&mode)?.bases;
        }
        let mut effect = Effect::None;
        let progress = if in_apic {
            let mut page = ApicPage {
                apic: &mut self.apic,
                effect: Effect::None,
            };
            let progress = execute(
                operation,
                &mut registers,
                address,
                write,
                &mut page,
                &mut linear,
            );
            effect = page.effect;
            progress
        } else {
            execute(
                operation,
                &mut registers,
                address,
                write,
                &mut Nowhere,
                &mut linear,
            )
        }?;
        self.set_registers(&registers);
        self.apic_effect(effect);
        if in_apic && write {
            self.set_deadline();
        }
        match progress {
            Progress::Done => self.skip(operation.length),
            Progress::Repeat => Ok(()),
        }
    }

    /// A plain 32-bit move between a register of the APIC and one of the CPU, which nearly all
    /// accesses are, without a copy of all registers. False: not such a move.
    #[inline]
    fn move_word(&mut self, operation: &Operation, address: u64) -> bool {
        if operation.bytes != 4 || address & 0xf != 0 {
            return false;
        }
        let offset = (address % apic::PAGE_BYTES) as u32;
        match operation.kind {
            Kind::Load {
                number,
                high: false,
                bytes: 4,
                signed: false,
            } => {
                let Some(field) = REGISTERS.get(usize::from(number)) else {
                    return false;
                };
                let value = self.apic.mmio_read(offset, time::now());
                self.page.set(*field, value.into());
            }
            Kind::Store(source) => {
                let value = match source {
                    Source::Immediate(value) => value,
                    Source::Register {
                        number,
                        high: false,
                    } => match REGISTERS.get(usize::from(number)) {
                        Some(field) => self.page.get(*field),
                        None => return false,
                    },
                    Source::Register { .. } => return false,
                };
                let effect = self.apic.mmio_write(offset, value as u32, time::now());
                self.apic_effect(effect);
                self.set_deadline();
            }
            _ => return false,
        }
        true
    }

    /// Carries out what a register write asks for.
    pub(super) fn apic_effect(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Ipi(ipi) => self.shared.deliver(&ipi, self.index),
            Effect::Rerouted => self.publish_route(),
        }
    }
}
