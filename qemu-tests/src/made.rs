//! What `cargo image new` makes is a component: in a copy of what it needs of the workspace it passes
//! its own tests on the host, builds for the machine, and in an image of this workspace's core, root
//! and console it says that it is ready and answers a client that was made the same way.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use image_builder::image::{self, Order};
use image_builder::new;
use image_builder::qemu::Machine;
use image_builder::workspace::{Flavour, Workspace};

use crate::machines::Machines;
use crate::report::Report;

/// The component, and the client that it gets.
const NAME: &str = "made";
const CALLER: &str = "made-caller";
/// What a component needs of the workspace, in its order of members.
const MEMBERS: &[&str] = &["idl", "idl/macros", "sdk", "sdk/testkit", "microvisor/abi"];
/// Folders and files that are copied.
const COPIED: &[&str] = &[
    "idl",
    "sdk",
    "microvisor/abi",
    "Cargo.lock",
    "rust-toolchain.toml",
];

/// The client's library instead of the template's.
const CALLER_SOURCE: &str = r#"//! Test only: calls `made` and logs what it answers.
#![no_std]
#![forbid(unsafe_code)]

use idl::Interface;
use made::interface::{Made, MadeClient};
use sdk::prelude::*;

/// Calls twice.
pub fn main(env: Env) {
    match MadeClient::connect(env.transport(Made::NAME)) {
        Ok(made) => log::info!("answered {:?} {:?}", made.add(2), made.add(3)),
        Err(error) => log::error!("not connected: {error:?}"),
    }
}
"#;

/// The system that boots.
const SYSTEM: &str = r#"[system]
cpus = 1
memory = "256M"

[[component]]
name = "made"
file = "@made@"
memory = "1M"
serves = ["made"]
needs = ["supervisor", "console"]

[[component]]
name = "made-caller"
file = "@caller@"
memory = "1M"
needs = ["supervisor", "console", "made"]
"#;

/// Makes the claims.
pub fn run(machines: &Machines, report: &mut Report) {
    const TITLE: &str = "made";
    if !machines.wants(TITLE) {
        return;
    }
    let made = make(machines);
    let workspace = match made {
        Ok(workspace) => workspace,
        Err(error) => return report.fail("a_component_is_made", format!("{error:#}")),
    };
    report.pass("a_component_is_made");
    report.claim("a_made_component_passes_its_tests", || tests(&workspace));
    report.claim("a_made_component_boots_and_answers", || {
        boots(machines, &workspace, TITLE)
    });
}

/// A workspace with the two components.
fn make(machines: &Machines) -> Result<Workspace> {
    let from = &machines.workspace.root;
    let root = machines.folder().join("made");
    fs::create_dir_all(&root)?;
    let components = root.join("components");
    if components.exists() {
        fs::remove_dir_all(&components)?;
    }
    for name in COPIED {
        copy(&from.join(name), &root.join(name))?;
    }
    let manifest = fs::read_to_string(from.join("Cargo.toml"))?;
    fs::write(root.join("Cargo.toml"), skeleton(&manifest)?)?;
    new::component(&root, NAME, None)?;
    new::component(&root, CALLER, None)?;
    let caller = components.join(CALLER);
    fs::write(caller.join("src/lib.rs"), CALLER_SOURCE)?;
    // These were about the template's library.
    fs::remove_dir_all(caller.join("tests"))?;
    fs::remove_file(caller.join("src/interface.rs"))?;
    let manifest = fs::read_to_string(caller.join("Cargo.toml"))?;
    let dependency = format!("[dependencies]\n{NAME} = {{ path = \"../{NAME}\" }}\n");
    let with = manifest.replacen("[dependencies]\n", &dependency, 1);
    ensure!(with != manifest, "the template has no [dependencies]");
    fs::write(caller.join("Cargo.toml"), with)?;
    let mut workspace = Workspace::find(&root)?;
    // Beside the other builds, so that dependencies are kept.
    workspace.target = machines.workspace.target.join("made");
    Ok(workspace)
}

/// The workspace's `Cargo.toml` with the members that are copied.
fn skeleton(manifest: &str) -> Result<String> {
    let start = manifest.find("members = [").context("no members")?;
    let end = manifest
        .find("[workspace.package]")
        .context("no [workspace.package]")?;
    ensure!(start < end, "members come after [workspace.package]");
    let members: String = MEMBERS.iter().map(|m| format!("    \"{m}\",\n")).collect();
    let (head, tail) = (&manifest[..start], &manifest[end..]);
    Ok(format!("{head}members = [\n{members}]\n\n{tail}"))
}

/// Copies what differs, so that cargo builds no more than it must.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
        return Ok(());
    }
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    fs::write(to, bytes).with_context(|| format!("cannot write {}", to.display()))
}

fn tests(workspace: &Workspace) -> Result<()> {
    let out = Command::new("cargo")
        .args(["test", "--offline", "-p", NAME, "--target-dir"])
        .arg(&workspace.target)
        .current_dir(&workspace.root)
        .env("CARGO_TERM_COLOR", "never")
        .output()
        .context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(
        out.status.success(),
        "cargo test failed:\n{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let swept = "it_survives_every_fault_at_every_place ... ok";
    ensure!(text.contains(swept), "its sweep did not run:\n{text}");
    Ok(())
}

fn boots(machines: &Machines, workspace: &Workspace, title: &str) -> Result<()> {
    let built = workspace.build(Flavour::Component, &[NAME, CALLER])?;
    let [made, caller] = &built[..] else {
        anyhow::bail!("two programs were built as {}", built.len());
    };
    let system = SYSTEM
        .replace("@made@", &made.to_string_lossy())
        .replace("@caller@", &caller.to_string_lossy());
    let path = workspace.root.join("made.toml");
    fs::write(&path, system)?;
    let order = Order {
        system: path,
        out: Some(workspace.root.join("image")),
        ..Order::default()
    };
    let image = image::build(&machines.workspace, &order)?;
    let mut session = machines.boot(title, &image, &Machine::of(&image))?;
    session.saw("[made] made ready", 120)?;
    session.saw("[made-caller] answered Ok(2) Ok(5)", 120)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skeleton_has_the_copied_members_only() {
        let manifest = "[workspace]\nresolver = \"3\"\nmembers = [\n    \"a\",\n]\n\n[workspace.package]\nversion = \"1\"\n";
        let text = skeleton(manifest).unwrap();
        assert!(text.starts_with("[workspace]\nresolver = \"3\"\nmembers = [\n    \"idl\",\n"));
        assert!(text.ends_with("]\n\n[workspace.package]\nversion = \"1\"\n"));
        assert!(!text.contains("\"a\"") && skeleton("members = [").is_err());
    }
}
