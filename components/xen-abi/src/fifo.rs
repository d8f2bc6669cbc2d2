//! Event channels, FIFO ABI (`public/event_channel.h`): a word a port in pages of the guest, and for each
//! vCPU a queue a priority, whose heads are in a control block of the guest. Ports and their bindings are
//! those of `event.rs`; here is how a guest learns of an event once it has asked for queues.
//!
//! For: `upcall.rs`, which makes ports pending. Words and blocks are the guest's, so whatever stands there is
//! believed for its own events only, and a page that is gone costs the guest these.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::PAGE_SIZE;
use crate::access::{Caller, Fields, Reply};
use crate::domain::Domain;
use crate::env::Env;
use crate::errno::Errno;
use crate::memory::{GuestMemory, Unbacked};
use crate::ports::{Binding, Port};
use crate::shared_info::{Layout, test};

/// `EVTCHN_FIFO_PENDING`, `_MASKED`, `_LINKED`, `_BUSY`.
const PENDING: u32 = 1 << 31;
const MASKED: u32 = 1 << 30;
const LINKED: u32 = 1 << 29;
const BUSY: u32 = 1 << 28;
/// `EVTCHN_FIFO_LINK_BITS`.
const LINK_BITS: u8 = 17;
const LINK: u32 = (1 << LINK_BITS) - 1;
/// Priorities; 0 is served first.
const PRIORITIES: usize = 16;
/// `EVTCHN_FIFO_PRIORITY_DEFAULT`.
const DEFAULT_PRIORITY: u8 = 7;
/// `struct evtchn_fifo_control_block`: the word of ready queues, four bytes of nothing, the heads.
const HEADS: u64 = 8;
const CONTROL_BYTES: u64 = HEADS + 4 * PRIORITIES as u64;
const WORDS_PER_PAGE: u32 = (PAGE_SIZE / 4) as u32;
/// Pages that hold a word for every port that a link can name.
const MAX_PAGES: usize = 1 << LINK_BITS >> 10;
/// Times that a guest may change the word of a tail while it is marked busy. It can clear PENDING, set
/// MASKED and clear LINKED; one that does more than that breaks the protocol.
const ATTEMPTS: u32 = 4;

/// One of a vCPU's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Queue {
    vcpu: u32,
    priority: u8,
}

/// What is known of a port beyond its word.
#[derive(Clone, Copy, Debug)]
struct Event {
    priority: u8,
    /// The queue it was put into last.
    queue: Queue,
    /// It became pending before there was a word for it.
    kept: bool,
}

const NEW: Event = Event {
    priority: DEFAULT_PRIORITY,
    queue: Queue {
        vcpu: 0,
        priority: 0,
    },
    kept: false,
};

/// A vCPU's control block, and the last port in each of its queues: 0 for none.
#[derive(Clone, Debug, Default)]
struct Control {
    address: Option<u64>,
    tails: [u32; PRIORITIES],
}

/// The queues of a domain that has asked for them.
#[derive(Debug)]
pub(crate) struct Fifo {
    /// Where the pages of words are.
    pages: Vec<u64>,
    /// By port, as far as one was made pending or given a priority.
    events: Vec<Event>,
    /// By vCPU.
    controls: Vec<Control>,
}

/// What became of an event.
struct Raised {
    /// It was not pending before.
    fresh: bool,
    /// Its queue had nothing before: the vCPU is to be told.
    ready: bool,
}

impl Fifo {
    fn new(vcpus: u32) -> Fifo {
        Fifo {
            pages: Vec::new(),
            events: Vec::new(),
            controls: vec![Control::default(); vcpus as usize],
        }
    }

    /// The address of a port's word.
    fn word(&self, port: u32) -> Option<u64> {
        let page = self.pages.get((port / WORDS_PER_PAGE) as usize)?;
        Some(page + u64::from(port % WORDS_PER_PAGE) * 4)
    }

    /// What is known of a port. There are few enough of them.
    fn event(&mut self, port: u32) -> Option<&mut Event> {
        let index = port as usize;
        if index >= self.events.len() {
            self.events.resize(index + 1, NEW);
        }
        self.events.get_mut(index)
    }

    fn tail(&mut self, queue: Queue) -> Option<&mut u32> {
        self.controls
            .get_mut(queue.vcpu as usize)?
            .tails
            .get_mut(usize::from(queue.priority))
    }

    /// Whether a port may not be given out again: it is still in a queue.
    pub fn is_busy<M: GuestMemory>(&self, port: u32, memory: &M) -> bool {
        self.has(port, LINKED, memory)
    }

