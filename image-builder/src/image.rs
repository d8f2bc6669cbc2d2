//! From a description to files: resolves what it names, builds core and components, checks their
//! code, writes the archive and the direct-boot pair, and remembers what `run` needs.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use idl::manifest::Manifest;

use crate::archive::{self, Contents};
use crate::audit::Graph;
use crate::debian::Cache;
use crate::description::{At, Blocks, Component, Description, Input, ROOT};
use crate::progress::{say, step};
use crate::workspace::{CORE, Flavour, Workspace};
use crate::{disk, elf, forbid, initramfs, iso, manifest, packages, read, rules, symbols, verify};

/// No kernel unpacks to more than this.
const UNPACKED_MAX: u64 = 512 << 20;

/// What to build.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// The description.
    pub system: PathBuf,
    /// Folder for the results; `build/<name of the description>` in the workspace if absent.
    pub out: Option<PathBuf>,
    /// An ISO too.
    pub iso: bool,
    /// A raw disk image too.
    pub disk: bool,
    /// Another kernel for every guest.
    pub kernel: Option<Input>,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Image {
    /// The description's file name without its ending.
    pub name: String,
    /// The folder of everything below.
    pub folder: PathBuf,
    /// The core, stripped: QEMU's `-kernel`.
    pub core: PathBuf,
    /// The archive: QEMU's `-initrd`.
    pub archive: PathBuf,
    /// The ISO, if ordered.
    pub iso: Option<PathBuf>,
    /// The raw disk image, if ordered.
    pub disk: Option<PathBuf>,
    /// ELF files with debug information, the core's first.
    pub debug: Vec<PathBuf>,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Memory of the machine in MiB.
    pub memory_mib: u64,
    /// The manifest, for tests that change it.
    pub manifest: Manifest,
    /// Everything in the archive, for tests that change it.
    pub contents: Contents,
}

/// Reads and judges a description; the error is every mistake in it.
pub fn check(workspace: &Workspace, system: &Path) -> Result<Description> {
    let (description, mut problems) = read::file(system).with_context(|| {
        format!(
            "cannot read {}; see image-builder/examples for a description",
            system.display()
        )
    })?;
    rules::judge(&description, &workspace.packages, &mut problems);
    if problems.list().is_empty() {
        let graph = Graph::of(&manifest::manifest(&description));
        forbid::judge(&description.forbids, &graph, &mut problems);
    }
    Ok(problems.into_result(description)?)
}

/// Builds an image.
pub fn build(workspace: &Workspace, order: &Order) -> Result<Image> {
    let mut description = check(workspace, &order.system)?;
    if let Some(kernel) = &order.kernel {
        for guest in &mut description.guests {
            guest.kernel = Some(At::new(kernel.clone(), guest.span.clone()));
        }
    }
    let name = order
        .system
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    let name = name.context("the description has no file name")?;
    let name = match workspace.control {
        None => name,
        Some(control) => format!("control-{}", control.name),
    };
    let folder = match &order.out {
        Some(out) => out.clone(),
        None => workspace.root.join("build").join(&name),
    };
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if order.iso || order.disk {
        packages::ensure(packages::MEDIA)?;
    }
    let mut inputs = Inputs {
        workspace,
        cache: Cache::new(&workspace.root.join("build").join("cache")),
        description: &description,
        kernels: workspace.root.join("build").join("cache").join("kernels"),
    };
    let guests = inputs.guests()?;
    let files = inputs.files()?;
    let programs = programs(workspace, &description)?;

    let mut debug = Vec::new();
    let mut contents = Contents {
        files: guests.into_iter().chain(files).collect(),
        ..Contents::default()
    };
    let mut core = Vec::new();
    for program in &programs {
        let file = fs::read(&program.path).with_context(|| {
            format!("cannot read {} of {}", program.path.display(), program.name)
        })?;
        let checked = verify::verify(&file);
        checked.with_context(|| format!("the code of {} cannot be used", program.name))?;
        let blob = symbols::blob(&symbols::functions(&file)?);
        contents
            .files
            .push((format!("symbols/{}", program.name), blob));
        match program.name.as_str() {
            CORE => core = elf::strip(&file)?,
            ROOT => contents.root = elf::loadable(&file).context("root cannot be loaded")?,
            name => {
                elf::loadable(&file).with_context(|| format!("{name} cannot be loaded"))?;
                contents
                    .files
                    .push((manifest::component_file(name), elf::strip(&file)?));
            }
        }
        debug.push(keep_debug(&folder, &program.name, &file)?);
    }
    for component in description.wired() {
        for (index, file) in component.files.iter().enumerate() {
            let bytes = inputs.bytes(&file.value)?;
            contents
                .files
                .push((manifest::own_file(&component.name.value, index), bytes));
        }
    }
    for volume in &description.volumes {
        if let Blocks::File(image) = &volume.source.value {
            let bytes = inputs.bytes(image)?;
            contents
                .files
                .push((manifest::volume_file(&volume.name.value), bytes));
        }
    }
    let manifest = manifest::manifest(&description);
    contents.manifest = manifest.encode();
    let mut image = Image {
        core: folder.join("microvisor.elf"),
        archive: folder.join("archive"),
        iso: None,
        disk: None,
        debug,
        cpus: description.system.cpus.value,
        memory_mib: description.system.memory_mib.value,
        manifest,
        contents,
        name,
        folder,
    };
    fs::write(&image.core, &core)?;
    image.write_archive(&image.archive.clone())?;
    if order.iso {
        image.iso = Some(iso::write(&image)?);
    }
    if order.disk {
        image.disk = Some(disk::write(&image)?);
    }
    say("Finished", image.folder.display());
    Ok(image)
}

