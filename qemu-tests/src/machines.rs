//! Builds the systems that tests boot, once each, and boots them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use image_builder::image::{self, Image, Order};
use image_builder::qemu::Machine;
use image_builder::workspace::Workspace;

use crate::session::Session;

/// Where images come from and transcripts go.
pub struct Machines {
    /// The workspace.
    pub workspace: Workspace,
    built: Vec<(String, Image)>,
    only: Option<String>,
}

impl Machines {
    /// Of the workspace that this suite was built from. `only` leaves out machines whose titles
    /// lack it.
    pub fn new(only: Option<String>) -> Result<Self> {
        Ok(Machines {
            workspace: Workspace::find(Path::new(env!("CARGO_MANIFEST_DIR")))?,
            built: Vec::new(),
            only,
        })
    }

    /// Whether the machine of this title is to be booted.
    pub fn wants(&self, title: &str) -> bool {
        self.only.as_deref().is_none_or(|only| title.contains(only))
    }

    /// `build/suite`.
    pub fn folder(&self) -> PathBuf {
        self.workspace.root.join("build").join("suite")
    }

    /// The image of `systems/<name>.toml`.
    pub fn image(&mut self, name: &str, iso: bool) -> Result<Image> {
        let fits =
            |(known, image): &&(String, Image)| known == name && (image.iso.is_some() || !iso);
        if let Some((_, image)) = self.built.iter().find(fits) {
            return Ok(image.clone());
        }
        let system = self
            .workspace
            .root
            .join("qemu-tests/systems")
            .join(format!("{name}.toml"));
        let out = Some(self.folder().join(name));
        let image = image::build(&self.workspace, &Order { system, out, iso })?;
        self.built.retain(|(known, _)| known != name);
        self.built.push((name.to_owned(), image.clone()));
        Ok(image)
    }

    /// Boots an image; the transcript is `build/suite/<title>.log`.
    pub fn boot(&self, title: &str, image: &Image, machine: &Machine) -> Result<Session> {
        let mut machine = machine.clone();
        machine.serial = "stdio".into();
        let transcript = self.folder().join(format!("{title}.log"));
        Session::start(machine.command(image), &transcript)
    }
}
