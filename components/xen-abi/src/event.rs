//! Event channels: the semantics of `event_channel_op` (`public/event_channel.h`) on the table of
//! `ports.rs`. Who learns of an event, and how, is `upcall.rs`.
//!
//! A port's other end is in this domain, a service of the VMM's side, or a channel of a connection to a
//! backend or another domain, which the VMM carries events through: see `interdomain.rs`.

use core::task::Poll;

use crate::access::{Caller, Fields, Reply};
use crate::domain::{DOMID_SELF, Domain, SYSTEM};
use crate::env::{Env, ServiceId};
use crate::errno::Errno;
use crate::memory::GuestMemory;
use crate::ports::{BUCKET, Binding, MAX_PORTS, Port};
use crate::shared_info::Layout;

/// Numbers of physical interrupts that Xen gives a domain unless told otherwise: as many as the
/// machine's I/O APICs have (one, of 24), and 32.
pub(crate) const PIRQS: u32 = 56;
/// `NR_VIRQS`.
pub(crate) const VIRQS: usize = 24;
/// `VIRQ_TIMER`.
pub(crate) const VIRQ_TIMER: u32 = 0;

/// `EVTCHNOP_*`.
pub(crate) mod op {
    pub const BIND_INTERDOMAIN: u32 = 0;
    pub const BIND_VIRQ: u32 = 1;
    pub const BIND_PIRQ: u32 = 2;
    pub const CLOSE: u32 = 3;
    pub const SEND: u32 = 4;
    pub const STATUS: u32 = 5;
    pub const ALLOC_UNBOUND: u32 = 6;
    pub const BIND_IPI: u32 = 7;
    pub const BIND_VCPU: u32 = 8;
    pub const UNMASK: u32 = 9;
    pub const RESET: u32 = 10;
    pub const INIT_CONTROL: u32 = 11;
    pub const EXPAND_ARRAY: u32 = 12;
    pub const SET_PRIORITY: u32 = 13;
    pub const RESET_CONT: u32 = 14;
}

/// Whether a VIRQ is the domain's, not each vCPU's. `None`: no such VIRQ.
fn virq_is_global(virq: u32) -> Option<bool> {
    match virq {
        // TIMER, DEBUG, XENOPROF, XENPMU.
        0 | 1 | 7 | 13 => Some(false),
        _ if (virq as usize) < VIRQS => Some(true),
        _ => None,
    }
}

