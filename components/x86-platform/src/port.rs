//! Port instructions: what an [`Exit::Io`](microvisor_abi::vcpu::Exit::Io) asks for, registers,
//! and string forms in bounded, restartable steps.

use microvisor_abi::thread::Registers;
use microvisor_abi::vcpu::io;

use crate::decode;
use crate::execute::{Linear, Progress};
use crate::mode::CodeSize;
use crate::paging::Code;
use crate::registers::{self, DF, RCX, RDI, RSI, mask};

/// Elements of a repeated string form that one call handles; the rest are for the next one, so
/// that interrupts get in between.
pub const STEPS_MAX: u64 = 64;

/// A port access, from `State::info[0]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Port number.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub bytes: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With REP.
    pub repeat: bool,
}

impl Access {
    /// Reads the exit's word. A size the core never sends is taken for 1.
    #[inline(always)]
    pub fn from_info(info: u64) -> Access {
        let bytes = (info >> 16) as u8;
        Access {
            port: info as u16,
            bytes: if matches!(bytes, 2 | 4) { bytes } else { 1 },
            input: info & io::IN != 0,
            string: info & io::STRING != 0,
            repeat: info & io::REP != 0,
        }
    }
}

/// The devices behind the ports.
pub trait Ports {
    /// Reads; unused ports give all ones.
    fn read(&mut self, port: u16, bytes: u8) -> u32;
    /// Writes; unused ports ignore it.
    fn write(&mut self, port: u16, bytes: u8, value: u32);
}

/// IN: puts a value into AL, AX or EAX.
#[inline]
pub fn set_accumulator(rax: u64, bytes: u8, value: u32) -> u64 {
    match bytes {
        1 => rax & !0xff | u64::from(value & 0xff),
        2 => rax & !0xffff | u64::from(value & 0xffff),
        _ => value.into(),
    }
}

/// What a string form needs to know from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringForm {
    /// Bytes of an address: 2, 4 or 8.
    pub address_bytes: u8,
    /// Segment number of OUTS's source.
    pub segment: u8,
    /// Bytes of the instruction.
    pub length: u8,
}

impl StringForm {
    /// Decodes INS or OUTS.
    pub fn decode(code: &Code, size: CodeSize) -> Result<StringForm, decode::Error> {
        let length = decode::Fixed::Port.length(code, size)?;
        let bytes = code.bytes();
        let bytes = bytes
            .get(..usize::from(length))
            .ok_or(decode::Error::Mismatch)?;
        let (opcode, prefixes) = bytes.split_last().ok_or(decode::Error::Mismatch)?;
        if !(0x6c..=0x6f).contains(opcode) {
            return Err(decode::Error::Mismatch);
        }
        let short = prefixes.contains(&0x67);
        let address_bytes = match (size, short) {
            (CodeSize::Bits64, false) => 8,
            (CodeSize::Bits64, true) | (CodeSize::Bits32, false) | (CodeSize::Bits16, true) => 4,
            _ => 2,
        };
        let segment = prefixes.iter().fold(3, |segment, prefix| match prefix {
            0x26 => 0,
            0x2e => 1,
            0x36 => 2,
            0x3e => 3,
            0x64 => 4,
            0x65 => 5,
            _ => segment,
        });
        Ok(StringForm {
            address_bytes,
            segment,
            length,
        })
    }
}

