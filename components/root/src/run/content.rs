//! What is written or shown in a component's memory before it runs: its program, files of the
//! archive, its start-up pages.

use root_plan::image::Image;
use sdk::abi::{FRAME, boot};
use sdk::memory::{LARGE, READ, READ_WRITE, Window};
use sdk::prelude::*;
use sdk::startup::{self, File, STARTUP_BYTES};

use super::instance::{During, StartError};
use super::maker::Maker;
use super::system::Tools;

/// Address space for each file.
const FILE_SPACING: u64 = 1 << 32;

/// Makes and fills the pages of a program.
pub fn load(
    window: &mut Window,
    maker: &mut Maker,
    space: Cap<cap::AddressSpace>,
    image: &Image,
    bytes: &[u8],
) -> Result<(), Status> {
    for segment in &image.segments {
        let content = bytes.get(segment.content.clone()).unwrap_or(&[]);
        let frames: Cap<cap::Frame> = maker.many(sdk::memory::ORDER_4K, segment.frames)?;
        let most = (Window::BYTES / FRAME) as u32;
        let mut first = 0;
        while first < segment.frames {
            let count = most.min(segment.frames - first);
            let frame = Cap::<cap::Frame>::new(frames.slot() + first);
            // Bytes of the content that lie before this window; the first one begins with a gap.
            let skip = if first == 0 { segment.skip } else { 0 };
            let done = (first as usize * FRAME as usize).saturating_sub(if first == 0 {
                0
            } else {
                segment.skip
            });
            let rest = content.get(done..).unwrap_or(&[]);
            window.with(frame, count, READ_WRITE, |page| {
                let place = page.get_mut(skip..).unwrap_or(&mut []);
                let length = place.len().min(rest.len());
                if let (Some(to), Some(from)) = (place.get_mut(..length), rest.get(..length)) {
                    to.copy_from_slice(from);
                }
            })?;
            first += count;
        }
        maker.map_pages(
            space,
            segment.address,
            frames,
            segment.frames,
            segment.flags,
        )?;
    }
    Ok(())
}

/// Files of the archive in a component's address space.
pub struct Files {
    /// Whose.
    pub space: Cap<cap::AddressSpace>,
    /// Where the next one goes.
    pub next: u64,
}

impl Files {
    /// Maps a file read-only, by the frames of the archive it lies in.
    pub fn map(
        &mut self,
        tools: &Tools,
        maker: &mut Maker,
        file: &str,
    ) -> Result<File, StartError> {
        let (offset, content) = tools
            .archive
            .file(file)
            .ok_or_else(|| StartError::NoFile(file.into()))?;
        let bytes = content.len() as u64;
        // The same offset in a large page as in the archive, so that large pages fit.
        let address = self.next + offset % LARGE;
        self.next += (bytes + 2 * LARGE).next_multiple_of(FILE_SPACING);
        let mut at = offset & !(FRAME - 1);
        let end = (offset + bytes).next_multiple_of(FRAME);
        while at < end {
            let part = (LARGE - at % LARGE).min(end - at);
            let frame = Cap::<cap::Frame>::new(tools.info.archive_slot + (at / LARGE) as u32);
            maker
                .map_part(frame, at % LARGE, part, self.space, address - offset + at)
                .during("map its files")?;
            at += part;
        }
        Ok(File {
            name: file
                .try_into()
                .map_err(|_| StartError::TooMany("letters in a file's name"))?,
            address,
            bytes,
        })
    }
}

/// Writes and maps the facts that it is told.
pub fn start_up_pages(
    window: &mut Window,
    maker: &mut Maker,
    space: Cap<cap::AddressSpace>,
    facts: &Startup,
) -> Result<(), StartError> {
    let count = (STARTUP_BYTES as u64 / FRAME) as u32;
    let frames = maker
        .many(sdk::memory::ORDER_4K, count)
        .during("make its start-up pages")?;
    window
        .with(frames, count, READ_WRITE, |pages| {
            startup::write(facts, pages)
        })
        .during("write its start-up pages")?
        .map_err(|_| StartError::TooMany("facts to tell"))?;
    maker
        .map_pages(space, boot::INFO_ADDRESS, frames, count, READ)
        .during("map its start-up pages")
}
