//! The table of a domain's ports: what is bound to each, and which are free. Used by `event.rs`.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::env::{LinkId, ServiceId};
use crate::errno::Errno;

/// Ports of a domain: as many as the native 2-level ABI can name. Domains with queues get no more.
pub(crate) const MAX_PORTS: u32 = 4096;
/// Ports become valid by the bucket, as Xen's do (`EVTCHNS_PER_BUCKET`).
pub(crate) const BUCKET: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    Free,
    /// Port 0, so that zero never names a port.
    Reserved,
    Unbound {
        remote: u16,
    },
    /// Bound to another port of this domain.
    Loop {
        peer: u32,
    },
    Service(ServiceId),
    /// Bound to a port of another domain, or to a backend that speaks as domain 0.
    Channel {
        link: LinkId,
        channel: u16,
        remote: u16,
    },
    Virq(u32),
    /// A physical interrupt's number; nothing is behind it.
    Pirq(u32),
    Ipi,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Port {
    pub binding: Binding,
    pub vcpu: u32,
}

const FREE: Port = Port {
    binding: Binding::Free,
    vcpu: 0,
};

#[derive(Debug)]
pub(crate) struct Ports {
    table: Vec<Port>,
    /// Ports below are valid: they, or a later port of their bucket, were allocated once.
    valid: u32,
    /// No port below is free.
    lowest_free: u32,
    /// What the other end of a channel calls it: the other domain's port, or a backend's number of the
    /// channel. Seldom asked for, so not in the table.
    far: BTreeMap<u32, u32>,
}

impl Ports {
    pub fn new() -> Ports {
        let mut table = vec![FREE; MAX_PORTS as usize];
        table[0].binding = Binding::Reserved;
        Ports {
            table,
            valid: BUCKET,
            lowest_free: 1,
            far: BTreeMap::new(),
        }
    }

    pub fn get(&self, port: u32) -> Option<&Port> {
        if port < self.valid {
            self.table.get(port as usize)
        } else {
            None
        }
    }

    pub fn get_mut(&mut self, port: u32) -> Option<&mut Port> {
        if port < self.valid {
            self.table.get_mut(port as usize)
        } else {
            None
        }
    }

    /// Gives the lowest port below `limit` that is free and not `busy`: still in a queue of the guest's.
    pub fn allocate(
        &mut self,
        limit: u32,
        port: Port,
        busy: impl Fn(u32) -> bool,
    ) -> Result<u32, Errno> {
        let mut passed = None;
        for number in self.lowest_free..limit {
            let valid = number < self.valid;
            let Some(place) = self.table.get_mut(number as usize) else {
                break;
            };
            if place.binding != Binding::Free {
                continue;
            }
            if valid && busy(number) {
                passed.get_or_insert(number);
                continue;
            }
            *place = port;
            self.lowest_free = passed.unwrap_or(number + 1);
            self.valid = self.valid.max((number / BUCKET + 1) * BUCKET);
            return Ok(number);
        }
        Err(Errno::NoSpc)
    }

    /// Whether a port has this binding.
    pub fn is_bound(&self, binding: Binding) -> bool {
        self.table.iter().any(|port| port.binding == binding)
    }

    pub fn release(&mut self, port: u32) {
        if let Some(entry) = self.get_mut(port) {
            *entry = FREE;
            self.far.remove(&port);
            self.lowest_free = self.lowest_free.min(port);
        }
    }

    /// What the other end of a channel calls it.
    pub fn far(&self, port: u32) -> u32 {
        self.far.get(&port).copied().unwrap_or(0)
    }

    /// Notes that. It is forgotten with the port.
    pub fn set_far(&mut self, port: u32, far: u32) {
        self.far.insert(port, far);
    }

    /// The first port that was never given out, nor its neighbours.
    pub fn valid(&self) -> u32 {
        self.valid
    }
}
