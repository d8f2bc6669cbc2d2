//! Registers (3.1.3) and what a controller and its namespace say of themselves when they are asked
//! (5.17.2, and 4.1.5 of the NVM command set): read from bytes that the controller wrote, checked, and
//! held against what this driver can do.

use alloc::string::String;
use core::fmt;

use block_driver::memory::Memory;
use idl::block::{Discard, Geometry};
use idl::requests::DISCARD_MOST;

/// Offsets of the registers (3.1.3).
pub mod register {
    /// Capabilities, 64 bits.
    pub const CAP: u64 = 0x00;
    /// Version.
    pub const VS: u64 = 0x08;
    /// Configuration.
    pub const CC: u64 = 0x14;
    /// Status.
    pub const CSTS: u64 = 0x1c;
    /// Sizes of the admin queues.
    pub const AQA: u64 = 0x24;
    /// Address of the admin submission queue, 64 bits.
    pub const ASQ: u64 = 0x28;
    /// Address of the admin completion queue, 64 bits.
    pub const ACQ: u64 = 0x30;
    /// How long the controller may take to become ready, where [`CAP`] says that it tells (3.1.3).
    pub const CRTO: u64 = 0x68;
    /// Where the doorbells begin (NVMe over PCIe transport 1.0, 3.1.2).
    pub const DOORBELLS: u64 = 0x1000;
}

/// Bits of the configuration (3.1.3.5): the NVM command set, pages of 4 KiB, round robin.
pub mod configuration {
    /// The controller works.
    pub const ENABLE: u32 = 1;
    /// Entries of submission queues have 2^6 bytes, those of completion queues 2^4.
    pub const ENTRIES: u32 = 6 << 16 | 4 << 20;
}

/// Bits of the status (3.1.3.6).
pub mod status {
    /// It takes commands.
    pub const READY: u32 = 1;
    /// It failed, and only a reset helps.
    pub const FATAL: u32 = 1 << 1;
}

/// Bytes of a page, of the controller's and of the machine's.
pub const PAGE: u64 = 4096;
/// Bytes of an answer to Identify.
pub const IDENTIFY: u64 = 4096;
/// Most bytes of a request.
pub const REQUEST_MOST: u32 = 1 << 20;
/// Most I/O queues that are used.
pub const QUEUES_MOST: u16 = 4;
/// Most entries of a queue that are used.
pub const ENTRIES_MOST: u16 = 64;

/// Why a controller cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Its registers read as all ones.
    Gone,
    /// It does not speak the NVM command set.
    CommandSet,
    /// Its smallest page is larger than 4 KiB.
    Pages,
    /// Its queues have fewer than two entries.
    Queues,
    /// Its doorbells are not all in the registers that were given.
    Doorbells,
    /// It does not take commands of 64 bytes, or does not give completions of 16.
    Entries,
    /// It is one for discovery or administration, without a disk.
    Kind,
    /// It has no active namespace.
    NoNamespace,
    /// The namespace's format has blocks of another size than 512 to 4096 bytes.
    BlockSize,
    /// The namespace's format has metadata with each block.
    Metadata,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unusable::Gone => "it is not there any more",
            Unusable::CommandSet => "it does not speak the NVM command set",
            Unusable::Pages => "its pages are larger than 4 KiB",
            Unusable::Queues => "its queues are too short",
            Unusable::Doorbells => "its doorbells are not in its registers",
            Unusable::Entries => "its queues' entries have other sizes",
            Unusable::Kind => "it is no controller of disks",
            Unusable::NoNamespace => "it has no active namespace",
            Unusable::BlockSize => "its blocks have neither 512 nor up to 4096 bytes",
            Unusable::Metadata => "its blocks carry metadata (format it without)",
        })
    }
}

/// What the capabilities register says (3.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Entries of a queue that are used.
    pub entries: u16,
    /// How long it may take to become ready or to stop, in milliseconds.
    pub patience: u64,
    /// Bytes from one doorbell to the next.
    pub stride: u64,
    /// [`register::CRTO`] tells more of `patience`.
    pub tells_times: bool,
}

