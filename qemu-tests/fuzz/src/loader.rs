//! What boot loaders, firmware and image-builder leave in memory. The boot code's parsers are the
//! core's own source.

use boot::remap::{Remapping, dmar, ivrs, table};
use microvisor_abi::archive::Archive;
use pci_bus::acpi::{Physical, windows};

#[path = "../../../microvisor/src/boot"]
#[allow(dead_code, reason = "the core uses the rest")]
mod boot {
    mod bytes;
    pub mod map;
    pub mod multiboot2;
    pub mod pvh;
    pub mod remap;
}

/// Where bytes are taken to be.
const AT: u64 = 0x1000;

/// Ranges do not overlap, do not touch, and lie where some region said that memory is.
fn sound(firmware: &boot::map::Firmware) {
    let ranges = firmware.memory();
    let mut end = None;
    for (start, stop) in ranges.iter() {
        assert!(start < stop, "an empty range");
        assert!(end.is_none_or(|end| end < start), "two ranges meet");
        end = Some(stop);
        let said = |at: u64| {
            let inside = |region: &&boot::map::Region| region.start <= at && at < region.end;
            let mut all = firmware.map.iter().filter(inside);
            all.clone().any(|region| region.usable) && all.all(|region| region.usable)
        };
        assert!(said(start) && said(stop - 1), "{start:#x} is no memory");
    }
}

pub fn multiboot2(data: &[u8]) {
    sound(&boot::multiboot2::parse(data, AT));
}

pub fn multiboot2_seeds() -> Vec<Vec<u8>> {
    let tag = |kind: u32, body: &[u8]| {
        let mut tag = [kind.to_le_bytes(), (8 + body.len() as u32).to_le_bytes()].concat();
        tag.extend(body);
        tag.resize(tag.len().next_multiple_of(8), 0);
        tag
    };
    let module = [0x1000u32, 0x3000].map(u32::to_le_bytes).concat();
    let map = [&24u32.to_le_bytes()[..], &[0; 4], &e820(&REGIONS)].concat();
    let tags = [
        tag(3, &module),
        tag(6, &map),
        tag(14, b"RSD PTR "),
        tag(15, b"RSD PTR "),
        tag(0, &[]),
    ];
    vec![[vec![0; 8], tags.concat()].concat()]
}

const REGIONS: [(u64, u64, u32); 3] = [
    (0, 0x9_f000, 1),
    (0x10_0000, 0x70_0000, 1),
    (0x20_0800, 0x1000, 2),
];

fn e820(regions: &[(u64, u64, u32)]) -> Vec<u8> {
    let entry = |&(base, length, kind): &(u64, u64, u32)| {
        [base, length, kind.into()].map(u64::to_le_bytes).concat()
    };
    regions.iter().flat_map(entry).collect()
}

/// Bytes of `data` by their address, which counts from [`AT`].
fn read(data: &[u8], at: u64, length: u64) -> Option<&[u8]> {
    let at = usize::try_from(at.checked_sub(AT)?).ok()?;
    data.get(at..at.checked_add(length as usize)?)
}

pub fn pvh(data: &[u8]) {
    if let Some(firmware) = boot::pvh::parse(AT, |at, length| read(data, at, length)) {
        sound(&firmware);
    }
}

pub fn pvh_seeds() -> Vec<Vec<u8>> {
    let (module, map) = (AT + 56, AT + 88);
    let info = [
        u64::from(boot::pvh::MAGIC) | 1 << 32,
        1 << 32,
        module,
        0,
        0x7000,
        map,
        3,
    ];
    let module = [0x7000u64, 0x123, 0, 0];
    let words = info
        .iter()
        .chain(&module)
        .flat_map(|word| word.to_le_bytes());
    vec![words.chain(e820(&REGIONS)).collect()]
}

pub fn iommu_tables(data: &[u8]) {
    let sane = |found: Remapping| {
        assert!(found.reserved.iter().all(|r| r.start < r.end));
        assert!(found.units.iter().all(|unit| unit.base != 0));
    };
    let (kind, rest) = data.split_first().unwrap_or((&0, &[]));
    match kind % 3 {
        0 => sane(dmar(rest)),
        1 => sane(ivrs(rest)),
        _ => {
            for signature in [b"DMAR", b"IVRS"] {
                let found = table(AT, signature, |at, length| read(rest, at, length));
                assert!(found.is_none_or(|found| found.starts_with(signature)));
            }
        }
    }
}

