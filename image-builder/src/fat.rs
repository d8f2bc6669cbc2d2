//! Reads files out of a FAT32 file system with long names (Microsoft, "FAT32 File System
//! Specification" 1.03): what `disk` makes. Accepts any bytes and never panics; a chain of
//! clusters is followed no further than there are clusters.

const ENTRY: usize = 32;
const LONG_NAME: u8 = 0x0f;
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
/// Cluster numbers have 28 bits; from here on they mean "end".
const END: u32 = 0x0fff_fff8;
/// More than this of one directory is not read.
const DIRECTORY_MAX: usize = 1 << 20;

/// A file system.
#[derive(Clone, Copy, Debug)]
pub struct Volume<'a> {
    table: &'a [u8],
    data: &'a [u8],
    cluster_bytes: usize,
    root: u32,
}

struct Found {
    cluster: u32,
    bytes: usize,
    directory: bool,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?).into())
}

impl<'a> Volume<'a> {
    /// Reads the boot sector.
    pub fn open(bytes: &'a [u8]) -> Result<Volume<'a>, &'static str> {
        Self::read(bytes).ok_or("it is no FAT32, or shorter than it says")
    }

    fn read(bytes: &'a [u8]) -> Option<Volume<'a>> {
        let sector = half(bytes, 11)?;
        let per_cluster = usize::from(*bytes.get(13)?);
        let reserved = half(bytes, 14)?;
        let tables = usize::from(*bytes.get(16)?);
        let table_sectors = word(bytes, 36)? as usize;
        // FAT12 and FAT16 have their table's length elsewhere.
        let good = (512..=4096).contains(&sector)
            && sector.is_power_of_two()
            && per_cluster.is_power_of_two()
            && half(bytes, 22)? == 0
            && bytes.get(510..512)? == [0x55, 0xaa];
        if !good {
            return None;
        }
        let start = reserved * sector;
        let length = table_sectors * sector;
        Some(Volume {
            table: bytes.get(start..start + length)?,
            data: bytes.get(start + tables * length..)?,
            cluster_bytes: per_cluster * sector,
            root: word(bytes, 44)?,
        })
    }

    /// The file at `path` (`/boot/archive`), if it is there; names are compared as FAT does,
    /// whatever their case.
    pub fn file(&self, path: &str) -> Result<Option<Vec<u8>>, &'static str> {
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        let mut cluster = self.root;
        while let Some(name) = names.next() {
            let listing = self.chain(cluster, DIRECTORY_MAX)?;
            let Some(found) = lookup(&listing, name) else {
                return Ok(None);
            };
            match (names.peek(), found.directory) {
                (None, false) => {
                    let bytes = self.chain(found.cluster, found.bytes)?;
                    if bytes.len() < found.bytes {
                        return Err("a file ends before its length");
                    }
                    return Ok(Some(bytes));
                }
                (Some(_), true) => cluster = found.cluster,
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// What a chain of clusters holds, at most `most` bytes.
    fn chain(&self, first: u32, most: usize) -> Result<Vec<u8>, &'static str> {
        let mut out = Vec::new();
        let mut cluster = first;
        // A file without bytes has no cluster.
        let mut left = self.data.len() / self.cluster_bytes;
        while out.len() < most && cluster != 0 && cluster < END {
            left = left
                .checked_sub(1)
                .ok_or("a chain of clusters is a circle")?;
            let start = (cluster as usize)
                .checked_sub(2)
                .ok_or("a chain of clusters leads nowhere")?
                * self.cluster_bytes;
            let bytes = self
                .data
                .get(start..start + self.cluster_bytes)
                .ok_or("a chain of clusters leads out of the file system")?;
            let wanted = (most - out.len()).min(bytes.len());
            out.extend_from_slice(bytes.get(..wanted).unwrap_or(bytes));
            let next = word(self.table, cluster as usize * 4);
            cluster = next.ok_or("a chain of clusters leads out of its table")? & 0x0fff_ffff;
        }
        Ok(out)
    }
}

fn lookup(listing: &[u8], name: &str) -> Option<Found> {
    let mut long: Vec<u16> = Vec::new();
    for entry in listing.chunks_exact(ENTRY) {
        let (first, attributes) = (*entry.first()?, *entry.get(11)?);
        match first {
            0 => return None,
            0xe5 => {
                long.clear();
                continue;
            }
            _ => {}
        }
        if attributes & LONG_NAME == LONG_NAME {
            // Parts come last first, 13 letters each.
            let mut part: Vec<u16> = [1..11, 14..26, 28..32]
                .into_iter()
                .flat_map(|range| entry.get(range).unwrap_or(&[]).chunks_exact(2))
                .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
                .collect();
            part.append(&mut long);
            long = part;
            // A name has at most 255 letters.
            long.truncate(20 * 13);
            continue;
        }
        let full = match long.is_empty() {
            true => short(entry),
            false => {
                let end = long.iter().position(|&letter| letter == 0);
                String::from_utf16_lossy(long.get(..end.unwrap_or(long.len())).unwrap_or(&[]))
            }
        };
        long.clear();
        if attributes & VOLUME == 0 && full.eq_ignore_ascii_case(name) {
            let cluster = half(entry, 20)? << 16 | half(entry, 26)?;
            return Some(Found {
                cluster: cluster as u32,
                bytes: word(entry, 28)? as usize,
                directory: attributes & DIRECTORY != 0,
            });
        }
    }
    None
}

/// `NAME.EXT` of the 8.3 form.
fn short(entry: &[u8]) -> String {
    let text = |range: std::ops::Range<usize>| {
        let bytes = entry.get(range).unwrap_or(&[]);
        String::from_utf8_lossy(bytes).trim_end().to_owned()
    };
    match (text(0..8), text(8..11)) {
        (base, ext) if ext.is_empty() => base,
        (base, ext) => format!("{base}.{ext}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RESERVED: usize = 2;
    const TABLE: usize = 1;

    fn entry(name: &[u8; 11], attributes: u8, cluster: u16, bytes: u32) -> [u8; 32] {
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(name);
        entry[11] = attributes;
        entry[26..28].copy_from_slice(&cluster.to_le_bytes());
        entry[28..].copy_from_slice(&bytes.to_le_bytes());
        entry
    }

    /// `/boot/archive` and, by a long name, `/boot/microvisor.elf`; both of two clusters.
    fn volume() -> Vec<u8> {
        let mut bytes = vec![0; 20 * 512];
        bytes[11..13].copy_from_slice(&512u16.to_le_bytes());
        bytes[13] = 1;
        bytes[14] = RESERVED as u8;
        bytes[16] = 2;
        bytes[36] = TABLE as u8;
        bytes[44] = 2;
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        for table in [RESERVED, RESERVED + TABLE] {
            for (cluster, next) in [(2, END), (3, END), (4, 6), (5, 7), (6, END), (7, END)] {
                let at = table * 512 + cluster * 4;
                bytes[at..at + 4].copy_from_slice(&(next | 0xf000_0000).to_le_bytes());
            }
        }
        let data = |cluster: usize| (RESERVED + 2 * TABLE + cluster - 2) * 512;
        bytes[data(2)..data(2) + 32].copy_from_slice(&entry(b"BOOT       ", DIRECTORY, 3, 0));
        let mut long = Vec::new();
        let mut letters: Vec<u16> = "microvisor.elf".encode_utf16().collect();
        letters.push(0);
        letters.resize(26, 0xffff);
        for (number, part) in letters.chunks(13).enumerate().rev() {
            let mut entry = [0; 32];
            entry[0] = number as u8 + 1;
            entry[11] = LONG_NAME;
            let places = (1..11)
                .step_by(2)
                .chain((14..26).step_by(2))
                .chain((28..32).step_by(2));
            for (at, letter) in places.zip(part) {
                entry[at..at + 2].copy_from_slice(&letter.to_le_bytes());
            }
            long.extend(entry);
        }
        long.extend(entry(b"MICROV~1ELF", 0x20, 5, 520));
        long.extend(entry(b"ARCHIVE    ", 0x20, 4, 600));
        bytes[data(3)..data(3) + long.len()].copy_from_slice(&long);
        for (cluster, value) in [(4, 1), (6, 2), (5, 3), (7, 4)] {
            bytes[data(cluster)..data(cluster) + 512].fill(value);
        }
        bytes
    }

    #[test]
    fn files_are_found_by_short_and_long_names() {
        let bytes = volume();
        let volume = Volume::open(&bytes).unwrap();
        let archive = volume.file("/boot/archive").unwrap().unwrap();
        assert_eq!(archive.len(), 600);
        assert_eq!((archive[511], archive[512]), (1, 2));
        let core = volume.file("/boot/microvisor.elf").unwrap().unwrap();
        assert_eq!((core.len(), core[0], core[519]), (520, 3, 4));
        for path in ["/boot", "/boot/nothing", "/boot/archive/x", "/"] {
            assert_eq!(volume.file(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn a_circle_of_clusters_is_noticed() {
        let mut bytes = volume();
        // The directory `boot` goes on in itself.
        bytes[RESERVED * 512 + 12] = 3;
        bytes[RESERVED * 512 + 13..RESERVED * 512 + 16].fill(0);
        let volume = Volume::open(&bytes).unwrap();
        assert!(volume.file("/boot/archive").is_err());
    }

    #[test]
    fn a_file_shorter_than_its_length_is_an_error() {
        let mut bytes = volume();
        bytes[RESERVED * 512 + 16..RESERVED * 512 + 20].copy_from_slice(&END.to_le_bytes());
        let volume = Volume::open(&bytes).unwrap();
        assert!(volume.file("/boot/archive").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn damaged_volumes_are_read_without_panic(
            damage in proptest::collection::vec((0usize..6 * 512, any::<u8>()), 1..20),
        ) {
            let mut bytes = volume();
            for (at, value) in damage {
                bytes[at] = value;
            }
            if let Ok(volume) = Volume::open(&bytes) {
                let _ = volume.file("/boot/archive");
                let _ = volume.file("/boot/microvisor.elf");
            }
        }
    }
}
