//! A controller from its reset to its queues (3.5.1), and requests from then on. Every wait for it has
//! an end: for its resets the time that it asks for, for commands the engine's limit.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::fmt;

use block_driver::Failed;
use block_driver::engine::{self, Broken, Device, Full, Tag};
use block_driver::memory::Memory;
use idl::block::Geometry;
use idl::requests::{Checked, Operation, Status as Ended};

use crate::layout::{
    self, Capabilities, ControllerSaid, IDENTIFY, NamespaceSaid, PAGE, QUEUES_MOST, RangeMost,
    Unusable, admin, configuration, nvm, register, status,
};
use crate::pair::{self, Command, Data, Outcome, Pair};
use crate::prp::{Pages, Rest};

/// The controller's registers, and a clock.
pub trait Machine {
    /// Reads a register of 32 bits; all ones outside of those that there are.
    fn read(&self, offset: u64) -> u32;
    /// Writes a register of 32 bits; nothing outside.
    fn write(&mut self, offset: u64, value: u32);
    /// Bytes of registers, doorbells included.
    fn bytes(&self) -> u64;
    /// Milliseconds, from any start.
    fn now(&self) -> u64;
    /// Lets some time pass before the controller is looked at again: less than a millisecond.
    fn pause(&mut self);
}

/// Why a controller does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This driver cannot use it.
    Unusable(Unusable),
    /// It does not stop when it is told to.
    NotStopped,
    /// It does not become ready.
    NotReady,
    /// It says that it failed.
    Fatal,
    /// It refused a command.
    Refused(&'static str, Outcome),
    /// It did not answer a command.
    Silent(&'static str),
    /// It completed what it was not given.
    Broken,
    /// There is too little memory for its queues.
    Memory,
}

impl From<Unusable> for Failure {
    fn from(why: Unusable) -> Failure {
        Failure::Unusable(why)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unusable(why) => why.fmt(f),
            Failure::NotStopped => f.write_str("it does not come back from its reset"),
            Failure::NotReady => f.write_str("it does not become ready"),
            Failure::Fatal => f.write_str("it says that it failed (CSTS.CFS)"),
            Failure::Refused(what, outcome) => {
                write!(f, "it refuses to {what}: status {:#05x}", outcome.0)
            }
            Failure::Silent(what) => write!(f, "it does not answer when it is to {what}"),
            Failure::Broken => f.write_str("it completed what it was not given"),
            Failure::Memory => f.write_str("its queues need more memory: dma = \"2M\""),
        }
    }
}

/// Memory: the admin queues, answers to Identify, then the I/O queues.
const ANSWERS: u64 = 2 * PAGE;
const PAIRS: u64 = ANSWERS + IDENTIFY;
/// Bytes of memory for all queues.
pub const BYTES: u64 = PAIRS + QUEUES_MOST as u64 * pair::BYTES;
/// The longest that a controller gets for a reset: what CAP.TO can ask for, in milliseconds.
const PATIENCE_MOST: u64 = 255 * 500;
/// Refused requests that are logged.
const LOGGED: u32 = 16;

/// An I/O queue.
struct Line<M> {
    pair: Pair<M, Tag>,
    /// What the doorbell of the completion queue said last.
    told: u16,
}

/// A controller and its first active namespace.
pub struct Controller<R, M> {
    /// Its registers.
    pub machine: R,
    memory: M,
    capabilities: Capabilities,
    wanted: u16,
    messages: u16,
    admin: Pair<M, ()>,
    namespace: u32,
    geometry: Geometry,
    lines: Vec<Line<M>>,
    refused: u32,
}

