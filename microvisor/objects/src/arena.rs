//! The one place where physical memory becomes Rust references.
//!
//! The arena covers physical memory from 0 to a limit through a linear alias (the core's direct
//! map; on the host a plain allocation). Beside it stands the *frame table*: one word per frame
//! with the kind of object that begins there and a generation. A [`Ref`] resolves only while the
//! frame's word equals the tag that the reference was made with, so a reference that outlived its
//! object resolves to nothing, whatever the memory holds by then.
//!
//! Everything else in this crate is safe code on top of this file and of `slot.rs`.

use crate::id::{FrameKind, PhysAddr, Ref};
use crate::slot::{Slot, SlotRef};
use core::marker::PhantomData;

/// The last generation of a frame.
const GENERATION_MAX: u32 = 0x00ff_ffff;

/// An object that may live in the arena.
///
/// # Safety
/// The type is `repr(C)`, at most 4096 bytes with an alignment of at most 4096, valid when all
/// bytes are zero, and has no destructor. `KIND` is used by no other type.
pub unsafe trait Object: Sized {
    /// The tag's kind.
    const KIND: FrameKind;
}

/// Where the core sees physical memory, all of it: a constant there, so that no path loads it.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;

/// Physical memory, seen linearly, with its frame table.
#[derive(Clone, Copy, Debug)]
pub struct Arena {
    base: *mut u8,
    table: *mut u32,
    frames: u64,
    /// Counts what can make a looked-up capability or object stale: a slot emptied or moved, an
    /// object made or destroyed, a thread given another capability space. Never 0.
    revision: u64,
    /// The capability whose children are being handed to its parent, if any: see `pass_up`.
    pub(crate) leaving: SlotRef,
}

