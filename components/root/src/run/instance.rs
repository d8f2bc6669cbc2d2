//! One running copy of a component: made, wired, started, and taken down. Knows nothing of why.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use idl::manifest::Component;
use idl::name;
use idl::peer::{Badge, MAPPINGS_MAX};
use root_plan::image::Image;
use root_plan::plan::{self, STACK_BYTES};
use sdk::abi::{FRAME, boot};
use sdk::local;
use sdk::memory::{LARGE, READ, READ_WRITE};
use sdk::prelude::*;
use sdk::startup::{self, DmaRight, NamesPage, SLOT_FIRST, Share, THREAD_STACK_BYTES};

use super::content::{Files, load, start_up_pages};
use super::maker::Maker;
use super::peers::{EMPTY_MAX, Empty};
use super::system::Tools;
use super::wiring::{Wiring, give_dma, give_peers, wire};

/// Where the page of a ring that is attached from the start is mapped.
const ATTACHED_ADDRESS: u64 = 0x6000_0000_0000;
/// Where the page with names of later clients is.
pub const NAMES_ADDRESS: u64 = ATTACHED_ADDRESS + FRAME;
/// A VMM's first thread gets one part in so many of its CPU's time, each of these periods.
const SERVICE_SHARE: u64 = 20;
const SERVICE_PERIOD_MS: u64 = 10;
/// Least memory that a component gets for its own use.
const OWN_MEMORY: u64 = 64 * 1024;

/// A wire to put in.
pub struct Connection {
    /// What.
    pub interface: String,
    /// Of whom.
    pub server: String,
    /// The endpoint.
    pub endpoint: Cap<cap::Endpoint>,
    /// Rights to give.
    pub rights: Rights,
    /// Badge by which the server knows this client.
    pub badge: u64,
}

/// What a guest's builder or VMM gets on top.
pub struct GuestParts<'a> {
    /// Facts; addresses, slots and threads are filled in here.
    pub start: GuestStart,
    /// Its frames, 2 MiB each, in consecutive slots; mapped nowhere.
    pub frames: Cap<cap::Frame>,
    /// How many.
    pub count: u32,
    /// Pages that are shared with those who may use its grants; empty for a builder.
    pub peer_pages: &'a [Cap<cap::Frame>],
    /// CPUs of the vCPU threads; empty for a builder.
    pub cpus: &'a [u32],
    /// Kernel and initial RAM disk, for a builder.
    pub files: Option<(&'a str, Option<&'a str>)>,
}

/// What is to be started.
pub struct Order<'a> {
    /// Name of the instance.
    pub name: &'a str,
    /// Its description.
    pub component: &'a Component,
    /// Budget and period of each of its threads, in TSC ticks; equal for no limit.
    pub time: (u64, u64),
    /// What it may call.
    pub connections: &'a [Connection],
    /// What it serves: interface and endpoint.
    pub serves: &'a [(String, Cap<cap::Endpoint>)],
    /// For builders and VMMs.
    pub guest: Option<GuestParts<'a>>,
    /// For the console: root's log ring, and the page with names of later clients.
    pub attach: Option<(Cap<cap::Frame>, Cap<cap::Frame>, NamesPage)>,
    /// For drivers: memory for their device.
    pub dma: DmaRight,
    /// Memory that it had before, if it ran before.
    pub keep: DmaRight,
    /// For servers that share memory with clients: with whom.
    pub shares: &'a [Share],
    /// Physical addresses are told: there is no IOMMU that makes them nobody's business.
    pub tell_bus: bool,
    /// For the console: frames for rings with clients, in consecutive slots; how many.
    pub ring_pages: Option<(Cap<cap::Frame>, u32)>,
    /// For the console: its clients' names by the number in their badges.
    pub clients: Vec<idl::Name>,
    /// For the console: names of the guests that it shows, likewise.
    pub guests: Vec<idl::Name>,
    /// Signalled when one of its threads faults.
    pub fault: Cap<cap::Notification>,
}

