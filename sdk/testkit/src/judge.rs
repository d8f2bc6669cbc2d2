//! What a run comes to: who died of what, who told root what, and who holds more than before.

use std::collections::BTreeMap;

use idl::local::Into as Bytes;
use idl::supervisor::{Detail, StopReason, Supervisor, SupervisorServer};
use idl::{Dispatch, PAYLOAD_MAX, Refusal};
use microvisor_abi::message::SEND_SLOTS;
use microvisor_abi::{MessageInfo, Status};

use crate::calls::Flow;
use crate::fault::Fault;
use crate::state::{Member, State};

/// Why an instance of a component ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Death {
    /// A fault of the plan.
    Injected,
    /// The test killed it.
    Killed,
    /// It panicked, with this message. Page faults and ports that were not granted are panics too.
    Panic(String),
    /// It told root that it cannot go on.
    Failed(String),
    /// It told root that it is done; it is not started again.
    Exited,
    /// It made system calls without end.
    Endless,
}

impl Death {
    /// True for an end that a component may come to without a defect: it was killed from outside, or
    /// said why.
    pub fn is_clean(&self) -> bool {
        !matches!(self, Death::Panic(_) | Death::Endless)
    }
}

/// What a component told root (interface `supervisor`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It serves.
    Ready,
    /// Its guest stopped.
    GuestStopped(StopReason, String),
    /// It cannot go on.
    Failed(String),
    /// It is done.
    Exit,
}

struct Inbox(Vec<Told>);

impl SupervisorServer for Inbox {
    fn ready(&mut self, _: u64) {
        self.0.push(Told::Ready);
    }
    fn guest_stopped(&mut self, _: u64, reason: StopReason, detail: Detail) {
        self.0
            .push(Told::GuestStopped(reason, detail.as_str().into()));
    }
    fn failed(&mut self, _: u64, detail: Detail) {
        self.0.push(Told::Failed(detail.as_str().into()));
    }
    fn exit(&mut self, _: u64) {
        self.0.push(Told::Exit);
    }
}

/// What a component holds, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Capabilities, by what they name and how they came.
    held: BTreeMap<String, u32>,
    /// Slots that its books call taken and in which nothing is.
    empty: u32,
}

/// A capability or slot that a component should not have any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// Who has it.
    pub component: String,
    /// What it is and how it came.
    pub what: String,
    /// How many more of them than at the mark.
    pub more: u32,
}

impl Member {
    pub fn returned(&mut self) {
        self.log.push("(main returned)".into());
    }
}

impl State {
    /// Root's side of interface `supervisor`.
    pub fn supervise(&mut self, thread: usize, badge: u64) -> Result<Flow, Status> {
        let request = self.message(thread);
        let (code, bytes) = (request.code(), request.bytes());
        // No method takes capabilities; the number is judged.
        let caps = vec![0; MessageInfo(*request.info).caps()];
        let mut inbox = Inbox(Vec::new());
        let mut out = [0; PAYLOAD_MAX];
        let answer = <Supervisor as Dispatch<Inbox>>::dispatch(
            &mut inbox,
            badge,
            code,
            &bytes,
            &caps,
            Bytes(&mut out),
        );
        let answer = answer.and_then(|sent| sent.map_err(|_| Refusal::Answer));
        let (label, length) = match answer {
            Ok((length, ..)) => (0, length),
            Err(refusal) => (refusal.label(), 0),
        };
        let me = self.threads[thread].component;
        let death = inbox.0.iter().find_map(|told| match told {
            Told::Failed(detail) => Some(Death::Failed(detail.clone())),
            Told::Exit => Some(Death::Exited),
            _ => None,
        });
        self.members[me].told.extend(inbox.0);
        if let Some(death) = death {
            return Ok(Flow::Die(death));
        }
        let faults = std::mem::take(&mut self.threads[thread].faults);
        let mut reply = self.message(thread);
        reply.set(label, &out[..length.min(SEND_SLOTS)], 0);
        for fault in faults {
            match fault {
                Fault::Answer(how) => self.message(thread).mangle(how),
                Fault::OtherSchema => self.message(thread).other_hash(),
                Fault::Delay(ticks) => self.advance_to(self.clock.saturating_add(ticks)),
                Fault::Cancel => return Ok(Flow::Return(Status::Cancelled, [0; 6])),
                // Root does not die: the machine would stop.
                _ => {}
            }
        }
        let [_, results @ ..] = self.threads[thread].regs;
        let [info, w0, w1, w2, w3] = results;
        Ok(Flow::Return(Status::Ok, [0, info, w0, w1, w2, w3]))
    }

    /// What a component holds now.
    pub fn counts(&self, component: usize) -> Counts {
        let mut counts = Counts::default();
        let mut full = Vec::new();
        for (slot, cap, object) in self.graph.held(component) {
            full.push(slot);
            let what = format!("{}, {}", object.name, cap.how);
            *counts.held.entry(what).or_insert(0) += 1;
        }
        if let Some(host) = &self.members[component].host {
            let free = host.free_slots();
            let held = full.iter().filter(|&&slot| host.is_taken(slot)).count() as u32;
            let fixed = (0..sdk::slots::FIRST)
                .filter(|slot| host.is_taken(*slot) && !full.contains(slot))
                .count() as u32;
            counts.empty = crate::SLOTS
                .saturating_sub(free)
                .saturating_sub(held)
                .saturating_sub(fixed);
        }
        counts
    }

    /// What components hold beyond their marks.
    pub fn leaks(&self) -> Vec<Leak> {
        let mut leaks = Vec::new();
        for (component, member) in self.members.iter().enumerate() {
            let Some(mark) = &member.mark else { continue };
            if member.host.is_none() {
                continue;
            }
            let now = self.counts(component);
            let mut add = |what: &str, before: u32, now: u32| {
                if now > before {
                    leaks.push(Leak {
                        component: member.spec.name.clone(),
                        what: what.into(),
                        more: now - before,
                    });
                }
            };
            for (what, count) in &now.held {
                add(what, mark.held.get(what).copied().unwrap_or(0), *count);
            }
            add("a slot with nothing in it", mark.empty, now.empty);
        }
        leaks
    }
}
