//! A tiny VMM for Linux's KVM and its guest, which measures what exits cost there, for the comparison
//! (`cargo suite bench --against xen`): a statically linked program, the only one of its machine but busybox.
//!
//! Prints the lines of `compare-guest`, for the rows that have a counterpart. The guest is real-mode code, one
//! piece for each row; it counts as `compare-guest` does, in ticks of the TSC, which nothing intercepts. KVM's
//! interface is that of Linux's Documentation/virt/kvm/api.rst and include/uapi/linux/kvm.h.

use std::arch::global_asm;
use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd};

use libc::c_ulong;
use measure::SAMPLES;

/// `KVM_CREATE_VM`, `_GET_VCPU_MMAP_SIZE`, `_CREATE_VCPU`, `_RUN`: requests without a structure.
const CREATE_VM: c_ulong = 0xae01;
const MMAP_SIZE: c_ulong = 0xae04;
const CREATE_VCPU: c_ulong = 0xae41;
const RUN: c_ulong = 0xae80;
/// `KVM_GET_SUPPORTED_CPUID`, `_SET_CPUID2` (`struct kvm_cpuid2`).
const SUPPORTED_CPUID: c_ulong = 0xc008_ae05;
const SET_CPUID: c_ulong = 0x4008_ae90;
/// `KVM_SET_USER_MEMORY_REGION`.
const SET_MEMORY: c_ulong = 0x4020_ae46;
/// `KVM_SET_REGS`, `_GET_SREGS`, `_SET_SREGS`.
const SET_REGISTERS: c_ulong = 0x4090_ae82;
const GET_SPECIAL: c_ulong = 0x8138_ae83;
const SET_SPECIAL: c_ulong = 0x4138_ae84;

/// `KVM_EXIT_IO`, `_HLT`, `_INTR`.
const EXIT_IO: u32 = 2;
const EXIT_HLT: u32 = 5;
const EXIT_INTR: u32 = 10;

/// Entries of `struct kvm_cpuid2` that there is room for, and bytes of one.
const LEAVES: usize = 128;
const LEAF: usize = 40;
/// Bytes of the guest's memory, where its code is, and where it writes its samples.
const MEMORY: usize = 64 << 10;
const CODE: usize = 0x1000;
const FOUND: usize = 0x2000;
/// The port by which the guest says that it is done; the other one is nobody's.
const DONE: u16 = 0xf5;

/// A piece of the guest's code: measures `$body`, [`SAMPLES`] times. `measure::ticks` has the same LFENCE.
macro_rules! row {
    ($name:literal, $body:literal) => {
        global_asm!(
            ".section .rodata",
            ".code16",
            concat!(".global kvm_", $name),
            concat!("kvm_", $name, ":"),
            "mov si, {samples}",
            "mov di, {found}",
            "2:",
            "lfence",
            "rdtsc",
            "mov ebp, eax",
            $body,
            "lfence",
            "rdtsc",
            "sub eax, ebp",
            "mov dword ptr [di], eax",
            "add di, 4",
            "dec si",
            "jnz 2b",
            "mov dx, {done}",
            "out dx, al",
            concat!(".global kvm_", $name, "_end"),
            concat!("kvm_", $name, "_end:"),
            ".code64",
            ".text",
            samples = const SAMPLES,
            found = const FOUND,
            done = const DONE,
        );
    };
}

row!("empty", "");
row!("cpuid", "xor eax, eax; xor ecx, ecx; cpuid");
row!("rdmsr", "mov ecx, 0x1b; rdmsr");
row!("port_out", "mov dx, 0x2f0; out dx, al");
row!("port_in", "mov dx, 0x2f0; in al, dx");
row!("hlt", "hlt");

unsafe extern "C" {
    static kvm_empty: u8;
    static kvm_empty_end: u8;
    static kvm_cpuid: u8;
    static kvm_cpuid_end: u8;
    static kvm_rdmsr: u8;
    static kvm_rdmsr_end: u8;
    static kvm_port_out: u8;
    static kvm_port_out_end: u8;
    static kvm_port_in: u8;
    static kvm_port_in_end: u8;
    static kvm_hlt: u8;
    static kvm_hlt_end: u8;
}

/// Rows by name, and where their code is.
fn rows() -> [(&'static str, *const u8, *const u8); 5] {
    [
        ("cpuid", &raw const kvm_cpuid, &raw const kvm_cpuid_end),
        ("rdmsr", &raw const kvm_rdmsr, &raw const kvm_rdmsr_end),
        (
            "port_out",
            &raw const kvm_port_out,
            &raw const kvm_port_out_end,
        ),
        (
            "port_in",
            &raw const kvm_port_in,
            &raw const kvm_port_in_end,
        ),
        ("hlt_to_its_vmm", &raw const kvm_hlt, &raw const kvm_hlt_end),
    ]
}

/// `struct kvm_userspace_memory_region`.
#[repr(C)]
struct Region {
    slot: u32,
    flags: u32,
    guest: u64,
    bytes: u64,
    own: u64,
}

/// `struct kvm_cpuid2` with room.
#[repr(C, align(8))]
struct Leaves {
    count: u32,
    pad: u32,
    entries: [u8; LEAVES * LEAF],
}

/// A request whose answer is a number, or whose argument is a structure that the kernel knows by the request.
///
/// # Safety
/// `argument` must be what the request takes.
unsafe fn request(file: &File, request: c_ulong, argument: c_ulong) -> Result<i32> {
    // SAFETY: promised by the caller.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if answer < 0 {
        return Err(Error::last_os_error());
    }
    Ok(answer)
}