/// Why an instance could not be started.
pub enum StartError {
    /// A file is not in the archive.
    NoFile(String),
    /// Its ELF file is not one.
    Image(root_plan::image::ImageError),
    /// More wires, files or threads than a start-up page lists.
    TooMany(&'static str),
    /// The core refused, while root did this.
    Status(&'static str, Status),
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            StartError::NoFile(file) => write!(f, "{file} is not in the boot archive"),
            StartError::Image(error) => write!(f, "its program cannot be loaded: {error:?}"),
            StartError::TooMany(what) => write!(f, "it has too many {what}"),
            StartError::Status("make its memory", Status::NoMemory) => {
                write!(f, "this machine has not enough memory left for it")
            }
            StartError::Status(what, status) => write!(f, "cannot {what}: {status:?}"),
        }
    }
}

/// Names what root was doing when the core refused.
pub trait During<T> {
    /// Says what root was doing.
    fn during(self, what: &'static str) -> Result<T, StartError>;
}
impl<T> During<T> for Result<T, Status> {
    fn during(self, what: &'static str) -> Result<T, StartError> {
        self.map_err(|status| StartError::Status(what, status))
    }
}

/// A running component.
pub struct Instance {
    pub(super) maker: Maker,
    /// Its address space.
    pub(super) space: Cap<cap::AddressSpace>,
    /// Where those call a VMM who may use its guest's grants, if there are any.
    pub(super) peer: Option<Cap<cap::Endpoint>>,
    /// The rights to call there that were given.
    pub(super) rights: Vec<(Badge, Cap<cap::Endpoint>)>,
    /// Pages in the place of grants that are gone.
    pub(super) empty: Empty,
    /// Its threads, the first one first.
    pub threads: Vec<Cap<cap::Thread>>,
    /// The first one's time.
    sched: Cap<cap::SchedContext>,
    /// Its notification, without a badge.
    pub notification: Cap<cap::Notification>,
    /// Guest frames that are mapped into it: first, count.
    guest: Option<(Cap<cap::Frame>, u32)>,
    /// What the wires in its slots are, for reports.
    pub wires: Vec<(u32, String)>,
}

/// What building an instance leads to.
struct Built {
    space: Cap<cap::AddressSpace>,
    peer: Option<Cap<cap::Endpoint>>,
    threads: Vec<Cap<cap::Thread>>,
    sched: Cap<cap::SchedContext>,
    notification: Cap<cap::Notification>,
    wires: Vec<(u32, String)>,
}

impl Instance {
    /// Makes, wires and starts it out of `memory` (`kept` from an earlier run, or new from root's).
    pub fn start(
        tools: &mut Tools,
        kept: &mut Option<(Cap<cap::Memory>, u64)>,
        order: &Order<'_>,
    ) -> Result<Instance, StartError> {
        let file = &order.component.file;
        let (_, bytes) = tools
            .archive
            .file(file)
            .ok_or_else(|| StartError::NoFile(file.clone()))?;
        let image = Image::parse(bytes).map_err(StartError::Image)?;
        let cpus = order.guest.as_ref().map_or(0, |guest| guest.cpus.len());
        let threads = u64::from(order.component.threads) + cpus as u64;
        // Frames that are not made of its memory, but have slots and are mapped.
        let guest = order.guest.as_ref().map_or(0, |guest| guest.count);
        let shared: u32 = order.shares.iter().map(|share| share.memory.count).sum();
        let rings = order.ring_pages.map_or(0, |(_, count)| count);
        // Devices' memory is mapped twice: for the component and for the device.
        let peers = order.guest.as_ref().map_or(0, |g| g.peer_pages.len()) as u32;
        // Each caller may have this many, in a slot each.
        let guest = guest + peers * (1 + MAPPINGS_MAX);
        let users = order.connections.iter().any(|c| c.interface == "peers");
        // A driver domain's VMM has two for each page of another guest: enough for two of those.
        let abroad = if users && order.guest.is_some() {
            4 * MAPPINGS_MAX
        } else {
            0
        };
        let guest = guest + abroad;
        let frames = u64::from(guest + rings + 2 * (shared + order.dma.count) + order.keep.count);
        let size = plan::size(
            order.component,
            &tools.info.object_frames,
            image.frames(),
            threads,
            frames,
            tools.archive.total_bytes() as u64 / LARGE * 2,
        );
        let empty = if users { EMPTY_MAX as u64 } else { 0 };
        let total = size.total + empty + OWN_MEMORY / FRAME;
        let memory = match *kept {
            Some((memory, frames)) if frames >= total => memory,
            _ => {
                if let Some((memory, _)) = kept.take() {
                    tools.bank.give(memory);
                }
                let (memory, frames) = tools.bank.take(total).during("make its memory")?;
                *kept = Some((memory, frames));
                memory
            }
        };
        let mut maker = Maker::new(memory);
        match Self::build(tools, &mut maker, order, &image, bytes, &size) {
            Ok(Built {
                space,
                peer,
                threads,
                sched,
                notification,
                wires,
            }) => Ok(Instance {
                maker,
                space,
                peer,
                rights: Vec::new(),
                empty: Empty::default(),
                threads,
                sched,
                notification,
                wires,
                guest: order
                    .guest
                    .as_ref()
                    .map(|guest| (guest.frames, guest.count)),
            }),
            Err(error) => {
                if let Some(guest) = &order.guest {
                    unmap(guest.frames, guest.count);
                }
                if let Err(status) = maker.destroy() {
                    log::error!("component {}: not cleaned up: {status:?}", order.name);
                    *kept = None;
                }
                Err(error)
            }
        }
    }

