//! Files out of Debian packages: resolved by apt when an image is built, unpacked into a cache,
//! never installed. ABI names of kernels move, so nothing is pinned; the version is printed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::description::Input;
use crate::packages;
use crate::progress::{say, step};

/// Debian's kernels by short names: version and flavour, as a source for `system.toml`. Anything
/// else is read as such a source. The error is advice.
pub fn kernel_source(text: &str) -> Result<Input, String> {
    const BACKPORTS: &str = "/bookworm-backports";
    let (version, package) = match text.strip_suffix("cloud") {
        Some(version) => (
            version.strip_suffix('-').unwrap_or(version),
            "linux-image-cloud-amd64",
        ),
        None => (text, "linux-image-amd64"),
    };
    match version {
        "6.1" => Input::parse(&format!("debian:{package}")),
        "6.12" => Input::parse(&format!("debian:{package}{BACKPORTS}")),
        "" if text == "cloud" => Input::parse(&format!("debian:{package}")),
        _ => Input::parse(text),
    }
}

/// Fetches and unpacks packages below one folder.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// A cache in `folder`, which is made when it is needed.
    pub fn new(folder: &Path) -> Self {
        Cache {
            folder: folder.to_owned(),
        }
    }

    /// Package and version of the kernel that the metapackage `package` depends on.
    fn kernel_package(&self, package: &str, suite: Option<&str>) -> Result<(String, String)> {
        self.resolved(package, suite, || {
            let version = candidate(package, suite)?;
            let depends = field(package, &version, "Depends").unwrap_or_default();
            let kernel = depends
                .split(',')
                .filter_map(|item| item.split('|').next())
                .map(str::trim)
                .find(|item| item.starts_with("linux-image-"));
            Ok(match kernel {
                // `NAME (= VERSION)`.
                Some(item) => {
                    let mut words = item
                        .split(|c: char| c.is_whitespace() || "()=".contains(c))
                        .filter(|w| !w.is_empty());
                    let name = words.next().unwrap_or(package).to_owned();
                    let version = match words.next() {
                        Some(version) => version.to_owned(),
                        None => candidate(&name, suite)?,
                    };
                    (name, version)
                }
                // Not a metapackage: a kernel itself.
                None => (package.to_owned(), version),
            })
        })
    }

    /// The folder of that kernel's modules for block devices.
    pub fn disk_modules(&self, package: &str, suite: Option<&str>) -> Result<PathBuf> {
        let resolved = self.kernel_package(package, suite)?;
        // Debian's kernels are called after what their modules' folder is called after.
        let release = resolved.0.strip_prefix("linux-image-");
        let release = release.with_context(|| format!("{} is no kernel's package", resolved.0))?;
        let release = release.strip_suffix("-unsigned").unwrap_or(release);
        let part = format!("lib/modules/{release}/kernel/drivers/block");
        Ok(self.unpacked(&resolved, &format!("./{part}"))?.join(part))
    }

    /// The kernel that the metapackage `package` depends on.
    pub fn kernel(&self, package: &str, suite: Option<&str>) -> Result<PathBuf> {
        let resolved = self.kernel_package(package, suite)?;
        let boot = self.unpacked(&resolved, "./boot")?.join("boot");
        let mut kernels: Vec<PathBuf> = fs::read_dir(&boot)
            .with_context(|| format!("{} holds no kernel", resolved.0))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
            })
            .collect();
        kernels.sort();
        kernels
            .pop()
            .with_context(|| format!("{} {} holds no boot/vmlinuz", resolved.0, resolved.1))
    }

    /// One file of a package.
    pub fn file(&self, package: &str, suite: Option<&str>, file: &str) -> Result<PathBuf> {
        let resolved = self.resolved(package, suite, || {
            Ok((package.to_owned(), candidate(package, suite)?))
        })?;
        let path = self.unpacked(&resolved, &format!("./{file}"))?.join(file);
        if !path.is_file() {
            bail!("package {package} {} has no file {file}", resolved.1);
        }
        Ok(path)
    }

    /// The folder that a package unpacks to, with at least `part` (`./usr/lib`) of it.
    pub fn folder(&self, package: &str, suite: Option<&str>, part: &str) -> Result<PathBuf> {
        let resolved = self.resolved(package, suite, || {
            Ok((package.to_owned(), candidate(package, suite)?))
        })?;
        self.unpacked(&resolved, part)
    }

    /// Package and version. Where apt cannot say, what was fetched the last time.
    fn resolved(
        &self,
        package: &str,
        suite: Option<&str>,
        ask: impl Fn() -> Result<(String, String)>,
    ) -> Result<(String, String)> {
        let note = self.folder.join(format!(
            "{package}{}.version",
            suite.map(|s| format!("_{s}")).unwrap_or_default()
        ));
        if suite == Some("bookworm-backports") {
            packages::ensure_backports()?;
        }
        let mut answer = ask();
        if answer.is_err() {
            let refreshed = packages::refresh();
            answer = refreshed.and_then(|()| ask());
        }
        match answer {
            Ok((name, version)) => {
                fs::create_dir_all(&self.folder)?;
                fs::write(&note, format!("{name} {version}\n"))?;
                Ok((name, version))
            }
            Err(error) => {
                let text = fs::read_to_string(&note).unwrap_or_default();
                let mut words = text.split_whitespace();
                let (Some(name), Some(version)) = (words.next(), words.next()) else {
                    return Err(error.context(format!("package {package} cannot be found")));
                };
                say(
                    "Note",
                    format!("apt cannot tell ({error:#}); using {name} {version} from the cache"),
                );
                Ok((name.to_owned(), version.to_owned()))
            }
        }
    }

    /// The folder with what `part` of the package unpacks to.
    fn unpacked(&self, (name, version): &(String, String), part: &str) -> Result<PathBuf> {
        let folder = self
            .folder
            .join(format!("{name}_{}", version.replace(':', "%3a")));
        let target = folder.join(part.trim_start_matches("./"));
        if target.exists() {
            say("Using", format!("{name} {version}"));
            return Ok(folder);
        }
        fs::create_dir_all(&self.folder)?;
        let downloads = self
            .folder
            .join(format!(".download-{}", std::process::id()));
        fs::create_dir_all(&downloads)?;
        let outcome = step("Fetching", format!("{name} {version}"), || {
            let deb = download(name, version, &downloads)?;
            // Into a folder of its own first: another build may look for the same file meanwhile.
            let fresh = downloads.join("tree");
            fs::create_dir_all(&fresh)?;
            extract(&deb, part, &fresh)?;
            fs::create_dir_all(&folder)?;
            merge(&fresh, &folder)
        });
        fs::remove_dir_all(&downloads)?;
        outcome?;
        Ok(folder)
    }
}

