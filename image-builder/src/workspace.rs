//! The cargo workspace: which packages are bare-metal programs, what they wish, and building
//! them. Core and components share a target but not their code model, so each has its own flags
//! and its own target folder, and neither build disturbs the other.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::controls::Control;
use crate::progress::step;
use crate::rules::{Packages, Wishes};

/// The target of core and components.
pub const TARGET: &str = "x86_64-unknown-none";
/// The core's package.
pub const CORE: &str = "microvisor";

/// The workspace, as cargo describes it.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Its folder.
    pub root: PathBuf,
    /// Where cargo builds.
    pub target: PathBuf,
    /// Bare-metal programs and what they wish.
    pub packages: Packages,
    /// The check that is off in what is built; `None` but for tests that must fail.
    pub control: Option<&'static Control>,
}

/// Which flags a program is built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// In the top 2 GiB.
    Core,
    /// In the lower half: components and our own guests.
    Component,
}

impl Flavour {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Flavour::Core => &[
                "-Crelocation-model=static",
                "-Ccode-model=kernel",
                "-Cforce-frame-pointers=yes",
            ],
            Flavour::Component => &["-Crelocation-model=static", "-Cforce-frame-pointers=yes"],
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Flavour::Core => "core",
            Flavour::Component => "components",
        }
    }
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

impl Workspace {
    /// Asks cargo about the workspace around `folder`.
    pub fn find(folder: &Path) -> Result<Workspace> {
        let out = cargo()
            .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
            .current_dir(folder)
            .output()
            .context("cannot start cargo")?;
        if !out.status.success() {
            bail!(
                "cargo metadata failed:\n{}",
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        let value: Value =
            serde_json::from_slice(&out.stdout).context("cargo metadata is no JSON")?;
        let path = |key: &str| {
            value[key]
                .as_str()
                .map(PathBuf::from)
                .with_context(|| format!("no {key}"))
        };
        let mut packages = Packages::new();
        for package in value["packages"].as_array().into_iter().flatten() {
            // A program for special builds only, such as the fuzzer, is nobody's component.
            let is_bin = |t: &Value| {
                let kinds = t["kind"].as_array();
                kinds.is_some_and(|k| k.iter().any(|k| k == "bin"))
                    && t["required-features"].is_null()
            };
            let targets = package["targets"].as_array();
            let own = &package["metadata"]["microvisor"];
            let dependencies = package["dependencies"].as_array();
            let on_sdk = dependencies.is_some_and(|d| d.iter().any(|d| d["name"] == "sdk"));
            if !targets.is_some_and(|t| t.iter().any(is_bin)) || !(on_sdk || own.is_object()) {
                continue;
            }
            if let Some(name) = package["name"].as_str() {
                packages.insert(name.to_owned(), wishes(own));
            }
        }
        Ok(Workspace {
            root: path("workspace_root")?,
            target: path("target_directory")?,
            packages,
            control: None,
        })
    }

    /// Builds bare-metal packages, and returns their ELF files in the same order.
    pub fn build(&self, flavour: Flavour, packages: &[&str]) -> Result<Vec<PathBuf>> {
        if packages.is_empty() {
            return Ok(Vec::new());
        }
        let control = self
            .control
            .filter(|control| flavour == Flavour::Core || control.is_in_components());
        let folder = match control {
            None => self.target.join(flavour.folder()),
            Some(_) => self.target.join("control").join(flavour.folder()),
        };
        let mut command = cargo();
        command
            .args(["build", "--release", "--target", TARGET, "--target-dir"])
            .arg(&folder);
        for package in packages {
            command.args(["-p", package]);
        }
        if control.is_some() {
            // Built once, booted once.
            command.env("CARGO_PROFILE_RELEASE_LTO", "off");
            command.env("CARGO_PROFILE_RELEASE_DEBUG", "0");
            command.env("CARGO_INCREMENTAL", "0");
        }
        // Paths of this machine must not get into images.
        let mut flags: Vec<String> = flavour
            .flags()
            .iter()
            .map(|flag| (*flag).to_owned())
            .collect();
        flags.push(format!("--remap-path-prefix={}=.", self.root.display()));
        if let Some(home) = cargo_home() {
            flags.push(format!("--remap-path-prefix={}=cargo", home.display()));
        }
        if let Some(control) = control {
            flags.extend(["--cfg".to_owned(), format!("control=\"{}\"", control.name)]);
        }
        command
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env_remove("RUSTFLAGS");
        // Cargo sets these for us; for a build of another target they mean nothing good.
        command
            .env_remove("CARGO_MANIFEST_DIR")
            .env_remove("CARGO_BUILD_TARGET");
        let status = step("Building", packages.join(", "), || {
            command.current_dir(&self.root).status()
        })
        .context("cannot start cargo")?;
        if !status.success() {
            bail!(
                "{} did not build; if the target {TARGET} is missing, run .ci/toolchain.sh",
                packages.join(", ")
            );
        }
        let out = folder.join(TARGET).join("release");
        Ok(packages.iter().map(|package| out.join(package)).collect())
    }
}

fn cargo_home() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
}

fn wishes(own: &Value) -> Wishes {
    let numbers = |value: &Value| -> Vec<u64> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_u64)
            .collect()
    };
    let ports = own["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pair| {
            let pair = numbers(pair);
            Some((
                u16::try_from(*pair.first()?).ok()?,
                u16::try_from(*pair.get(1)?).ok()?,
            ))
        });
    Wishes {
        needs: strings(&own["needs"]),
        serves: strings(&own["serves"]),
        ports: ports.collect(),
        interrupts: numbers(&own["interrupts"])
            .into_iter()
            .filter_map(|n| u32::try_from(n).ok())
            .collect(),
    }
}
