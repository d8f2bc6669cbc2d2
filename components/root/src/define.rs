//! Guests that are not in the system's description: whether a definition can be one, where its files
//! are, and which domain id it gets. Pure; what it leads to is `run/define.rs`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use idl::manifest::{Component, Guest, Manifest};
use idl::operator::{DEFINED_MAX, DefineError, Definition, Disk};
use idl::volume::{self, Backend};

use crate::plan::{self, PlanError};

/// Components that build and run them.
const BUILDER: &str = "builder";
const VMM: &str = "vmm";
/// Where `[[file]]` of a system's description puts files.
pub const FILES: &str = "boot/";
/// Domain ids from here on have a meaning of their own: DOMID_FIRST_RESERVED, Xen public/xen.h.
const RESERVED: u16 = 0x7ff0;

/// The file of the archive that a path means; see [`idl::operator::Path`].
pub fn file(path: &str, there: impl Fn(&str) -> bool) -> Option<String> {
    let bare = path.trim_start_matches('/');
    [format!("{FILES}{bare}"), bare.into()]
        .into_iter()
        .find(|name| there(name))
}

/// The guest of a definition. `described` guests of the manifest are the description's; those after
/// them were defined, and have no name when they are gone. `there` says which files the archive has.
pub fn guest(
    manifest: &Manifest,
    described: usize,
    cpus: u64,
    there: impl Fn(&str) -> bool,
    definition: &Definition,
) -> Result<Guest, DefineError> {
    let name = definition.name.as_str();
    let good = |letter: char| letter.is_ascii_alphanumeric() || "-_.+".contains(letter);
    let fits = |pattern: &str| pattern.len() + 1 + name.len() <= definition.name.capacity();
    if name.is_empty() || !name.chars().all(good) || !fits(BUILDER) || !fits(VMM) {
        return Err(DefineError::Name);
    }
    if manifest.guests.iter().any(|guest| guest.name == name) {
        return Err(DefineError::Taken);
    }
    let defined = manifest.guests.iter().skip(described);
    if defined.filter(|guest| !guest.name.is_empty()).count() >= DEFINED_MAX {
        return Err(DefineError::Full);
    }
    let mut disks = Vec::new();
    for (disk, number) in definition.disks.iter().zip(0..) {
        disks.push(self::disk(manifest, disk).ok_or(DefineError::Disk(number))?);
    }
    let driver = |disk: &volume::Disk| match &disk.backend {
        Backend::Guest(name) => Some(String::from(name.as_str())),
        Backend::Component(_) => None,
    };
    let mut drivers: Vec<String> = disks.iter().filter_map(driver).collect();
    drivers.sort_unstable();
    drivers.dedup();
    let kernel = file(&definition.kernel, &there).ok_or(DefineError::Kernel)?;
    let initrd = definition.initrd.as_ref();
    let initrd = initrd.map(|path| file(path, &there).ok_or(DefineError::Initrd));
    let guest = Guest {
        name: name.into(),
        memory_mib: definition.memory_mib,
        vcpus: definition.vcpus.iter().copied().collect(),
        kernel,
        initrd: initrd.transpose()?,
        cmdline: definition.cmdline.as_str().into(),
        builder: BUILDER.into(),
        vmm: VMM.into(),
        console: console(manifest).into(),
        disks,
        drivers,
        max_grant_version: definition.max_grant_version,
    };
    match plan::check_guest(manifest, &guest, cpus).first() {
        None => Ok(guest),
        Some(PlanError::NoPattern { .. }) => Err(DefineError::NoComponents),
        Some(PlanError::NoCpu { cpu, .. }) => Err(DefineError::Cpu(*cpu)),
        Some(_) => Err(DefineError::Size),
    }
}

