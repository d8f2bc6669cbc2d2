//! The state of a processor after RESET or INIT (AMD APM vol. 2, 14.1.3; Intel SDM vol. 3, table
//! 10-1), which a vCPU has until its VMM writes another. What is not here is 0.

use microvisor_abi::vcpu::Segment;

/// CS: 16 bytes below 4 GiB are where execution begins.
pub const CS: Segment = Segment::new(0xf000, 0x9b, 0xffff, 0xffff_0000);
/// SS, DS, ES, FS, GS.
pub const DATA: Segment = Segment::new(0, 0x93, 0xffff, 0);
/// LDTR.
pub const LDTR: Segment = Segment::new(0, 0x82, 0xffff, 0);
/// TR.
pub const TR: Segment = Segment::new(0, 0x8b, 0xffff, 0);
/// GDTR and IDTR.
pub const TABLE: Segment = Segment::new(0, 0, 0xffff, 0);
/// RIP.
pub const RIP: u64 = 0xfff0;
/// RFLAGS.
pub const RFLAGS: u64 = 2;
/// CR0: caches off.
pub const CR0: u64 = 0x6000_0010;
/// DR6.
pub const DR6: u64 = 0xffff_0ff0;
/// DR7.
pub const DR7: u64 = 0x400;
/// PAT.
pub const PAT: u64 = 0x0007_0406_0007_0406;
/// XCR0.
pub const XCR0: u64 = 1;
