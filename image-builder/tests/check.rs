//! `check` reports every mistake at once, each with its line and advice.

use std::path::Path;

use image_builder::problem::Problems;
use image_builder::rules::{Packages, Wishes, judge};
use image_builder::{manifest, read};
use proptest::prelude::*;

fn packages() -> Packages {
    let mut packages = Packages::new();
    for name in [
        "root",
        "builder",
        "vmm",
        "xenstore",
        "toolstack",
        "bench",
        "blkback",
    ] {
        packages.insert(name.into(), Wishes::default());
    }
    let console = Wishes {
        needs: vec!["supervisor".into()],
        serves: vec!["console".into()],
        ports: vec![(0x3f8, 8)],
        interrupts: vec![4],
    };
    packages.insert("console".into(), console);
    packages
}

fn problems(text: &str) -> Problems {
    let (description, mut problems) = read::text(Path::new("system.toml"), text.into());
    judge(&description, &packages(), &mut problems);
    problems
}

/// The messages with their lines.
fn messages(text: &str) -> Vec<(usize, String)> {
    let problems = problems(text);
    problems
        .list()
        .iter()
        .map(|p| (p.line, format!("{} | {}", p.message, p.advice)))
        .collect()
}

/// Asserts one message at `line` that contains all of `words`.
fn says(text: &str, line: usize, words: &[&str]) {
    let all = messages(text);
    let found = all
        .iter()
        .any(|(at, message)| *at == line && words.iter().all(|word| message.contains(word)));
    assert!(
        found,
        "no message at line {line} with {words:?} in {all:#?}"
    );
}

const GUEST: &str = "[[guest]]\nname = \"linux\"\nkernel = \"debian:linux-image-amd64\"\n";

#[test]
fn restart_is_a_word_or_a_limit() {
    use idl::manifest::Restart;
    let of = |value: &str| {
        let text = format!("{GUEST}[[component]]\nname = \"bench\"\nrestart = {value}\n");
        assert_eq!(messages(&text), [], "{value}");
        let (description, _) = read::text(Path::new("system.toml"), text);
        let manifest = manifest::manifest(&description);
        manifest.component("bench").expect("bench").restart
    };
    assert_eq!(of("\"never\""), Restart::Never);
    assert_eq!(of("\"always\""), Restart::Always);
    assert_eq!(
        of("{ times = 3, seconds = 10 }"),
        Restart::Limited {
            times: 3,
            seconds: 10
        }
    );
    for wrong in [
        "true",
        "\"often\"",
        "{ times = 3 }",
        "{ times = 0, seconds = 1 }",
    ] {
        let text = format!("{GUEST}[[component]]\nname = \"bench\"\nrestart = {wrong}\n");
        says(&text, 6, &["component bench", "`restart`", "times = 5"]);
    }
    let text = format!("{GUEST}[[component]]\nname = \"vmm\"\nrestart = \"always\"\n");
    says(&text, 4, &["component vmm", "per-guest"]);
}

/// A system with a bus, a driver and its client, all of the package `bench`.
const DRIVER: &str = r#"[system]
allow-unprotected-dma = true
[[component]]
name = "pci"
package = "bench"
needs = ["hardware"]
serves = ["pci"]
[[component]]
name = "disk"
package = "bench"
needs = ["pci"]
serves = ["block"]
device = "pci:1af4:1042"
dma = "2M"
client-memory = "2M"
[[component]]
name = "probe"
package = "bench"
needs = ["block"]
"#;

#[test]
fn a_driver_is_described_with_its_device() {
    use idl::manifest::Selector;
    assert_eq!(messages(DRIVER), []);
    let (description, _) = read::text(Path::new("system.toml"), DRIVER.into());
    let manifest = manifest::manifest(&description);
    let disk = manifest.component("disk").unwrap();
    let (vendor, device) = (0x1af4, 0x1042);
    assert_eq!(disk.device, Some(Selector::Id { vendor, device }));
    assert_eq!((disk.dma_bytes, disk.client_bytes), (2 << 20, 2 << 20));
    assert!(manifest.allow_unprotected_dma);
    let audit = image_builder::audit::Graph::of(&manifest).to_string();
    for right in [
        "device pci:1af4:1042: drive, as pci hands it out",
        "memory for the device of disk (2 MiB): read and write, and let its device",
        "memory between disk and probe (2 MiB): read and write\n",
        "all memory of a machine without IOMMU: read and write, through its device",
        "call hardware of root",
        "lend devices: pci",
    ] {
        assert!(audit.contains(right), "no {right:?} in\n{audit}");
    }
}

