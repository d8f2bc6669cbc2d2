//! QEMU's command line for an image. Used by `run` and by the test suite, so that both boot the
//! same machine.

use std::path::PathBuf;
use std::process::Command;

use crate::image::Image;

/// What a machine boots from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Medium {
    /// Core and archive as QEMU's `-kernel` and `-initrd`, by the PVH entry.
    #[default]
    Direct,
    /// The ISO in a CD drive: GRUB, Multiboot2.
    Iso,
    /// The raw image as a disk, likewise.
    Disk,
}

/// A machine to boot an image on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPUs.
    pub smp: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// CPU model and flags.
    pub cpu: String,
    /// What it boots from.
    pub medium: Medium,
    /// UEFI instead of BIOS; not for the direct way.
    pub uefi: bool,
    /// Emulate all CPUs in one host thread: no race of QEMU's between CPUs can touch a guest, and
    /// QEMU may deliver an interrupt twice that was injected (docs/debugging.md has both).
    pub one_thread: bool,
    /// Count instructions: one nanosecond each.
    pub icount: bool,
    /// Wait for gdb on port 1234.
    pub gdb: bool,
    /// Where the serial port goes, for instance `mon:stdio`.
    pub serial: String,
    /// Another archive than the image's.
    pub archive: Option<PathBuf>,
}

impl Machine {
    /// The machine that the description asks for.
    pub fn of(image: &Image) -> Self {
        Machine {
            smp: image.cpus,
            memory_mib: image.memory_mib,
            cpu: "max".into(),
            medium: Medium::Direct,
            uefi: false,
            one_thread: false,
            icount: false,
            gdb: false,
            serial: "mon:stdio".into(),
            archive: None,
        }
    }

    /// The command that boots `image`. It ends with [`POWERED_OFF`] when all guests did.
    pub fn command(&self, image: &Image) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        let mut cpu = self.cpu.clone();
        qemu.args([
            "-M",
            "q35",
            "-no-reboot",
            "-display",
            "none",
            "-vga",
            "std",
            "-nic",
            "none",
        ]);
        qemu.args(["-serial", &self.serial]);
        if !self.serial.starts_with("mon:") {
            qemu.args(["-monitor", "none"]);
        }
        qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        qemu.arg("-smp").arg(self.smp.to_string());
        qemu.arg("-m").arg(format!("{}M", self.memory_mib));
        if self.one_thread && self.smp > 1 {
            qemu.args(["-accel", "tcg,thread=single"]);
        }
        if self.icount {
            qemu.args(["-icount", "shift=0,sleep=off"]);
            // Under -icount QEMU aborts on x2APIC's timer, and RDTSCP exits as RDTSC.
            if !cpu.contains("-x2apic") {
                cpu += ",-x2apic,-rdtscp";
            }
        }
        qemu.arg("-cpu").arg(cpu);
        if self.gdb {
            qemu.args(["-s", "-S"]);
        }
        match (self.medium, &image.iso, &image.disk) {
            (Medium::Iso, Some(iso), _) => {
                qemu.arg("-cdrom").arg(iso);
                qemu.args(["-boot", "d"]);
                self.firmware(&mut qemu);
            }
            (Medium::Disk, _, Some(disk)) => {
                // A comma in an option's value is written twice.
                let file = disk.display().to_string().replace(',', ",,");
                qemu.arg("-drive");
                qemu.arg(format!("format=raw,snapshot=on,file={file}"));
                qemu.args(["-boot", "c"]);
                self.firmware(&mut qemu);
            }
            _ => {
                qemu.arg("-kernel").arg(&image.core);
                qemu.arg("-initrd")
                    .arg(self.archive.as_ref().unwrap_or(&image.archive));
            }
        }
        qemu
    }

    fn firmware(&self, qemu: &mut Command) {
        if self.uefi {
            qemu.args([
                "-drive",
                "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
            ]);
        }
    }
}

/// QEMU's exit status when root ends the system after every guest powered off
/// (`idl::manifest::Exit`).
pub const POWERED_OFF: i32 = 33;
/// The same when a guest failed.
pub const GUEST_FAILED: i32 = 35;

/// The one gdb command that debugs `image`, started from the workspace's folder.
pub fn gdb(image: &Image) -> String {
    let mut out = String::from("gdb");
    for (index, file) in image.debug.iter().enumerate() {
        match index {
            0 => out += &format!(" {}", file.display()),
            _ => out += &format!(" -ex 'add-symbol-file {}'", file.display()),
        }
    }
    out + " -ex 'target remote :1234'"
}
