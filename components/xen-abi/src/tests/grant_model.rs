//! The grant table against a plain model: entries written at random, used by other domains and by the
//! domain's own copies, while it goes from one version to the other and back.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::grant::{grant_op, put_copy, status_at};
use super::grant_v2::{entry_v1, entry_v2, set_version, status_word};
use super::harness::*;
use crate::grant::{op, status};
use crate::*;
use proptest::prelude::*;

/// A toolstack's, one that is no toolstack's, and one of version 1 only.
const REFERENCES: [u32; 5] = [4, 7, 8, 9, 300];
const PERMIT: u16 = 1;
const TRANSITIVE: u16 = 3;
const READONLY: u16 = 4;
const USE: u16 = 8 | 16;
const SUB_PAGE: u16 = 1 << 8;

/// What the guest writes to an entry. Version 1 has no part and half the frame.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    flags: u16,
    domid: u16,
    part: (u16, u16),
    frame: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Version(u32),
    Write(usize, Written),
    Map(u16, usize, bool),
    Unmap(usize, bool),
    /// A copy of so many bytes from this offset of a grant, or to it.
    Copy(usize, bool, u16, u16),
}

fn written() -> impl Strategy<Value = Written> {
    let kind = prop_oneof![6 => Just(PERMIT), 1 => Just(TRANSITIVE), 1 => 0u16..4];
    let flags = (kind, any::<bool>(), any::<bool>());
    let part = prop_oneof![
        Just((0u16, 4096u16)),
        (0u16..64, 0u16..64),
        any::<(u16, u16)>()
    ];
    let frame = prop_oneof![8 => 0u64..PAGES, 1 => PAGES..PAGES + 4, 1 => any::<u64>()];
    let domid = prop::sample::select(std::vec![0, 3, OWN, OWN]);
    (flags, domid, part, frame).prop_map(|((kind, readonly, sub_page), domid, part, frame)| {
        let bits = [(readonly, READONLY), (sub_page, SUB_PAGE)];
        let flags = bits.iter().filter(|(set, _)| *set);
        Written {
            flags: flags.fold(kind, |flags, (_, bit)| flags | bit),
            domid,
            part,
            frame,
        }
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = || 0..REFERENCES.len();
    let domid = prop::sample::select(std::vec![0u16, 3]);
    let step = prop_oneof![
        2 => prop_oneof![Just(1u32), Just(2), 0u32..4].prop_map(Step::Version),
        4 => (which(), written()).prop_map(|(which, written)| Step::Write(which, written)),
        4 => (domid, which(), any::<bool>()).prop_map(|(d, which, write)| Step::Map(d, which, write)),
        3 => (which(), any::<bool>()).prop_map(|(which, write)| Step::Unmap(which, write)),
        3 => (which(), any::<bool>(), 0u16..80, 0u16..80)
            .prop_map(|(which, to, offset, length)| Step::Copy(which, to, offset, length)),
    ];
    prop::collection::vec(step, 1..60)
}

/// Who uses a grant, and what it was when that began.
#[derive(Clone, Copy, Debug)]
struct Used {
    domid: u16,
    frame: u64,
    readers: u32,
    writers: u32,
}

#[derive(Debug)]
struct Model {
    version: u32,
    written: BTreeMap<u32, Written>,
    used: BTreeMap<u32, Used>,
    /// Toolstack's entries in use whose flags went with them: as in Xen, one that grants nothing by then is
    /// emptied when the domain goes back to version 1.
    emptied: BTreeSet<u32>,
}

impl Model {
    fn entry(&self, reference: u32) -> Option<Written> {
        let written = self.written.get(&reference).copied().unwrap_or_default();
        (reference < 512 / self.version).then_some(written)
    }

    /// The flags that the guest has to see.
    fn in_use(&self, reference: u32) -> u16 {
        self.used
            .get(&reference)
            .map_or(0, |used| 8 | if used.writers > 0 { 16 } else { 0 })
    }

    fn set_version(&mut self, version: u32) -> i64 {
        if !(1..=2).contains(&version) {
            return error(Errno::Inval);
        }
        if version == self.version {
            return 0;
        }
        if self.used.keys().any(|reference| *reference >= 8) {
            return error(Errno::Busy);
        }
        let mut kept = BTreeMap::new();
        for (reference, entry) in self.written.iter().filter(|(reference, _)| **reference < 8) {
            match entry.flags & 3 {
                _ if version == 2 => kept.insert(*reference, *entry),
                PERMIT if entry.frame >> 32 == 0 => kept.insert(*reference, *entry),
                PERMIT | TRANSITIVE => return error(Errno::Range),
                _ => None,
            };
        }
        if version == 1 {
            let in_use = self.used.keys().copied();
            self.emptied
                .extend(in_use.filter(|reference| !kept.contains_key(reference)));
        }
        // Parts cannot be carried over either way.
        kept.values_mut().for_each(|entry| entry.part = (0, 0));
        self.written = kept;
        self.version = version;
        0
    }

    /// Whether a use that begins now is refused for what the entry says.
    fn refuses(&self, entry: Written, domid: u16, write: bool, mask: u16) -> bool {
        entry.flags & mask != PERMIT
            || entry.domid != domid
            || (write && entry.flags & READONLY != 0)
    }

    fn map(&mut self, domid: u16, reference: u32, write: bool) -> Result<u64, i16> {
        let entry = self.entry(reference).ok_or(status::BAD_GNTREF)?;
        if let Some(used) = self.used.get_mut(&reference) {
            let late = write && used.writers == 0 && entry.flags & READONLY != 0;
            if used.domid != domid || late {
                return Err(status::GENERAL_ERROR);
            }
            *if write {
                &mut used.writers
            } else {
                &mut used.readers
            } += 1;
            return Ok(used.frame);
        }
        if self.refuses(entry, domid, write, 3 | SUB_PAGE) {
            return Err(status::GENERAL_ERROR);
        }
        if entry.frame >= PAGES {
            return Err(status::BAD_PAGE);
        }
        let used = Used {
            domid,
            frame: entry.frame,
            readers: u32::from(!write),
            writers: u32::from(write),
        };
        self.used.insert(reference, used);
        Ok(entry.frame)
    }

    fn unmap(&mut self, reference: u32, write: bool) -> bool {
        let Some(used) = self.used.get_mut(&reference) else {
            return false;
        };
        let users = if write {
            &mut used.writers
        } else {
            &mut used.readers
        };
        if *users == 0 {
            return false;
        }
        *users -= 1;
        if used.readers + used.writers == 0 {
            self.used.remove(&reference);
            self.emptied.remove(&reference);
        }
        true
    }

    fn copy(&self, reference: u32, write: bool, offset: u16, length: u16) -> i16 {
        let Some(entry) = self.entry(reference) else {
            return status::BAD_GNTREF;
        };
        // All users are other domains.
        if self.used.contains_key(&reference) || self.refuses(entry, OWN, write, 3) {
            return status::GENERAL_ERROR;
        }
        if entry.frame >= PAGES {
            return status::BAD_PAGE;
        }
        let (first, bytes) = match (self.version, entry.flags & SUB_PAGE) {
            (1, _) | (_, 0) => (0, PAGE_SIZE),
            _ => (u64::from(entry.part.0 & 0x7fff), u64::from(entry.part.1)),
        };
        let (offset, length) = (u64::from(offset), u64::from(length));
        if offset < first || offset + length > first + bytes {
            return status::GENERAL_ERROR;
        }
        status::OKAY
    }
}

fn write(guest: &mut Guest, version: u32, reference: u32, mut entry: Written, in_use: u16) {
    let word = |low: u16, high: u16| u64::from(low) | u64::from(high) << 16;
    if version == 1 {
        // Flags of use are not the guest's.
        entry.flags |= in_use;
        let first = word(entry.flags, entry.domid);
        guest.put_u64s(entry_v1(reference), &[first | entry.frame << 32]);
    } else {
        let first = word(entry.flags, entry.domid) | word(entry.part.0, entry.part.1) << 32;
        guest.put_u64s(entry_v2(reference), &[first, entry.frame]);
    }
}

fn marked(guest: &Guest, version: u32, reference: u32) -> u16 {
    match version {
        1 => guest.u16(entry_v1(reference)) & USE,
        _ => guest.u16(status_word(reference)),
    }
}

fn run(steps: &[Step]) {
    let mut guest = Guest::new(1);
    let mut model = Model {
        version: 1,
        written: BTreeMap::new(),
        used: BTreeMap::new(),
        emptied: BTreeSet::new(),
    };
    for step in steps {
        match *step {
            Step::Version(version) => {
                assert_eq!(set_version(&mut guest, version), model.set_version(version));
            }
            Step::Write(which, mut entry) => {
                let reference = REFERENCES[which];
                if model.entry(reference).is_some() {
                    if model.version == 1 {
                        entry.frame &= 0xffff_ffff;
                    }
                    let in_use = model.in_use(reference);
                    write(&mut guest, model.version, reference, entry, in_use);
                    model.written.insert(reference, entry);
                }
            }
            Step::Map(domid, which, to_write) => {
                let reference = REFERENCES[which];
                let is_ram = |gfn| gfn < PAGES;
                let domain = &mut guest.domain;
                let answer = domain.pin_grant(domid, reference, to_write, &guest.memory, is_ram);
                assert_eq!(answer, model.map(domid, reference, to_write));
            }
            Step::Unmap(which, to_write) => {
                let reference = REFERENCES[which];
                if model.unmap(reference, to_write) {
                    guest.domain.unpin_grant(reference, to_write, &guest.memory);
                }
            }
            Step::Copy(which, to, offset, length) => {
                let reference = REFERENCES[which];
                // To or from a page that the guest names by its frame, which is nobody's else.
                let granted = (reference.into(), SELF, offset);
                let plain = (PAGES - 1, SELF, 0);
                let (source, target, flags) = if to {
                    (plain, granted, 2)
                } else {
                    (granted, plain, 1)
                };
                put_copy(&mut guest, source, target, length, flags);
                assert_eq!(grant_op(&mut guest, op::COPY, 1), 0);
                assert_eq!(
                    status_at(&guest, ARG + 36),
                    model.copy(reference, to, offset, length)
                );
            }
        }
        for reference in REFERENCES {
            if model.entry(reference).is_some() && !model.emptied.contains(&reference) {
                let flags = marked(&guest, model.version, reference);
                assert_eq!(flags, model.in_use(reference), "{reference} after {step:?}");
            }
        }
        assert_eq!(guest.domain.pinned_grants(), model.used.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn grants_are_what_the_entry_said_when_their_use_began(steps in steps()) {
        run(&steps);
    }
}
