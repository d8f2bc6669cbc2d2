//! A guest for tests: identity-mapped RAM, recorded effects, helpers to place structures.

use core::task::Poll;
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::domain::number;
use crate::*;

/// RAM pages of the guest.
pub const PAGES: u64 = 64;
/// Where tests put their structures.
pub const ARG: u64 = 0x1000;
/// Where tests put lists that structures point to.
pub const LIST: u64 = 0x3000;
/// The guest's own domain id, and one that does not exist.
pub const OWN: u16 = 5;
pub const STRANGER: u16 = 9;
pub const SELF: u16 = 0x7ff0;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Upcall(u32, Upcall),
    Wake(u32),
    Service(ServiceId),
    Channel(LinkId, u16),
    Shutdown(ShutdownReason),
    Console(Vec<u8>),
    Initialise(u32, VcpuStart),
    Up(u32),
    Down(u32),
    Nmi(u32),
    Flush(u128),
}

/// What is at a guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Ram,
    Special(SpecialFrame),
}

#[derive(Debug)]
pub struct TestEnv {
    pub tsc: u64,
    pub effects: Vec<Effect>,
    pub map: BTreeMap<u64, Page>,
    pub fresh_pages: u64,
    /// The domain that this one is the driver domain of.
    pub front: Option<Front>,
}

/// Another domain, as its VMM shows it.
#[derive(Debug, Default)]
pub struct Front {
    pub domid: u16,
    /// What it granted: whether to write, and the page.
    pub grants: BTreeMap<u32, (bool, Vec<u8>)>,
    /// Ports that wait for this domain.
    pub unbound: Vec<u32>,
    /// Grants in use: reference, to write, where the guest has it.
    pub used: BTreeMap<GrantToken, (u32, bool, Option<u64>)>,
    pub next: u64,
    /// It answers when [`Front::answer`] says so.
    pub slow: bool,
    pub reached: bool,
    pub asked: Vec<Question>,
    pub opened: Vec<((u32, bool), Result<GrantToken, i16>)>,
    pub bound: Vec<u32>,
    pub copied: Vec<(GrantCopy, Result<(), i16>)>,
}

/// What another domain is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    Reach,
    Grant(u32, bool),
    Bind(u32),
    Copy(GrantCopy),
}

impl Front {
    fn open(&mut self, reference: u32, write: bool) -> Result<GrantToken, i16> {
        match self.grants.get(&reference) {
            None => Err(-3),
            Some((false, _)) if write => Err(-1),
            Some(_) => {
                self.next += 1;
                let token = GrantToken(self.next);
                self.used.insert(token, (reference, write, None));
                Ok(token)
            }
        }
    }

