//! `operator`: what the operator's console asks root, which serves this interface: which guests
//! there are, what the machine has left, and orders for one guest. Whoever holds this wire rules
//! over every guest, so a system gives it to its console and to nobody else.
//!
//! Root answers an order before it carries it out: the answer says whether the order is allowed,
//! what came of it is in root's log and in the next answer of `guest`.

use crate::{Name, interface, message};

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

/// Served by root.
#[interface]
pub trait Operator {
    /// The guest with this number, counted from 0 in the order of the system's description;
    /// nothing after the last one.
    fn guest(&self, index: u32) -> Option<GuestInfo>;
    /// What the machine has left.
    fn machine(&self) -> MachineInfo;
    /// An order for the guest of this name. Answers the state that the guest goes to.
    fn order(&self, guest: Name, order: GuestOrder) -> Result<GuestState, OrderError>;
}
