//! Unpacks kernel payloads in the formats that distributions ship.

use crate::error::{Compression, Error};
use crate::u32_at;
use alloc::vec::Vec;

/// Zstandard window that Debian's kernels need: 128 MiB.
const ZSTD_WINDOW: u64 = 128 << 20;
/// Largest xz dictionary accepted: 64 MiB (Debian's kernels use 32 MiB).
const XZ_DICTIONARY: usize = 64 << 20;
const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;

/// How the bytes are compressed, by their first ones.
pub fn compression(payload: &[u8]) -> Compression {
    match payload {
        [0x7f, b'E', b'L', b'F', ..] => Compression::None,
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => match u32_at(payload, 0) {
            Some(LZ4_LEGACY_MAGIC) => Compression::Lz4,
            other => Compression::Unknown(other.unwrap_or(0)),
        },
    }
}

/// Unpacks `payload` to exactly `unpacked` bytes, a number that the caller has judged.
pub fn unpack(payload: &[u8], unpacked: usize) -> Result<Vec<u8>, Error> {
    let how = compression(payload);
    let damaged = Error::Payload(how);
    let mut out = Vec::new();
    out.try_reserve_exact(unpacked)
        .map_err(|_| Error::OwnMemory)?;
    out.resize(unpacked, 0);
    let written = match how {
        Compression::None => {
            let bytes = payload.get(..unpacked).ok_or(damaged)?;
            out.copy_from_slice(bytes);
            unpacked
        }
        Compression::Gzip => gzip(payload, &mut out).ok_or(damaged)?,
        Compression::Xz => xz(payload, &mut out).ok_or(damaged)?,
        Compression::Lz4 => lz4_legacy(payload, &mut out).ok_or(damaged)?,
        Compression::Zstd => zstd(payload, &mut out).ok_or(damaged)?,
        Compression::Unknown(_) => return Err(damaged),
    };
    if written == unpacked {
        Ok(out)
    } else {
        Err(damaged)
    }
}

fn xz(input: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut decoder = xz4rust::XzDecoder::in_heap_with_alloc_dict_size(1 << 20, XZ_DICTIONARY);
    let (mut read, mut written) = (0, 0);
    loop {
        let step = decoder
            .decode(input.get(read..)?, out.get_mut(written..)?)
            .ok()?;
        read += step.input_consumed();
        written += step.output_produced();
        if step.is_end_of_stream() {
            return Some(written);
        }
        if !step.made_progress() {
            return None;
        }
    }
}

fn zstd(input: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut decoder = ruzstd::decoding::FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_WINDOW);
    decoder.decode_all(input, out).ok()
}

/// Blocks of at most 8 MiB, each with its compressed size before it (lz4 doc/lz4_Frame_format.md,
/// "Legacy frame").
fn lz4_legacy(input: &[u8], out: &mut [u8]) -> Option<usize> {
    let (mut read, mut written) = (4, 0);
    while read < input.len() {
        let size = u32_at(input, read)?;
        read += 4;
        if size == LZ4_LEGACY_MAGIC {
            continue;
        }
        let block = input.get(read..read.checked_add(size as usize)?)?;
        read += size as usize;
        written += lz4_flex::block::decompress_into(block, out.get_mut(written..)?).ok()?;
    }
    Some(written)
}

fn gzip(input: &[u8], out: &mut [u8]) -> Option<usize> {
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
    let body = input.get(gzip_header(input)?..)?;
    let mut state = alloc::boxed::Box::<DecompressorOxide>::default();
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, written) = decompress(&mut state, body, out, 0, flags);
    (status == miniz_oxide::inflate::TINFLStatus::Done).then_some(written)
}

/// Length of the gzip header (RFC 1952, 2.3).
fn gzip_header(input: &[u8]) -> Option<usize> {
    let flags = *input.get(3)?;
    let mut at = 10;
    if flags & 4 != 0 {
        at += 2 + usize::from(crate::u16_at(input, at)?);
    }
    for flag in [8, 16] {
        if flags & flag != 0 {
            at += input.get(at..)?.iter().position(|&b| b == 0)? + 1;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    Some(at)
}
