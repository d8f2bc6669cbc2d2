//! Linux's KVM in the same emulator: the stock kernel with `kvm-amd`, busybox, and a tiny VMM
//! (`qemu-tests/kvm-vmm`) that measures the rows which have a counterpart there.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use image_builder::debian::Cache;
use image_builder::initramfs::Cpio;

use super::measured::Measured;
use crate::machines::Machines;
use crate::session::Session;

/// A target of the machine that builds, so that flags for it do not reach build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Folders of the kernel's modules, and what is loaded of them, in this order.
const MODULES: &[(&str, &str)] = &[
    ("virt/lib", "irqbypass"),
    ("drivers/crypto/ccp", "ccp"),
    ("arch/x86/kvm", "kvm"),
    ("arch/x86/kvm", "kvm-amd"),
];
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in irqbypass ccp kvm kvm-amd; do insmod /modules/$module.ko; done
kvm-vmm || echo compare-kvm: failed
echo compare-kvm: end
poweroff -f
";
/// Seconds until it has measured, on a busy machine.
const PATIENCE: u64 = 1200;
/// MiB of the machine.
const MEMORY: u64 = 512;

/// Boots Linux, and has its KVM measured.
pub fn measure(machines: &Machines) -> Result<Measured> {
    let cache = Cache::new(&machines.workspace.root.join("build/cache"));
    let kernel = cache.kernel("linux-image-amd64", None)?;
    let initrd = machines.folder().join("against-kvm.initrd");
    fs::write(&initrd, initramfs(&cache, &kernel, &vmm(machines)?)?)?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", "q35", "-smp", "1", "-icount", "shift=0,sleep=off"]);
    // As for the other systems.
    qemu.args(["-cpu", "max,-x2apic,-rdtscp", "-m"]);
    qemu.arg(format!("{MEMORY}M"));
    qemu.args(["-rtc", "base=2026-01-01,clock=vm", "-seed", "1"]);
    qemu.args(["-display", "none", "-nic", "none", "-no-reboot"]);
    qemu.args(["-serial", "stdio", "-monitor", "none"]);
    qemu.arg("-kernel").arg(&kernel).arg("-initrd").arg(&initrd);
    qemu.args(["-append", "console=ttyS0 quiet rdinit=/init"]);
    let mut session = Session::start(qemu, &machines.folder().join("against-kvm.log"))?;
    session.expect("compare-kvm: end", PATIENCE)?;
    let measured = Measured::read(&session.text());
    ensure!(!measured.rows.is_empty(), "its VMM measured nothing");
    Ok(measured)
}

/// The VMM, without libraries.
fn vmm(machines: &Machines) -> Result<PathBuf> {
    let folder = machines.workspace.target.join("kvm");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--release", "-p", "kvm-vmm"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(&machines.workspace.root);
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "the VMM for KVM does not build");
    Ok(folder.join(TARGET).join("release/kvm-vmm"))
}

fn initramfs(cache: &Cache, kernel: &std::path::Path, vmm: &std::path::Path) -> Result<Vec<u8>> {
    const FOLDER: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    let mut out = Cpio::default();
    let mut add = |name: &str, mode, content: &[u8]| out.entry(name, mode, (0, 0), content);
    for folder in ["bin", "dev", "modules", "proc", "sys"] {
        add(folder, FOLDER, &[]);
    }
    let busybox = cache.file("busybox-static", None, "bin/busybox")?;
    add("bin/busybox", PROGRAM, &fs::read(busybox)?);
    add("bin/kvm-vmm", PROGRAM, &fs::read(vmm)?);
    add("init", PROGRAM, INIT.as_bytes());
    let release = kernel
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"))
        .context("a kernel whose file does not say its version")?;
    let package = format!("linux-image-{release}");
    for (folder, module) in MODULES {
        let folder = format!("lib/modules/{release}/kernel/{folder}");
        let root = cache.folder(&package, None, &format!("./{folder}"))?;
        let file = root.join(&folder).join(format!("{module}.ko"));
        let content =
            fs::read(&file).with_context(|| format!("kernel {release} has no module {module}"))?;
        add(&format!("modules/{module}.ko"), 0o100_644, &content);
    }
    Ok(out.finish())
}
