//! Start-up: builds the guest's address space, domain and vCPUs out of what root gave, and lets
//! their threads run; the first thread becomes the service thread.

use alloc::boxed::Box;
use alloc::vec::Vec;

use guest_loader::layout;
use idl::builder::Built;
use idl::console::ConsoleError;
use idl::store::Rings;
use sdk::abi::boot::feature;
use sdk::console::AttachError;
use sdk::memory;
use sdk::prelude::*;
use sdk::startup::Machine;
use sdk::sync::Mutex;
use x86_platform::apic::{Mode as ApicMode, Route};
use xen_abi::{Config, Domain, MAX_GRANT_FRAMES, MapEntry, SpecialFrame, TscMode, Vendor};

use vmm_guest::console::{GuestRing, Lines};
use vmm_guest::deadline::Deadlines;
use vmm_guest::ram::Ram;
use vmm_guest::store::StoreRing;

use crate::env::{CONSOLE, STORE};
use crate::foreign::Foreign;
use crate::map::GuestMap;
use crate::peers::{self, Outlet, Peers};
use crate::service::{self, Service, StoreServer};
use crate::shared::{self, Mailbox, Shared};
use crate::stop::{Reason, Stop};
use crate::vcpu::Vcpu;

/// All special frames: those of the Xen ABI, then the console and xenstore rings' pages.
const SPECIAL_FRAMES: u32 = SpecialFrame::COUNT + layout::SPECIAL_PAGES as u32;
/// Most bits of guest-physical addresses: what four levels of nested tables translate, less the
/// bit that Xen keeps back as well.
const PHYSICAL_BITS_MAX: u32 = 46;

/// Why a guest cannot be started.
enum StartError {
    /// Root gave no guest, or one that was not built.
    NoGuest,
    /// This machine cannot run guests.
    NoVirtualisation,
    /// The core refused: what, and its answer.
    Core(&'static str, Status),
    /// A ring's page could not be mapped.
    Map(xen_abi::MapError),
    /// The Xen ABI refused the configuration.
    Domain(xen_abi::ConfigError),
    /// The console did not take the guest.
    Console(AttachError),
    /// The store did not take the guest.
    Store(sdk::store::Error),
    /// No event channel for console or store.
    Port(xen_abi::Errno),
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            StartError::NoGuest => write!(f, "root gave no guest that was built"),
            StartError::NoVirtualisation => write!(
                f,
                "this machine cannot run guests: the core says at boot what its CPU lacks, or where the firmware has it off"
            ),
            StartError::Core(what, Status::NoMemory) => write!(
                f,
                "no memory for {what}: raise `memory` of the vmm component in system.toml"
            ),
            StartError::Core(what, status) => write!(f, "{what}: {status:?}"),
            StartError::Map(error) => write!(f, "ring pages not mapped: {error:?}"),
            StartError::Domain(error) => write!(f, "not a domain that Xen has: {error:?}"),
            StartError::Console(error) => write!(f, "no console: {error:?}"),
            StartError::Store(error) => write!(f, "no store: {error:?}"),
            StartError::Port(error) => write!(f, "no event channel: {error:?}"),
        }
    }
}

fn core_error(what: &'static str) -> impl FnOnce(Status) -> StartError {
    move |status| StartError::Core(what, status)
}

/// What the entry code calls.
pub fn main(env: Env) {
    let supervisor = env.transport("supervisor");
    match start(&env) {
        Ok(mut service) => {
            if let Ok(client) = SupervisorClient::connect(supervisor)
                && let Err(error) = client.ready()
            {
                log::warn!("root did not hear that the guest runs: {error:?}");
            }
            service.run(supervisor);
        }
        Err(error) => {
            use core::fmt::Write;
            let mut detail = idl::supervisor::Detail::new();
            let _ = write!(detail, "guest not started: {error}");
            log::error!("{detail}");
            if let Ok(client) = SupervisorClient::connect(supervisor) {
                let _ = client.failed(detail);
            }
        }
    }
}

