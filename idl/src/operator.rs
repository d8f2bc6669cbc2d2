//! `operator`: what whoever carries out the operator's commands asks root, which serves this interface:
//! which guests there are, what the machine has left, orders for one guest, and guests that are not in
//! the system's description. Whoever holds this wire rules over every guest, so a system gives it to its
//! toolstack and to nobody else.
//!
//! Root answers an order before it carries it out: the answer says whether the order is allowed,
//! what came of it is in root's log and in the next answer of `guest`.

use crate::{Name, Piece, heapless, interface, message};

/// Bytes of a file in one answer.
pub const PIECE: usize = 2048;
/// Guests that may be defined at a time, beside those of the system's description.
pub const DEFINED_MAX: usize = 16;
/// Disks of one guest.
pub const DISKS_MAX: usize = 8;

/// A path of a file in the boot archive: as it is there, or as a guest's file says it. `/boot/vmlinuz`,
/// `vmlinuz` and `boot/vmlinuz` are the same file, which system.toml calls `vmlinuz`.
pub type Path = heapless::String<112>;

/// What a guest is doing.
#[message]
#[derive(Copy)]
pub enum GuestState {
    /// Not started yet.
    Waiting,
    /// Its kernel is being loaded.
    Building,
    /// Its vCPUs run, or could.
    Running,
    /// Its vCPUs are stopped until they are told to go on; its time goes on.
    Paused,
    /// It switched itself off.
    Off,
    /// The operator took it down.
    Destroyed,
    /// It crashed, or could not be built or run.
    Failed,
}

/// One guest.
#[message]
pub struct GuestInfo {
    /// Its name in the system's description.
    pub name: Name,
    /// What it is doing.
    pub state: GuestState,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// How often it was built since the machine started.
    pub starts: u32,
    /// Its domain id.
    pub domain: u16,
    /// It is of the system's description; another one is gone when it stops.
    pub described: bool,
}

/// What becomes of a guest that ends by itself: true if it is built again.
#[message]
#[derive(Copy)]
pub struct Ends {
    /// It switched itself off.
    pub poweroff: bool,
    /// It asked for a new start.
    pub reboot: bool,
    /// It crashed.
    pub crash: bool,
}

/// A disk of a guest.
#[message]
pub struct Disk {
    /// The volume's name in the system's description.
    pub volume: Name,
    /// What the guest calls it, for instance `xvda`.
    pub device: Name,
    /// The guest cannot write.
    pub read_only: bool,
    /// It may give up sectors, if the volume can.
    pub discard: bool,
    /// The guest that serves it, instead of the component that has the volume.
    pub driver: Option<Name>,
}

/// A guest that is not in the system's description.
#[message]
pub struct Definition {
    /// Its name; no other guest has it.
    pub name: Name,
    /// Memory in MiB, even.
    pub memory_mib: u64,
    /// The CPU of each vCPU (at most `sdk::startup::VCPUS_MAX`).
    pub vcpus: heapless::Vec<u32, 32>,
    /// Kernel.
    pub kernel: Path,
    /// Initial RAM disk.
    pub initrd: Option<Path>,
    /// Kernel command line.
    pub cmdline: heapless::String<2048>,
    /// Disks.
    pub disks: heapless::Vec<Disk, DISKS_MAX>,
    /// What becomes of it when it ends.
    pub ends: Ends,
    /// Highest version of the grant table that it may choose: 1 or 2.
    pub max_grant_version: u32,
}

/// Why a guest cannot be defined.
#[message]
#[derive(Copy)]
pub enum DefineError {
    /// Its name is empty, too long for its components' names, or has letters that names do not have.
    Name,
    /// There is a guest of this name.
    Taken,
    /// No vCPU, too many of them, memory that is not a number of pieces of 2 MiB, or a version of the
    /// grant table that there is not.
    Size,
    /// The machine has no such CPU.
    Cpu(u32),
    /// The boot archive has no such kernel.
    Kernel,
    /// The boot archive has no such initial RAM disk.
    Initrd,
    /// The description has no volume that this disk (counted from 0) names, or its device is none.
    Disk(u32),
    /// As many guests are defined as can be.
    Full,
    /// The system has no components `builder` and `vmm` to build and run guests with.
    NoComponents,
}

/// A file of the boot archive that the system's description put there.
#[message]
pub struct FileInfo {
    /// Path.
    pub path: Path,
    /// Its length.
    pub bytes: u64,
}

/// What can be asked of a guest.
#[message]
#[derive(Copy)]
pub enum GuestOrder {
    /// Build and start it; it must not be there.
    Create,
    /// Take it down, whatever it does; its memory is free afterwards.
    Destroy,
    /// Stop its vCPUs.
    Pause,
    /// Let them go on.
    Unpause,
    /// Take it down and build it again, without asking it.
    Reset,
}

/// Why an order was refused.
#[message]
#[derive(Copy)]
pub enum OrderError {
    /// There is no guest of this name.
    NoGuest,
    /// The guest is in a state in which this order means nothing.
    State(GuestState),
}

/// What the machine has, and what is left of it.
#[message]
#[derive(Copy)]
pub struct MachineInfo {
    /// CPUs that run.
    pub cpus: u64,
    /// Milliseconds since the core was entered.
    pub uptime_ms: u64,
    /// RAM that the core gave to root, in KiB.
    pub memory_kib: u64,
    /// Of it, in the hands of guests.
    pub guests_kib: u64,
    /// Of it, in nobody's hands.
    pub free_kib: u64,
    /// Empty slots in root's capability space.
    pub free_slots: u64,
}

/// Bytes of a file.
#[message]
pub struct FilePiece {
    /// Length of the whole file.
    pub length: u64,
    /// Some of it; empty at its end.
    pub piece: Piece<PIECE>,
}

/// Served by root.
#[interface]
pub trait Operator {
    /// The guest with this number, counted from 0: those of the system's description in its order,
    /// then those that are defined; nothing after the last one.
    fn guest(&self, index: u32) -> Option<GuestInfo>;
    /// What the machine has left.
    fn machine(&self) -> MachineInfo;
    /// An order for the guest of this name. Answers the state that the guest goes to.
    fn order(&self, guest: Name, order: GuestOrder) -> Result<GuestState, OrderError>;
    /// Defines a guest, builds and starts it. Answers its domain id. When it stops for good it is gone.
    fn define(&self, definition: Definition) -> Result<u16, DefineError>;
    /// What follows `offset` in a file of the boot archive, and its whole length; nothing if there is
    /// no such file.
    fn file(&self, path: Path, offset: u64) -> Option<FilePiece>;
    /// The file with this number, counted from 0, of those that `[[file]]` of the system's description
    /// put into the archive.
    fn listed(&self, index: u32) -> Option<FileInfo>;
}
