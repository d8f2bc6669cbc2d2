//! A domain's grant table, version 1, by hand: nothing in it keeps its user from misbehaving
//! (public/grant_table.h).

use core::sync::atomic::AtomicU16;
use core::sync::atomic::Ordering::SeqCst;

use crate::pages::Page;
use crate::xen::{Errno, Xen};

/// `GTF_permit_access`, `GTF_readonly`.
pub const PERMIT: u16 = 1;
/// See [`PERMIT`].
pub const READ_ONLY: u16 = 4;
/// `GTF_reading` and `GTF_writing`: the other side has it mapped.
pub const IN_USE: u16 = 8 | 16;

/// The table's first page: grants 0 to 511.
#[derive(Clone, Copy)]
pub struct Grants(Page);

impl Grants {
    /// Has it mapped in place of a page of the program's own.
    pub fn at(xen: Xen, page: Page) -> Result<Grants, Errno> {
        xen.map_grant_table(page)?;
        Ok(Grants(page))
    }

    /// Grants a page to a domain, or takes a grant back; `flags` as they are in the table.
    pub fn set(self, reference: u32, frame: u32, flags: u16, domain: u16) {
        let at = reference as usize * 8;
        self.0.half(at).store(0, SeqCst);
        self.0.half(at + 2).store(domain, SeqCst);
        self.0.word(at + 4).store(frame, SeqCst);
        self.0.half(at).store(flags, SeqCst);
    }

    /// The flags of a grant now.
    pub fn flags(self, reference: u32) -> &'static AtomicU16 {
        self.0.half(reference as usize * 8)
    }
}
