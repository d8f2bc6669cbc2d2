//! The start contract: what a component finds when its first instruction runs. Written by root,
//! read by the sdk's entry code. One page table's worth of facts, in postcard, at
//! `abi::boot::INFO_ADDRESS`, read-only.
//!
//! # Slots
//! [`SLOT_CAP_SPACE`] to [`SLOT_NOTIFICATION`] are fixed. Everything else that was wired is named
//! in [`Startup`]; slots from [`Startup::free_slot`] on are empty.
//!
//! # Addresses
//! | what | where |
//! |---|---|
//! | image | from 2 MiB, as linked |
//! | heap | [`HEAP_ADDRESS`], grown by the sdk |
//! | what the component maps | [`MAP_ADDRESS`] up, handed out by `sdk::memory` |
//! | guest memory (builder, VMM) | [`GUEST_ADDRESS`] |
//! | files of the archive | [`FILES_ADDRESS`] |
//! | pages that guests granted | [`GRANTS_ADDRESS`] |
//! | start-up pages, buffer, stack | `abi::boot`, the same as root's |
//! | further threads | blocks of 16 MiB below, see `sdk::local` |

use idl::cap::{Endpoint, Frame, Interrupt, IoPorts, Memory, Notification, SchedContext, Thread};
use idl::volume::{VOLUMES_MAX, Volume};
use idl::{Cap, Name};
use serde::{Deserialize, Serialize};

/// Own capability space.
pub const SLOT_CAP_SPACE: u32 = 1;
/// Own address space.
pub const SLOT_ADDRESS_SPACE: u32 = 2;
/// First thread.
pub const SLOT_THREAD: u32 = 3;
/// Its scheduling context.
pub const SLOT_SCHED: u32 = 4;
/// Memory for the component's own use.
pub const SLOT_MEMORY: u32 = 5;
/// A reply object for the first thread.
pub const SLOT_REPLY: u32 = 6;
/// A notification without a badge, bound to nothing.
pub const SLOT_NOTIFICATION: u32 = 7;
/// Bit of the own notification ([`SLOT_NOTIFICATION`]) that root sets when a component at the other
/// end of one of this component's wires, client or server, was started again or stays down.
/// Capabilities that came from it are gone, and using them tells. Components that keep nothing of
/// their peers' need not look at it.
pub const PEERS: u64 = 1 << 60;
/// Bit of the own notification that root sets when what it would answer by the interface `domains` is
/// not what it was; for those with a wire for it.
pub const DOMAINS: u64 = 1 << 59;
/// First slot for wires.
pub const SLOT_FIRST: u32 = 16;

/// Where the heap begins.
pub const HEAP_ADDRESS: u64 = 0x1000_0000_0000;
/// Where `sdk::memory` begins to map.
pub const MAP_ADDRESS: u64 = 0x2000_0000_0000;
/// Where root maps guest memory.
pub const GUEST_ADDRESS: u64 = 0x4000_0000_0000;
/// Where root maps files.
pub const FILES_ADDRESS: u64 = 0x5000_0000_0000;
/// Where `sdk::peer` maps granted pages. Root answers a fault in this range with an empty page, because
/// what a guest granted may be taken away at any time.
pub const GRANTS_ADDRESS: u64 = 0x6800_0000_0000;
/// Bytes of that range.
pub const GRANTS_BYTES: u64 = 64 << 30;
/// Bytes of the start-up pages.
pub const STARTUP_BYTES: usize = 16384;
/// Bytes of stack of a further thread.
pub const THREAD_STACK_BYTES: u64 = 64 * 1024;
/// First bytes of the start-up pages.
pub const MAGIC: u64 = 0x5055_5452_4154_5331;

/// Facts about the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// TSC ticks per millisecond.
    pub tsc_khz: u64,
    /// CPUs that run.
    pub cpus: u64,
    /// `abi::boot::feature` bits.
    pub features: u64,
    /// Wall clock at boot, seconds since 1970-01-01 UTC; 0 if unknown.
    pub wall_seconds: u64,
    /// TSC when `wall_seconds` was read.
    pub wall_tsc: u64,
    /// Frames that one object of each `Kind` takes (`abi::boot::Info::object_frames`).
    pub object_frames: [u32; 16],
}

