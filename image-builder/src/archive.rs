//! Writes the boot archive that `microvisor_abi::archive` reads: header, file table, contents.
//! Same input, same bytes: files are sorted by name, equal contents are stored once.

use anyhow::{Result, bail};
use microvisor_abi::archive::{ENTRY_BYTES, FILES_MAX, HEADER_BYTES, MAGIC, NAME_BYTES, SEGMENTS};

use crate::elf::Loadable;

const PAGE: usize = 4096;
const LARGE: usize = 2 << 20;
/// Contents of this size and more start at a multiple of 2 MiB.
const LARGE_FROM: usize = 1 << 20;

/// What goes into an archive.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Root: entry point and segments.
    pub root: Loadable,
    /// The encoded manifest.
    pub manifest: Vec<u8>,
    /// Files by name.
    pub files: Vec<(String, Vec<u8>)>,
}

/// The archive's bytes.
pub fn write(contents: &Contents) -> Result<Vec<u8>> {
    let mut files: Vec<(&str, &[u8])> = contents
        .files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    files.sort();
    if files.len() as u64 > FILES_MAX {
        bail!(
            "{} files do not fit into an archive, at most {FILES_MAX} do",
            files.len()
        );
    }
    if contents.root.segments.len() > SEGMENTS {
        bail!(
            "root has {} segments, at most {SEGMENTS} fit",
            contents.root.segments.len()
        );
    }
    for pair in files.windows(2) {
        if let [(a, _), (b, _)] = pair
            && a == b
        {
            bail!("two files are called {a}");
        }
    }
    let mut out = Writer {
        bytes: vec![0; HEADER_BYTES + files.len() * ENTRY_BYTES],
        stored: Vec::new(),
    };
    let manifest = out.store(&contents.manifest);
    for (index, segment) in contents.root.segments.iter().enumerate() {
        let offset = out.store(&segment.bytes);
        let words = [
            segment.address,
            offset as u64,
            segment.bytes.len() as u64,
            segment.memory_bytes,
            segment.flags,
        ];
        for (field, word) in words.into_iter().enumerate() {
            out.word(64 + (index * 5 + field) * 8, word);
        }
    }
    // Small contents fill what is left before the next large one, so that aligning these costs little.
    let (mut large, mut small): (Vec<usize>, Vec<usize>) = (0..files.len()).partition(|&index| {
        files
            .get(index)
            .is_some_and(|(_, bytes)| bytes.len() >= LARGE_FROM)
    });
    let mut order = Vec::new();
    let mut end = out.bytes.len();
    while !large.is_empty() || !small.is_empty() {
        let size = |index: &usize| files.get(*index).map_or(0, |(_, bytes)| bytes.len());
        let gap = end.next_multiple_of(LARGE) - end.next_multiple_of(PAGE);
        let fits = small.iter().position(|index| size(index) <= gap);
        let (index, unit) = match fits {
            Some(place) => (small.remove(place), PAGE),
            None if large.is_empty() => (small.remove(0), PAGE),
            None => (large.remove(0), LARGE),
        };
        end = end.next_multiple_of(unit) + size(&index);
        order.push(index);
    }
    for index in order {
        let Some(&(name, bytes)) = files.get(index) else {
            continue;
        };
        if name.is_empty() || name.len() > NAME_BYTES || name.contains('\0') {
            bail!("{name:?} cannot be a file's name: 1 to {NAME_BYTES} bytes, none of them zero");
        }
        let offset = out.store(bytes);
        let at = HEADER_BYTES + index * ENTRY_BYTES;
        out.put(at, name.as_bytes());
        out.word(at + NAME_BYTES, offset as u64);
        out.word(at + NAME_BYTES + 8, bytes.len() as u64);
    }
    out.pad(PAGE);
    let header = [
        MAGIC,
        out.bytes.len() as u64,
        contents.root.entry,
        contents.root.segments.len() as u64,
        files.len() as u64,
        manifest as u64,
        contents.manifest.len() as u64,
        0,
    ];
    for (index, word) in header.into_iter().enumerate() {
        out.word(index * 8, word);
    }
    Ok(out.bytes)
}

struct Writer<'a> {
    bytes: Vec<u8>,
    /// What is stored already, and where.
    stored: Vec<(&'a [u8], usize)>,
}

impl<'a> Writer<'a> {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn word(&mut self, at: usize, word: u64) {
        self.put(at, &word.to_le_bytes());
    }

    fn pad(&mut self, unit: usize) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(unit), 0);
    }

    fn store(&mut self, content: &'a [u8]) -> usize {
        if let Some((_, offset)) = self.stored.iter().find(|(bytes, _)| *bytes == content) {
            return *offset;
        }
        self.pad(if content.len() >= LARGE_FROM {
            LARGE
        } else {
            PAGE
        });
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(content);
        self.stored.push((content, offset));
        offset
    }
}