fn merge(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            merge(&entry.path(), &target)?;
        } else {
            fs::rename(entry.path(), &target)?;
        }
    }
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let out = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {:?}; is this Debian?", command.get_program()))?;
    if !out.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The version that apt would install.
fn candidate(package: &str, suite: Option<&str>) -> Result<String> {
    let mut command = Command::new("apt-cache");
    if let Some(suite) = suite {
        command.args(["-t", suite]);
    }
    let text = output(command.args(["policy", package]))?;
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "));
    match version {
        Some(version) if version != "(none)" => Ok(version.to_owned()),
        _ => bail!("apt knows no package {package}"),
    }
}

fn field(package: &str, version: &str, key: &str) -> Result<String> {
    let text = output(Command::new("apt-cache").args(["show", &format!("{package}={version}")]))?;
    let prefix = format!("{key}: ");
    let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
    Ok(value
        .with_context(|| format!("{package} has no {key}"))?
        .to_owned())
}

fn download(name: &str, version: &str, into: &Path) -> Result<PathBuf> {
    let mut command = Command::new("apt-get");
    // apt's own user cannot write here; apt still checks the package against the signed index.
    command.args([
        "-qq",
        "-o",
        "APT::Sandbox::User=root",
        "download",
        &format!("{name}={version}"),
    ]);
    output(command.current_dir(into))?;
    let mut deb = fs::read_dir(into)?.filter_map(|entry| Some(entry.ok()?.path()));
    deb.find(|path| path.extension().is_some_and(|e| e == "deb"))
        .with_context(|| format!("apt downloaded nothing for {name} {version}"))
}

/// Unpacks only `part`: a kernel package has 400 MB of modules.
fn extract(deb: &Path, part: &str, into: &Path) -> Result<()> {
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb; is this Debian?")?;
    let pipe = dpkg.stdout.take().context("no pipe")?;
    let tar = Command::new("tar")
        .args(["-x", "-C"])
        .arg(into)
        .arg(part)
        .stdin(pipe)
        .output()
        .context("cannot start tar")?;
    let dpkg = dpkg.wait()?;
    if !tar.status.success() {
        bail!(
            "{} has no {part}: {}",
            deb.display(),
            String::from_utf8_lossy(&tar.stderr).trim()
        );
    }
    if !dpkg.success() {
        bail!("dpkg-deb cannot read {}", deb.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_of_kernels_are_packages() {
        for (short, long) in [
            ("6.1", "debian:linux-image-amd64"),
            ("6.12", "debian:linux-image-amd64/bookworm-backports"),
            ("cloud", "debian:linux-image-cloud-amd64"),
            ("6.1-cloud", "debian:linux-image-cloud-amd64"),
            (
                "6.12-cloud",
                "debian:linux-image-cloud-amd64/bookworm-backports",
            ),
            ("./my-cloud", "./my-cloud"),
        ] {
            assert_eq!(kernel_source(short), Input::parse(long), "{short}");
        }
        assert!(kernel_source("").is_err());
    }
}