/// A disk: of the component that has the volume, or of the guest that is to serve it.
fn disk(manifest: &Manifest, disk: &Disk) -> Option<volume::Disk> {
    let backend = match &disk.driver {
        Some(driver) => {
            // A guest's VMM gets the wire for this when it starts, if the description has a use for it.
            let drives = |guest: &Guest| guest.drivers.iter().any(|name| name == driver.as_str());
            manifest.guests.iter().find(|guest| drives(guest))?;
            Backend::Guest(driver.clone())
        }
        None => {
            let has = |component: &&Component| {
                let mut volumes = component.volumes.iter();
                volumes.any(|volume| volume.name == disk.volume)
            };
            let component = manifest.components.iter().find(has)?;
            // As in the description: two do not write the same blocks, unless writes go to memory.
            let mut volumes = component.volumes.iter();
            let volume = volumes.find(|volume| volume.name == disk.volume)?;
            let mut others = manifest.guests.iter().flat_map(|guest| &guest.disks);
            let written = others.any(|other| {
                let component = matches!(other.backend, Backend::Component(_));
                component && other.volume == disk.volume && !other.read_only
            });
            if !disk.read_only && written && volume.overlay_bytes == 0 {
                return None;
            }
            Backend::Component(idl::name(&component.name))
        }
    };
    volume::device_number(&disk.device)?;
    Some(volume::Disk {
        volume: disk.volume.clone(),
        backend,
        device: disk.device.as_str().try_into().ok()?,
        read_only: disk.read_only,
        discard: disk.discard,
    })
}

/// The console that shows such guests: the first one.
pub fn console(manifest: &Manifest) -> &str {
    let serves = |interface: &String| interface == "console";
    let shows = |component: &&idl::manifest::Component| component.serves.iter().any(serves);
    let console = manifest.components.iter().find(shows);
    console.map_or("", |component| &component.name)
}

/// Domain ids for such guests. They count on, so that nobody takes a guest for one that was: an id
/// comes again only when all others were given out since.
pub struct Domains {
    first: u16,
    next: u16,
}

impl Domains {
    /// After those of `described` guests.
    pub fn after(described: usize) -> Domains {
        let first = plan::domain(described);
        Domains { first, next: first }
    }