impl Capabilities {
    /// From the register.
    pub fn parse(cap: u64) -> Result<Capabilities, Unusable> {
        if cap == u64::MAX {
            return Err(Unusable::Gone);
        }
        if cap >> 37 & 1 == 0 {
            return Err(Unusable::CommandSet);
        }
        if cap >> 48 & 0xf != 0 {
            return Err(Unusable::Pages);
        }
        // The field counts from 0, and one entry is always free.
        let entries = (cap as u16).saturating_add(1).min(ENTRIES_MOST);
        if entries < 2 {
            return Err(Unusable::Queues);
        }
        Ok(Capabilities {
            entries,
            // In units of 500 ms; 0 would be no time at all.
            patience: (cap >> 24 & 0xff).max(1) * 500,
            stride: 4 << (cap >> 32 & 0xf),
            tells_times: cap >> 59 & 1 != 0,
        })
    }

    /// Where the doorbell of a queue is: the submission queue's tail, or the completion queue's head.
    pub fn doorbell(&self, queue: u16, completion: bool) -> u64 {
        let number = u64::from(queue) * 2 + u64::from(completion);
        register::DOORBELLS + number * self.stride
    }

    /// Bytes of registers with the doorbells of so many I/O queues.
    pub fn bytes(&self, queues: u16) -> u64 {
        self.doorbell(queues, true) + 4
    }
}

/// Opcodes of admin commands (5, figure "Opcodes for Admin Commands").
pub mod admin {
    /// Makes a submission queue.
    pub const CREATE_SUBMISSION: u8 = 0x01;
    /// Makes a completion queue.
    pub const CREATE_COMPLETION: u8 = 0x05;
    /// Says what something is.
    pub const IDENTIFY: u8 = 0x06;
    /// Sets a feature.
    pub const SET_FEATURES: u8 = 0x09;
    /// What Identify is about: a namespace, the controller, which namespaces are active (5.17.1).
    pub const OF_NAMESPACE: u32 = 0;
    /// The controller.
    pub const OF_CONTROLLER: u32 = 1;
    /// Active namespaces.
    pub const OF_ACTIVE: u32 = 2;
    /// What the NVM command set has of limits (4.1.5.2 of it; controllers before 2.0 may refuse).
    pub const OF_LIMITS: u32 = 6;
    /// The feature that says how many queues there may be (5.27.1.5).
    pub const NUMBER_OF_QUEUES: u32 = 7;
}

/// Opcodes of the NVM command set (its section 3.2).
pub mod nvm {
    /// What was answered is to last.
    pub const FLUSH: u8 = 0x00;
    /// To the disk.
    pub const WRITE: u8 = 0x01;
    /// From the disk.
    pub const READ: u8 = 0x02;
    /// Says what is of no use any more (3.2.3).
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// For that: it is to be given up (AD, dword 11).
    pub const DEALLOCATE: u32 = 1 << 2;
    /// Bytes of one of its ranges: attributes, blocks, first block.
    pub const RANGE_BYTES: u64 = 16;
}

/// What a controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerSaid {
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Most bytes of a command's data.
    pub transfer: u32,
    /// It has a volatile write cache.
    pub write_cache: bool,
    /// It takes hints of what is of no use any more (ONCS, bit 2).
    pub hints: bool,
}

/// A text of printable ASCII, padded with spaces.
fn text(memory: &impl Memory, at: u64, bytes: u64) -> String {
    let read = (at..at + bytes).map(|at| match memory.read8(at) {
        byte @ 0x20..0x7f => char::from(byte),
        _ => '?',
    });
    let read: String = read.collect();
    String::from(read.trim())
}

