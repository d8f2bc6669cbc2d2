//! The device on the machine: brought up from reset to its queues (virtio 1.2, 3.1.1).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use idl::block::Geometry;
use idl::pci::{Function, PciClient};
use idl::{CallError, ConnectError};
use sdk::abi::FRAME;
use sdk::abi::cap::Stopped;
use sdk::dma::{Region, Space};
use sdk::mmio::Registers;
use sdk::prelude::*;
use sdk::time;
use virtio_block::layout::{self, Part, Place, Said, block, choose, common, geometry, status};
use virtio_block::queue::{self, Memory, Queue};

use crate::server::Token;

/// How long a device may take to reset.
const RESET_MICROSECONDS: u64 = 10_000_000;
/// Bit of the own notification for queue 0; the others follow. With [`queue_bits`].
pub const QUEUE_BIT: u64 = 1;
/// Bit for the IOMMU's word that it stopped the device.
pub const STOPPED_BIT: u64 = 1 << 40;

/// Queue memory. A type of its own, because neither trait nor type is this crate's.
pub struct Shared(Region);

impl Memory for Shared {
    fn read8(&self, offset: u64) -> u8 {
        self.0.read8(offset)
    }
    fn read16(&self, offset: u64) -> u16 {
        self.0.read16(offset)
    }
    fn read32(&self, offset: u64) -> u32 {
        self.0.read32(offset)
    }
    fn write8(&mut self, offset: u64, value: u8) {
        self.0.write8(offset, value);
    }
    fn write16(&mut self, offset: u64, value: u16) {
        self.0.write16(offset, value);
    }
    fn write32(&mut self, offset: u64, value: u32) {
        self.0.write32(offset, value);
    }
    fn write64(&mut self, offset: u64, value: u64) {
        self.0.write64(offset, value);
    }
}

/// A queue and the register that announces it.
pub struct Line {
    pub queue: Queue<Shared, Token>,
    notify: Registers,
    number: u16,
}

impl Line {
    /// Tells the device to look at the queue.
    pub fn announce(&self) {
        self.notify.write16(0, self.number);
    }
}

/// A device that works.
pub struct Device {
    pub geometry: Geometry,
    pub queues: Vec<Line>,
    /// The device interrupts; otherwise it has to be looked at.
    pub interrupts: bool,
    right: Cap<cap::Device>,
    common: Registers,
}

/// Why there is none.
pub type Failed = String;

fn pci<E: core::fmt::Debug>(what: &str) -> impl Fn(CallError<E, Status>) -> Failed + '_ {
    move |error| format!("{what}: {error:?}")
}

fn core(what: &str) -> impl Fn(Status) -> Failed + '_ {
    move |status| format!("{what}: {status:?}")
}

type Bus = PciClient<EndpointTransport>;

/// The function and a connection to the one that gave it.
pub fn open(env: &Env) -> Result<(Bus, Function, Cap<cap::Device>), Failed> {
    loop {
        match PciClient::connect(env.transport("pci")) {
            Ok(bus) => {
                let (function, right) = bus.open().map_err(pci("no function"))?;
                return Ok((bus, function, right));
            }
            Err(ConnectError::Failure(idl::Failure::Transport(Status::Restarted))) => {}
            Err(error) => return Err(format!("no bus: {error:?}")),
        }
    }
}

/// Maps the registers that a capability tells of.
fn registers(bus: &Bus, place: &Place) -> Result<Registers, Failed> {
    let first = u64::from(place.offset) / FRAME;
    let end = (u64::from(place.offset) + u64::from(place.bytes)).div_ceil(FRAME);
    let pages: Result<Vec<_>, Failed> = (first..end)
        .map(|page| {
            let given = bus.page(place.bar, page as u32);
            given.map_err(pci("registers are not given"))
        })
        .collect();
    let mapped = Registers::map(&pages?).map_err(core("registers are not mapped"))?;
    let offset = u64::from(place.offset) - first * FRAME;
    let part = mapped.part(offset, place.bytes.into());
    part.ok_or_else(|| String::from("registers are not inside of their pages"))
}

struct Parts {
    common: Registers,
    notify: Registers,
    multiplier: u32,
    block: Registers,
}