impl<R: Machine, M: Memory> Controller<R, M> {
    /// A controller that was stopped and uses no memory until [`Controller::bring_up`]. It gets as
    /// many as `wanted` I/O queues, if it has them, in [`BYTES`] bytes of memory that begins with a
    /// page, and interrupts with one of `messages` that the caller can bind ([`message`]).
    pub fn stopped(machine: R, memory: M, wanted: u16, messages: u16) -> Result<Self, Failure> {
        let cap = [register::CAP, register::CAP + 4].map(|at| u64::from(machine.read(at)));
        let mut capabilities = Capabilities::parse(cap[0] | cap[1] << 32)?;
        if capabilities.tells_times {
            let times = u64::from(machine.read(register::CRTO) & 0xffff) * 500;
            capabilities.patience = capabilities.patience.max(times).min(PATIENCE_MOST);
        }
        if capabilities.bytes(1) > machine.bytes() {
            return Err(Unusable::Doorbells.into());
        }
        let queues = memory.part(0, ANSWERS).ok_or(Failure::Memory)?;
        let mut controller = Controller {
            machine,
            memory,
            capabilities,
            wanted: wanted.clamp(1, QUEUES_MOST),
            messages,
            admin: Pair::new(queues, 0, capabilities.entries),
            namespace: 0,
            geometry: Geometry {
                block_bytes: 512,
                blocks: 0,
                request_bytes: 512,
                read_only: true,
                write_cache: false,
                queues: 0,
                discard: None,
            },
            lines: Vec::new(),
            refused: 0,
        };
        controller.stop()?;
        Ok(controller)
    }

    /// Stops it: it forgets its commands and queues (3.7.2).
    fn stop(&mut self) -> Result<(), Failure> {
        self.lines.clear();
        let before = self.machine.read(register::CC);
        self.machine
            .write(register::CC, before & !configuration::ENABLE);
        self.await_ready(false)
    }

    fn await_ready(&mut self, ready: bool) -> Result<(), Failure> {
        let end = self.machine.now() + self.capabilities.patience;
        loop {
            let late = self.machine.now() > end;
            let status = self.machine.read(register::CSTS);
            if status == u32::MAX {
                return Err(Unusable::Gone.into());
            }
            if (status & status::READY != 0) == ready {
                return Ok(());
            }
            if ready && status & status::FATAL != 0 {
                return Err(Failure::Fatal);
            }
            if late {
                return Err(match ready {
                    true => Failure::NotReady,
                    false => Failure::NotStopped,
                });
            }
            self.machine.pause();
        }
    }

    /// From stopped to its queues. What it says of itself, for the log.
    pub fn bring_up(&mut self) -> Result<ControllerSaid, Failure> {
        let queues = self.memory.part(0, ANSWERS).ok_or(Failure::Memory)?;
        self.admin = Pair::new(queues, 0, self.capabilities.entries);
        let sizes = u32::from(self.admin.entries() - 1);
        self.machine.write(register::AQA, sizes | sizes << 16);
        for (at, address) in [
            (register::ASQ, self.admin.submissions()),
            (register::ACQ, self.admin.completions()),
        ] {
            self.machine.write(at, address as u32);
            self.machine.write(at + 4, (address >> 32) as u32);
        }
        self.machine
            .write(register::CC, configuration::ENTRIES | configuration::ENABLE);
        self.await_ready(true)?;
        let answer = self.identify("say what it is", admin::OF_CONTROLLER, 0)?;
        let said = ControllerSaid::parse(&answer)?;
        self.namespace = self.first_namespace()?;
        let answer = self.identify(
            "describe its namespace",
            admin::OF_NAMESPACE,
            self.namespace,
        )?;
        let namespace = NamespaceSaid::parse(&answer)?;
        let most = match said.hints {
            true => self.range_most()?,
            false => RangeMost::UNSAID,
        };
        let count = self.count_queues()?;
        for number in 1..=count {
            self.add_line(number)?;
        }
        self.geometry = layout::geometry(&said, &namespace, most, count);
        Ok(said)
    }