impl Image {
    /// Writes `contents` as an archive.
    pub fn write_archive(&self, path: &Path) -> Result<()> {
        let bytes = archive::write(&self.contents)?;
        let need = (bytes.len() as u64) >> 20;
        if need + 32 > self.memory_mib {
            bail!(
                "the archive has {need} MiB, more than fits into a machine of {} MiB",
                self.memory_mib
            );
        }
        fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A bare-metal program of the image.
struct Program {
    name: String,
    path: PathBuf,
}

/// Builds all programs: the core first, then root, then the rest in the order of the description.
fn programs(workspace: &Workspace, description: &Description) -> Result<Vec<Program>> {
    let core = workspace.build(Flavour::Core, &[CORE])?;
    let mut out: Vec<Program> = core
        .into_iter()
        .map(|path| Program {
            name: CORE.into(),
            path,
        })
        .collect();
    let mut components: Vec<&Component> = description.components.iter().collect();
    components.sort_by_key(|c| (c.name.value != ROOT, c.name.value.clone()));
    let mut packages: Vec<&str> = components
        .iter()
        .filter_map(|c| Some(c.package()?.value.as_str()))
        .collect();
    packages.sort_unstable();
    packages.dedup();
    let built = workspace.build(Flavour::Component, &packages)?;
    for component in components {
        let path = match (component.package(), &component.file) {
            (Some(package), _) => packages
                .iter()
                .position(|p| *p == package.value)
                .and_then(|i| built.get(i).cloned()),
            (None, Some(file)) => Some(description.source.folder().join(&file.value)),
            (None, None) => None,
        };
        let name = component.name.value.clone();
        let path = path.with_context(|| format!("nothing to build {name} from"))?;
        out.push(Program { name, path });
    }
    Ok(out)
}

fn keep_debug(folder: &Path, name: &str, file: &[u8]) -> Result<PathBuf> {
    let folder = folder.join("debug");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.elf"));
    // Unchanged files keep their time, so that gdb does not read them again.
    if fs::read(&path).ok().as_deref() != Some(file) {
        fs::write(&path, file)?;
    }
    Ok(path)
}

/// Resolves what a description names.
struct Inputs<'a> {
    workspace: &'a Workspace,
    cache: Cache,
    description: &'a Description,
    /// Unpacked kernels are kept here.
    kernels: PathBuf,
}

impl Inputs<'_> {
    fn guests(&mut self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        for guest in &self.description.guests {
            let name = &guest.name.value;
            let source = guest.kernel.as_ref().context("a guest without a kernel")?;
            let kernel = self
                .bytes(&source.value)
                .with_context(|| format!("guest {name}: kernel"))?;
            let kernel = self
                .unpack(kernel)
                .with_context(|| format!("guest {name}: kernel"))?;
            let mut size = kernel.len();
            files.push((manifest::kernel_file(name), kernel));
            if let Some(initrd) = &guest.initrd {
                let initrd = match &initrd.value {
                    Input::BusyboxDisks => self.with_disks(&source.value),
                    other => self.bytes(other),
                };
                let initrd = initrd.with_context(|| format!("guest {name}: initrd"))?;
                size += initrd.len();
                files.push((manifest::initrd_file(name), initrd));
            }
            if size as u64 > guest.memory_mib.value << 20 {
                bail!(
                    "guest {name}: kernel and initrd have {} MiB, its memory only {}; give it more memory",
                    size >> 20,
                    guest.memory_mib.value
                );
            }
        }
        Ok(files)
    }

