//! Instructions that count one in a path length and cost far more on hardware: finds them in the
//! code of the core and the components, and counts those that an operation executed. Pure; it
//! trusts the ELF files and no trace.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use image_builder::symbols;
use object::{Object, ObjectSection, SectionKind};

use super::trace::Step;

/// A kind of dear instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dear {
    /// `mov cr3, r64`.
    Cr3Write,
    /// WRMSR in all its forms.
    MsrWrite,
    /// INVLPG, INVLPGA, INVLPGB, INVPCID, INVEPT, INVVPID.
    Invalidation,
    /// XSAVE and XRSTOR in all their forms, and what was before them.
    ExtendedState,
    /// VMLOAD, VMSAVE.
    GuestState,
    /// VMREAD, VMWRITE.
    VmcsAccess,
}

impl Dear {
    fn of(instruction: &Instruction) -> Option<Dear> {
        use Mnemonic as M;
        Some(match instruction.mnemonic() {
            M::Mov if instruction.op0_register() == Register::CR3 => Dear::Cr3Write,
            M::Wrmsr | M::Wrmsrns | M::Wrmsrlist => Dear::MsrWrite,
            M::Invlpg | M::Invlpga | M::Invlpgb | M::Invpcid | M::Invept | M::Invvpid => {
                Dear::Invalidation
            }
            M::Xsave
            | M::Xsave64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsaves
            | M::Xsaves64
            | M::Xrstor
            | M::Xrstor64
            | M::Xrstors
            | M::Xrstors64
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Fsave
            | M::Fnsave
            | M::Frstor => Dear::ExtendedState,
            M::Vmload | M::Vmsave => Dear::GuestState,
            M::Vmread | M::Vmwrite => Dear::VmcsAccess,
            _ => return None,
        })
    }
}

/// How many of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// [`Dear::Cr3Write`].
    pub cr3_writes: u64,
    /// [`Dear::MsrWrite`].
    pub msr_writes: u64,
    /// [`Dear::Invalidation`].
    pub invalidations: u64,
    /// [`Dear::ExtendedState`].
    pub extended_state: u64,
    /// [`Dear::GuestState`].
    pub guest_state: u64,
    /// [`Dear::VmcsAccess`].
    pub vmcs_accesses: u64,
}

impl Counts {
    fn add(&mut self, dear: Dear) {
        let count = match dear {
            Dear::Cr3Write => &mut self.cr3_writes,
            Dear::MsrWrite => &mut self.msr_writes,
            Dear::Invalidation => &mut self.invalidations,
            Dear::ExtendedState => &mut self.extended_state,
            Dear::GuestState => &mut self.guest_state,
            Dear::VmcsAccess => &mut self.vmcs_accesses,
        };
        *count += 1;
    }

    /// Each count with the name that it has in JSON and the one that people read.
    pub fn named(&self) -> [(&'static str, &'static str, u64); 6] {
        [
            ("cr3_writes", "CR3 writes", self.cr3_writes),
            ("msr_writes", "MSR writes", self.msr_writes),
            ("invlpg", "INVLPG/INVLPGA", self.invalidations),
            ("xsave_xrstor", "XSAVE/XRSTOR", self.extended_state),
            ("vmload_vmsave", "VMLOAD/VMSAVE", self.guest_state),
            ("vmread_vmwrite", "VMREAD/VMWRITE", self.vmcs_accesses),
        ]
    }
}

/// An instruction of the core.
struct Known {
    dear: Option<Dear>,
    /// Index of its function's name.
    function: usize,
}

/// The code that an operation can execute outside of guests.
pub struct Code {
    core: HashMap<u64, Known>,
    functions: Vec<String>,
    /// Of all components at once: they share their addresses. Where any of them has a dear
    /// instruction, it counts whoever runs.
    components: HashMap<u64, Option<Dear>>,
    /// Indices of the names of the VMM's functions, by the addresses of their instructions.
    vmm: HashMap<u64, usize>,
}