    /// An admin command, awaited. `what` is for whoever reads that it failed.
    fn command(&mut self, what: &'static str, command: &Command) -> Result<u32, Failure> {
        self.admin
            .submit(command, ())
            .map_err(|Full| Failure::Broken)?;
        let bell = self.capabilities.doorbell(0, false);
        self.machine.write(bell, self.admin.tail().into());
        let end = self.machine.now() + engine::LIMIT;
        loop {
            let late = self.machine.now() > end;
            if let Some(done) = self.admin.complete().map_err(|Broken| Failure::Broken)? {
                let bell = self.capabilities.doorbell(0, true);
                self.machine.write(bell, self.admin.head().into());
                return match done.outcome.is_good() {
                    true => Ok(done.result),
                    false => Err(Failure::Refused(what, done.outcome)),
                };
            }
            match self.machine.read(register::CSTS) {
                u32::MAX => return Err(Unusable::Gone.into()),
                status if status & status::FATAL != 0 => return Err(Failure::Fatal),
                _ if late => return Err(Failure::Silent(what)),
                _ => self.machine.pause(),
            }
        }
    }

    fn identify(&mut self, what: &'static str, about: u32, namespace: u32) -> Result<M, Failure> {
        let answer = self.memory.part(ANSWERS, IDENTIFY);
        let mut answer = answer.ok_or(Failure::Memory)?;
        // What it does not write is not what an answer before said.
        for offset in (0..IDENTIFY).step_by(8) {
            answer.write64(offset, 0);
        }
        let command = Command {
            opcode: admin::IDENTIFY,
            namespace,
            data: whole_page(answer.bus()),
            words: [about, 0, 0],
        };
        self.command(what, &command)?;
        Ok(answer)
    }

    fn first_namespace(&mut self) -> Result<u32, Failure> {
        // Before 1.1 namespaces were numbered from 1, all of them active.
        if self.machine.read(register::VS) < 0x1_0100 {
            return Ok(1);
        }
        let answer = self.identify("list its namespaces", admin::OF_ACTIVE, 0)?;
        match answer.read32(0) {
            0 | u32::MAX => Err(Unusable::NoNamespace.into()),
            first => Ok(first),
        }
    }

    /// How many blocks can be given up at once.
    fn range_most(&mut self) -> Result<RangeMost, Failure> {
        match self.identify("tell its limits", admin::OF_LIMITS, 0) {
            Ok(answer) => Ok(RangeMost::parse(&answer)),
            // It is of before they could be asked for.
            Err(Failure::Refused(..)) => Ok(RangeMost::UNSAID),
            Err(failure) => Err(failure),
        }
    }

    /// How many I/O queues there will be.
    fn count_queues(&mut self) -> Result<u16, Failure> {
        let reached = |count: &u16| self.capabilities.bytes(*count) <= self.machine.bytes();
        let wanted = (1..=self.wanted).rev().find(reached).unwrap_or(1);
        let most = u32::from(wanted - 1);
        let command = Command {
            opcode: admin::SET_FEATURES,
            namespace: 0,
            data: Data::None,
            words: [admin::NUMBER_OF_QUEUES, most | most << 16, 0],
        };
        let given = self.command("give queues", &command)?;
        // Both counts begin with 0, for 1.
        let least = (given as u16).min((given >> 16) as u16);
        Ok(least.min(wanted - 1) + 1)
    }

    fn add_line(&mut self, number: u16) -> Result<(), Failure> {
        let at = PAIRS + u64::from(number - 1) * pair::BYTES;
        let memory = self.memory.part(at, pair::BYTES).ok_or(Failure::Memory)?;
        let pair = Pair::new(memory, number, self.capabilities.entries);
        let size = u32::from(number) | u32::from(pair.entries() - 1) << 16;
        // In one piece of memory; with interrupts, if there are any.
        let mut completions = 1;
        if let Some(message) = message(number, self.messages) {
            completions |= 2 | u32::from(message) << 16;
        }
        let mut command = Command {
            opcode: admin::CREATE_COMPLETION,
            namespace: 0,
            data: whole_page(pair.completions()),
            words: [size, completions, 0],
        };
        self.command("make a completion queue", &command)?;
        command.opcode = admin::CREATE_SUBMISSION;
        command.data = whole_page(pair.submissions());
        command.words[1] = 1 | u32::from(number) << 16;
        self.command("make a submission queue", &command)?;
        self.lines.push(Line { pair, told: 0 });
        Ok(())
    }
}

