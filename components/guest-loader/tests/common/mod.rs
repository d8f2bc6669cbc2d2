//! Kernels made for the tests.

const MIB: u64 = 1 << 20;

/// A 64-bit ELF kernel with one segment at 16 MiB and a PVH note.
pub fn elf_kernel(memory: u64) -> Vec<u8> {
    let mut file = vec![0u8; 0x1000];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    put(58, &64u16.to_le_bytes());
    let header = |kind: u32, offset: u64, address: u64, bytes: u64, memory: u64, align: u64| {
        let mut h = Vec::new();
        h.extend(kind.to_le_bytes());
        h.extend(7u32.to_le_bytes());
        for value in [offset, address, address, bytes, memory, align] {
            h.extend(value.to_le_bytes());
        }
        h
    };
    put(64, &header(1, 0x800, 16 * MIB, 0x100, memory, 4096));
    put(120, &header(4, 0x400, 0, 20, 20, 4));
    put(0x400, &4u32.to_le_bytes());
    put(0x404, &4u32.to_le_bytes());
    put(0x408, &18u32.to_le_bytes());
    put(0x40c, b"Xen\0");
    put(0x410, &0x0100_0010u32.to_le_bytes());
    put(0x800, &[0xab; 0x100]);
    // Calls, which the x86 filter of xz turns.
    put(0xc00, &[0xe8, 0x10, 0, 0, 0, 0x90, 0x90, 0x90].repeat(64));
    file
}

/// A Linux boot image with this payload.
pub fn bzimage(payload: &[u8], unpacked: u32) -> Vec<u8> {
    let mut file = vec![0u8; 1024];
    file[0x1f1] = 1;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
    file.extend(payload);
    file.extend(unpacked.to_le_bytes());
    file
}
