//! What a toolstack does with the store when a domain comes and when it goes: the nodes that libxl
//! leaves for a PVH guest without devices, and what must not stay behind.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use idl::store::Rings;

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

/// Introduces a guest's domain, which was not known.
pub fn introduce(facts: &Facts) -> Vec<Record> {
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
    records
}

/// A domain is gone: so are its own nodes, wherever they are, and permissions that name it. The next
/// domain of this id must find nothing that was meant for this one.
pub fn release(state: &State, domain: u16) -> (Vec<Record>, Vec<Fired>) {
    let (home, vm) = (home(domain), vm(domain));
    let gone = |path: &str| below(path, &home) || below(path, &vm);
    let mut records = Vec::new();
    let mut fired = Vec::new();
    let mut kept: BTreeMap<&str, Content> = BTreeMap::new();
    let mut removed: Vec<&str> = Vec::from([home.as_str(), vm.as_str()]);
    for (path, node) in state.store.iter().filter(|(path, _)| !gone(path)) {
        let content = &node.content;
        if content.owner() == domain {
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
