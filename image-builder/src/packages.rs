//! Debian packages that the tools need: finds what is missing, installs it when run as root,
//! otherwise prints the one command line that does. Package sources are the machine's own; the
//! only file written is a source for bookworm-backports, made from the bookworm source that is
//! there already, so that a mirror stays a mirror.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::{say, step};

/// Where apt reads its sources.
const SOURCES: &str = "/etc/apt/sources.list.d";
/// QEMU of this version and later emulates what is needed.
pub const QEMU_MAJOR: u32 = 10;

/// Something that must be there, and the package that brings it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// A program on the path, or a file if it starts with `/`.
    pub what: &'static str,
    /// Debian package.
    pub package: &'static str,
}

/// QEMU.
pub const QEMU: Tool = Tool {
    what: "qemu-system-x86_64",
    package: "qemu-system-x86",
};
/// A C++ compiler, for the fuzzer.
pub const CXX: Tool = Tool {
    what: "c++",
    package: "g++",
};
/// UEFI firmware.
pub const OVMF: Tool = Tool {
    what: "/usr/share/OVMF/OVMF_CODE_4M.fd",
    package: "ovmf",
};
/// What makes media that boot on BIOS and UEFI.
pub const MEDIA: &[Tool] = &[
    Tool {
        what: "grub-mkimage",
        package: "grub-common",
    },
    Tool {
        what: "/usr/lib/grub/i386-pc/multiboot2.mod",
        package: "grub-pc-bin",
    },
    Tool {
        what: "/usr/lib/grub/x86_64-efi/multiboot2.mod",
        package: "grub-efi-amd64-bin",
    },
    Tool {
        what: "xorriso",
        package: "xorriso",
    },
    Tool {
        what: "mformat",
        package: "mtools",
    },
];

/// What makes a Debian root file system on an ext4 partition, and checks it. Not every path has the folders
/// of the superuser's programs.
pub const ROOT_FS: &[Tool] = &[
    Tool {
        what: "/usr/sbin/debootstrap",
        package: "debootstrap",
    },
    Tool {
        what: "/sbin/mke2fs",
        package: "e2fsprogs",
    },
];

/// Where `name` is on the path.
pub fn program(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        return Some(PathBuf::from(name)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

fn qemu_major() -> Option<u32> {
    let out = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.split("version ")
        .nth(1)?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// Whether this runs as root.
pub fn is_root() -> bool {
    let out = Command::new("id").arg("-u").output();
    out.is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

/// Makes sure that all of `tools` are there.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let mut plain: Vec<&str> = Vec::new();
    let mut backports: Vec<&str> = Vec::new();
    for tool in tools {
        if tool.package == QEMU.package {
            if qemu_major().is_none_or(|major| major < QEMU_MAJOR) {
                let list = if codename().as_deref() == Some("bookworm") {
                    &mut backports
                } else {
                    &mut plain
                };
                list.push(tool.package);
            }
        } else if program(tool.what).is_none() {
            plain.push(tool.package);
        }
    }
    if plain.is_empty() && backports.is_empty() {
        return Ok(());
    }
    let steps = steps(&plain, &backports)?;
    if !is_root() {
        bail!(
            "missing Debian packages: {}. This installs them:\n    sudo sh -c '{}'",
            [plain, backports].concat().join(", "),
            steps.join(" && ")
        );
    }
    say("Installing", [plain, backports.clone()].concat().join(", "));
    for line in &steps {
        step("Running", line, || shell(line))?;
    }
    if !backports.is_empty() && qemu_major().is_none_or(|major| major < QEMU_MAJOR) {
        bail!("QEMU {QEMU_MAJOR} or later is needed; apt installed another one");
    }
    Ok(())
}

/// The shell commands that install packages; none of them contains a single quote.
fn steps(plain: &[&str], backports: &[&str]) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let install = "DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends";
    if !backports.is_empty()
        && let Some(source) = backports_source()?
    {
        let path = format!("{SOURCES}/bookworm-backports.sources");
        out.push(format!(
            "printf \"{}\" > {path}",
            source.replace('\n', "\\n")
        ));
    }
    out.push("apt-get update -q".into());
    if !plain.is_empty() {
        out.push(format!("{install} {}", plain.join(" ")));
    }
    if !backports.is_empty() {
        out.push(format!(
            "{install} -t bookworm-backports {}",
            backports.join(" ")
        ));
    }
    Ok(out)
}

fn shell(line: &str) -> Result<()> {
    let out = Command::new("sh")
        .arg("-c")
        .arg(line)
        .output()
        .context("cannot start sh")?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr).into_owned()
            + &String::from_utf8_lossy(&out.stdout);
        let tail: Vec<&str> = text.lines().rev().take(15).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("this failed: {line}\n{}", tail.join("\n"));
    }
    Ok(())
}

/// Runs `apt-get update` if it can; where no package lists are there yet, nothing can be fetched.
pub fn refresh() -> Result<()> {
    if !is_root() {
        bail!("apt does not know the packages yet. This mends it:\n    sudo apt-get update");
    }
    step("Running", "apt-get update", || shell("apt-get update -q"))
}

/// The release's name, for instance `bookworm`.
fn codename() -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(line.trim_matches('"').to_owned())
}

/// Makes sure that apt knows the suite `bookworm-backports`, for kernels from there.
pub fn ensure_backports() -> Result<()> {
    let Some(source) = backports_source()? else {
        return Ok(());
    };
    let path = format!("{SOURCES}/bookworm-backports.sources");
    let line = format!(
        "printf \"{}\" > {path} && apt-get update -q",
        source.replace('\n', "\\n")
    );
    if !is_root() {
        bail!("apt has no source for bookworm-backports. This adds it:\n    sudo sh -c '{line}'");
    }
    step("Running", &line, || shell(&line))
}

