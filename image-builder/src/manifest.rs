//! A judged description as the manifest that root reads.

use idl::manifest::{Component, Exit, Guest, Manifest, Need, Ports};
use idl::name;
use idl::volume::{Backend, Disk, Source, Volume};

use crate::description::{self, Blocks, Description};
use crate::rules::{backend_of, is_writable, overlay_memory, server_of};

/// Where a component's ELF is in the archive.
pub fn component_file(name: &str) -> String {
    format!("components/{name}")
}

/// Where a guest's kernel is in the archive.
pub fn kernel_file(name: &str) -> String {
    format!("guests/{name}/kernel")
}

/// Where a guest's initial RAM disk is in the archive.
pub fn initrd_file(name: &str) -> String {
    format!("guests/{name}/initrd")
}

/// Where a component's own file number `index` is in the archive.
pub fn own_file(name: &str, index: usize) -> String {
    format!("files/{name}/{index}")
}

/// Where the image of a volume is in the archive.
pub fn volume_file(name: &str) -> String {
    format!("volumes/{name}")
}

/// Where a file that the operator can make guests of is in the archive.
pub fn boot_file(name: &str) -> String {
    format!("boot/{name}")
}

/// The manifest of a description that has no problems.
pub fn manifest(description: &Description) -> Manifest {
    Manifest {
        components: description
            .wired()
            .map(|component| self::component(description, component))
            .collect(),
        guests: description
            .guests
            .iter()
            .map(|guest| self::guest(description, guest))
            .collect(),
        exit: if description.system.exit_with_guests {
            Exit::WhenGuestsStop
        } else {
            Exit::Never
        },
        allow_unprotected_dma: description.system.allow_unprotected_dma,
    }
}

fn component(description: &Description, from: &crate::description::Component) -> Component {
    let name = from.name.value.clone();
    let volumes = description
        .volumes
        .iter()
        .filter(|volume| backend_of(description, volume).is_ok_and(|at| at.name.value == name));
    let volume_files = volumes
        .clone()
        .filter(|volume| matches!(volume.source.value, Blocks::File(_)))
        .map(|volume| volume_file(&volume.name.value));
    Component {
        file: component_file(&name),
        per_guest: from.per_guest,
        priority: from.priority.value,
        share: from.share.value,
        cpu: from.cpu.value,
        memory_bytes: from
            .memory_bytes
            .value
            .saturating_add(overlay_memory(description, from)),
        threads: from.threads.value,
        serves: from.serves.iter().map(|at| at.value.clone()).collect(),
        needs: from
            .needs
            .iter()
            .filter_map(|need| {
                let server =
                    server_of(description, &need.interface, need.server.as_deref()).ok()?;
                Some(Need {
                    interface: need.interface.clone(),
                    server: server.to_owned(),
                })
            })
            .collect(),
        ports: from
            .ports
            .iter()
            .map(|at| Ports {
                first: at.value.0,
                count: at.value.1,
            })
            .collect(),
        interrupts: from.interrupts.iter().map(|at| at.value).collect(),
        files: (0..from.files.len())
            .map(|index| own_file(&name, index))
            .chain(volume_files)
            .collect(),
        restart: from.restart,
        device: from.device.as_ref().map(|at| at.value),
        dma_bytes: from.dma_bytes.value,
        client_bytes: from.client_bytes.value,
        keep_bytes: from.keep_bytes.value,
        volumes: volumes.map(volume).collect(),
        name,
    }
}

fn volume(from: &description::Volume) -> Volume {
    let text = |text: &str| text.chars().collect();
    Volume {
        source: match &from.source.value {
            Blocks::None | Blocks::Disk => Source::Disk,
            Blocks::Label(label) => Source::PartitionLabel(text(label)),
            Blocks::Uuid(uuid) => Source::PartitionUuid(*uuid),
            Blocks::File(_) => Source::File(text(&volume_file(&from.name.value))),
        },
        name: name(&from.name.value),
        read_only: !is_writable(from),
        overlay_bytes: from.overlay_bytes.value,
    }
}

/// One that nobody serves has been judged, and is left out.
fn disk(description: &Description, from: &description::Disk) -> Option<Disk> {
    let (backend, volume) = match &from.driver {
        Some(guest) => (Backend::Guest(name(guest)), None),
        None => {
            let mut volumes = description.volumes.iter();
            let volume = volumes.find(|volume| volume.name.value == from.volume)?;
            let backend = backend_of(description, volume).ok()?;
            (Backend::Component(name(&backend.name.value)), Some(volume))
        }
    };
    Some(Disk {
        volume: name(&from.volume),
        backend,
        device: from.device.as_str().try_into().ok()?,
        discard: from.discard,
        read_only: from.read_only || volume.is_some_and(|volume| !is_writable(volume)),
    })
}

fn guest(description: &Description, from: &description::Guest) -> Guest {
    let name = from.name.value.clone();
    Guest {
        memory_mib: from.memory_mib.value,
        vcpus: from.cpus.iter().map(|at| at.value).collect(),
        kernel: kernel_file(&name),
        initrd: from.initrd.as_ref().map(|_| initrd_file(&name)),
        cmdline: from.cmdline.value.clone(),
        builder: from.builder.value.clone(),
        vmm: from.vmm.value.clone(),
        console: from.console.value.clone(),
        disks: from
            .disks
            .iter()
            .filter_map(|from| disk(description, from))
            .collect(),
        drivers: from.drivers.iter().map(|at| at.value.clone()).collect(),
        max_grant_version: from.max_grant_version.value,
        name,
    }
}
