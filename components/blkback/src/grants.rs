//! Pages that a guest granted, mapped for as long as a request needs them, or for longer where the guest
//! says that it grants the same pages again and again (`feature-persistent`). What is kept is bounded:
//! the page that was used longest ago goes first.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::ring::Granted;

/// The guest, or its VMM, is gone: nothing works any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// A guest's VMM, as far as pages and events go.
pub trait Guest {
    /// A mapped page.
    type Page: Granted;
    /// Maps grants, for writing where that is said; each may fail with a `GNTST_*`.
    fn map(&mut self, grants: &[(u32, bool)]) -> Result<Vec<Result<Self::Page, i16>>, Gone>;
    /// Ends mappings.
    fn unmap(&mut self, pages: Vec<Self::Page>) -> Result<(), Gone>;
    /// How many grants can be mapped now.
    fn room(&self) -> usize;
}

/// Why a request has no pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The grant table says no: a `GNTST_*`.
    Grant(i16),
    /// Too much is mapped: again, when something was released.
    Room,
    /// There is no guest any more.
    Gone,
}

impl From<Gone> for Denied {
    fn from(Gone: Gone) -> Denied {
        Denied::Gone
    }
}

struct Kept<P> {
    page: Rc<P>,
    write: bool,
    used: u64,
}

/// Mapped pages of one disk.
pub struct Cache<P> {
    kept: BTreeMap<u32, Kept<P>>,
    clock: u64,
    most: usize,
}

impl<P: Granted> Cache<P> {
    /// Keeps at most so many pages; 0 if the guest's grants do not persist.
    pub fn new(most: usize) -> Cache<P> {
        Cache {
            kept: BTreeMap::new(),
            clock: 0,
            most,
        }
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Pages for grants, in order: kept ones, or mapped now. All or none.
    pub fn take<G: Guest<Page = P>>(
        &mut self,
        guest: &mut G,
        grants: &[(u32, bool)],
    ) -> Result<Vec<Rc<P>>, Denied> {
        self.clock += 1;
        let clock = self.clock;
        let mut pages: Vec<Option<Rc<P>>> = Vec::with_capacity(grants.len());
        let mut missing = Vec::new();
        for &(reference, write) in grants {
            let kept = self.kept.get_mut(&reference);
            pages.push(kept.filter(|kept| kept.write || !write).map(|kept| {
                kept.used = clock;
                Rc::clone(&kept.page)
            }));
            if let Some(None) = pages.last() {
                // A page that is kept is of use for both directions.
                missing.push((reference, write || self.most > 0));
            }
        }
        let free = guest.room();
        if missing.len() > free {
            self.evict(guest, missing.len() - free)?;
            if missing.len() > guest.room() {
                self.give_back(guest, pages.into_iter().flatten().collect())?;
                return Err(Denied::Room);
            }
        }
        let mut mapped = guest.map(&missing)?.into_iter();
        let mut refused = None;
        for (place, &(reference, write)) in pages.iter_mut().zip(grants) {
            if place.is_some() {
                continue;
            }
            let mut page = mapped.next().unwrap_or(Err(GENERAL_ERROR));
            let mut writable = write || self.most > 0;
            if page.is_err() && !write && self.most > 0 {
                // Granted for reading only, which is all that this request needs.
                let again = guest.map(&[(reference, false)])?;
                page = again.into_iter().next().unwrap_or(Err(GENERAL_ERROR));
                writable = false;
            }
            match page {
                Ok(page) => {
                    let page = Rc::new(page);
                    self.keep(guest, reference, &page, writable)?;
                    *place = Some(page);
                }
                Err(status) => refused = Some(status),
            }
        }
        let pages: Vec<Rc<P>> = pages.into_iter().flatten().collect();
        match refused {
            None => Ok(pages),
            Some(status) => {
                self.give_back(guest, pages)?;
                Err(Denied::Grant(status))
            }
        }
    }

    fn keep<G: Guest<Page = P>>(
        &mut self,
        guest: &mut G,
        reference: u32,
        page: &Rc<P>,
        write: bool,
    ) -> Result<(), Gone> {
        if self.most == 0 {
            return Ok(());
        }
        if self.kept.len() >= self.most {
            self.evict(guest, 1)?;
        }
        if self.kept.len() < self.most {
            let kept = Kept {
                page: Rc::clone(page),
                write,
                used: self.clock,
            };
            if let Some(old) = self.kept.insert(reference, kept) {
                self.give_back(guest, Vec::from([old.page]))?;
            }
        }
        Ok(())
    }

    /// Ends so many mappings that nobody uses, if there are so many.
    fn evict<G: Guest<Page = P>>(&mut self, guest: &mut G, count: usize) -> Result<(), Gone> {
        let mut idle: Vec<(u64, u32)> = self
            .kept
            .iter()
            .filter(|(_, kept)| Rc::strong_count(&kept.page) == 1)
            .map(|(reference, kept)| (kept.used, *reference))
            .collect();
        idle.sort_unstable();
        let oldest = idle.iter().take(count);
        let gone = oldest.filter_map(|(_, reference)| self.kept.remove(reference));
        let pages = gone.map(|kept| kept.page).collect();
        self.give_back(guest, pages)
    }

    /// A request is done with its pages: those that nobody keeps are unmapped.
    pub fn give_back<G: Guest<Page = P>>(
        &self,
        guest: &mut G,
        pages: Vec<Rc<P>>,
    ) -> Result<(), Gone> {
        let mut unused = Vec::new();
        for page in pages {
            unused.extend(Rc::try_unwrap(page).ok());
        }
        match unused.is_empty() {
            true => Ok(()),
            false => guest.unmap(unused),
        }
    }

    /// Ends all that is kept.
    pub fn clear<G: Guest<Page = P>>(&mut self, guest: &mut G) -> Result<(), Gone> {
        let kept = core::mem::take(&mut self.kept);
        self.give_back(guest, kept.into_values().map(|kept| kept.page).collect())
    }
}

/// `GNTST_general_error`.
const GENERAL_ERROR: i16 = -1;
