//! Targets for coverage-guided fuzzing: each parser of data from outside, as a function of bytes that
//! panics if the parser does, or if what it accepts is not what it should be. `cargo suite spec` and
//! `tests/corpora.rs` call them; nothing here is part of a system.
//!
//! | module | parsers |
//! |---|---|
//! | [`loader`] | what boot loaders and firmware hand over, archives, symbol tables |
//! | [`wire`] | manifests, messages between components, what a component starts with |
//! | [`files`] | ELF files, Linux boot images and their payloads |
//! | [`guest`] | instructions, xenstore messages |
//! | [`rings`] | counters and requests in pages shared with somebody hostile |
#![forbid(unsafe_code)]

mod files;
mod guest;
mod loader;
mod rings;
mod wire;

/// A parser.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `corpora`.
    pub name: &'static str,
    /// Parses; panics if something is wrong.
    pub run: fn(&[u8]),
    /// Bytes that are right, to begin from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "multiboot2",
        run: loader::multiboot2,
        seeds: loader::multiboot2_seeds,
    },
    Target {
        name: "pvh",
        run: loader::pvh,
        seeds: loader::pvh_seeds,
    },
    Target {
        name: "acpi-iommu",
        run: loader::iommu_tables,
        seeds: loader::iommu_seeds,
    },
    Target {
        name: "acpi-mcfg",
        run: loader::mcfg,
        seeds: loader::mcfg_seeds,
    },
    Target {
        name: "archive",
        run: loader::archive,
        seeds: loader::archive_seeds,
    },
    Target {
        name: "symbols",
        run: loader::symbols,
        seeds: loader::symbols_seeds,
    },
    Target {
        name: "manifest",
        run: wire::manifest,
        seeds: wire::manifest_seeds,
    },
    Target {
        name: "messages",
        run: wire::messages,
        seeds: wire::messages_seeds,
    },
    Target {
        name: "startup",
        run: wire::startup,
        seeds: wire::startup_seeds,
    },
    Target {
        name: "component-elf",
        run: files::component,
        seeds: files::elf_seeds,
    },
    Target {
        name: "kernel-elf",
        run: files::kernel,
        seeds: files::elf_seeds,
    },
    Target {
        name: "bzimage",
        run: files::bzimage,
        seeds: files::bzimage_seeds,
    },
    Target {
        name: "instruction",
        run: guest::instruction,
        seeds: guest::instruction_seeds,
    },
    Target {
        name: "xenstore",
        run: guest::xenstore,
        seeds: guest::xenstore_seeds,
    },
    Target {
        name: "byte-ring",
        run: rings::bytes,
        seeds: rings::seeds,
    },
    Target {
        name: "request-ring",
        run: rings::requests,
        seeds: rings::seeds,
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Takes `N` bytes off the front; zeros where there are none left.
fn take<const N: usize>(data: &mut &[u8]) -> [u8; N] {
    let (head, rest) = data.split_at(N.min(data.len()));
    *data = rest;
    std::array::from_fn(|at| head.get(at).copied().unwrap_or(0))
}
