//! The seam between a component's code and the core, on a host: whoever tests components
//! (`microvisor-testkit`) puts a [`Core`] of its own behind the running thread, and every wrapper of
//! this crate (capabilities, messages, slots, time, ports, shared pages) reaches it as it reaches the
//! real core in ring 3. On the machine this module does not exist. Without a [`Core`] every call
//! fails with `InvalidCall`.

use core::cell::RefCell;
use core::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread_local;

use microvisor_abi::{FRAME, Status};

use crate::local::BUFFER_BYTES;
use crate::slots::Slots;

/// What stands in the core's place. All methods are called on the thread that entered.
pub trait Core: Send + Sync {
    /// A system call; registers as in `microvisor_abi`, the status as a number. May end the
    /// thread by unwinding, which is how a component dies.
    fn call(&self, thread: &Thread, number: u64, arguments: [u64; 6]) -> (u64, [u64; 6]);
    /// The page that this component has mapped at `address`; touching another one is a page fault.
    fn page(&self, address: u64) -> Option<&'static Page>;
    /// The TSC.
    fn now(&self) -> u64;
    /// IN from a byte port.
    fn read_port(&self, port: u16) -> u8;
    /// OUT to a byte port.
    fn write_port(&self, port: u16, value: u8);
}

/// 4 KiB that several components may see.
#[repr(C, align(4096))]
pub struct Page([AtomicU64; FRAME as usize / 8]);

impl Page {
    /// Zeroed.
    pub const fn new() -> Page {
        Page([const { AtomicU64::new(0) }; FRAME as usize / 8])
    }
}

impl Default for Page {
    fn default() -> Self {
        Page::new()
    }
}

/// What the threads of one component have in common.
pub struct Component {
    core: std::boxed::Box<dyn Core>,
    slots: Mutex<Slots>,
}

impl Component {
    /// One whose slots from `first` up to `count` are empty.
    pub fn new(core: std::boxed::Box<dyn Core>, first: u32, count: u32) -> Component {
        let mut slots = Slots::new();
        slots.init(first, count);
        Component {
            core,
            slots: Mutex::new(slots),
        }
    }

    pub(crate) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Slots that the component believes to be empty.
    pub fn free_slots(&self) -> u32 {
        self.slots().free()
    }

    /// Whether the component believes that `slot` is in use.
    pub fn is_taken(&self, slot: u32) -> bool {
        !self.slots().is_free(slot)
    }
}

/// One thread of a component.
pub struct Thread {
    component: Arc<Component>,
    /// Chosen by whoever made it.
    pub number: usize,
    buffer: RefCell<[u8; BUFFER_BYTES]>,
}

impl Thread {
    /// A thread with an empty message buffer.
    pub fn new(component: Arc<Component>, number: usize) -> Thread {
        Thread {
            component,
            number,
            buffer: RefCell::new([0; BUFFER_BYTES]),
        }
    }

    /// Runs `work` as this thread of its component.
    pub fn enter<R>(self: &std::rc::Rc<Self>, work: impl FnOnce() -> R) -> R {
        /// Puts back what was there, also while unwinding.
        struct Leave(Option<std::rc::Rc<Thread>>);
        impl Drop for Leave {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _leave = Leave(CURRENT.replace(Some(std::rc::Rc::clone(self))));
        crate::time::prepare();
        work()
    }

    /// Lets `work` use the message buffer.
    pub fn with_buffer<R>(&self, work: impl FnOnce(&mut [u8; BUFFER_BYTES]) -> R) -> R {
        work(&mut self.buffer.borrow_mut())
    }
}

thread_local! {
    static CURRENT: RefCell<Option<std::rc::Rc<Thread>>> = const { RefCell::new(None) };
}

fn current() -> Option<std::rc::Rc<Thread>> {
    CURRENT.with_borrow(Clone::clone)
}

pub(crate) fn call(number: u64, arguments: [u64; 6]) -> (u64, [u64; 6]) {
    match current() {
        Some(thread) => thread.component.core.call(&thread, number, arguments),
        None => (Status::InvalidCall as u64, arguments),
    }
}

/// The running thread's buffer; a fresh one if it belongs to no component.
pub(crate) fn with_buffer<R>(work: impl FnOnce(&mut [u8; BUFFER_BYTES]) -> R) -> R {
    match current() {
        Some(thread) => thread.with_buffer(work),
        None => work(&mut [0; BUFFER_BYTES]),
    }
}

pub(crate) fn component() -> Option<Arc<Component>> {
    current().map(|thread| Arc::clone(&thread.component))
}

pub(crate) fn now() -> Option<u64> {
    current().map(|thread| thread.component.core.now())
}

/// The page at `address`; the component dies of the page fault if there is none.
pub(crate) fn page(address: u64) -> &'static Page {
    match current().and_then(|thread| thread.component.core.page(address)) {
        Some(page) => page,
        None => panic!("page fault at {address:#x}"),
    }
}

pub(crate) fn read_port(port: u16) -> u8 {
    current().map_or(0xff, |thread| thread.component.core.read_port(port))
}

pub(crate) fn write_port(port: u16, value: u8) {
    if let Some(thread) = current() {
        thread.component.core.write_port(port, value);
    }
}
