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

use crate::message;
use crate::volume::{Disk, Volume};

/// Version word of the encoding; a manifest of another version is refused.
pub const VERSION: u32 = 5;
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
    /// `allow-unprotected-dma = true`: drivers start on a machine without IOMMU too. Their devices
    /// can then reach all memory, the core's included.
    pub allow_unprotected_dma: bool,
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
    /// Percent of its CPU that each of its threads may use, whatever else waits; 0 for all.
    pub share: u8,
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
    /// The function that it drives; `pci` gives it to nobody else.
    pub device: Option<Selector>,
    /// Memory that its device may use, in bytes; rounded up to 2 MiB. Root's for good, so that what
    /// a device writes late finds nobody else's data.
    pub dma_bytes: u64,
    /// Memory that it shares with each of its clients, in bytes; rounded up to 2 MiB, and root's for
    /// good. Its device may use it as well.
    pub client_bytes: u64,
    /// Memory that every instance of it gets again, with what is in it, in bytes; rounded up to 2 MiB.
    pub keep_bytes: u64,
    /// Volumes that it serves to guests, at most [`crate::volume::VOLUMES_MAX`].
    pub volumes: Vec<Volume>,
}

/// Which of a machine's functions is meant. Functions are looked at in the order of bus, device and
/// function; one that an earlier component of the manifest has is passed over.
#[message]
#[derive(Copy, PartialOrd, Ord)]
pub enum Selector {
    /// `pci:1af4:1042`: the first one by this maker, of this kind.
    Id {
        /// Vendor.
        vendor: u16,
        /// Device.
        device: u16,
    },
    /// `pci:class:01.08.02`: the first one of this class.
    Class {
        /// Class, subclass and programming interface, in bits 23-16, 15-8 and 7-0.
        code: u32,
    },
    /// `pci:slot:00:1f.2`: the one in this place.
    Slot {
        /// Requester id: bus << 8 | device << 3 | function.
        id: u16,
    },
}

impl core::fmt::Display for Selector {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Selector::Id { vendor, device } => write!(f, "pci:{vendor:04x}:{device:04x}"),
            Selector::Class { code } => {
                let [_, class, subclass, interface] = code.to_be_bytes();
                write!(f, "pci:class:{class:02x}.{subclass:02x}.{interface:02x}")
            }
            Selector::Slot { id } => {
                let [bus, slot] = id.to_be_bytes();
                write!(f, "pci:slot:{bus:02x}:{:02x}.{}", slot >> 3, slot & 7)
            }
        }
    }
}

impl core::str::FromStr for Selector {
    type Err = ();

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Selector, ()> {
        let hex = |text: &str, digits: usize| {
            let plain = text.len() <= digits && text.bytes().all(|b| b.is_ascii_hexdigit());
            let number = u32::from_str_radix(text, 16).ok();
            number.filter(|_| plain).ok_or(())
        };
        let rest = text.strip_prefix("pci:").ok_or(())?;
        if let Some(code) = rest.strip_prefix("class:") {
            let mut parts = code.split('.');
            let mut next = || hex(parts.next().ok_or(())?, 2);
            let code = next()? << 16 | next()? << 8 | next()?;
            return match parts.next() {
                None => Ok(Selector::Class { code }),
                Some(_) => Err(()),
            };
        }
        if let Some(slot) = rest.strip_prefix("slot:") {
            let (bus, place) = slot.split_once(':').ok_or(())?;
            let (device, function) = place.split_once('.').ok_or(())?;
            let (bus, device, function) = (hex(bus, 2)?, hex(device, 2)?, hex(function, 1)?);
            if device > 31 || function > 7 {
                return Err(());
            }
            let id = (bus << 8 | device << 3 | function) as u16;
            return Ok(Selector::Slot { id });
        }
        let (vendor, device) = rest.split_once(':').ok_or(())?;
        let (vendor, device) = (hex(vendor, 4)? as u16, hex(device, 4)? as u16);
        Ok(Selector::Id { vendor, device })
    }
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
    /// Its disks, at most [`crate::volume::DISKS_MAX`].
    pub disks: Vec<Disk>,
    /// Other guests that it lets map what it grants them: its driver domains, by name.
    pub drivers: Vec<String>,
    /// Highest version of the grant table that it may choose: 1 or 2.
    pub max_grant_version: u32,
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
    use crate::name;
    use crate::volume::{Backend, Source};
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
                    volumes: Vec::from([Volume {
                        name: name("root"),
                        source: Source::PartitionUuid([7; 16]),
                        read_only: true,
                        overlay_bytes: 1 << 20,
                    }]),
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
                disks: Vec::from([Disk {
                    volume: name("root"),
                    backend: Backend::Component(name("blkback")),
                    device: "xvda".try_into().unwrap(),
                    read_only: true,
                    discard: false,
                }]),
                drivers: Vec::from(["storage".into()]),
                max_grant_version: 2,
                ..Guest::default()
            }]),
            exit: Exit::WhenGuestsStop,
            allow_unprotected_dma: true,
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

    #[test]
    fn selectors_are_read_as_they_are_written() {
        for text in ["pci:1af4:1042", "pci:class:01.08.02", "pci:slot:00:1f.2"] {
            let read: Selector = text.parse().unwrap();
            assert_eq!(std::format!("{read}"), text);
        }
        for wrong in [
            "pci:1af4",
            "1af4:1042",
            "pci:1af4:10421",
            "pci:+1:2",
            "pci:class:01.08",
            "pci:class:01.08.02.03",
            "pci:slot:00:20.0",
            "pci:slot:00:1f.8",
            "pci:slot:1f.2",
            "",
        ] {
            assert_eq!(wrong.parse::<Selector>(), Err(()), "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_text_is_read_as_a_selector_without_panic(text in "(pci:)?(class:|slot:)?[0-9a-f:.]{0,12}|.{0,20}") {
            if let Ok(read) = text.parse::<Selector>() {
                prop_assert_eq!(std::format!("{read}").parse(), Ok(read));
            }
        }

        #[test]
        fn any_bytes_decode_without_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = Vec::from(*b"mvmf\x05\0\0\0");
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
