//! Names of physical memory and of objects.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

/// A physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// The address `bytes` further on.
    #[inline]
    pub const fn add(self, bytes: u64) -> PhysAddr {
        PhysAddr(self.0 + bytes)
    }

    /// Number of the 4 KiB frame that contains it.
    #[inline]
    pub const fn frame(self) -> u64 {
        self.0 >> 12
    }
}

/// The parts of a vCPU that belong to the virtualisation hardware: physically contiguous, in this
/// order, given to `Machine` as addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuArea {
    /// The state page shared with the VMM (one frame).
    pub state: PhysAddr,
    /// The area that only the core touches: as many frames as `Config::vcpu_frames` says.
    pub area: PhysAddr,
}

/// What kind of object begins in a frame. Part of the frame's tag, so that a reference to one
/// kind never resolves to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// No object: free, untyped, or mappable memory.
    None = 0,
    /// A table of capabilities.
    CapSpace = 1,
    /// An address space's descriptor.
    AddressSpace = 2,
    /// A table of an address space.
    PageTable = 3,
    /// A thread.
    Thread = 4,
    /// A scheduling context.
    SchedContext = 5,
    /// An endpoint.
    Endpoint = 6,
    /// A reply.
    Reply = 7,
    /// A notification.
    Notification = 8,
    /// A vCPU.
    Vcpu = 9,
}

/// A weak, checked reference to an object: its frame number in the high half, and in the low half
/// the tag (kind and generation) that the frame must still carry. One word, since it is copied far
/// more often than taken apart; zero refers to nothing.
#[repr(transparent)]
pub struct Ref<T> {
    raw: u64,
    object: PhantomData<fn() -> T>,
}

impl<T> Ref<T> {
    /// Refers to nothing.
    pub const NULL: Ref<T> = Ref::from_raw(0);

    /// A reference from a frame number and a tag.
    #[inline]
    pub(crate) const fn new(frame: u32, tag: u32) -> Self {
        Ref::from_raw((frame as u64) << 32 | tag as u64)
    }

    /// A reference from the word made by [`Ref::raw`].
    #[inline]
    pub(crate) const fn from_raw(raw: u64) -> Self {
        Ref {
            raw,
            object: PhantomData,
        }
    }

    /// The reference as one word.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.raw
    }

    /// True if this refers to nothing.
    #[inline]
    pub const fn is_null(self) -> bool {
        self.tag() == 0
    }

    /// The tag that the frame must carry.
    #[inline]
    pub(crate) const fn tag(self) -> u32 {
        self.raw as u32
    }

    /// Number of the frame in which the object begins.
    #[inline]
    pub(crate) const fn frame(self) -> u64 {
        self.raw >> 32
    }

    /// Where the object begins.
    #[inline]
    pub const fn addr(self) -> PhysAddr {
        PhysAddr(self.frame() << 12)
    }
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ref<T> {}
impl<T> PartialEq for Ref<T> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}
impl<T> Eq for Ref<T> {}
impl<T> core::fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}/{:#x}", self.addr().frame(), self.tag())
    }
}

/// A reference in an object that other CPUs read without the kernel lock.
#[repr(transparent)]
pub(crate) struct SharedRef<T> {
    raw: AtomicU64,
    object: PhantomData<fn() -> T>,
}

impl<T> SharedRef<T> {
    #[inline(always)]
    pub(crate) fn get(&self) -> Ref<T> {
        Ref::from_raw(self.raw.load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, to: Ref<T>) {
        self.raw.store(to.raw(), Ordering::Release);
    }
}

impl<T> core::fmt::Debug for SharedRef<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}