    fn has<M: GuestMemory>(&self, port: u32, bit: u32, memory: &M) -> bool {
        self.word(port)
            .is_some_and(|word| memory.read_u32(word).is_ok_and(|word| word & bit != 0))
    }

    /// Whether a port is pending in the guest.
    pub fn is_pending<M: GuestMemory>(&self, port: u32, memory: &M) -> bool {
        self.has(port, PENDING, memory)
    }

    /// A port was closed. It stays in its queue, from which the guest takes it without an event.
    pub fn closed<M: GuestMemory>(&mut self, port: u32, memory: &M) {
        if let Some(event) = self.events.get_mut(port as usize) {
            event.kept = false;
        }
        if let Some(word) = self.word(port) {
            let _ = memory.fetch_and_u32(word, !PENDING);
        }
    }

    /// A port begins anew.
    pub fn allocated(&mut self, port: u32) {
        if let Some(event) = self.events.get_mut(port as usize) {
            event.priority = DEFAULT_PRIORITY;
            event.kept = false;
        }
    }

    /// Makes a port pending and puts it into its queue, unless it is masked or in one.
    fn raise<M: GuestMemory>(&mut self, port: u32, vcpu: u32, memory: &M) -> Raised {
        let nothing = Raised {
            fresh: false,
            ready: false,
        };
        let Some(word) = self.word(port) else {
            if let Some(event) = self.event(port) {
                event.kept = true;
            }
            return nothing;
        };
        let Ok(before) = memory.fetch_or_u32(word, PENDING) else {
            return nothing;
        };
        Raised {
            fresh: before & PENDING == 0,
            ready: self.enqueue(port, vcpu, word, memory) == Ok(true),
        }
    }

    /// Answers whether the vCPU is to be told.
    fn enqueue<M: GuestMemory>(
        &mut self,
        port: u32,
        vcpu: u32,
        word: u64,
        memory: &M,
    ) -> Result<bool, Unbacked> {
        let control = self.controls.get(vcpu as usize);
        // A guest unmasks nothing before a vCPU has its block.
        let Some(control) = control.and_then(|control| control.address) else {
            return Ok(false);
        };
        if memory.read_u32(word)? & MASKED != 0 || memory.fetch_or_u32(word, LINKED)? & LINKED != 0
        {
            return Ok(false);
        }
        let Some(event) = self.event(port) else {
            return Ok(false);
        };
        let priority = event.priority;
        let queue = Queue { vcpu, priority };
        let before = core::mem::replace(&mut event.queue, queue);
        // It was not linked, so if it was the last of a queue, that is empty. Its word must not be taken
        // for the tail's now that it is linked elsewhere.
        if let Some(tail) = self.tail(before).filter(|tail| **tail == port) {
            *tail = 0;
        }
        let last = match self.tail(queue) {
            Some(tail) => core::mem::replace(tail, port),
            None => 0,
        };
        if last != 0
            && let Some(last) = self.word(last)
            && append(last, port, memory)?
        {
            return Ok(false);
        }
        memory.write_u32(control + HEADS + 4 * u64::from(priority), port)?;
        let bit = 1 << priority;
        Ok(memory.fetch_or_u32(control, bit)? & bit == 0)
    }
}

/// Links the word of a queue's tail to a port, if it still is in the queue: false if it is not.
fn append<M: GuestMemory>(tail: u64, port: u32, memory: &M) -> Result<bool, Unbacked> {
    let mut word = memory.read_u32(tail)?;
    for attempt in 0..=ATTEMPTS {
        if word & LINKED == 0 {
            if attempt > 0 {
                memory.fetch_and_u32(tail, !BUSY)?;
            }
            return Ok(false);
        }
        let linked = word & !(BUSY | LINK) | port;
        let found = memory.compare_exchange_u32(tail, word, linked)?;
        if found == word {
            return Ok(true);
        }
        word = match attempt {
            // Keeps the guest from unmasking it meanwhile.
            0 => memory.fetch_or_u32(tail, BUSY)? | BUSY,
            _ => found,
        };
    }
    // The event is lost to a guest that did this to itself.
    memory.fetch_and_u32(tail, !BUSY)?;
    Ok(true)
}

