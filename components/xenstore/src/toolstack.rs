//! What a toolstack does with the store when a domain comes and when it goes: the nodes that libxl
//! leaves for a PVH guest and its disks, and what must not stay behind.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use idl::store::Rings;
use idl::volume::{Backend, Disk};

use crate::PRIVILEGED;
use crate::path::{below, home};
use crate::record::{Access, Content, Permission, Permissions, Record};
use crate::request::Fired;
use crate::state::State;

/// Watches of this path fire when a domain was introduced.
pub const INTRODUCED: &str = "@introduceDomain";
/// When one is gone.
pub const RELEASED: &str = "@releaseDomain";

/// What the store says of a guest.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Domain id.
    pub domain: u16,
    /// How often it was built.
    pub starts: u32,
    /// Its name.
    pub name: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Its rings.
    pub rings: Rings,
    /// Its disks.
    pub disks: Vec<Link>,
    /// Disks of others that it serves.
    pub serves: Vec<Link>,
}

/// A disk between two domains.
#[derive(Clone, Debug)]
pub struct Link {
    /// Who has it.
    pub front: u16,
    /// Who serves it; 0 for a component.
    pub back: u16,
    /// What it is.
    pub disk: Disk,
}

/// Nodes that a guest may write: its answers to orders, and facts about itself.
const OWN: [&str; 10] = [
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
];

/// Nodes that are always there.
const ALWAYS: [&str; 6] = [
    "/",
    "/local",
    "/local/domain",
    "/local/domain/0",
    "/tool",
    "/vm",
];

fn entry(domain: u16, access: Access) -> Permission {
    Permission { domain, access }
}

fn put(path: impl Into<String>, value: &str, permissions: &Permissions) -> Record {
    let content = Content {
        value: value.as_bytes().to_vec(),
        permissions: permissions.clone(),
    };
    Record::Put(path.into(), content)
}

/// A store in which nobody was yet.
pub fn empty() -> Vec<Record> {
    let permissions = Vec::from([entry(PRIVILEGED, Access::None)]);
    let nodes = ALWAYS.iter();
    nodes.map(|path| put(*path, "", &permissions)).collect()
}

/// The path that node `vm` of a domain names.
fn vm(domain: u16) -> String {
    format!("/vm/00000000-0000-0000-0000-{domain:012x}")
}

/// The nodes by which front and back end of a disk find each other, as libxl writes them
/// (tools/libs/light/libxl_disk.c and libxl_device.c): each end has the ones below its own home, and
/// the other may read them. The back end's are left out where its domain is not there: they come when
/// it is introduced.
fn connect(link: &Link, back_is_there: bool, front_is_new: bool) -> Vec<Record> {
    let Link { front, back, disk } = link;
    let Some(number) = disk.number() else {
        return Vec::new();
    };
    let front_path = format!("{}/device/vbd/{number}", home(*front));
    let back_path = format!("{}/backend/vbd/{front}/{number}", home(*back));
    let mut records = Vec::new();
    let mut tree = |path: &str, permissions: Permissions, nodes: &[(&str, &str)]| {
        records.push(put(path, "", &permissions));
        for (node, value) in nodes {
            records.push(put(format!("{path}/{node}"), value, &permissions));
        }
    };
    let shared = |own: u16, other: u16| {
        let mut entries = Vec::from([entry(own, Access::None)]);
        if other != own {
            entries.push(entry(other, Access::Read));
        }
        entries
    };
    let (front_id, back_id) = (format!("{front}"), format!("{back}"));
    let mode = if disk.read_only { "r" } else { "w" };
    let discard = if disk.discard { "1" } else { "0" };
    if front_is_new {
        let of_toolstack = shared(PRIVILEGED, *front);
        tree(&format!("{}/device/vbd", home(*front)), of_toolstack, &[]);
        let nodes = [
            ("backend", back_path.as_str()),
            ("backend-id", back_id.as_str()),
            ("state", INITIALISING),
            ("virtual-device", &format!("{number}")),
            ("device-type", "disk"),
        ];
        tree(&front_path, shared(*front, *back), &nodes);
    }
    if back_is_there {
        let of_toolstack = shared(PRIVILEGED, *back);
        for folder in ["backend", "backend/vbd", &format!("backend/vbd/{front}")] {
            tree(
                &format!("{}/{folder}", home(*back)),
                of_toolstack.clone(),
                &[],
            );
        }
        let nodes = [
            ("frontend", front_path.as_str()),
            ("frontend-id", front_id.as_str()),
            ("online", "1"),
            ("removable", "0"),
            ("bootable", "1"),
            ("state", INITIALISING),
            ("dev", disk.device.as_str()),
            ("type", "phy"),
            ("mode", mode),
            ("device-type", "disk"),
            ("discard-enable", discard),
            ("params", disk.volume.as_str()),
            ("component", component(disk)),
        ];
        tree(&back_path, shared(*back, *front), &nodes);
    }
    records
}

