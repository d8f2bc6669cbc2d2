//! Which bit of SVM's two permission maps stands for which MSR or port (AMD APM vol. 2, 15.10.1
//! and 15.11). A set bit intercepts; both maps start with every bit set.

/// Bytes of the MSR permission map.
pub const MSRPM_BYTES: usize = 0x2000;
/// Bytes of the I/O permission map: 64 Ki bits, and the three beyond that a 4-byte access to port
/// 0xffff reaches.
pub const IOPM_BYTES: usize = 0x3000;

/// MSRs that VMLOAD and VMSAVE switch, so that a guest may use them without an exit: SYSENTER_CS,
/// _ESP, _EIP; STAR, LSTAR, CSTAR, SFMASK; FS, GS and KERNEL_GS base.
pub const PASSED: [u32; 10] = [
    0x174,
    0x175,
    0x176,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
];

/// Byte in the map and mask of the two bits (read, write) of an MSR; `None` if the map does not
/// cover it, and so it always exits.
pub const fn msr(number: u32) -> Option<(usize, u8)> {
    let base = match number {
        0..=0x1fff => 0,
        0xc000_0000..=0xc000_1fff => 0x800,
        0xc001_0000..=0xc001_1fff => 0x1000,
        _ => return None,
    };
    let index = (number & 0x1fff) as usize + cfg!(planted = "msr-bitmap-off-by-one") as usize;
    Some((base + index / 4, 3 << (index % 4 * 2)))
}

/// The whole MSR map: everything exits but [`PASSED`].
pub const fn msr_map() -> [u8; MSRPM_BYTES] {
    let mut map = [0xff; MSRPM_BYTES];
    let mut i = 0;
    while i < PASSED.len() {
        if let Some((byte, mask)) = msr(PASSED[i]) {
            map[byte] &= !mask;
        }
        i += 1;
    }
    map
}

/// Byte in the map and mask of the bit of a port.
pub const fn port(number: u16) -> (usize, u8) {
    let bit = number as usize + cfg!(planted = "port-bitmap-off-by-one") as usize;
    (bit / 8, 1 << (bit % 8))
}
