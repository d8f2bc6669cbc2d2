//! What `system.toml` says, as values with their places in the file. Made by `read`, judged by
//! `rules`, turned into a manifest by `manifest`. Holds no defaults and opens no file.

use std::ops::Range;

use crate::problem::Source;

/// A value and where it stands in the file.
#[derive(Clone, Debug, Default)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Byte offsets in the file.
    pub span: Range<usize>,
}

impl<T> At<T> {
    /// A value that stands at `span`.
    pub fn new(value: T, span: Range<usize>) -> Self {
        At { value, span }
    }
}

/// A whole description.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// The file.
    pub source: Source,
    /// The machine and what ends the system.
    pub system: System,
    /// `[[component]]`, the built-in ones merged in.
    pub components: Vec<Component>,
    /// `[[guest]]`.
    pub guests: Vec<Guest>,
    /// `[[volume]]`.
    pub volumes: Vec<Volume>,
    /// `[[file]]`.
    pub files: Vec<File>,
    /// `[[forbid]]`.
    pub forbids: Vec<Forbid>,
}

impl Description {
    /// The component of this name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|c| c.name.value == name)
    }

    /// Those that a manifest lists: all but root, which the core starts.
    pub fn wired(&self) -> impl Iterator<Item = &Component> {
        self.components.iter().filter(|c| c.name.value != ROOT)
    }

    /// The kernel whose modules a `[[file]]` that is `builtin:busybox+disks` has: the first of Debian's.
    pub fn kernel_of_files(&self) -> Option<&Input> {
        let mut paths = self.files.iter().filter_map(|file| file.path.as_ref());
        let kernel = paths.find(|path| matches!(path.value, Input::DebianKernel { .. }));
        kernel.map(|path| &path.value)
    }
}

/// The component that the core starts.
pub const ROOT: &str = "root";

/// `[system]`.
#[derive(Clone, Debug, Default)]
pub struct System {
    /// Where the table is.
    pub span: Range<usize>,
    /// CPUs of the machine; what `check` holds pins against and `run` gives to QEMU.
    pub cpus: At<u32>,
    /// Memory of the machine in MiB; likewise.
    pub memory_mib: At<u64>,
    /// Switch the machine off when no guest is left.
    pub exit_with_guests: bool,
    /// Drivers start without an IOMMU too.
    pub allow_unprotected_dma: bool,
}

/// `[[component]]`.
#[derive(Clone, Debug, Default)]
pub struct Component {
    /// Where the table is; past the end of the file for a built-in one that the file does not mention.
    pub span: Range<usize>,
    /// Unique name.
    pub name: At<String>,
    /// Cargo package it is built from; the name if absent.
    pub package: Option<At<String>>,
    /// An ELF that is there already, instead of a package.
    pub file: Option<At<String>>,
    /// One instance for each guest.
    pub per_guest: bool,
    /// 0 to 31.
    pub priority: At<u8>,
    /// Percent of the CPU that each thread may use, 0 for all.
    pub share: At<u8>,
    /// CPU.
    pub cpu: At<u32>,
    /// Own memory in bytes.
    pub memory_bytes: At<u64>,
    /// Threads besides the first.
    pub threads: At<u32>,
    /// Interfaces it serves.
    pub serves: Vec<At<String>>,
    /// Interfaces it may call.
    pub needs: Vec<Need>,
    /// First port and count.
    pub ports: Vec<At<(u16, u16)>>,
    /// ISA lines.
    pub interrupts: Vec<At<u32>>,
    /// Files it may read: where they come from.
    pub files: Vec<At<Input>>,
    /// Whether it is started again when it dies.
    pub restart: idl::manifest::Restart,
    /// The function that it drives.
    pub device: Option<At<idl::manifest::Selector>>,
    /// Bytes for its device.
    pub dma_bytes: At<u64>,
    /// Bytes that it shares with each client.
    pub client_bytes: At<u64>,
    /// Bytes that outlive it.
    pub keep_bytes: At<u64>,
}

impl Component {
    /// The cargo package it is built from, unless it is a file.
    pub fn package(&self) -> Option<&At<String>> {
        match (&self.package, &self.file) {
            (Some(package), _) => Some(package),
            (None, None) => Some(&self.name),
            (None, Some(_)) => None,
        }
    }
}

/// A right to call.
#[derive(Clone, Debug, Default)]
pub struct Need {
    /// Where it is written.
    pub span: Range<usize>,
    /// Interface.
    pub interface: String,
    /// Component; found by its `serves` if absent.
    pub server: Option<String>,
}