fn start(env: &Env) -> Result<Service, StartError> {
    let guest = env.guest.as_ref().ok_or(StartError::NoGuest)?;
    let built = guest.built.ok_or(StartError::NoGuest)?;
    if env.machine.features & feature::VIRTUALISATION == 0 {
        return Err(StartError::NoVirtualisation);
    }
    let own = memory::own();
    let special = memory::allocate(SPECIAL_FRAMES).map_err(core_error("special frames"))?;
    // The guest's space maps copies: the originals are mapped here.
    let mut special_copies = Vec::new();
    for index in 0..special.count {
        let frame = Cap::<cap::Frame>::new(special.frames.slot() + index);
        special_copies.push(
            frame
                .copy(Rights::ALL)
                .map_err(core_error("special frames"))?,
        );
    }
    // SAFETY: root mapped the guest's memory there, readable and writable, for as long as this
    // component lives; `allocate` mapped the special frames and gave their address to us alone.
    let ram = unsafe {
        Ram::new(
            guest.memory_address,
            guest.memory_bytes,
            special.address,
            special.count.into(),
        )
    };
    let space = own
        .address_space(SpaceKind::Guest)
        .map_err(core_error("guest address space"))?;
    let mut map = GuestMap::new(space, physical_bits(), guest.frames(), special_copies)
        .map_err(core_error("guest memory"))?;
    for page in 0..layout::SPECIAL_PAGES {
        let gfn = layout::SPECIAL_START / layout::PAGE + page;
        map.map_frame(&ram, u64::from(SpecialFrame::COUNT) + page, gfn)
            .map_err(StartError::Map)?;
    }
    let vcpus = guest.vcpu_threads.len() as u32;
    let config = configuration(&env.machine, guest, &ram, vcpus);
    let mut domain = Domain::new(config, &ram).map_err(StartError::Domain)?;
    let console_port = domain
        .alloc_service_port(CONSOLE, &ram)
        .map_err(StartError::Port)?;
    let store_port = domain
        .alloc_service_port(STORE, &ram)
        .map_err(StartError::Port)?;
    domain.set_service_ports(store_port, console_port);
    let rings = Rings {
        console_frame: layout::CONSOLE_GFN,
        console_port,
        store_frame: layout::STORE_GFN,
        store_port,
    };
    let service = env.notification();
    let mut mailboxes = Vec::new();
    for index in 0..vcpus {
        let wake: Cap<cap::Notification> = own.retype(0).map_err(core_error("notification"))?;
        let route = Route::new(layout::apic_id(index), ApicMode::XApic, 0, 0, u32::MAX);
        mailboxes.push(Mailbox::new(wake, route));
    }
    let shared: &'static Shared = Box::leak(Box::new(Shared {
        ram,
        map: Mutex::new(map),
        domain: Mutex::new(domain),
        mailboxes: mailboxes.into_boxed_slice(),
        initial: (0..vcpus).map(|_| Mutex::new(None)).collect(),
        stop: Stop::new(),
        service,
        outlets: match &guest.peers {
            Some(peers) => Outlet::all(peers).map_err(core_error("pages shared with backends"))?,
            None => Box::default(),
        },
        foreign: Mutex::new(Foreign::new(env.wire("peers"), service, vcpus)),
        connecting: Mutex::new(()),
        deadlines: Deadlines::new(vcpus as usize),
        threads: guest
            .vcpu_threads
            .iter()
            .map(|right| right.thread())
            .collect(),
        lines: Mutex::new(Lines::new()),
        vendor: if env.machine.features & feature::SVM != 0 {
            Vendor::Amd
        } else {
            Vendor::Intel
        },
        tsc_khz: env.machine.tsc_khz,
    }));
    let attached = match env.wire("console") {
        Some(endpoint) => {
            match service::attach(EndpointTransport(endpoint), &guest.name, service) {
                Ok(attached) => Some(attached),
                // The wire is for the log only: the system shows this guest nowhere.
                Err(AttachError::Console(ConsoleError::NoGuest)) => None,
                Err(error) => return Err(StartError::Console(error)),
            }
        }
        None => None,
    };
    let store = match env.wire("store") {
        Some(endpoint) => {
            let server = attach_store(EndpointTransport(endpoint), rings, service)?;
            let ring = StoreRing::new(layout::STORE_GFN * layout::PAGE, StoreServer(server));
            Some((ring, store_port))
        }
        None => None,
    };
    let peers = match &guest.peers {
        Some(start) => {
            let served = Peers::new(shared)
                .and_then(|peers| Ok((peers, peers::receiver(env, start)?)))
                .map_err(core_error("interface peer"))?;
            Some(served)
        }
        None => None,
    };
    start_vcpus(env, guest, &built, shared, space)?;
    let ring = GuestRing {
        address: layout::CONSOLE_GFN * layout::PAGE,
    };
    Ok(Service {
        shared,
        console: (ring, console_port),
        attached,
        store,
        peers,
        watch: FOREVER,
    })
}

