//! From the manifest to an order of starting and a size for each component; every mistake that
//! `image-builder check` would have found is found again here, because root trusts no file.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use idl::console::Badge;
use idl::manifest::{Component, Guest, Manifest};
use idl::store;
use microvisor_abi::FRAME;
use sdk::abi as microvisor_abi;
use sdk::startup::THREAD_STACK_BYTES;

/// Interfaces that root serves itself.
pub const SERVED_BY_ROOT: [&str; 7] = [
    "supervisor",
    "builder",
    "operator",
    "admin",
    "hardware",
    "domains",
    "peers",
];
/// The name by which manifests wire to root.
pub const ROOT: &str = "root";

/// What is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// Two components, or two guests, have this name.
    Duplicate(String),
    /// A component needs a server that is not there.
    NoServer {
        /// Who.
        component: String,
        /// What.
        interface: String,
        /// Of whom.
        server: String,
    },
    /// Components wait for each other.
    Cycle(Vec<String>),
    /// A guest names a component that is not there or not `per_guest`.
    NoPattern {
        /// Which guest.
        guest: String,
        /// Its key: `builder` or `vmm`.
        key: &'static str,
        /// The name there.
        name: String,
    },
    /// A CPU that this machine does not have.
    NoCpu {
        /// Component or guest.
        name: String,
        /// The CPU.
        cpu: u32,
        /// CPUs there are.
        cpus: u64,
    },
    /// A guest without a vCPU, without memory, or with more than is supported.
    Guest(String),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Duplicate(name) => write!(f, "the name {name} is used twice"),
            PlanError::NoServer {
                component,
                interface,
                server,
            } => write!(
                f,
                "component {component} needs {interface} of {server}, which does not serve it: \
                 add \"{interface}\" to `serves` of component {server} in system.toml"
            ),
            PlanError::Cycle(names) => {
                write!(f, "components need each other in a circle:")?;
                names.iter().try_for_each(|name| write!(f, " {name}"))
            }
            PlanError::NoPattern { guest, key, name } => write!(
                f,
                "guest {guest}: its {key} {name:?} is not a component with `per_guest = true`"
            ),
            PlanError::NoCpu { name, cpu, cpus } => write!(
                f,
                "{name} is pinned to CPU {cpu}, this machine has {cpus} (numbered from 0)"
            ),
            PlanError::Guest(name) => write!(
                f,
                "guest {name} needs 1 to {} vCPUs and an even number of MiB of memory",
                sdk::startup::VCPUS_MAX
            ),
        }
    }
}

/// Checks the whole manifest; answers every mistake.
pub fn check(manifest: &Manifest, cpus: u64) -> Vec<PlanError> {
    let mut errors = Vec::new();
    let names = manifest.components.iter().map(|c| &c.name);
    duplicates(names, &mut errors);
    duplicates(manifest.guests.iter().map(|g| &g.name), &mut errors);
    for component in &manifest.components {
        if u64::from(component.cpu) >= cpus {
            errors.push(PlanError::NoCpu {
                name: component.name.clone(),
                cpu: component.cpu,
                cpus,
            });
        }
        for need in &component.needs {
            let served = if need.server == ROOT {
                SERVED_BY_ROOT.contains(&need.interface.as_str())
            } else {
                manifest.component(&need.server).is_some_and(|server| {
                    !server.per_guest && server.serves.contains(&need.interface)
                })
            };
            if !served {
                errors.push(PlanError::NoServer {
                    component: component.name.clone(),
                    interface: need.interface.clone(),
                    server: need.server.clone(),
                });
            }
        }
    }
    for guest in &manifest.guests {
        errors.extend(check_guest(manifest, guest, cpus));
    }
    if let Err(cycle) = start_order(manifest) {
        errors.push(cycle);
    }
    errors
}