impl Domain {
    /// `EVTCHNOP_init_control`: a vCPU's control block; the first one ends the 2-level ABI.
    pub(crate) fn init_control<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let mut bytes: [u8; 24] = caller.fetch(argument)?;
        let (gfn, offset) = (bytes.u64_at(0), u64::from(bytes.u32_at(8)));
        let vcpu = bytes.u32_at(12);
        self.vcpus.get(vcpu as usize).ok_or(Errno::NoEnt)?;
        if offset > PAGE_SIZE - CONTROL_BYTES || !offset.is_multiple_of(8) {
            return Err(Errno::Inval);
        }
        let page = self.page_at(caller.env, gfn);
        let control = |fifo: &mut Fifo| -> Result<(), Errno> {
            let control = fifo.controls.get_mut(vcpu as usize).ok_or(Errno::NoEnt)?;
            if control.address.is_some() {
                return Err(Errno::Inval);
            }
            control.address = Some(page.ok_or(Errno::Inval)? + offset);
            Ok(())
        };
        match &mut self.fifo {
            Some(fifo) => control(fifo)?,
            None => {
                let mut fifo = Fifo::new(self.config.vcpus);
                control(&mut fifo)?;
                let layout = Layout::of(self.width);
                for port in 1..self.ports.valid().min(layout.ports()) {
                    if matches!(test(caller.memory, layout.pending, port), Ok(true))
                        && let Some(event) = fifo.event(port)
                    {
                        event.kept = true;
                    }
                }
                self.fifo = Some(Box::new(fifo));
            }
        }
        bytes.put(16, &[LINK_BITS]);
        caller.write(argument, &bytes).map(|()| 0)
    }

    /// `EVTCHNOP_expand_array`: one more page of words.
    pub(crate) fn expand_array<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let gfn = caller.fetch::<8>(argument)?.u64_at(0);
        let pages = match &self.fifo {
            None => return Err(Errno::OpNotSupp),
            Some(fifo) => fifo.pages.len(),
        };
        if pages >= MAX_PAGES {
            return Err(Errno::NoSpc);
        }
        let page = self.page_at(caller.env, gfn).ok_or(Errno::Inval)?;
        let first = pages as u32 * WORDS_PER_PAGE;
        let mut kept = Vec::new();
        if let Some(fifo) = &mut self.fifo {
            fifo.pages.push(page);
            let events = fifo.events.iter_mut().enumerate().skip(first as usize);
            for (port, event) in events.take(WORDS_PER_PAGE as usize) {
                if core::mem::take(&mut event.kept) {
                    kept.push(port as u32);
                }
            }
        }
        for port in kept {
            if let Some(&Port { vcpu, .. }) = self.ports.get(port) {
                self.set_pending(port, vcpu, caller.memory, caller.env);
            }
        }
        Ok(0)
    }

    /// `EVTCHNOP_set_priority`, for events to come.
    pub(crate) fn set_priority(&mut self, port: u32, priority: u32) -> Reply {
        let binding = self.ports.get(port).ok_or(Errno::Inval)?.binding;
        // Two levels know no priorities.
        let fifo = self.fifo.as_mut().ok_or(Errno::NoSys)?;
        if matches!(binding, Binding::Free | Binding::Reserved) {
            return Err(Errno::Acces);
        }
        match u8::try_from(priority) {
            Ok(priority) if usize::from(priority) < PRIORITIES => {
                fifo.event(port).ok_or(Errno::Inval)?.priority = priority;
                Ok(0)
            }
            _ => Err(Errno::Inval),
        }
    }

    /// Makes a port pending; see [`Domain::set_pending`].
    #[inline(never)]
    pub(crate) fn raise_fifo<M: GuestMemory, E: Env>(
        &mut self,
        port: u32,
        vcpu: u32,
        memory: &M,
        env: &mut E,
    ) {
        let Some(fifo) = &mut self.fifo else { return };
        let raised = fifo.raise(port, vcpu, memory);
        if raised.ready {
            let _ = self.mark_events_pending(vcpu, memory, env);
        }
        if raised.fresh {
            self.wake_pollers(port, env);
        }
    }

    /// `EVTCHNOP_unmask`.
    pub(crate) fn unmask_fifo<M: GuestMemory, E: Env>(
        &mut self,
        port: u32,
        vcpu: u32,
        memory: &M,
        env: &mut E,
    ) {
        let word = self.fifo.as_ref().and_then(|fifo| fifo.word(port));
        if let Some(word) = word
            && let Ok(before) = memory.fetch_and_u32(word, !MASKED)
            && before & PENDING != 0
        {
            self.raise_fifo(port, vcpu, memory, env);
        }
    }
}
