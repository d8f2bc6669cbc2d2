//! PCI configuration space by ports 0xcf8 and 0xcfc (PCI specification 3.0, 3.2.2.3.2). At boot only:
//! afterwards these ports are a component's.

use x86_64::instructions::port::Port;

fn select(function: u16, register: u8) -> Port<u32> {
    let address = 1 << 31 | u32::from(function) << 8 | u32::from(register & !3);
    // SAFETY: the address register only selects.
    unsafe { Port::new(0xcf8).write(address) };
    Port::new(0xcfc)
}

fn read(function: u16, register: u8) -> u32 {
    // SAFETY: the registers read below have no side effects.
    unsafe { select(function, register).read() }
}

/// The bus behind a bridge.
pub fn secondary_bus(bridge: u16) -> Option<u8> {
    let header = read(bridge, 0x0c) >> 16 & 0x7f;
    (header == 1).then(|| (read(bridge, 0x18) >> 8) as u8)
}

/// Lets a function that the core drives itself interrupt as `vector` on CPU `target`, by MSI. False if
/// it cannot (PCI specification 3.0, 6.8.1).
pub fn enable_msi(function: u16, target: u32, vector: u8) -> bool {
    let mut at = read(function, 0x34) as u8;
    for _ in 0..48 {
        let head = read(function, at);
        if at == 0 || head == u32::MAX {
            return false;
        }
        if head as u8 != 5 {
            at = (head >> 8) as u8;
            continue;
        }
        let wide = head & 1 << 23 != 0;
        let data = if wide { at + 12 } else { at + 8 };
        let address = 0xfee0_0000 | (target & 0xff) << 12;
        let enabled = head & !(7 << 20) | 1 << 16;
        // SAFETY: an IOMMU's own MSI capability; the vector is the core's.
        unsafe {
            select(function, at + 4).write(address);
            if wide {
                select(function, at + 8).write(0);
            }
            select(function, data).write(vector.into());
            select(function, at).write(enabled);
        }
        return true;
    }
    false
}
