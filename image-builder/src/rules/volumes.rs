//! What makes volumes, disks and driver domains wrong, and which component serves a volume.

use idl::volume::{DISKS_MAX, VOLUMES_MAX, device_number};

use super::Rules;
use crate::description::{Blocks, Component, Description, Disk, Guest, Volume};
use crate::problem::nearest;

/// What a component needs that serves guests' disks: it finds them in the store, and their pages
/// and events by root.
const BACKEND: [&str; 3] = ["store", "domains", "peers"];
/// Most memory that one overlay is given.
const OVERLAY_MAX: u64 = 1 << 30;

fn is_backend(component: &&Component) -> bool {
    let needs = |wanted: &&str| {
        component
            .needs
            .iter()
            .any(|need| need.interface == **wanted)
    };
    !component.per_guest && BACKEND.iter().all(needs)
}

/// The component that serves a volume. The error is message and advice.
pub fn backend_of<'a>(
    description: &'a Description,
    volume: &Volume,
) -> Result<&'a Component, (String, String)> {
    if let Some(named) = &volume.backend {
        return match description.component(&named.value) {
            Some(component) if is_backend(&component) => Ok(component),
            Some(_) => {
                let advice = format!("add {BACKEND:?} to `needs` of component {}", named.value);
                Err((format!("{} serves no disks", named.value), advice))
            }
            None => {
                let message = format!("there is no component {:?}", named.value);
                Err((
                    message,
                    "leave `backend` out, or name one that is there".into(),
                ))
            }
        };
    }
    let mut found = description.components.iter().filter(is_backend);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(one), Some(two)) => Err((
            format!(
                "{} and {} could both serve it",
                one.name.value, two.name.value
            ),
            format!("write backend = \"{}\"", one.name.value),
        )),
        (None, _) => Err((
            "nobody serves disks".into(),
            "leave the needs of component blkback as they are".into(),
        )),
    }
}