impl Code {
    /// Of the ELF files with symbols of the core, of every component, and again of the VMM.
    pub fn of(core: &[u8], components: &[Vec<u8>], vmm: &[u8]) -> Result<Code> {
        let mut code = Code {
            core: HashMap::new(),
            functions: Vec::new(),
            components: HashMap::new(),
            vmm: HashMap::new(),
        };
        code.functions = each_instruction(core, |instruction, function| {
            let dear = Dear::of(instruction);
            code.core.insert(instruction.ip(), Known { dear, function });
        })?;
        for component in components {
            each_instruction(component, |instruction, _| {
                let here = code.components.entry(instruction.ip()).or_default();
                *here = here.or(Dear::of(instruction));
            })?;
        }
        let before = code.functions.len();
        let names = each_instruction(vmm, |instruction, function| {
            code.vmm.insert(instruction.ip(), before + function);
        })?;
        let names = names.into_iter().map(|name| format!("vmm: {name}"));
        code.functions.extend(names);
        Ok(code)
    }

    /// The dear instructions that were executed outside of guests. An error if a step is not in
    /// any file: what it was cannot be told then.
    pub fn count(&self, steps: &[Step]) -> Result<Counts> {
        let mut counts = Counts::default();
        for step in steps.iter().filter(|step| !step.guest) {
            let dear = match step.ring {
                0 => self.core.get(&step.address).map(|known| known.dear),
                _ => self.components.get(&step.address).copied(),
            };
            let dear = dear.with_context(|| {
                let Step { address, ring, .. } = step;
                format!("no known instruction is at {address:#x}, executed in ring {ring}")
            })?;
            if let Some(dear) = dear {
                counts.add(dear);
            }
        }
        Ok(counts)
    }

    /// Instructions by where they are, the most first: the core's functions, the VMM's or all
    /// components', the guest. `of_guest`: a guest's operation, in which no component but its VMM
    /// runs.
    pub fn segments(&self, steps: &[Step], of_guest: bool) -> Vec<(&str, u64)> {
        let mut sums = BTreeMap::new();
        for step in steps {
            let function = match step.ring {
                0 => self.core.get(&step.address).map(|known| known.function),
                _ => self.vmm.get(&step.address).copied(),
            };
            let name = function.and_then(|function| self.functions.get(function));
            let place = match (step.ring, name) {
                _ if step.guest => "(the guest)",
                (1.., _) if !of_guest => "(components)",
                (_, Some(name)) => name.as_str(),
                (_, None) => "?",
            };
            *sums.entry(place).or_default() += 1;
        }
        let mut out: Vec<(&str, u64)> = sums.into_iter().collect();
        out.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        out
    }
}

