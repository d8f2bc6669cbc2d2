//! What `inspect` and `audit` say of images, and that no damage to one makes them panic.

use std::path::Path;

use idl::manifest::Manifest;
use image_builder::archive::{Contents, write};
use image_builder::audit::Graph;
use image_builder::elf::{Loadable, Segment};
use image_builder::{draw, forbid, inspect, manifest, medium, read};
use proptest::prelude::*;

const SYSTEM: &str = r#"
[[guest]]
name = "one"
kernel = "debian:linux-image-amd64"
initrd = "builtin:busybox"
memory = "64M"
vcpus = 2
[[guest]]
name = "two"
kernel = "debian:linux-image-amd64"
console = ""
"#;

fn system(more: &str) -> Manifest {
    let text = format!("{SYSTEM}{more}");
    let (description, problems) = read::text(Path::new("system.toml"), text);
    assert!(problems.list().is_empty(), "{problems}");
    manifest::manifest(&description)
}

fn archive(manifest: &Manifest, kernel: &[u8]) -> Vec<u8> {
    let mut files: Vec<(String, Vec<u8>)> = manifest
        .components
        .iter()
        .map(|c| (c.file.clone(), c.name.clone().into_bytes()))
        .collect();
    for guest in &manifest.guests {
        files.push((guest.kernel.clone(), kernel.to_vec()));
        files.extend(
            guest
                .initrd
                .iter()
                .map(|file| (file.clone(), vec![7; 5000])),
        );
    }
    let contents = Contents {
        root: Loadable {
            entry: 0x20_0000,
            segments: vec![Segment {
                address: 0x20_0000,
                bytes: b"abc".to_vec(),
                memory_bytes: 4096,
                flags: 5,
            }],
        },
        manifest: manifest.encode(),
        files,
    };
    write(&contents).unwrap()
}

#[test]
fn an_archive_is_told_in_text_and_json() {
    let manifest = system("");
    let contents = inspect::inspect(&archive(&manifest, b"no kernel at all")).unwrap();
    assert!(contents.problems.is_empty(), "{:?}", contents.problems);
    let text = contents.to_string();
    for part in [
        // SHA-256 of "abc" (FIPS 180-4's own example): root's only segment.
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "guests/one/initrd",
        "component console",
        "ports 0x3f8 to 0x3ff",
        "guest one: 64 MiB, vCPUs on CPUs [0, 1]",
        "command line \"console=hvc0\"",
        "run by vmm, console none",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let json = contents.json();
    assert_eq!(json["kind"], "boot archive");
    assert_eq!(json["core"], serde_json::Value::Null);
    assert_eq!(json["guests"][0]["initrd"]["content"]["bytes"], 5000);
    assert_eq!(json["guests"][1]["kernel_is"], "no kernel");
    assert_eq!(json["components"][0]["ports"][0]["first"], 0x3f8);
}

#[test]
fn a_file_that_is_named_and_missing_is_a_problem() {
    let mut manifest = system("");
    let bytes = {
        manifest.guests[0].kernel = "guests/nowhere".into();
        let mut there = manifest.clone();
        there.guests[0].kernel = "guests/one/kernel".into();
        let contents = archive(&there, b"");
        // The same files, another manifest.
        let parsed = microvisor_abi::archive::Archive::parse(&contents).unwrap();
        let files = parsed.files().map(|(n, _, b)| (n.to_owned(), b.to_vec()));
        write(&Contents {
            manifest: manifest.encode(),
            files: files.collect(),
            ..Contents::default()
        })
        .unwrap()
    };
    let problems = inspect::inspect(&bytes).unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("guests/nowhere is not in the archive"));
}

#[test]
fn control_characters_of_an_image_do_not_reach_the_terminal() {
    let mut manifest = system("");
    manifest.guests[0].cmdline = "\x1b[2Jclear".into();
    manifest.guests[0].name = "o\x1bne".into();
    let contents = inspect::inspect(&archive(&manifest, b"")).unwrap();
    let all = contents.to_string() + &Graph::of(&manifest).to_string();
    assert!(!all.contains('\x1b'));
}

#[test]
fn what_is_no_image_is_refused_with_advice() {
    let error = medium::open(b"hello").unwrap_err();
    assert!(error.to_string().contains("cargo image build"));
}

