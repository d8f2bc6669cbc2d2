//! GUID partition tables (UEFI specification 2.10, chapter 5): written for raw disk images, and
//! read back by `inspect`. The reader accepts any bytes and never panics.

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// First sector that a partition may have: after the header and 128 entries.
pub const FIRST_USABLE: u64 = 34;
/// Sectors at the end that the second copy takes.
pub const BACKUP: u64 = 33;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_BYTES: usize = 92;
const ENTRIES: usize = 128;
const ENTRY_BYTES: usize = 128;

/// What a partition is for, as bytes on disk: the GUID's first three fields are little-endian.
pub type Kind = [u8; 16];
/// EFI system partition, C12A7328-F81F-11D2-BA4B-00A0C93EC93B.
pub const EFI_SYSTEM: Kind = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];
/// BIOS boot partition, 21686148-6449-6E6F-744E-656564454649: where GRUB's core image is.
pub const BIOS_BOOT: Kind = *b"Hah!IdontNeedEFI";

/// Linux filesystem data, 0FC63DAF-8483-4772-8E79-3D69D8477DE4.
pub const LINUX: Kind = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];
/// UTF-16 units of a partition's name.
const NAME_UNITS: usize = 36;

/// A partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// What it is for.
    pub kind: Kind,
    /// First sector.
    pub first: u64,
    /// Last sector.
    pub last: u64,
}

/// Both copies of a table.
#[derive(Clone, Debug)]
pub struct Table {
    /// From sector 1 on: header, entries.
    pub primary: Vec<u8>,
    /// The last [`BACKUP`] sectors: entries, header.
    pub backup: Vec<u8>,
}

/// The table of a disk of `sectors`. GUIDs of disk and partitions are made from `identity`, so
/// that the same input gives the same bytes.
pub fn write(sectors: u64, partitions: &[Partition], identity: u64) -> Table {
    write_named(sectors, partitions, &[], identity)
}

/// The same with names for the first partitions: what Linux shows as `PARTLABEL`. A name longer than 36
/// UTF-16 units is cut.
pub fn write_named(sectors: u64, partitions: &[Partition], names: &[&str], identity: u64) -> Table {
    let guid = |number: u64| -> [u8; 16] {
        let mut guid = [0; 16];
        guid[..8].copy_from_slice(&identity.to_le_bytes());
        guid[8..].copy_from_slice(&number.to_be_bytes());
        // Version 8 (custom), variant 1 (RFC 9562, 4.1 and 5.8).
        guid[7] = guid[7] & 0x0f | 0x80;
        guid[8] = guid[8] & 0x3f | 0x80;
        guid
    };
    let mut entries = Vec::with_capacity(ENTRIES * ENTRY_BYTES);
    let names = names.iter().copied().chain(std::iter::repeat(""));
    for ((number, partition), name) in (1..).zip(partitions).zip(names) {
        let end = entries.len() + ENTRY_BYTES;
        entries.extend(partition.kind);
        entries.extend(guid(number));
        entries.extend(partition.first.to_le_bytes());
        entries.extend(partition.last.to_le_bytes());
        entries.extend([0; 8]); // attributes
        let units = name.encode_utf16().take(NAME_UNITS);
        entries.extend(units.flat_map(u16::to_le_bytes));
        entries.resize(end, 0);
    }
    entries.resize(ENTRIES * ENTRY_BYTES, 0);
    let header = |here: u64, other: u64, list: u64| {
        let mut out = Vec::from(*SIGNATURE);
        out.extend(0x1_0000u32.to_le_bytes());
        out.extend((HEADER_BYTES as u32).to_le_bytes());
        out.extend([0; 8]); // checksum, reserved
        out.extend(here.to_le_bytes());
        out.extend(other.to_le_bytes());
        out.extend(FIRST_USABLE.to_le_bytes());
        out.extend((sectors - BACKUP - 1).to_le_bytes());
        out.extend(guid(0));
        out.extend(list.to_le_bytes());
        out.extend((ENTRIES as u32).to_le_bytes());
        out.extend((ENTRY_BYTES as u32).to_le_bytes());
        out.extend(crc32(&entries).to_le_bytes());
        let sum = crc32(&out);
        out[16..20].copy_from_slice(&sum.to_le_bytes());
        out.resize(SECTOR as usize, 0);
        out
    };
    let mut primary = header(1, sectors - 1, 2);
    primary.extend(&entries);
    let mut backup = entries.clone();
    backup.extend(header(sectors - 1, 1, sectors - BACKUP));
    Table { primary, backup }
}

