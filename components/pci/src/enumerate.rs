//! Which functions there are, and who is to have which.

use alloc::vec;
use alloc::vec::Vec;

use idl::manifest::Selector;

use crate::config::{Config, Id};

/// A function as the bus shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub id: Id,
    /// Who made it.
    pub vendor: u16,
    /// What it is.
    pub device: u16,
    /// Class, subclass and programming interface.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Layout of its header: 0 for a device, 1 for a bridge.
    pub header: u8,
}

fn look(config: &mut impl Config, id: Id) -> Option<(Found, bool)> {
    let word = config.read(id, 0);
    let vendor = word as u16;
    // All ones: nobody there. Zero is no vendor either.
    if vendor == 0xffff || vendor == 0 {
        return None;
    }
    let class = config.read(id, 8);
    let header = config.read(id, 12) >> 16;
    let found = Found {
        id,
        vendor,
        device: (word >> 16) as u16,
        class: class >> 8,
        revision: class as u8,
        header: header as u8 & 0x7f,
    };
    Some((found, header & 0x80 != 0))
}

/// Every function of the buses for which `exists` says that configuration space is there: bus 0 and
/// what bridges lead to, as firmware numbered it. Each bus is looked at once, whatever bridges say.
pub fn functions(config: &mut impl Config, exists: impl Fn(u8) -> bool) -> Vec<Found> {
    let mut found = Vec::new();
    let mut seen = [false; 256];
    let mut ask = vec![0u8];
    while let Some(bus) = ask.pop() {
        let new = seen.get_mut(usize::from(bus));
        if !exists(bus) || new.is_none_or(|seen| core::mem::replace(seen, true)) {
            continue;
        }
        for device in 0..32 {
            let Some((first, many)) = look(config, Id::new(bus, device, 0)) else {
                continue;
            };
            let others = if many { 1..8 } else { 1..1 };
            let others = others.filter_map(|number| look(config, Id::new(bus, device, number)));
            let all: Vec<Found> = core::iter::once(first)
                .chain(others.map(|(found, _)| found).collect::<Vec<_>>())
                .collect();
            for one in all {
                if one.header == 1 {
                    // Secondary bus (PCI-to-PCI Bridge 1.2, 3.2.5.4).
                    ask.push((config.read(one.id, 0x18) >> 8) as u8);
                }
                found.push(one);
            }
        }
    }
    found.sort_unstable_by_key(|found| found.id);
    found
}

/// Which of `functions` each selector gets, in order; no function twice. Bridges are nobody's.
pub fn assign(functions: &[Found], selectors: &[Selector]) -> Vec<Option<usize>> {
    let mut taken = vec![false; functions.len()];
    selectors
        .iter()
        .map(|selector| {
            let wanted = |found: &Found| match *selector {
                Selector::Id { vendor, device } => found.vendor == vendor && found.device == device,
                Selector::Class { code } => found.class == code,
                Selector::Slot { id } => found.id.0 == id,
            };
            let index = functions
                .iter()
                .zip(&taken)
                .position(|(found, taken)| found.header == 0 && !taken && wanted(found))?;
            *taken.get_mut(index)? = true;
            Some(index)
        })
        .collect()
}
