//! Control builds: one check of the core or of a component is switched off, so that the test which
//! depends on it can be seen to fail. This is the one list of them; `cargo image controls` prints
//! it, `cargo suite hostile --controls` runs it, and a test holds it against the source.
//!
//! A check is switched off by `#[cfg(control = "NAME")]` or `#[cfg(not(control = "NAME"))]` at the
//! place that the list names. The option that sets it is never given by a plain build; what comes
//! out goes to folders of its own, `build/control-NAME` and `target/control`, and a core that was
//! built so says "CONTROL BUILD" at every boot.

/// A check that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// What `--control` takes.
    pub name: &'static str,
    /// Where the check is, in the workspace.
    pub file: &'static str,
    /// What no longer happens.
    pub off: &'static str,
    /// The claim of group `hostile`, `iommu`, `devices` or `selftest` that fails without it.
    pub claim: &'static str,
}

impl Control {
    /// The control of this name.
    pub fn find(name: &str) -> Option<&'static Control> {
        all().find(|control| control.name == name)
    }

    /// Whether components are built with it too. The core always is, since it is the one that
    /// says so at boot.
    pub fn is_in_components(&self) -> bool {
        !self.file.starts_with("microvisor/")
    }
}

/// Every control, of all groups.
pub fn all() -> impl Iterator<Item = &'static Control> {
    let groups = [CONTROLS, DEVICE_CONTROLS, CPU_CONTROLS, DISK_CONTROLS];
    groups.into_iter().flatten()
}

/// What keeps guests in the bounds of their disks; group `devices`.
pub const DISK_CONTROLS: &[Control] = &[Control {
    name: "volume-bounds",
    file: "components/volume/src/lib.rs",
    off: "a guest's request ends where its volume ends",
    claim: "a_partition_ends_where_it_ends",
}];

/// What keeps CPUs in step; the component `selftest` judges, group `spec --planted` boots it.
pub const CPU_CONTROLS: &[Control] = &[
    Control {
        name: "local-flush",
        file: "microvisor/src/hardware.rs",
        off: "the CPU that takes a translation away forgets it too",
        claim: "a_page_unmapped_here_is_gone_at_once",
    },
    Control {
        name: "sleep",
        file: "microvisor/src/glue.rs",
        off: "what arrives between the last look and sleep wakes the CPU",
        claim: "no_deadline_is_lost_on_the_way_to_sleep",
    },
];

/// What keeps devices in their bounds; group `iommu`.
pub const DEVICE_CONTROLS: &[Control] = &[
    Control {
        name: "dma-block",
        file: "microvisor/src/iommu/vtd.rs",
        off: "devices' accesses are translated",
        claim: "a_write_outside_is_blocked_and_stops_the_device",
    },
    Control {
        name: "message-source",
        file: "microvisor/src/iommu/vtd.rs",
        off: "a message comes from the device that it belongs to",
        claim: "a_message_of_another_device_is_blocked",
    },
];

