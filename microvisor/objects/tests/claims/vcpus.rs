//! vCPUs as objects: who finds one to run it, what the hardware is told, what ends a run.

use microvisor_abi::cap::Role;
use microvisor_abi::message::PAYLOAD_MAX;
use microvisor_abi::vcpu::{Op, group};
use microvisor_abi::{Call, Kind, Status};
use microvisor_objects::Flush;

use crate::RW;
use crate::world::{OfVcpu, World};

const VCPU: u64 = 500;
const SPACE: u64 = 501;

/// A vCPU and a space for its guest.
fn unbound() -> World {
    let mut w = World::new();
    let ram = w.ram();
    w.make(ram, Kind::Vcpu, 0, VCPU, 1);
    w.make(ram, Kind::AddressSpace, 1, SPACE, 1);
    w.seen.vcpus.borrow_mut().clear();
    w
}

/// The same, bound to each other.
fn bound() -> World {
    let mut w = unbound();
    w.ok(Call::VcpuControl, &[VCPU, Op::Configure as u64, SPACE]);
    w.seen.vcpus.borrow_mut().clear();
    w
}

fn told(w: &World) -> Vec<OfVcpu> {
    let told = w.seen.vcpus.take();
    told.into_iter().map(|(_, what)| what).collect()
}

fn found(w: &World, slot: u64) -> Result<(), Status> {
    w.kernel.arena.vcpu_find(w.root, slot, 0).map(|_| ())
}

#[test]
fn a_vcpu_gets_one_space_for_a_guest_while_that_exists() {
    let mut w = unbound();
    let ram = w.ram();
    let configure = |space: u64| [VCPU, Op::Configure as u64, space];
    assert_eq!(found(&w, VCPU), Err(Status::NotBound));
    assert_eq!(
        w.call(Call::VcpuControl, &configure(2)).0,
        Status::WrongKind
    );
    assert!(told(&w).is_empty());
    w.ok(Call::VcpuControl, &configure(SPACE));
    let first = told(&w);
    assert!(matches!(first[..], [OfVcpu::Attach { .. }]), "{first:?}");
    assert_eq!(found(&w, VCPU), Ok(()));
    w.make(ram, Kind::AddressSpace, 1, 510, 1);
    assert_eq!(w.call(Call::VcpuControl, &configure(510)).0, Status::Busy);
    w.ok(Call::Delete, &[0, SPACE]);
    assert_eq!(found(&w, VCPU), Err(Status::NotBound));
    w.ok(Call::VcpuControl, &configure(510));
    let second = told(&w);
    assert!(second.len() == 1 && second != first, "{second:?}");
}

#[test]
fn a_vcpu_is_found_by_a_capability_that_may_use_it() {
    let mut w = bound();
    w.ok(Call::Copy, &[VCPU, 0, 510, 0, 0, 0]);
    w.ok(Call::Copy, &[VCPU, 0, 511, 0xff, 0, 0]);
    for (slot, wanted) in [
        (VCPU, Ok(())),
        (511, Ok(())),
        (510, Err(Status::NoRight)),
        (SPACE, Err(Status::WrongKind)),
        (512, Err(Status::InvalidCap)),
        (0, Err(Status::InvalidCap)),
        (1 << 20, Err(Status::InvalidCap)),
        (VCPU | 1 << 32, Err(Status::InvalidCap)),
    ] {
        assert_eq!(found(&w, slot), wanted, "{slot:#x}");
    }
    w.ok(Call::Delete, &[0, VCPU]);
    for slot in [VCPU, 511] {
        assert_eq!(found(&w, slot), Err(Status::InvalidCap));
    }
}

#[test]
fn groups_that_do_not_exist_are_not_fetched() {
    let mut w = bound();
    let fetch = |w: &mut World, groups: u64| {
        w.call(Call::VcpuControl, &[VCPU, Op::Fetch as u64, groups])
            .0
    };
    for bad in [group::ALL + 1, 1 << 63, u64::MAX] {
        assert_eq!(fetch(&mut w, bad), Status::InvalidArgument);
    }
    assert!(told(&w).is_empty());
    for groups in [0, 1, group::ALL] {
        assert_eq!(fetch(&mut w, groups), Status::Ok);
        assert_eq!(told(&w), [OfVcpu::Fetch { groups }]);
    }
}

