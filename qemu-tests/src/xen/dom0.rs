//! Hypervisor, kernel and initramfs of a dom0 that can `xl create`, out of Debian packages. Nothing
//! is installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use image_builder::debian::Cache;
use image_builder::initramfs::Cpio;

use super::Xen;

/// The version whose answers are the measure.
pub const VERSION: &str = "4.17";
/// Where Debian 12 has libraries.
const USR: &str = "usr/lib/x86_64-linux-gnu";
const ROOT: &str = "lib/x86_64-linux-gnu";
/// Packages that hold the libraries of the programs below, and where in them.
const PACKAGES: &[(&str, &str)] = &[
    ("libxenmisc4.17", USR),
    ("libxencall1", USR),
    ("libxendevicemodel1", USR),
    ("libxenevtchn1", USR),
    ("libxenforeignmemory1", USR),
    ("libxengnttab1", USR),
    ("libxenhypfs1", USR),
    ("libxenstore4", USR),
    ("libxentoolcore1", USR),
    ("libxentoollog1", USR),
    ("libyajl2", USR),
    ("libuuid1", USR),
    ("libzstd1", USR),
    ("libc6", ROOT),
    ("libgcc-s1", ROOT),
    ("zlib1g", ROOT),
    ("liblzma5", ROOT),
];
/// Of them, the files whose names begin so.
const WANTED: &[&str] = &[
    "ld-linux-x86-64.so",
    "libc.so",
    "libgcc_s.so",
    "liblzma.so",
    "libuuid.so",
    "libxen",
    "libxl",
    "libyajl.so",
    "libz.so",
    "libzstd.so",
];
/// Programs of the toolstack. The guests here print to Xen's log, but
/// `xl` waits for the console daemon.
const PROGRAMS: &[&str] = &["xl", "xenstored", "xenconsoled", "xen-init-dom0"];
/// Kernel modules that the toolstack opens devices of, in the order of loading.
const MODULES: &[&str] = &["xen-privcmd", "xenfs/xenfs", "xen-evtchn", "xen-gntdev"];

/// Ends in a shell on the console after saying [`READY`] and doing what is to be done first.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/lib/xen-4.17/bin HOME=/root PS1='# '
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /run/xen /run/xenstored /var/run /var/lib/xen /var/lib/xenstored /var/log/xen /var/lock /etc/xen
mount -t devpts pts /dev/pts
ln -s /run/xen /var/run/xen
ln -s /run/xenstored /var/run/xenstored
for module in xen-privcmd xenfs xen-evtchn xen-gntdev; do insmod /modules/$module.ko; done
mount -t xenfs xenfs /proc/xen
touch /etc/xen/xl.conf
xenstored --pid-file=/run/xenstored.pid
xen-init-dom0
xenconsoled --pid-file=/run/xenconsoled.pid
echo dom0 is rea''dy
sh /begin
while :; do setsid sh -c "exec sh -i </dev/hvc0 >/dev/hvc0 2>&1"; done
"#;
/// What dom0 says when guests can be created.
pub const READY: &str = "dom0 is ready";

/// A guest that dom0 finds as `/guests/<name>.cfg`.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its kernel, an ELF with a PVH note.
    pub kernel: &'a Path,
    /// Its command line.
    pub cmdline: String,
    /// Its initramfs.
    pub initrd: Option<&'a Path>,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// More lines of its configuration.
    pub more: &'a str,
}

