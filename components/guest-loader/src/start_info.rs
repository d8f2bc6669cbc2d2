//! `hvm_start_info` and what it points to (Xen public/arch-x86/hvm/start_info.h, version 1).

use crate::layout::Range;
use alloc::vec::Vec;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const HEADER: u64 = 56;
const MODULE: u64 = 32;
const MAP_ENTRY: u64 = 24;

/// What the guest is told.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Command line, without a final zero.
    pub cmdline: &'a [u8],
    /// Guest-physical address and bytes of the initial RAM disk.
    pub initrd: Option<(u64, u64)>,
    /// Guest-physical address of the RSDP.
    pub rsdp: u64,
    /// The memory map.
    pub map: &'a [Range],
}

/// Bytes that [`encode`] makes.
pub fn size(facts: &Facts<'_>) -> u64 {
    let modules = if facts.initrd.is_some() { MODULE } else { 0 };
    HEADER + modules + MAP_ENTRY * facts.map.len() as u64 + facts.cmdline.len() as u64 + 1
}

/// The structure for guest-physical address `at`, followed by module list, map and command line.
pub fn encode(facts: &Facts<'_>, at: u64) -> Vec<u8> {
    let modules = at + HEADER;
    let map = modules + if facts.initrd.is_some() { MODULE } else { 0 };
    let cmdline = map + MAP_ENTRY * facts.map.len() as u64;
    let mut out = Vec::new();
    let word = |out: &mut Vec<u8>, value: u32| out.extend_from_slice(&value.to_le_bytes());
    let long = |out: &mut Vec<u8>, value: u64| out.extend_from_slice(&value.to_le_bytes());
    word(&mut out, MAGIC);
    word(&mut out, VERSION);
    word(&mut out, 0); // flags: neither privileged nor initial domain
    word(&mut out, facts.initrd.is_some() as u32);
    long(&mut out, if facts.initrd.is_some() { modules } else { 0 });
    long(&mut out, cmdline);
    long(&mut out, facts.rsdp);
    long(&mut out, map);
    word(&mut out, facts.map.len() as u32);
    word(&mut out, 0);
    if let Some((address, bytes)) = facts.initrd {
        for value in [address, bytes, 0, 0] {
            long(&mut out, value);
        }
    }
    for range in facts.map {
        long(&mut out, range.start);
        long(&mut out, range.bytes);
        word(&mut out, range.kind as u32);
        word(&mut out, 0);
    }
    out.extend_from_slice(facts.cmdline);
    out.push(0);
    out
}