#[test]
fn a_driver_that_is_described_wrongly_is_told_how() {
    let with = |from: &str, to: &str| DRIVER.replace(from, to);
    let device = with("pci:1af4:1042", "1af4:1042");
    says(
        &device,
        13,
        &["component disk", "device", "pci:class:01.08.02"],
    );
    let bus = with("needs = [\"pci\"]", "needs = []");
    says(&bus, 13, &["component disk has a device", "add \"pci\""]);
    says(
        &with("dma = \"2M\"", "dma = \"65M\""),
        14,
        &["dma", "at most 64 MiB"],
    );
    let client = with("client-memory = \"2M\"", "client-memory = \"4M\"");
    says(&client, 15, &["client-memory", "at most 2 MiB"]);
    let two = with("needs = [\"block\"]", "needs = [\"hardware\"]");
    says(
        &two,
        3,
        &["component pci is not the only one with hardware"],
    );
    let text = with("= true", "= 1");
    says(&text, 2, &["allow-unprotected-dma = true"]);
}

/// A guest with a disk on each kind of volume.
const DISKS: &str = r#"[[component]]
name = "disk"
package = "bench"
serves = ["block"]
[[guest]]
name = "linux"
kernel = "debian:linux-image-amd64"
disks = [
    { volume = "root", device = "xvda" },
    { volume = "tools", device = "xvdb", read-only = true },
    { volume = "image", device = "xvdc", discard = false },
]
[[volume]]
name = "root"
source = "partition:label=root"
[[volume]]
name = "tools"
source = "partition:uuid=c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
overlay = "32M"
[[volume]]
name = "image"
source = "file:Cargo.toml"
"#;

#[test]
fn a_guest_has_disks_that_blkback_serves() {
    use idl::volume::{Backend, Source};
    assert_eq!(messages(DISKS), []);
    let (description, _) = read::text(Path::new("system.toml"), DISKS.into());
    let manifest = manifest::manifest(&description);
    let blkback = manifest.component("blkback").unwrap();
    let needs = blkback.needs.iter().map(|need| need.server.as_str());
    let servers = ["root", "console", "xenstore", "root", "root", "disk"];
    assert_eq!(needs.collect::<Vec<_>>(), servers);
    let [root, tools, image] = blkback.volumes.as_slice() else {
        panic!("{:?}", blkback.volumes)
    };
    assert_eq!(
        root.source,
        Source::PartitionLabel("root".try_into().unwrap())
    );
    assert!(matches!(
        tools.source,
        Source::PartitionUuid([0x28, 0x73, ..])
    ));
    assert_eq!(
        image.source,
        Source::File("volumes/image".try_into().unwrap())
    );
    assert_eq!(blkback.files, ["volumes/image"]);
    assert_eq!((root.read_only, tools.overlay_bytes), (false, 32 << 20));
    assert!(image.read_only, "nobody writes the archive");
    assert_eq!(blkback.memory_bytes, (16 << 20) + (33 << 20));
    let disks = &manifest.guests[0].disks;
    let modes: Vec<_> = disks.iter().map(|disk| disk.read_only).collect();
    assert_eq!(modes, [false, true, true]);
    let discard: Vec<_> = disks.iter().map(|disk| disk.discard).collect();
    assert_eq!(discard, [true, true, false]);
    let backend = Backend::Component("blkback".try_into().unwrap());
    assert!(disks.iter().all(|disk| disk.backend == backend));
    let audit = image_builder::audit::Graph::of(&manifest).to_string();
    for right in [
        "memory of guest linux (256 MiB): pages that the guest grants, for its disks",
        "for services only: disk, console, xenstore, blkback",
    ] {
        assert!(audit.contains(right), "no {right:?} in\n{audit}");
    }
}