/// Every mistake in one guest.
pub fn check_guest(manifest: &Manifest, guest: &Guest, cpus: u64) -> Vec<PlanError> {
    let mut errors = Vec::new();
    for (key, name) in [("builder", &guest.builder), ("vmm", &guest.vmm)] {
        if !manifest.component(name).is_some_and(|c| c.per_guest) {
            errors.push(PlanError::NoPattern {
                guest: guest.name.clone(),
                key,
                name: name.clone(),
            });
        }
    }
    if guest.vcpus.is_empty()
        || guest.vcpus.len() > sdk::startup::VCPUS_MAX
        || guest.memory_mib == 0
        || !guest.memory_mib.is_multiple_of(2)
        || guest.memory_mib > 1 << 30
        || !(1..=2).contains(&guest.max_grant_version)
    {
        errors.push(PlanError::Guest(guest.name.clone()));
    }
    for &cpu in &guest.vcpus {
        if u64::from(cpu) >= cpus {
            errors.push(PlanError::NoCpu {
                name: guest.name.clone(),
                cpu,
                cpus,
            });
        }
    }
    errors
}

fn duplicates<'a>(names: impl Iterator<Item = &'a String>, errors: &mut Vec<PlanError>) {
    let mut seen: Vec<&String> = Vec::new();
    for name in names {
        if seen.contains(&name) {
            errors.push(PlanError::Duplicate(name.clone()));
        }
        seen.push(name);
    }
}

/// Indices of the components that are not per guest, servers before their clients.
pub fn start_order(manifest: &Manifest) -> Result<Vec<usize>, PlanError> {
    let mut order: Vec<usize> = Vec::new();
    let mut left: Vec<usize> = (0..manifest.components.len())
        .filter(|&index| !manifest.components[index].per_guest)
        .collect();
    while !left.is_empty() {
        let (ready, waiting): (Vec<usize>, Vec<usize>) = left.iter().partition(|&&index| {
            // A server that does not exist is another error and does not hold anyone up.
            manifest.components[index].needs.iter().all(|need| {
                !left
                    .iter()
                    .any(|&other| manifest.components[other].name == need.server)
            })
        });
        if ready.is_empty() {
            let name = |&index: &usize| manifest.components[index].name.clone();
            return Err(PlanError::Cycle(waiting.iter().map(name).collect()));
        }
        order.extend(ready);
        left = waiting;
    }
    Ok(order)
}

/// Indices of the guests that the console of this name shows, in the manifest's order: the first is
/// the one that has its keys from the start.
pub fn shown_by(manifest: &Manifest, console: &str) -> impl Iterator<Item = usize> {
    let guests = manifest.guests.iter().enumerate();
    guests.filter_map(move |(index, guest)| {
        (!console.is_empty() && guest.console == console).then_some(index)
    })
}

/// What the console `server` is told of a client, instance number `place`: `speaks_for` is the
/// guest whose VMM it is. Everybody may log; only a guest's VMM may be that guest's console, and
/// only where the manifest says that the guest is shown. Only who has the operator's power over guests
/// may carry out what the operator types.
pub fn console_badge(
    manifest: &Manifest,
    server: &str,
    place: u32,
    speaks_for: Option<usize>,
    operator: bool,
) -> Badge {
    let number = speaks_for.and_then(|guest| {
        let number = shown_by(manifest, server).position(|shown| shown == guest)?;
        u32::try_from(number).ok()
    });
    Badge {
        component: place,
        guest: number,
        operator,
    }
}

/// Whether root gives a component the operator's power over guests.
pub fn rules_guests(component: &Component) -> bool {
    let needs = &component.needs;
    needs
        .iter()
        .any(|need| need.server == ROOT && need.interface == "operator")
}

/// The domain id of a guest of the description: its place there, counted from 1.
pub fn domain(guest: usize) -> u16 {
    u16::try_from(guest + 1).unwrap_or(u16::MAX)
}

/// What a store is told of a client, instance number `place`: a guest's VMM speaks as that guest's
/// domain (`speaks_for`), a component that belongs to no guest as domain 0, which rules the store.
pub fn store_badge(place: u32, guest: Option<usize>, speaks_for: Option<u16>) -> store::Badge {
    store::Badge {
        component: place,
        domain: match guest {
            None => Some(0),
            Some(_) => speaks_for,
        },
    }
}

