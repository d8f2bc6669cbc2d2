//! Guests: what carries out the decisions of `root_plan::guest`. Part of [`System`].

use alloc::vec::Vec;

use idl::builder::Built;
use idl::manifest::Exit;
use idl::name;
use idl::operator::Ends;
use root_plan::guest::{self, Action, End, Event, Phase};
use root_plan::peers::Caller;
use sdk::memory::LARGE;
use sdk::prelude::*;

use super::bank::GuestMemory;
use super::exit;
use super::instance::GuestParts;
use super::system::System;

/// What the exit device is told: all guests off, or one of them failed.
const EXIT_OFF: u8 = 0x10;
const EXIT_FAILED: u8 = 0x11;

/// Where a guest comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Of the system's description: it keeps its place.
    Described,
    /// The operator defined it.
    Defined,
    /// From nowhere: one that was defined is gone, and the place is free.
    Vacant,
}

/// A guest, started or not.
pub struct GuestPlace {
    /// Where it is in its life; see [`GuestPlace::phase`].
    pub phase: Phase,
    /// Its VMM has started its vCPUs.
    pub ready: bool,
    /// How often it was built.
    pub starts: u32,
    /// TSC when it was built last.
    pub since: u64,
    /// Its domain id.
    pub domain: u16,
    /// Where it comes from.
    pub origin: Origin,
    /// What becomes of it when it ends by itself.
    pub ends: Ends,
    /// Place of its builder.
    pub builder: usize,
    /// Place of its VMM.
    pub vmm: usize,
    /// Pages that its VMM shares with those who may use its grants, and with whom.
    pub pages: Vec<(Caller, Cap<cap::Frame>)>,
    /// Its memory, while it has some.
    pub memory: Option<GuestMemory>,
}

impl GuestPlace {
    /// The phase as an operator sees it: what is not ready is still being built, and has no vCPUs
    /// that could be paused.
    pub fn phase(&self) -> Phase {
        match self.phase {
            Phase::Running if !self.ready => Phase::Building,
            phase => phase,
        }
    }
}

impl System {
    /// Something happened to a guest.
    pub(super) fn guest_event(&mut self, index: usize, event: Event) {
        let (phase, action) = guest::step(self.guests[index].phase, event);
        self.guests[index].phase = phase;
        let (builder, vmm) = (self.guests[index].builder, self.guests[index].vmm);
        let name = self.manifest.guests[index].name.clone();
        let started = match action {
            Action::Ignore => return,
            Action::Build => {
                self.tear_down(index);
                log::info!("guest {name}: building");
                self.guests[index].starts += 1;
                self.guests[index].since = sdk::time::now();
                self.build_guest(index)
            }
            Action::Run(built) => {
                self.take_down(builder);
                log::info!("guest {name}: starting at {:#x}", built.entry);
                self.run_guest(index, built)
            }
            Action::Pause => self.each_vcpu(vmm, "paused", ThreadCap::suspend),
            Action::Unpause => self.each_vcpu(vmm, "goes on", ThreadCap::resume),
            Action::TearDown => {
                self.tear_down(index);
                true
            }
        };
        self.tell_of_domains();
        if !started {
            return self.guest_event(index, Event::ComponentDied);
        }
        if let Phase::Stopped(end) = phase {
            let word = match end {
                End::Off => "off",
                End::Destroyed => "destroyed",
                End::Failed => "failed",
            };
            log::info!("guest {name}: {word}");
            self.vacate(index, end);
            self.maybe_exit();
        }
    }

    /// Takes down whatever runs for a guest, and its memory back.
    fn tear_down(&mut self, index: usize) {
        let (builder, vmm) = (self.guests[index].builder, self.guests[index].vmm);
        self.take_down(builder);
        self.take_down(vmm);
        self.tell_users(vmm);
        let place = &mut self.guests[index];
        place.ready = false;
        if let Some(memory) = place.memory.take() {
            self.tools.bank.give_guest(memory);
        }
    }

