//! A judged description as the manifest that root reads.

use idl::manifest::{Component, Exit, Guest, Manifest, Need, Ports};

use crate::description::Description;
use crate::rules::server_of;

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

/// The manifest of a description that has no problems.
pub fn manifest(description: &Description) -> Manifest {
    Manifest {
        components: description
            .wired()
            .map(|component| self::component(description, component))
            .collect(),
        guests: description.guests.iter().map(guest).collect(),
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
    Component {
        file: component_file(&name),
        per_guest: from.per_guest,
        priority: from.priority.value,
        cpu: from.cpu.value,
        memory_bytes: from.memory_bytes.value,
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
            .collect(),
        restart: from.restart,
        device: from.device.as_ref().map(|at| at.value),
        dma_bytes: from.dma_bytes.value,
        client_bytes: from.client_bytes.value,
        keep_bytes: from.keep_bytes.value,
        name,
    }
}

fn guest(from: &crate::description::Guest) -> Guest {
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
        name,
    }
}
