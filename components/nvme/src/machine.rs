//! The controller on the machine: its registers and messages, got from `pci`.

use alloc::string::ToString;

use block_driver::Failed;
use block_driver::engine::Device;
use block_driver::function::{Given, pci};
use block_driver::server;
use idl::pci::Bar;
use nvm_express::controller::{Controller, Failure, Machine, message};
use nvm_express::layout::{Capabilities, QUEUES_MOST, register};
use sdk::abi::FRAME;
use sdk::dma::{Region, Space};
use sdk::mmio::Registers;
use sdk::prelude::*;
use sdk::time;

/// Between two looks at a controller that is waited for.
const PAUSE_MICROSECONDS: u64 = 100;
/// Pages of doorbells at most; with those of all queues further apart, fewer queues are used.
const DOORBELL_PAGES: u64 = 128;

/// Registers, and the doorbells behind them.
pub struct Window {
    registers: Registers,
    doorbells: Registers,
}

impl Machine for Window {
    fn read(&self, offset: u64) -> u32 {
        match offset.checked_sub(register::DOORBELLS) {
            None => self.registers.read32(offset),
            Some(offset) => self.doorbells.read32(offset),
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset.checked_sub(register::DOORBELLS) {
            None => self.registers.write32(offset, value),
            Some(offset) => self.doorbells.write32(offset, value),
        }
    }

    fn bytes(&self) -> u64 {
        register::DOORBELLS + self.doorbells.bytes()
    }

    fn now(&self) -> u64 {
        server::now()
    }

    fn pause(&mut self) {
        let pause = time::microseconds(PAUSE_MICROSECONDS);
        // Without sleep it is looked at sooner.
        let _ = time::sleep_until(time::now().saturating_add(pause));
    }
}

/// Maps the registers, which are in the first base address register.
fn window(given: &Given) -> Result<Window, Failed> {
    let [Bar::Memory { bytes }, ..] = given.function.bars else {
        return Err("its registers are not in memory".into());
    };
    let registers = given.registers(0, 0, FRAME)?;
    let cap = u64::from(registers.read32(register::CAP))
        | u64::from(registers.read32(register::CAP + 4)) << 32;
    let capabilities = Capabilities::parse(cap).map_err(|why| why.to_string())?;
    let most = bytes.min(register::DOORBELLS + DOORBELL_PAGES * FRAME);
    let all = capabilities.bytes(QUEUES_MOST).min(most);
    let bytes = all.saturating_sub(register::DOORBELLS);
    let doorbells = given.registers(0, register::DOORBELLS, bytes)?;
    Ok(Window {
        registers,
        doorbells,
    })
}

/// Brings the controller up. `space` maps what it may use, `memory` is for its queues.
pub fn start(
    env: &Env,
    given: &Given,
    space: &Space,
    memory: Region,
) -> Result<Controller<Window, Region>, Failed> {
    let messages = given.function.vectors;
    let wanted = u16::try_from(env.machine.cpus).unwrap_or(QUEUES_MOST);
    let wanted = wanted.clamp(1, QUEUES_MOST);
    let failed = |failure: Failure| failure.to_string();
    let mut controller =
        Controller::stopped(window(given)?, memory, wanted, messages).map_err(failed)?;
    given.attach(env, space)?;
    for queue in 1..=wanted {
        if let Some(message) = message(queue, messages) {
            given.message(env, message)?;
        }
    }
    given.bus.enable().map_err(pci("it may not use the bus"))?;
    let said = controller.bring_up().map_err(failed)?;
    let shape = controller.geometry();
    log::info!(
        "{}: {} ({}): {} blocks of {} bytes{}{}, {} queue(s), {}",
        given.place(),
        said.model,
        said.serial,
        shape.blocks,
        shape.block_bytes,
        if shape.read_only { ", read-only" } else { "" },
        if shape.discard.is_some() {
            ", can discard"
        } else {
            ""
        },
        shape.queues,
        given.manner(memory.bus()),
    );
    Ok(controller)
}