    /// What the operator can make guests of; kernels are unpacked as those of guests are.
    fn files(&mut self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        for file in &self.description.files {
            let name = &file.name.value;
            let bytes = match (&file.path, &file.text) {
                (Some(path), _) if path.value == Input::BusyboxDisks => {
                    let kernel = self.description.kernel_of_files();
                    self.with_disks(kernel.unwrap_or(&path.value))
                }
                (Some(path), _) => self.bytes(&path.value).and_then(|bytes| self.unpack(bytes)),
                (None, Some(text)) => Ok(text.value.clone().into_bytes()),
                (None, None) => bail!("file {name} is neither a path nor a text"),
            };
            let bytes = bytes.with_context(|| format!("file {name}"))?;
            files.push((manifest::boot_file(name), bytes));
        }
        Ok(files)
    }

    fn path(&self, input: &Input) -> Result<PathBuf> {
        match input {
            Input::None => bail!("no file is named"),
            Input::Path(path) => Ok(self.description.source.folder().join(path)),
            Input::DebianKernel { package, suite } => self.cache.kernel(package, suite.as_deref()),
            Input::DebianFile {
                package,
                suite,
                file,
            } => self.cache.file(package, suite.as_deref(), file),
            Input::Busybox | Input::BusyboxXenstore | Input::BusyboxDisks => {
                self.cache.file("busybox-static", None, "bin/busybox")
            }
            Input::Package(package) => {
                let built = self.workspace.build(Flavour::Component, &[package])?;
                built
                    .into_iter()
                    .next()
                    .with_context(|| format!("package {package} built nothing"))
            }
        }
    }

    fn bytes(&self, input: &Input) -> Result<Vec<u8>> {
        let path = self.path(input)?;
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        match input {
            Input::Busybox => Ok(initramfs::busybox(&bytes, &[])),
            Input::BusyboxXenstore => {
                let tools = initramfs::xenstore_tools(&self.cache)?;
                Ok(initramfs::busybox(&bytes, &tools))
            }
            Input::Package(_) => elf::strip(&bytes),
            _ => Ok(bytes),
        }
    }

    /// Busybox with the xenstore tools, and modules of `kernel` that a disk's front and back end need.
    fn with_disks(&self, kernel: &Input) -> Result<Vec<u8>> {
        let Input::DebianKernel { package, suite } = kernel else {
            bail!("builtin:busybox+disks has modules of a kernel that is debian:PACKAGE");
        };
        let folder = self.cache.disk_modules(package, suite.as_deref())?;
        let mut more = initramfs::xenstore_tools(&self.cache)?;
        more.extend(initramfs::disk_modules(&folder)?);
        let busybox = fs::read(self.path(&Input::BusyboxDisks)?)?;
        Ok(initramfs::busybox(&busybox, &more))
    }

    /// A Linux boot image unpacked: the builder can do that as well, but an emulated CPU takes
    /// many times as long.
    fn unpack(&self, kernel: Vec<u8>) -> Result<Vec<u8>> {
        if !guest_loader::bzimage::is_bzimage(&kernel) {
            return Ok(kernel);
        }
        let mut hash = DefaultHasher::new();
        hash.write(&kernel);
        let kept = self
            .kernels
            .join(format!("{:016x}-{}.elf", hash.finish(), kernel.len()));
        if let Ok(bytes) = fs::read(&kept) {
            return Ok(bytes);
        }
        let size = format!("a kernel of {} MiB", kernel.len() >> 20);
        let unpacked = step("Unpacking", size, || {
            guest_loader::load::unpack_bzimage(&kernel, UNPACKED_MAX)
        });
        let Ok(unpacked) = unpacked else {
            // The builder in the image will say what is wrong with it, in the guest's own log.
            say(
                "Note",
                "this kernel cannot be unpacked here; the builder will try",
            );
            return Ok(kernel);
        };
        fs::create_dir_all(&self.kernels)?;
        fs::write(&kept, &unpacked)?;
        Ok(unpacked)
    }
}