/// Decodes the functions of an ELF file, as `image_builder::verify` does, and returns their names.
fn each_instruction(
    file: &[u8],
    mut visit: impl FnMut(&Instruction, usize),
) -> Result<Vec<String>> {
    let elf = object::File::parse(file).context("not an ELF file")?;
    let functions = symbols::functions(file)?;
    for section in elf.sections().filter(|s| s.kind() == SectionKind::Text) {
        let (base, data) = (section.address(), section.data()?);
        for (index, function) in functions.iter().enumerate() {
            let Some(start) = function.address.checked_sub(base) else {
                continue;
            };
            let Some(code) = usize::try_from(start)
                .ok()
                .and_then(|start| data.get(start..))
            else {
                continue;
            };
            let code = code.get(..function.size as usize).unwrap_or(code);
            for instruction in Decoder::with_ip(64, code, function.address, DecoderOptions::NONE) {
                visit(&instruction, index);
            }
        }
    }
    Ok(functions
        .into_iter()
        .map(|function| function.name)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: &[u8]) -> Option<Dear> {
        Dear::of(&Decoder::new(64, code, DecoderOptions::NONE).decode())
    }

    #[test]
    fn dear_instructions_are_told_from_their_encodings() {
        let cases: &[(&[u8], Option<Dear>)] = &[
            (&[0x0f, 0x22, 0xd8], Some(Dear::Cr3Write)),
            (&[0x0f, 0x20, 0xd8], None), // mov rax, cr3
            (&[0x0f, 0x22, 0xe0], None), // mov cr4, rax
            (&[0x0f, 0x30], Some(Dear::MsrWrite)),
            (&[0x0f, 0x32], None),                           // rdmsr
            (&[0x0f, 0x01, 0x38], Some(Dear::Invalidation)), // invlpg [rax]
            (&[0x0f, 0x01, 0xdf], Some(Dear::Invalidation)), // invlpga
            (&[0x66, 0x0f, 0x38, 0x82, 0x00], Some(Dear::Invalidation)), // invpcid
            (&[0x48, 0x0f, 0xae, 0x20], Some(Dear::ExtendedState)), // xsave64
            (&[0x48, 0x0f, 0xae, 0x30], Some(Dear::ExtendedState)), // xsaveopt64
            (&[0x48, 0x0f, 0xc7, 0x20], Some(Dear::ExtendedState)), // xsavec64
            (&[0x48, 0x0f, 0xc7, 0x28], Some(Dear::ExtendedState)), // xsaves64
            (&[0x48, 0x0f, 0xae, 0x28], Some(Dear::ExtendedState)), // xrstor64
            (&[0x48, 0x0f, 0xc7, 0x18], Some(Dear::ExtendedState)), // xrstors64
            (&[0x48, 0x0f, 0xae, 0x00], Some(Dear::ExtendedState)), // fxsave64
            (&[0x48, 0x0f, 0xae, 0x08], Some(Dear::ExtendedState)), // fxrstor64
            (&[0x0f, 0xae, 0xe8], None),                     // lfence
            (&[0x0f, 0x01, 0xd1], None),                     // xsetbv
            (&[0x0f, 0x01, 0xda], Some(Dear::GuestState)),   // vmload
            (&[0x0f, 0x01, 0xdb], Some(Dear::GuestState)),   // vmsave
            (&[0x0f, 0x01, 0xd8], None),                     // vmrun
            (&[0x0f, 0x78, 0xc1], Some(Dear::VmcsAccess)),
            (&[0x0f, 0x79, 0xc1], Some(Dear::VmcsAccess)),
        ];
        for (code, expected) in cases {
            assert_eq!(kind(code), *expected, "{code:x?}");
        }
    }

    fn code() -> Code {
        let dear = Some(Dear::Cr3Write);
        Code {
            core: HashMap::from([
                (0xffff_8000, Known { dear, function: 0 }),
                (
                    0xffff_8003,
                    Known {
                        dear: None,
                        function: 0,
                    },
                ),
            ]),
            functions: vec!["switch".into(), "vmm: exit".into()],
            components: HashMap::from([(0x1000, None), (0x2000, Some(Dear::ExtendedState))]),
            vmm: HashMap::from([(0x1000, 1)]),
        }
    }

    const fn step(address: u64, ring: u8, guest: bool) -> Step {
        Step {
            address,
            ring,
            guest,
        }
    }

    #[test]
    fn what_the_host_executed_is_counted_and_what_the_guest_did_is_not() {
        let steps = [
            step(0x1000, 3, false),
            step(0xffff_8000, 0, false),
            step(0xffff_8003, 0, false),
            step(0xffff_8000, 0, false),
            step(0xffff_8000, 0, true),
            step(0x2000, 3, true),
            step(0x7777, 3, true),
        ];
        let counts = code().count(&steps).unwrap();
        let expected = Counts {
            cr3_writes: 2,
            ..Counts::default()
        };
        assert_eq!(counts, expected);
        assert_eq!(
            code().segments(&steps, false),
            [("(the guest)", 3), ("switch", 3), ("(components)", 1)]
        );
        assert_eq!(
            code().segments(&steps, true),
            [("(the guest)", 3), ("switch", 3), ("vmm: exit", 1)]
        );
    }

    #[test]
    fn a_step_that_no_file_explains_is_an_error() {
        assert!(code().count(&[step(0xffff_8001, 0, false)]).is_err());
        assert!(code().count(&[step(0x1001, 3, false)]).is_err());
        // The same address in ring 0 is not the component's instruction.
        assert!(code().count(&[step(0x1000, 0, false)]).is_err());
    }
}
