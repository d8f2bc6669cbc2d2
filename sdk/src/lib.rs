//! What a component needs to live in ring 3: entry point, typed capabilities, IPC, memory, threads,
//! time, ports, interrupts, logging and panic reports.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! use sdk::prelude::*;
//! use idl::bench::{Bench, BenchServer};
//!
//! sdk::entry!(main);
//!
//! struct Echo;
//! impl BenchServer for Echo {
//!     fn echo(&mut self, _client: u64, bytes: idl::Bytes<31>) -> idl::Bytes<31> { bytes }
//! }
//! impl Notified for Echo { fn notified(&mut self, _bits: u64) {} }
//!
//! fn main(env: Env) {
//!     log::info!("hello");                                   // appears as `[echo] hello`
//!     let mut receiver = Receiver::new(env.endpoint("bench"), REPLY, 0).unwrap();
//!     SupervisorClient::connect(env.transport("supervisor")).unwrap().ready().unwrap();
//!     let status = serve::<Bench, _>(&mut receiver, &mut Echo);
//!     log::error!("{status:?}");
//! }
//! ```
//!
//! # Building a component
//! `Cargo.toml` depends on `sdk` and `idl`; `build.rs` is one line, which gives the linker
//! `sdk/component.ld`:
//! `fn main() { println!("cargo::rustc-link-arg-bins=-T{}/../../sdk/component.ld", env!("CARGO_MANIFEST_DIR")) }`.
//! Flags: `--target x86_64-unknown-none`, `-Crelocation-model=static -Cforce-frame-pointers=yes`.
//!
//! # What is where
//! [`startup`] the start contract with root; [`caps`] system calls by kind of capability;
//! [`ipc`] clients and servers; [`memory`] mapping; [`vcpu`] state pages; [`thread`], [`time`],
//! [`port`], [`mmio`], [`dma`], [`keep`], [`block`], [`peer`], [`store`], [`logging`], [`console`], [`sync`], [`slots`], [`mod@panic`].
//!
//! On a host the crate builds too: there the crate `microvisor-testkit` stands in the core's place,
//! and a component's own code runs under `cargo test` (`host`). Without it every system call fails.
#![no_std]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

pub mod block;
pub mod caps;
pub mod console;
pub mod dma;
pub mod entry;
pub mod heap;
#[cfg(not(target_os = "none"))]
pub mod host;
pub mod ipc;
pub mod keep;
pub mod local;
pub mod logging;
pub mod memory;
pub mod mmio;
pub mod panic;
pub mod peer;
pub mod port;
pub mod raw;
pub mod slots;
pub mod startup;
pub mod store;
pub mod sync;
pub mod thread;
pub mod time;
pub mod vcpu;

pub use microvisor_abi as abi;

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: heap::ComponentHeap = heap::ComponentHeap::new();

/// Bytes of this component's heap in use; 0 on a host, whose heap is not ours.
pub fn heap_used() -> usize {
    #[cfg(target_os = "none")]
    return HEAP.used();
    #[cfg(not(target_os = "none"))]
    0
}

/// What most components use.
pub mod prelude {
    pub use crate::caps::*;
    pub use crate::entry::Env;
    pub use crate::ipc::{EndpointTransport, Message, Notified, Received, Receiver, serve};
    pub use crate::startup::{GuestStart, Startup, ThreadRight};
    pub use idl::supervisor::SupervisorClient;
    pub use idl::{Cap, cap};
    pub use microvisor_abi::{FOREVER, NOW, Rights, SpaceKind, Status};

    /// The first thread's reply object.
    pub const REPLY: Cap<cap::Reply> = Cap::new(crate::startup::SLOT_REPLY);
}
