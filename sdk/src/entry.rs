//! From the first instruction to `main`: reads the start-up pages, sets up slots, heap, time and
//! log, and attaches the log to the console if one was wired.

use alloc::boxed::Box;
use core::ops::Deref;

use idl::Cap;
use microvisor_abi::boot;

use crate::startup::{STARTUP_BYTES, Startup};
use crate::{ipc, logging, memory, slots, startup, time};

/// What a component's `main` gets: the [`Startup`] facts and a few shortcuts.
pub struct Env {
    startup: Box<Startup>,
}

impl Deref for Env {
    type Target = Startup;
    fn deref(&self) -> &Startup {
        &self.startup
    }
}

impl Env {
    /// What a component of a simulated system gets.
    #[cfg(not(target_os = "none"))]
    pub fn of(startup: Startup) -> Env {
        Env {
            startup: Box::new(startup),
        }
    }

    /// A connected client of a wired interface: `env.connect("console", ConsoleClient::connect)`.
    /// A missing wire stops the component with a message that names the line to add.
    pub fn transport(&self, interface: &str) -> ipc::EndpointTransport {
        match self.wire(interface) {
            Some(endpoint) => ipc::EndpointTransport(endpoint),
            None => self.missing("needs", interface),
        }
    }

    /// The endpoint of an interface that this component serves.
    pub fn endpoint(&self, interface: &str) -> Cap<idl::cap::Endpoint> {
        match self.served(interface) {
            Some(endpoint) => endpoint,
            None => self.missing("serves", interface),
        }
    }

    /// Ends the component: `what` of `key` is not in its rights. Root reports the message.
    pub fn missing(&self, key: &str, what: &str) -> ! {
        let name = &self.name;
        panic!(
            "{name} lacks a right: {what}. Add \"{what}\" to `{key}` of component {name} in system.toml"
        )
    }
}

/// What the entry stub of a component calls.
pub fn component(main: fn(Env)) -> ! {
    // SAFETY: root mapped the start-up pages there, readable, before it started this thread.
    let pages =
        unsafe { core::slice::from_raw_parts(boot::INFO_ADDRESS as *const u8, STARTUP_BYTES) };
    // On the stack first: the heap needs to know the slots.
    let Ok(facts) = startup::read(pages) else {
        panic!("the start-up pages are not those of this sdk's version")
    };
    slots::init(facts.free_slot, facts.slots);
    time::set_tsc_khz(facts.machine.tsc_khz);
    time::prepare();
    logging::init();
    let env = Env {
        startup: Box::new(facts),
    };
    if env.name != "console"
        && let Some(console) = env.wire("console")
        && let Err(error) = logging::attach(console, &env.name)
    {
        // It can still work and tell root; only its log is mute.
        log::warn!("log not attached: {error:?}");
    }
    let thread = env.thread();
    main(env);
    // Nothing left to do: the thread stops, the component stays until root takes it down.
    loop {
        let _ = crate::caps::ThreadCap::suspend(thread);
    }
}

/// What root's entry stub calls: like [`component`], from the core's facts.
pub fn root(main: fn(&'static boot::Info)) -> ! {
    // SAFETY: the core mapped it there, readable, for as long as root lives, and writes it no
    // more; every bit pattern is a valid `Info`.
    let info = unsafe { &*(boot::INFO_ADDRESS as *const boot::Info) };
    if info.magic != boot::MAGIC {
        panic!("the core's facts are not those of this sdk's version")
    }
    slots::init(info.free_slot, info.slots);
    time::set_tsc_khz(info.tsc_khz);
    // The largest RAM feeds root's own heap and page tables.
    let largest = info
        .memories
        .iter()
        .take(info.memory_count as usize)
        .filter(|range| range.device == 0)
        .max_by_key(|range| range.frames);
    if let Some(range) = largest {
        memory::set_own(Cap::new(range.slot));
    }
    time::prepare();
    logging::init();
    main(info);
    crate::panic::stop()
}

/// Makes `fn main(env: Env)` the component's entry point.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        $crate::entry_stub!($crate::entry::component($main));
    };
}

/// Makes `fn main(info: &'static abi::boot::Info)` root's entry point.
#[macro_export]
macro_rules! root_entry {
    ($main:path) => {
        $crate::entry_stub!($crate::entry::root($main));
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! entry_stub {
    ($run:expr) => {
        extern "C" fn component_main() -> ! {
            $run
        }

        /// First instruction: ends the frame pointer chain and aligns the stack.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn _start() -> ! {
            ::core::arch::naked_asm!(
                "xor ebp, ebp",
                "and rsp, -16",
                "call {main}",
                "ud2",
                main = sym component_main,
            )
        }
    };
}