#[test]
fn extended_state_comes_and_goes_by_the_message_buffer() {
    let mut w = bound();
    w.seen.extended.set(832);
    let get = [VCPU, Op::GetExtended as u64, 64];
    assert_eq!(w.ok(Call::VcpuControl, &get)[0], 832);
    let room = PAYLOAD_MAX;
    assert_eq!(told(&w), [OfVcpu::GetExtended { offset: 64, room }]);
    let byte = |w: &World, at: u64| w.kernel.arena.read::<u8>(w.root.buffer().add(at));
    assert_eq!((byte(&w, 831), byte(&w, 832)), (0xe5, 0));
    let buffer = w.root.buffer();
    w.kernel.arena.write(buffer.add(99), 7u8);
    let set = |bytes: usize| [VCPU, Op::SetExtended as u64, 32, bytes as u64];
    assert_eq!(w.ok(Call::VcpuControl, &set(100))[0], 832);
    let mut from = vec![0xe5; 100];
    from[99] = 7;
    assert_eq!(told(&w), [OfVcpu::SetExtended { offset: 32, from }]);
    w.ok(Call::VcpuControl, &set(PAYLOAD_MAX));
    assert!(
        matches!(&told(&w)[..], [OfVcpu::SetExtended { from, .. }] if from.len() == PAYLOAD_MAX)
    );
    for bad in [PAYLOAD_MAX + 1, usize::MAX] {
        assert_eq!(
            w.call(Call::VcpuControl, &set(bad)).0,
            Status::InvalidArgument
        );
    }
    assert!(told(&w).is_empty());
}

#[test]
fn one_cpu_runs_a_vcpu_until_it_ends_the_run() {
    let mut w = bound();
    let (vcpu, run) = w.kernel.arena.vcpu_find(w.root, VCPU, 0).expect("a vCPU");
    assert_eq!(run.begin(0), Ok(()));
    assert_eq!(run.begin(1), Err(Status::Busy));
    run.end();
    assert_eq!(run.begin(1), Ok(()));
    w.kernel.arena.vcpu_end(vcpu);
    assert_eq!(run.begin(0), Ok(()));
    // It is somebody's now: no call works on it but a poke.
    let fetch = [VCPU, Op::Fetch as u64, 0];
    assert_eq!(w.call(Call::VcpuControl, &fetch).0, Status::Busy);
    w.ok(Call::VcpuControl, &[VCPU, Op::Poke as u64]);
    w.kernel.arena.vcpu_end(vcpu);
    w.ok(Call::VcpuControl, &fetch);
    w.ok(Call::VcpuControl, &fetch);
}

#[test]
fn a_poke_ends_the_current_or_the_next_run_once() {
    let mut w = bound();
    let poke = [VCPU, Op::Poke as u64];
    let wanted = |w: &World| {
        w.kernel
            .arena
            .vcpu_find(w.root, VCPU, 0)
            .expect("a vCPU")
            .1
            .wanted()
    };
    assert!(!wanted(&w));
    w.ok(Call::VcpuControl, &poke);
    assert!(w.seen.kicks.borrow().is_empty(), "nobody runs it");
    assert!(wanted(&w) && !wanted(&w));
    for (cpu, kicked) in [(0, vec![]), (1, vec![1])] {
        let (vcpu, run) = w.kernel.arena.vcpu_find(w.root, VCPU, 0).expect("a vCPU");
        // The thread was moved meanwhile.
        assert_eq!(run.begin(1 - cpu), Ok(()));
        run.go_on(cpu);
        w.seen.kicks.borrow_mut().clear();
        w.ok(Call::VcpuControl, &poke);
        assert_eq!(w.seen.kicks.take(), kicked);
        w.kernel.arena.vcpu_end(vcpu);
    }
}

#[test]
fn bits_of_its_notification_end_a_run_until_they_are_taken() {
    let mut w = bound();
    let ram = w.ram();
    w.make(ram, Kind::Notification, 0, 510, 1);
    w.ok(Call::Bind, &[510, VCPU, Role::Run as u64]);
    let wanted = |w: &World| {
        w.kernel
            .arena
            .vcpu_find(w.root, VCPU, 0)
            .expect("a vCPU")
            .1
            .wanted()
    };
    assert!(!wanted(&w));
    w.ok(Call::Signal, &[510, 4]);
    assert!(wanted(&w) && wanted(&w));
    w.ok(Call::Wait, &[510, 0]);
    assert!(!wanted(&w));
}

#[test]
fn a_space_remembers_every_cpu_that_ran_it() {
    let mut w = bound();
    let ram = w.ram();
    w.make(ram, Kind::Tables, 3, 510, 1);
    w.ok(Call::Fill, &[SPACE, 510]);
    w.make(ram, Kind::Frame, 12, 511, 1);
    for (cpu, cpus) in [(0, 1), (3, 0b1001), (0, 0b1001), (1, 0b1011)] {
        w.kernel
            .arena
            .vcpu_find(w.root, VCPU, cpu)
            .map(|_| ())
            .expect("a vCPU");
        w.ok(Call::Map, &[511, SPACE, 0x1000, RW]);
        w.seen.flushes.borrow_mut().clear();
        w.ok(Call::Unmap, &[511]);
        let flushes = w.seen.flushes.take();
        let seen = match flushes[..] {
            [Flush::GuestSpace { cpus, .. }] => cpus,
            _ => panic!("{flushes:?}"),
        };
        assert_eq!(seen, cpus);
    }
}