impl Domain {
    #[inline(always)]
    pub(crate) fn event_channel_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        command: u32,
        argument: u64,
    ) -> Reply {
        if command == op::SEND {
            // What guests ask for most.
            let port = caller.fetch_u32_inline(argument)?;
            return self.send_event(port, caller.memory, caller.env);
        }
        self.other_event_channel_op(caller, command, argument)
    }

    #[inline(never)]
    fn other_event_channel_op<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        command: u32,
        argument: u64,
    ) -> Reply {
        match command {
            op::ALLOC_UNBOUND => {
                let mut bytes: [u8; 8] = caller.fetch(argument)?;
                self.require_self(bytes.u16_at(0))?;
                let remote = self.resolve(bytes.u16_at(2));
                let port = self.allocate_port(Binding::Unbound { remote }, 0, caller.memory)?;
                bytes.put(4, &port.to_le_bytes());
                caller.write(argument, &bytes).map(|()| 0)
            }
            op::BIND_INTERDOMAIN => {
                let mut bytes: [u8; 12] = caller.fetch(argument)?;
                let (domid, remote) = (bytes.u16_at(0), bytes.u32_at(4));
                let port = if domid == SYSTEM {
                    // None of domain 0's ports is for this domain.
                    Err(Errno::Inval)
                } else if let Err(error) = self.require_self(domid) {
                    let bound = match caller.env.reaches(domid) {
                        Poll::Ready(false) => Poll::Ready(Err(error)),
                        Poll::Ready(true) => {
                            self.bind_remote(domid, remote, caller.memory, caller.env)
                        }
                        Poll::Pending => Poll::Pending,
                    };
                    let Poll::Ready(port) = bound else {
                        self.restart(caller, [command.into(), argument, 0, 0, 0, 0]);
                        return Ok(0);
                    };
                    port
                } else {
                    self.bind_loop(remote, caller.memory, caller.env)
                }?;
                bytes.put(8, &port.to_le_bytes());
                caller.write(argument, &bytes).map(|()| 0)
            }
            op::BIND_VIRQ => {
                let mut bytes: [u8; 12] = caller.fetch(argument)?;
                let port = self.bind_virq(bytes.u32_at(0), bytes.u32_at(4), caller.memory)?;
                bytes.put(8, &port.to_le_bytes());
                caller.write(argument, &bytes).map(|()| 0)
            }
            op::BIND_IPI => {
                let mut bytes: [u8; 8] = caller.fetch(argument)?;
                let vcpu = bytes.u32_at(0);
                self.vcpus.get(vcpu as usize).ok_or(Errno::NoEnt)?;
                let port = self.allocate_port(Binding::Ipi, vcpu, caller.memory)?;
                bytes.put(4, &port.to_le_bytes());
                caller.write(argument, &bytes).map(|()| 0)
            }
            op::BIND_PIRQ => {
                let mut bytes: [u8; 12] = caller.fetch(argument)?;
                let port = self.bind_pirq(bytes.u32_at(0), caller.memory)?;
                bytes.put(8, &port.to_le_bytes());
                caller.write(argument, &bytes).map(|()| 0)
            }
            op::CLOSE => {
                let port = caller.fetch_u32(argument)?;
                self.close_port(port, caller.memory, caller.env).map(|()| 0)
            }
            op::STATUS => self.port_status(caller, argument),
            op::BIND_VCPU => {
                let bytes: [u8; 8] = caller.fetch(argument)?;
                self.bind_vcpu(bytes.u32_at(0), bytes.u32_at(4)).map(|()| 0)
            }
            op::UNMASK => {
                let port = caller.fetch_u32(argument)?;
                let vcpu = self.ports.get(port).ok_or(Errno::Inval)?.vcpu;
                self.unmask(port, vcpu, caller.memory, caller.env);
                Ok(0)
            }
            op::RESET | op::RESET_CONT => {
                let bytes: [u8; 2] = caller.fetch(argument)?;
                self.require_self(bytes.u16_at(0))?;
                // A reset here is never interrupted, so there is none to go on with.
                if command == op::RESET_CONT {
                    return Err(Errno::Busy);
                }
                for port in 1..self.ports.valid() {
                    let _ = self.close_port(port, caller.memory, caller.env);
                }
                self.fifo = None;
                Ok(0)
            }
            op::INIT_CONTROL => self.init_control(caller, argument),
            op::EXPAND_ARRAY => self.expand_array(caller, argument),
            op::SET_PRIORITY => {
                let bytes: [u8; 8] = caller.fetch(argument)?;
                self.set_priority(bytes.u32_at(0), bytes.u32_at(4))
            }
            _ => Err(Errno::NoSys),
        }
    }

    /// Allocates a port of the guest that leads to a service of the VMM's side.
    pub fn alloc_service_port<M: GuestMemory>(
        &mut self,
        service: ServiceId,
        memory: &M,
    ) -> Result<u32, Errno> {
        self.allocate_port(Binding::Service(service), 0, memory)
    }

    /// Makes a service's port pending in the guest. `Inval`: the guest has closed the port.
    pub fn notify_guest<M: GuestMemory, E: Env>(
        &mut self,
        port: u32,
        memory: &M,
        env: &mut E,
    ) -> Result<(), Errno> {
        match self.ports.get(port) {
            Some(&Port {
                binding: Binding::Service(_),
                vcpu,
            }) => {
                self.set_pending(port, vcpu, memory, env);
                Ok(())
            }
            _ => Err(Errno::Inval),
        }
    }

    /// Raises a VIRQ: a per-vCPU one at `vcpu`, a global one where its port is bound. Nothing
    /// happens if the guest has not bound it.
    pub fn raise_virq<M: GuestMemory, E: Env>(
        &mut self,
        vcpu: u32,
        virq: u32,
        memory: &M,
        env: &mut E,
    ) {
        let owner = if virq_is_global(virq) == Some(true) {
            0
        } else {
            vcpu
        };
        let port = self
            .vcpus
            .get(owner as usize)
            .and_then(|state| state.virqs.get(virq as usize))
            .copied()
            .unwrap_or(0);
        if let (1.., Some(&Port { vcpu: target, .. })) = (port, self.ports.get(port)) {
            self.set_pending(port, target, memory, env);
        }
    }

    pub(crate) fn allocate_port<M: GuestMemory>(
        &mut self,
        binding: Binding,
        vcpu: u32,
        memory: &M,
    ) -> Result<u32, Errno> {
        let limit = match &self.fifo {
            Some(_) => MAX_PORTS,
            None => Layout::of(self.width).ports(),
        };
        let fifo = self.fifo.as_deref();
        let busy = |port| fifo.is_some_and(|fifo| fifo.is_busy(port, memory));
        let port = self.ports.allocate(limit, Port { binding, vcpu }, busy)?;
        if let Some(fifo) = &mut self.fifo {
            fifo.allocated(port);
        }
        Ok(port)
    }

    fn resolve(&self, domid: u16) -> u16 {
        if domid == DOMID_SELF {
            self.config.domid
        } else {
            domid
        }
    }

    #[inline(always)]
    fn send_event<M: GuestMemory, E: Env>(&mut self, port: u32, memory: &M, env: &mut E) -> Reply {
        let Some(&Port { binding, vcpu }) = self.ports.get(port) else {
            return Err(Errno::Inval);
        };
        match binding {
            Binding::Ipi => self.set_pending_inline(port, vcpu, memory, env),
            Binding::Service(service) => env.service_event(service),
            Binding::Channel { link, channel, .. } => env.channel_event(link, channel),
            Binding::Loop { peer } => {
                if let Some(&Port { vcpu, .. }) = self.ports.get(peer) {
                    self.set_pending(peer, vcpu, memory, env);
                }
            }
            // Nobody is there yet: dropped in silence.
            Binding::Unbound { .. } => {}
            Binding::Free | Binding::Reserved | Binding::Virq(_) | Binding::Pirq(_) => {
                return Err(Errno::Inval);
            }
        }
        Ok(0)
    }

    fn bind_loop<M: GuestMemory, E: Env>(
        &mut self,
        remote: u32,
        memory: &M,
        env: &mut E,
    ) -> Result<u32, Errno> {
        let own = self.config.domid;
        // Xen allocates the local port before it looks at the remote one, so a full table answers
        // first, and a remote port equal to the new one is not unbound.
        let local = self.allocate_port(Binding::Loop { peer: remote }, 0, memory)?;
        match self.ports.get_mut(remote) {
            Some(port) if port.binding == (Binding::Unbound { remote: own }) => {
                port.binding = Binding::Loop { peer: local };
            }
            _ => {
                self.ports.release(local);
                return Err(Errno::Inval);
            }
        }
        // A notification sent before the ports were bound must not be lost.
        self.set_pending(local, 0, memory, env);
        Ok(local)
    }

    fn bind_virq<M: GuestMemory>(
        &mut self,
        virq: u32,
        vcpu: u32,
        memory: &M,
    ) -> Result<u32, Errno> {
        let global = virq_is_global(virq).ok_or(Errno::Inval)?;
        if global && vcpu != 0 {
            return Err(Errno::Inval);
        }
        let state = self.vcpus.get(vcpu as usize).ok_or(Errno::NoEnt)?;
        if state.virqs.get(virq as usize).is_none_or(|&port| port != 0) {
            return Err(Errno::Exist);
        }
        let port = self.allocate_port(Binding::Virq(virq), vcpu, memory)?;
        self.set_virq_port(vcpu, virq, port);
        Ok(port)
    }

    /// A domain without devices binds numbers too, which then mean nothing.
    fn bind_pirq<M: GuestMemory>(&mut self, pirq: u32, memory: &M) -> Result<u32, Errno> {
        if pirq >= PIRQS {
            return Err(Errno::Inval);
        }
        let binding = Binding::Pirq(pirq);
        if self.ports.is_bound(binding) {
            return Err(Errno::Exist);
        }
        self.allocate_port(binding, 0, memory)
    }

    fn set_virq_port(&mut self, vcpu: u32, virq: u32, port: u32) {
        if let Some(slot) = self
            .vcpus
            .get_mut(vcpu as usize)
            .and_then(|state| state.virqs.get_mut(virq as usize))
        {
            *slot = port;
        }
    }

    fn close_port<M: GuestMemory, E: Env>(
        &mut self,
        port: u32,
        memory: &M,
        env: &mut E,
    ) -> Result<(), Errno> {
        let &Port { binding, vcpu } = self.ports.get(port).ok_or(Errno::Inval)?;
        match binding {
            Binding::Free | Binding::Reserved => return Err(Errno::Inval),
            Binding::Virq(virq) => {
                let owner = if virq_is_global(virq) == Some(true) {
                    0
                } else {
                    vcpu
                };
                self.set_virq_port(owner, virq, 0);
            }
            Binding::Loop { peer } => {
                let remote = self.config.domid;
                if let Some(other) = self.ports.get_mut(peer) {
                    other.binding = Binding::Unbound { remote };
                }
            }
            Binding::Channel { link, channel, .. } => env.channel_closed(link, channel),
            Binding::Unbound { .. } | Binding::Service(_) | Binding::Pirq(_) | Binding::Ipi => {}
        }
        self.ports.release(port);
        self.forget_pending(port, memory);
        Ok(())
    }

    fn port_status<M: GuestMemory, E: Env>(
        &mut self,
        caller: &mut Caller<M, E>,
        argument: u64,
    ) -> Reply {
        let mut bytes: [u8; 24] = caller.fetch(argument)?;
        if bytes.u16_at(0) == SYSTEM && bytes.u32_at(4) >= BUCKET {
            // As of a domain 0 with few ports.
            return Err(Errno::Inval);
        }
        self.require_self(bytes.u16_at(0))?;
        let port = bytes.u32_at(4);
        let &Port { binding, vcpu } = self.ports.get(port).ok_or(Errno::Inval)?;
        // EVTCHNSTAT_*.
        let status: u32 = match binding {
            Binding::Free | Binding::Reserved => 0,
            Binding::Unbound { remote } => {
                bytes.put(16, &remote.to_le_bytes());
                1
            }
            Binding::Loop { peer } => {
                bytes.put(16, &self.config.domid.to_le_bytes());
                bytes.put(20, &peer.to_le_bytes());
                2
            }
            // Services sit where Xen's guests expect dom0.
            Binding::Service(service) => {
                bytes.put(16, &0u16.to_le_bytes());
                bytes.put(20, &service.0.to_le_bytes());
                2
            }
            Binding::Channel { remote, .. } => {
                bytes.put(16, &remote.to_le_bytes());
                bytes.put(20, &self.ports.far(port).to_le_bytes());
                2
            }
            Binding::Pirq(pirq) => {
                bytes.put(16, &pirq.to_le_bytes());
                3
            }
            Binding::Virq(virq) => {
                bytes.put(16, &virq.to_le_bytes());
                4
            }
            Binding::Ipi => 5,
        };
        bytes.put(8, &status.to_le_bytes());
        bytes.put(12, &vcpu.to_le_bytes());
        caller.write(argument, &bytes).map(|()| 0)
    }

    fn bind_vcpu(&mut self, port: u32, vcpu: u32) -> Result<(), Errno> {
        self.vcpus.get(vcpu as usize).ok_or(Errno::NoEnt)?;
        let entry = self.ports.get_mut(port).ok_or(Errno::Inval)?;
        match entry.binding {
            Binding::Virq(virq) if virq_is_global(virq) != Some(true) => Err(Errno::Inval),
            Binding::Virq(_)
            | Binding::Unbound { .. }
            | Binding::Loop { .. }
            | Binding::Channel { .. }
            | Binding::Pirq(_)
            | Binding::Service(_) => {
                entry.vcpu = vcpu;
                Ok(())
            }
            Binding::Free | Binding::Reserved | Binding::Ipi => Err(Errno::Inval),
        }
    }
}
