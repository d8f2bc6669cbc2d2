//! The specification of one disk, as a string of the list `disk`: xl-disk-configuration(5). Parameters
//! are separated by commas; those without a key are, in this order, target, format, vdev and access.
//! `target=` takes the rest of the string, commas included.
//!
//! A target is the name of a volume of the system's description: there is no dom0 whose files or
//! devices could be meant. What a guest would notice the lack of is refused.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The volume.
    pub target: String,
    /// What the guest calls it, for instance `xvda`.
    pub vdev: String,
    /// The guest cannot write.
    pub read_only: bool,
    /// The guest may give up sectors, if the volume can.
    pub discard: bool,
    /// The guest that serves it: a driver domain.
    pub backend: Option<String>,
}

impl fmt::Display for Disk {
    /// As a specification that reads as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.read_only { "ro" } else { "rw" };
        let Disk { target, vdev, .. } = self;
        write!(f, "format=raw, vdev={vdev}, access={access}, ")?;
        if !self.discard {
            f.write_str("no-discard, ")?;
        }
        if let Some(backend) = &self.backend {
            write!(f, "backend={backend}, ")?;
        }
        write!(f, "target={target}")
    }
}

/// What was said so far.
#[derive(Default)]
struct Said {
    target: Option<String>,
    format: Option<()>,
    vdev: Option<String>,
    read_only: Option<bool>,
    discard: Option<bool>,
    backend: Option<String>,
}

fn once<T>(into: &mut Option<T>, what: &str, value: T) -> Result<(), String> {
    match into.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{what} is said twice")),
    }
}

impl Said {
    fn format(&mut self, format: &str) -> Result<(), String> {
        match format {
            "" | "raw" => once(&mut self.format, "format", ()),
            "qcow" | "qcow2" | "vhd" | "qed" | "empty" => {
                Err(format!("format {format} is not supported, only raw"))
            }
            _ => Err(format!("there is no format {format:?}")),
        }
    }

    fn access(&mut self, access: &str) -> Result<(), String> {
        let read_only = match access {
            "r" | "ro" => true,
            "" | "w" | "rw" => false,
            _ => return Err(format!("access is r, ro, w or rw, not {access:?}")),
        };
        once(&mut self.read_only, "access", read_only)
    }

    fn keyed(&mut self, key: &str, value: &str) -> Result<(), String> {
        match (key, value) {
            ("format", format) => self.format(format),
            ("vdev", vdev) => once(&mut self.vdev, "vdev", vdev.into()),
            ("access", access) => self.access(access),
            ("backend", "" | "0" | "Domain-0") => Ok(()),
            ("backend", guest) => once(&mut self.backend, "backend", guest.into()),
            ("devtype", "disk") => Ok(()),
            // Which of a dom0's programs serves it: a volume says itself who serves it.
            ("backendtype", "phy" | "tap" | "qdisk") => Ok(()),
            ("specification", "xen") => Ok(()),
            ("devtype", "cdrom") => Err("a cdrom is not supported, only disks".into()),
            ("script" | "specification" | "devtype" | "backendtype", _) => {
                Err(format!("{key}={value} is not supported"))
            }
            _ => Err(format!(
                "there is no parameter {key:?}, or it is not supported"
            )),
        }
    }

    fn positional(&mut self, text: &str) -> Result<(), String> {
        if self.target.is_none() {
            self.target = Some(bare(text)?.into());
        } else if self.format.is_none() {
            return self.format(text);
        } else if self.vdev.is_none() {
            match text.rsplit_once(':') {
                None => self.vdev = Some(text.into()),
                Some((vdev, "disk")) => self.vdev = Some(vdev.into()),
                Some(_) => return Err(format!("{text}: only disks are supported")),
            }
        } else if self.read_only.is_none() {
            return self.access(text);
        } else {
            return Err(format!("too many parameters without a key: {text:?}"));
        }
        Ok(())
    }
}

/// A target without one of xend's prefixes that mean nothing here.
fn bare(target: &str) -> Result<&str, String> {
    match target.split_once(':') {
        None => Ok(target),
        Some(("phy" | "raw", name)) => Ok(name),
        Some((prefix, _)) => Err(format!("target prefix {prefix}: is not supported")),
    }
}

/// A name as xen-vbd-interface(7) has them: `xvda`, `xvda1`, `sdb`, `hdc2`, `d0p1`; or a number.
fn is_vdev(vdev: &str) -> bool {
    let digits = |text: &str| text.len() <= 3 && text.bytes().all(|b| b.is_ascii_digit());
    let lettered = ["xvd", "sd", "hd"].iter().find_map(|prefix| {
        let rest = vdev.strip_prefix(prefix)?;
        let letters = rest.trim_end_matches(|c: char| c.is_ascii_digit());
        let good =
            (1..=3).contains(&letters.len()) && letters.bytes().all(|b| b.is_ascii_lowercase());
        Some(good && digits(rest.get(letters.len()..)?))
    });
    let numbered = || {
        let (disk, part) = vdev.strip_prefix('d')?.split_once('p')?;
        Some(!disk.is_empty() && !part.is_empty() && digits(disk) && digits(part))
    };
    lettered.or_else(numbered).unwrap_or(false)
}