#[test]
fn a_system_without_volumes_has_no_backend_and_an_image_needs_no_disk() {
    let (description, _) = read::text(Path::new("system.toml"), GUEST.into());
    assert!(description.component("blkback").is_none());
    let text = format!(
        "{GUEST}disks = [{{ volume = \"a\", device = \"xvda\" }}]\n\
         [[volume]]\nname = \"a\"\nsource = \"file:Cargo.toml\"\noverlay = \"1M\"\n"
    );
    assert_eq!(messages(&text), []);
    let (description, _) = read::text(Path::new("system.toml"), text);
    let manifest = manifest::manifest(&description);
    let blkback = manifest.component("blkback").unwrap();
    assert!(blkback.needs.iter().all(|need| need.interface != "block"));
    assert!(!blkback.volumes[0].read_only && !manifest.guests[0].disks[0].read_only);
}

#[test]
fn a_disk_that_is_described_wrongly_is_told_how() {
    let with = |from: &str, to: &str| {
        assert!(DISKS.contains(from), "{from}");
        DISKS.replace(from, to)
    };
    let text = with("volume = \"root\"", "volume = \"rot\"");
    says(&text, 9, &["no volume \"rot\"", "did you mean \"root\""]);
    let text = with("\"xvdb\"", "\"xvda\"");
    says(&text, 10, &["two disks are called \"xvda\""]);
    let text = with("\"xvdb\"", "\"xvdb1\"");
    says(&text, 10, &["whole disks", "device = \"xvdb\""]);
    let text = with("\"xvdb\"", "\"sda\"");
    says(&text, 10, &["\"xvda\" to \"xvdz\""]);
    let text = with("name = \"tools\"", "name = \"root\"");
    says(&text, 17, &["two volumes are called"]);
    let text = with("partition:label=root", "partition:root");
    says(&text, 15, &["volume root", "partition:label=NAME"]);
    let text = with("c12a7328-", "c12a7328");
    says(&text, 18, &["volume tools", "01234567-89ab-cdef"]);
    let text = with("file:Cargo.toml", "file:nowhere");
    says(&text, 22, &["there is no file"]);
    let text = with("overlay = \"32M\"", "overlay = \"32M\"\nread-only = true");
    says(&text, 19, &["read-only, and has an overlay"]);
    let text = with("[\"block\"]", "[]");
    says(&text, 0, &["component blkback", "nothing serves block"]);
    let text = with(
        "source = \"partition:label=root\"",
        "backend = \"disk\"\nsource = \"disk\"",
    );
    says(&text, 15, &["disk serves no disks", "\"store\""]);
    let text = with("source = \"partition:label=root\"", "");
    says(&text, 13, &["volume root has no source"]);
    let second = "[[guest]]\nname = \"two\"\nkernel = \"Cargo.toml\"\n\
                  disks = [{ volume = \"root\", device = \"xvda\" }]\n";
    let text = format!("{DISKS}{second}");
    says(&text, 26, &["volume root is written by guest linux too"]);
    let read_only = second.replace("\"xvda\"", "\"xvda\", read-only = true");
    assert_eq!(messages(&format!("{DISKS}{read_only}")), []);
}

#[test]
fn a_driver_domain_is_another_guest_that_may_map_pages() {
    use idl::volume::Backend;
    let text = format!(
        "{GUEST}[[guest]]\nname = \"user\"\nkernel = \"Cargo.toml\"\ndrivers = [\"linux\"]\n\
         disks = [{{ driver = \"linux\", volume = \"loop0\", device = \"xvda\" }}]\n"
    );
    assert_eq!(messages(&text), []);
    let (description, _) = read::text(Path::new("system.toml"), text.clone());
    let manifest = manifest::manifest(&description);
    let user = &manifest.guests[1];
    assert_eq!(user.drivers, ["linux"]);
    let backend = Backend::Guest("linux".try_into().unwrap());
    assert_eq!(user.disks[0].backend, backend);
    let audit = image_builder::audit::Graph::of(&manifest).to_string();
    let right = "memory of guest user (256 MiB): pages that the guest grants, as its driver domain";
    assert!(audit.contains(right), "no {right:?} in\n{audit}");
    let wrong = text.replace("drivers = [\"linux\"]", "drivers = [\"user\", \"linx\"]");
    says(&wrong, 7, &["cannot serve itself"]);
    says(&wrong, 7, &["no guest \"linx\"", "did you mean \"linux\""]);
    says(&wrong, 8, &["linux must not serve it", "add drivers"]);
}

