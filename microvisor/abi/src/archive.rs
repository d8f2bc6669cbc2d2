//! The boot archive: one blob with the manifest, the root component in loadable form, and files.
//!
//! Written by `image-builder`, read by the core (which only looks at the header and root's
//! segments) and by root. All numbers are little-endian `u64`s; offsets count from the start of
//! the archive. The reader accepts any bytes and never panics.
//!
//! Layout: the header ([`HEADER_BYTES`]), then `file_count` entries of [`ENTRY_BYTES`], then
//! contents. Contents start at multiples of 4096; those of 1 MiB and more at multiples of 2 MiB,
//! so that they can be handed on as large frames.

/// First word of an archive.
pub const MAGIC: u64 = 0x4843_5241_564d_0001;
/// Bytes of the header: 8 words, then [`SEGMENTS`] of 5 words.
pub const HEADER_BYTES: usize = 8 * (8 + 5 * SEGMENTS);
/// Segments that root may have.
pub const SEGMENTS: usize = 6;
/// Bytes of a file entry: name, offset, length.
pub const ENTRY_BYTES: usize = NAME_BYTES + 16;
/// Bytes of a file's name, UTF-8, padded with zeros.
pub const NAME_BYTES: usize = 112;
/// Most files in an archive.
pub const FILES_MAX: u64 = 1024;

/// A loadable segment of root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address, page aligned.
    pub address: u64,
    /// Offset of its bytes in the archive.
    pub offset: u64,
    /// Bytes in the archive.
    pub file_bytes: u64,
    /// Bytes in memory; those beyond `file_bytes` are zero.
    pub memory_bytes: u64,
    /// `cap::Map` flags.
    pub flags: u64,
}

/// What is wrong with an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It does not start with [`MAGIC`].
    Magic,
    /// It is shorter than its header says.
    Truncated,
    /// A count is beyond its limit.
    Count,
    /// A segment or file lies outside the archive or outside user addresses.
    Range,
}

/// A checked view of an archive.
#[derive(Clone, Copy, Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
    entry: u64,
    segments: u64,
    files: u64,
    manifest: (u64, u64),
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let chunk = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(chunk.try_into().ok()?))
}

fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

impl<'a> Archive<'a> {
    /// Checks header, segments and file table. Header words: magic, total bytes, entry point of
    /// root, segments, files, manifest offset, manifest length, 0.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let at = |index: usize| word(bytes, index * 8).ok_or(Error::Truncated);
        if at(0)? != MAGIC {
            return Err(Error::Magic);
        }
        let total = usize::try_from(at(1)?).map_err(|_| Error::Truncated)?;
        let bytes = bytes.get(..total).ok_or(Error::Truncated)?;
        let archive = Archive {
            bytes,
            entry: at(2)?,
            segments: at(3)?,
            files: at(4)?,
            manifest: (at(5)?, at(6)?),
        };
        if archive.segments > SEGMENTS as u64 || archive.files > FILES_MAX {
            return Err(Error::Count);
        }
        if bytes.len() < HEADER_BYTES + archive.files as usize * ENTRY_BYTES {
            return Err(Error::Truncated);
        }
        slice(bytes, archive.manifest.0, archive.manifest.1).ok_or(Error::Range)?;
        for segment in archive.segments() {
            let end = segment
                .address
                .checked_add(segment.memory_bytes)
                .ok_or(Error::Range)?;
            if slice(bytes, segment.offset, segment.file_bytes).is_none()
                || segment.file_bytes > segment.memory_bytes
                || !segment.address.is_multiple_of(crate::FRAME)
                || end > crate::boot::INFO_ADDRESS
            {
                return Err(Error::Range);
            }
        }
        for index in 0..archive.files as usize {
            archive.file_at(index).ok_or(Error::Range)?;
        }
        Ok(archive)
    }

    /// Bytes of the whole archive.
    pub fn total_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Entry point of root.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The manifest's bytes (postcard, see `idl::manifest`).
    pub fn manifest(&self) -> &'a [u8] {
        slice(self.bytes, self.manifest.0, self.manifest.1).unwrap_or(&[])
    }

    /// Root's segments.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + use<'a> {
        let bytes = self.bytes;
        (0..self.segments as usize).map_while(move |index| {
            let at = |field: usize| word(bytes, 64 + (index * 5 + field) * 8);
            Some(Segment {
                address: at(0)?,
                offset: at(1)?,
                file_bytes: at(2)?,
                memory_bytes: at(3)?,
                flags: at(4)?,
            })
        })
    }

    /// A segment's bytes.
    pub fn segment_bytes(&self, segment: &Segment) -> &'a [u8] {
        slice(self.bytes, segment.offset, segment.file_bytes).unwrap_or(&[])
    }

    fn file_at(&self, index: usize) -> Option<(&'a str, u64, &'a [u8])> {
        let at = HEADER_BYTES + index * ENTRY_BYTES;
        let name = self.bytes.get(at..at + NAME_BYTES)?;
        let length = name.iter().position(|&b| b == 0).unwrap_or(NAME_BYTES);
        let name = core::str::from_utf8(name.get(..length)?).ok()?;
        let offset = word(self.bytes, at + NAME_BYTES)?;
        let content = slice(self.bytes, offset, word(self.bytes, at + NAME_BYTES + 8)?)?;
        Some((name, offset, content))
    }

    /// Every file: name, offset in the archive, content.
    pub fn files(&self) -> impl Iterator<Item = (&'a str, u64, &'a [u8])> + '_ {
        (0..self.files as usize).map_while(|index| self.file_at(index))
    }

    /// The file of this name: its offset and content.
    pub fn file(&self, name: &str) -> Option<(u64, &'a [u8])> {
        self.files()
            .find(|(n, ..)| *n == name)
            .map(|(_, offset, content)| (offset, content))
    }
}
