//! The guest of the rows about whole systems: Debian's stock kernel with busybox. Its first process
//! says when the shell could begin, sleeps, and says so again, each by a short line on Xen's debug
//! port, byte by byte: the port number would move on otherwise.

use std::path::Path;

use anyhow::Result;
use image_builder::debian::Cache;
use image_builder::initramfs::Cpio;

/// It has a shell.
pub const SHELL: &str = "@S";
/// It has slept for [`IDLE_SECONDS`] since.
pub const RESTED: &str = "@R";
/// Long, since the instructions of both ends are counted from outside, a little late.
pub const IDLE_SECONDS: u64 = 1000;
/// Its command line.
pub const CMDLINE: &str = "console=hvc0 quiet";

/// The initramfs. The shell that runs commands at [`SHELL`] is the one that a user would get.
pub fn initramfs(cache: &Cache, into: &Path) -> Result<()> {
    let busybox = cache.file("busybox-static", None, "bin/busybox")?;
    let init = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev 2>/dev/null\n\
         put() {{ dd of=/dev/port bs=1 seek=233 count=1 2>/dev/null; }}\n\
         say() {{ printf @ | put; printf $1 | put; echo | put; }}\n\
         say S\n\
         sleep {IDLE_SECONDS}\n\
         say R\n\
         poweroff -f\n"
    );
    let mut out = Cpio::default();
    for folder in ["bin", "dev", "proc", "sys"] {
        out.entry(folder, 0o040_755, (0, 0), &[]);
    }
    out.entry("dev/console", 0o020_600, (5, 1), &[]);
    out.entry("bin/busybox", 0o100_755, (0, 0), &std::fs::read(busybox)?);
    out.entry("init", 0o100_755, (0, 0), init.as_bytes());
    std::fs::write(into, out.finish())?;
    Ok(())
}