#[test]
fn an_audit_names_every_holder() {
    let text = Graph::of(&system("")).to_string();
    for part in [
        "memory of guest one (64 MiB): builder-one, vmm-one\n",
        "ports 0x3f8 to 0x3ff: console\n",
        "interrupt line 4: console\n",
        "file guests/two/kernel: builder-two\n",
        "one: the core, root, builder-one, vmm-one; for services only: console, xenstore\n",
        "memory that outlives xenstore (4 MiB): xenstore\n",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[test]
fn an_audit_names_who_rules_through_root() {
    let more = "[[component]]\nname = \"bench\"\nneeds = [\"operator\"]\n";
    let text = Graph::of(&system(more)).to_string();
    let line = text
        .lines()
        .find(|line| line.starts_with("who may have root"));
    assert!(line.is_some_and(|line| line.contains("bench")), "{text}");
}

#[test]
fn pictures_show_every_thing_and_every_right() {
    let graph = Graph::of(&system(""));
    let (dot, svg) = (draw::dot(&graph), draw::svg(&graph));
    for (index, thing) in graph.things.iter().enumerate() {
        assert!(
            dot.contains(&format!("n{index} [label=\"{thing}\"")),
            "{dot}"
        );
        assert!(svg.contains(&format!(">{thing}</text>")), "{svg}");
    }
    assert_eq!(dot.matches(" -> ").count(), graph.rights.len());
    assert_eq!(svg.matches("marker-end").count(), graph.rights.len());
    for right in &graph.rights {
        assert!(
            svg.contains(&format!(">{}</text>", right.does)),
            "{right:?}"
        );
    }
}

#[test]
fn pictures_escape_names() {
    let mut manifest = system("");
    manifest.guests[0].name = "a\"<&\\".into();
    let graph = Graph::of(&manifest);
    assert!(draw::dot(&graph).contains("guest a\\\"<&\\\\"));
    assert!(draw::svg(&graph).contains("guest a&quot;&lt;&amp;\\"));
}

/// What a rule says of the system of two guests: the messages.
fn breaks(rule: &str) -> Vec<String> {
    let text = format!("{SYSTEM}[[forbid]]\n{rule}");
    let (description, mut problems) = read::text(Path::new("system.toml"), text);
    assert!(problems.list().is_empty(), "{problems}");
    let graph = Graph::of(&manifest::manifest(&description));
    forbid::judge(&description.forbids, &graph, &mut problems);
    problems.list().iter().map(|p| p.message.clone()).collect()
}

#[test]
fn rules_that_hold_say_nothing() {
    for rule in [
        "component = \"vmm-one\"\nguests = [\"two\"]",
        "component = \"vmm\"\nports = [\"0x3f8+8\"]\ninterrupts = [4]",
        "component = \"*\"\nports = [\"0x60+5\"]",
        "component = \"vmm-one\"\ncomponents = [\"vmm-two\", \"builder-two\"]",
    ] {
        assert_eq!(breaks(rule), Vec::<String>::new(), "{rule}");
    }
}

#[test]
fn broken_rules_name_who_and_what() {
    for (rule, says) in [
        (
            "component = \"vmm-one\"\nguests = [\"one\"]",
            "vmm-one reaches guest one",
        ),
        (
            "component = \"*\"\nports = [\"0x3ff+1\"]",
            "console has ports 0x3f8 to 0x3ff",
        ),
        (
            "component = \"console\"\ninterrupts = [4]",
            "console has interrupt line 4",
        ),
        (
            "component = \"vmm-one\"\ncomponents = [\"console\"]",
            "vmm-one reaches component console",
        ),
        (
            "component = \"vmm-three\"\ninterrupts = [4]",
            "no component \"vmm-three\"",
        ),
        (
            "component = \"vmm\"\nguests = [\"three\"]",
            "there is no guest three",
        ),
    ] {
        let all = breaks(rule);
        assert_eq!(all.len(), 1, "{rule}: {all:?}");
        assert!(all[0].contains(says), "{rule}: {all:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn damaged_archives_are_inspected_without_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = archive(&system(""), b"\x7fELF and then nothing");
        // Header, file table and manifest are at the front.
        for (at, value) in damage {
            let at = at.index(8192.min(bytes.len()));
            bytes[at] = value;
        }
        bytes.truncate(1 + cut.index(2 * bytes.len()));
        if let Ok(contents) = inspect::inspect(&bytes) {
            let _ = contents.to_string();
            let _ = contents.json();
            let graph = Graph::of(&contents.manifest);
            let _ = (graph.to_string(), draw::dot(&graph), draw::svg(&graph));
        }
    }

    #[test]
    fn any_bytes_after_a_magic_number_are_opened_without_panic(
        head in prop_oneof![
            Just((0usize, &b"\x01\x00MVARCH"[..])), Just((0x8000, &b"\x01CD001"[..])), Just((510, &b"\x55\xaaEFI PART"[..])),
        ],
        mut bytes in proptest::collection::vec(any::<u8>(), 0x9000..0x9800),
    ) {
        bytes[head.0..head.0 + head.1.len()].copy_from_slice(head.1);
        let _ = inspect::inspect(&bytes);
    }
}
