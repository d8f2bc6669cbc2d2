//! The state page belongs to a VMM that may write to it at any moment: while its groups are loaded,
//! each word is read at most once, so that what was checked is what is used. The code that loads them
//! for AMD's and Intel's CPUs is the core's own; the page beneath it counts, and answers something
//! else the second time. The rest of what that code stands on does nothing here.
#![allow(dead_code, missing_docs)]

use microvisor_abi::FRAME;
use microvisor_abi::vcpu::group;
use microvisor_objects::id::{PhysAddr, VcpuArea};
use std::collections::BTreeMap;
use virt::area::Area;
use virt::page::{self, Page};

/// Frames are where they are.
mod paging {
    pub const DIRECT_MAP: u64 = 0;
}

#[path = "../src/virt"]
mod virt {
    pub mod area;

    pub struct Features {
        pub limits: microvisor_vcpu_state::limits::Limits,
        pub image: usize,
    }

    pub fn features() -> &'static Features {
        use microvisor_vcpu_state::limits::{Cpuid, Limits};
        static ALL: Features = Features {
            limits: Limits::new(&Cpuid {
                leaf1_ecx: u32::MAX,
                leaf1_edx: u32::MAX,
                leaf7_ebx: u32::MAX,
                leaf7_ecx: !(1 << 16),
                leaf7_edx: u32::MAX,
                xcr0: 7,
                ext1_ecx: u32::MAX,
                ext1_edx: u32::MAX,
                ext8_eax: 48,
            }),
            image: 4096,
        };
        &ALL
    }

    pub mod fpu {
        use super::area::Area;
        pub fn load_debug_registers(_: Area) {}
        pub fn change_xcr0(_: Area, _: u64) {}
        pub fn change_tsc_aux(_: Area, _: u64) {}
        pub fn set_cr2(_: u64) {}
    }

    pub mod page {
        use microvisor_abi::vcpu::Segment;
        use microvisor_objects::id::PhysAddr;
        use std::cell::RefCell;
        use std::collections::BTreeMap;

        thread_local! {
            static WORDS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
            static READS: RefCell<BTreeMap<&'static str, u32>> = const { RefCell::new(BTreeMap::new()) };
        }

        /// What words hold from now on; 0 where nothing is said.
        pub fn fill(words: &[(&'static str, u64)]) {
            WORDS.with_borrow_mut(|all| *all = words.iter().copied().collect());
            READS.with_borrow_mut(BTreeMap::clear);
        }

        /// How often each word was read.
        pub fn reads() -> BTreeMap<&'static str, u32> {
            READS.with_borrow(Clone::clone)
        }

        /// The first time what it holds, then the opposite.
        fn read(name: &'static str) -> u64 {
            let count = READS.with_borrow_mut(|reads| {
                let count = reads.entry(name).or_insert(0);
                *count += 1;
                *count
            });
            let word = WORDS.with_borrow(|all| all.get(name).copied().unwrap_or(0));
            if count == 1 { word } else { !word }
        }

        #[derive(Clone, Copy)]
        pub struct Page;

        macro_rules! words {
            ($($get:ident $set:ident)*) => { $(
                pub fn $get(self) -> u64 {
                    read(stringify!($get))
                }
                pub fn $set(self, _: u64) {}
            )* };
        }
        macro_rules! segments {
            ($($get:ident $set:ident)*) => { $(
                pub fn $get(self) -> Segment {
                    Segment { packed: read(stringify!($get)), base: 0 }
                }
                pub fn $set(self, _: Segment) {}
            )* };
        }

        impl Page {
            words! {
                rax set_rax rip set_rip rsp set_rsp rflags set_rflags
                valid set_valid modified set_modified inject set_inject
                delivering set_delivering window set_window
                interruptibility set_interruptibility
                cr0 set_cr0 cr2 set_cr2 cr3 set_cr3 cr4 set_cr4 cr8 set_cr8 efer set_efer
                star set_star lstar set_lstar cstar set_cstar sfmask set_sfmask
                kernel_gs_base set_kernel_gs_base sysenter_cs set_sysenter_cs
                sysenter_esp set_sysenter_esp sysenter_eip set_sysenter_eip
                dr6 set_dr6 dr7 set_dr7 pat set_pat xcr0 set_xcr0 xss set_xss
                tsc_offset set_tsc_offset tsc_aux set_tsc_aux
            }
            segments! {
                cs set_cs ss set_ss ds set_ds es set_es fs set_fs gs set_gs
                ldtr set_ldtr tr set_tr gdtr set_gdtr idtr set_idtr
            }
            pub fn new(_: PhysAddr) -> Page {
                Page
            }
            pub fn dr(self) -> [u64; 4] {
                [read("dr"); 4]
            }
            pub fn set_dr(self, _: [u64; 4]) {}
        }
    }

    pub mod svm {
        pub mod groups;
        pub mod vmcb;

        pub const V_INTR_MASKING: u64 = 1 << 24;
        pub mod intercept3 {
            pub const VINTR: u32 = 1 << 4;
            pub const IRET: u32 = 1 << 20;
        }
    }

    pub mod vmx {
        pub mod groups;
        #[path = "vmcs.rs"]
        mod real;

        use super::area::Area;
        use std::cell::Cell;

        pub const CR4_VMXE: u64 = 1 << 13;

        /// The VMCS: fields by their encodings.
        pub mod vmcs {
            pub use super::real::field;
            use std::cell::{Cell, RefCell};
            use std::collections::BTreeMap;

            thread_local! {
                static FIELDS: RefCell<BTreeMap<u32, u64>> = const { RefCell::new(BTreeMap::new()) };
            }

            pub fn read(field: u32) -> u64 {
                FIELDS.with_borrow(|fields| fields.get(&field).copied().unwrap_or(0))
            }
            pub fn write(field: u32, value: u64) {
                FIELDS.with_borrow_mut(|fields| fields.insert(field, value));
            }
            pub fn update(field: u32, known: &Cell<u64>, value: u64) {
                known.set(value);
                write(field, value);
            }
        }

        pub struct Soft {
            nmi: Cell<bool>,
            inject: Cell<u64>,
            rip: Cell<u64>,
            rsp: Cell<u64>,
            rflags: Cell<u64>,
            interruptibility: Cell<u64>,
            primary: Cell<u64>,
            cr0: Cell<u64>,
            cr4: Cell<u64>,
            cr2: Cell<u64>,
            dr6: Cell<u64>,
            cstar: Cell<u64>,
            msrs: Cell<[u64; 4]>,
        }

        pub fn soft(area: Area) -> &'static Soft {
            &area.header().vmx
        }
        pub fn cr4_owned() -> u64 {
            CR4_VMXE
        }
        pub fn own_debug_registers(_: Area) {}
        pub fn virtual_tpr(_: Area) -> Cell<u32> {
            Cell::new(0)
        }
    }
}