// SAFETY: the pointers are to memory that lives as long as the system; exclusive use is the kernel
// lock's business, stated at each method.
unsafe impl Send for Arena {}
// SAFETY: as above; shared methods only make shared references to objects.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena over `frames` frames of physical memory visible from `base` on ([`DIRECT_MAP`] in the
    /// core, anywhere on a host), with a frame table
    /// of as many zeroed words at `table`.
    ///
    /// # Safety
    /// `base` is 4 KiB aligned; the memory that the kernel is later told is RAM is valid through
    /// `base` for reads and writes for ever, and nobody else keeps references into it. `table`
    /// points to `frames` zeroed, exclusively owned words that are not themselves handed out.
    pub const unsafe fn new(base: *mut u8, table: *mut u32, frames: u64) -> Self {
        Arena {
            base,
            table,
            frames,
            revision: 1,
            leaving: SlotRef::NONE,
        }
    }

    /// An arena of no memory, for a kernel that is not set up yet.
    pub const fn empty() -> Self {
        Arena {
            base: core::ptr::null_mut(),
            table: core::ptr::null_mut(),
            frames: 0,
            revision: 1,
            leaving: SlotRef::NONE,
        }
    }

    /// Frames covered.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Where a physical address is visible.
    #[inline]
    pub fn pointer(&self, addr: PhysAddr) -> *mut u8 {
        let base = if cfg!(target_os = "none") {
            DIRECT_MAP as *mut u8
        } else {
            self.base
        };
        base.wrapping_add(addr.0 as usize)
    }

    #[inline]
    pub(crate) fn tag_of(&self, frame: u64) -> u32 {
        if frame >= self.frames {
            return 0;
        }
        // SAFETY: `frame` is below `frames`, the length of the table (contract of `new`).
        unsafe { self.table.add(frame as usize).read_volatile() }
    }

    fn set_tag(&mut self, frame: u64, tag: u32) {
        if frame < self.frames {
            // SAFETY: `frame` is below `frames`, the length of the table (contract of `new`).
            unsafe { self.table.add(frame as usize).write_volatile(tag) }
        }
    }

    /// True if the reference still refers to an object.
    #[inline]
    pub fn alive<T>(&self, object: Ref<T>) -> bool {
        !object.is_null() && self.tag_of(object.frame()) == object.tag()
    }

    /// The object, if it still exists.
    #[inline]
    pub fn get<T: Object>(&self, object: Ref<T>) -> Option<&T> {
        if !self.alive(object) {
            return None;
        }
        // SAFETY: only `create::<T>` makes a tag of `T::KIND` and it zeroed the frame, which is a
        // valid `T`; the frame is not handed out otherwise while it carries the tag. Frames are
        // 4 KiB aligned. `&self` excludes `get_mut` through the same arena, and the kernel lock
        // excludes other arenas; fields read without the lock are atomics.
        Some(unsafe { &*self.pointer(object.addr()).cast::<T>() })
    }

    /// The object, if it still exists, for change.
    #[inline]
    pub fn get_mut<T: Object>(&mut self, object: Ref<T>) -> Option<&mut T> {
        if !self.alive(object) {
            return None;
        }
        // SAFETY: as in `get`; `&mut self` makes the reference exclusive.
        Some(unsafe { &mut *self.pointer(object.addr()).cast::<T>() })
    }

    /// Makes an object of kind `T` in the (zeroed) frame at `addr`.
    pub fn create<T: Object>(&mut self, addr: PhysAddr) -> Ref<T> {
        self.zero(addr, 4096);
        let tag = self.retag(addr, T::KIND);
        Ref::new(addr.frame() as u32, tag)
    }

    /// What was looked up before may not be what a lookup would find now.
    #[inline]
    pub(crate) fn revise(&mut self) {
        self.revision += 1;
    }

    /// Gives the frame a new generation and kind; references made before stop resolving. The last
    /// generation is for page tables, which nothing refers to.
    pub fn retag(&mut self, addr: PhysAddr, kind: FrameKind) -> u32 {
        self.revise();
        let generation = (self.tag_of(addr.frame()) >> 8)
            .wrapping_add(u32::from(cfg!(not(control = "generation"))))
            .min(GENERATION_MAX);
        let tag = generation << 8 | kind as u32;
        self.set_tag(addr.frame(), tag);
        tag
    }

    /// True if the frame has no generation left for another object: one takes at most three. Counting
    /// from the start again would let references that were kept for so long resolve.
    pub(crate) fn is_spent(&self, frame: u64) -> bool {
        self.tag_of(frame) >> 8 > GENERATION_MAX - 3
    }

    /// Ends an object: from now on no reference to it resolves.
    pub fn destroy<T: Object>(&mut self, object: Ref<T>) {
        if self.alive(object) {
            self.retag(object.addr(), FrameKind::None);
        }
    }

    /// Fills memory with zeros. The range must be memory that the kernel was given.
    pub fn zero(&mut self, addr: PhysAddr, bytes: u64) {
        debug_assert!(addr.frame() + (bytes >> 12) <= self.frames);
        // SAFETY: callers pass ranges inside a `Memory` capability or an object's own frames,
        // which are RAM that the arena covers, and to which no reference is held across this call
        // (`&mut self`).
        unsafe { self.pointer(addr).write_bytes(0, bytes as usize) }
        #[cfg(test)]
        crate::refinement::walker::after_store(self);
    }

    /// Copies bytes between message buffers, which components may be writing to meanwhile.
    #[inline]
    pub fn copy(&mut self, from: PhysAddr, to: PhysAddr, bytes: usize) {
        if bytes == 0 || from == to {
            return;
        }
        // SAFETY: both are message buffers of live threads (whole frames inside the arena) and
        // different; no Rust references to message buffers exist. A component that writes to its
        // buffer meanwhile only garbles its own message.
        unsafe { core::ptr::copy_nonoverlapping(self.pointer(from), self.pointer(to), bytes) }
    }

    /// Reads a word of memory that components may share; each call reads once.
    #[inline]
    pub fn read<T: Copy>(&self, addr: PhysAddr) -> T {
        // SAFETY: callers pass aligned addresses of message buffers or page tables, which are RAM
        // inside the arena; `T` is a plain integer for which every value is valid.
        unsafe { self.pointer(addr).cast::<T>().read_volatile() }
    }

    /// Writes a word of memory that components or page walkers may read.
    #[inline]
    pub fn write<T: Copy>(&mut self, addr: PhysAddr, value: T) {
        // SAFETY: as `read`; a table entry is written by one aligned store, as walkers require.
        unsafe { self.pointer(addr).cast::<T>().write_volatile(value) }
        #[cfg(test)]
        crate::refinement::walker::after_store(self);
    }

    /// A view of memory that nobody else touches (boot: copying an image in).
    pub fn bytes_mut(&mut self, addr: PhysAddr, bytes: usize) -> &mut [u8] {
        // SAFETY: as `zero`: RAM inside the arena to which no other reference exists.
        unsafe { core::slice::from_raw_parts_mut(self.pointer(addr), bytes) }
    }
}

