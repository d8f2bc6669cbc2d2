//! `admin`: what whoever looks after the system asks root, which serves this interface: what root
//! has left and holds, and that a component dies. This wire is power over every component; a
//! system gives it to nobody, or to the one that replaces root's operator.

use crate::{Name, interface, message};

/// What root has, by its own books and by the core's. After components came and went it is what
/// it was before, or something was lost.
#[message]
#[derive(Copy)]
pub struct Inventory {
    /// Frames of 4 KiB that the core made something of, in all memory that root holds. A frame
    /// counts once for each memory that it was carved from.
    pub used_frames: u64,
    /// Memory that nobody has, in KiB.
    pub free_kib: u64,
    /// Slots of root's that root's books call empty.
    pub free_slots: u64,
    /// Slots of root's in which the core finds a capability.
    pub held_slots: u64,
    /// Bytes of root's heap in use.
    pub heap_bytes: u64,
    /// Components, builders and VMMs that run.
    pub running: u64,
}

/// Why a component was not killed.
#[message]
#[derive(Copy)]
pub enum AdminError {
    /// There is no component of this name.
    NoComponent,
    /// It does not run.
    NotRunning,
}

/// Served by root.
#[interface]
pub trait Admin {
    /// What root has now.
    fn inventory(&self) -> Inventory;
    /// Ends a component as if it had faulted: its peers are told, and it is started again if its
    /// policy says so. Instances for a guest are called `<component>-<guest>`; with one of those its
    /// guest ends. Root answers before it does it.
    fn kill(&self, component: Name) -> Result<(), AdminError>;
}