/// The right to call an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// Interface.
    pub interface: Name,
    /// Who serves it.
    pub server: Name,
    /// Where calls go.
    pub slot: u32,
}

/// The right to serve an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// Interface.
    pub interface: Name,
    /// Where calls arrive.
    pub slot: u32,
}

/// The right to use I/O ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsRight {
    /// First port.
    pub first: u16,
    /// How many.
    pub count: u16,
    /// The capability.
    pub slot: u32,
}

/// The right to an interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineRight {
    /// ISA number.
    pub line: u32,
    /// The capability.
    pub slot: u32,
}

/// A thread that may be started with `sdk::thread::spawn`: its stack and buffer are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadRight {
    /// The thread, not configured.
    pub thread: u32,
    /// Its scheduling context, set and bound.
    pub sched: u32,
    /// CPU that it runs on.
    pub cpu: u32,
    /// Number of its block (`sdk::local::block`).
    pub block: u32,
}

/// A file of the archive, mapped read-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Name in the archive.
    pub name: heapless::String<112>,
    /// Where it is mapped.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
}

/// A ring page that is mapped already, for a client that must not call (root's own log).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The client's name.
    pub name: Name,
    /// Address of the `RingPage`.
    pub address: u64,
    /// Bit of the own notification that the client signals.
    pub bit: u64,
}

/// Names of clients and guests that come after the console was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesPage {
    /// Address of the `idl::console::Names`, read-only; 0 if there is none.
    pub address: u64,
    /// Number of the client that its first name of a component is for.
    pub component: u32,
    /// Number of the guest that its first name of a guest is for.
    pub guest: u32,
}

/// Most names in [`Startup::clients`].
pub const CLIENTS_MAX: usize = 64;

/// Frames in consecutive slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingPages {
    /// The first.
    pub slot: u32,
    /// How many.
    pub count: u32,
}

/// Memory that a device may use: frames of 2 MiB in consecutive slots, one after the other in
/// physical memory. Root's, whatever becomes of the driver; what is in it stays from one instance to
/// the next. See `sdk::dma`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaRight {
    /// The first.
    pub slot: u32,
    /// How many.
    pub count: u32,
    /// Physical address, on a machine without IOMMU; 0 where that is nobody's business.
    pub bus: u64,
}

/// Memory that a server shares with one of its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The client's badge.
    pub client: u64,
    /// The memory.
    pub memory: DmaRight,
}

/// Most of them.
pub const SHARES_MAX: usize = 16;

/// The guest that a builder or VMM is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStart {
    /// Name.
    pub name: Name,
    /// Where its memory is mapped, readable and writable, in one piece.
    pub memory_address: u64,
    /// Bytes of it; a multiple of 2 MiB. Guest-physical 0 up to 3 GiB is the first part of it,
    /// what is more continues at 4 GiB.
    pub memory_bytes: u64,
    /// First of the slots with its frames, 2 MiB each, in order: for the VMM to map into the
    /// guest's address space. 0 in a builder.
    pub frame_slot: u32,
    /// How many.
    pub frame_count: u32,
    /// Its domain id.
    pub domain: u16,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// One per vCPU: the thread to run it on (VMM only).
    pub vcpu_threads: heapless::Vec<ThreadRight, VCPUS_MAX>,
    /// The kernel (builder only).
    pub kernel: Option<File>,
    /// The initial RAM disk (builder only).
    pub initrd: Option<File>,
    /// Kernel command line (builder only).
    pub cmdline: heapless::String<2048>,
    /// What the builder answered (VMM only).
    pub built: Option<idl::builder::Built>,
    /// For those who may use its grants and event channels (VMM only, and only if there are any).
    pub peers: Option<PeersStart>,
    /// Highest version of the grant table that it may choose: 1 or 2.
    pub max_grant_version: u32,
}