/// The arena while no object is made or destroyed: a reference is checked once and then used as
/// often as needed. The brand `'v` belongs to one [`Arena::freeze`] alone.
pub(crate) struct View<'v> {
    arena: &'v mut Arena,
    brand: PhantomData<fn(&'v ()) -> &'v ()>,
}

/// An object or a slot that exists as long as the view of this brand.
pub(crate) struct Live<'v, T> {
    pointer: *mut T,
    brand: PhantomData<fn(&'v ()) -> &'v ()>,
}

impl<T> Clone for Live<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Live<'_, T> {}

/// What the lookup of one argument word found, and when. All zero: nothing yet.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Memo<A, B> {
    revision: u64,
    word: u64,
    first: *mut A,
    second: *mut B,
    /// Names of the same.
    pub(crate) names: (Ref<A>, Ref<B>),
}

impl Arena {
    /// Works on objects that cannot come or go meanwhile.
    #[inline(always)]
    pub(crate) fn freeze<R>(&mut self, work: impl for<'v> FnOnce(View<'v>) -> R) -> R {
        work(View {
            arena: self,
            brand: PhantomData,
        })
    }
}

impl<'v> View<'v> {
    #[inline(always)]
    fn live<T>(pointer: *mut T) -> Live<'v, T> {
        Live {
            pointer,
            brand: PhantomData,
        }
    }

    /// The object, if it exists.
    #[inline(always)]
    pub(crate) fn check<T: Object>(&self, object: Ref<T>) -> Option<Live<'v, T>> {
        let pointer = self.arena.pointer(object.addr()).cast();
        self.arena.alive(object).then(|| View::live(pointer))
    }

    /// An object that is known to exist.
    ///
    /// # Safety
    /// `object` would resolve: it comes from an intrusive list or a pair of references, whose links
    /// are taken back before either end is destroyed, or is a CPU's current thread on that CPU.
    #[inline(always)]
    pub(crate) unsafe fn linked<T: Object>(&self, object: Ref<T>) -> Live<'v, T> {
        debug_assert!(self.arena.alive(object));
        View::live(self.arena.pointer(object.addr()).cast())
    }

    /// A slot, as [`Arena::slot`] takes it.
    #[inline(always)]
    pub(crate) fn slot(&self, slot: SlotRef) -> Live<'v, Slot> {
        View::live(self.arena.pointer(slot.addr()).cast())
    }

    /// Reads it.
    #[inline(always)]
    pub(crate) fn get<T>(&self, live: Live<'v, T>) -> &T {
        // SAFETY: as in `Arena::get` and `Arena::slot`. It was found in this very arena (the
        // brand), which the view has held exclusively since, without a way to destroy objects or
        // to give up capability spaces.
        unsafe { &*live.pointer }
    }

    /// Changes it.
    #[inline(always)]
    pub(crate) fn get_mut<T: Object>(&mut self, live: Live<'v, T>) -> &mut T {
        // SAFETY: as in `get`; `&mut self` makes the reference exclusive.
        unsafe { &mut *live.pointer }
    }

    /// Remembers what a word led to.
    #[inline(always)]
    pub(crate) fn memo<A, B>(
        &self,
        word: u64,
        first: Live<'v, A>,
        second: Live<'v, B>,
        names: (Ref<A>, Ref<B>),
    ) -> Memo<A, B> {
        Memo {
            revision: self.arena.revision,
            word,
            first: first.pointer,
            second: second.pointer,
            names,
        }
    }

    /// What the same word led to before, if looking it up again would lead to the same.
    #[inline(always)]
    pub(crate) fn recall<A, B>(
        &self,
        memo: &Memo<A, B>,
        word: u64,
    ) -> Option<(Live<'v, A>, Live<'v, B>)> {
        // Nothing was destroyed since `memo` was made of live objects of this arena: its revision
        // has only grown, and memos are in objects of the arena they are about.
        (memo.revision == self.arena.revision && memo.word == word)
            .then(|| (View::live(memo.first), View::live(memo.second)))
    }
}