/// Milliseconds of the period in which a component has its share.
const SHARE_PERIOD_MS: u64 = 10;

/// Budget and period, in TSC ticks, of a thread that may use so many percent of its CPU; equal for all
/// of it. A server that is more urgent than others needs a limit if who is not trusted can keep it
/// busy, with signals for instance.
pub fn time(share: u8, tsc_khz: u64) -> (u64, u64) {
    let period = tsc_khz.max(1).saturating_mul(SHARE_PERIOD_MS);
    match u64::from(share) {
        0 | 100.. => (period, period),
        share => ((period / 100 * share).max(1), period),
    }
}

/// Frames of 4 KiB that an instance's parts take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Its capability space.
    pub cap_space: u64,
    /// Memory for its own use.
    pub own: u64,
    /// Everything together: what its `Memory` must hold.
    pub total: u64,
}

/// Frames of 2 MiB that a device's memory, or memory shared with a client, of so many bytes takes.
pub fn large_frames(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(sdk::memory::LARGE)).unwrap_or(u32::MAX)
}

/// Capabilities to single pages of a guest that its VMM can have.
const GUEST_PAGES: u64 = 4096;

/// Bytes of a component's first stack.
pub const STACK_BYTES: u64 = microvisor_abi::boot::STACK_BYTES;

