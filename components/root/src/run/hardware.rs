//! Devices in root's hands: what `pci` asks for (interface `hardware`), and memory that devices may
//! use. Device memory is lent by address, never taken back: it is nobody's data. Memory for devices
//! is set apart at boot, for good, at a physical address that root knows, and is used for nothing
//! else ever: what a device of a dead driver still writes finds nobody's data there.

use alloc::vec::Vec;

use idl::hardware::{Assignment, Facts, HardwareError, HardwareServer, Iommu, Lines};
use idl::manifest::Manifest;
use idl::name;
use root_plan::pieces::{Cut, Piece, PieceError, Pieces};
use root_plan::plan::large_frames;
use sdk::abi::FRAME;
use sdk::abi::boot::{self, Info, feature};
use sdk::abi::cap::{LINES, LINES_ISA};
use sdk::memory::{LARGE, ORDER_2M};
use sdk::prelude::*;
use sdk::slots;
use sdk::startup::{DmaRight, Share};

use super::system::{Place, System};

/// Device memory and the rights to devices.
#[derive(Default)]
pub struct Hardware {
    pieces: Pieces<Cap<cap::Memory>, Cap<cap::Frame>>,
    /// Every message interrupt, once it was asked for.
    messages: Option<Cap<cap::Interrupt>>,
}

impl Hardware {
    /// All device memory that the core gave.
    pub fn new(info: &Info) -> Hardware {
        let mut hardware = Hardware::default();
        let ranges = info.memories.iter().take(info.memory_count as usize);
        for range in ranges.filter(|range| range.device != 0) {
            hardware.pieces.add(Piece {
                base: range.base,
                frames: range.frames,
                handle: Cap::new(range.slot),
            });
        }
        hardware
    }

    fn frame(&mut self, address: u64, order: u8) -> Result<Cap<cap::Frame>, HardwareError> {
        let found = self.pieces.find(address, order);
        let (piece, before, after) = match found.map_err(|error| match error {
            PieceError::Nowhere => HardwareError::NotDeviceMemory,
            PieceError::Misaligned => HardwareError::Misaligned,
            PieceError::OtherSize => HardwareError::OtherSize,
        })? {
            Cut::Known(frame) => return Ok(frame),
            Cut::New {
                piece,
                before,
                after,
            } => (piece, before, after),
        };
        let whole = self.pieces.piece(piece);
        let whole = whole.ok_or(HardwareError::NotDeviceMemory)?.handle;
        let core = |status: Status| HardwareError::Core(status as u32);
        let memory = |frames: u64| match frames {
            0 => Ok(None),
            _ => whole.retype::<cap::Memory>(frames).map(Some),
        };
        let first = memory(before).map_err(core)?;
        let rest = whole
            .retype::<cap::Frame>(order.into())
            .and_then(|frame| Ok((frame, memory(after)?)));
        match rest {
            Ok((frame, last)) => {
                self.pieces.cut(piece, (address, order), frame, first, last);
                Ok(frame)
            }
            Err(status) => {
                // Whole again, but for slots in the books, which stay taken.
                let _ = whole.revoke();
                Err(core(status))
            }
        }
    }

    fn messages(&mut self) -> Result<Cap<cap::Interrupt>, Status> {
        if let Some(messages) = self.messages {
            return Ok(messages);
        }
        let all: Cap<cap::Interrupt> = Cap::new(boot::SLOT_INTERRUPTS);
        let messages = all.mint(Rights::ALL, LINES_ISA | (LINES - LINES_ISA) << 32)?;
        self.messages = Some(messages);
        Ok(messages)
    }
}

/// What the core says of the IOMMU.
pub fn iommu(info: &Info) -> Iommu {
    let has = |bit: u64| info.features & bit != 0;
    match (has(feature::DMA_PROTECTION), has(feature::AMDVI)) {
        (false, _) => Iommu::None,
        (true, false) => Iommu::Vtd,
        (true, true) => Iommu::AmdVi,
    }
}