    fn copy(&mut self, copy: GrantCopy, memory: &TestMemory) -> Result<(), i16> {
        let mut bytes = vec![0; copy.length.into()];
        match copy.from {
            CopySide::Own(address) => memory.read(address, &mut bytes).unwrap(),
            CopySide::Granted {
                domid,
                reference,
                offset,
            } => {
                assert_eq!(domid, self.domid);
                let (_, page) = self.grants.get(&reference).ok_or(-3i16)?;
                let start = usize::from(offset);
                bytes.copy_from_slice(&page[start..][..usize::from(copy.length)]);
            }
        }
        match copy.to {
            CopySide::Own(address) => memory.write(address, &bytes).unwrap(),
            CopySide::Granted {
                domid,
                reference,
                offset,
            } => {
                assert_eq!(domid, self.domid);
                let (write, page) = self.grants.get_mut(&reference).ok_or(-3i16)?;
                write.then_some(()).ok_or(-1i16)?;
                let start = usize::from(offset);
                page[start..start + bytes.len()].copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    /// Answers what was asked, which is told.
    pub fn answer(&mut self, memory: &TestMemory) -> Vec<Question> {
        let asked = core::mem::take(&mut self.asked);
        for question in &asked {
            match *question {
                Question::Reach => self.reached = true,
                Question::Grant(reference, write) => {
                    let answer = self.open(reference, write);
                    self.opened.push(((reference, write), answer));
                }
                Question::Bind(port) => self.bound.push(port),
                Question::Copy(copy) => {
                    let answer = self.copy(copy, memory);
                    self.copied.push((copy, answer));
                }
            }
        }
        asked
    }
}

impl Env for TestEnv {
    fn tsc(&mut self) -> u64 {
        self.tsc
    }
    fn translate(&mut self, linear: u64, _access: Access) -> Option<u64> {
        match self.map.get(&(linear / PAGE_SIZE))? {
            Page::Ram => Some(linear),
            Page::Special(frame) => Some(frame.address() + linear % PAGE_SIZE),
        }
    }
    fn upcall(&mut self, vcpu: u32, how: Upcall) {
        self.effects.push(Effect::Upcall(vcpu, how));
    }
    fn wake(&mut self, vcpu: u32) {
        self.effects.push(Effect::Wake(vcpu));
    }
    fn service_event(&mut self, service: ServiceId) {
        self.effects.push(Effect::Service(service));
    }
    fn channel_event(&mut self, link: LinkId, channel: u16) {
        self.effects.push(Effect::Channel(link, channel));
    }
    fn reaches(&mut self, domid: u16) -> Poll<bool> {
        let Some(front) = self.front.as_mut().filter(|front| front.domid == domid) else {
            return Poll::Ready(false);
        };
        if front.slow && !front.reached {
            if !front.asked.contains(&Question::Reach) {
                front.asked.push(Question::Reach);
            }
            return Poll::Pending;
        }
        Poll::Ready(true)
    }
    fn grant_open(
        &mut self,
        domid: u16,
        reference: u32,
        write: bool,
    ) -> Poll<Result<GrantToken, i16>> {
        let front = self.front.as_mut().unwrap();
        assert_eq!(front.domid, domid);
        if !front.slow {
            return Poll::Ready(front.open(reference, write));
        }
        let key = (reference, write);
        match front.opened.iter().position(|(of, _)| *of == key) {
            Some(place) => Poll::Ready(front.opened.remove(place).1),
            None => {
                front.asked.push(Question::Grant(reference, write));
                Poll::Pending
            }
        }
    }
    fn grant_soon(&mut self, domid: u16, reference: u32, write: bool) {
        let front = self.front.as_mut().unwrap();
        assert_eq!((front.domid, front.slow), (domid, true));
        front.asked.push(Question::Grant(reference, write));
    }
    fn grant_place(&mut self, token: GrantToken, gfn: u64) -> bool {
        self.map.remove(&gfn);
        self.front.as_mut().unwrap().used.get_mut(&token).unwrap().2 = Some(gfn);
        true
    }
    fn grant_copy(&mut self, copy: GrantCopy) -> Poll<Result<(), i16>> {
        let front = self.front.as_mut().unwrap();
        match front.copied.iter().position(|(of, _)| *of == copy) {
            Some(place) => Poll::Ready(front.copied.remove(place).1),
            None => {
                front.asked.push(Question::Copy(copy));
                Poll::Pending
            }
        }
    }
    fn grant_close(&mut self, token: GrantToken) {
        let closed = self.front.as_mut().unwrap().used.remove(&token);
        assert!(closed.is_some(), "closed once");
    }
    fn bind_remote(&mut self, domid: u16, port: u32, _: u32) -> Poll<Result<(LinkId, u16), Errno>> {
        let front = self.front.as_mut().unwrap();
        assert_eq!(front.domid, domid);
        if front.slow && !front.bound.contains(&port) {
            front.asked.push(Question::Bind(port));
            return Poll::Pending;
        }
        let place = front.unbound.iter().position(|unbound| *unbound == port);
        let Some(place) = place else {
            return Poll::Ready(Err(Errno::Inval));
        };
        front.unbound.swap_remove(place);
        Poll::Ready(Ok((LinkId(300), port as u16)))
    }
    fn channel_closed(&mut self, link: LinkId, channel: u16) {
        if link == LinkId(300) {
            self.front.as_mut().unwrap().unbound.push(channel.into());
        }
    }
    fn shutdown(&mut self, reason: ShutdownReason) {
        self.effects.push(Effect::Shutdown(reason));
    }
    fn console_write(&mut self, bytes: &[u8]) {
        self.effects.push(Effect::Console(bytes.to_vec()));
    }
    fn map_special(&mut self, frame: SpecialFrame, gfn: u64) -> Result<(), MapError> {
        self.map.retain(|_, page| *page != Page::Special(frame));
        self.map.insert(gfn, Page::Special(frame));
        Ok(())
    }
    fn remove_page(&mut self, gfn: u64) -> bool {
        self.map.remove(&gfn).is_some()
    }
    fn populate_page(&mut self, gfn: u64) -> Result<bool, MapError> {
        if self.map.contains_key(&gfn) {
            return Ok(false);
        }
        self.fresh_pages = self.fresh_pages.checked_sub(1).ok_or(MapError::NoMemory)?;
        self.map.insert(gfn, Page::Ram);
        Ok(true)
    }
    fn is_ram(&mut self, gfn: u64) -> bool {
        self.map.get(&gfn) == Some(&Page::Ram)
    }
    fn initialise_vcpu(&mut self, vcpu: u32, state: VcpuStart) {
        self.effects.push(Effect::Initialise(vcpu, state));
    }
    fn vcpu_up(&mut self, vcpu: u32) {
        self.effects.push(Effect::Up(vcpu));
    }
    fn vcpu_down(&mut self, vcpu: u32) {
        self.effects.push(Effect::Down(vcpu));
    }
    fn nmi(&mut self, vcpu: u32) {
        self.effects.push(Effect::Nmi(vcpu));
    }
    fn flush_tlb(&mut self, vcpus: u128) {
        self.effects.push(Effect::Flush(vcpus));
    }
}

pub struct Guest {
    pub domain: Domain,
    pub memory: TestMemory,
    pub env: TestEnv,
    pub mode: Mode,
    pub vcpu: u32,
    /// RFLAGS.IF of the caller.
    pub interrupts: bool,
}

pub fn config(vcpus: u32) -> Config {
    Config {
        domid: OWN,
        vcpus,
        pages: PAGES,
        max_pages: PAGES,
        max_gfn: PAGES - 1,
        physical_address_bits: 40,
        memory_map: vec![MapEntry {
            address: 0,
            size: PAGES * PAGE_SIZE,
            kind: 1,
        }],
        grant_frames: 4,
        max_grant_version: 2,
        tsc: TscMode {
            khz: 1_000_000,
            stable: true,
        },
        tsc_at_start: 0,
        wallclock_at_start: 1_700_000_000_123_456_789,
        store_gfn: 0x30,
        console_gfn: 0x31,
        callback_lines: false,
        rdtscp: true,
        uuid: *b"0123456789abcdef",
    }
}

impl Guest {
    /// A 64-bit guest: its TSC counts ns.
    pub fn new(vcpus: u32) -> Guest {
        Guest::with(config(vcpus))
    }

    pub fn with(config: Config) -> Guest {
        let memory = TestMemory::new((PAGES * PAGE_SIZE) as usize, SpecialFrame::COUNT as usize);
        Guest {
            domain: Domain::new(config, &memory).expect("a valid configuration"),
            memory,
            env: TestEnv {
                tsc: 1_000_000,
                effects: Vec::new(),
                map: (0..PAGES).map(|gfn| (gfn, Page::Ram)).collect(),
                fresh_pages: 1000,
                front: None,
            },
            mode: Mode::Bits64,
            vcpu: 0,
            interrupts: true,
        }
    }

    /// A 32-bit guest with the layouts latched.
    pub fn new_32(vcpus: u32) -> Guest {
        let mut guest = Guest::new(vcpus);
        guest.mode = Mode::Bits32;
        guest
            .domain
            .write_hypercall_page(
                0x2000,
                Mode::Bits32,
                Vendor::Amd,
                &guest.memory,
                &mut guest.env,
            )
            .expect("RAM");
        guest
    }

    pub fn outcome(&mut self, number: u64, arguments: &[u64]) -> Outcome {
        self.outcome_and_left(number, arguments).0
    }

    /// The outcome, and the arguments of the call that follows a restart. Every call in every test keeps the
    /// promise of `deadlines`.
    pub fn outcome_and_left(&mut self, number: u64, arguments: &[u64]) -> (Outcome, [u64; 6]) {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        let registers = Registers {
            number,
            arguments: all,
            mode: self.mode,
            cpl: 0,
            interrupts: self.interrupts,
        };
        let next = |domain: &Domain| [0, 1, 2, 3, 4].map(|vcpu| domain.next_deadline(vcpu));
        let (before, known) = (next(&self.domain), self.domain.deadlines());
        let outcome = self
            .domain
            .hypercall(self.vcpu, &registers, &self.memory, &mut self.env);
        if self.domain.deadlines() == known {
            assert_eq!(next(&self.domain), before, "deadlines changed in silence");
        }
        (outcome, self.domain.arguments_left())
    }

    /// The result, sign-extended.
    pub fn call(&mut self, number: u64, arguments: &[u64]) -> i64 {
        let result = self.outcome(number, arguments).result;
        match self.mode {
            Mode::Bits64 => result as i64,
            _ => i64::from(result as u32 as i32),
        }
    }

    /// Calls again for as long as the answer is to restart.
    pub fn call_to_end(&mut self, number: u64, arguments: &[u64]) -> (i64, u32) {
        let mut arguments = arguments.to_vec();
        let mut restarts = 0;
        loop {
            let (outcome, left) = self.outcome_and_left(number, &arguments);
            if outcome.next != Next::Restart {
                return (outcome.result as i64, restarts);
            }
            arguments = left.to_vec();
            restarts += 1;
        }
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.memory.write(at, bytes).expect("test memory");
    }

    pub fn put_u32s(&mut self, at: u64, words: &[u32]) {
        for (index, word) in (0u64..).zip(words) {
            self.put(at + index * 4, &word.to_le_bytes());
        }
    }

    pub fn put_u64s(&mut self, at: u64, words: &[u64]) {
        for (index, word) in (0u64..).zip(words) {
            self.put(at + index * 8, &word.to_le_bytes());
        }
    }

    pub fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(at, &mut bytes).expect("test memory");
        bytes
    }

    pub fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    pub fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    /// An event channel operation on words at ARG.
    pub fn event(&mut self, operation: u32, words: &[u32]) -> i64 {
        self.put_u32s(ARG, words);
        self.call(number::EVENT_CHANNEL_OP, &[u64::from(operation), ARG])
    }

    pub fn bind_ipi(&mut self, vcpu: u32) -> u32 {
        assert_eq!(self.event(crate::event::op::BIND_IPI, &[vcpu, 0]), 0);
        self.u32(ARG + 4)
    }

    pub fn effects(&mut self) -> Vec<Effect> {
        core::mem::take(&mut self.env.effects)
    }
}

/// A negated error, as `call` gives it.
pub fn error(errno: Errno) -> i64 {
    errno.as_return()
}