/// A vCPU whose frames are all zero.
fn vcpu() -> Area {
    const FRAMES: usize = 8;
    let frames = vec![0u64; (FRAMES + 1) * FRAME as usize / 8].leak();
    let address = (frames.as_ptr() as u64).next_multiple_of(FRAME);
    Area::new(VcpuArea {
        state: PhysAddr(address),
        area: PhysAddr(address),
    })
}

const LONG_MODE: &[(&str, u64)] = &[
    ("rip", 0x1000),
    ("rflags", 2),
    ("cr0", 0x8000_0001),
    ("cr3", 0x5000),
    ("cr4", 0x20),
    ("efer", 0x500),
    ("cs", 0xa09b << 16),
    ("ss", 0xc093 << 16),
    ("dr6", 0xffff_0ff0),
    ("dr7", 0x400),
    ("pat", 0x0007_0406_0007_0406),
    ("xcr0", 7),
];

/// Every word of every group is read, and none twice.
fn once(reads: &BTreeMap<&str, u32>) {
    for name in [
        "rip", "rflags", "inject", "cr4", "cs", "tr", "lstar", "dr7", "dr", "pat", "xcr0",
    ] {
        assert!(reads.contains_key(name), "{name} was not read");
    }
    let twice: Vec<_> = reads.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "read more than once: {twice:?}");
}

#[test]
fn amds_side_reads_each_word_of_the_state_page_once() {
    let area = vcpu();
    let vmcb = virt::svm::vmcb::Vmcb::of(area);
    page::fill(LONG_MODE);
    let loaded = virt::svm::groups::load(area, Page, vmcb, group::ALL);
    assert_eq!(loaded, Ok(()));
    once(&page::reads());
    assert_eq!(vmcb.cr4.get(), 0x20, "what was checked is what is loaded");
    assert_eq!(vmcb.cr3.get(), 0x5000);
}

#[test]
fn intels_side_reads_each_word_of_the_state_page_once() {
    use virt::vmx::vmcs::{field, read};
    let area = vcpu();
    page::fill(LONG_MODE);
    assert_eq!(virt::vmx::groups::load(area, Page, group::ALL), Ok(()));
    once(&page::reads());
    assert_eq!(read(field::CR4), 0x20 | virt::vmx::CR4_VMXE);
    assert_eq!(read(field::CR3), 0x5000);
}

#[test]
fn what_is_refused_is_not_loaded() {
    let area = vcpu();
    let vmcb = virt::svm::vmcb::Vmcb::of(area);
    let mut words = LONG_MODE.to_vec();
    words.push(("cr4", 1 << 63));
    page::fill(&words);
    assert!(virt::svm::groups::load(area, Page, vmcb, group::MODE).is_err());
    assert_eq!(vmcb.cr4.get(), 0);
}
