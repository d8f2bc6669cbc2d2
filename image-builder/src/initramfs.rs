//! `builtin:busybox`: an initramfs (cpio, "newc") with busybox, a few folders and a script as
//! first process that ends in a shell on the guest's console; with more beside it where that is asked
//! for. Same input, same bytes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::debian::Cache;

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

/// What Linux runs when it is asked through the store (orderly_poweroff in its kernel/reboot.c): the first
/// process is a script, which nobody else could ask.
const END: &[(&str, &str)] = &[
    (
        "sbin/poweroff",
        "#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n",
    ),
    (
        "sbin/reboot",
        "#!/bin/busybox sh\nexec /bin/busybox reboot -f\n",
    ),
];

/// A file, folder or link of the archive.
#[derive(Clone, Debug)]
pub struct Entry {
    name: String,
    mode: u32,
    content: Vec<u8>,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;

/// The archive: `busybox` is the static binary, `more` is put beside it.
pub fn busybox(busybox: &[u8], more: &[Entry]) -> Vec<u8> {
    let mut out = Cpio::default();
    for folder in ["bin", "dev", "etc", "proc", "root", "sbin", "sys", "tmp"] {
        out.entry(folder, FOLDER, (0, 0), &[]);
    }
    out.entry("dev/console", 0o020_600, (5, 1), &[]);
    out.entry("bin/busybox", PROGRAM, (0, 0), busybox);
    out.entry("init", PROGRAM, (0, 0), INIT.as_bytes());
    for (name, script) in END {
        out.entry(name, PROGRAM, (0, 0), script.as_bytes());
    }
    for Entry {
        name,
        mode,
        content,
    } in more
    {
        out.entry(name, *mode, (0, 0), content);
    }
    out.finish()
}

/// Where Debian 12 has libraries.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
/// The dynamic loader that Debian's programs name.
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Debian's xenstore tools, and the libraries that they are linked with.
pub fn xenstore_tools(cache: &Cache) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for folder in ["lib", LIBRARIES, "lib64"] {
        entries.push(Entry {
            name: folder.into(),
            mode: FOLDER,
            content: Vec::new(),
        });
    }
    entries.push(Entry {
        name: format!("lib64/{LOADER}"),
        mode: LINK,
        content: format!("/{LIBRARIES}/{LOADER}").into_bytes(),
    });
    let usr = format!("usr/{LIBRARIES}");
    let wanted = [
        ("xenstore-utils", "usr/bin", "bin", "xenstore"),
        ("libxenstore4", usr.as_str(), LIBRARIES, "libxenstore.so"),
        (
            "libxentoolcore1",
            usr.as_str(),
            LIBRARIES,
            "libxentoolcore.so",
        ),
        ("libc6", LIBRARIES, LIBRARIES, "libc.so"),
        // For ending threads, which is how xenstore-watch ends.
        ("libgcc-s1", LIBRARIES, LIBRARIES, "libgcc_s.so"),
        ("libc6", LIBRARIES, LIBRARIES, LOADER),
    ];
    for (package, from, to, prefix) in wanted {
        let folder = cache
            .folder(package, None, &format!("./{from}"))?
            .join(from);
        let mut files: Vec<_> = fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
        files.retain(|file| file.file_name().to_string_lossy().starts_with(prefix));
        files.sort_by_key(fs::DirEntry::file_name);
        ensure!(
            !files.is_empty(),
            "package {package} has no {from}/{prefix}"
        );
        for file in files {
            let name = format!("{to}/{}", file.file_name().to_string_lossy());
            let (mode, content) = if file.file_type()?.is_symlink() {
                let link = fs::read_link(file.path())?;
                (LINK, link.to_string_lossy().into_owned().into_bytes())
            } else {
                (PROGRAM, fs::read(file.path())?)
            };
            entries.push(Entry {
                name,
                mode,
                content,
            });
        }
    }
    Ok(entries)
}

/// Modules that a disk needs: front end, back end, and a disk in RAM for the latter to serve. None of
/// them depends on another.
const DISK_MODULES: &[&str] = &[
    "xen-blkfront.ko",
    "xen-blkback/xen-blkback.ko",
    "brd.ko",
    "loop.ko",
];

/// They as files of `lib/modules`, from a kernel's folder `drivers/block`; compressed as they are there.
pub fn disk_modules(folder: &Path) -> Result<Vec<Entry>> {
    let mut entries = vec![Entry {
        name: "lib/modules".into(),
        mode: FOLDER,
        content: Vec::new(),
    }];
    for module in DISK_MODULES {
        let names = [module.to_string(), format!("{module}.xz")];
        let found = names.iter().find(|name| folder.join(name).is_file());
        let found = found.with_context(|| format!("{} has no {module}", folder.display()))?;
        let file = found.rsplit('/').next().unwrap_or(found);
        entries.push(Entry {
            name: format!("lib/modules/{file}"),
            mode: FILE,
            content: fs::read(folder.join(found))?,
        });
    }
    Ok(entries)
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
