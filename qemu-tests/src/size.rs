//! Group `size`: the core's lines and `unsafe` blocks, held against a committed budget. Counted is
//! every workspace crate that is linked into the core, without blanks, comments and tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use image_builder::workspace::{CORE, Flavour, TARGET, Workspace};
use serde_json::Value;

use crate::report::Report;
use crate::rust_text::{Count, count};

/// Runs the group.
pub fn run(workspace: &Workspace, report: &mut Report) {
    let counted = measure(workspace);
    let (lines, blocks) = match counted {
        Ok(total) => (total.lines, total.unsafe_blocks),
        Err(error) => return report.fail("core_is_counted", format!("{error:#}")),
    };
    report.claim("core_lines_are_within_budget", || {
        within(workspace, "lines", lines)
    });
    report.claim("unsafe_blocks_are_within_budget", || {
        within(workspace, "unsafe-blocks", blocks)
    });
    report.claim("core_text_is_measured", || {
        let bytes = text_bytes(workspace)?;
        eprintln!("     .text of the core: {bytes} bytes");
        Ok(())
    });
}

fn within(workspace: &Workspace, key: &str, value: usize) -> Result<()> {
    let path = workspace.root.join("qemu-tests/budget.txt");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let budget = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let (found, number) = line.split_once('=')?;
            if found.trim() == key {
                number.trim().parse::<usize>().ok()
            } else {
                None
            }
        });
    let budget = budget.with_context(|| format!("{} has no number for {key}", path.display()))?;
    eprintln!("     {key}: {value} of {budget}");
    ensure!(value <= budget, "{value} {key}, the budget is {budget}");
    Ok(())
}

/// Lines and `unsafe` blocks of everything linked into the core.
pub fn measure(workspace: &Workspace) -> Result<Count> {
    let mut total = Count::default();
    for (name, folder) in linked(workspace)? {
        let mut files = Vec::new();
        sources(&folder.join("src"), &mut files)?;
        let mut own = Count::default();
        for file in files {
            own += count(&fs::read_to_string(&file)?);
        }
        eprintln!(
            "     {name}: {} lines, {} unsafe blocks",
            own.lines, own.unsafe_blocks
        );
        total += own;
    }
    eprintln!(
        "     the core: {} lines, {} unsafe blocks",
        total.lines, total.unsafe_blocks
    );
    Ok(total)
}

/// Lines of a folder of sources, counted as the core's are.
pub fn lines(folder: &Path) -> Result<usize> {
    let mut files = Vec::new();
    sources(folder, &mut files)?;
    let mut total = 0;
    for file in files {
        total += count(&fs::read_to_string(&file)?).lines;
    }
    Ok(total)
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        if path.is_dir() && name != "tests" {
            sources(&path, into)?;
        } else if name.ends_with(".rs") && name != "tests.rs" {
            into.push(path);
        }
    }
    into.sort();
    Ok(())
}

/// Workspace crates linked into the core: name and folder.
fn linked(workspace: &Workspace) -> Result<Vec<(String, PathBuf)>> {
    let value = metadata(workspace, &["--filter-platform", TARGET])?;
    let packages = value["packages"].as_array().context("no packages")?;
    let core = packages
        .iter()
        .find(|p| p["name"] == CORE)
        .context("no core")?;
    let nodes = value["resolve"]["nodes"].as_array().context("no resolve")?;
    let mut seen = BTreeSet::new();
    let mut open = vec![core["id"].as_str().context("no id")?.to_owned()];
    while let Some(id) = open.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let node = nodes
            .iter()
            .find(|node| node["id"] == *id)
            .context("no node")?;
        for dependency in node["deps"].as_array().into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array();
            let normal = kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()));
            if let Some(id) = dependency["pkg"].as_str().filter(|_| normal) {
                open.push(id.to_owned());
            }
        }
    }
    let mut out = Vec::new();
    for package in packages {
        let (Some(id), Some(name)) = (package["id"].as_str(), package["name"].as_str()) else {
            continue;
        };
        if seen.contains(id) && package["source"].is_null() {
            let manifest = package["manifest_path"]
                .as_str()
                .context("no manifest path")?;
            let folder = Path::new(manifest).parent().context("no folder")?;
            out.push((name.to_owned(), folder.to_owned()));
        }
    }
    if out.is_empty() {
        bail!("cargo names no crate of the core");
    }
    Ok(out)
}

/// What cargo knows.
pub fn metadata(workspace: &Workspace, more: &[&str]) -> Result<Value> {
    let out = Command::new("cargo")
        .args(["metadata", "--format-version=1"])
        .args(more)
        .current_dir(&workspace.root)
        .output()
        .context("cannot start cargo")?;
    if !out.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(serde_json::from_slice(&out.stdout)?)
}

fn text_bytes(workspace: &Workspace) -> Result<u64> {
    let elf = workspace
        .build(Flavour::Core, &[CORE])?
        .into_iter()
        .next()
        .context("no core")?;
    let file = fs::read(elf)?;
    image_builder::elf::text_bytes(&file)
}
