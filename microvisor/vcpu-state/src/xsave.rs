//! The extended state image (XSAVE standard format, Intel SDM vol. 1, 13.4): its initial content,
//! and making safe what a VMM wrote into one before XRSTOR sees it.

/// Bytes of the legacy region and the header.
pub const MINIMUM: usize = 576;
/// MXCSR bits that every CPU with SVM or VMX has (with DAZ).
const MXCSR_MASK: u32 = 0xffff;
/// MXCSR after reset.
const MXCSR_RESET: u32 = 0x1f80;
/// x87 control word after FNINIT.
const FCW_RESET: u16 = 0x37f;

/// Bytes of an image that holds `components`, given offset and size of each extended component as
/// CPUID leaf D tells them.
pub fn image_size(components: u64, part: impl Fn(u32) -> (u32, u32)) -> usize {
    let mut size = MINIMUM;
    for i in 2..63 {
        if components >> i & 1 != 0 {
            let (offset, bytes) = part(i);
            size = size.max(offset as usize + bytes as usize);
        }
    }
    size
}

/// Writes the state after reset into an image that is all zero.
pub fn reset(image: &mut [u8]) {
    put(image, 0, &FCW_RESET.to_le_bytes());
    put(image, 24, &MXCSR_RESET.to_le_bytes());
}

/// Makes an image acceptable to XRSTOR whatever bytes it holds: no component that `xcr0` lacks, the
/// standard format, reserved header bytes zero, no reserved MXCSR bit.
pub fn sanitise(image: &mut [u8], xcr0: u64) {
    let mxcsr = word(image, 24) as u32 & MXCSR_MASK;
    put(image, 24, &mxcsr.to_le_bytes());
    let present = word(image, 512) & xcr0;
    put(image, 512, &present.to_le_bytes());
    if let Some(rest) = image.get_mut(520..MINIMUM) {
        rest.fill(0);
    }
}

fn word(image: &[u8], at: usize) -> u64 {
    image
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = image.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}
