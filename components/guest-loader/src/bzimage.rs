//! The Linux boot image (Linux Documentation/arch/x86/boot.rst): finds the payload.

use crate::error::{Error, Input};
use crate::{u16_at, u32_at};

/// Offset of "HdrS" in the file.
const MAGIC_AT: usize = 0x202;
const MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG_AT: usize = 0x1fe;
/// First protocol version with `payload_offset` and `payload_length`.
const VERSION_MIN: u16 = 0x208;
const SETUP_SECTS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// True if the file is a Linux boot image.
pub fn is_bzimage(file: &[u8]) -> bool {
    u16_at(file, BOOT_FLAG_AT) == Some(0xaa55) && u32_at(file, MAGIC_AT) == Some(MAGIC)
}

/// A compressed kernel inside a boot image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// The compressed bytes.
    pub bytes: &'a [u8],
    /// Bytes it unpacks to, as the image says.
    pub unpacked: u32,
}

/// The payload of a boot image. Its last four bytes are the unpacked size, which is taken off.
pub fn payload(file: &[u8]) -> Result<Payload<'_>, Error> {
    if !is_bzimage(file) {
        return Err(Error::NotAKernel);
    }
    let length = file.len() as u64;
    let truncated = |offset: usize| Error::Truncated {
        input: Input::Kernel,
        offset: offset as u64,
        length,
    };
    let version = u16_at(file, MAGIC_AT + 4).ok_or(truncated(MAGIC_AT))?;
    if version < VERSION_MIN {
        return Err(Error::Malformed {
            input: Input::Kernel,
            offset: MAGIC_AT as u64 + 4,
        });
    }
    // 0 means 4 for historical reasons.
    let sectors = match file
        .get(SETUP_SECTS)
        .copied()
        .ok_or(truncated(SETUP_SECTS))?
    {
        0 => 4,
        n => n as usize,
    };
    let offset = u32_at(file, PAYLOAD_OFFSET).ok_or(truncated(PAYLOAD_OFFSET))? as usize;
    let bytes = u32_at(file, PAYLOAD_LENGTH).ok_or(truncated(PAYLOAD_LENGTH))? as usize;
    let start = (sectors + 1) * 512 + offset;
    let payload = file
        .get(start..start + bytes)
        .ok_or(truncated(start + bytes))?;
    let end = bytes.checked_sub(4).ok_or(Error::Malformed {
        input: Input::Kernel,
        offset: PAYLOAD_LENGTH as u64,
    })?;
    let unpacked = u32_at(payload, end).ok_or(truncated(start + end))?;
    Ok(Payload {
        bytes: payload.get(..end).unwrap_or(&[]),
        unpacked,
    })
}