/// Answers one request.
pub struct Desk<'a> {
    /// The core's facts.
    pub info: &'a Info,
    /// The system's description.
    pub manifest: &'a Manifest,
    /// All instances.
    pub places: &'a [Place],
    /// What is lent.
    pub hardware: &'a mut Hardware,
}

impl HardwareServer for Desk<'_> {
    fn facts(&mut self, _: u64) -> Facts {
        Facts {
            rsdp: self.info.rsdp,
            iommu: iommu(self.info),
            remapping: self.info.features & feature::INTERRUPT_REMAPPING != 0,
        }
    }

    fn assignment(&mut self, _: u64, index: u32) -> Option<Assignment> {
        let with_device = self.places.iter().enumerate().filter_map(|(at, place)| {
            let component = self.manifest.components.get(place.component)?;
            // Badges are the places of instances, counted from 1.
            Some((at as u64 + 1, place, component.device?))
        });
        let (badge, place, selector) = with_device
            .filter(|(_, place, _)| place.guest.is_none())
            .nth(usize::try_from(index).ok()?)?;
        Some(Assignment {
            badge,
            name: name(&place.name),
            selector,
        })
    }

    fn frame(&mut self, _: u64, address: u64, order: u8) -> Result<Cap<cap::Frame>, HardwareError> {
        self.hardware.frame(address, order)
    }

    fn devices(&mut self, _: u64) -> Result<Cap<cap::Device>, HardwareError> {
        Ok(Cap::new(boot::SLOT_DEVICES))
    }

    fn interrupts(&mut self, _: u64) -> Result<(Lines, Cap<cap::Interrupt>), HardwareError> {
        let messages = self.hardware.messages().map_err(|status| match status {
            Status::InvalidArgument => HardwareError::None,
            status => HardwareError::Core(status as u32),
        })?;
        let lines = Lines {
            first: LINES_ISA as u32,
            count: (LINES - LINES_ISA) as u32,
        };
        Ok((lines, messages))
    }
}

/// Frames of 2 MiB for devices, and for what outlives components, one after the other in physical
/// memory.
#[derive(Clone, Copy, Default)]
pub struct DmaMemory {
    all: DmaRight,
    used: u32,
}

impl DmaMemory {
    /// How many a system needs: what drivers ask for, and what servers share with `clients(server)`
    /// clients.
    pub fn needed(manifest: &Manifest, clients: impl Fn(usize) -> u32) -> u32 {
        let each = manifest.components.iter().enumerate();
        each.map(|(index, component)| {
            let shared = large_frames(component.client_bytes).saturating_mul(clients(index));
            large_frames(component.dma_bytes)
                .saturating_add(large_frames(component.keep_bytes))
                .saturating_add(shared)
        })
        .fold(0, u32::saturating_add)
    }

    /// Sets `count` frames apart, at the beginning of what is left of `memory`, which lies at
    /// physical address `base`.
    pub fn carve(memory: Cap<cap::Memory>, base: u64, count: u32) -> Result<DmaMemory, Status> {
        if count == 0 {
            return Ok(DmaMemory::default());
        }
        // The core tells how much of it was handed out; objects are cut off one after the other.
        let used = inspect(OWN, memory.slot())?.more;
        let bus = base + used * FRAME;
        if !bus.is_multiple_of(LARGE) {
            return Err(Status::InvalidArgument);
        }
        let first = slots::take_run(count).ok_or(Status::SlotOccupied)?;
        memory.retype_in::<cap::Frame>(ORDER_2M, OWN, first, count)?;
        log::info!(
            "{} MiB for devices at {bus:#x}, and for what outlives components",
            (u64::from(count) * LARGE) >> 20
        );
        // Nothing else was cut off meanwhile: else the address is not what it was taken for.
        let after = inspect(OWN, memory.slot())?.more;
        if after != used + u64::from(count) * (LARGE / FRAME) {
            return Err(Status::InvalidArgument);
        }
        Ok(DmaMemory {
            all: DmaRight {
                slot: first,
                count,
                bus,
            },
            used: 0,
        })
    }