/// How a guest's VMM serves interface `peer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersStart {
    /// Where calls arrive.
    pub endpoint: u32,
    /// Frames of 4 KiB, root's for good: the page that is shared with each caller
    /// (`idl::peer::ChannelPage`), by its number in `idl::peer::Badge`.
    pub pages: heapless::Vec<u32, PEERS_MAX>,
}

/// Most components and guests that may use one guest's grants.
pub const PEERS_MAX: usize = 16;

/// Most vCPUs of one guest.
pub const VCPUS_MAX: usize = 32;

/// Everything a component is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Startup {
    /// Own name; instances for a guest are called `<component>-<guest>`.
    pub name: Name,
    /// The machine.
    pub machine: Machine,
    /// First empty slot.
    pub free_slot: u32,
    /// Slots of the capability space.
    pub slots: u32,
    /// Frames of 4 KiB in [`SLOT_MEMORY`].
    pub memory_frames: u64,
    /// What may be called.
    pub wires: heapless::Vec<Wire, 8>,
    /// What is to be served.
    pub serves: heapless::Vec<Serve, 4>,
    /// Ports.
    pub ports: heapless::Vec<PortsRight, 8>,
    /// Interrupt lines.
    pub lines: heapless::Vec<LineRight, 8>,
    /// Threads that may be started (not those for vCPUs).
    pub threads: heapless::Vec<ThreadRight, 16>,
    /// Files.
    pub files: heapless::Vec<File, 8>,
    /// Pages of root's for rings with clients (console only): 4 KiB frames in consecutive slots,
    /// two for each of [`Startup::clients`], zeroed when the first console started. What is derived
    /// from them outlives this component, and what is in them as well.
    pub ring_pages: RingPages,
    /// Names of the components that may call, by the number in a badge (console only; see
    /// `idl::console::Badge`).
    pub clients: heapless::Vec<Name, CLIENTS_MAX>,
    /// Names of the guests that it shows, by the number in a badge (console only).
    pub guests: heapless::Vec<Name, CLIENTS_MAX>,
    /// Names of those that come later (console only).
    pub names: NamesPage,
    /// Rings that are attached from the start (console only).
    pub attached: heapless::Vec<Attached, 2>,
    /// Memory for its device (drivers only).
    pub dma: DmaRight,
    /// Memory that every instance of it gets again, with what is in it; zeroed at boot. Frames of
    /// 2 MiB, as for a device, but no device uses it.
    pub keep: DmaRight,
    /// Memory for it and each of its clients (servers whose manifest says so).
    pub shares: heapless::Vec<Share, SHARES_MAX>,
    /// Volumes that it serves (backends of guests' disks).
    pub volumes: heapless::Vec<Volume, VOLUMES_MAX>,
    /// The guest (builder and VMM only).
    pub guest: Option<GuestStart>,
}

impl Startup {
    /// The wire to an interface, whoever serves it.
    pub fn wire(&self, interface: &str) -> Option<Cap<Endpoint>> {
        let found = self.wires.iter().find(|wire| wire.interface == interface)?;
        Some(Cap::new(found.slot))
    }

    /// The endpoint of an interface that this component serves.
    pub fn served(&self, interface: &str) -> Option<Cap<Endpoint>> {
        let found = self
            .serves
            .iter()
            .find(|serve| serve.interface == interface)?;
        Some(Cap::new(found.slot))
    }

    /// The right to all of these ports.
    pub fn ports(&self, first: u16, count: u16) -> Option<Cap<IoPorts>> {
        let end = u32::from(first) + u32::from(count);
        let found = self.ports.iter().find(|range| {
            range.first <= first && u32::from(range.first) + u32::from(range.count) >= end
        })?;
        Some(Cap::new(found.slot))
    }

    /// The right to an interrupt line.
    pub fn line(&self, line: u32) -> Option<Cap<Interrupt>> {
        let found = self.lines.iter().find(|right| right.line == line)?;
        Some(Cap::new(found.slot))
    }

