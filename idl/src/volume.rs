//! Volumes and guests' disks, as the system's description names them: a backend serves volumes, a
//! guest has disks, and a disk is a volume under a device's name. The manifest carries them to root,
//! which tells a backend of its volumes (`sdk::startup`) and the store of a guest's disks
//! ([`crate::domains`]). Names and numbers only: who may map what is root's business.

use crate::{Name, heapless, message};

/// Volumes of one backend at most.
pub const VOLUMES_MAX: usize = 16;
/// Disks of one guest at most.
pub const DISKS_MAX: usize = 16;
/// Bytes of a partition's label at most: 36 letters (UEFI specification 2.10, table 5.6).
pub const LABEL_MAX: usize = 112;

/// Where a volume's blocks come from.
#[message]
pub enum Source {
    /// The whole disk at the other end of the backend's wire `block`.
    Disk,
    /// The partition of that disk with this label in the GUID partition table.
    PartitionLabel(heapless::String<LABEL_MAX>),
    /// The partition of that disk with this unique GUID, in the order of bytes on the disk.
    PartitionUuid([u8; 16]),
    /// A raw image in the boot archive, by its name there. It is never written.
    File(heapless::String<LABEL_MAX>),
}

/// Blocks that guests' disks are made of.
#[message]
pub struct Volume {
    /// Unique among all volumes of the system.
    pub name: Name,
    /// Where its blocks come from.
    pub source: Source,
    /// Nobody may write.
    pub read_only: bool,
    /// Writes go to so many bytes of the backend's memory and are lost with it; 0: to the source.
    pub overlay_bytes: u64,
}

/// Who serves a disk.
#[message]
pub enum Backend {
    /// A component, which speaks as domain 0.
    Component(Name),
    /// A guest: its own kernel has the backend, and it is one of the other's `drivers`.
    Guest(Name),
}

/// A disk of a guest.
#[message]
pub struct Disk {
    /// The volume; of a guest's backend, what that guest is to take for it.
    pub volume: Name,
    /// Who serves it.
    pub backend: Backend,
    /// What the guest calls it: `xvda` to `xvdz`.
    pub device: heapless::String<8>,
    /// The guest must not write.
    pub read_only: bool,
    /// It may give up sectors, if the volume can (libxl's `discard-enable`).
    pub discard: bool,
}

impl Disk {
    /// Its number in the store, by which front and back end know it; see [`device_number`].
    pub fn number(&self) -> Option<u32> {
        device_number(&self.device)
    }
}

/// The number of a disk called `xvda` to `xvdz` (Xen, docs/man/xen-vbd-interface.7: 202 << 8 for the
/// first sixteen, 1 << 28 beyond); nothing for other names, those of partitions among them.
pub fn device_number(device: &str) -> Option<u32> {
    let [letter @ b'a'..=b'z'] = device.strip_prefix("xvd")?.as_bytes() else {
        return None;
    };
    let disk = u32::from(letter - b'a');
    Some(match disk {
        0..16 => 202 << 8 | disk << 4,
        _ => 1 << 28 | disk << 8,
    })
}

/// Reads a GUID as people write it, `8-4-4-4-12` hexadecimal digits, into the order of bytes on a
/// disk: the first three groups are little-endian (UEFI specification 2.10, appendix A).
pub fn uuid(text: &str) -> Option<[u8; 16]> {
    let mut out = [0; 16];
    let mut parts = text.split('-');
    let mut at = 0;
    for digits in [8, 4, 4, 4, 12] {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let bytes = digits / 2;
        let number = u64::from_str_radix(part, 16).ok()?.to_be_bytes();
        let group = out.get_mut(at..at + bytes)?;
        group.copy_from_slice(number.get(8 - bytes..)?);
        if at < 8 {
            group.reverse();
        }
        at += bytes;
    }
    parts.next().is_none().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn disks_have_the_numbers_of_xen() {
        assert_eq!(device_number("xvda"), Some(51712));
        assert_eq!(device_number("xvdb"), Some(51728));
        assert_eq!(device_number("xvdp"), Some(51952));
        assert_eq!(device_number("xvdq"), Some(1 << 28 | 16 << 8));
        for other in ["xvda1", "xvd", "sda", "xvdA", "xvdaa", ""] {
            assert_eq!(device_number(other), None, "{other}");
        }
    }

    #[test]
    fn a_guid_is_read_in_the_order_of_the_disk() {
        // The type of EFI system partitions, as the UEFI specification writes and stores it.
        let efi = uuid("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        let stored = [
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e,
            0xc9, 0x3b,
        ];
        assert_eq!(efi, Some(stored));
        for wrong in [
            "",
            "c12a7328",
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93b-",
            "+12a7328-f81f-11d2-ba4b-00a0c93ec93b",
        ] {
            assert_eq!(uuid(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_text_is_read_without_panic(text in "[0-9a-f-]{0,40}|.{0,20}|xvd.{0,2}") {
            let _ = (uuid(&text), device_number(&text));
        }
    }
}