/// A request with a structure.
///
/// # Safety
/// `T` must be the structure of the request.
unsafe fn request_with<T>(file: &File, number: c_ulong, structure: &mut T) -> Result<i32> {
    // SAFETY: promised by the caller; the structure is alive during the call.
    unsafe { request(file, number, structure as *mut T as c_ulong) }
}

/// A file that a request made.
///
/// # Safety
/// The request must answer a file descriptor that nobody else has.
unsafe fn opened(file: &File, number: c_ulong) -> Result<File> {
    // SAFETY: takes a number, which is 0 here; the rest is promised by the caller.
    Ok(unsafe { File::from_raw_fd(request(file, number, 0)?) })
}

/// Pages, of a file or fresh ones.
fn map(bytes: usize, file: Option<&File>) -> Result<*mut u8> {
    let (flags, descriptor) = match file {
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1),
    };
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, descriptor, 0) };
    if at == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    Ok(at.cast())
}

/// The virtual machine: one CPU, a little memory.
struct Machine {
    vcpu: File,
    /// `struct kvm_run`.
    run: *mut u8,
    memory: *mut u8,
    _vm: File,
}

impl Machine {
    fn new() -> Result<Machine> {
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
        let mut leaves = Leaves {
            count: LEAVES as u32,
            pad: 0,
            entries: [0; LEAVES * LEAF],
        };
        let memory = map(MEMORY, None)?;
        let mut region = Region {
            slot: 0,
            flags: 0,
            guest: 0,
            bytes: MEMORY as u64,
            own: memory as u64,
        };
        let mut special = [0u64; 0x138 / 8];
        // SAFETY: the structures and answers of these requests are those of include/uapi/linux/kvm.h.
        unsafe {
            let vm = opened(&kvm, CREATE_VM)?;
            request_with(&vm, SET_MEMORY, &mut region)?;
            let vcpu = opened(&vm, CREATE_VCPU)?;
            request_with(&kvm, SUPPORTED_CPUID, &mut leaves)?;
            request_with(&vcpu, SET_CPUID, &mut leaves)?;
            let bytes = request(&kvm, MMAP_SIZE, 0)? as usize;
            request_with(&vcpu, GET_SPECIAL, &mut special)?;
            // CS is first: base, then limit, selector and type. Base and selector are zero from here on.
            special[0] = 0;
            special[1] &= !0xffff_0000_0000;
            request_with(&vcpu, SET_SPECIAL, &mut special)?;
            let run = map(bytes, Some(&vcpu))?;
            Ok(Machine {
                vcpu,
                run,
                memory,
                _vm: vm,
            })
        }
    }

    fn field<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: callers name fields of `struct kvm_run`, which is mapped; the kernel changes it during
        // requests only.
        unsafe { self.run.add(offset).cast::<T>().read_unaligned() }
    }

    /// Runs a piece of code to its end; what it counted.
    fn measure(&mut self, code: &[u8]) -> Result<[u64; SAMPLES]> {
        // SAFETY: the code is shorter than the room for it, and the guest does not run.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.memory.add(CODE), code.len()) };
        // `struct kvm_regs`: RIP and RFLAGS are last.
        let mut registers = [0u64; 18];
        [registers[16], registers[17]] = [CODE as u64, 2];
        // SAFETY: the structure of the request.
        unsafe { request_with(&self.vcpu, SET_REGISTERS, &mut registers)? };
        loop {
            // SAFETY: without an argument.
            unsafe { request(&self.vcpu, RUN, 0)? };
            // `exit_reason`; for I/O direction, width, port, and where the data is.
            match self.field::<u32>(8) {
                EXIT_IO if self.field::<u16>(34) == DONE => break,
                EXIT_IO if self.field::<u8>(32) == 0 => {
                    let data = self.field::<u64>(40) as usize;
                    // SAFETY: the kernel says where in `struct kvm_run` it expects the byte.
                    unsafe { self.run.add(data).write(0xff) };
                }
                EXIT_IO | EXIT_HLT | EXIT_INTR => {}
                other => return Err(Error::other(format!("exit {other}"))),
            }
        }
        // SAFETY: as many samples are there, inside the memory, and the guest does not run.
        let sample = |index| unsafe { self.memory.add(FOUND + index * 4).cast::<u32>().read() };
        let mut samples = std::array::from_fn(|index| u64::from(sample(index)));
        samples.sort_unstable();
        Ok(samples)
    }
}

/// Code between two labels.
fn code(from: *const u8, to: *const u8) -> &'static [u8] {
    // SAFETY: both are labels of one piece of read-only data, in this order.
    unsafe { std::slice::from_raw_parts(from, to.offset_from(from) as usize) }
}

fn main() -> Result<()> {
    let mut machine = Machine::new()?;
    let empty = machine.measure(code(&raw const kvm_empty, &raw const kvm_empty_end))?[0];
    for (name, from, to) in rows() {
        let samples = machine.measure(code(from, to))?;
        let (median, minimum) = (samples[SAMPLES / 2] - empty, samples[0] - empty);
        println!("compare: row {name} median {median} minimum {minimum}");
    }
    println!("compare: done");
    Ok(())
}