/// Reads a specification. The error says what is wrong with it.
pub fn parse(text: &str) -> Result<Disk, String> {
    let mut said = Said::default();
    let mut rest = text.trim_ascii_start();
    while !rest.is_empty() {
        if let Some(target) = rest.strip_prefix("target=") {
            once(
                &mut said.target,
                "target",
                target.trim_ascii_end().to_string(),
            )?;
            break;
        }
        let (parameter, more) = rest.split_once(',').unwrap_or((rest, ""));
        let parameter = parameter.trim_ascii();
        match parameter.split_once('=') {
            Some((key, value)) => said.keyed(key, value)?,
            None => match parameter {
                "cdrom" => return Err("a cdrom is not supported, only disks".into()),
                // Promises about dom0's side of a disk; nothing here depends on them.
                "direct-io-safe" | "trusted" => {}
                "untrusted" => return Err(format!("{parameter} is not supported")),
                "discard" => once(&mut said.discard, "discard", true)?,
                "no-discard" => once(&mut said.discard, "discard", false)?,
                text => said.positional(text)?,
            },
        }
        rest = more.trim_ascii_start();
    }
    let target = said.target.filter(|target| !target.is_empty());
    let target = target.ok_or("it says no target: the name of a volume")?;
    let vdev = said.vdev.ok_or("it says no vdev, for instance vdev=xvda")?;
    if !is_vdev(&vdev) {
        return Err(format!("{vdev:?} is no vdev; write xvda, xvda1, xvdb"));
    }
    Ok(Disk {
        target,
        vdev,
        read_only: said.read_only.unwrap_or(false),
        discard: said.discard.unwrap_or(true),
        backend: said.backend,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn disk(target: &str, vdev: &str, read_only: bool) -> Disk {
        Disk {
            target: target.into(),
            vdev: vdev.into(),
            read_only,
            discard: true,
            backend: None,
        }
    }

    #[test]
    fn keys_and_positions_say_the_same() {
        for text in [
            "format=raw, vdev=xvda, access=ro, target=root",
            "root,raw,xvda,r",
            "root,,xvda,ro",
            "vdev=xvda,access=r,root",
            "phy:root, raw, xvda, r",
            " root , vdev=xvda,format=raw,access=ro,devtype=disk",
        ] {
            assert_eq!(parse(text), Ok(disk("root", "xvda", true)), "{text}");
        }
        assert_eq!(parse("root,,xvda1"), Ok(disk("root", "xvda1", false)));
        assert_eq!(
            parse("vdev=d0p1,target=a,b=c, d"),
            Ok(disk("a,b=c, d", "d0p1", false))
        );
    }

    #[test]
    fn discard_is_offered_unless_it_is_said_not_to_be() {
        let discard = |text| parse(text).map(|disk| disk.discard);
        assert_eq!(discard("root,raw,xvda"), Ok(true));
        assert_eq!(discard("root,raw,xvda,rw,discard"), Ok(true));
        assert_eq!(discard("vdev=xvda,no-discard,target=root"), Ok(false));
        assert!(discard("root,raw,xvda,discard,no-discard").is_err());
    }

    #[test]
    fn a_driver_domain_is_named_by_backend() {
        let backend = |text| parse(text).unwrap().backend;
        assert_eq!(
            backend("backend=storage,vdev=xvda,a").as_deref(),
            Some("storage")
        );
        assert_eq!(backend("backend=0,vdev=xvda,a"), None);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (text, says) in [
            ("", "no target"),
            ("root", "no vdev"),
            ("root,qcow2,xvda", "qcow2"),
            ("root,zip,xvda", "no format"),
            ("root,raw,xvda,rx", "access"),
            ("root,raw,xvda,r,more", "too many"),
            ("root,raw,floppy", "no vdev"),
            ("root,raw,xvda9999", "no vdev"),
            ("root,raw,hdc:cdrom", "only disks"),
            ("cdrom,vdev=hdc", "cdrom"),
            ("root,vdev=xvda,vdev=xvdb", "twice"),
            ("root,vdev=xvda,untrusted", "untrusted"),
            ("root,vdev=xvda,script=block-iscsi", "script"),
            (
                "root,vdev=xvda,backend=a,backend=b",
                "backend is said twice",
            ),
            ("root,vdev=xvda,colour=red", "colour"),
            ("qcow2:root,vdev=xvda", "prefix"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_text_is_a_disk_that_reads_back_or_a_mistake(
            text in prop_oneof![".{0,40}", "(root|vdev=xvda|,|target=a|access=|format=raw|backend=b|no-discard|r| )*"],
        ) {
            if let Ok(disk) = parse(&text) {
                prop_assert_eq!(parse(&disk.to_string()), Ok(disk));
            }
        }
    }
}