#[test]
fn one_guest_is_a_whole_system() {
    assert_eq!(messages(GUEST), []);
    let (description, _) = read::text(Path::new("system.toml"), GUEST.into());
    let manifest = manifest::manifest(&description);
    let names: Vec<&str> = manifest
        .components
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(
        names,
        ["console", "builder", "vmm", "xenstore", "toolstack"]
    );
    let console = manifest.component("console").unwrap();
    assert_eq!((console.ports[0].first, console.ports[0].count), (0x3f8, 8));
    let vmm = manifest.component("vmm").unwrap();
    let servers: Vec<&str> = vmm.needs.iter().map(|n| n.server.as_str()).collect();
    assert_eq!(servers, ["root", "console", "xenstore"]);
    assert_eq!(manifest.component("xenstore").unwrap().keep_bytes, 4 << 20);
    assert_eq!(manifest.guests[0].vcpus, [0]);
}

#[test]
fn a_guest_may_be_kept_to_one_version_of_the_grant_table() {
    let of = |more: &str| {
        let text = format!("{GUEST}{more}");
        assert_eq!(messages(&text), [], "{more}");
        let (description, _) = read::text(Path::new("system.toml"), text);
        manifest::manifest(&description).guests[0].max_grant_version
    };
    assert_eq!(of(""), 2);
    assert_eq!(of("max-grant-version = 1\n"), 1);
    for (version, says_so) in [(0, "no version 0"), (3, "from 0 to 2")] {
        let text = format!("{GUEST}max-grant-version = {version}\n");
        says(&text, 4, &[says_so]);
    }
}

#[test]
fn files_are_for_guests_to_come() {
    let text = "[[file]]\nname = \"a.cfg\"\ntext = \"name = 'a'\"\n[[file]]\nname = \"k\"\npath = \"Cargo.toml\"\n";
    assert_eq!(messages(text), []);
    let (description, _) = read::text(Path::new("system.toml"), text.into());
    let manifest = manifest::manifest(&description);
    assert!(manifest.component("toolstack").is_some() && manifest.component("vmm").is_some());
    let wrong = "[[file]]\nname = \"/a b\"\n[[file]]\nname = \"k\"\npath = \"no\"\ntext = \"\"\n\
                 [[file]]\nname = \"k\"\npath = \"none\"\nmode = 1\n";
    says(wrong, 1, &["file /a b: one of path and text"]);
    says(wrong, 2, &["\"/a b\" cannot be used", "letters, digits"]);
    says(wrong, 3, &["file k: one of path and text"]);
    says(wrong, 8, &["two files are called \"k\""]);
    says(wrong, 9, &["there is no file ./none"]);
    says(wrong, 10, &["unknown key `mode`"]);
    let disks = "[[file]]\nname = \"i\"\npath = \"builtin:busybox+disks\"\n";
    says(disks, 3, &["file i: no file is a kernel of Debian's"]);
    let kernel = "[[file]]\nname = \"v\"\npath = \"debian:linux-image-amd64\"\n";
    assert_eq!(messages(&format!("{disks}{kernel}")), []);
}

#[test]
fn a_system_without_guests_has_nothing_that_serves_only_them() {
    let text = "[[component]]\nname = \"bench\"\nneeds = [\"console\"]\n";
    assert_eq!(messages(text), []);
    let (description, _) = read::text(Path::new("system.toml"), text.into());
    let manifest = manifest::manifest(&description);
    let names = manifest.components.iter().map(|c| c.name.as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["bench", "console"]);
}

