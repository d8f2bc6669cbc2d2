use super::*;
use idl::ring::RingPage;
use proptest::prelude::*;
use std::vec::Vec;
use xen_abi::TestMemory;

const RING: GuestRing = GuestRing { address: 0x1000 };

fn memory() -> TestMemory {
    TestMemory::new(0x3000, 0)
}

fn set(memory: &TestMemory, offset: u64, value: u32) {
    memory.write_u32(0x1000 + offset, value).unwrap();
}

fn word(memory: &TestMemory, offset: u64) -> u32 {
    memory.read_u32(0x1000 + offset).unwrap()
}

#[test]
fn output_moves_across_the_wrap_and_waits_for_room() {
    let (memory, page) = (memory(), RingPage::new());
    let (mut writer, mut reader) = (page.output.writer(), page.output.reader());
    let start = 2040u32;
    for index in 0..2000u32 {
        let at = 0x1000 + 1024 + u64::from((start + index) % 2048);
        memory.write(at, &[index as u8]).unwrap();
    }
    set(&memory, OUT_CONS, start);
    set(&memory, OUT_PROD, start + 2000);
    writer.write(&[0; 1000]);
    assert_eq!(RING.output(&memory, &mut writer), Ok(true));
    assert_eq!(word(&memory, OUT_CONS), start + 1048);
    assert_eq!(RING.output(&memory, &mut writer), Ok(false), "no room");
    let mut got = [0; 2048];
    assert_eq!(reader.read(&mut got), Ok(2048));
    assert!((0..1048).all(|index| got[1000 + index] == index as u8));
    assert_eq!(RING.output(&memory, &mut writer), Ok(true));
    assert_eq!(word(&memory, OUT_CONS), start + 2000);
}

#[test]
fn input_moves_as_far_as_the_guest_has_room() {
    let (memory, page) = (memory(), RingPage::new());
    let (mut writer, mut reader) = (page.input.writer(), page.input.reader());
    set(&memory, IN_CONS, u32::MAX - 1);
    set(&memory, IN_PROD, u32::MAX.wrapping_add(999));
    writer.write(&[7; 100]);
    assert_eq!(RING.input(&memory, &mut reader), Ok(true));
    assert_eq!(word(&memory, IN_PROD), 1022);
    assert_eq!(RING.input(&memory, &mut reader), Ok(false));
    set(&memory, IN_CONS, 1022);
    assert_eq!(RING.input(&memory, &mut reader), Ok(true));
    assert_eq!(word(&memory, IN_PROD), 1098);
}

#[test]
fn lines_are_cut_and_cleaned() {
    let mut lines = Lines::new();
    lines.add(b"a\x1b[1mb\xffc");
    assert_eq!(lines.line, "a[1mbc");
    lines.add(&[b'x'; 500]);
    assert!(lines.line.len() <= Lines::MAX);
    lines.add(b"\n");
    assert!(lines.line.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_indices_are_survived(indices in any::<[u32; 4]>(), input in 0usize..1025) {
        let (memory, page) = (memory(), RingPage::new());
        for (offset, value) in [IN_CONS, IN_PROD, OUT_CONS, OUT_PROD].into_iter().zip(indices) {
            set(&memory, offset, value);
        }
        let mut writer = page.input.writer();
        writer.write(&std::vec![1; input]);
        let mut out = page.output.writer();
        RING.output(&memory, &mut out).unwrap();
        RING.input(&memory, &mut page.input.reader()).unwrap();
        // Nothing outside the page was written.
        let mut around = Vec::from([0; 0x1000]);
        memory.read(0x2000, &mut around).unwrap();
        prop_assert!(around.iter().all(|byte| *byte == 0));
        memory.read(0, &mut around).unwrap();
        prop_assert!(around.iter().all(|byte| *byte == 0));
    }
}