/// Where Debian 12 comes from on this machine: its mirror, and the keyring that signs it, if apt's source
/// names one as a file.
pub fn bookworm_mirror() -> Result<(String, Option<PathBuf>)> {
    let sources = sources()?;
    let main = bookworm(&sources).context(
        "no apt source for bookworm was found in /etc/apt; add one, so that Debian can be fetched",
    )?;
    let mirror = main.uris.first().context("an apt source without URI")?;
    let keyring = main.more.iter().find_map(|line| {
        let path = line.strip_prefix("Signed-By:")?.trim();
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Ok((mirror.clone(), keyring))
}

fn bookworm(sources: &[AptSource]) -> Option<&AptSource> {
    sources.iter().find(|source| {
        source.suites.iter().any(|suite| suite == "bookworm")
            && source.components.iter().any(|c| c == "main")
    })
}

/// The text of a source for bookworm-backports; none if apt has one.
fn backports_source() -> Result<Option<String>> {
    let sources = sources()?;
    if sources
        .iter()
        .any(|source| source.suites.iter().any(|s| s == "bookworm-backports"))
    {
        return Ok(None);
    }
    let Some(main) = bookworm(&sources) else {
        bail!(
            "no apt source for bookworm was found in /etc/apt; add one for bookworm-backports by hand"
        );
    };
    Ok(Some(main.backports()))
}

/// The machine's own sources of packages.
fn sources() -> Result<Vec<AptSource>> {
    let mut texts = Vec::new();
    let list = Path::new("/etc/apt/sources.list");
    if list.is_file() {
        texts.push((false, std::fs::read_to_string(list)?));
    }
    let mut entries: Vec<PathBuf> = match std::fs::read_dir(SOURCES) {
        Ok(folder) => folder
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect(),
        Err(_) => Vec::new(),
    };
    entries.sort();
    for path in entries {
        match path.extension().and_then(|e| e.to_str()) {
            Some("sources") => texts.push((true, std::fs::read_to_string(&path)?)),
            Some("list") => texts.push((false, std::fs::read_to_string(&path)?)),
            _ => {}
        }
    }
    let read = texts.iter().flat_map(|(modern, text)| {
        if *modern {
            deb822(text)
        } else {
            one_line(text)
        }
    });
    Ok(read.collect())
}

/// A source of packages, from either of apt's formats (sources.list(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct AptSource {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// Further fields, such as `Signed-By`, as deb822 lines.
    more: Vec<String>,
}

impl AptSource {
    fn backports(&self) -> String {
        let mut out = format!(
            "Types: deb\nURIs: {}\nSuites: bookworm-backports\nComponents: main\n",
            self.uris.join(" ")
        );
        for line in &self.more {
            out += line;
            out.push('\n');
        }
        out
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn deb822(text: &str) -> Vec<AptSource> {
    let mut out = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let mut source = AptSource::default();
        let mut used = true;
        // A folded key block inside `Signed-By` spans several lines.
        let mut folded = false;
        for line in stanza {
            if line.starts_with([' ', '\t']) {
                if folded {
                    source.more.push((*line).to_owned());
                }
                continue;
            }
            folded = false;
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            match key.to_ascii_lowercase().as_str() {
                "types" => used &= value.split_whitespace().any(|word| word == "deb"),
                "enabled" => used &= value.trim() != "no",
                "uris" => source.uris = words(value),
                "suites" => source.suites = words(value),
                "components" => source.components = words(value),
                "signed-by" | "trusted" | "check-valid-until" | "architectures" => {
                    folded = true;
                    source.more.push((*line).to_owned());
                }
                _ => {}
            }
        }
        if used && !source.uris.is_empty() {
            out.push(source);
        }
    }
    out
}

fn one_line(text: &str) -> Vec<AptSource> {
    let mut out = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("").trim();
        let Some(rest) = line.strip_prefix("deb ") else {
            continue;
        };
        let rest = rest.trim_start();
        let mut source = AptSource::default();
        let rest = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((options, rest)) => {
                for option in options.split_whitespace() {
                    let Some((key, value)) = option.split_once('=') else {
                        continue;
                    };
                    let key = match key {
                        "signed-by" => "Signed-By",
                        "trusted" => "Trusted",
                        "check-valid-until" => "Check-Valid-Until",
                        "arch" => "Architectures",
                        _ => continue,
                    };
                    source
                        .more
                        .push(format!("{key}: {}", value.replace(',', " ")));
                }
                rest
            }
            None => rest,
        };
        let mut parts = words(rest).into_iter();
        source.uris.extend(parts.next());
        source.suites.extend(parts.next());
        source.components = parts.collect();
        if !source.suites.is_empty() {
            out.push(source);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mirror_stays_a_mirror_in_both_formats() {
        let modern = "# comment\nTypes: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                      Components: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n\nTypes: deb-src\nURIs: http://x\nSuites: y\n";
        let old = "deb-src http://no/ bookworm main\n\
                   deb [signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm main # here\n";
        for sources in [deb822(modern), one_line(old)] {
            assert_eq!(sources.len(), 1);
            assert_eq!(
                sources[0].backports(),
                "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n\
                 Signed-By: /usr/share/keyrings/k.gpg\n"
            );
        }
    }

    #[test]
    fn a_disabled_source_is_not_used() {
        assert!(deb822("Enabled: no\nTypes: deb\nURIs: http://x\nSuites: bookworm\n").is_empty());
    }

    proptest! {
        #[test]
        fn any_source_file_is_read_without_panic(text in "[ -~\n]{0,200}") {
            deb822(&text);
            one_line(&text);
        }
    }
}