/// The message of an I/O queue when there are so many. Message 0 is the admin queue's, which nobody
/// waits for, so that it is used only if there is no other.
pub fn message(queue: u16, messages: u16) -> Option<u16> {
    Some(queue.min(messages.checked_sub(1)?))
}

fn whole_page(bus: u64) -> Data {
    Data::Pages(Pages {
        first: bus,
        rest: Rest::Nothing,
    })
}

/// What a request's end is to clients (3.3.3.2.1, and the NVM command set's own codes).
fn ended(outcome: Outcome) -> Ended {
    match outcome.0 {
        0 => Ended::Done,
        // Invalid command opcode.
        0x001 => Ended::Operation,
        0x080 => Ended::Range,
        // Namespace is write protected; attempted write to read only range.
        0x020 | 0x182 => Ended::ReadOnly,
        _ => Ended::Device,
    }
}

impl<R: Machine, M: Memory> Device for Controller<R, M> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn queues(&self) -> usize {
        self.lines.len()
    }

    fn has_room(&self, queue: usize) -> bool {
        let line = self.lines.get(queue);
        line.is_some_and(|line| line.pair.has_room())
    }

    fn submit(&mut self, queue: usize, request: &Checked, bus: u64, tag: Tag) -> Result<(), Full> {
        let line = self.lines.get_mut(queue).ok_or(Full)?;
        let (block, blocks) = (
            request.block,
            request.bytes / self.geometry.block_bytes.max(1),
        );
        let moved = || -> Result<(Data, [u32; 3]), Full> {
            let pages = Pages::of(bus, request.bytes).ok_or(Full)?;
            // The number of blocks is counted from 0.
            let last = blocks.checked_sub(1).ok_or(Full)?;
            let words = [block as u32, (block >> 32) as u32, last];
            Ok((Data::Pages(pages), words))
        };
        let (opcode, (data, words)) = match request.operation {
            Operation::Read => (nvm::READ, moved()?),
            Operation::Write => (nvm::WRITE, moved()?),
            Operation::Flush => (nvm::FLUSH, (Data::None, [0; 3])),
            // One range, and the number of ranges is counted from 0, too.
            Operation::Discard => {
                let range = Data::Range { block, blocks };
                let words = [0, nvm::DEALLOCATE, 0];
                (nvm::DATASET_MANAGEMENT, (range, words))
            }
        };
        let command = Command {
            opcode,
            namespace: self.namespace,
            data,
            words,
        };
        line.pair.submit(&command, tag)
    }

    fn announce(&mut self, queue: usize) {
        if let Some(line) = self.lines.get(queue) {
            let bell = self.capabilities.doorbell(line.pair.number(), false);
            self.machine.write(bell, line.pair.tail().into());
        }
    }

    fn complete(&mut self, queue: usize) -> Result<Option<(Tag, Ended)>, Broken> {
        let Some(line) = self.lines.get_mut(queue) else {
            return Ok(None);
        };
        let Some(done) = line.pair.complete()? else {
            if line.told != line.pair.head() {
                line.told = line.pair.head();
                let bell = self.capabilities.doorbell(line.pair.number(), true);
                self.machine.write(bell, line.told.into());
            }
            return Ok(None);
        };
        if !done.outcome.is_good() && self.refused < LOGGED {
            self.refused += 1;
            log::warn!("a request ends with status {:#05x}", done.outcome.0);
        }
        Ok(Some((done.token, ended(done.outcome))))
    }

    fn fault(&self) -> Option<&'static str> {
        match self.machine.read(register::CSTS) {
            u32::MAX => Some("the controller is not there any more"),
            status if status & status::FATAL != 0 => Some("the controller failed (CSTS.CFS)"),
            status if status & status::READY == 0 => Some("the controller stopped"),
            _ => None,
        }
    }

    fn recover(&mut self) -> Result<(), Failed> {
        let again = self.stop().and_then(|()| self.bring_up());
        again.map(|_| ()).map_err(|failure| failure.to_string())
    }

    fn halt(&mut self) {
        let _ = self.stop();
    }

    fn now(&self) -> u64 {
        self.machine.now()
    }
}