#[test]
fn every_mistake_is_reported_at_once() {
    let text = "[system]\ncpus = 2\nmemroy = \"1G\"\n[[guest]]\nname = \"Linux\"\nkernal = \"x\"\nkernel = \"nowhere\"\n\
                cpus = [0, 7]\nmemory = \"3M\"\n";
    says(text, 3, &["unknown key `memroy`", "did you mean `memory`"]);
    says(text, 5, &["name \"Linux\" cannot be used"]);
    says(text, 6, &["unknown key `kernal`", "did you mean `kernel`"]);
    says(text, 7, &["there is no file", "nowhere"]);
    says(text, 8, &["CPU 7 is not there", "cpus = 8"]);
    says(text, 9, &["3 MiB", "4M"]);
    assert_eq!(messages(text).len(), 6);
}

#[test]
fn a_guest_larger_than_the_machine_is_refused() {
    says(
        &format!("{GUEST}memory = \"4G\"\n"),
        4,
        &["larger than the machine", "4096 MiB", "under [system]"],
    );
}

#[test]
fn a_component_without_a_right_it_needs_is_told_which() {
    let text = format!("{GUEST}[[component]]\nname = \"console\"\nports = []\nneeds = []\n");
    says(
        &text,
        4,
        &[
            "component console lacks a right",
            "ports 0x3f8 to 0x3ff",
            "add \"0x3f8+8\" to `ports`",
        ],
    );
    says(
        &text,
        4,
        &[
            "to call supervisor",
            "add \"supervisor\" to `needs` of component console",
        ],
    );
}

#[test]
fn names_are_unique() {
    let text = format!(
        "{GUEST}{GUEST}[[component]]\nname = \"vmm\"\n[[component]]\nname = \"vmm\"\nper-guest = true\n"
    );
    says(&text, 5, &["two guests are called \"linux\""]);
    says(&text, 10, &["two components are called \"vmm\""]);
}

#[test]
fn wires_lead_to_servers() {
    let text = format!(
        "{GUEST}[[component]]\nname = \"bench\"\nneeds = [\"consol\", {{ interface = \"bench\", server = \"vmm\" }}]\n"
    );
    says(
        &text,
        6,
        &["nothing serves consol", "did you mean \"console\""],
    );
    says(&text, 6, &["vmm does not serve bench"]);
}

#[test]
fn a_guest_without_a_kernel_is_told_how_to_get_one() {
    says(
        "[[guest]]\nname = \"a\"\n",
        1,
        &["no kernel", "debian:linux-image-amd64"],
    );
}

#[test]
fn a_broken_file_is_reported_with_its_line() {
    let problems = problems("[system]\ncpus = = 2\n");
    assert!(problems.list().iter().any(|p| p.line == 2), "{problems}");
}

#[test]
fn the_examples_are_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in [
        "examples/linux.toml",
        "../qemu-tests/systems/linux.toml",
        "../qemu-tests/systems/grub.toml",
    ] {
        let (description, mut problems) = read::file(&folder.join(file)).unwrap();
        judge(&description, &packages(), &mut problems);
        assert!(problems.list().is_empty(), "{problems}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_text_is_judged_without_panic(text in "[\\[\\]a-z0-9=\"\n{}., #:+-]{0,200}") {
        problems(&text);
    }

    #[test]
    fn any_value_of_a_known_key_is_judged_without_panic(
        key in prop_oneof![
            Just("name"), Just("kernel"), Just("memory"), Just("vcpus"), Just("cpus"), Just("ports"),
            Just("needs"), Just("interrupts"), Just("threads"), Just("cpu"), Just("priority"),
            Just("device"), Just("dma"), Just("client-memory"), Just("disks"), Just("drivers"), Just("max-grant-version"),
        ],
        value in prop_oneof![
            Just("1".to_owned()), Just("-1".to_owned()), Just("99999999999999999999".to_owned()),
            Just("[]".to_owned()), Just("[{ volume = 'a', device = 'xvda' }]".to_owned()), Just("['x']".to_owned()), Just("[[1]]".to_owned()), Just("{ interface = 1 }".to_owned()),
            Just("1.5".to_owned()), Just("true".to_owned()), "\"[ -!#-\\[\\]-~]{0,20}\"", Just("[\"0xffff+9\", 3]".to_owned()),
        ],
    ) {
        problems(&format!("[[guest]]\n{key} = {value}\n[[component]]\n{key} = {value}\n[[volume]]\n{key} = {value}\n"));
    }
}