fn parts(bus: &Bus, function: &Function) -> Result<Parts, Failed> {
    let mut found: [Option<(Registers, u32)>; 3] = [None; 3];
    for index in 0..function.vendor_capabilities {
        let bytes = bus.vendor_capability(index).map_err(pci("capability"))?;
        let Some(place) = Place::parse(&bytes.0) else {
            continue;
        };
        let slot = match place.part {
            Part::Common => &mut found[0],
            Part::Notify => &mut found[1],
            Part::Device => &mut found[2],
        };
        // The first of each kind is the one to use (4.1.4.1).
        if slot.is_none() {
            *slot = Some((registers(bus, &place)?, place.multiplier));
        }
    }
    match found {
        [
            Some((common, _)),
            Some((notify, multiplier)),
            Some((block, _)),
        ] if common.bytes() >= common::BYTES => Ok(Parts {
            common,
            notify,
            multiplier,
            block,
        }),
        _ => Err("it is no virtio device of today: registers are missing".into()),
    }
}

fn reset(common: Registers) -> Result<(), Failed> {
    common.write8(common::STATUS, 0);
    let end = time::now().saturating_add(time::microseconds(RESET_MICROSECONDS));
    while common.read8(common::STATUS) != 0 {
        if time::now() > end {
            return Err("it does not come back from its reset".into());
        }
    }
    Ok(())
}

fn features(common: Registers, protected: bool) -> Result<u64, Failed> {
    let mut offered = 0;
    for half in 0..2u32 {
        common.write32(common::DEVICE_FEATURE_SELECT, half);
        offered |= u64::from(common.read32(common::DEVICE_FEATURE)) << (32 * half);
    }
    let chosen = choose(offered, protected).map_err(|why| match why {
        layout::Unusable::Legacy => "it is of before virtio 1.0",
        layout::Unusable::PastIommu => {
            "it would go past the IOMMU (QEMU: give it iommu_platform=on,disable-legacy=on)"
        }
    })?;
    for half in 0..2u32 {
        common.write32(common::DRIVER_FEATURE_SELECT, half);
        common.write32(common::DRIVER_FEATURE, (chosen >> (32 * half)) as u32);
    }
    let so_far = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    common.write8(common::STATUS, so_far);
    match common.read8(common::STATUS) & status::FEATURES_OK {
        0 => Err("it does not take the features".into()),
        _ => Ok(chosen),
    }
}

/// What a block device says of itself, read until it did not change meanwhile (2.5.1).
fn said(common: Registers, block: Registers) -> Said {
    const GENERATION: u64 = 21;
    let mut last = Said::default();
    for _ in 0..16 {
        let before = common.read8(GENERATION);
        last = Said {
            capacity: u64::from(block.read32(block::CAPACITY))
                | u64::from(block.read32(block::CAPACITY + 4)) << 32,
            size_max: block.read32(block::SIZE_MAX),
            block_size: block.read32(block::BLOCK_SIZE),
            queues: block.read16(block::QUEUES),
        };
        if common.read8(GENERATION) == before {
            break;
        }
    }
    last
}