/// Executes a string form, at most [`STEPS_MAX`] elements of it. On a fault the registers stand
/// at the element that faulted, as the CPU leaves them.
pub fn string<L: Linear>(
    access: &Access,
    form: &StringForm,
    regs: &mut Registers,
    ports: &mut impl Ports,
    linear: &mut L,
) -> Result<Progress, L::Fault> {
    let width = mask(form.address_bytes);
    let index = if access.input { RDI } else { RSI };
    let delta = if regs.rflags & DF != 0 {
        u64::from(access.bytes).wrapping_neg()
    } else {
        access.bytes.into()
    };
    for _ in 0..STEPS_MAX {
        let left = registers::get(regs, RCX) & width;
        if access.repeat && left == 0 {
            return Ok(Progress::Done);
        }
        let at = registers::get(regs, index) & width;
        if access.input {
            // No port here changes by being read, so a fault after the read loses nothing.
            let value = ports.read(access.port, access.bytes);
            linear.store(0, at, access.bytes, value.into())?;
        } else {
            let value = linear.load(form.segment, at, access.bytes)?;
            ports.write(access.port, access.bytes, value as u32);
        }
        registers::set_sized(regs, index, form.address_bytes, at.wrapping_add(delta));
        if !access.repeat {
            return Ok(Progress::Done);
        }
        registers::set_sized(regs, RCX, form.address_bytes, left - 1);
        if left == 1 {
            return Ok(Progress::Done);
        }
    }
    Ok(Progress::Repeat)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Device(u32);

    impl Ports for Device {
        fn read(&mut self, _: u16, _: u8) -> u32 {
            self.0 += 1;
            self.0
        }
        fn write(&mut self, _: u16, _: u8, value: u32) {
            self.0 = self.0.wrapping_mul(3).wrapping_add(value);
        }
    }

    /// Memory that faults from `limit` on.
    struct Limited {
        bytes: [u8; 256],
        limit: u64,
    }

    impl Linear for Limited {
        type Fault = u64;
        fn load(&mut self, _: u8, offset: u64, _: u8) -> Result<u64, u64> {
            if offset >= self.limit {
                return Err(offset);
            }
            Ok(self.bytes[offset as usize].into())
        }
        fn store(&mut self, _: u8, offset: u64, _: u8, value: u64) -> Result<(), u64> {
            if offset >= self.limit {
                return Err(offset);
            }
            self.bytes[offset as usize] = value as u8;
            Ok(())
        }
    }

    const FORM: StringForm = StringForm {
        address_bytes: 4,
        segment: 3,
        length: 2,
    };

    fn access(input: bool) -> Access {
        Access {
            port: 0xe9,
            bytes: 1,
            input,
            string: true,
            repeat: true,
        }
    }

    #[test]
    fn repeats_are_bounded_and_go_on() {
        let mut regs = Registers {
            rcx: 100,
            ..Registers::default()
        };
        let mut memory = Limited {
            bytes: [0; 256],
            limit: 256,
        };
        let mut device = Device(0);
        let mut go =
            |regs: &mut Registers| string(&access(true), &FORM, regs, &mut device, &mut memory);
        assert_eq!(go(&mut regs), Ok(Progress::Repeat));
        assert_eq!((regs.rcx, regs.rdi), (36, 64));
        assert_eq!(go(&mut regs), Ok(Progress::Done));
        assert_eq!((regs.rcx, regs.rdi), (0, 100));
        assert_eq!(go(&mut regs), Ok(Progress::Done), "nothing left");
        assert_eq!((memory.bytes[0], memory.bytes[99]), (1, 100));
    }

    #[test]
    fn a_fault_leaves_registers_at_the_element() {
        let mut regs = Registers {
            rcx: 10,
            rsi: 4,
            ..Registers::default()
        };
        let mut memory = Limited {
            bytes: [1; 256],
            limit: 7,
        };
        let result = string(
            &access(false),
            &FORM,
            &mut regs,
            &mut Device(0),
            &mut memory,
        );
        assert_eq!(result, Err(7));
        assert_eq!((regs.rcx, regs.rsi), (7, 7));
    }

    #[test]
    fn accumulator_keeps_what_the_width_leaves() {
        assert_eq!(set_accumulator(u64::MAX, 1, 0), !0xff);
        assert_eq!(set_accumulator(u64::MAX, 2, 0), !0xffff);
        assert_eq!(set_accumulator(u64::MAX, 4, 7), 7);
    }
}