    /// Own memory.
    pub const fn memory(&self) -> Cap<Memory> {
        Cap::new(SLOT_MEMORY)
    }

    /// Own notification.
    pub const fn notification(&self) -> Cap<Notification> {
        Cap::new(SLOT_NOTIFICATION)
    }

    /// Own first thread.
    pub const fn thread(&self) -> Cap<Thread> {
        Cap::new(SLOT_THREAD)
    }
}

impl ThreadRight {
    /// The thread.
    pub const fn thread(&self) -> Cap<Thread> {
        Cap::new(self.thread)
    }
    /// Its scheduling context.
    pub const fn sched(&self) -> Cap<SchedContext> {
        Cap::new(self.sched)
    }
}

impl GuestStart {
    /// The guest's frames, each 2 MiB, in order of guest-physical address.
    pub fn frames(&self) -> impl Iterator<Item = Cap<Frame>> + use<> {
        let first = self.frame_slot;
        (0..self.frame_count).map(move |index| Cap::new(first + index))
    }
}

/// Writes the start-up pages: magic, then the facts.
pub fn write(startup: &Startup, bytes: &mut [u8]) -> Result<(), idl::wire::Error> {
    let (head, rest) = bytes.split_first_chunk_mut().ok_or(idl::wire::Error)?;
    *head = MAGIC.to_le_bytes();
    idl::wire::write_value(startup, rest).map(|_| ())
}

/// Reads them.
pub fn read(bytes: &[u8]) -> Result<Startup, idl::wire::Error> {
    let (head, rest) = bytes.split_first_chunk().ok_or(idl::wire::Error)?;
    if u64::from_le_bytes(*head) != MAGIC {
        return Err(idl::wire::Error);
    }
    idl::wire::read_value(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use idl::name;
    use proptest::prelude::*;

    fn full() -> Startup {
        let file = File {
            name: heapless::String::try_from("guests/linux/vmlinuz").unwrap(),
            address: FILES_ADDRESS,
            bytes: 12345,
        };
        let thread = ThreadRight {
            thread: u32::MAX,
            sched: u32::MAX,
            cpu: u32::MAX,
            block: u32::MAX,
        };
        Startup {
            name: name("vmm-linux"),
            ports: heapless::Vec::from_slice(&[PortsRight {
                first: 0x3f8,
                count: 8,
                slot: 20,
            }])
            .unwrap(),
            guest: Some(GuestStart {
                name: name("linux"),
                memory_address: GUEST_ADDRESS,
                memory_bytes: 256 << 20,
                frame_slot: 30,
                frame_count: 128,
                domain: u16::MAX,
                vcpus: VCPUS_MAX as u32,
                vcpu_threads: heapless::Vec::from_slice(&[thread; VCPUS_MAX]).unwrap(),
                kernel: Some(file.clone()),
                initrd: Some(file),
                cmdline: "x".repeat(2048).as_str().try_into().unwrap(),
                built: None,
                peers: Some(PeersStart {
                    endpoint: u32::MAX,
                    pages: heapless::Vec::from_slice(&[u32::MAX; PEERS_MAX]).unwrap(),
                }),
                max_grant_version: u32::MAX,
            }),
            ..Startup::default()
        }
    }

    #[test]
    fn the_largest_start_fits_its_pages() {
        let mut pages = [0; STARTUP_BYTES];
        write(&full(), &mut pages).unwrap();
        assert_eq!(read(&pages), Ok(full()));
    }

    #[test]
    fn rights_are_found_by_range() {
        let startup = full();
        assert_eq!(startup.ports(0x3f8, 8), Some(Cap::new(20)));
        assert_eq!(startup.ports(0x3ff, 1), Some(Cap::new(20)));
        assert_eq!(startup.ports(0x3f8, 9), None);
        assert_eq!(startup.line(4), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn any_bytes_are_read_without_panic(tail in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut bytes = MAGIC.to_le_bytes().to_vec();
            bytes.extend(tail);
            let _ = read(&bytes);
        }
    }
}
