use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;
use x86_platform::memory::GuestMemory as _;
use xen_abi::GuestMemory as _;

/// Memory that outlives its `Ram`, in words so that it is aligned.
fn ram(bytes: u64, special: u64) -> Ram {
    let words = |bytes: u64| Vec::leak(vec![0u64; (bytes / 8) as usize]).as_mut_ptr() as u64;
    // SAFETY: both are leaked, and nothing else uses them.
    unsafe { Ram::new(words(bytes), bytes, words(special * PAGE), special) }
}

#[test]
fn accesses_cross_pages_and_stop_at_the_end() {
    let ram = ram(0x4000, 1);
    xen_abi::GuestMemory::write(&ram, 0xffd, b"abcdef").unwrap();
    let mut out = [0; 6];
    xen_abi::GuestMemory::read(&ram, 0xffd, &mut out).unwrap();
    assert_eq!(&out, b"abcdef");
    assert!(xen_abi::GuestMemory::write(&ram, 0x3ffd, b"abcd").is_err());
    assert!(xen_abi::GuestMemory::read(&ram, u64::MAX - 1, &mut out).is_err());
    assert!(ram.fetch_or_u32(2, 1).is_err(), "not aligned");
    assert!(ram.read_u64(0x3ffc).is_err());
}

#[test]
fn a_page_taken_out_is_gone_and_comes_back() {
    let ram = ram(0x4000, 1);
    ram.set_plain(1, false);
    assert!(ram.write_u32(0x1000, 1).is_err());
    assert!(ram.write_u32(0x2000, 1).is_ok());
    let mut out = [0; 8];
    assert!(xen_abi::GuestMemory::read(&ram, 0xffc, &mut out).is_err());
    ram.set_plain(1, true);
    assert!(ram.write_u32(0x1000, 1).is_ok());
    ram.set_plain(4, true);
    assert!(!ram.is_plain(4), "no RAM belongs there");
    ram.clear(1);
    assert_eq!(xen_abi::GuestMemory::read_u32(&ram, 0x1000), Ok(0));
}

#[test]
fn special_frames_are_reached_by_both_addresses() {
    let ram = ram(0x4000, 2);
    let at = SpecialFrame::GrantTable(0).address();
    ram.write_u32(at + 8, 7).unwrap();
    assert!(xen_abi::GuestMemory::read_u32(&ram, 0x10_0008).is_err());
    ram.set_special(1, Some(0x100));
    assert_eq!(xen_abi::GuestMemory::read_u32(&ram, 0x10_0008), Ok(7));
    assert_eq!(
        (ram.special_of(0x100), ram.special_at(1)),
        (Some(1), Some(0x100))
    );
    ram.set_special(1, None);
    assert!(xen_abi::GuestMemory::read_u32(&ram, 0x10_0008).is_err());
    assert!(ram.write_u32(at + PAGE, 1).is_err(), "no third frame");
}

#[test]
fn no_frame_number_means_a_special_frame_that_is_mapped_nowhere() {
    let ram = ram(0x4000, 2);
    // All bits of the filter are set, so that every look-up gets past it.
    for gfn in 0x100..0x400 {
        ram.set_special(1, Some(gfn));
    }
    ram.set_special(1, None);
    for gfn in [0, 0x100, 0x3ff, u64::MAX - 1, u64::MAX] {
        assert_eq!(ram.special_of(gfn), None, "{gfn:#x}");
    }
}

#[test]
fn every_change_of_what_is_where_is_a_new_layout() {
    let ram = ram(0x4000, 2);
    let mut known = std::vec![ram.layout()];
    let mut changed = |ram: &Ram| {
        assert!(!known.contains(&ram.layout()));
        known.push(ram.layout());
    };
    ram.set_plain(1, false);
    changed(&ram);
    ram.set_plain(1, true);
    changed(&ram);
    ram.set_special(1, Some(0x100));
    changed(&ram);
    ram.set_special(1, None);
    changed(&ram);
}

