//! Unpacks kernel payloads in the formats that distributions ship.

use crate::error::{Compression, Error};
use crate::u32_at;
use alloc::vec::Vec;
use ruzstd::decoding::FrameDecoder;
use xz4rust::{XzDecoder, XzError};

/// Zstandard window that Debian's kernels need: 128 MiB.
const ZSTD_WINDOW: u64 = 128 << 20;
/// Largest xz dictionary accepted: 64 MiB (Debian's kernels use 32 MiB).
const XZ_DICTIONARY: u64 = 64 << 20;
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
    let mut out = room(unpacked)?;
    out.resize(unpacked, 0);
    unpack_into(payload, &mut out)?;
    Ok(out)
}

/// Unpacks `payload`, which must fill `out` exactly.
///
/// Beside `out` it takes memory for the decoder: nothing to speak of for LZ4 and gzip, the
/// dictionary for xz (at most [`XZ_DICTIONARY`]), and for Zstandard up to three times the smaller
/// of `out` and the window (a file that unpacks to more than it says is noticed at the latest
/// after a window of [`ZSTD_WINDOW`]).
pub fn unpack_into(payload: &[u8], out: &mut [u8]) -> Result<(), Error> {
    let how = compression(payload);
    let damaged = Error::Payload(how);
    let written = match how {
        Compression::None => {
            let bytes = payload.get(..out.len()).ok_or(damaged)?;
            out.copy_from_slice(bytes);
            out.len()
        }
        Compression::Gzip => gzip(payload, out).ok_or(damaged)?,
        Compression::Xz => xz(payload, out)?.ok_or(damaged)?,
        Compression::Lz4 => lz4_legacy(payload, out).ok_or(damaged)?,
        Compression::Zstd => zstd(payload, out)?.ok_or(damaged)?,
        Compression::Unknown(_) => return Err(damaged),
    };
    if written == out.len() {
        Ok(())
    } else {
        Err(damaged)
    }
}

/// An empty vector with room for `bytes`.
fn room(bytes: usize) -> Result<Vec<u8>, Error> {
    let mut room = Vec::new();
    room.try_reserve_exact(bytes)
        .map_err(|_| Error::OwnMemory)?;
    Ok(room)
}

fn xz(input: &[u8], out: &mut [u8]) -> Result<Option<usize>, Error> {
    // A decoder without a dictionary says how large a one the file wants, and an allocation of
    // ours can fail where one of the decoder's ends the program.
    let mut decoder = XzDecoder::in_heap_with_alloc_dict(Vec::new(), 0);
    let wanted = match decoder.decode(input, out) {
        Err(XzError::DictionaryTooLarge(bytes)) if bytes <= XZ_DICTIONARY => bytes as usize,
        _ => return Ok(None),
    };
    let mut dictionary = room(wanted)?;
    dictionary.resize(wanted, 0);
    let mut decoder = XzDecoder::in_heap_with_alloc_dict(dictionary, wanted);
    Ok(xz_stream(&mut decoder, input, out))
}

fn xz_stream(decoder: &mut XzDecoder<'_>, input: &[u8], out: &mut [u8]) -> Option<usize> {
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

fn zstd(input: &[u8], out: &mut [u8]) -> Result<Option<usize>, Error> {
    // The decoder's own buffer cannot fail to grow without ending the program: try whether there
    // is room for it. It doubles, holding the old half meanwhile, and keeps up to 1 MiB beyond the
    // window before it hands output on.
    let Some(window) = zstd_window(input) else {
        return Ok(None);
    };
    let kept = window.saturating_add(2 << 20).min(out.len() as u64) as usize;
    drop(room(kept.next_power_of_two() / 2 * 3 + (1 << 20))?);
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_WINDOW);
    Ok(decoder.decode_all(input, out).ok())
}

/// Window size in a frame's header (RFC 8878, 3.1.1.1), if it is one that is accepted.
fn zstd_window(input: &[u8]) -> Option<u64> {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    if input.get(4)? & SINGLE_SEGMENT != 0 {
        // The window is the content: `out`, if the frame is whole.
        return Some(ZSTD_WINDOW);
    }
    let descriptor = *input.get(5)?;
    let base = 1u64 << (10 + (descriptor >> 3));
    let window = base + base / 8 * u64::from(descriptor & 7);
    (window <= ZSTD_WINDOW).then_some(window)
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
