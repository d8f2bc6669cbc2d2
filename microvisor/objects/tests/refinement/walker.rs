//! What the hardware's page walker can see while tables change: after every single store, the mapping
//! from before or the one from after, never a third. Host, NPT and EPT formats.
//!
//! The walker here shares nothing with `translate` but the manuals: Intel SDM vol. 3, 4.5 and 29.3.2.

use super::cases;
use crate::arena::Arena;
use crate::id::{PhysAddr, Ref};
use crate::translate::{AddressSpace, Format, Leaf};
use microvisor_abi::SpaceKind;
use microvisor_abi::cap::Map;
use proptest::prelude::*;
use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

type Observer = Box<dyn Fn(&Arena)>;

std::thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Called by the arena after every store.
pub fn after_store(arena: &Arena) {
    OBSERVER.with_borrow(|observer| {
        if let Some(observer) = observer {
            observer(arena);
        }
    });
}

/// Virtual address to: physical base, log2 of the size, raw bits of the leaf.
type Mapping = BTreeMap<u64, (u64, u32, u64)>;

/// Everything that a walk from `root` can reach.
fn walk(arena: &Arena, format: Format, root: u64) -> Mapping {
    let mut found = Mapping::new();
    let mut tables = vec![(root, 4u32, 0u64)];
    while let Some((table, level, base)) = tables.pop() {
        for index in 0..512u64 {
            let entry: u64 = arena.read(PhysAddr(table + index * 8));
            let present = match format {
                Format::Ept => entry & 7 != 0,
                Format::VtD => entry & 3 != 0,
                Format::Host | Format::Npt | Format::AmdVi => entry & 1 != 0,
            };
            if !present {
                continue;
            }
            let shift = 12 + 9 * (level - 1);
            let address = base + (index << shift);
            let to = entry & 0x000f_ffff_ffff_f000;
            // AMD's I/O tables name the level of the next table, 0 for none.
            let leaf = match format {
                Format::AmdVi => entry >> 9 & 7 == 0,
                _ => level == 1 || entry & 0x80 != 0,
            };
            if format == Format::AmdVi && !leaf {
                assert_eq!(entry >> 9 & 7, u64::from(level - 1));
                assert_eq!(entry >> 61 & 3, 3, "a table closed to reads or writes");
            }
            if leaf {
                found.insert(address, (to, shift, entry));
            } else {
                tables.push((to, level - 1, address));
            }
        }
    }
    found
}

/// One change.
#[derive(Clone, Copy, Debug)]
struct Change {
    /// Which of a few addresses, and log2 of the size.
    at: usize,
    order: u32,
    flags: u64,
    map: bool,
}

/// Addresses that share tables at every level, and some that do not.
const ADDRESSES: [u64; 8] = [
    0,
    0x1000,
    0x20_0000,
    0x20_1000,
    0x4000_0000,
    0x4020_0000,
    0x80_0000_0000,
    0x7f80_0000_0000,
];

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let order = prop_oneof![3 => Just(12u32), 2 => Just(21), 1 => Just(30)];
    let flags = prop_oneof![
        Just(Map::READ),
        Just(Map::READ | Map::WRITE),
        Just(Map::READ | Map::EXECUTE)
    ];
    let one = (0..ADDRESSES.len(), order, flags, any::<bool>());
    let one = one.prop_map(|(at, order, flags, map)| Change {
        at,
        order,
        flags,
        map,
    });
    prop::collection::vec(one, 1..40)
}

/// Tables in a few frames.
struct World {
    arena: Arena,
    space: Ref<AddressSpace>,
    root: u64,
    _memory: Vec<u64>,
    _table: Vec<u32>,
}

const FRAMES: u64 = 32;

impl World {
    fn new(kind: SpaceKind) -> World {
        let mut memory = vec![0u64; (FRAMES as usize + 1) * 512];
        let mut table = vec![0u32; FRAMES as usize];
        let base = memory.as_mut_ptr().cast::<u8>();
        let base = base.wrapping_add(base.align_offset(4096));
        // SAFETY: the vectors live as long as the arena and are reached through it only.
        let mut arena = unsafe { Arena::new(base, table.as_mut_ptr(), FRAMES) };
        let space = arena.create_space(PhysAddr(0x1000), kind, PhysAddr(0x8000));
        // What a table held before it was donated must never show.
        for word in 0..(FRAMES - 10) * 512 {
            arena.write(PhysAddr(10 << 12).add(word * 8), u64::MAX);
        }
        arena.fill_space(space, PhysAddr(10 << 12), FRAMES - 10);
        World {
            arena,
            space,
            root: 0x2000,
            _memory: memory,
            _table: table,
        }
    }

    /// Makes a change, watched. False if a third mapping was seen.
    fn change(&mut self, format: Format, change: Change) -> bool {
        let before = walk(&self.arena, format, self.root);
        let address = ADDRESSES[change.at] & !((1 << change.order) - 1);
        let base = PhysAddr(address & 0x3f_ffff_ffff);
        let seen: Rc<RefCell<Vec<Mapping>>> = Rc::default();
        let (noted, root) = (seen.clone(), self.root);
        let last = Cell::new(None);
        let observer = move |arena: &Arena| {
            let now = walk(arena, format, root);
            if last.replace(Some(now.clone())) != Some(now.clone()) {
                noted.borrow_mut().push(now);
            }
        };
        OBSERVER.set(Some(Box::new(observer)));
        if change.map {
            let leaf = Leaf {
                base,
                order: change.order,
                flags: change.flags,
                device: false,
            };
            if let Ok(Some(table)) = self.arena.map_leaf(self.space, format, address, leaf) {
                self.arena.recycle_table(self.space, table);
            }
        } else {
            self.arena
                .unmap_leaf(self.space, format, address, base, change.order);
        }
        OBSERVER.set(None);
        let after = walk(&self.arena, format, self.root);
        // In this order, and once: what was there, then what is there.
        let mut now = &before;
        let seen = seen.take();
        let watched = before == after || seen.last() == Some(&after);
        watched
            && seen.iter().all(|seen| {
                if *seen == after {
                    now = &after;
                }
                seen == now
            })
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(64),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn a_walker_sees_the_old_or_the_new_mapping(changes in changes(), which in 0usize..5) {
        let (kind, format) = [
            (SpaceKind::Host, Format::Host),
            (SpaceKind::Guest, Format::Npt),
            (SpaceKind::Guest, Format::Ept),
            (SpaceKind::Dma, Format::VtD),
            (SpaceKind::Dma, Format::AmdVi),
        ][which];
        let mut world = World::new(kind);
        for change in changes {
            prop_assert!(world.change(format, change), "{:?}", change);
        }
    }
}
