//! Builds the systems that tests boot, once each, and boots them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use image_builder::controls::Control;
use image_builder::debian;
use image_builder::image::{self, Image, Order};
use image_builder::qemu::{Machine, Medium};
use image_builder::workspace::Workspace;

use crate::bochs;
use crate::session::Session;

/// Where images come from and transcripts go.
pub struct Machines {
    /// The workspace.
    pub workspace: Workspace,
    built: Vec<Image>,
    only: Option<String>,
    /// Boot in Bochs instead of QEMU.
    bochs: bool,
}

impl Machines {
    /// Of the workspace that this suite was built from. `only` leaves out machines whose titles
    /// lack it.
    pub fn new(only: Option<String>) -> Result<Self> {
        Ok(Machines {
            workspace: Workspace::find(Path::new(env!("CARGO_MANIFEST_DIR")))?,
            built: Vec::new(),
            only,
            bochs: false,
        })
    }

    /// Whether the machine of this title is to be booted: `--only` is part of its title, or a list of
    /// such parts with commas.
    pub fn wants(&self, title: &str) -> bool {
        let only = self.only.as_deref();
        only.is_none_or(|only| only.split(',').any(|part| title.contains(part)))
    }

    /// Machines whose images are built with a check off.
    pub fn control(&self, control: &'static Control) -> Self {
        let mut workspace = self.workspace.clone();
        workspace.control = Some(control);
        Machines {
            workspace,
            built: Vec::new(),
            only: None,
            bochs: false,
        }
    }

    /// The same machines in Bochs, with their files in a folder of their own.
    pub fn in_bochs(&self) -> Self {
        Machines {
            workspace: self.workspace.clone(),
            built: Vec::new(),
            only: self.only.clone(),
            bochs: true,
        }
    }

    /// `build/suite`, or a folder in it for images with a check off.
    pub fn folder(&self) -> PathBuf {
        let folder = self.workspace.root.join("build").join("suite");
        let folder = match self.workspace.control {
            None => folder,
            Some(control) => folder.join(format!("control-{}", control.name)),
        };
        if self.bochs {
            folder.join("vmx")
        } else {
            folder
        }
    }

    /// The image of `systems/<name>.toml`, for QEMU's direct way to boot or as Bochs boots it.
    pub fn image(&mut self, name: &str) -> Result<Image> {
        let medium = if self.bochs {
            Medium::Iso
        } else {
            Medium::Direct
        };
        self.image_on(name, None, medium)
    }

    /// The image of `systems/<name>.toml` that boots from `medium`; all its guests with the same
    /// `kernel`, if one is named as for `cargo image run --kernel`.
    pub fn image_on(&mut self, name: &str, kernel: Option<&str>, medium: Medium) -> Result<Image> {
        let out = self.folder().join(match kernel {
            None => name.to_owned(),
            Some(kernel) => format!("{name}-{kernel}"),
        });
        let there = |image: &&Image| match medium {
            Medium::Direct => true,
            Medium::Iso => image.iso.is_some(),
            Medium::Disk => image.disk.is_some(),
        };
        let mut built = self.built.iter().filter(|image| image.folder == out);
        if let Some(image) = built.find(there) {
            return Ok(image.clone());
        }
        let image = image::build(&self.workspace, &self.order(name, kernel, medium, &out)?)?;
        self.built.push(image.clone());
        Ok(image)
    }

    /// What is to be built of `systems/<name>.toml`, into `out`.
    pub fn order(
        &self,
        name: &str,
        kernel: Option<&str>,
        medium: Medium,
        out: &Path,
    ) -> Result<Order> {
        let systems = self.workspace.root.join("qemu-tests/systems");
        let kernel = kernel.map(debian::kernel_source).transpose();
        Ok(Order {
            system: systems.join(format!("{name}.toml")),
            out: Some(out.to_owned()),
            iso: medium == Medium::Iso,
            disk: medium == Medium::Disk,
            kernel: kernel.map_err(anyhow::Error::msg)?,
        })
    }

    /// Boots an image; the transcript is `build/suite/<title>.log`.
    pub fn boot(&self, title: &str, image: &Image, machine: &Machine) -> Result<Session> {
        let mut machine = machine.clone();
        machine.serial = "stdio".into();
        let transcript = self.folder().join(format!("{title}.log"));
        if self.bochs {
            return bochs::start(image, &machine, bochs::BIOS, &transcript);
        }
        Session::start(machine.command(image), &transcript)
    }

    /// As [`Machines::boot`], with more on QEMU's command line.
    pub fn boot_with(
        &self,
        title: &str,
        image: &Image,
        machine: &Machine,
        more: impl FnOnce(&mut Command),
    ) -> Result<Session> {
        let mut machine = machine.clone();
        machine.serial = "stdio".into();
        let transcript = self.folder().join(format!("{title}.log"));
        let mut command = machine.command(image);
        more(&mut command);
        Session::start(command, &transcript)
    }
}