/// `[[guest]]`.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// Where the table is.
    pub span: Range<usize>,
    /// Unique name.
    pub name: At<String>,
    /// Kernel.
    pub kernel: Option<At<Input>>,
    /// Initial RAM disk.
    pub initrd: Option<At<Input>>,
    /// Command line.
    pub cmdline: At<String>,
    /// Memory in MiB.
    pub memory_mib: At<u64>,
    /// One entry per vCPU: its CPU.
    pub cpus: Vec<At<u32>>,
    /// Which builder.
    pub builder: At<String>,
    /// Which VMM.
    pub vmm: At<String>,
    /// Which console; empty for none.
    pub console: At<String>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Guests that serve devices to it.
    pub drivers: Vec<At<String>>,
    /// Highest version of the grant table that it may choose.
    pub max_grant_version: At<u32>,
}

/// One of a guest's `disks`.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Where it is written.
    pub span: Range<usize>,
    /// The volume; what a driver domain is to take, if one serves it.
    pub volume: String,
    /// `xvda` to `xvdz`.
    pub device: String,
    /// The guest must not write.
    pub read_only: bool,
    /// The guest may give up sectors, if the volume can.
    pub discard: bool,
    /// The guest that serves it, instead of a component.
    pub driver: Option<String>,
}

/// `[[volume]]`.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// Where the table is.
    pub span: Range<usize>,
    /// Unique name.
    pub name: At<String>,
    /// The component that serves it; the only one that can if absent.
    pub backend: Option<At<String>>,
    /// Where its blocks are.
    pub source: At<Blocks>,
    /// Nobody may write.
    pub read_only: bool,
    /// Bytes of memory for writes; 0: they go to the source.
    pub overlay_bytes: At<u64>,
}

/// What a volume is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Blocks {
    /// Nothing yet.
    #[default]
    None,
    /// `disk`: the disk of the backend's wire `block`.
    Disk,
    /// `partition:label=NAME` of that disk.
    Label(String),
    /// `partition:uuid=UUID` of that disk.
    Uuid([u8; 16]),
    /// `file:SOURCE`: a raw image, put into the archive.
    File(Input),
}

impl Blocks {
    /// Reads the notation of `system.toml`. The error is advice.
    pub fn parse(text: &str) -> Result<Blocks, String> {
        let advice =
            "write \"disk\", \"partition:label=NAME\", \"partition:uuid=UUID\" or \"file:PATH\"";
        if text == "disk" {
            return Ok(Blocks::Disk);
        }
        if let Some(file) = text.strip_prefix("file:") {
            return Input::parse(file).map(Blocks::File);
        }
        let partition = text.strip_prefix("partition:").ok_or(advice)?;
        match partition.split_once('=') {
            Some(("label", label)) => match label.chars().count() {
                // GPT has 72 bytes for a label, two for each letter.
                1..=36 => Ok(Blocks::Label(label.to_owned())),
                _ => Err("a partition's label has 1 to 36 letters".into()),
            },
            Some(("uuid", uuid)) => match idl::volume::uuid(uuid) {
                Some(uuid) => Ok(Blocks::Uuid(uuid)),
                None => Err("write the UUID as 01234567-89ab-cdef-0123-456789abcdef".into()),
            },
            _ => Err(advice.into()),
        }
    }

    /// Needs the backend's wire `block`.
    pub fn is_on_disk(&self) -> bool {
        matches!(self, Blocks::Disk | Blocks::Label(_) | Blocks::Uuid(_))
    }
}

/// `[[file]]`: a file of the archive that the operator can make guests of.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// Where the table is.
    pub span: Range<usize>,
    /// Unique name; a path below `boot/` in the archive.
    pub name: At<String>,
    /// Where it comes from.
    pub path: Option<At<Input>>,
    /// What is in it, instead.
    pub text: Option<At<String>>,
}

/// `[[forbid]]`: what a component must not reach.
#[derive(Clone, Debug, Default)]
pub struct Forbid {
    /// Who: a component, one of its copies (`vmm-linux`), or `*` for all but root.
    pub component: At<String>,
    /// Guests whose memory and vCPUs it must not hold.
    pub guests: Vec<At<String>>,
    /// Components that it must not call, nor have called by others that it calls.
    pub components: Vec<At<String>>,
    /// First port and count, none of which it may have.
    pub ports: Vec<At<(u16, u16)>>,
    /// ISA lines that it must not have.
    pub interrupts: Vec<At<u32>>,
}

