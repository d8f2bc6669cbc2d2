//! What a component's capability space is filled with before it runs: in the order of the start
//! contract (`sdk::startup`), told to it in its start-up pages, and nothing else.

use idl::{heapless, name};
use sdk::abi::Kind;
use sdk::prelude::*;
use sdk::startup::{DmaRight, LineRight, PeersStart, PortsRight, Serve, Startup, Wire};

use super::instance::{During, Order, StartError};
use super::system::Tools;

/// Slots of the new component's space, handed out in order.
pub struct Wiring {
    /// Whose.
    pub space: Cap<cap::CapSpace>,
    /// The next one.
    pub next: u32,
}

impl Wiring {
    /// A copy in the next slot.
    pub fn give<K>(&mut self, what: Cap<K>, rights: Rights, badge: u64) -> Result<u32, Status> {
        let slot = self.next;
        self.give_at(what, slot, rights, badge)?;
        self.next += 1;
        Ok(slot)
    }

    /// What the core finds in the space ends where the list of what was given ends.
    pub fn nothing_else(&self) -> Result<(), StartError> {
        let found = (self.next..).map_while(|slot| inspect(self.space, slot).ok());
        match found.filter(|slot| slot.kind != Kind::Null).count() {
            0 => Ok(()),
            _ => Err(StartError::TooMany("capabilities")),
        }
    }

    /// A copy in this slot.
    pub fn give_at<K>(
        &self,
        what: Cap<K>,
        slot: u32,
        rights: Rights,
        badge: u64,
    ) -> Result<(), Status> {
        what.copy_to(CopyTo {
            space: self.space,
            slot,
            rights,
            badge,
            order: if badge == 0 {
                0
            } else {
                sdk::abi::cap::PRIORITY_MAX
            },
        })
    }
}

/// What the manifest gives: calls, endpoints, ports, lines.
pub fn wire(
    tools: &Tools,
    wiring: &mut Wiring,
    order: &Order<'_>,
    facts: &mut Startup,
) -> Result<(), StartError> {
    for connection in order.connections {
        let slot = wiring
            .give(connection.endpoint, connection.rights, connection.badge)
            .during("wire it")?;
        let wire = Wire {
            interface: name(&connection.interface),
            server: name(&connection.server),
            slot,
        };
        facts
            .wires
            .push(wire)
            .map_err(|_| StartError::TooMany("needs"))?;
    }
    for (interface, endpoint) in order.serves {
        let serve = Serve {
            interface: name(interface),
            slot: wiring
                .give(*endpoint, Rights::RECEIVE.or(Rights::GRANT), 0)
                .during("wire it")?,
        };
        facts
            .serves
            .push(serve)
            .map_err(|_| StartError::TooMany("interfaces"))?;
    }
    for ports in &order.component.ports {
        let range = u64::from(ports.first) | u64::from(ports.count) << 32;
        let right = PortsRight {
            first: ports.first,
            count: ports.count,
            slot: wiring
                .give(tools.ports, Rights::ALL, range)
                .during("give it its ports")?,
        };
        facts
            .ports
            .push(right)
            .map_err(|_| StartError::TooMany("port ranges"))?;
    }
    for &line in &order.component.interrupts {
        let right = LineRight {
            line,
            slot: wiring
                .give(tools.interrupts, Rights::ALL, u64::from(line) | 1 << 32)
                .during("give it its interrupts")?,
        };
        facts
            .lines
            .push(right)
            .map_err(|_| StartError::TooMany("interrupts"))?;
    }
    Ok(())
}

/// Copies of frames for devices, in consecutive slots; its own place in them if that is told.
pub fn give_dma(
    wiring: &mut Wiring,
    right: &DmaRight,
    tell_bus: bool,
) -> Result<DmaRight, StartError> {
    let given = DmaRight {
        slot: if right.count == 0 { 0 } else { wiring.next },
        count: right.count,
        bus: if tell_bus { right.bus } else { 0 },
    };
    for index in 0..right.count {
        let frame = Cap::<cap::Frame>::new(right.slot + index);
        wiring
            .give(frame, Rights::READ.or(Rights::WRITE), 0)
            .during("give it memory for its device")?;
    }
    Ok(given)
}

/// What a VMM serves interface `peer` with.
pub fn give_peers(
    wiring: &mut Wiring,
    endpoint: Cap<cap::Endpoint>,
    pages: &[Cap<cap::Frame>],
) -> Result<PeersStart, Status> {
    let mut start = PeersStart {
        endpoint: wiring.give(endpoint, Rights::RECEIVE.or(Rights::GRANT), 0)?,
        pages: heapless::Vec::new(),
    };
    for page in pages {
        let slot = wiring.give(*page, Rights::READ.or(Rights::WRITE), 0)?;
        // There are no more callers than places.
        let _ = start.pages.push(slot);
    }
    Ok(start)
}
