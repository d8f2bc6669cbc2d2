//! A real Xen of Debian's packages in QEMU: the oracle for what a guest is answered.
//!
//! | module | does |
//! |---|---|
//! | [`dom0`] | assembles hypervisor, kernel and an initramfs with the toolstack |
//! | [`answers`] | reads the hostile guest's logs out of a machine's memory; makes tables of them |
//! | [`recorded`] | the answers to one seed as a file; compares them call by call |
//! | [`differences`] | holds pairs of answers and the list of explained differences against each other |
//! | `library` | makes the hostile guest's calls to the VMM's library, on the host |
//! | [`record`] | runs the hostile guest under Xen and writes the oracle |

pub mod answers;
pub mod differences;
pub mod dom0;
#[cfg(test)]
mod library;
pub mod record;
pub mod recorded;

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the oracle and the list of differences are, from the workspace's folder.
pub const ORACLE: &str = "qemu-tests/oracle";

/// Has QEMU keep the machine's memory in a file that others can read.
pub fn memory_in_file(command: &mut Command, file: &Path, mib: u64) {
    command.args(["-machine", "memory-backend=ram", "-object"]);
    command.arg(format!(
        "memory-backend-file,id=ram,size={mib}M,share=on,mem-path={}",
        file.display()
    ));
}

/// Xen with its dom0, ready to boot.
#[derive(Clone, Debug)]
pub struct Xen {
    /// The hypervisor, as QEMU's multiboot loader wants it.
    pub hypervisor: PathBuf,
    /// Dom0's kernel.
    pub kernel: PathBuf,
    /// Dom0's initramfs.
    pub initrd: PathBuf,
    /// What the packages call the version.
    pub version: String,
}

impl Xen {
    /// The machine, with memory in MiB. One CPU under -icount: so a run repeats exactly.
    pub fn command(&self, mib: u64) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-smp", "1", "-icount", "shift=0,sleep=off"]);
        // See docs/debugging.md: under -icount QEMU aborts on x2APIC's timer.
        qemu.args(["-cpu", "max,-x2apic", "-m"]);
        qemu.arg(format!("{mib}M"));
        qemu.args(["-display", "none", "-nic", "none", "-no-reboot"]);
        qemu.args(["-serial", "stdio", "-monitor", "none", "-kernel"]);
        qemu.arg(&self.hypervisor);
        qemu.args([
            "-append",
            "console=com1 com1=115200,8n1 dom0_mem=384M dom0_max_vcpus=1 loglvl=warning \
             guest_loglvl=all cpuidle=0 noreboot",
        ]);
        // The words after a module's name are its command line.
        qemu.arg("-initrd").arg(format!(
            "{} console=hvc0 quiet rdinit=/init,{}",
            self.kernel.display(),
            self.initrd.display()
        ));
        qemu
    }
}
