//! The system manifest: which components run, what each may touch, and which guests they serve.
//!
//! `image-builder` writes it from `system.toml` into the boot archive; `root` reads it and does
//! exactly what it says. Nothing else reads it. It holds names and numbers only, never rights:
//! root turns the names into capabilities. Decoding accepts any bytes and never panics.
//!
//! ```
//! use idl::manifest::{Component, Manifest};
//! let mut manifest = Manifest::default();
//! manifest.components.push(Component { name: "console".into(), ..Component::default() });
//! let bytes = manifest.encode();
//! assert_eq!(Manifest::decode(&bytes), Ok(manifest));
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Version word of the encoding; a manifest of another version is refused.
pub const VERSION: u32 = 1;
/// First bytes of an encoded manifest.
const MAGIC: [u8; 4] = *b"mvmf";

/// A whole system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Components, in any order; root starts a server before its clients.
    pub components: Vec<Component>,
    /// Guests, started in this order once the components run.
    pub guests: Vec<Guest>,
    /// What happens when the guests are gone.
    pub exit: Exit,
}

/// When the machine is switched off by the system itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// Never: the system runs on without guests.
    #[default]
    Never,
    /// `exit = "when-guests-stop"`: when every guest is off or crashed. Root writes to QEMU's
    /// isa-debug-exit device (port 0xf4): 0x10 if all powered off (QEMU then ends with status 33),
    /// 0x11 if one of them failed (status 35).
    WhenGuestsStop,
}

/// A component, or, with `per_guest`, the pattern for one instance for each guest that names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Unique name: lower case letters, digits and dashes, at most 31 bytes.
    pub name: String,
    /// Its ELF in the archive, for instance `components/console`. Symbols are in
    /// `symbols/<name>`, if that file exists.
    pub file: String,
    /// True for builders and VMMs: root starts one for each guest that names it.
    pub per_guest: bool,
    /// Priority of its threads, 0 (lowest) to 31.
    pub priority: u8,
    /// CPU its threads run on, unless a guest's pinning says otherwise.
    pub cpu: u32,
    /// Memory for its own use (heap, stacks, threads), in bytes; rounded up to 4 KiB.
    pub memory_bytes: u64,
    /// Threads it may start besides its first. VMMs get one for each vCPU on top.
    pub threads: u32,
    /// Interfaces it serves: root makes one endpoint for each and gives it the receiving end.
    pub serves: Vec<String>,
    /// What it may call.
    pub needs: Vec<Need>,
    /// I/O ports it may use.
    pub ports: Vec<Ports>,
    /// Interrupt lines (ISA numbers 0-15) it gets.
    pub interrupts: Vec<u32>,
    /// Files of the archive that it may read.
    pub files: Vec<String>,
    /// What happens when it faults.
    pub restart: Restart,
}

/// One wire: the right to call an interface of another component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Interface, for instance `console`.
    pub interface: String,
    /// The component that serves it; `root` for interfaces that root serves (`supervisor`).
    pub server: String,
}

/// A range of I/O ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// Number of ports.
    pub count: u16,
}

/// What root does when a component dies: faults, says that it failed, or cannot be started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Report it; it stays down.
    #[default]
    Never,
    /// Report it, tear it down and start it again with the same wiring.
    Always,
    /// The same, but after so many restarts within so many seconds it stays down: a component that
    /// dies as soon as it runs is of no use to its clients, who wait for it.
    Limited {
        /// Restarts.
        times: u32,
        /// Seconds.
        seconds: u32,
    },
}

/// A virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Unique name, as for components.
    pub name: String,
    /// Memory in MiB, even.
    pub memory_mib: u64,
    /// One entry per vCPU: the CPU it is pinned to.
    pub vcpus: Vec<u32>,
    /// Kernel file in the archive.
    pub kernel: String,
    /// Initial RAM disk in the archive.
    pub initrd: Option<String>,
    /// Kernel command line.
    pub cmdline: String,
    /// The `per_guest` component that builds it.
    pub builder: String,
    /// The `per_guest` component that runs it.
    pub vmm: String,
    /// The component that shows its console (serves `console`); empty for none.
    pub console: String,
}

/// Why bytes are not a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// They do not start with the manifest's magic bytes.
    Magic,
    /// They were written for another version of this format, this one.
    Version(u32),
    /// They end early, hold an impossible value, or go on after the end.
    Malformed,
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Error::Magic => write!(f, "not a system manifest"),
            Error::Version(found) => write!(
                f,
                "system manifest has version {found}, this root reads version {VERSION}: \
                 build the image again"
            ),
            Error::Malformed => write!(f, "system manifest is damaged"),
        }
    }
}

impl Manifest {
    /// Magic, version word (little-endian `u32`), then postcard.
    pub fn encode(&self) -> Vec<u8> {
        let mut head = Vec::from(MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        // Writing to a growing vector fails only for types that postcard cannot express; these
        // are all plain data, which `manifest_survives_encoding` shows.
        postcard::to_extend(self, head).unwrap_or_default()
    }

    /// Reads what [`Manifest::encode`] wrote. Zero bytes of padding may follow.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, Error> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(Error::Magic)?;
        let (version, rest) = rest.split_first_chunk().ok_or(Error::Malformed)?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        match postcard::take_from_bytes(rest) {
            Ok((manifest, left)) if left.iter().all(|&byte| byte == 0) => Ok(manifest),
            _ => Err(Error::Malformed),
        }
    }

    /// The component of this name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|c| c.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Manifest {
        Manifest {
            components: Vec::from([
                Component {
                    name: "console".into(),
                    file: "components/console".into(),
                    serves: Vec::from(["console".into()]),
                    ports: Vec::from([Ports {
                        first: 0x3f8,
                        count: 8,
                    }]),
                    interrupts: Vec::from([4]),
                    memory_bytes: 1 << 20,
                    ..Component::default()
                },
                Component {
                    name: "vmm".into(),
                    per_guest: true,
                    needs: Vec::from([Need {
                        interface: "console".into(),
                        server: "console".into(),
                    }]),
                    restart: Restart::Always,
                    ..Component::default()
                },
            ]),
            guests: Vec::from([Guest {
                name: "linux".into(),
                memory_mib: 256,
                vcpus: Vec::from([0, 1]),
                initrd: Some("guests/linux/initrd".into()),
                ..Guest::default()
            }]),
            exit: Exit::WhenGuestsStop,
        }
    }

    #[test]
    fn manifest_survives_encoding() {
        let mut bytes = sample().encode();
        assert_eq!(Manifest::decode(&bytes), Ok(sample()));
        bytes.extend([0; 9]);
        assert_eq!(Manifest::decode(&bytes), Ok(sample()));
        bytes.push(1);
        assert_eq!(Manifest::decode(&bytes), Err(Error::Malformed));
    }

    #[test]
    fn other_versions_are_refused_by_number() {
        let mut bytes = sample().encode();
        bytes[4] = 9;
        assert_eq!(Manifest::decode(&bytes), Err(Error::Version(9)));
        assert_eq!(Manifest::decode(b"ELF"), Err(Error::Magic));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_bytes_decode_without_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = Vec::from(*b"mvmf\x01\0\0\0");
            bytes.extend(tail);
            let _ = Manifest::decode(&bytes);
        }

        #[test]
        fn damaged_manifests_decode_without_panic(at in 8usize..400, value: u8) {
            let mut bytes = sample().encode();
            let length = bytes.len();
            bytes[at % length] = value;
            let _ = Manifest::decode(&bytes);
        }
    }
}
