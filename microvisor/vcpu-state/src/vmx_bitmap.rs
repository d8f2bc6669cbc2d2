//! Which bit of VMX's MSR bitmap stands for which MSR (Intel SDM vol. 3, 25.6.9). A set bit makes
//! the access exit; an MSR that the bitmap does not cover always exits. The I/O bitmaps have SVM's
//! layout without the part beyond port 0xffff ([`crate::svm_bitmaps::port`]).

/// Bytes of the MSR bitmap.
pub const MSR_BITMAP_BYTES: usize = 4096;

/// MSRs that a guest reads and writes without an exit: SYSENTER_CS, _ESP, _EIP, FS and GS base,
/// which the VMCS switches, and KERNEL_GS base, which the core saves at every exit because SWAPGS
/// changes it as well.
pub const PASSED: [u32; 6] = [0x174, 0x175, 0x176, 0xc000_0100, 0xc000_0101, 0xc000_0102];

/// MSRs that a guest reads without an exit: STAR, LSTAR, SFMASK. Writes exit, so the core knows
/// their values without reading them back.
pub const READABLE: [u32; 3] = [0xc000_0081, 0xc000_0082, 0xc000_0084];

/// Byte and mask of the bit for reads of an MSR; the one for writes is 2 KiB further on.
pub const fn read_bit(number: u32) -> Option<(usize, u8)> {
    let base = match number {
        0..=0x1fff => 0,
        0xc000_0000..=0xc000_1fff => 0x400,
        _ => return None,
    };
    let index = (number & 0x1fff) as usize;
    Some((base + index / 8, 1 << (index % 8)))
}

/// The whole bitmap: everything exits but [`PASSED`] and reads of [`READABLE`].
pub const fn msr_bitmap() -> [u8; MSR_BITMAP_BYTES] {
    let mut map = [0xff; MSR_BITMAP_BYTES];
    let mut i = 0;
    while i < PASSED.len() {
        if let Some((byte, mask)) = read_bit(PASSED[i]) {
            map[byte] &= !mask;
            map[byte + 0x800] &= !mask;
        }
        i += 1;
    }
    let mut i = 0;
    while i < READABLE.len() {
        if let Some((byte, mask)) = read_bit(READABLE[i]) {
            map[byte] &= !mask;
        }
        i += 1;
    }
    map
}
