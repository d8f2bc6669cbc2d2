//! A domain's grant table by hand: nothing in it keeps its user from misbehaving
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
/// `GTF_sub_page`: part of a page, in version 2.
pub const SUB_PAGE: u16 = 1 << 8;
/// `GTF_transitive`, in version 2: a grant of a grant of another domain.
pub const TRANSITIVE: u16 = 3;

/// The table's first page: 512 grants in version 1, 256 in version 2.
#[derive(Clone, Copy)]
pub struct Grants {
    table: Page,
    /// The first page of status words, in version 2.
    status: Option<Page>,
}

impl Grants {
    /// Has it mapped in place of a page of the program's own. It has version 1 at first.
    pub fn at(xen: Xen, page: Page) -> Result<Grants, Errno> {
        xen.map_grant_table(page)?;
        Ok(Grants {
            table: page,
            status: None,
        })
    }

    /// Goes over to version 2, with the status words in place of a page of the program's own. There are no
    /// grants then.
    pub fn second(self, xen: Xen, status: Page) -> Result<Grants, Errno> {
        xen.set_grant_version(2)?;
        xen.map_grant_status(status)?;
        Ok(Grants {
            status: Some(status),
            ..self
        })
    }

    /// Goes back to version 1. There are no grants then, and nothing in place of the status words.
    pub fn first(self, xen: Xen) -> Result<Grants, Errno> {
        xen.set_grant_version(1)?;
        Ok(Grants {
            status: None,
            ..self
        })
    }

    /// Grants a page to a domain, or takes a grant back; `flags` as they are in the table.
    pub fn set(self, reference: u32, frame: u32, flags: u16, domain: u16) {
        self.set_part(reference, frame, flags, domain, (0, 0));
    }

    /// The same of so many bytes from an offset on, if the flags say so and it is version 2.
    pub fn set_part(
        self,
        reference: u32,
        frame: u32,
        flags: u16,
        domain: u16,
        (offset, length): (u16, u16),
    ) {
        let entry = self.entry(reference);
        self.table.half(entry).store(0, SeqCst);
        self.table.half(entry + 2).store(domain, SeqCst);
        if self.status.is_some() {
            self.table.half(entry + 4).store(offset, SeqCst);
            self.table.half(entry + 6).store(length, SeqCst);
            self.table.long(entry + 8).store(frame.into(), SeqCst);
        } else {
            self.table.word(entry + 4).store(frame, SeqCst);
        }
        self.table.half(entry).store(flags, SeqCst);
    }

    fn entry(self, reference: u32) -> usize {
        reference as usize * if self.status.is_some() { 16 } else { 8 }
    }

    /// The flags of a grant now.
    pub fn flags(self, reference: u32) -> &'static AtomicU16 {
        self.table.half(self.entry(reference))
    }

    /// Where it is told that a grant is in use: [`IN_USE`].
    pub fn used(self, reference: u32) -> u16 {
        let word = match self.status {
            Some(status) => status.half(reference as usize * 2),
            None => self.flags(reference),
        };
        word.load(SeqCst) & IN_USE
    }
}
