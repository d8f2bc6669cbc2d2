//! Event channels against a model: random sequences of binds, closes, sends, masks and the
//! guest's own handling. No notification is lost, none appears from nowhere.

use std::collections::BTreeSet;
use std::vec::Vec;

use super::harness::*;
use crate::event::op;
use crate::*;
use proptest::prelude::*;

const SHARED: u64 = SpecialFrame::SharedInfo.address();
const VCPUS: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    BindIpi(u32),
    BindTimer(u32),
    Service,
    Close(u32),
    Send(u32),
    Notify(u32),
    Mask(u32),
    Unmask(u32),
    BindVcpu(u32, u32),
    /// The guest's upcall handler of a vCPU.
    Handle(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = || 0u32..12;
    let vcpu = || 0u32..VCPUS + 1;
    let step = prop_oneof![
        vcpu().prop_map(Step::BindIpi),
        vcpu().prop_map(Step::BindTimer),
        Just(Step::Service),
        port().prop_map(Step::Close),
        port().prop_map(Step::Send),
        port().prop_map(Step::Notify),
        port().prop_map(Step::Mask),
        port().prop_map(Step::Unmask),
        (port(), vcpu()).prop_map(|(port, vcpu)| Step::BindVcpu(port, vcpu)),
        (0..VCPUS).prop_map(Step::Handle),
    ];
    prop::collection::vec(step, 1..80)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Ipi,
    Timer,
    Service,
}

#[derive(Default)]
struct Model {
    /// Port 1 is at index 0.
    ports: Vec<Option<(Kind, u32)>>,
    pending: BTreeSet<u32>,
    masked: BTreeSet<u32>,
    /// Word 0 of the selector: all ports of the model are in it.
    selected: [bool; VCPUS as usize],
    upcalls: [bool; VCPUS as usize],
}

impl Model {
    fn get(&self, port: u32) -> Option<(Kind, u32)> {
        self.ports
            .get(port.checked_sub(1)? as usize)
            .copied()
            .flatten()
    }

    fn allocate(&mut self, kind: Kind, vcpu: u32) -> u32 {
        let index = self.ports.iter().position(Option::is_none);
        let index = index.unwrap_or_else(|| {
            self.ports.push(None);
            self.ports.len() - 1
        });
        self.ports[index] = Some((kind, vcpu));
        index as u32 + 1
    }

    fn select(&mut self, vcpu: u32) {
        if !core::mem::replace(&mut self.selected[vcpu as usize], true) {
            self.upcalls[vcpu as usize] = true;
        }
    }

    fn set_pending(&mut self, port: u32, vcpu: u32) {
        if self.pending.insert(port) && !self.masked.contains(&port) {
            self.select(vcpu);
        }
    }
}

fn inval_unless(condition: bool) -> i64 {
    if condition { 0 } else { error(Errno::Inval) }
}

fn apply(guest: &mut Guest, model: &mut Model, step: &Step) {
    match *step {
        Step::BindIpi(vcpu) => {
            let reply = guest.event(op::BIND_IPI, &[vcpu, 0]);
            if vcpu < VCPUS {
                assert_eq!(
                    (reply, guest.u32(ARG + 4)),
                    (0, model.allocate(Kind::Ipi, vcpu))
                );
            } else {
                assert_eq!(reply, error(Errno::NoEnt));
            }
        }
        Step::BindTimer(vcpu) => {
            let taken = model.ports.contains(&Some((Kind::Timer, vcpu)));
            let reply = guest.event(op::BIND_VIRQ, &[0, vcpu, 0]);
            if vcpu >= VCPUS {
                assert_eq!(reply, error(Errno::NoEnt));
            } else if taken {
                assert_eq!(reply, error(Errno::Exist));
            } else {
                assert_eq!(
                    (reply, guest.u32(ARG + 8)),
                    (0, model.allocate(Kind::Timer, vcpu))
                );
            }
        }
        Step::Service => {
            let port = guest
                .domain
                .alloc_service_port(ServiceId(1), &guest.memory)
                .unwrap();
            assert_eq!(port, model.allocate(Kind::Service, 0));
        }
        Step::Close(port) => {
            let bound = model.get(port).is_some();
            assert_eq!(guest.event(op::CLOSE, &[port]), inval_unless(bound));
            if bound {
                model.ports[port as usize - 1] = None;
                model.pending.remove(&port);
            }
        }
        Step::Send(port) => {
            let target = model.get(port);
            let may = matches!(target, Some((Kind::Ipi | Kind::Service, _)));
            assert_eq!(guest.event(op::SEND, &[port]), inval_unless(may));
            if let Some((Kind::Ipi, vcpu)) = target {
                model.set_pending(port, vcpu);
            }
        }
        Step::Notify(port) => {
            let reply = guest
                .domain
                .notify_guest(port, &guest.memory, &mut guest.env);
            match model.get(port) {
                Some((Kind::Service, vcpu)) => {
                    assert_eq!(reply, Ok(()));
                    model.set_pending(port, vcpu);
                }
                _ => assert_eq!(reply, Err(Errno::Inval)),
            }
        }
        Step::Mask(port) => {
            guest.memory.fetch_or_u32(SHARED + 2560, 1 << port).unwrap();
            model.masked.insert(port);
        }
        Step::Unmask(port) => {
            assert_eq!(guest.event(op::UNMASK, &[port]), 0);
            let vcpu = model.get(port).map_or(0, |(_, vcpu)| vcpu);
            if model.masked.remove(&port) && model.pending.contains(&port) {
                model.select(vcpu);
            }
        }
        Step::BindVcpu(port, vcpu) => {
            let movable = matches!(model.get(port), Some((Kind::Service, _)));
            let reply = guest.event(op::BIND_VCPU, &[port, vcpu]);
            if vcpu >= VCPUS {
                assert_eq!(reply, error(Errno::NoEnt));
            } else {
                assert_eq!(reply, inval_unless(movable));
                if movable {
                    model.ports[port as usize - 1] = Some((Kind::Service, vcpu));
                }
            }
        }
        Step::Handle(vcpu) => {
            let info = SHARED + u64::from(vcpu) * 64;
            guest.put(info, &[0]);
            model.upcalls[vcpu as usize] = false;
            let selected = guest.u64(info + 8);
            guest.put_u64s(info + 8, &[0]);
            assert_eq!(
                selected != 0,
                core::mem::take(&mut model.selected[vcpu as usize])
            );
            if selected != 0 {
                let ready = guest.u64(SHARED + 2048) & !guest.u64(SHARED + 2560);
                guest
                    .memory
                    .fetch_and_u32(SHARED + 2048, !ready as u32)
                    .unwrap();
                let Model {
                    pending, masked, ..
                } = model;
                pending.retain(|port| masked.contains(port));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn ports_behave_as_the_model(steps in steps()) {
        let mut guest = Guest::new(VCPUS);
        let mut model = Model::default();
        for step in &steps {
            apply(&mut guest, &mut model, step);
            let bits = |set: &BTreeSet<u32>| set.iter().fold(0u64, |word, port| word | 1 << port);
            prop_assert_eq!(guest.u64(SHARED + 2048), bits(&model.pending), "{:?}", step);
            prop_assert_eq!(guest.u64(SHARED + 2560), bits(&model.masked));
            for vcpu in 0..VCPUS as usize {
                let info = SHARED + vcpu as u64 * 64;
                prop_assert_eq!(guest.u64(info + 8) != 0, model.selected[vcpu], "{:?}", step);
                prop_assert_eq!(guest.bytes::<1>(info)[0] != 0, model.upcalls[vcpu], "{:?}", step);
            }
        }
    }
}