/// Introduces the domain to the store, which fills in what its guest finds there.
fn attach_store(
    transport: EndpointTransport,
    rings: Rings,
    own: Cap<cap::Notification>,
) -> Result<sdk::store::Store, StartError> {
    let wake = own
        .mint(Rights::SIGNAL, shared::service::STORE)
        .map_err(core_error("the store's notification"))?;
    sdk::store::Store::attach(transport, Some(rings), wake).map_err(StartError::Store)
}

/// Bits of guest-physical addresses on this machine.
fn physical_bits() -> u32 {
    let bits = core::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff;
    bits.clamp(32, PHYSICAL_BITS_MAX)
}

/// The domain as the Xen ABI sees it.
fn configuration(machine: &Machine, guest: &GuestStart, ram: &Ram, vcpus: u32) -> Config {
    let pages = guest.memory_bytes / layout::PAGE;
    let now = sdk::time::now();
    let khz = machine.tsc_khz.max(1);
    let since = now.saturating_sub(machine.wall_tsc);
    let wallclock = u128::from(machine.wall_seconds) * 1_000_000_000
        + u128::from(since) * 1_000_000 / u128::from(khz);
    Config {
        domid: guest.domain,
        vcpus,
        pages,
        max_pages: pages,
        max_gfn: ram.end() / layout::PAGE - 1,
        physical_address_bits: physical_bits() as u8,
        memory_map: layout::memory_map(guest.memory_bytes)
            .iter()
            .map(|entry| MapEntry {
                address: entry.start,
                size: entry.bytes,
                kind: entry.kind as u32,
            })
            .collect(),
        grant_frames: MAX_GRANT_FRAMES,
        max_grant_version: guest.max_grant_version,
        tsc: TscMode {
            khz: u32::try_from(khz).unwrap_or(u32::MAX),
            stable: machine.features & feature::INVARIANT_TSC != 0,
        },
        tsc_at_start: now,
        wallclock_at_start: u64::try_from(wallclock).unwrap_or(u64::MAX),
        store_gfn: layout::STORE_GFN,
        console_gfn: layout::CONSOLE_GFN,
        callback_lines: false,
        // Passes through to the guest.
        rdtscp: core::arch::x86_64::__cpuid(0x8000_0001).edx >> 27 & 1 != 0,
        uuid: [0; 16],
    }
}

/// Makes the vCPUs and lets their threads run. The first one starts in the kernel, the others
/// wait to be started by it.
fn start_vcpus(
    env: &Env,
    guest: &GuestStart,
    built: &Built,
    shared: &'static Shared,
    space: Cap<cap::AddressSpace>,
) -> Result<(), StartError> {
    let invariant = env.machine.features & feature::INVARIANT_TSC != 0;
    let built = *built;
    for (index, right) in guest.vcpu_threads.iter().enumerate() {
        let cap: Cap<cap::Vcpu> = memory::own().retype(0).map_err(core_error("vCPU"))?;
        cap.configure(space).map_err(core_error("vCPU"))?;
        let index = index as u32;
        if let Some(mailbox) = shared.mailboxes.get(index as usize) {
            mailbox
                .wake
                .bind_run(cap)
                .map_err(core_error("vCPU notification"))?;
        }
        let work = move |_thread| {
            let apic_id = layout::apic_id(index);
            match Vcpu::new(index, apic_id, shared, cap, invariant) {
                Ok(mut vcpu) => {
                    if index == 0 {
                        vcpu.start_pvh(built.entry, built.start_info);
                    }
                    vcpu.run();
                }
                Err(status) => shared.stop(Reason::Unsupported {
                    vcpu: index,
                    rip: 0,
                    what: "vCPU not made",
                    word: status as u64,
                }),
            }
        };
        sdk::thread::spawn(*right, work).map_err(core_error("vCPU thread"))?;
    }
    Ok(())
}