    fn build(
        tools: &mut Tools,
        maker: &mut Maker,
        order: &Order<'_>,
        image: &Image,
        bytes: &[u8],
        size: &plan::Size,
    ) -> Result<Built, StartError> {
        let space: Cap<cap::AddressSpace> = maker
            .one(SpaceKind::Host as u64)
            .during("make its address space")?;
        let caps: Cap<cap::CapSpace> = maker
            .one(size.cap_space)
            .during("make its capability space")?;
        load(&mut tools.window, maker, space, image, bytes).during("load its program")?;
        maker
            .pages(
                space,
                boot::STACK_TOP - STACK_BYTES,
                (STACK_BYTES / FRAME) as u32,
                READ_WRITE,
            )
            .during("map its stack")?;

        let mut wiring = Wiring {
            space: caps,
            next: SLOT_FIRST,
        };
        // A VMM starts as one more equal of all vCPUs, whatever it takes; see `serve_guest`.
        let vmm = order.guest.as_ref().is_some_and(|g| !g.cpus.is_empty());
        let priority = order.component.priority.saturating_sub(vmm.into());
        let (thread, sched) = new_thread(maker, space, order, priority, order.component.cpu, 0)
            .during("make its thread")?;
        let notification: Cap<cap::Notification> = maker.one(0).during("make its notification")?;
        let own = size.own.max(OWN_MEMORY / FRAME);
        (|| {
            wiring.give_at(caps, startup::SLOT_CAP_SPACE, Rights::ALL, 0)?;
            wiring.give_at(space, startup::SLOT_ADDRESS_SPACE, Rights::ALL, 0)?;
            wiring.give_at(thread, startup::SLOT_THREAD, Rights::ALL, 0)?;
            wiring.give_at(sched, startup::SLOT_SCHED, Rights::ALL, 0)?;
            wiring.give_at(notification, startup::SLOT_NOTIFICATION, Rights::ALL, 0)?;
            maker
                .memory
                .retype_in::<cap::Memory>(own, caps, startup::SLOT_MEMORY, 1)?;
            maker
                .memory
                .retype_in::<cap::Reply>(0, caps, startup::SLOT_REPLY, 1)
        })()
        .during("give it its own capabilities")?;

        let mut facts = Startup {
            name: name(order.name),
            machine: tools.machine(),
            slots: (size.cap_space * 64 - 1) as u32,
            memory_frames: own,
            ..Startup::default()
        };
        wire(tools, &mut wiring, order, &mut facts)?;
        let mut threads = Vec::from([thread]);
        for _ in 0..order.component.threads {
            let cpu = order.component.cpu;
            let right = further_thread(
                maker,
                space,
                order,
                &mut wiring,
                priority,
                cpu,
                &mut threads,
            )
            .during("make its threads")?;
            facts
                .threads
                .push(right)
                .map_err(|_| StartError::TooMany("threads"))?;
        }
        let mut files = Files {
            space,
            next: startup::FILES_ADDRESS,
        };
        for file in &order.component.files {
            let mapped = files.map(tools, maker, file)?;
            facts
                .files
                .push(mapped)
                .map_err(|_| StartError::TooMany("files"))?;
        }
        for volume in &order.component.volumes {
            facts
                .volumes
                .push(volume.clone())
                .map_err(|_| StartError::TooMany("volumes"))?;
        }
        if let Some((log, names, page)) = order.attach {
            for (frame, address, flags) in [
                (log, ATTACHED_ADDRESS, READ_WRITE),
                (names, NAMES_ADDRESS, READ),
            ] {
                let copy = maker.copy_frame(frame).during("share root's log")?;
                maker
                    .map(copy, space, address, flags)
                    .during("share root's log")?;
            }
            facts.names = page;
            let attached = startup::Attached {
                name: name(plan::ROOT),
                address: ATTACHED_ADDRESS,
                bit: super::system::LOG_BIT,
            };
            // The list is empty: there is room.
            let _ = facts.attached.push(attached);
        }
        // More than fit have no name there, and are shown by their number.
        facts
            .clients
            .extend(order.clients.iter().take(startup::CLIENTS_MAX).cloned());
        facts
            .guests
            .extend(order.guests.iter().take(startup::CLIENTS_MAX).cloned());
        if let Some((frames, count)) = order.ring_pages {
            facts.ring_pages = startup::RingPages {
                slot: wiring.next,
                count,
            };
            for index in 0..count {
                let frame = Cap::<cap::Frame>::new(frames.slot() + index);
                wiring
                    .give(frame, Rights::READ.or(Rights::WRITE), 0)
                    .during("give it ring pages")?;
            }
        }
        facts.dma = give_dma(&mut wiring, &order.dma, order.tell_bus)?;
        facts.keep = give_dma(&mut wiring, &order.keep, false)?;
        for share in order.shares {
            let given = Share {
                client: share.client,
                memory: give_dma(&mut wiring, &share.memory, order.tell_bus)?,
            };
            let full = |_| StartError::TooMany("clients to share memory with");
            facts.shares.push(given).map_err(full)?;
        }
        if let Some(guest) = &order.guest {
            let start = add_guest(
                tools,
                maker,
                order,
                guest,
                &mut wiring,
                &mut files,
                &mut threads,
            )?;
            facts.guest = Some(start);
        }
        let mut peer = None;
        if let (Some(guest), Some(start)) = (&order.guest, &mut facts.guest)
            && !guest.peer_pages.is_empty()
        {
            let endpoint = maker.one(0).during("make its endpoint for backends")?;
            start.peers = Some(
                give_peers(&mut wiring, endpoint, guest.peer_pages)
                    .during("give it its endpoint for backends")?,
            );
            peer = Some(endpoint);
        }
        facts.free_slot = wiring.next;
        wiring.nothing_else()?;
        start_up_pages(&mut tools.window, maker, space, &facts)?;
        let first = thread
            .configure(
                space,
                caps,
                image.entry,
                boot::STACK_TOP,
                boot::INFO_ADDRESS,
            )
            .and_then(|()| thread.resume());
        first.during("start its thread")?;
        let wires = facts.wires.iter().map(|wire| {
            let text = format!("the right to call {} of {}", wire.interface, wire.server);
            (wire.slot, text)
        });
        let serves = facts.serves.iter().map(|serve| {
            let text = format!("the endpoint of {}, which it serves", serve.interface);
            (serve.slot, text)
        });
        Ok(Built {
            space,
            peer,
            threads,
            sched,
            notification,
            wires: wires.chain(serves).collect(),
        })
    }