/// Puts everything into `out`. Dom0 does the shell commands `begin` before it offers a shell: so a
/// run depends on nothing that is typed.
pub fn assemble(cache: &Cache, out: &Path, guests: &[Guest<'_>], begin: &str) -> Result<Xen> {
    fs::create_dir_all(out)?;
    let package = format!("xen-hypervisor-{VERSION}-amd64");
    let boot = cache.folder(&package, None, "./boot")?;
    let version = boot
        .file_name()
        .context("a package without a name")?
        .to_string_lossy()
        .replace("%3a", ":");
    let hypervisor = out.join("xen");
    let packed = boot.join(format!("boot/xen-{VERSION}-amd64.gz"));
    let unpacked = Command::new("gzip")
        .arg("-dc")
        .arg(&packed)
        .output()
        .context("cannot start gzip")?;
    ensure!(unpacked.status.success(), "{} is damaged", packed.display());
    fs::write(&hypervisor, unpacked.stdout)?;

    let kernel = cache.kernel("linux-image-amd64", None)?;
    let initrd = out.join("dom0");
    fs::write(&initrd, initramfs(cache, &kernel, guests, begin)?)?;
    Ok(Xen {
        hypervisor,
        kernel,
        initrd,
        version,
    })
}

/// What Xen stores as the intercepts of control registers of a new guest: all but CR2's and CR8's
/// (AMD APM vol. 2, appendix B). The instruction that stores it, and the same without reads of CR0.
const INTERCEPTS: [u8; 6] = [0xc7, 0x03, 0xfb, 0xfe, 0xfb, 0xfe];
const WITHOUT_CR0_READS: [u8; 6] = [0xc7, 0x03, 0xfa, 0xfe, 0xfb, 0xfe];

/// Has this copy of Xen not intercept reads of CR0, which changes one bit. QEMU takes every read of a
/// control register for one of CR0, Xen then answers as if it were one, and Linux as a PVH guest does
/// not get far. Guests that read no control register run the same way with and without.
pub fn leave_cr0_reads_alone(xen: &Xen) -> Result<()> {
    let mut bytes = fs::read(&xen.hypervisor)?;
    replace_once(&mut bytes, &INTERCEPTS, &WITHOUT_CR0_READS)
        .context("Xen's intercepts of control registers")?;
    fs::write(&xen.hypervisor, bytes)?;
    Ok(())
}

fn replace_once(bytes: &mut [u8], from: &[u8], to: &[u8]) -> Result<()> {
    let places = bytes.windows(from.len()).enumerate();
    let mut places = places.filter(|(_, window)| *window == from);
    let at = places.next().map(|(at, _)| at);
    ensure!(places.next().is_none(), "not once in the file");
    let place = at.and_then(|at| bytes.get_mut(at..at + to.len()));
    place.context("not in the file")?.copy_from_slice(to);
    Ok(())
}

fn initramfs(cache: &Cache, kernel: &Path, guests: &[Guest<'_>], begin: &str) -> Result<Vec<u8>> {
    const FOLDER: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const FILE: u32 = 0o100_644;
    const LINK: u32 = 0o120_777;
    let mut out = Cpio::default();
    let mut add = |name: &str, mode, content: &[u8]| out.entry(name, mode, (0, 0), content);
    for folder in [
        "bin",
        "dev",
        "etc",
        "guests",
        "lib",
        "lib/x86_64-linux-gnu",
        "lib64",
        "modules",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr",
        "usr/lib",
        "usr/lib/xen-4.17",
        "usr/lib/xen-4.17/bin",
        "var",
        "var/lib",
        "var/log",
    ] {
        add(folder, FOLDER, &[]);
    }
    let busybox = cache.file("busybox-static", None, "bin/busybox")?;
    add("bin/busybox", PROGRAM, &fs::read(busybox)?);
    add("init", PROGRAM, INIT.as_bytes());
    add("begin", FILE, begin.as_bytes());

    let place = format!("usr/lib/xen-{VERSION}/bin");
    let utils = cache.folder(&format!("xen-utils-{VERSION}"), None, &format!("./{place}"))?;
    for program in PROGRAMS {
        let name = format!("{place}/{program}");
        let content = fs::read(utils.join(&name)).with_context(|| format!("no {program}"))?;
        add(&name, PROGRAM, &content);
    }
    for (package, libraries) in PACKAGES {
        let root = cache.folder(package, None, &format!("./{libraries}"))?;
        let folder = root.join(libraries);
        let mut files: Vec<_> = fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files {
            let name = file.file_name().to_string_lossy().into_owned();
            if !WANTED.iter().any(|wanted| name.starts_with(wanted)) {
                continue;
            }
            let target = format!("lib/x86_64-linux-gnu/{name}");
            let kind = file.file_type()?;
            if kind.is_symlink() {
                let link = fs::read_link(file.path())?;
                add(&target, LINK, link.to_string_lossy().as_bytes());
            } else if kind.is_file() {
                let content = fs::read(file.path())?;
                add(&target, PROGRAM, &content);
            }
        }
    }
    let loader = "ld-linux-x86-64.so.2";
    let link = format!("/lib/x86_64-linux-gnu/{loader}");
    add(&format!("lib64/{loader}"), LINK, link.as_bytes());

    let release = kernel
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"))
        .context("a kernel whose file does not say its version")?;
    let drivers = format!("lib/modules/{release}/kernel/drivers/xen");
    let modules = cache.folder(
        &format!("linux-image-{release}"),
        None,
        &format!("./{drivers}"),
    )?;
    for module in MODULES {
        let path = modules.join(&drivers).join(format!("{module}.ko"));
        let name = module.rsplit('/').next().unwrap_or(module);
        let content =
            fs::read(&path).with_context(|| format!("kernel {release} has no module {module}"))?;
        add(&format!("modules/{name}.ko"), FILE, &content);
    }
    for guest in guests {
        if guest.name.contains(|c: char| !c.is_ascii_alphanumeric()) {
            bail!("{:?} is no name for a guest", guest.name);
        }
        let elf = fs::read(guest.kernel)
            .with_context(|| format!("cannot read {}", guest.kernel.display()))?;
        let kernel = format!("guests/{}.elf", guest.name);
        add(&kernel, FILE, &elf);
        let mut more = guest.more.to_owned();
        if let Some(initrd) = guest.initrd {
            let content =
                fs::read(initrd).with_context(|| format!("cannot read {}", initrd.display()))?;
            let initrd = format!("guests/{}.initrd", guest.name);
            add(&initrd, FILE, &content);
            more.push_str(&format!("ramdisk = \"/{initrd}\"\n"));
        }
        // Version 2 of grant tables is not offered by microvisor, so it is not offered here.
        let text = format!(
            "name = \"{}\"\ntype = \"pvh\"\nkernel = \"/{kernel}\"\ncmdline = \"{}\"\nmemory = {}\n\
             vcpus = 1\nmax_grant_version = 1\non_crash = \"preserve\"\non_poweroff = \"preserve\"\n{more}",
            guest.name, guest.cmdline, guest.memory_mib
        );
        add(&format!("guests/{}.cfg", guest.name), FILE, text.as_bytes());
    }
    Ok(out.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_exactly_once_is_replaced() {
        let mut bytes = *b"abcabd";
        assert!(replace_once(&mut bytes, b"ab", b"xx").is_err());
        assert!(replace_once(&mut bytes, b"zz", b"xx").is_err());
        replace_once(&mut bytes, b"abd", b"xyz").unwrap();
        assert_eq!(&bytes, b"abcxyz");
    }
}
