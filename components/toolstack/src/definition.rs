//! A guest's file to what root is told, and what is said about it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use idl::Name;
use idl::operator::{Definition, Disk, Ends, Path};

/// Longest file that is read.
pub const FILE_MAX: usize = 64 * 1024;

/// Reads a file for a machine of so many CPUs: a definition if it is one, and what is to be said.
pub fn read(path: &str, bytes: &[u8], cpus: u32) -> (Option<Definition>, Vec<String>) {
    let config = match xl_cfg::parse(bytes) {
        Ok(config) => config,
        Err(mistake) => return (None, [format!("{path}: {mistake}")].into()),
    };
    let (guest, remarks) = match xl_cfg::guest(&config, cpus) {
        Ok((guest, remarks)) => (Some(guest), remarks),
        Err(remarks) => (None, remarks),
    };
    let mut said: Vec<String> = remarks
        .iter()
        .map(|remark| format!("{path}: {remark}"))
        .collect();
    let definition = guest.and_then(|guest| match fit(&guest) {
        Ok(definition) => Some(definition),
        Err(what) => {
            said.push(format!("{path}: {what}"));
            None
        }
    });
    (definition, said)
}

/// The guest as a message carries it.
fn fit(guest: &xl_cfg::Guest) -> Result<Definition, String> {
    let long = |key: &str, most: usize| format!("{key} is too long: at most {most} bytes");
    let name = |key: &str, text: &str| Name::try_from(text).map_err(|_| long(key, 32));
    let path = |key: &str, text: &str| Path::try_from(text).map_err(|_| long(key, 112));
    let mut disks = idl::heapless::Vec::new();
    for disk in &guest.disks {
        let disk = Disk {
            volume: name("a disk's target", &disk.target)?,
            device: name("a disk's vdev", &disk.vdev)?,
            read_only: disk.read_only,
            discard: disk.discard,
            driver: disk
                .backend
                .as_ref()
                .map(|backend| name("a disk's backend", backend))
                .transpose()?,
        };
        let most = format!("too many disks: at most {}", idl::operator::DISKS_MAX);
        disks.push(disk).map_err(|_| most)?;
    }
    Ok(Definition {
        name: name("name", &guest.name)?,
        memory_mib: guest.memory_mib,
        vcpus: idl::heapless::Vec::from_slice(&guest.vcpus)
            .map_err(|_| "too many vcpus".to_string())?,
        kernel: path("kernel", &guest.kernel)?,
        initrd: guest
            .ramdisk
            .as_ref()
            .map(|ramdisk| path("ramdisk", ramdisk))
            .transpose()?,
        cmdline: guest
            .cmdline
            .as_str()
            .try_into()
            .map_err(|_| long("the command line", 2048))?,
        disks,
        ends: Ends {
            poweroff: guest.poweroff_restarts,
            reboot: guest.reboot_restarts,
            crash: guest.crash_restarts,
        },
        max_grant_version: guest.max_grant_version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = "name='a'\ntype='pvh'\nkernel='k'\nmemory=64\ndisk=['root,,xvda,ro']\n";

    #[test]
    fn a_file_becomes_a_definition() {
        let (definition, said) = read("a.cfg", format!("{FILE}vnc=1").as_bytes(), 2);
        let definition = definition.unwrap();
        assert_eq!(
            said,
            ["a.cfg: line 6, column 1: vnc is not supported and ignored"]
        );
        assert_eq!((definition.name.as_str(), definition.disks.len()), ("a", 1));
        assert!(definition.disks[0].read_only && definition.ends.reboot);
        assert_eq!(definition.max_grant_version, 2);
        assert!(definition.disks[0].discard);
        let without = FILE.replace("ro'", "ro,no-discard'");
        let (definition, said) = read("a.cfg", without.as_bytes(), 2);
        assert_eq!(
            (definition.unwrap().disks[0].discard, said.len()),
            (false, 0)
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_file_and_place() {
        for (more, says) in [
            (
                "x",
                "a.cfg: line 6, column 2: the end of the file where = should be",
            ),
            ("vif=['']", "a.cfg: line 6, column 1: vif is not"),
            (
                &format!("name='{}'", "x".repeat(33)),
                "a.cfg: name is too long",
            ),
            (
                &format!("extra='{}'", "x".repeat(2049)),
                "command line is too long",
            ),
            (
                &format!("kernel='{}'", "x".repeat(113)),
                "kernel is too long",
            ),
        ] {
            let (definition, said) = read("a.cfg", format!("{FILE}{more}").as_bytes(), 2);
            assert!(definition.is_none(), "{more}");
            assert!(said.iter().any(|line| line.contains(says)), "{said:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn any_file_is_a_definition_or_something_is_said(more in ".{0,60}") {
            let (definition, said) = read("f", format!("{FILE}{more}").as_bytes(), 2);
            prop_assert!(definition.is_some() || !said.is_empty());
        }
    }
}