    /// A VMM's first thread, which serves its guest's console and store, goes above all vCPUs, so
    /// that no guest keeps it waiting; a guest can keep it busy, so it gets little time there.
    pub fn serve_guest(&self, tools: &Tools, component: &Component) -> Result<(), Status> {
        let period = tools.info.tsc_khz.max(1) * SERVICE_PERIOD_MS;
        let budget = (period / SERVICE_SHARE).max(1);
        let (cpu, priority) = (component.cpu, component.priority);
        self.sched
            .set(Cap::new(boot::SLOT_CPUS), cpu, priority, budget, period)
    }

    /// Stops all threads: they take no message any more.
    pub fn stop(&self) -> Result<(), Status> {
        self.threads.iter().try_for_each(|thread| thread.suspend())
    }

    /// Stops all threads, takes everything away; the memory is kept for the next run.
    pub fn destroy(self) -> Result<(), Status> {
        self.stop()?;
        if let Some((frames, count)) = self.guest {
            unmap(frames, count);
        }
        self.maker.destroy()
    }

    /// What reports may read of it.
    pub fn regions(&self) -> &[super::maker::Region] {
        &self.maker.regions
    }
}

fn unmap(frames: Cap<cap::Frame>, count: u32) {
    for index in 0..count {
        // Those that were not reached when starting failed are not mapped.
        let _ = Cap::<cap::Frame>::new(frames.slot() + index).unmap();
    }
}

fn new_thread(
    maker: &mut Maker,
    space: Cap<cap::AddressSpace>,
    order: &Order<'_>,
    priority: u8,
    cpu: u32,
    block: u32,
) -> Result<(Cap<cap::Thread>, Cap<cap::SchedContext>), Status> {
    let thread: Cap<cap::Thread> = maker.one(0)?;
    let sched: Cap<cap::SchedContext> = maker.one(0)?;
    let (budget, period) = order.time;
    sched.set(Cap::new(boot::SLOT_CPUS), cpu, priority, budget, period)?;
    sched.bind(thread)?;
    order.fault.bind_faults(thread)?;
    let buffer = local::block(block) + local::BUFFER_OFFSET;
    maker.map(thread, space, buffer, READ_WRITE)?;
    Ok((thread, sched))
}

fn further_thread(
    maker: &mut Maker,
    space: Cap<cap::AddressSpace>,
    order: &Order<'_>,
    wiring: &mut Wiring,
    priority: u8,
    cpu: u32,
    threads: &mut Vec<Cap<cap::Thread>>,
) -> Result<ThreadRight, Status> {
    let block = threads.len() as u32;
    let (thread, sched) = new_thread(maker, space, order, priority, cpu, block)?;
    maker.pages(
        space,
        local::block(block) + local::STACK_END - THREAD_STACK_BYTES,
        (THREAD_STACK_BYTES / FRAME) as u32,
        READ_WRITE,
    )?;
    threads.push(thread);
    Ok(ThreadRight {
        thread: wiring.give(thread, Rights::ALL, 0)?,
        sched: wiring.give(sched, Rights::ALL, 0)?,
        cpu,
        block,
    })
}

fn add_guest(
    tools: &Tools,
    maker: &mut Maker,
    order: &Order<'_>,
    guest: &GuestParts<'_>,
    wiring: &mut Wiring,
    files: &mut Files,
    threads: &mut Vec<Cap<cap::Thread>>,
) -> Result<GuestStart, StartError> {
    let mut start = guest.start.clone();
    start.memory_address = startup::GUEST_ADDRESS;
    start.memory_bytes = u64::from(guest.count) * LARGE;
    let frame = |index: u32| Cap::<cap::Frame>::new(guest.frames.slot() + index);
    for index in 0..guest.count {
        let address = start.memory_address + u64::from(index) * LARGE;
        maker
            .map(frame(index), files.space, address, READ_WRITE)
            .during("map the guest's memory")?;
    }
    if let Some((kernel, initrd)) = guest.files {
        start.kernel = Some(files.map(tools, maker, kernel)?);
        start.initrd = initrd
            .map(|initrd| files.map(tools, maker, initrd))
            .transpose()?;
        return Ok(start);
    }
    start.frame_slot = wiring.next;
    start.frame_count = guest.count;
    for index in 0..guest.count {
        wiring
            .give(frame(index), Rights::ALL, 0)
            .during("give it the guest's memory")?;
    }
    // Below the VMM's first thread; see `serve_guest`.
    let priority = order.component.priority.saturating_sub(1);
    for &cpu in guest.cpus {
        let right = further_thread(maker, files.space, order, wiring, priority, cpu, threads)
            .during("make its vCPU threads")?;
        start
            .vcpu_threads
            .push(right)
            .map_err(|_| StartError::TooMany("vCPUs"))?;
    }
    Ok(start)
}
