//! The device on the machine: brought up from reset to its queues (virtio 1.2, 3.1.1).

use alloc::format;
use alloc::vec::Vec;

use block_driver::Failed;
use block_driver::engine::{self, Broken, Full, Tag};
use block_driver::function::{Given, pci};
use block_driver::server;
use idl::block::Geometry;
use idl::requests::{Checked, Operation, Status as Ended};
use sdk::dma::{Region, Space};
use sdk::mmio::Registers;
use sdk::prelude::*;
use sdk::time;
use virtio_block::layout::{
    self, Part, Place, SECTOR, Said, block, choose, common, geometry, status,
};
use virtio_block::queue::{self, Data, End, Kind, Queue};

/// How long a device may take to reset.
const RESET_MICROSECONDS: u64 = 10_000_000;

/// A queue and the register that announces it.
struct Line {
    queue: Queue<Region, Tag>,
    notify: Registers,
    number: u16,
}

/// A device that works.
pub struct Device {
    geometry: Geometry,
    queues: Vec<Line>,
    common: Registers,
}

/// Maps the registers that a capability tells of.
fn registers(given: &Given, place: &Place) -> Result<Registers, Failed> {
    given.registers(place.bar, place.offset.into(), place.bytes.into())
}

struct Parts {
    common: Registers,
    notify: Registers,
    multiplier: u32,
    block: Registers,
}

fn parts(given: &Given) -> Result<Parts, Failed> {
    let mut found: [Option<(Registers, u32)>; 3] = [None; 3];
    for index in 0..given.function.vendor_capabilities {
        let bytes = given
            .bus
            .vendor_capability(index)
            .map_err(pci("capability"))?;
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
            *slot = Some((registers(given, &place)?, place.multiplier));
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
            // All ones of a device whose registers end before these; it does not offer the feature.
            discard_sectors: block.read32(block::DISCARD_SECTORS),
            discard_segments: block.read32(block::DISCARD_SEGMENTS),
            discard_alignment: block.read32(block::DISCARD_ALIGNMENT),
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
        given: &Given,
        space: &Space,
        memory: Region,
    ) -> Result<Device, Failed> {
        let function = given.function;
        let parts = parts(given)?;
        let common = parts.common;
        reset(common)?;
        given.attach(env, space)?;
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
                given.message(env, vector)?;
                vector
            } else {
                common::NO_VECTOR
            };
            queues.push(line(&parts, number, vector, part)?);
        }
        given.bus.enable().map_err(pci("it may not use the bus"))?;
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        common.write8(common::STATUS, ready | status::DRIVER_OK);
        log::info!(
            "{}: {} blocks of {} bytes{}{}, {} queue(s), {}",
            given.place(),
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
        Ok(Device {
            geometry: shape,
            queues,
            common,
        })
    }
}

impl engine::Device for Device {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn has_room(&self, queue: usize) -> bool {
        let line = self.queues.get(queue);
        line.is_some_and(|line| line.queue.has_room())
    }

    fn submit(&mut self, queue: usize, request: &Checked, bus: u64, tag: Tag) -> Result<(), Full> {
        let line = self.queues.get_mut(queue).ok_or(Full)?;
        let kind = match request.operation {
            Operation::Read => Kind::In,
            Operation::Write => Kind::Out,
            Operation::Flush => Kind::Flush,
            Operation::Discard => Kind::Discard,
        };
        let data = Data {
            bus,
            bytes: request.bytes,
        };
        let sector = request.block * u64::from(self.geometry.block_bytes / SECTOR);
        line.queue.submit(kind, sector, data, tag)
    }

    fn announce(&mut self, queue: usize) {
        if let Some(line) = self.queues.get(queue) {
            line.notify.write16(0, line.number);
        }
    }

    fn complete(&mut self, queue: usize) -> Result<Option<(Tag, Ended)>, Broken> {
        let Some(line) = self.queues.get_mut(queue) else {
            return Ok(None);
        };
        let done = line.queue.complete()?;
        Ok(done.map(|done| match done.end {
            End::Good => (done.token, Ended::Done),
            End::Unsupported => (done.token, Ended::Operation),
            End::Failed => (done.token, Ended::Device),
        }))
    }

    fn fault(&self) -> Option<&'static str> {
        let status = self.common.read8(common::STATUS);
        let broken = status & status::NEEDS_RESET != 0 || status == 0;
        broken.then_some("the device gave up")
    }

    fn recover(&mut self) -> Result<(), Failed> {
        Err("a new driver is to reset it".into())
    }

    fn halt(&mut self) {
        let _ = reset(self.common);
    }

    fn now(&self) -> u64 {
        server::now()
    }
}

/// Sets up one queue.
fn line(parts: &Parts, number: u16, vector: u16, memory: Region) -> Result<Line, Failed> {
    let common = parts.common;
    common.write16(common::QUEUE_SELECT, number);
    let offered = common.read16(common::QUEUE_SIZE);
    let queue = Queue::new(memory, memory.bus(), offered);
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
