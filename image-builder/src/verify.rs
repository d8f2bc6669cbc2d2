//! Checks the code of a finished ELF: no vector or x87 registers, nothing below the stack pointer.
//! The core and the components run with a guest's FPU registers live, and interrupts in the core
//! arrive on the stack that it uses. Flags alone are no proof: the prebuilt libraries were built
//! by others.

use anyhow::{Context, Result, bail};
use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use object::{Object, ObjectSection, SectionKind};

use crate::symbols::functions;

/// Where x87 instructions belong: the module that switches its registers from owner to owner.
const SWITCHES_FPU: &str = "microvisor::virt::fpu::";

/// What a check saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Functions.
    pub functions: usize,
    /// Instructions.
    pub instructions: usize,
}

/// Decodes every function of `file`; an error names the first few offenders.
pub fn verify(file: &[u8]) -> Result<Seen> {
    let elf = object::File::parse(file).context("not an ELF file")?;
    let functions = functions(file)?;
    let mut seen = Seen {
        functions: functions.len(),
        ..Seen::default()
    };
    let mut bad = Vec::new();
    for section in elf.sections().filter(|s| s.kind() == SectionKind::Text) {
        let (base, data) = (section.address(), section.data()?);
        let inside =
            |f: &&crate::symbols::Function| (base..base + data.len() as u64).contains(&f.address);
        for function in functions.iter().filter(inside) {
            let start = (function.address - base) as usize;
            let end = (start + function.size as usize).min(data.len());
            let code = data.get(start..end).unwrap_or(&[]);
            let decoder = Decoder::with_ip(64, code, function.address, DecoderOptions::NONE);
            for instruction in decoder {
                seen.instructions += 1;
                let what = offence(&instruction);
                if what == Some(X87) && function.name.starts_with(SWITCHES_FPU) {
                    continue;
                }
                if let Some(what) = what {
                    bad.push(format!(
                        "{} at {:#x} {what}",
                        function.name,
                        instruction.ip()
                    ));
                }
            }
        }
    }
    if seen.instructions == 0 {
        bail!("no code found to check");
    }
    if !bad.is_empty() {
        let count = bad.len();
        bad.truncate(5);
        bail!(
            "{count} forbidden instructions:\n    {}",
            bad.join("\n    ")
        );
    }
    Ok(seen)
}

const X87: &str = "is an x87 instruction";

fn offence(instruction: &Instruction) -> Option<&'static str> {
    let vector = |register: Register| {
        register.is_xmm()
            || register.is_ymm()
            || register.is_zmm()
            || register.is_mm()
            || register.is_k()
            || register.is_st()
    };
    if (0..instruction.op_count()).any(|op| vector(instruction.op_register(op))) {
        return Some("uses a vector or x87 register");
    }
    let resets = matches!(instruction.mnemonic(), Mnemonic::Fninit | Mnemonic::Emms);
    if !resets && instruction.cpuid_features().contains(&CpuidFeature::FPU) {
        return Some(X87);
    }
    let memory = (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
    // `lea` computes an address and touches nothing.
    let below = instruction.memory_base() == Register::RSP
        && (instruction.memory_displacement64() as i64) < 0
        && instruction.mnemonic() != Mnemonic::Lea;
    (memory && below).then_some("reaches below the stack pointer")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(code: &[u8]) -> Option<&'static str> {
        offence(&Decoder::new(64, code, DecoderOptions::NONE).decode())
    }

    #[test]
    fn vector_registers_x87_and_the_red_zone_are_found() {
        assert!(first(&[0x0f, 0x57, 0xc0]).is_some(), "xorps xmm0, xmm0");
        assert!(first(&[0xd9, 0xe8]).is_some(), "fld1");
        assert!(
            first(&[0x48, 0x89, 0x44, 0x24, 0xf8]).is_some(),
            "mov [rsp-8], rax"
        );
    }

    #[test]
    fn what_the_core_does_is_allowed() {
        assert_eq!(first(&[0x48, 0x0f, 0xae, 0x20]), None, "xsave64 [rax]");
        assert_eq!(
            first(&[0x48, 0x8d, 0x64, 0x24, 0xf8]),
            None,
            "lea rsp, [rsp-8]"
        );
        assert_eq!(
            first(&[0x48, 0x89, 0x44, 0x24, 0x08]),
            None,
            "mov [rsp+8], rax"
        );
        assert_eq!(first(&[0xdb, 0xe3]), None, "fninit");
    }
}
