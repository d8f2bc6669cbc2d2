//! What files become, and what is said about them.

use super::*;
use crate::syntax::parse;
use proptest::prelude::*;

const LEAST: &str = "name='a'\ntype='pvh'\nkernel='k'\nmemory=64\n";

fn read(more: &str) -> Result<(Guest, Vec<Remark>), Vec<Remark>> {
    let text = format!("{LEAST}{more}");
    guest(&parse(text.as_bytes()).unwrap(), 4)
}

fn refused(more: &str) -> String {
    let remarks = read(more).unwrap_err();
    let refused: Vec<_> = remarks.iter().filter(|r| r.refused).collect();
    assert_eq!(refused.len(), 1, "{more}: {remarks:?}");
    refused[0].to_string()
}

#[test]
fn a_debian_guest_is_read() {
    let config = parse(
        b"name = 'debian'\ntype = 'pvh'\nkernel = '/boot/vmlinuz'\nramdisk = '/boot/initrd.img'\n\
          root = '/dev/xvda1'\nextra = 'ro quiet'\nmemory = 512\nmaxmem = '512'\nvcpus = 2\n\
          cpus = '2-3'\ndisk = ['root,raw,xvda1,rw']\non_crash = 'restart'\nvif = []\n\
          uuid = 'c3a8a5c4-0000-1111-2222-333344445555'\nmax_grant_version = 1\n",
    );
    let (guest, remarks) = guest(&config.unwrap(), 4).unwrap();
    assert_eq!(remarks, []);
    assert_eq!(
        guest,
        Guest {
            name: "debian".into(),
            kernel: "/boot/vmlinuz".into(),
            ramdisk: Some("/boot/initrd.img".into()),
            cmdline: "root=/dev/xvda1 ro quiet".into(),
            memory_mib: 512,
            vcpus: [2, 3].into(),
            disks: [Disk {
                target: "root".into(),
                vdev: "xvda1".into(),
                read_only: false,
                discard: true,
                backend: None,
            }]
            .into(),
            poweroff_restarts: false,
            reboot_restarts: true,
            crash_restarts: true,
            max_grant_version: 1,
        }
    );
}

#[test]
fn what_is_ignored_is_named_with_its_place() {
    let (guest, remarks) =
        read("vnc = 1\n cpu_weight = 256\nroot='x'\ncmdline='y'\nname='b'").unwrap();
    let said: Vec<String> = remarks.iter().map(Remark::to_string).collect();
    assert_eq!(
        said,
        [
            "line 5, column 1: vnc is not supported and ignored",
            "line 6, column 2: cpu_weight is not supported and ignored",
            "line 7, column 6: root is ignored, because there is a cmdline",
            "line 9, column 1: name is set again; this value counts",
        ]
    );
    assert_eq!((guest.cmdline.as_str(), guest.name.as_str()), ("y", "b"));
    assert_eq!(guest.max_grant_version, 2, "as with xl");
}

#[test]
fn what_would_make_another_guest_is_refused() {
    for (more, says) in [
        ("vif = ['']", "line 5, column 1: vif is not supported, and"),
        ("pci = ['01:00.0']", "pci is not"),
        ("type = 'hvm'", "line 5, column 8: type \"hvm\""),
        ("firmware = 'ovmf'", "firmware"),
        ("maxmem = 128", "maxmem 128"),
        ("memory = 63", "63 is not possible"),
        ("memory = 'much'", "a number is expected"),
        ("vcpus = 33", "1 to 32"),
        ("max_grant_version = 0", "1 or 2, not 0"),
        ("max_grant_version = '3'", "1 or 2, not 3"),
        ("max_grant_version = []", "a number is expected"),
        ("vcpus = 2\nmaxvcpus = 4", "maxvcpus 4"),
        ("cpus = '0-4'", "CPUs 0 to 3"),
        ("cpus = '1,^1'", "leaves no CPU"),
        ("cpus = 'node:0'", "no CPU"),
        ("disk = 'x'", "a list is expected"),
        (
            "disk = ['root,qcow2,xvda']",
            "line 5, column 9: disk: format qcow2",
        ),
        ("disk = ['a,,xvda','b,,xvda']", "two are called xvda"),
        ("on_crash = 'preserve'", "preserve"),
        ("uuid = 'x'", "no uuid"),
        ("name = 'a b'", "no name"),
        ("kernel = ''", "kernel is empty"),
    ] {
        let said = refused(more);
        assert!(said.contains(says), "{more}: {said}");
    }
    let nothing = guest(&Config::default(), 1).unwrap_err();
    assert_eq!(
        nothing.len(),
        4,
        "name, type, kernel and memory: {nothing:?}"
    );
}

#[test]
fn vcpus_are_pinned_as_cpus_says() {
    for (more, cpus) in [
        ("vcpus = 6", &[0, 1, 2, 3, 0, 1][..]),
        ("vcpus = 2\ncpus = 3", &[3, 3]),
        ("vcpus = 3\ncpus = 'all,^0'", &[1, 2, 3]),
        ("vcpus = 3\ncpus = ['2', '3-1,1']", &[]),
        ("vcpus = 3\ncpus = ['2', 1]", &[2, 1, 2]),
    ] {
        match read(more) {
            Ok((guest, _)) => assert_eq!(guest.vcpus, cpus, "{more}"),
            Err(_) => assert!(cpus.is_empty(), "{more}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_settings_are_a_guest_or_remarks(
        settings in proptest::collection::vec(
            (proptest::sample::select(KNOWN), "([0-9]{1,3}|'[a-z0-9,^=-]{0,12}'|\\['[a-z0-9,^-]{0,9}'\\])"),
            0..8,
        ),
        cpus in 0u32..300,
    ) {
        let text: String = settings.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
        if let Ok(config) = parse(format!("{LEAST}{text}").as_bytes()) {
            match guest(&config, cpus) {
                Ok((guest, _)) => {
                    prop_assert!(guest.vcpus.iter().all(|cpu| *cpu < cpus.max(1)));
                    prop_assert!(!guest.vcpus.is_empty() && guest.memory_mib.is_multiple_of(2));
                }
                Err(remarks) => prop_assert!(remarks.iter().any(|remark| remark.refused)),
            }
        }
    }
}