impl Rules<'_> {
    pub(super) fn volumes(&mut self) {
        let description = self.description;
        let mut seen: Vec<&str> = Vec::new();
        for volume in &description.volumes {
            let name = &volume.name;
            let what = format!("volume {}", name.value);
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if name.value.len() > 31 || !name.value.bytes().all(good) {
                let advice = "use lower case letters, digits and dashes, at most 31";
                self.add(
                    &name.span,
                    format!("{what}: a name that cannot be used"),
                    advice,
                );
            }
            if seen.contains(&name.value.as_str()) {
                let message = format!("two volumes are called {:?}", name.value);
                self.add(&name.span, message, "rename one of them");
            }
            seen.push(&name.value);
            self.volume(volume, &what);
        }
        for component in &description.components {
            let own = description.volumes.iter().filter(|volume| {
                backend_of(description, volume)
                    .is_ok_and(|backend| backend.name.value == component.name.value)
            });
            let files = own
                .clone()
                .filter(|volume| matches!(volume.source.value, Blocks::File(_)));
            let what = format!("component {}", component.name.value);
            let (volumes, files) = (own.count(), files.count() + component.files.len());
            self.count(
                &component.span,
                &format!("{what}: volumes"),
                volumes,
                VOLUMES_MAX,
            );
            let message = format!("{what}: files, those of volumes included");
            self.count(&component.span, &message, files, super::FILES_MAX);
        }
        for guest in &description.guests {
            self.disks(guest);
            self.drivers(guest);
        }
    }

    fn volume(&mut self, volume: &Volume, what: &str) {
        let backend = match backend_of(self.description, volume) {
            Ok(backend) => backend,
            Err((message, advice)) => {
                let span = volume.backend.as_ref().map_or(&volume.span, |at| &at.span);
                return self.add(span, format!("{what}: {message}"), advice);
            }
        };
        let overlay = &volume.overlay_bytes;
        if overlay.value > OVERLAY_MAX {
            let message = format!("{what}: an overlay of {} MiB", overlay.value >> 20);
            self.add(
                &overlay.span,
                message,
                format!("at most {} MiB", OVERLAY_MAX >> 20),
            );
        }
        if overlay.value > 0 && volume.read_only {
            let message = format!("{what} is read-only, and has an overlay for writes");
            self.add(&overlay.span, message, "leave one of the two out");
        }
        match &volume.source.value {
            Blocks::File(input) => self.input(&volume.source.span, what, input),
            on_disk
                if on_disk.is_on_disk()
                    && !backend.needs.iter().any(|need| need.interface == "block") =>
            {
                let message = format!("{what}: component {} has no disk", backend.name.value);
                let advice = format!(
                    "add \"block\" to `needs` of component {}",
                    backend.name.value
                );
                self.add(&volume.source.span, message, advice);
            }
            _ => {}
        }
    }

    fn disks(&mut self, guest: &Guest) {
        let what = format!("guest {}", guest.name.value);
        if let Some(disk) = guest.disks.get(DISKS_MAX) {
            let message = format!("{what}: {} disks", guest.disks.len());
            self.add(&disk.span, message, format!("at most {DISKS_MAX}"));
        }
        let mut seen: Vec<&str> = Vec::new();
        for disk in &guest.disks {
            if device_number(&disk.device).is_none() {
                let message = format!("{what}: {:?} is no disk's name", disk.device);
                let partition = disk.device.trim_end_matches(|c: char| c.is_ascii_digit());
                let advice = match device_number(partition) {
                    Some(_) => format!("a guest gets whole disks: write device = {partition:?}"),
                    None => "write device = \"xvda\" to \"xvdz\"".into(),
                };
                self.add(&disk.span, message, advice);
            }
            if seen.contains(&disk.device.as_str()) {
                let message = format!("{what}: two disks are called {:?}", disk.device);
                self.add(&disk.span, message, "rename one of them");
            }
            seen.push(&disk.device);
            self.disk(guest, disk, &what);
        }
    }

    fn disk(&mut self, guest: &Guest, disk: &Disk, what: &str) {
        if let Some(driver) = &disk.driver {
            if disk.volume.len() > 31 {
                let message = format!("{what}: the volume of disk {} is too long", disk.device);
                self.add(&disk.span, message, "at most 31 bytes");
            }
            if !guest.drivers.iter().any(|at| at.value == *driver) {
                let message = format!("{what}: {driver} must not serve it");
                self.add(
                    &disk.span,
                    message,
                    format!("add drivers = [{driver:?}] to the guest"),
                );
            }
            return;
        }
        let volumes = &self.description.volumes;
        let Some(volume) = volumes.iter().find(|v| v.name.value == disk.volume) else {
            let message = format!("{what}: there is no volume {:?}", disk.volume);
            let names = volumes.iter().map(|v| v.name.value.as_str());
            let advice = match nearest(&disk.volume, names) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => "add a [[volume]] of this name".into(),
            };
            return self.add(&disk.span, message, advice);
        };
        let written_by = |other: &&Guest| {
            let mut disks = other.disks.iter().filter(|d| d.driver.is_none());
            disks.any(|d| d.volume == disk.volume && !d.read_only)
        };
        let shared = volume.overlay_bytes.value == 0 && is_writable(volume);
        let mut writers = self.description.guests.iter().filter(written_by);
        if shared
            && let (Some(first), Some(second)) = (writers.next(), writers.next())
            && second.name.value == guest.name.value
        {
            let message = format!(
                "{what}: volume {} is written by guest {} too",
                disk.volume, first.name.value
            );
            let advice = "two file systems on one disk destroy it: write read-only = true";
            self.add(&disk.span, message, advice);
        }
    }

    fn drivers(&mut self, guest: &Guest) {
        let what = format!("guest {}", guest.name.value);
        for driver in &guest.drivers {
            let known = self.description.guests.iter();
            let known = known.map(|other| other.name.value.as_str());
            if driver.value == guest.name.value {
                let message = format!("{what} cannot serve itself");
                self.add(&driver.span, message, "name another guest");
            } else if !known.clone().any(|name| name == driver.value) {
                let message = format!("{what}: there is no guest {:?}", driver.value);
                let advice = match nearest(&driver.value, known) {
                    Some(meant) => format!("did you mean {meant:?}?"),
                    None => "name a guest of this description".into(),
                };
                self.add(&driver.span, message, advice);
            }
        }
    }
}

/// Bytes of memory that a component's overlays take, and what is kept of them.
pub fn overlay_memory(description: &Description, component: &Component) -> u64 {
    let own = description.volumes.iter().filter(|volume| {
        backend_of(description, volume).is_ok_and(|at| at.name.value == component.name.value)
    });
    let bytes = own.map(|volume| volume.overlay_bytes.value);
    let bytes = bytes.fold(0, u64::saturating_add);
    // A word for each block and its place in a tree; see `components/volume/src/overlay.rs`.
    bytes.saturating_add(bytes / 32)
}

/// Whether guests can write it: an image of the archive only over an overlay.
pub fn is_writable(volume: &Volume) -> bool {
    let image = matches!(volume.source.value, Blocks::File(_));
    !volume.read_only && (!image || volume.overlay_bytes.value > 0)
}
