//! Room for data between guests and the disk: pages of the memory that this component shares with the
//! disk's driver. Stretches are taken first fit; each guest has a share, so that none keeps the others
//! from their disks.

use alloc::vec::Vec;

/// Bytes of a page.
const PAGE: u32 = 4096;

/// Pages and who has how many.
#[derive(Debug)]
pub struct Pool {
    first: u32,
    used: Vec<bool>,
    has: Vec<usize>,
}

impl Pool {
    /// The memory from `start` up to `end`, whole pages of it, for so many users.
    pub fn new(start: u32, end: u32, users: usize) -> Pool {
        let first = start.div_ceil(PAGE);
        let pages = (end / PAGE).saturating_sub(first) as usize;
        Pool {
            first,
            used: alloc::vec![false; pages],
            has: alloc::vec![0; users.max(1)],
        }
    }

    /// Pages that one user has at most: an equal share, twice over, as not all of them are busy at once,
    /// and never less than a large request.
    fn share(&self) -> usize {
        (2 * self.used.len() / self.has.len()).max(self.used.len() / 4)
    }

    /// A stretch of `bytes` for a user: where it begins.
    pub fn take(&mut self, user: usize, bytes: u32) -> Option<u32> {
        let pages = bytes.div_ceil(PAGE) as usize;
        let share = self.share();
        let has = self.has.get_mut(user)?;
        if pages == 0 || *has + pages > share {
            return None;
        }
        let mut run = 0;
        let end = self.used.iter().position(|used| {
            run = if *used { 0 } else { run + 1 };
            run == pages
        })?;
        let start = end + 1 - pages;
        self.used.get_mut(start..=end)?.fill(true);
        *has += pages;
        Some((self.first + start as u32) * PAGE)
    }

    /// A stretch that [`Pool::take`] gave is free again.
    pub fn give_back(&mut self, user: usize, place: u32, bytes: u32) {
        let pages = bytes.div_ceil(PAGE) as usize;
        let start = (place / PAGE).saturating_sub(self.first) as usize;
        if let Some(run) = self.used.get_mut(start..start + pages) {
            run.fill(false);
        }
        if let Some(has) = self.has.get_mut(user) {
            *has = has.saturating_sub(pages);
        }
    }
}
