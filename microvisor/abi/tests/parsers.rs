//! The readers of archives and symbol tables accept any bytes.

use microvisor_abi::archive::{Archive, ENTRY_BYTES, HEADER_BYTES, MAGIC};
use microvisor_abi::symbols::lookup;
use proptest::prelude::*;

/// Looks at everything that an archive offers.
fn walk(bytes: &[u8]) {
    let Ok(archive) = Archive::parse(bytes) else {
        return;
    };
    let _ = (archive.total_bytes(), archive.entry(), archive.manifest());
    for segment in archive.segments() {
        // What `parse` accepted is inside.
        assert_eq!(
            archive.segment_bytes(&segment).len() as u64,
            segment.file_bytes
        );
        assert!(segment.file_bytes <= segment.memory_bytes);
    }
    for (name, offset, content) in archive.files() {
        assert!(offset as usize + content.len() <= archive.total_bytes());
        let _ = archive.file(name);
    }
}

/// Words that matter to a header, small more often than not.
fn words() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..8, 0u64..8192, any::<u64>(), Just(u64::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        walk(&bytes);
    }

    #[test]
    fn any_header_is_read_without_panic(header in proptest::collection::vec(words(), 46), total in 0u64..4096) {
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&total.to_le_bytes());
        bytes.resize(HEADER_BYTES + 8 * ENTRY_BYTES, b'x');
        walk(&bytes);
    }

    #[test]
    fn any_symbol_table_is_searched_without_panic(
        count: u32,
        entries in proptest::collection::vec(words(), 0..20),
        address in words(),
    ) {
        let mut bytes = Vec::from((count % 32).to_le_bytes());
        bytes.extend(entries.iter().flat_map(|word| word.to_le_bytes()));
        let _ = lookup(&bytes, address);
    }
}
