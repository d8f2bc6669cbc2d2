//! Random calls on random memory: nothing panics, and the state keeps its invariants.

use std::vec::Vec;

use super::harness::*;
use crate::start;
use crate::*;
use proptest::prelude::*;

/// Numbers with an entry, and some without.
fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => prop::sample::select(vec![12u64, 13, 15, 17, 18, 20, 21, 24, 26, 29, 32, 33, 34]),
        1 => 0u64..64,
        1 => any::<u64>(),
    ]
}

/// Arguments: commands, pointers into RAM, at its border, anywhere.
fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..32,
        4 => (0u64..PAGES * PAGE_SIZE / 8).prop_map(|word| word * 8),
        1 => PAGES * PAGE_SIZE - 64..PAGES * PAGE_SIZE,
        1 => any::<u64>(),
    ]
}

/// Words of which structures are made: small numbers, domain ids, addresses.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0u64..64,
        1 => Just(u64::from(SELF)),
        1 => Just(u64::from(SELF) | 1 << 32),
        1 => Just(u64::from(OWN) << 16 | u64::from(OWN)),
        2 => 0u64..PAGES * PAGE_SIZE,
        1 => any::<u64>(),
    ]
}

fn modes() -> impl Strategy<Value = Mode> {
    prop::sample::select(vec![Mode::Bits64, Mode::Bits32, Mode::Real])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_hypercalls_never_panic(
        words in prop::collection::vec(word(), 128),
        calls in prop::collection::vec(
            (numbers(), prop::array::uniform6(argument()), modes(), 0u32..4, 0u64..1 << 40),
            1..40,
        ),
    ) {
        let mut guest = Guest::new(4);
        // The pattern repeats over all RAM, so that most pointers hit it.
        let pattern: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        for copy in 0..PAGES * PAGE_SIZE / 1024 {
            guest.put(copy * 1024, &pattern);
        }
        let store = guest.domain.alloc_service_port(ServiceId(0), &guest.memory).unwrap();
        for (number, arguments, mode, vcpu, tsc) in calls {
            guest.env.tsc = guest.env.tsc.max(tsc);
            (guest.mode, guest.vcpu) = (mode, vcpu);
            let mut arguments = arguments.to_vec();
            // A caller that restarts for ever would hang here.
            for _ in 0..64 {
                let (outcome, left) = guest.outcome_and_left(number, &arguments);
                if outcome.next != Next::Restart {
                    break;
                }
                arguments = left.to_vec();
            }
            let _ = guest.domain.notify_guest(store, &guest.memory, &mut guest.env);
            for vcpu in 0..5 {
                guest.domain.expire(vcpu, &guest.memory, &mut guest.env);
                let _ = guest.domain.pending_upcall(vcpu, &guest.memory);
                let _ = guest.domain.next_deadline(vcpu);
            }
            let polling = (0..4).filter(|&vcpu| {
                guest.domain.vcpus[vcpu].blocked.is_some_and(|block| block.is_poll())
            });
            prop_assert_eq!(guest.domain.pollers as usize, polling.count());
            let specials = guest.env.map.iter().filter_map(|(&gfn, page)| match page {
                Page::Special(frame) => Some((gfn, *frame)),
                Page::Ram => None,
            });
            for (gfn, frame) in specials {
                prop_assert_eq!(guest.domain.special_at(gfn), Some(frame));
            }
            let ram = guest.env.map.values().filter(|page| **page == Page::Ram).count();
            prop_assert_eq!(guest.domain.config.pages, ram as u64);
        }
    }

    #[test]
    fn random_vcpu_contexts_never_panic_and_pass_only_if_sound(
        mut context in prop::collection::vec(any::<u8>(), start::CONTEXT_SIZE),
        mode in 0u8..3,
    ) {
        context[..8].copy_from_slice(&[mode, 0, 0, 0, 0, 0, 0, 0]);
        let context: [u8; start::CONTEXT_SIZE] = context.try_into().unwrap();
        match start::parse(&context) {
            Ok(VcpuStart::Mode64(state)) => {
                prop_assert!(state.cr0 >> 31 & 1 == 1 && state.cr4 >> 5 & 1 == 1);
            }
            Ok(VcpuStart::Mode32(state)) => {
                prop_assert!(state.segments.iter().all(|segment| segment.attributes < 0x1000));
            }
            Err(errno) => prop_assert_eq!(errno, Errno::Inval),
        }
    }

    #[test]
    fn random_bytes_in_shared_info_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 4096),
        ports in prop::collection::vec(0u32..70, 1..40),
    ) {
        let mut guest = Guest::new(2);
        guest.put(SpecialFrame::SharedInfo.address(), &bytes);
        for port in ports {
            guest.bind_ipi(port % 2);
            guest.event(crate::event::op::SEND, &[port]);
            guest.event(crate::event::op::UNMASK, &[port]);
        }
    }
}