/// Sizes of an instance with `image` frames of image, `threads` further threads, and the rights to
/// `guest` frames of 2 MiB of a guest and `files` frames of files mapped.
pub fn size(
    component: &Component,
    objects: &[u32; 16],
    image: u64,
    threads: u64,
    guest: u64,
    files: u64,
) -> Size {
    let kind = |kind: microvisor_abi::Kind| {
        objects
            .get(kind as usize)
            .map_or(1, |&frames| u64::from(frames.max(1)))
    };
    let own = component.memory_bytes.div_ceil(FRAME);
    // A slot for each frame it may make of its memory, each guest frame, and its wires; for a guest,
    // pages of it that are mapped on their own, or for others.
    let pages = if guest == 0 { 0 } else { GUEST_PAGES };
    let slots = 128 + own + guest + pages + 4 * threads;
    let cap_space = (slots + 1).div_ceil(64);
    let per_thread = kind(microvisor_abi::Kind::Thread) + 1 + THREAD_STACK_BYTES / FRAME;
    // Page tables: three upper levels for each region, one table for each 2 MiB of small frames.
    let tables = 48 + 6 * threads + guest.div_ceil(512) + image.div_ceil(512) + files.div_ceil(256);
    let total = cap_space
        + kind(microvisor_abi::Kind::AddressSpace)
        + kind(microvisor_abi::Kind::Thread)
        + 8 // scheduling context, reply, notification, room for rounding
        + image
        + STACK_BYTES / FRAME
        + sdk::startup::STARTUP_BYTES as u64 / FRAME
        + threads * per_thread
        + tables
        + own;
    Size {
        cap_space,
        own,
        total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use idl::manifest::Need;

    fn component(name: &str, needs: &[(&str, &str)], serves: &[&str]) -> Component {
        Component {
            name: name.into(),
            needs: needs
                .iter()
                .map(|(interface, server)| Need {
                    interface: (*interface).into(),
                    server: (*server).into(),
                })
                .collect(),
            serves: serves.iter().map(|s| String::from(*s)).collect(),
            ..Component::default()
        }
    }

    fn system() -> Manifest {
        let mut vmm = component(
            "vmm",
            &[("console", "console"), ("supervisor", "root")],
            &[],
        );
        vmm.per_guest = true;
        let mut builder = component("builder", &[("builder", "root")], &[]);
        builder.per_guest = true;
        Manifest {
            components: vec![
                component("bench", &[("console", "console"), ("store", "store")], &[]),
                component("store", &[("console", "console")], &["store"]),
                vmm,
                builder,
                component("console", &[], &["console"]),
            ],
            guests: vec![Guest {
                name: "linux".into(),
                memory_mib: 256,
                vcpus: vec![0, 1],
                builder: "builder".into(),
                vmm: "vmm".into(),
                max_grant_version: 2,
                ..Guest::default()
            }],
            ..Manifest::default()
        }
    }

    #[test]
    fn a_share_is_part_of_ten_milliseconds() {
        let all = |(budget, period): (u64, u64)| budget == period && period > 0;
        assert!(all(time(0, 1_000_000)) && all(time(100, 1_000_000)) && all(time(255, 0)));
        assert_eq!(time(50, 1_000_000), (5_000_000, 10_000_000));
        assert_eq!(time(1, 0), (1, 10));
    }

    #[test]
    fn servers_start_before_their_clients() {
        assert_eq!(check(&system(), 2), vec![]);
        assert_eq!(start_order(&system()), Ok(vec![4, 1, 0]));
    }

    #[test]
    fn circles_are_named() {
        let mut manifest = system();
        manifest.components[4].needs = vec![Need {
            interface: "store".into(),
            server: "store".into(),
        }];
        let names = vec!["bench".into(), "store".into(), "console".into()];
        assert_eq!(check(&manifest, 2), vec![PlanError::Cycle(names)]);
    }

    #[test]
    fn every_mistake_is_found_at_once() {
        let mut manifest = system();
        manifest.components[4].serves.clear();
        manifest.components[1].name = "bench".into();
        manifest.guests[0].vmm = "store".into();
        manifest.guests[0].vcpus = vec![7];
        manifest.guests[0].memory_mib = 3;
        let errors = check(&manifest, 2);
        // bench twice; console of three clients; store of one; pattern, CPU and size of the guest.
        assert_eq!(errors.len(), 8, "{errors:?}");
    }

    #[test]
    fn a_missing_right_names_the_line_to_add() {
        let mut manifest = system();
        manifest.components[4].serves.clear();
        let text = alloc::format!("{}", check(&manifest, 2)[0]);
        assert!(
            text.contains("add \"console\" to `serves` of component console"),
            "{text}"
        );
    }

    #[test]
    fn only_a_vmm_of_a_guest_that_is_shown_speaks_for_it() {
        let mut manifest = system();
        let linux = manifest.guests[0].clone();
        let guest = |name: &str, console: &str| Guest {
            name: name.into(),
            console: console.into(),
            ..linux.clone()
        };
        manifest.guests = vec![
            guest("hidden", ""),
            guest("first", "console"),
            guest("elsewhere", "other"),
            guest("second", "console"),
        ];
        assert_eq!(
            shown_by(&manifest, "console").collect::<Vec<_>>(),
            vec![1, 3]
        );
        let badge = |guest| console_badge(&manifest, "console", 9, guest, false);
        assert_eq!(badge(Some(1)).guest, Some(0));
        assert_eq!(badge(Some(3)).guest, Some(1));
        for none in [Some(0), Some(2), None, Some(99)] {
            assert_eq!(badge(none).guest, None);
        }
        assert_eq!(console_badge(&manifest, "", 9, Some(0), false).guest, None);
    }

    #[test]
    fn a_guests_builder_does_not_speak_as_its_domain() {
        let domain = |guest, speaks_for| store_badge(4, guest, speaks_for).domain;
        assert_eq!(domain(None, None), Some(0));
        assert_eq!(domain(Some(2), Some(3)), Some(3));
        assert_eq!(domain(Some(2), None), None);
    }

    #[test]
    fn a_component_has_slots_for_all_its_memory() {
        let mut console = component("console", &[], &[]);
        console.memory_bytes = 1 << 20;
        let size = size(&console, &[0; 16], 100, 2, 128, 0);
        assert_eq!(size.own, 256);
        assert!(size.cap_space * 64 > 256 + 128 + 128);
        assert!(size.total > size.own + size.cap_space + 100 + 64);
    }
}
