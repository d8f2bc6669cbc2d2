//! The arena and its table of frames: what resolves, what lies outside, how generations end.

use super::Memory;
use crate::arena::Arena;
use crate::endpoint::{Endpoint, Reply};
use crate::id::{FrameKind, PhysAddr, Ref};
use std::vec;

const GENERATION_MAX: u32 = 0x00ff_ffff;

#[test]
fn an_object_resolves_from_its_making_to_its_end() {
    let mut memory = Memory::new(0, 8);
    let arena = &mut memory.arena;
    assert_eq!(arena.frames(), 8);
    assert!(!arena.alive(Ref::<Endpoint>::NULL) && arena.get(Ref::<Endpoint>::NULL).is_none());
    for word in 0..512 {
        arena.write(PhysAddr(0x3000).add(word * 8), u64::MAX);
    }
    let first = arena.create::<Endpoint>(PhysAddr(0x3000));
    assert_eq!(first.addr(), PhysAddr(0x3000));
    assert!((0..512).all(|word| arena.read::<u64>(PhysAddr(0x3000).add(word * 8)) == 0));
    assert!(arena.alive(first) && arena.get(first).is_some() && arena.get_mut(first).is_some());
    // Another kind or another frame is another object.
    assert!(arena.get(Ref::<Reply>::new(4, first.tag())).is_none());
    assert!(
        arena
            .get(Ref::<Endpoint>::new(3, first.tag() ^ 1))
            .is_none()
    );
    // What is at the end no more does not end what is there.
    arena.destroy(first);
    assert!(!arena.alive(first) && arena.get_mut(first).is_none());
    let second = arena.create::<Endpoint>(PhysAddr(0x3000));
    arena.destroy(first);
    assert!(arena.alive(second) && !arena.alive(first));
}

#[test]
fn frames_beyond_the_last_have_no_tag() {
    let mut memory = vec![0u64; 512 * 4];
    // As many words as are the arena's, and some that are not.
    let mut table = vec![0x77u32; 4];
    table[..2].fill(0);
    let base = memory.as_mut_ptr().cast::<u8>();
    // SAFETY: the vectors outlive the arena; only tags are asked for.
    let mut arena = unsafe { Arena::new(base, table.as_mut_ptr(), 2) };
    for frame in [1, 2, 3, 1 << 40] {
        arena.retag(PhysAddr(frame << 12), FrameKind::PageTable);
        let wanted = if frame < 2 {
            FrameKind::PageTable as u8
        } else {
            0
        };
        assert_eq!(arena.tag_of(frame) as u8, wanted, "{frame}");
    }
    assert_eq!(table[2..], [0x77, 0x77]);
}

#[test]
fn generations_are_counted_and_do_not_begin_again() {
    let mut table = vec![0u32; 2];
    // SAFETY: only tags are asked for, and the table outlives the arena.
    let mut arena = unsafe { Arena::new(core::ptr::null_mut(), table.as_mut_ptr(), 2) };
    let frame = PhysAddr(0x1000);
    let generation = |arena: &Arena| arena.tag_of(1) >> 8;
    for n in 1..4 {
        arena.retag(frame, FrameKind::Endpoint);
        assert_eq!(
            (generation(&arena), arena.tag_of(1) as u8),
            (n, FrameKind::Endpoint as u8)
        );
    }
    for (left, spent) in [(4, false), (3, false), (2, true), (1, true), (0, true)] {
        table[1] = (GENERATION_MAX - left) << 8;
        // SAFETY: as above.
        let mut arena = unsafe { Arena::new(core::ptr::null_mut(), table.as_mut_ptr(), 2) };
        assert_eq!(arena.is_spent(1), spent, "{left}");
        arena.retag(frame, FrameKind::PageTable);
        assert_eq!(
            generation(&arena),
            (GENERATION_MAX - left + 1).min(GENERATION_MAX)
        );
    }
}

#[test]
fn messages_are_copied_to_the_byte() {
    let mut memory = Memory::new(0, 4);
    let arena = &mut memory.arena;
    let (from, to) = (PhysAddr(0x1000), PhysAddr(0x2000));
    arena.bytes_mut(from, 16).copy_from_slice(&[7; 16]);
    arena.copy(from, to, 0);
    assert_eq!(arena.bytes_mut(to, 16), [0; 16]);
    arena.copy(from, to, 5);
    assert_eq!(arena.bytes_mut(to, 8), [7, 7, 7, 7, 7, 0, 0, 0]);
    arena.copy(from, from, 16);
    assert_eq!(arena.bytes_mut(from, 16), [7; 16]);
}

#[test]
fn what_was_looked_up_is_recalled_for_the_same_word_until_something_changes() {
    let mut memory = Memory::new(0, 8);
    let arena = &mut memory.arena;
    let endpoint = arena.create::<Endpoint>(PhysAddr(0x1000));
    let reply = arena.create::<Reply>(PhysAddr(0x2000));
    let memo = arena.freeze(|view| {
        let (one, two) = (view.check(endpoint), view.check(reply));
        view.memo(5, one.expect("it"), two.expect("it"), (endpoint, reply))
    });
    let recalled =
        |arena: &mut Arena, word: u64| arena.freeze(|view| view.recall(&memo, word).is_some());
    assert!(recalled(arena, 5) && !recalled(arena, 4) && !recalled(arena, 0));
    arena.revise();
    assert!(!recalled(arena, 5));
    arena.destroy(endpoint);
    let gone = arena.freeze(|view| view.check(endpoint).is_none());
    assert!(gone);
}
