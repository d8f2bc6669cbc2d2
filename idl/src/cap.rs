//! Capabilities as types: a slot number that knows what kind of object it names.
//!
//! The type is a promise of whoever wired or sent the capability, checked by the core at every
//! call: a wrong kind is an error value, never a danger. What can be done with one is in `sdk`.

use core::fmt;
use core::marker::PhantomData;

/// A slot of this component's capability space that names a `K`. Costs a `u32`; copying it does
/// not copy the capability, dropping it does not delete it.
#[repr(transparent)]
pub struct Cap<K> {
    slot: u32,
    kind: PhantomData<fn() -> K>,
}

impl<K> Cap<K> {
    /// The capability in `slot`.
    #[inline(always)]
    pub const fn new(slot: u32) -> Self {
        Cap {
            slot,
            kind: PhantomData,
        }
    }

    /// Its slot.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.slot
    }
}

impl<K> Clone for Cap<K> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Cap<K> {}
impl<K> PartialEq for Cap<K> {
    fn eq(&self, other: &Self) -> bool {
        self.slot == other.slot
    }
}
impl<K> Eq for Cap<K> {}
impl<K> fmt::Debug for Cap<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.slot)
    }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug)]
        pub enum $name {}
        impl crate::schema::Schema for Cap<$name> {
            const HASH: u64 = crate::schema::hash(concat!("Cap<", stringify!($name), ">"));
        }
    )*};
}

kinds! {
    /// Untyped physical memory.
    Memory
    /// Memory that can be mapped.
    Frame
    /// Frames for page tables.
    Tables
    /// A table of capabilities.
    CapSpace
    /// A translation tree.
    AddressSpace
    /// A host execution context.
    Thread
    /// CPU time.
    SchedContext
    /// Where calls go.
    Endpoint
    /// Where one answer goes.
    Reply
    /// A word of sticky bits.
    Notification
    /// A virtual CPU.
    Vcpu
    /// Interrupt lines.
    Interrupt
    /// I/O ports.
    IoPorts
    /// CPUs, up to a priority.
    Cpu
    /// A range of PCI functions, by requester id.
    Device
}