/// The component that serves a disk; empty for a guest's own.
fn component(disk: &Disk) -> &str {
    match &disk.backend {
        Backend::Component(name) => name,
        Backend::Guest(_) => "",
    }
}

/// XenbusStateInitialising (Xen, public/io/xenbus.h).
const INITIALISING: &str = "1";

/// The directories of disks that changed when `facts` were introduced: who watches them is told.
pub fn connected(facts: &Facts, state: &State) -> Vec<Fired> {
    let there = |link: &&Link| link.back == PRIVILEGED || state.domains.contains_key(&link.back);
    let links = facts.disks.iter().filter(there).chain(&facts.serves);
    let fired = |link: &Link| {
        let number = link.disk.number()?;
        let path = format!("{}/backend/vbd/{}/{number}", home(link.back), link.front);
        Some(Fired {
            path,
            removed: false,
        })
    };
    links.filter_map(fired).collect()
}

/// Introduces a guest's domain, which was not known.
pub fn introduce(facts: &Facts, state: &State) -> Vec<Record> {
    let (domain, rings) = (facts.domain, &facts.rings);
    let read_only = Vec::from([entry(PRIVILEGED, Access::None), entry(domain, Access::Read)]);
    let own = Vec::from([entry(domain, Access::None)]);
    let (home, vm) = (home(domain), vm(domain));
    let mut nodes: Vec<(String, String)> = Vec::new();
    let mut say = |path: &str, value: String| nodes.push((path.into(), value));
    say("name", facts.name.clone());
    say("vm", vm.clone());
    say("domid", format!("{domain}"));
    say("cpu", String::new());
    for vcpu in 0..facts.vcpus {
        say(&format!("cpu/{vcpu}"), String::new());
        say(&format!("cpu/{vcpu}/availability"), "online".into());
    }
    say("memory", String::new());
    say("memory/static-max", format!("{}", facts.memory_kib));
    say("memory/target", format!("{}", facts.memory_kib));
    say("console", String::new());
    say("console/ring-ref", format!("{}", rings.console_frame));
    say("console/port", format!("{}", rings.console_port));
    say("console/type", "xenconsoled".into());
    say("store", String::new());
    say("store/ring-ref", format!("{}", rings.store_frame));
    say("store/port", format!("{}", rings.store_port));
    say("device", String::new());
    say("control", String::new());
    let mut records = Vec::from([
        Record::Introduce(domain, facts.starts),
        put(home.clone(), "", &read_only),
        put(vm.clone(), "", &read_only),
        put(format!("{vm}/name"), &facts.name, &read_only),
    ]);
    for (path, value) in nodes {
        records.push(put(format!("{home}/{path}"), &value, &read_only));
    }
    for path in OWN {
        records.push(put(format!("{home}/{path}"), "", &own));
    }
    for link in &facts.disks {
        let back_is_there = link.back == PRIVILEGED || state.domains.contains_key(&link.back);
        records.extend(connect(link, back_is_there, true));
    }
    for link in &facts.serves {
        records.extend(connect(link, true, false));
    }
    records
}

/// A domain is gone: so are its own nodes, wherever they are, and permissions that name it. The next
/// domain of this id must find nothing that was meant for this one.
pub fn release(state: &State, domain: u16) -> (Vec<Record>, Vec<Fired>) {
    let (home, vm) = (home(domain), vm(domain));
    let gone = |path: &str| below(path, &home) || below(path, &vm);
    // What back ends had for it: /local/domain/BACK/backend/KIND/DOMAIN.
    let id = domain.to_string();
    let was_served = |path: &str| {
        let mut parts = path.split('/').skip(1);
        let own = parts.next() == Some("local")
            && parts.next() == Some("domain")
            && parts.next().is_some()
            && parts.next() == Some("backend")
            && parts.next().is_some();
        own && parts.next() == Some(&id)
    };
    let mut records = Vec::new();
    let mut fired = Vec::new();
    let mut kept: BTreeMap<&str, Content> = BTreeMap::new();
    let mut removed: Vec<&str> = Vec::from([home.as_str(), vm.as_str()]);
    for (path, node) in state.store.iter().filter(|(path, _)| !gone(path)) {
        let content = &node.content;
        if content.owner() == domain || was_served(path) {
            removed.push(path);
        } else if content.permissions.iter().any(|one| one.domain == domain) {
            let mut content = content.clone();
            content.permissions.retain(|one| one.domain != domain);
            kept.insert(path, content);
        }
    }
    let content = |(path, content): (&str, Content)| Record::Put(path.to_string(), content);
    records.extend(kept.into_iter().map(content));
    for path in removed {
        if state.store.get(path).is_some() {
            let path = path.to_string();
            records.push(Record::Drop(path.clone()));
            fired.push(Fired {
                path,
                removed: true,
            });
        }
    }
    records.push(Record::Release(domain));
    fired.push(Fired {
        path: RELEASED.into(),
        removed: false,
    });
    (records, fired)
}
