//! Reads files out of an ISO 9660 image with Rock Ridge names (ECMA-119; IEEE P1282 for the `NM`
//! entry): what `iso` writes. Accepts any bytes and never panics; directories are walked along one
//! path, each record once.

use std::borrow::Cow;

const SECTOR: usize = 2048;
/// The first volume descriptor (ECMA-119, 6.7.1).
const DESCRIPTOR: usize = 16 * SECTOR;
const DIRECTORY: u8 = 2;
/// More than this of one directory is not read.
const DIRECTORY_MAX: usize = 1 << 20;

/// Whether the bytes begin like an ISO 9660 image with a primary volume descriptor.
pub fn is(image: &[u8]) -> bool {
    image.get(DESCRIPTOR..DESCRIPTOR + 6) == Some(b"\x01CD001")
}

/// The file at `path` (`/boot/archive`), if it is there.
pub fn file<'a>(image: &'a [u8], path: &str) -> Result<Option<Cow<'a, [u8]>>, &'static str> {
    // The root directory's record is in the descriptor (ECMA-119, 8.4.18).
    let mut record = image
        .get(DESCRIPTOR + 156..)
        .and_then(Record::read)
        .ok_or("no root directory")?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        if !record.directory {
            return Ok(None);
        }
        let listing = record.content(image)?;
        let listing = listing.get(..DIRECTORY_MAX).unwrap_or(listing);
        match lookup(listing, name) {
            Some(found) => record = found,
            None => return Ok(None),
        }
    }
    Ok(Some(Cow::Borrowed(record.content(image)?)))
}

/// A directory record (ECMA-119, 9.1).
struct Record<'a> {
    extent: u32,
    length: u32,
    directory: bool,
    /// The identifier and what follows it.
    rest: &'a [u8],
    identifier: usize,
}

impl<'a> Record<'a> {
    fn read(bytes: &'a [u8]) -> Option<Record<'a>> {
        let size = usize::from(*bytes.first()?);
        let record = bytes.get(..size)?;
        let word = |at: usize| Some(u32::from_le_bytes(*record.get(at..)?.first_chunk()?));
        Some(Record {
            extent: word(2)?,
            length: word(10)?,
            directory: record.get(25)? & DIRECTORY != 0,
            identifier: usize::from(*record.get(32)?),
            rest: record.get(33..)?,
        })
    }

    fn content<'i>(&self, image: &'i [u8]) -> Result<&'i [u8], &'static str> {
        let start = self.extent as usize * SECTOR;
        image
            .get(start..start + self.length as usize)
            .ok_or("a file reaches past the end of the image")
    }

    /// The POSIX name: `NM` entries of the system use area, which follows the identifier, padded
    /// to an even offset.
    fn name(&self) -> Vec<u8> {
        let mut name = Vec::new();
        let mut area = self
            .rest
            .get(self.identifier + usize::from(self.identifier.is_multiple_of(2))..)
            .unwrap_or(&[]);
        while let [a, b, length, _, rest @ ..] = area {
            let Some(payload) = usize::from(*length).checked_sub(4) else {
                break;
            };
            let payload = rest.get(..payload).unwrap_or(rest);
            if [*a, *b] == *b"NM" {
                // One byte of flags; only the plain kind is ever written.
                name.extend_from_slice(payload.get(1..).unwrap_or(&[]));
            }
            area = rest.get(payload.len()..).unwrap_or(&[]);
        }
        name
    }
}

fn lookup<'a>(listing: &'a [u8], name: &str) -> Option<Record<'a>> {
    // Records do not cross sectors; a zero length ends a sector's.
    for sector in listing.chunks(SECTOR) {
        let mut at = 0;
        while let Some(size) = sector.get(at).copied().filter(|size| *size > 0) {
            if let Some(record) = sector.get(at..).and_then(Record::read)
                && record.name() == name.as_bytes()
            {
                return Some(record);
            }
            at += usize::from(size);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(name: &str, extent: u32, length: u32, directory: bool) -> Vec<u8> {
        let mut out = vec![0; 33];
        out[2..6].copy_from_slice(&extent.to_le_bytes());
        out[10..14].copy_from_slice(&length.to_le_bytes());
        out[25] = if directory { DIRECTORY } else { 0 };
        // An identifier of one byte, which ends at an even offset.
        out[32] = 1;
        out.push(b'X');
        if !name.is_empty() {
            out.extend(b"RR\x05\x01\x00");
            out.extend(b"NM");
            out.extend([name.len() as u8 + 5, 1, 0]);
            out.extend(name.as_bytes());
        }
        out[0] = out.len() as u8;
        out
    }

    /// `/boot/archive` with a few bytes.
    fn image() -> Vec<u8> {
        let mut image = vec![0; 24 * SECTOR];
        image[DESCRIPTOR..DESCRIPTOR + 6].copy_from_slice(b"\x01CD001");
        let mut put = |sector: usize, offset: usize, bytes: &[u8]| {
            let at = sector * SECTOR + offset;
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(16, 156, &record("", 20, 2048, true));
        put(20, 0, &record("other", 23, 9, false));
        put(20, 100, &[]);
        let first = record("other", 23, 9, false).len();
        put(20, first, &record("boot", 21, 2048, true));
        put(21, 0, &record("archive", 22, 5, false));
        put(22, 0, b"hello");
        image
    }

    #[test]
    fn a_file_is_found_by_its_long_name() {
        let image = image();
        assert!(is(&image));
        let found = file(&image, "/boot/archive").unwrap().unwrap();
        assert_eq!(&*found, b"hello");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let image = image();
        for path in ["/boot/nothing", "/other/archive", "/archive"] {
            assert_eq!(file(&image, path), Ok(None), "{path}");
        }
    }

    #[test]
    fn a_file_past_the_end_is_an_error() {
        let mut image = image();
        image[21 * SECTOR + 2] = 200;
        assert!(file(&image, "/boot/archive").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn damaged_images_are_read_without_panic(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        ) {
            let mut image = image();
            let used = [16 * SECTOR + 156..16 * SECTOR + 200, 20 * SECTOR..20 * SECTOR + 100, 21 * SECTOR..21 * SECTOR + 100];
            let places: Vec<usize> = used.into_iter().flatten().collect();
            for (at, value) in damage {
                image[*at.get(&places)] = value;
            }
            let _ = file(&image, "/boot/archive");
        }
    }
}
