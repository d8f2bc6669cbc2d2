//! Interprocessor interrupts: what the interrupt command register asks for, and who is meant.

use super::Mode;

/// Who is to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// One APIC id, or all with `u32::MAX`.
    Physical(u32),
    /// A logical destination in the sender's mode.
    Logical(u32),
    /// The sender.
    OnlySelf,
    /// Everybody.
    All,
    /// Everybody but the sender.
    AllButSelf,
}

/// What is to be delivered (SDM vol. 3, 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// This vector.
    Fixed(u8),
    /// This vector, to one of those addressed.
    LowestPriority(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// Reset to the wait-for-SIPI state.
    Init,
    /// Start in real mode at `vector << 12`.
    Startup(u8),
}

/// An interrupt on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// To whom.
    pub destination: Destination,
    /// What.
    pub delivery: Delivery,
    /// APIC id of the sender.
    pub sender: u32,
    /// The sender is in x2APIC mode: the broadcast id is 32 bits wide.
    pub x2apic: bool,
}

impl Ipi {
    /// Reads an interrupt command; `None` for commands that send nothing: SMI (there is no SMM),
    /// reserved modes, and the INIT level de-assert.
    pub fn from_icr(low: u32, destination: u32, x2apic: bool, sender: u32) -> Option<Ipi> {
        let vector = low as u8;
        let delivery = match low >> 8 & 7 {
            0 => Delivery::Fixed(vector),
            1 => Delivery::LowestPriority(vector),
            4 => Delivery::Nmi,
            // Level-triggered with the level clear: the old synchronising de-assert.
            5 if low & 0xc000 == 0x8000 => return None,
            5 => Delivery::Init,
            6 => Delivery::Startup(vector),
            _ => return None,
        };
        let destination = match low >> 18 & 3 {
            0 if low & 1 << 11 != 0 => Destination::Logical(destination),
            0 if !x2apic && destination == 0xff => Destination::Physical(u32::MAX),
            0 => Destination::Physical(destination),
            1 => Destination::OnlySelf,
            2 => Destination::All,
            _ => Destination::AllButSelf,
        };
        Some(Ipi {
            destination,
            delivery,
            sender,
            x2apic,
        })
    }
}

/// How an APIC is addressed, in one word, so that its owner can publish it to senders atomically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route(u64);

impl Route {
    const X2APIC: u64 = 1 << 48;
    const ENABLED: u64 = 1 << 49;
    const FLAT: u64 = 1 << 50;

    /// From the registers that decide it. Ids beyond 32 bits do not exist; the logical id of
    /// x2APIC mode follows from the id.
    pub fn new(id: u32, mode: Mode, svr: u32, ldr: u32, dfr: u32) -> Route {
        let mut word = u64::from(id) | u64::from(ldr >> 24) << 32;
        if mode == Mode::X2Apic {
            word |= Self::X2APIC;
        }
        if mode != Mode::Disabled && svr & super::SVR_ENABLE != 0 {
            word |= Self::ENABLED;
        }
        if dfr >> 28 == 0xf {
            word |= Self::FLAT;
        }
        Route(word)
    }

    /// The word to publish.
    pub fn to_word(self) -> u64 {
        self.0
    }

    /// A published word.
    pub fn from_word(word: u64) -> Route {
        Route(word)
    }

    /// The APIC id.
    pub fn id(self) -> u32 {
        self.0 as u32
    }

    fn logical(self, destination: u32) -> bool {
        if self.0 & Self::X2APIC != 0 {
            let id = self.id();
            return destination == u32::MAX
                || (destination >> 16 == id >> 4 && destination & 1 << (id & 15) != 0);
        }
        let (mine, wanted) = ((self.0 >> 32) as u8, destination as u8);
        if self.0 & Self::FLAT != 0 {
            mine & wanted != 0
        } else {
            wanted == 0xff || (mine >> 4 == wanted >> 4 && mine & wanted & 0xf != 0)
        }
    }

    /// True if the interrupt is for this APIC. A disabled APIC still takes NMI, INIT and SIPI (SDM
    /// vol. 3, 11.4.7.2).
    pub fn accepts(self, ipi: &Ipi) -> bool {
        let id = self.id();
        let addressed = match ipi.destination {
            Destination::Physical(u32::MAX) => true,
            Destination::Physical(wanted) => wanted == id,
            Destination::Logical(wanted) => self.logical(wanted),
            Destination::OnlySelf => ipi.sender == id,
            Destination::All => true,
            Destination::AllButSelf => ipi.sender != id,
        };
        addressed
            && (self.0 & Self::ENABLED != 0
                || matches!(
                    ipi.delivery,
                    Delivery::Nmi | Delivery::Init | Delivery::Startup(_)
                ))
    }
}