/// A table with a right checksum.
fn acpi(signature: &[u8; 4], header: usize, body: &[u8]) -> Vec<u8> {
    let mut table = vec![0; header];
    table[..4].copy_from_slice(signature);
    table.extend(body);
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

/// An RSDP of revision 0 at [`AT`], a root table behind it, and `table` behind that.
fn firmware(table: &[u8]) -> Vec<u8> {
    let root = acpi(b"RSDT", 36, &(AT as u32 + 128).to_le_bytes());
    let mut memory = vec![0; 128];
    memory[..8].copy_from_slice(b"RSD PTR ");
    memory[16..20].copy_from_slice(&(AT as u32 + 64).to_le_bytes());
    memory[8] = memory[..20]
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    memory[64..64 + root.len()].copy_from_slice(&root);
    memory.extend(table);
    memory
}

pub fn iommu_seeds() -> Vec<Vec<u8>> {
    let scope = [1, 8, 0, 0, 0, 0, 2, 0];
    let unit = [
        &[0, 0, 24, 0, 1, 0, 0, 0][..],
        &0xfed9_0000u64.to_le_bytes(),
        &scope,
    ]
    .concat();
    let memory = [0x7800_0000u64, 0x7fff_ffff].map(u64::to_le_bytes).concat();
    let reserved = [&[1, 0, 32, 0, 0, 0, 0, 0][..], &memory, &scope].concat();
    let vtd = acpi(b"DMAR", 48, &[unit, reserved].concat());
    let hardware = [
        &[0x10, 0, 32, 0, 0, 0, 0x40, 0][..],
        &0xfed8_0000u64.to_le_bytes(),
        &[0; 8],
    ]
    .concat();
    let entries = [2, 8, 0, 0, 0x48, 0, 0, 0];
    let amd = acpi(b"IVRS", 48, &[hardware, entries.to_vec()].concat());
    vec![
        [vec![0], vtd.clone()].concat(),
        [vec![1], amd].concat(),
        [vec![2], firmware(&vtd)].concat(),
    ]
}

struct Memory<'a>(&'a [u8]);

impl Physical for Memory<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> bool {
        let found = read(self.0, address, into.len() as u64);
        found.map(|found| into.copy_from_slice(found)).is_some()
    }
}

/// The first byte says whether checksums are put right, so that what they protect is reached too.
pub fn mcfg(data: &[u8]) {
    let (mend, data) = data.split_first().unwrap_or((&0, &[]));
    let mut data = data.to_vec();
    if mend & 1 != 0 {
        for (table, length) in [(0, 20), (64, 40), (128, 60)] {
            let at = table + if table == 0 { 8 } else { 9 };
            if let Some(bytes) = data.get(table..table + length) {
                let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                data[at] = data[at].wrapping_sub(sum);
            }
        }
    }
    let data = &data[..];
    for window in windows(&mut Memory(data), AT).unwrap_or_default() {
        assert!(window.first <= window.last && window.base.is_multiple_of(1 << 20));
    }
}

pub fn mcfg_seeds() -> Vec<Vec<u8>> {
    let window = [
        &0xb000_0000u64.to_le_bytes()[..],
        &[0, 0, 0, 255, 0, 0, 0, 0],
    ]
    .concat();
    let memory = firmware(&acpi(b"MCFG", 44, &window));
    vec![[&[0][..], &memory].concat(), [&[1][..], &memory].concat()]
}

pub fn archive(data: &[u8]) {
    let Ok(archive) = Archive::parse(data) else {
        return;
    };
    let _ = (archive.entry(), archive.manifest());
    for segment in archive.segments() {
        let bytes = archive.segment_bytes(&segment).len() as u64;
        assert_eq!(bytes, segment.file_bytes);
        assert!(segment.file_bytes <= segment.memory_bytes);
    }
    for (name, offset, content) in archive.files() {
        assert!(offset as usize + content.len() <= archive.total_bytes());
        let _ = archive.file(name);
    }
}

pub fn archive_seeds() -> Vec<Vec<u8>> {
    use microvisor_abi::archive::{ENTRY_BYTES, HEADER_BYTES, MAGIC};
    let total = HEADER_BYTES + 8 * ENTRY_BYTES;
    let mut bytes = vec![0; total];
    bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..16].copy_from_slice(&(total as u64).to_le_bytes());
    vec![bytes]
}

pub fn symbols(data: &[u8]) {
    let mut rest = data;
    let address = u64::from_le_bytes(crate::take(&mut rest));
    let _ = microvisor_abi::symbols::lookup(rest, address);
}

pub fn symbols_seeds() -> Vec<Vec<u8>> {
    let words = [0x1008u64, 2, 0x1000, 0, 0x2000, 4].map(u64::to_le_bytes);
    vec![words.concat()]
}
