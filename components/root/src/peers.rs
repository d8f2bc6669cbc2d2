//! Who may use a guest's grants and event channels: the backends of its disks, which speak as domain 0,
//! and the guests that its description calls its driver domains, which speak as theirs. Nobody else,
//! whoever they ask.

use alloc::vec::Vec;

use idl::manifest::Manifest;
use idl::volume::Backend;
use sdk::startup::PEERS_MAX;

/// One who may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A component, by its index in the manifest.
    Component(usize),
    /// The VMM of a guest, by the guest's index in the manifest.
    Guest(usize),
}

impl Caller {
    /// The domain as which it speaks; `of` is that of a guest.
    pub fn domain(self, of: impl Fn(usize) -> u16) -> u16 {
        match self {
            Caller::Component(_) => 0,
            Caller::Guest(guest) => of(guest),
        }
    }
}

/// Those who may use the grants of guest `index`: the number of each is its place in the list, which
/// the manifest alone decides. No more than a VMM can serve; `more_than_served` says whether there are.
pub fn callers(manifest: &Manifest, index: usize) -> Vec<Caller> {
    let mut callers = all(manifest, index);
    callers.truncate(PEERS_MAX);
    callers
}

/// True if a guest has more backends and driver domains than its VMM serves.
pub fn more_than_served(manifest: &Manifest, index: usize) -> bool {
    all(manifest, index).len() > PEERS_MAX
}

/// Whether a guest is its own driver domain, through whomever: the VMMs of such guests could wait for each
/// other for ever, so none of them is let use another's grants.
pub fn drives_itself(manifest: &Manifest, index: usize) -> bool {
    let mut reached = Vec::new();
    let mut next = Vec::from([index]);
    while let Some(guest) = next.pop() {
        for caller in all(manifest, guest) {
            if let Caller::Guest(driver) = caller
                && !reached.contains(&driver)
            {
                reached.push(driver);
                next.push(driver);
            }
        }
    }
    reached.contains(&index)
}

fn all(manifest: &Manifest, index: usize) -> Vec<Caller> {
    let mut callers = Vec::new();
    let Some(guest) = manifest.guests.get(index) else {
        return callers;
    };
    let mut add = |found: Option<Caller>| {
        if let Some(caller) = found
            && caller != Caller::Guest(index)
            && !callers.contains(&caller)
        {
            callers.push(caller);
        }
    };
    for disk in &guest.disks {
        if let Backend::Component(name) = &disk.backend {
            let named = |c: &idl::manifest::Component| c.name == name.as_str() && !c.per_guest;
            let found = manifest.components.iter().position(named);
            add(found.map(Caller::Component));
        }
    }
    for name in &guest.drivers {
        let found = manifest.guests.iter().position(|other| other.name == *name);
        add(found.map(Caller::Guest));
    }
    callers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::domain;
    use alloc::vec;
    use idl::manifest::{Component, Guest};
    use idl::name;
    use idl::volume::Disk;

    fn disk(backend: Backend) -> Disk {
        Disk {
            volume: name("root"),
            backend,
            device: "xvda".try_into().unwrap(),
            read_only: false,
            discard: true,
        }
    }

    fn manifest() -> Manifest {
        let component = |name: &str, per_guest| Component {
            name: name.into(),
            per_guest,
            ..Component::default()
        };
        let guest = |name: &str, disks, drivers: &[&str]| Guest {
            name: name.into(),
            disks,
            drivers: drivers.iter().map(|name| (*name).into()).collect(),
            ..Guest::default()
        };
        let of = |name_: &str| Backend::Component(name(name_));
        Manifest {
            components: vec![component("vmm", true), component("blkback", false)],
            guests: vec![
                guest("plain", vec![], &[]),
                guest("disk", vec![disk(of("blkback")), disk(of("blkback"))], &[]),
                guest("storage", vec![], &["storage"]),
                guest(
                    "served",
                    vec![disk(Backend::Guest(name("storage"))), disk(of("vmm"))],
                    &["storage", "nobody"],
                ),
            ],
            ..Manifest::default()
        }
    }

    #[test]
    fn a_backend_of_many_disks_is_one_caller_that_speaks_as_domain_0() {
        let callers = callers(&manifest(), 1);
        assert_eq!(callers, [Caller::Component(1)]);
        assert_eq!(callers[0].domain(domain), 0);
    }

    #[test]
    fn a_driver_domain_speaks_as_itself() {
        let callers = callers(&manifest(), 3);
        assert_eq!(callers, [Caller::Guest(2)]);
        assert_eq!(callers[0].domain(domain), 3);
    }

    #[test]
    fn nobody_may_without_being_named_and_nobody_for_itself() {
        for guest in [0, 2, 99] {
            assert_eq!(callers(&manifest(), guest), []);
        }
    }

    #[test]
    fn guests_that_drive_each_other_in_a_circle_are_found() {
        let mut manifest = manifest();
        assert!((0..4).all(|guest| !drives_itself(&manifest, guest)));
        manifest.guests[2].drivers.push("plain".into());
        manifest.guests[0].drivers.push("served".into());
        let circle: Vec<_> = (0..4)
            .filter(|guest| drives_itself(&manifest, *guest))
            .collect();
        assert_eq!(circle, [0, 2, 3]);
    }

    #[test]
    fn who_does_not_fit_is_not_served() {
        let mut manifest = manifest();
        for number in 0..20 {
            let name = alloc::format!("driver-{number}");
            manifest.guests[0].drivers.push(name.clone());
            manifest.guests.push(Guest {
                name,
                ..Guest::default()
            });
        }
        assert_eq!(callers(&manifest, 0).len(), PEERS_MAX);
        assert!(more_than_served(&manifest, 0));
        assert!(!more_than_served(&manifest, 3));
    }
}
