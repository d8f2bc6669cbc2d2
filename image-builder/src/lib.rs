//! `cargo image`: a description of components, guests and rights (`system.toml`) becomes an image
//! that boots. [`image::build`] is the whole way; the test suite calls it too.
//!
//! | module | does |
//! |---|---|
//! | [`read`], [`description`] | TOML to values with their places |
//! | [`rules`], [`problem`] | what is wrong, all at once, with advice |
//! | [`workspace`], [`debian`], [`initramfs`] | where the parts come from |
//! | [`elf`], [`symbols`], [`verify`] | what is made of a program |
//! | [`manifest`], [`archive`] | what the core and root read |
//! | [`iso`], [`disk`], [`gpt`], [`grub`] | media that boot on BIOS and UEFI |
//! | [`inspect`], [`medium`], [`iso9660`], [`fat`] | what is in an image |
//! | [`audit`], [`draw`], [`forbid`] | who can reach what, and must not |
//! | [`qemu`], [`packages`] | what runs it |
//! | [`new`] | a new component from the sdk's template |
//! | [`controls`] | builds with a check off, for tests that must fail |
//!
//! The image-builder has no rights on anybody's machine but to build: it installs Debian packages
//! only when run as root, and otherwise says how.
#![forbid(unsafe_code)]

pub mod archive;
pub mod audit;
pub mod controls;
pub mod debian;
pub mod description;
pub mod disk;
pub mod draw;
pub mod elf;
pub mod fat;
pub mod forbid;
pub mod gpt;
pub mod grub;
pub mod image;
pub mod initramfs;
pub mod inspect;
pub mod iso;
pub mod iso9660;
pub mod manifest;
pub mod medium;
pub mod new;
pub mod packages;
pub mod problem;
pub mod progress;
pub mod qemu;
pub mod read;
pub mod rules;
pub mod symbols;
pub mod verify;
pub mod workspace;