/// The protective entry of an MBR, as 16 bytes: the whole disk is taken (5.2.3).
pub fn protective(sectors: u64) -> [u8; 16] {
    let mut entry = [0; 16];
    entry[2] = 2; // head 0, sector 2
    entry[4] = 0xee;
    entry[5..8].fill(0xff);
    entry[8..12].copy_from_slice(&1u32.to_le_bytes());
    let length = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    entry[12..].copy_from_slice(&length.to_le_bytes());
    entry
}

/// The partitions of a disk; `None` if its first table is not there or damaged.
pub fn read(disk: &[u8]) -> Option<Vec<Partition>> {
    let header = disk.get(SECTOR as usize..2 * SECTOR as usize)?;
    let field = |at: usize| Some(u32::from_le_bytes(*header.get(at..)?.first_chunk()?));
    let bytes = field(12)? as usize;
    let mut summed = header.get(..bytes)?.to_vec();
    if bytes < HEADER_BYTES || !summed.starts_with(SIGNATURE) {
        return None;
    }
    summed.get_mut(16..20)?.fill(0);
    if crc32(&summed) != field(16)? {
        return None;
    }
    let list = u64::from_le_bytes(*header.get(72..)?.first_chunk()?);
    let (count, size) = (field(80)? as usize, field(84)? as usize);
    if !(48..=4096).contains(&size) || count > 1024 {
        return None;
    }
    let start = usize::try_from(list.checked_mul(SECTOR)?).ok()?;
    let entries = disk.get(start..start.checked_add(count * size)?)?;
    if crc32(entries) != field(88)? {
        return None;
    }
    let partition = |entry: &[u8]| {
        let kind: Kind = *entry.first_chunk()?;
        let word = |at: usize| Some(u64::from_le_bytes(*entry.get(at..)?.first_chunk()?));
        (kind != [0; 16]).then_some(())?;
        Some(Partition {
            kind,
            first: word(32)?,
            last: word(40)?,
        })
    };
    Some(entries.chunks_exact(size).filter_map(partition).collect())
}

/// CRC-32 as UEFI and Ethernet use it (reflected, polynomial 0x04c11db7).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut crc: u32, &byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn disk(sectors: u64, partitions: &[Partition]) -> Vec<u8> {
        let table = write(sectors, partitions, 7);
        let mut disk = vec![0; (sectors * SECTOR) as usize];
        disk[512..512 + table.primary.len()].copy_from_slice(&table.primary);
        let at = disk.len() - table.backup.len();
        disk[at..].copy_from_slice(&table.backup);
        disk
    }

    const ESP: Partition = Partition {
        kind: EFI_SYSTEM,
        first: 64,
        last: 99,
    };

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_table_is_read_back() {
        assert_eq!(read(&disk(200, &[ESP])), Some(vec![ESP]));
    }

    #[test]
    fn names_are_where_linux_looks_for_them() {
        let long = "x".repeat(40);
        let table = write_named(200, &[ESP, ESP], &["root", &long], 7);
        let name =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        // The header takes the first sector, an entry 128 bytes, the name begins at its byte 56.
        let entries = &table.primary[512..];
        assert_eq!(entries[56..66], name("root\0"));
        assert_eq!(entries[128 + 56..256], name(&long[..36]));
        assert_eq!(entries[256..], vec![0; entries.len() - 256]);
        assert_eq!(write(200, &[ESP], 7).primary.len(), table.primary.len());
    }

    #[test]
    fn the_second_copy_points_to_the_first() {
        let disk = disk(200, &[ESP]);
        let last = &disk[199 * 512..];
        assert!(last.starts_with(SIGNATURE));
        assert_eq!(last[24..32], 199u64.to_le_bytes());
        assert_eq!(last[32..40], 1u64.to_le_bytes());
        assert_eq!(last[72..80], 167u64.to_le_bytes());
        assert_eq!(disk[167 * 512..167 * 512 + 16], EFI_SYSTEM);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn damage_is_noticed(at in 512usize..(512 + 92), value: u8) {
            let good = disk(200, &[ESP]);
            let mut bad = good.clone();
            bad[at] = value;
            prop_assert_eq!(read(&bad).is_some(), bad == good);
        }

        #[test]
        fn any_header_is_read_without_panic(header in proptest::collection::vec(any::<u8>(), 84), list: u8, count: u32, size: u32) {
            // With a right checksum, so that what follows it is reached.
            let mut disk = disk(100, &[ESP]);
            disk[520..604].copy_from_slice(&header);
            disk[524..528].copy_from_slice(&92u32.to_le_bytes());
            disk[584..592].copy_from_slice(&u64::from(list).to_le_bytes());
            disk[592..596].copy_from_slice(&count.to_le_bytes());
            disk[596..600].copy_from_slice(&size.to_le_bytes());
            disk[528..532].fill(0);
            let sum = crc32(&disk[512..604]);
            disk[528..532].copy_from_slice(&sum.to_le_bytes());
            let _ = read(&disk);
        }
    }
}
