//! What the image-builder writes is what the readers in the image read.

use image_builder::archive::{Contents, write};
use image_builder::elf::{Loadable, Segment};
use image_builder::symbols::{Function, blob};
use microvisor_abi::archive::Archive;
use microvisor_abi::symbols::lookup;
use proptest::prelude::*;

fn contents(files: Vec<(String, Vec<u8>)>) -> Contents {
    Contents {
        root: Loadable {
            entry: 0x20_0000,
            segments: vec![Segment {
                address: 0x20_0000,
                bytes: vec![0xc3; 100],
                memory_bytes: 5000,
                flags: 5,
            }],
        },
        manifest: b"manifest".to_vec(),
        files,
    }
}

#[test]
fn large_files_start_at_large_frames() {
    let files = vec![
        ("large".to_owned(), vec![1; 3 << 20]),
        ("small".to_owned(), vec![2; 10]),
        ("again".to_owned(), vec![1; 3 << 20]),
    ];
    let bytes = write(&contents(files)).unwrap();
    let archive = Archive::parse(&bytes).unwrap();
    let (large, content) = archive.file("large").unwrap();
    assert_eq!((large % (2 << 20), content.len()), (0, 3 << 20));
    assert_eq!(archive.file("small").unwrap().0 % 4096, 0);
    assert_eq!(
        archive.file("again").unwrap().0,
        large,
        "equal contents are stored once"
    );
}

#[test]
fn small_files_fill_what_is_left_before_large_ones() {
    // 900 KiB each: two fit before the first large file, and the third behind it.
    let mut files: Vec<(String, Vec<u8>)> = (0..3)
        .map(|number| (format!("small-{number}"), vec![number; 900 << 10]))
        .collect();
    files.push(("large".to_owned(), vec![7; 3 << 20]));
    let bytes = write(&contents(files)).unwrap();
    let archive = Archive::parse(&bytes).unwrap();
    let place = |name: &str| archive.file(name).unwrap().0;
    assert_eq!(place("large"), 2 << 20);
    assert!(place("small-1") < 2 << 20 && place("small-2") >= 5 << 20);
    assert!(bytes.len() < 6 << 20, "{} bytes", bytes.len());
}

#[test]
fn names_that_do_not_fit_are_refused() {
    assert!(write(&contents(vec![("x".repeat(113), vec![])])).is_err());
    assert!(write(&contents(vec![(String::new(), vec![])])).is_err());
    let twice = vec![("a".to_owned(), vec![1]), ("a".to_owned(), vec![2])];
    assert!(
        write(&contents(twice))
            .unwrap_err()
            .to_string()
            .contains("two files")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn archives_are_read_back(
        files in proptest::collection::btree_map("[a-z/]{1,20}", proptest::collection::vec(any::<u8>(), 0..9000), 0..8),
    ) {
        let files: Vec<(String, Vec<u8>)> = files.into_iter().collect();
        let input = contents(files.clone());
        let bytes = write(&input).unwrap();
        let archive = Archive::parse(&bytes).unwrap();
        prop_assert_eq!(archive.manifest(), b"manifest");
        prop_assert_eq!(archive.entry(), 0x20_0000);
        let segment = archive.segments().next().unwrap();
        prop_assert_eq!(archive.segment_bytes(&segment), &input.root.segments[0].bytes[..]);
        prop_assert_eq!(archive.files().count(), files.len());
        for (name, content) in &files {
            prop_assert_eq!(archive.file(name).unwrap().1, &content[..]);
        }
        let mut shuffled = input.clone();
        shuffled.files.reverse();
        prop_assert_eq!(write(&shuffled).unwrap(), bytes, "order of the input does not matter");
    }

    #[test]
    fn symbols_are_found_by_address(starts in proptest::collection::btree_set(0u64..1000, 1..20)) {
        let functions: Vec<Function> = starts
            .iter()
            .map(|start| Function { address: start * 16, size: 16, name: format!("f{start}") })
            .collect();
        let blob = blob(&functions);
        for address in 0..16_100 {
            let found = lookup(&blob, address);
            let expected = starts.contains(&(address / 16));
            prop_assert_eq!(found.is_some(), expected);
            if let Some((name, offset)) = found {
                prop_assert_eq!(name, format!("f{}", address / 16));
                prop_assert_eq!(offset, address % 16);
            }
        }
    }
}