/// Where a file comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Input {
    /// Nowhere yet.
    #[default]
    None,
    /// A file; relative to the description.
    Path(String),
    /// `debian:PACKAGE[/SUITE]`: the kernel that a metapackage depends on.
    DebianKernel {
        /// For instance `linux-image-amd64`.
        package: String,
        /// For instance `bookworm-backports`; what apt prefers if absent.
        suite: Option<String>,
    },
    /// `debian:PACKAGE[/SUITE]#FILE`: a file out of a package.
    DebianFile {
        /// Package.
        package: String,
        /// Suite; what apt prefers if absent.
        suite: Option<String>,
        /// Path in the package, without a leading slash.
        file: String,
    },
    /// `builtin:busybox`: an initramfs with busybox and a shell on the console.
    Busybox,
    /// `builtin:busybox+xenstore`: the same with Debian's xenstore tools.
    BusyboxXenstore,
    /// `builtin:busybox+disks`: that, and those modules of the guest's own kernel that disks need.
    BusyboxDisks,
    /// `package:NAME`: a bare-metal ELF built from a package of this workspace.
    Package(String),
}

impl Input {
    /// Reads the notation of `system.toml`. The error is advice.
    pub fn parse(text: &str) -> Result<Input, String> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return match text {
                "" => Err("write a path, debian:PACKAGE or builtin:busybox".into()),
                path => Ok(Input::Path(path.into())),
            };
        };
        match scheme {
            "debian" => {
                let (package, file) = match rest.split_once('#') {
                    Some((package, file)) => (package, Some(file.trim_start_matches('/'))),
                    None => (rest, None),
                };
                let (package, suite) = match package.split_once('/') {
                    Some((package, suite)) => (package, Some(suite.to_owned())),
                    None => (package, None),
                };
                let plain = |word: &str| {
                    !word.is_empty()
                        && !word.starts_with('-')
                        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
                };
                if !plain(package) || !suite.as_deref().is_none_or(plain) {
                    return Err("write debian:PACKAGE, debian:PACKAGE/SUITE or debian:PACKAGE#FILE".into());
                }
                let package = package.to_owned();
                Ok(match file {
                    None => Input::DebianKernel { package, suite },
                    Some(file) => Input::DebianFile {
                        package,
                        suite,
                        file: file.to_owned(),
                    },
                })
            }
            "builtin" if rest == "busybox" => Ok(Input::Busybox),
            "builtin" if rest == "busybox+xenstore" => Ok(Input::BusyboxXenstore),
            "builtin" if rest == "busybox+disks" => Ok(Input::BusyboxDisks),
            "builtin" => Err(
                "the built-in files are builtin:busybox, builtin:busybox+xenstore and \
                 builtin:busybox+disks"
                    .into(),
            ),
            "package" => Ok(Input::Package(rest.to_owned())),
            _ => Err(format!(
                "there is no source {scheme:?}; write a path, debian:PACKAGE, builtin:busybox or package:NAME \
                 (a path with a colon: start it with ./)"
            )),
        }
        .or_else(|advice| match scheme {
            _ if scheme.contains('/') || scheme.starts_with('.') => Ok(Input::Path(text.into())),
            _ => Err(advice),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sources_are_read_as_written() {
        let debian = |text| Input::parse(text).unwrap();
        assert_eq!(
            debian("debian:linux-image-amd64"),
            Input::DebianKernel {
                package: "linux-image-amd64".into(),
                suite: None
            }
        );
        assert_eq!(
            debian("debian:linux-image-amd64/bookworm-backports"),
            Input::DebianKernel {
                package: "linux-image-amd64".into(),
                suite: Some("bookworm-backports".into())
            }
        );
        assert_eq!(
            debian("debian:grub-xen-host#/usr/lib/x.bin"),
            Input::DebianFile {
                package: "grub-xen-host".into(),
                suite: None,
                file: "usr/lib/x.bin".into()
            }
        );
        assert_eq!(debian("./a:b"), Input::Path("./a:b".into()));
        assert_eq!(debian("a/b"), Input::Path("a/b".into()));
    }

    #[test]
    fn a_package_name_cannot_be_an_option() {
        assert!(Input::parse("debian:--help").is_err());
        assert!(Input::parse("debian:a b").is_err());
        assert!(Input::parse("ftp:x").is_err());
    }

    proptest! {
        #[test]
        fn any_source_is_read_without_panic(text in ".{0,40}") {
            let _ = Input::parse(&text);
        }
    }
}