    /// Does something to the thread of each vCPU. The VMM's service thread goes on: console and
    /// store of a paused guest still answer. A thread is stopped wherever it is, in the guest or in
    /// the VMM; false if the core refused.
    fn each_vcpu(
        &mut self,
        vmm: usize,
        what: &str,
        does: impl Fn(Cap<cap::Thread>) -> Result<(), Status>,
    ) -> bool {
        let Some((name, threads)) = self.vcpu_threads(vmm) else {
            return false;
        };
        for thread in threads {
            if let Err(status) = does(*thread) {
                log::error!("guest {name}: a vCPU's thread refuses: {status:?}");
                return false;
            }
        }
        log::info!("guest {name}: {what}");
        true
    }

    /// Fresh memory for a guest, zeroed by the core: its frames.
    fn guest_memory(&mut self, index: usize) -> Result<(Cap<cap::Frame>, u32), Status> {
        let mib = self.manifest.guests[index].memory_mib;
        let count = u32::try_from(mib * (1 << 20) / LARGE).map_err(|_| Status::NoMemory)?;
        let memory = self.tools.bank.take_guest(count)?;
        let frames = (memory.frames, memory.count);
        self.guests[index].memory = Some(memory);
        Ok(frames)
    }

    fn guest_start(&self, index: usize) -> GuestStart {
        let guest = &self.manifest.guests[index];
        let mut cmdline = heapless::String::new();
        if cmdline.push_str(&guest.cmdline).is_err() {
            log::error!(
                "guest {}: its command line is too long and is left out",
                guest.name
            );
        }
        GuestStart {
            name: name(&guest.name),
            memory_address: 0,
            memory_bytes: 0,
            frame_slot: 0,
            frame_count: 0,
            domain: self.guests[index].domain,
            vcpus: guest.vcpus.len() as u32,
            vcpu_threads: heapless::Vec::new(),
            kernel: None,
            initrd: None,
            cmdline,
            built: None,
            peers: None,
            max_grant_version: guest.max_grant_version,
        }
    }

    fn build_guest(&mut self, index: usize) -> bool {
        let (frames, count) = match self.guest_memory(index) {
            Ok(frames) => frames,
            Err(status) => {
                let guest = &self.manifest.guests[index];
                let (name, mib) = (&guest.name, guest.memory_mib);
                match status {
                    Status::NoMemory => log::error!(
                        "guest {name}: needs {mib} MiB of memory, which this machine does not have left"
                    ),
                    _ => log::error!("guest {name}: its memory cannot be made: {status:?}"),
                }
                return false;
            }
        };
        let guest = self.manifest.guests[index].clone();
        let parts = GuestParts {
            start: self.guest_start(index),
            frames,
            count,
            peer_pages: &[],
            cpus: &[],
            files: Some((&guest.kernel, guest.initrd.as_deref())),
        };
        self.run(self.guests[index].builder, Some(parts))
    }

    fn run_guest(&mut self, index: usize, built: Built) -> bool {
        let Some((frames, count)) = self.guests[index]
            .memory
            .as_ref()
            .map(|memory| (memory.frames, memory.count))
        else {
            return false;
        };
        let cpus = self.manifest.guests[index].vcpus.clone();
        let mut start = self.guest_start(index);
        start.cmdline.clear();
        start.built = Some(built);
        let pages = self.peer_pages(index);
        let parts = GuestParts {
            start,
            frames,
            count,
            peer_pages: &pages,
            cpus: &cpus,
            files: None,
        };
        self.run(self.guests[index].vmm, Some(parts))
    }

    fn maybe_exit(&mut self) {
        let ends = self.guests.iter().map(|guest| guest.phase);
        if self.manifest.exit != Exit::WhenGuestsStop
            || !ends.clone().all(|phase| matches!(phase, Phase::Stopped(_)))
        {
            return;
        }
        let failed = self.defined.failed
            || ends
                .clone()
                .any(|phase| phase == Phase::Stopped(End::Failed));
        log::info!("all guests have stopped");
        exit::exit(if failed { EXIT_FAILED } else { EXIT_OFF });
    }
}
