//! Claims about extended state images.

use microvisor_vcpu_state::xsave::*;
use proptest::prelude::*;

proptest! {
    /// Intel SDM vol. 1, 13.8: what XRSTOR faults on.
    #[test]
    fn any_bytes_become_an_image_that_xrstor_takes(
        mut image in prop::collection::vec(any::<u8>(), 0..900), xcr0 in any::<u64>()
    ) {
        let before = image.clone();
        sanitise(&mut image, xcr0);
        if image.len() >= MINIMUM {
            let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
            prop_assert_eq!(word(512) & !xcr0, 0);
            prop_assert!(image[520..MINIMUM].iter().all(|&byte| byte == 0));
            prop_assert_eq!(word(24) & 0xffff_0000, 0);
            prop_assert_eq!(&image[MINIMUM..], &before[MINIMUM..], "register values stay");
            prop_assert_eq!(&image[32..512], &before[32..512], "register values stay");
        }
    }
}

#[test]
fn an_image_reaches_to_its_last_component() {
    // Offsets and sizes of AVX and PKRU as CPUID leaf D has them on current CPUs.
    let part = |i| match i {
        2 => (576, 256),
        9 => (2688, 8),
        _ => (0, 0),
    };
    assert_eq!(image_size(3, part), MINIMUM);
    assert_eq!(image_size(7, part), 832);
    assert_eq!(image_size(0x207, part), 2696);
}

#[test]
fn a_fresh_image_is_the_state_after_reset() {
    let mut image = [0u8; MINIMUM];
    reset(&mut image);
    assert_eq!(image[..2], [0x7f, 3]);
    assert_eq!(image[24..28], [0x80, 0x1f, 0, 0]);
    assert_eq!(image.iter().filter(|&&byte| byte != 0).count(), 4);
}