    /// Memory of so many bytes, for good.
    pub fn take(&mut self, bytes: u64) -> Option<DmaRight> {
        let count = large_frames(bytes);
        let first = self.used;
        let used = first
            .checked_add(count)
            .filter(|&used| used <= self.all.count)?;
        self.used = used;
        Some(DmaRight {
            slot: self.all.slot + first,
            count,
            bus: self.all.bus + u64::from(first) * LARGE,
        })
    }
}

impl System {
    /// Gives each place the memory that devices may use.
    pub(super) fn share_out(&mut self) {
        for (index, component) in self.manifest.components.iter().enumerate() {
            let mut take = |bytes: u64| self.tools.bank.dma.take(bytes);
            let dma = take(component.dma_bytes).unwrap_or_default();
            // Nobody knows its address, and no device has a right to it.
            let keep = take(component.keep_bytes).unwrap_or_default();
            let mut shares = Vec::new();
            if component.client_bytes > 0 {
                for client in clients(&self.manifest, &self.places, index) {
                    if let Some(memory) = take(component.client_bytes) {
                        shares.push(Share { client, memory });
                    }
                }
            }
            if let Some(place) = self.places.get_mut(index) {
                (place.dma, place.keep, place.shares) = (dma, keep, shares);
            }
        }
    }

    pub(super) fn is_protected(&self) -> bool {
        iommu(self.tools.info) != Iommu::None
    }

    /// Says once a boot what keeps devices in check, if there are drivers.
    pub(super) fn say_protection(&self) {
        let mut drivers = self.manifest.components.iter();
        if !drivers.any(|component| component.device.is_some()) {
            return;
        }
        match iommu(self.tools.info) {
            Iommu::None if self.manifest.allow_unprotected_dma => {
                log::warn!(
                    "DMA IS NOT PROTECTED: this machine has no IOMMU that the core can use."
                );
                log::warn!(
                    "A driver or its device can read and write all memory, the core's included;"
                );
                log::warn!("system.toml accepts that: allow-unprotected-dma = true");
            }
            Iommu::None => log::error!("this machine has no IOMMU that the core can use"),
            Iommu::Vtd => log::info!("devices are kept to their drivers' memory by Intel VT-d"),
            Iommu::AmdVi => log::info!("devices are kept to their drivers' memory by AMD-Vi"),
        }
    }

    /// Whether a component may start that drives a device: behind an IOMMU, or where the manifest
    /// accepts that there is none. A refusal is said.
    pub(super) fn may_drive(&self, index: usize) -> bool {
        let component = &self.manifest.components[self.places[index].component];
        let drives = component.device.is_some() || component.dma_bytes > 0;
        let may = !drives || self.is_protected() || self.manifest.allow_unprotected_dma;
        if !may {
            log::error!(
                "component {}: not started: without an IOMMU its device could reach all memory. If \
                 that is acceptable, write allow-unprotected-dma = true under [system] in system.toml",
                component.name
            );
        }
        may
    }
}

/// Badges of the instances that call a component.
pub fn clients(manifest: &Manifest, places: &[Place], server: usize) -> Vec<u64> {
    let Some(server) = manifest.components.get(server) else {
        return Vec::new();
    };
    let calls = |place: &Place| {
        let component = manifest.components.get(place.component);
        component.is_some_and(|component| {
            // A pattern itself never runs; its instances have places of their own.
            component.per_guest == place.guest.is_some()
                && component.needs.iter().any(|need| {
                    need.server == server.name && server.serves.contains(&need.interface)
                })
        })
    };
    let all = places.iter().enumerate();
    all.filter(|(_, place)| calls(place))
        .map(|(index, _)| index as u64 + 1)
        .collect()
}
