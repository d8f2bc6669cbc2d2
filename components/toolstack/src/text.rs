//! What root answers, as lines for a person and as JSON for a program: one object a line, so that no
//! line is long, and names with everything escaped that JSON wants escaped.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use idl::operator::{DefineError, FileInfo, GuestInfo, GuestState, MachineInfo, OrderError};

/// A guest's state as a word.
pub fn state(state: GuestState) -> &'static str {
    match state {
        GuestState::Waiting => "waiting",
        GuestState::Building => "building",
        GuestState::Running => "running",
        GuestState::Paused => "paused",
        GuestState::Off => "off",
        GuestState::Destroyed => "destroyed",
        GuestState::Failed => "failed",
    }
}

/// A JSON string.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for letter in self.0.chars() {
            match letter {
                '"' | '\\' => write!(f, "\\{letter}")?,
                letter if letter.is_control() => write!(f, "\\u{:04x}", letter as u32)?,
                letter => write!(f, "{letter}")?,
            }
        }
        f.write_str("\"")
    }
}

/// A JSON array, one element a line.
fn array(elements: impl Iterator<Item = String>) -> Vec<String> {
    let elements: Vec<String> = elements.collect();
    let last = elements.len().saturating_sub(1);
    let commas = elements.into_iter().enumerate().map(|(index, element)| {
        let comma = if index == last { "" } else { "," };
        format!("{element}{comma}")
    });
    let mut lines = Vec::from([String::from("[")]);
    lines.extend(commas);
    lines.push("]".into());
    lines
}

/// The lines of `list`.
pub fn guests(guests: &[GuestInfo], json: bool) -> Vec<String> {
    if json {
        return array(guests.iter().map(|guest| {
            format!(
                "{{\"name\":{},\"domain\":{},\"state\":\"{}\",\"vcpus\":{},\"memory_mib\":{},\"starts\":{},\"described\":{}}}",
                Quoted(&guest.name),
                guest.domain,
                state(guest.state),
                guest.vcpus,
                guest.memory_mib,
                guest.starts,
                guest.described
            )
        }));
    }
    let mut lines = Vec::from([format!(
        "{:<24}{:<12}{:>6}{:>10}{:>8}{:>8}",
        "guest", "state", "vCPUs", "MiB", "starts", "domain"
    )]);
    lines.extend(guests.iter().map(|guest| {
        format!(
            "{:<24}{:<12}{:>6}{:>10}{:>8}{:>8}",
            guest.name,
            state(guest.state),
            guest.vcpus,
            guest.memory_mib,
            guest.starts,
            guest.domain
        )
    }));
    lines
}

/// The lines of `info`.
pub fn machine(info: &MachineInfo, json: bool) -> Vec<String> {
    let components = info
        .memory_kib
        .saturating_sub(info.guests_kib)
        .saturating_sub(info.free_kib);
    if json {
        return [format!(
            "{{\"cpus\":{},\"uptime_ms\":{},\"memory_kib\":{},\"guests_kib\":{},\"components_kib\":{components},\"free_kib\":{},\"free_slots\":{}}}",
            info.cpus,
            info.uptime_ms,
            info.memory_kib,
            info.guests_kib,
            info.free_kib,
            info.free_slots
        )]
        .into();
    }
    [
        format!(
            "{} CPUs, up for {}.{:03} s",
            info.cpus,
            info.uptime_ms / 1000,
            info.uptime_ms % 1000
        ),
        format!(
            "memory in KiB: {} in all, {} guests', {components} components', {} free",
            info.memory_kib, info.guests_kib, info.free_kib
        ),
        format!("root has {} empty slots", info.free_slots),
    ]
    .into()
}

/// The lines of `files`.
pub fn files(files: &[FileInfo], json: bool) -> Vec<String> {
    if json {
        return array(files.iter().map(|file| {
            format!(
                "{{\"path\":{},\"bytes\":{}}}",
                Quoted(&file.path),
                file.bytes
            )
        }));
    }
    if files.is_empty() {
        return [String::from(
            "no files; [[file]] in system.toml puts them in",
        )]
        .into();
    }
    let line = |file: &FileInfo| format!("{:>12}  {}", file.bytes, file.path);
    files.iter().map(line).collect()
}

/// Why an order was refused.
pub fn refused(name: &str, error: OrderError) -> String {
    match error {
        OrderError::NoGuest => format!("there is no guest {name}; try list"),
        OrderError::State(now) => format!("guest {name} is {}: refused", state(now)),
    }
}

/// Why a definition was refused.
pub fn undefined(name: &str, error: DefineError) -> String {
    let why = match error {
        DefineError::Name => "a name has 1 to 24 letters, digits and - _ . +".into(),
        DefineError::Taken => "there is a guest of this name; try list".into(),
        DefineError::Size => "it needs 1 to 32 vCPUs and memory in pieces of 2 MiB".into(),
        DefineError::Cpu(cpu) => format!("the machine has no CPU {cpu}"),
        DefineError::Kernel => "the boot archive has no such kernel; try files".into(),
        DefineError::Initrd => "the boot archive has no such ramdisk; try files".into(),
        DefineError::Disk(disk) => {
            format!(
                "disk {disk} (from 0): there is no such volume or backend guest, another guest writes it, or its vdev is not xvda to xvdz"
            )
        }
        DefineError::Full => "as many guests are there as can be; destroy one".into(),
        DefineError::NoComponents => {
            "this system has no components builder and vmm; its description has to mention them"
                .into()
        }
    };
    format!("guest {name}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use idl::operator::Path;

    fn guest(name: &str) -> GuestInfo {
        GuestInfo {
            name: idl::name(name),
            state: GuestState::Running,
            vcpus: 2,
            memory_mib: 512,
            starts: 1,
            domain: 7,
            described: false,
        }
    }

    #[test]
    fn a_list_for_people_begins_with_names_and_states() {
        let lines = guests(&[guest("a"), guest("b")], false);
        let words: Vec<&str> = lines[2].split_whitespace().collect();
        assert_eq!(words, ["b", "running", "2", "512", "1", "7"]);
        assert!(lines[0].starts_with("guest "));
    }

    #[test]
    fn json_has_commas_between_and_escapes_within() {
        assert_eq!(guests(&[], true), ["[", "]"]);
        let lines = guests(&[guest("a"), guest("q\"\\\u{1}")], true);
        assert_eq!(
            lines,
            [
                "[",
                r#"{"name":"a","domain":7,"state":"running","vcpus":2,"memory_mib":512,"starts":1,"described":false},"#,
                r#"{"name":"q\"\\\u0001","domain":7,"state":"running","vcpus":2,"memory_mib":512,"starts":1,"described":false}"#,
                "]"
            ]
        );
        let file = FileInfo {
            path: Path::try_from("boot/x").unwrap(),
            bytes: 9,
        };
        assert_eq!(files(&[file], true)[1], r#"{"path":"boot/x","bytes":9}"#);
    }

    #[test]
    fn every_refusal_says_something() {
        let said = undefined("a", DefineError::Cpu(7)).to_string();
        assert_eq!(said, "guest a: the machine has no CPU 7");
    }
}