impl Device {
    /// Brings it up. `space` maps what it may use, `memory` is for its queues.
    pub fn start(
        env: &Env,
        (bus, function, right): (Bus, Function, Cap<cap::Device>),
        space: &Space,
        memory: Region,
    ) -> Result<Device, Failed> {
        let parts = parts(&bus, &function)?;
        let common = parts.common;
        reset(common)?;
        space.attach(right).map_err(core("it is not attached"))?;
        if function.protected {
            let told = env.notification().mint(Rights::SIGNAL, STOPPED_BIT);
            let bound = told.and_then(|told| right.bind_stops(told));
            bound.map_err(core("its stops are not heard of"))?;
        }
        common.write8(common::STATUS, status::ACKNOWLEDGE);
        common.write8(common::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let features = features(common, function.protected)?;
        let mut shape = geometry(features, &said(common, parts.block));
        shape.queues = shape.queues.min(common.read16(common::QUEUES)).max(1);
        let interrupts = function.vectors > 0;
        common.write16(common::CONFIG_VECTOR, common::NO_VECTOR);
        let mut queues = Vec::new();
        for number in 0..shape.queues {
            let part = memory.part(u64::from(number) * queue::BYTES, queue::BYTES);
            let part = part.ok_or("its queues need more memory: dma = \"2M\"")?;
            let vector = if interrupts {
                let vector = number.min(function.vectors - 1);
                interrupt(env, &bus, vector)?;
                vector
            } else {
                common::NO_VECTOR
            };
            queues.push(line(&parts, number, vector, part)?);
        }
        bus.enable().map_err(pci("it may not use the bus"))?;
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        common.write8(common::STATUS, ready | status::DRIVER_OK);
        log::info!(
            "{:02x}:{:02x}.{}: {} blocks of {} bytes{}, {} queue(s), {}, {}",
            function.id >> 8,
            function.id >> 3 & 31,
            function.id & 7,
            shape.blocks,
            shape.block_bytes,
            if shape.read_only { ", read-only" } else { "" },
            shape.queues,
            match function.vectors {
                0 => format!("no interrupts, looked at every {POLL_MICROSECONDS} us"),
                vectors => format!("{vectors} message interrupt(s)"),
            },
            match function.protected {
                true => format!("behind the IOMMU, its memory is at {:#x}", memory.bus()),
                false => "NOT PROTECTED by an IOMMU".into(),
            },
        );
        Ok(Device {
            geometry: shape,
            queues,
            interrupts,
            right,
            common,
        })
    }

    /// It gave up.
    pub fn is_broken(&self) -> bool {
        let status = self.common.read8(common::STATUS);
        status & status::NEEDS_RESET != 0 || status == 0
    }

    /// It does nothing from now on, as far as it obeys.
    pub fn halt(&self) {
        let _ = reset(self.common);
    }

    /// What the IOMMU stopped it for.
    pub fn stopped(&self) -> Option<Stopped> {
        let slot = inspect(OWN, self.right.slot()).ok()?;
        Stopped::from_word(slot.more)
    }
}

/// How often a device without interrupts is looked at while it has requests.
pub const POLL_MICROSECONDS: u64 = 500;

/// Binds a vector to the own notification.
fn interrupt(env: &Env, bus: &Bus, vector: u16) -> Result<(), Failed> {
    let right = bus.interrupt(vector).map_err(pci("no interrupt"))?;
    let bit = QUEUE_BIT << vector;
    let to = env.notification().mint(Rights::SIGNAL, bit);
    let bound = to.and_then(|to| right.bind(to));
    match bound {
        // Two queues with one vector.
        Ok(()) | Err(Status::Busy) => Ok(()),
        Err(status) => Err(core("an interrupt is not bound")(status)),
    }
}

/// Sets up one queue.
fn line(parts: &Parts, number: u16, vector: u16, memory: Region) -> Result<Line, Failed> {
    let common = parts.common;
    common.write16(common::QUEUE_SELECT, number);
    let offered = common.read16(common::QUEUE_SIZE);
    let queue = Queue::new(Shared(memory), memory.bus(), offered);
    let queue = queue.ok_or_else(|| format!("queue {number} has {offered} entries"))?;
    common.write16(common::QUEUE_SIZE, queue.size());
    common.write16(common::QUEUE_VECTOR, vector);
    if common.read16(common::QUEUE_VECTOR) != vector {
        return Err(format!("queue {number} does not take its vector"));
    }
    let addresses = queue.addresses();
    for (register, address) in [
        (common::QUEUE_DESCRIPTORS, addresses.descriptors),
        (common::QUEUE_DRIVER, addresses.driver),
        (common::QUEUE_DEVICE, addresses.device),
    ] {
        common.write32(register, address as u32);
        common.write32(register + 4, (address >> 32) as u32);
    }
    let at = u64::from(common.read16(common::QUEUE_NOTIFY)) * u64::from(parts.multiplier);
    let notify = parts.notify.part(at, 2);
    let notify = notify.ok_or_else(|| format!("queue {number} cannot be announced"))?;
    common.write16(common::QUEUE_ENABLE, 1);
    Ok(Line {
        queue,
        notify,
        number,
    })
}