impl ControllerSaid {
    /// From the answer to Identify (5.17.2.1).
    pub fn parse(memory: &impl Memory) -> Result<ControllerSaid, Unusable> {
        let kind = memory.read8(111);
        if kind > 1 {
            return Err(Unusable::Kind);
        }
        // What is required, and what is the most.
        for (at, power) in [(512, 6), (513, 4)] {
            let sizes = memory.read8(at);
            if !(sizes & 0xf..=sizes >> 4).contains(&power) {
                return Err(Unusable::Entries);
            }
        }
        let transfer = match memory.read8(77) {
            0 => u32::MAX,
            power => 1u32.checked_shl(12 + u32::from(power)).unwrap_or(u32::MAX),
        };
        Ok(ControllerSaid {
            model: text(memory, 24, 40),
            serial: text(memory, 4, 20),
            transfer,
            write_cache: memory.read8(525) & 1 != 0,
            hints: memory.read8(520) >> 2 & 1 != 0,
        })
    }
}

/// What a namespace says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceSaid {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Writes fail.
    pub read_only: bool,
    /// Blocks that are given up together, at multiples of so many.
    pub granularity: u32,
}

/// Most blocks in a range of blocks that are given up, as the controller says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeMost(pub u64);

impl RangeMost {
    /// What a controller says that tells of no limits: as many as the field of a range has place for.
    pub const UNSAID: RangeMost = RangeMost(u32::MAX as u64);

    /// From the answer to Identify (NVM command set 1.0, 4.1.5.2): DMRSL for one range, DMSL for all of a
    /// command's; 0 for no limit.
    pub fn parse(memory: &impl Memory) -> RangeMost {
        let one = u64::from(memory.read32(4));
        let all = u64::from(memory.read32(8)) | u64::from(memory.read32(12)) << 32;
        let said = [one, all].into_iter().filter(|most| *most > 0);
        RangeMost(said.fold(Self::UNSAID.0, u64::min))
    }
}

impl NamespaceSaid {
    /// From the answer to Identify (NVM command set 1.0, 4.1.5.1).
    pub fn parse(memory: &impl Memory) -> Result<NamespaceSaid, Unusable> {
        let blocks = u64::from(memory.read32(0)) | u64::from(memory.read32(4)) << 32;
        if blocks == 0 {
            return Err(Unusable::NoNamespace);
        }
        let current = memory.read8(26);
        // Bits 6-5 are the upper ones where there are more than 16 formats; 0 otherwise.
        let format = current & 0xf | (current >> 5 & 3) << 4;
        let format = memory.read32(128 + 4 * u64::from(format));
        if format as u16 != 0 {
            return Err(Unusable::Metadata);
        }
        let block_bytes = match format >> 16 & 0xff {
            power @ 9..=12 => 1 << power,
            _ => return Err(Unusable::BlockSize),
        };
        // NPDG counts from 0, where NSFEAT says that it is there (OPTPERF).
        let granularity = match memory.read8(24) >> 4 & 1 {
            0 => 1,
            _ => (memory.read32(68) & 0xffff) + 1,
        };
        Ok(NamespaceSaid {
            blocks,
            block_bytes,
            read_only: memory.read8(99) & 1 != 0,
            granularity,
        })
    }
}

/// The disk's shape; `most` counts if the controller takes hints.
pub fn geometry(
    controller: &ControllerSaid,
    namespace: &NamespaceSaid,
    most: RangeMost,
    queues: u16,
) -> Geometry {
    let block_bytes = namespace.block_bytes;
    let transfer = controller.transfer.min(REQUEST_MOST);
    // A page at least, so a block at least.
    let transfer = transfer.max(PAGE as u32);
    // A block at least, as no limit is 0.
    let range = most.0.min(u64::from(DISCARD_MOST / block_bytes)) as u32;
    let discard = (controller.hints && !namespace.read_only).then(|| Discard {
        bytes: range * block_bytes,
        granularity: namespace.granularity.saturating_mul(block_bytes),
    });
    Geometry {
        block_bytes,
        blocks: namespace.blocks,
        request_bytes: transfer / block_bytes * block_bytes,
        read_only: namespace.read_only,
        write_cache: controller.write_cache,
        queues,
        discard,
    }
}
