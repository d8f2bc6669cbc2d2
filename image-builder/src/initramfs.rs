//! `builtin:busybox`: an initramfs (cpio, "newc") with busybox, a few folders and a script as
//! first process that ends in a shell on the guest's console. Same input, same bytes.

/// What runs first. It mounts what a shell needs; `poweroff -f` and `reboot -f` end the guest.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root PS1='# '
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
for word in $(cat /proc/cmdline); do
    case $word in console=*) console=${word#console=} ;; esac
done
console=${console%%,*}
[ -c "/dev/$console" ] || console=console
echo "Linux $(uname -r): $(nproc) CPUs, $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB. End with: poweroff -f, reboot -f"
# A shell that ends is started again: the first process must never exit.
while :; do
    setsid sh -c "exec sh -i </dev/$console >/dev/$console 2>&1"
done
"#;

/// The archive: `busybox` is the static binary.
pub fn busybox(busybox: &[u8]) -> Vec<u8> {
    let mut out = Cpio::default();
    for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        out.entry(folder, 0o040_755, (0, 0), &[]);
    }
    out.entry("dev/console", 0o020_600, (5, 1), &[]);
    out.entry("bin/busybox", 0o100_755, (0, 0), busybox);
    out.entry("init", 0o100_755, (0, 0), INIT.as_bytes());
    out.finish()
}

/// A cpio archive in the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Debug, Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    /// Appends a file, a folder, a symbolic link (`content` is its target) or a device node, as the
    /// type in `mode` says (S_IFMT). Folders come before what is in them.
    pub fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // time
            content.len() as u32,
            0,
            0, // device of the file itself
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum: none
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }
}