#[test]
fn a_word_found_once_is_the_same_memory() {
    let ram = ram(0x4000, 1);
    let word = ram.word(0x1008).unwrap();
    xen_abi::GuestMemory::write(&ram, 0x1008, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    assert_eq!(ram.load(word), 0x0807_0605_0403_0201);
    assert!(ram.word(0x1004).is_err(), "not aligned");
    assert!(ram.word(0x4000).is_err(), "not memory");
}

#[test]
fn the_hole_below_4_gib_belongs_to_nobody() {
    // Never touched beyond the bitmap: the addresses are only computed.
    // SAFETY: no memory is accessed.
    let ram = unsafe { Ram::new(0x1000, LOW_END + 0x20_0000, 0x1000, 0) };
    assert_eq!(ram.end(), HIGH_START + 0x20_0000);
    for (address, backed) in [
        (LOW_END - PAGE, true),
        (LOW_END, false),
        (0xfee0_0000, false),
        (HIGH_START - PAGE, false),
        (HIGH_START, true),
        (HIGH_START + 0x1f_f000, true),
        (HIGH_START + 0x20_0000, false),
    ] {
        assert_eq!(ram.belongs(address / PAGE), backed, "{address:#x}");
        assert_eq!(ram.is_plain(address / PAGE), backed, "{address:#x}");
    }
    assert_eq!(ram.place(HIGH_START + 5, 1), Ok(0x1000 + LOW_END + 5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn behaves_like_a_vector(
        accesses in prop::collection::vec((0u64..0x3100, prop::collection::vec(any::<u8>(), 0..5000)), 1..20)
    ) {
        let ram = ram(0x3000, 0);
        let mut model = vec![0u8; 0x3000];
        for (address, bytes) in &accesses {
            let range = *address as usize..*address as usize + bytes.len();
            let place = model.get_mut(range);
            // An empty access has no address to be wrong about.
            let fits = place.is_some() || bytes.is_empty();
            prop_assert_eq!(xen_abi::GuestMemory::write(&ram, *address, bytes).is_ok(), fits);
            if let Some(place) = place {
                place.copy_from_slice(bytes);
            }
        }
        let mut out = vec![0; 0x3000];
        xen_abi::GuestMemory::read(&ram, 0, &mut out).unwrap();
        prop_assert_eq!(out, model);
    }

    /// As `read` and `write` do, and as far as the words reach.
    #[test]
    fn shared_words_get_and_give_the_same_bytes(
        address in 0u64..0x3100,
        bytes in prop::collection::vec(any::<u8>(), 0..5000),
        words in 0usize..640,
    ) {
        let ram = ram(0x3000, 0);
        let pattern: Vec<u8> = (0..0x3000u32).map(|n| (n % 251) as u8).collect();
        xen_abi::GuestMemory::write(&ram, 0, &pattern).unwrap();
        let shared: Vec<AtomicU64> = (0..words).map(|_| AtomicU64::new(u64::MAX)).collect();
        let image = |shared: &[AtomicU64]| -> Vec<u8> {
            shared.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect()
        };
        let start = address as usize;
        let there = pattern.get(start..start + bytes.len()).or(bytes.is_empty().then_some(&[]));
        let fits = there.is_some() && bytes.len() <= words * 8;
        prop_assert_eq!(ram.read_shared(address, &shared, bytes.len()).is_ok(), fits);
        let (now, mut expected) = (image(&shared), vec![255; words * 8]);
        if let (true, Some(there)) = (fits, there) {
            expected[..bytes.len()].copy_from_slice(there);
        }
        prop_assert_eq!(now, expected);
        for (word, new) in shared.iter().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..new.len()].copy_from_slice(new);
            word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
        }
        prop_assert_eq!(ram.write_shared(address, &shared, bytes.len()).is_ok(), fits);
        let mut out = vec![0; 0x3000];
        xen_abi::GuestMemory::read(&ram, 0, &mut out).unwrap();
        let mut expected = pattern;
        if fits {
            expected.splice(start..start + bytes.len(), bytes).for_each(drop);
        }
        prop_assert_eq!(out, expected);
    }
}
