//! The command line of `cargo image`: build, run, check. Everything it does is in the library.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use image_builder::audit::Graph;
use image_builder::controls::{self, Control};
use image_builder::description::Input;
use image_builder::image::{self, Image, Order};
use image_builder::progress::say;
use image_builder::qemu::{GUEST_FAILED, Machine, Medium, POWERED_OFF, gdb};
use image_builder::workspace::Workspace;
use image_builder::{debian, draw, forbid, inspect, manifest, new, packages, read};

/// Builds bootable systems from a description, and runs them in QEMU.
#[derive(Parser)]
#[command(name = "cargo image", bin_name = "cargo image")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds the direct-boot pair and a bootable ISO into build/<system>/.
    Build {
        #[command(flatten)]
        system: SystemFile,
        /// Folder for the results.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Only the direct-boot pair for QEMU.
        #[arg(long)]
        no_iso: bool,
        /// A raw disk image too, to be copied onto a disk or stick; boots on BIOS and UEFI.
        #[arg(long)]
        disk: bool,
        #[command(flatten)]
        kernel: Kernel,
        /// Switch off one check (`cargo image controls` lists them), to see a test fail. Goes to
        /// build/control-NAME; the core says so at boot.
        #[arg(long, value_name = "NAME", conflicts_with = "out")]
        control: Option<String>,
    },
    /// Lists the checks that `build --control` can switch off, and the test that fails then.
    Controls,
    /// Builds, and boots in QEMU on this terminal (Ctrl-a x ends it).
    Run {
        #[command(flatten)]
        system: SystemFile,
        /// Folder for the results.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        #[command(flatten)]
        kernel: Kernel,
        /// Boot the ISO through GRUB instead of the core directly.
        #[arg(long, conflicts_with = "disk")]
        iso: bool,
        /// Boot the raw disk image through GRUB instead of the core directly.
        #[arg(long)]
        disk: bool,
        /// Boot by UEFI: the disk image with --disk, else the ISO.
        #[arg(long)]
        uefi: bool,
        /// Wait for gdb, and print the command that attaches it with symbols.
        #[arg(long)]
        gdb: bool,
        /// CPUs of the machine, instead of what the description says.
        #[arg(long, value_name = "N")]
        smp: Option<u32>,
        /// Memory of the machine, for instance 4G, instead of what the description says.
        #[arg(long, value_name = "SIZE", value_parser = memory)]
        memory: Option<u64>,
        /// QEMU's CPU model and flags.
        #[arg(long, default_value = "max")]
        cpu: String,
        /// Let time count instructions (repeats exactly).
        #[arg(long)]
        icount: bool,
    },
    /// Says what is in an image (boot archive, ISO or raw disk): files with sizes and hashes,
    /// components and their rights, guests and their kernels. Fails if it does not fit together.
    Inspect {
        /// The image, for instance build/linux/archive.
        image: PathBuf,
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Says who can reach what: memory, ports, interrupts, files, and whom to call.
    Audit {
        /// A description or an image; the example if absent.
        system: Option<PathBuf>,
        /// As a table of rights, for Graphviz, or as a picture.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// Fail if a [[forbid]] of this description is broken. A description's own rules always
        /// count.
        #[arg(long, value_name = "FILE")]
        rules: Option<PathBuf>,
    },
    /// Makes a new component: interface, server, a test under faults, a system to run it in.
    New {
        /// Its name: lower case letters, digits and dashes.
        name: String,
        /// Its folder in the workspace; components/NAME if absent.
        #[arg(long, value_name = "DIR")]
        path: Option<String>,
    },
    /// Says everything that is wrong with a description, with lines and advice.
    Check {
        #[command(flatten)]
        system: SystemFile,
    },
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Format {
    #[default]
    Text,
    Dot,
    Svg,
}

#[derive(Args)]
struct SystemFile {
    /// The description; the example with Debian's Linux if absent.
    system: Option<PathBuf>,
}

#[derive(Args)]
struct Kernel {
    /// Another kernel for every guest: 6.1, 6.12, 6.1-cloud or 6.12-cloud (Debian 12's own and its
    /// backports'), or a source as in system.toml, for instance debian:linux-image-amd64 or a path.
    #[arg(long, value_name = "KERNEL", value_parser = debian::kernel_source)]
    kernel: Option<Input>,
}

impl Kernel {
    /// A path on the command line counts from here, not from the description.
    fn input(self) -> Option<Input> {
        Some(match self.kernel? {
            Input::Path(path) => Input::Path(
                std::path::absolute(&path)
                    .unwrap_or_else(|_| path.clone().into())
                    .to_string_lossy()
                    .into_owned(),
            ),
            input => input,
        })
    }
}

impl SystemFile {
    fn path(&self, workspace: &Workspace) -> PathBuf {
        match &self.system {
            Some(path) => path.clone(),
            None => {
                let path = workspace.root.join("image-builder/examples/linux.toml");
                // A short name reads better in messages.
                let here = std::env::current_dir().unwrap_or_default();
                path.strip_prefix(&here).map(Path::to_owned).unwrap_or(path)
            }
        }
    }
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = read::bytes(text).ok_or("write 512M or 4G")?;
    Ok(bytes >> 20)
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    if let Verb::New { name, path } = &verb {
        let here = std::env::current_dir().context("there is no current folder")?;
        let made = new::component(&new::workspace(&here)?, name, path.as_deref())?;
        print!("{}", new::next_steps(name, &made));
        return Ok(ExitCode::SUCCESS);
    }
    // Compiled-in: the tool belongs to the workspace that it was built from.
    let mut workspace = Workspace::find(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    match verb {
        // Done above: it needs no list of packages, and must work where one does not build.
        Verb::New { .. } => Ok(ExitCode::SUCCESS),
        Verb::Controls => {
            for control in controls::all() {
                println!(
                    "{:14} {}: not done: {}",
                    control.name, control.file, control.off
                );
                println!("{:14} fails: {}", "", control.claim);
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Inspect { image, json } => {
            let contents = inspect::inspect(&read_image(&image)?)
                .with_context(|| format!("{} cannot be inspected", image.display()))?;
            if json {
                println!("{:#}", contents.json());
            } else {
                print!("{contents}");
            }
            Ok(match contents.problems.is_empty() {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            })
        }
        Verb::Audit {
            system,
            format,
            rules,
        } => {
            let path = SystemFile { system }.path(&workspace);
            let manifest = if path.extension().is_some_and(|end| end == "toml") {
                manifest::manifest(&image::check(&workspace, &path)?)
            } else {
                inspect::inspect(&read_image(&path)?)
                    .with_context(|| format!("{} cannot be audited", path.display()))?
                    .manifest
            };
            let graph = Graph::of(&manifest);
            match format {
                Format::Text => print!("{graph}"),
                Format::Dot => print!("{}", draw::dot(&graph)),
                Format::Svg => print!("{}", draw::svg(&graph)),
            }
            if let Some(rules) = rules {
                let (description, mut problems) = read::file(&rules)
                    .with_context(|| format!("cannot read {}", rules.display()))?;
                forbid::judge(&description.forbids, &graph, &mut problems);
                problems.into_result(())?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Check { system } => {
            let path = system.path(&workspace);
            image::check(&workspace, &path)?;
            println!("{} is right", path.display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Build {
            system,
            out,
            no_iso,
            disk,
            kernel,
            control,
        } => {
            workspace.control = match control {
                None => None,
                Some(name) => Some(Control::find(&name).with_context(|| {
                    format!("no control is called {name}; cargo image controls lists them")
                })?),
            };
            let order = Order {
                system: system.path(&workspace),
                out,
                iso: !no_iso,
                disk,
                kernel: kernel.input(),
            };
            let image = image::build(&workspace, &order)?;
            println!("core     {}", image.core.display());
            println!("archive  {}", image.archive.display());
            if let Some(iso) = &image.iso {
                println!("iso      {}", iso.display());
            }
            if let Some(disk) = &image.disk {
                println!("disk     {}", disk.display());
            }
            println!("symbols  {}", image.folder.join("debug").display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Run {
            system,
            out,
            kernel,
            iso,
            disk,
            uefi,
            gdb,
            smp,
            memory,
            cpu,
            icount,
        } => {
            packages::ensure(&[packages::QEMU])?;
            if uefi {
                packages::ensure(&[packages::OVMF])?;
            }
            let medium = match (disk, iso || uefi) {
                (true, _) => Medium::Disk,
                (false, true) => Medium::Iso,
                (false, false) => Medium::Direct,
            };
            let order = Order {
                system: system.path(&workspace),
                out,
                iso: medium == Medium::Iso,
                disk,
                kernel: kernel.input(),
            };
            let image = image::build(&workspace, &order)?;
            let mut machine = Machine::of(&image);
            machine.medium = medium;
            machine.uefi = uefi;
            machine.gdb = gdb;
            machine.smp = smp.unwrap_or(machine.smp);
            machine.memory_mib = memory.unwrap_or(machine.memory_mib);
            machine.cpu = cpu;
            machine.icount = icount;
            boot(&image, &machine)
        }
    }
}

fn read_image(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn boot(image: &Image, machine: &Machine) -> Result<ExitCode> {
    if machine.smp == 0 {
        bail!("a machine needs at least one CPU");
    }
    if machine.gdb {
        say("Waiting", "for gdb. In another terminal, in this folder:");
        eprintln!("    {}", gdb(image));
    }
    say("Booting", format!("{} (Ctrl-a x ends QEMU)", image.name));
    let status = machine
        .command(image)
        .status()
        .context("cannot start QEMU")?;
    match status.code() {
        Some(0 | POWERED_OFF) => Ok(ExitCode::SUCCESS),
        Some(GUEST_FAILED) => bail!("a guest failed; the console above says how"),
        _ => bail!("QEMU ended with {status}"),
    }
}
