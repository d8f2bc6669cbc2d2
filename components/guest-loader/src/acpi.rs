//! The ACPI tables of a PVH guest (ACPI 6.4): a hardware-reduced machine with local APICs and
//! nothing else. There is no fixed hardware to describe; power off and reboot are hypercalls.

use crate::layout::{LAPIC, apic_id};
use alloc::vec::Vec;

const HEADER: usize = 36;
/// FADT boot architecture flags (5.2.9.3): no VGA, no CMOS RTC; no legacy devices, no 8042.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// FADT flags (table 5.10): WBINVD works, power and sleep buttons are not fixed hardware,
/// hardware-reduced ACPI.
const FADT_FLAGS: u32 = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 20;

fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(signature);
    out.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    out.push(revision);
    out.push(0); // checksum
    out.extend_from_slice(b"MICROV");
    out.extend_from_slice(b"PVHGUEST");
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(b"MVSR");
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(body);
    seal(&mut out, 9);
    out
}

/// Makes the bytes sum to zero by the one at `at`.
fn seal(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}

fn madt(vcpus: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&(LAPIC as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes()); // no 8259s
    for vcpu in 0..vcpus {
        let id = apic_id(vcpu);
        if id < 255 {
            // Processor local APIC (5.2.12.2): uid, id, enabled.
            body.extend_from_slice(&[0, 8, vcpu as u8, id as u8, 1, 0, 0, 0]);
        } else {
            // Processor local x2APIC (5.2.12.12).
            body.extend_from_slice(&[9, 16, 0, 0]);
            for value in [id, 1, vcpu] {
                body.extend_from_slice(&value.to_le_bytes());
            }
        }
    }
    table(b"APIC", 5, &body)
}

fn fadt(dsdt: u64) -> Vec<u8> {
    const BYTES: usize = 276;
    let mut body = [0u8; BYTES - HEADER];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = body.get_mut(at - HEADER..at - HEADER + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(40, &(dsdt as u32).to_le_bytes());
    put(109, &BOOT_ARCH.to_le_bytes());
    put(112, &FADT_FLAGS.to_le_bytes());
    put(131, &[4]); // minor version
    put(140, &dsdt.to_le_bytes());
    put(268, b"microvsr"); // hypervisor vendor identity
    table(b"FACP", 6, &body)
}

/// All tables for guest-physical address `at` on; the RSDP comes first.
pub fn tables(vcpus: u32, at: u64) -> Vec<u8> {
    const RSDP: usize = 36;
    let align = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(16), 0);
    let mut out = alloc::vec![0; RSDP];
    align(&mut out);
    let mut add = |bytes: &[u8]| {
        align(&mut out);
        let address = at + out.len() as u64;
        out.extend_from_slice(bytes);
        address
    };
    // An empty definition block: processors are listed in the MADT.
    let dsdt = add(&table(b"DSDT", 2, &[]));
    let fadt = add(&fadt(dsdt));
    let madt = add(&madt(vcpus));
    let mut entries = Vec::new();
    for address in [fadt, madt] {
        entries.extend_from_slice(&address.to_le_bytes());
    }
    let xsdt = add(&table(b"XSDT", 1, &entries));
    let mut rsdp = Vec::new();
    rsdp.extend_from_slice(b"RSD PTR \0MICROV\x02");
    rsdp.extend_from_slice(&0u32.to_le_bytes());
    rsdp.extend_from_slice(&(RSDP as u32).to_le_bytes());
    rsdp.extend_from_slice(&xsdt.to_le_bytes());
    rsdp.extend_from_slice(&[0; 4]);
    if let Some(first) = rsdp.get_mut(..20) {
        seal(first, 8);
    }
    seal(&mut rsdp, 32);
    if let Some(place) = out.get_mut(..rsdp.len()) {
        place.copy_from_slice(&rsdp);
    }
    out
}