    /// The next one that nobody has.
    pub fn take(&mut self, taken: impl Fn(u16) -> bool) -> u16 {
        loop {
            let domain = self.next;
            self.next = match domain.checked_add(1) {
                Some(next) if next < RESERVED => next,
                _ => self.first,
            };
            // There are far fewer guests than ids.
            if !taken(domain) {
                return domain;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use idl::operator::Ends;

    fn manifest() -> Manifest {
        let pattern = |name: &str| Component {
            name: name.into(),
            per_guest: true,
            ..Component::default()
        };
        Manifest {
            components: vec![
                pattern("builder"),
                pattern("vmm"),
                Component {
                    name: "screen".into(),
                    serves: vec!["console".into()],
                    ..Component::default()
                },
                Component {
                    name: "blkback".into(),
                    volumes: vec![volume::Volume {
                        name: idl::name("root"),
                        source: volume::Source::Disk,
                        read_only: false,
                        overlay_bytes: 0,
                    }],
                    ..Component::default()
                },
            ],
            guests: vec![Guest {
                name: "linux".into(),
                drivers: vec!["linux".into()],
                ..Guest::default()
            }],
            ..Manifest::default()
        }
    }

    fn disk(device: &str, driver: Option<&str>) -> Disk {
        Disk {
            volume: idl::name("root"),
            device: idl::name(device),
            read_only: true,
            discard: false,
            driver: driver.map(idl::name),
        }
    }

    #[test]
    fn a_disk_is_of_the_component_that_has_the_volume_or_of_a_driver_domain() {
        let mut definition = definition("new");
        definition.disks[1] = disk("xvdb", Some("linux"));
        let guest = guest(&manifest(), 1, 2, archive, &definition).unwrap();
        let backends: Vec<&Backend> = guest.disks.iter().map(|disk| &disk.backend).collect();
        assert_eq!(
            backends,
            [
                &Backend::Component(idl::name("blkback")),
                &Backend::Guest(idl::name("linux"))
            ]
        );
        assert_eq!(guest.drivers, ["linux"]);
        assert!(guest.disks.iter().all(|disk| !disk.discard));
    }

    #[test]
    fn two_guests_do_not_write_the_same_volume() {
        let mut manifest = manifest();
        let mut definition = definition("new");
        definition.disks.truncate(1);
        definition.disks[0].read_only = false;
        let first = guest(&manifest, 1, 2, archive, &definition).unwrap();
        manifest.guests.push(first);
        definition.name = idl::name("other");
        let judged = |manifest: &Manifest, definition: &Definition| {
            guest(manifest, 1, 2, archive, definition).map(|_| ())
        };
        assert_eq!(judged(&manifest, &definition), Err(DefineError::Disk(0)));
        definition.disks[0].read_only = true;
        assert_eq!(judged(&manifest, &definition), Ok(()));
    }

    fn definition(name: &str) -> Definition {
        Definition {
            name: idl::name(name),
            memory_mib: 64,
            vcpus: [0, 1].into_iter().collect(),
            kernel: "/boot/vmlinuz".try_into().unwrap(),
            initrd: None,
            cmdline: "quiet".try_into().unwrap(),
            disks: ["xvda", "xvdb"]
                .into_iter()
                .map(|device| disk(device, None))
                .collect(),
            ends: Ends {
                poweroff: false,
                reboot: true,
                crash: false,
            },
            max_grant_version: 2,
        }
    }

    fn archive(name: &str) -> bool {
        ["boot/vmlinuz", "guests/linux/kernel"].contains(&name)
    }

    #[test]
    fn a_definition_becomes_a_guest_of_the_first_console() {
        let guest = guest(&manifest(), 1, 2, archive, &definition("new")).unwrap();
        assert_eq!(guest.kernel, "boot/vmlinuz");
        assert_eq!(
            (guest.vmm.as_str(), guest.console.as_str()),
            ("vmm", "screen")
        );
        assert_eq!((guest.vcpus, guest.cmdline.as_str()), (vec![0, 1], "quiet"));
    }

    #[test]
    fn a_path_means_a_file_of_the_archive() {
        for path in ["vmlinuz", "/vmlinuz", "boot/vmlinuz", "/boot/vmlinuz"] {
            assert_eq!(file(path, archive).as_deref(), Some("boot/vmlinuz"));
        }
        let kernel = file("guests/linux/kernel", archive);
        assert_eq!(kernel.as_deref(), Some("guests/linux/kernel"));
        assert_eq!(file("", archive), None);
        assert_eq!(file("../vmlinuz", archive), None);
    }

    #[test]
    fn every_reason_against_a_definition_is_told() {
        type Change = fn(&mut Definition);
        let changes: &[(Change, DefineError)] = &[
            (|d| d.name.clear(), DefineError::Name),
            (|d| d.name = idl::name("a b"), DefineError::Name),
            (|d| d.name = idl::name(&"x".repeat(25)), DefineError::Name),
            (|d| d.name = idl::name("linux"), DefineError::Taken),
            (|d| d.memory_mib = 63, DefineError::Size),
            (|d| d.memory_mib = u64::MAX - 1, DefineError::Size),
            (|d| d.vcpus.clear(), DefineError::Size),
            (|d| d.max_grant_version = 0, DefineError::Size),
            (|d| d.max_grant_version = 3, DefineError::Size),
            (|d| d.vcpus[1] = 2, DefineError::Cpu(2)),
            (|d| d.kernel.clear(), DefineError::Kernel),
            (|d| d.initrd = Some(Default::default()), DefineError::Initrd),
            (|d| d.disks[1].volume = idl::name("x"), DefineError::Disk(1)),
            (
                |d| d.disks[1].device = idl::name("hda"),
                DefineError::Disk(1),
            ),
            (
                |d| d.disks[0].driver = Some(idl::name("x")),
                DefineError::Disk(0),
            ),
        ];
        for (change, error) in changes {
            let mut definition = definition("new");
            change(&mut definition);
            let judged = guest(&manifest(), 1, 2, archive, &definition);
            assert_eq!(judged, Err(*error), "{definition:?}");
        }
        let mut without = manifest();
        without.components.remove(1);
        assert_eq!(
            guest(&without, 1, 2, archive, &definition("new")),
            Err(DefineError::NoComponents)
        );
    }

    #[test]
    fn places_of_guests_that_are_gone_do_not_count() {
        let mut manifest = manifest();
        manifest.guests.extend(vec![Guest::default(); DEFINED_MAX]);
        assert!(guest(&manifest, 1, 2, archive, &definition("new")).is_ok());
        for (number, guest) in manifest.guests.iter_mut().skip(1).enumerate() {
            guest.name = format!("g{number}");
        }
        assert_eq!(
            guest(&manifest, 1, 2, archive, &definition("new")),
            Err(DefineError::Full)
        );
    }

    #[test]
    fn domain_ids_count_on_and_skip_those_in_use() {
        let mut domains = Domains::after(2);
        assert_eq!([(); 3].map(|()| domains.take(|_| false)), [3, 4, 5]);
        assert_eq!(domains.take(|id| id == 6), 7);
        domains.next = RESERVED - 1;
        assert_eq!(domains.take(|_| false), RESERVED - 1);
        assert_eq!(domains.take(|id| id == 3), 4);
    }
}