/// Every control of group `hostile`.
pub const CONTROLS: &[Control] = &[
    Control {
        name: "rights",
        file: "microvisor/objects/src/cap_space.rs",
        off: "a call asks for the right that it needs",
        claim: "a_right_that_was_not_given_cannot_be_used",
    },
    Control {
        name: "kind",
        file: "microvisor/objects/src/cap_space.rs",
        off: "a call asks for the kind of object that it works on",
        claim: "a_capability_of_another_kind_is_refused",
    },
    Control {
        name: "amplify",
        file: "microvisor/objects/src/cap_space.rs",
        off: "a copy has no right that its source lacks",
        claim: "a_copy_has_no_more_rights",
    },
    Control {
        name: "revoke",
        file: "microvisor/objects/src/cap_space.rs",
        off: "revoking deletes what was derived",
        claim: "a_revoked_capability_is_gone",
    },
    Control {
        name: "generation",
        file: "microvisor/objects/src/arena.rs",
        off: "a frame that is used again gets a new generation",
        claim: "a_destroyed_object_stays_destroyed",
    },
    Control {
        name: "bounds",
        file: "microvisor/objects/src/memory.rs",
        off: "what is made of memory lies inside it",
        claim: "memory_ends_where_it_ends",
    },
    Control {
        name: "zero",
        file: "microvisor/objects/src/memory.rs",
        off: "a frame is zeroed when it is made",
        claim: "memory_is_zero_when_it_changes_hands",
    },
    Control {
        name: "unmap",
        file: "microvisor/objects/src/memory.rs",
        off: "a capability's mapping goes with it",
        claim: "memory_taken_back_is_out_of_reach",
    },
    Control {
        name: "shootdown",
        file: "microvisor/src/hardware.rs",
        off: "other CPUs forget a translation that is taken away",
        claim: "memory_taken_back_is_out_of_reach",
    },
    Control {
        name: "no-execute",
        file: "microvisor/objects/src/translate.rs",
        off: "pages are executable only where that was asked for",
        claim: "bad_addresses_stop_their_thread",
    },
    Control {
        name: "supervisor",
        file: "microvisor/src/paging.rs",
        off: "the core's pages are closed to user mode",
        claim: "the_cores_memory_is_out_of_reach",
    },
    Control {
        name: "ports",
        file: "microvisor/src/descriptor.rs",
        off: "the port bitmap denies what was not granted",
        claim: "ports_without_a_right_fault",
    },
    Control {
        name: "ldt",
        file: "microvisor/src/descriptor.rs",
        off: "there is no local descriptor table",
        claim: "segments_of_the_core_cannot_be_loaded",
    },
    Control {
        name: "task-switched",
        file: "microvisor/src/virt/fpu.rs",
        off: "CR0.TS makes vector and x87 instructions fault",
        claim: "vector_registers_are_out_of_reach",
    },
    Control {
        name: "release",
        file: "microvisor/src/glue.rs",
        off: "a guest's registers leave the CPU before another thread runs there",
        claim: "the_cpus_registers_hold_nobody_elses_values",
    },
    Control {
        name: "registers",
        file: "microvisor/src/virt/fpu.rs",
        off: "a vCPU's vector and x87 registers replace the last one's",
        claim: "extended_registers_hold_nobody_elses_values",
    },
    Control {
        name: "preempt",
        file: "microvisor/objects/src/kernel.rs",
        off: "a thread's turn ends while its equals wait",
        claim: "a_loop_starves_nobody_of_its_priority",
    },
    Control {
        name: "cancel",
        file: "microvisor/objects/src/kernel.rs",
        off: "cancelling a thread ends its call",
        claim: "a_client_gives_up_on_a_mute_server",
    },
    Control {
        name: "console-guest",
        file: "components/console/src/server.rs",
        off: "only a guest's VMM can be that guest's console",
        claim: "a_component_cannot_take_the_operators_input",
    },
    Control {
        name: "guest-registers",
        file: "microvisor/src/virt/svm/mod.rs",
        off: "a guest's reads and writes of model-specific registers exit",
        claim: "registers_of_the_machine_are_out_of_reach",
    },
    Control {
        name: "guest-ports",
        file: "microvisor/src/virt/mod.rs",
        off: "a guest's port accesses exit",
        claim: "ports_of_the_machine_are_out_of_reach",
    },
    Control {
        name: "guest-memory",
        file: "components/vmm/src/ram.rs",
        off: "addresses in hypercalls are where the guest has RAM",
        claim: "random_hypercalls_are_answered",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && !["target", "build", ".git"].iter().any(|skip| name == *skip) {
                sources(&path, out);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                out.push(path);
            }
        }
    }

    /// Names of controls in the text of a file.
    fn named(text: &str) -> BTreeSet<String> {
        let mark = concat!("control ", "= \"");
        let rest = text.split(mark).skip(1);
        rest.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
            .filter(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'))
            .collect()
    }

    #[test]
    fn the_list_and_the_source_name_the_same_controls() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = Vec::new();
        for folder in ["microvisor", "components", "sdk", "idl"] {
            sources(&root.join(folder), &mut files);
        }
        let mut found = BTreeSet::new();
        for path in &files {
            let text = fs::read_to_string(path).unwrap();
            let file = path
                .strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            // What tests switch off on the host is not a build of the system.
            if file.contains("/tests/") || file.starts_with("microvisor/spec/") {
                continue;
            }
            found.extend(named(&text).into_iter().map(|name| (name, file.clone())));
        }
        let listed: BTreeSet<_> = all()
            .map(|control| (control.name.to_owned(), control.file.to_owned()))
            .collect();
        assert_eq!(found, listed);
        let names: BTreeSet<_> = all().map(|control| control.name).collect();
        assert_eq!(names.len(), all().count(), "a name is listed twice");
    }

    #[test]
    fn names_are_found_in_both_forms() {
        let text = concat!(
            "#[cfg(not(control ",
            "= \"a-b\"))] x #[cfg(control ",
            "= \"c\")]"
        );
        assert_eq!(
            named(text),
            BTreeSet::from(["a-b".to_owned(), "c".to_owned()])
        );
    }
}
