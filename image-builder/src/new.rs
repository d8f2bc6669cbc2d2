//! `cargo image new`: makes a component from the sdk's template, with an interface, a server, a host
//! test under faults and a system to run it in, and adds it to the workspace. Never overwrites
//! anything: what it finds wrong it says before it writes the first file.

use std::fs;
use std::path::{Component as Part, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use toml::de::{DeTable, DeValue};

/// The template's files: where they go, and their text with `@name@` and the like.
const FILES: &[(&str, &str)] = &[
    (
        "Cargo.toml",
        include_str!("../../sdk/template/Cargo.toml.in"),
    ),
    ("build.rs", include_str!("../../sdk/template/build.rs.in")),
    ("src/lib.rs", include_str!("../../sdk/template/lib.rs.in")),
    ("src/main.rs", include_str!("../../sdk/template/main.rs.in")),
    (
        "src/interface.rs",
        include_str!("../../sdk/template/interface.rs.in"),
    ),
    (
        "tests/faults.rs",
        include_str!("../../sdk/template/tests.rs.in"),
    ),
    (
        "system.toml",
        include_str!("../../sdk/template/system.toml.in"),
    ),
];

/// A component's name appears with a guest's behind it, and names have at most 32 bytes.
const NAME_MAX: usize = 24;
/// Names that Rust or cargo have another use for.
const RESERVED: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "main",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
    "root",
];

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its folder, from the workspace's.
    pub path: String,
    /// The files in it.
    pub files: Vec<String>,
}

/// The workspace around `folder`: the nearest folder upwards whose `Cargo.toml` has a workspace with
/// this project's sdk.
pub fn workspace(folder: &Path) -> Result<PathBuf> {
    for folder in folder.ancestors() {
        let Ok(text) = fs::read_to_string(folder.join("Cargo.toml")) else {
            continue;
        };
        let table = DeTable::parse(&text)
            .with_context(|| format!("{} is no TOML", folder.join("Cargo.toml").display()))?;
        if table.get_ref().contains_key("workspace") {
            ensure!(
                folder.join("sdk/component.ld").is_file(),
                "the workspace {} has no sdk/: it is not one of microvisor's",
                folder.display()
            );
            return Ok(folder.to_owned());
        }
    }
    bail!(
        "{} is not in a cargo workspace; go into the project's folder",
        folder.display()
    )
}

/// Makes component `name` in `path` (from the workspace's folder `root`; `components/<name>` if
/// absent).
pub fn component(root: &Path, name: &str, path: Option<&str>) -> Result<Made> {
    judge_name(name)?;
    let path = path.map_or_else(|| format!("components/{name}"), str::to_owned);
    let up = up(&path)?;
    let folder = root.join(&path);
    if let Some(taken) = taken(root, name)? {
        bail!("the name {name} is taken: {taken}");
    }
    ensure!(
        !folder.exists(),
        "{} is there already; choose another name or --path",
        folder.display()
    );
    let manifest = root.join("Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .with_context(|| format!("cannot read {}", manifest.display()))?;
    let text = with_member(&text, &path)?;

    let type_name = camel(name);
    let crate_name = name.replace('-', "_");
    let mut files = Vec::new();
    for (file, template) in FILES {
        // The longest names first would matter if one began another; none does.
        let content = [
            ("@name@", name),
            ("@crate@", &crate_name),
            ("@interface@", &crate_name),
            ("@Type@", &type_name),
            ("@up@", &up),
            ("@path@", &path),
        ]
        .iter()
        .fold((*template).to_owned(), |text, (from, to)| {
            text.replace(from, to)
        });
        let place = folder.join(file);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot make {}", parent.display()))?;
        }
        fs::write(&place, content).with_context(|| format!("cannot write {}", place.display()))?;
        files.push((*file).to_owned());
    }
    // Last: a workspace with a member that is not there would not build.
    fs::write(&manifest, text).with_context(|| format!("cannot write {}", manifest.display()))?;
    Ok(Made { path, files })
}

/// What to do now.
pub fn next_steps(name: &str, made: &Made) -> String {
    let path = &made.path;
    format!(
        "made {path} and added it to Cargo.toml. Next:\n\
         \x20   cargo fmt -p {name} && cargo test -p {name}   # its code on the host, under faults\n\
         \x20   cargo image run {path}/system.toml   # the machine: its log says \"{name} ready\"\n\
         Then say in {path}/src/interface.rs what it can be asked, and read docs/components.md.\n"
    )
}

fn judge_name(name: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let dashes = name.ends_with('-') || name.contains("--");
    ensure!(
        starts && !dashes && name.bytes().all(good),
        "{name:?} cannot be a component's name: use lower case letters, digits and single dashes, \
         beginning with a letter"
    );
    ensure!(
        name.len() <= NAME_MAX,
        "{name} is too long for a component: at most {NAME_MAX} letters"
    );
    ensure!(
        !RESERVED.contains(&name),
        "{name} means something else already; choose another name"
    );
    Ok(())
}

/// The way from the component's folder back to the workspace's.
fn up(path: &str) -> Result<String> {
    let mut up = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Part::Normal(word) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                ensure!(
                    word.to_str().is_some_and(|word| word.chars().all(plain)),
                    "--path {path}: use letters, digits, - and _"
                );
                up.push("..");
            }
            Part::CurDir => {}
            _ => bail!("--path {path} leads out of the workspace; write one inside of it"),
        }
    }
    ensure!(!up.is_empty(), "--path names the workspace itself");
    Ok(up.join("/"))
}

/// Who has the name already: a crate of the workspace, or one that it depends on.
fn taken(root: &Path, name: &str) -> Result<Option<String>> {
    let lock = root.join("Cargo.lock");
    let text = match fs::read_to_string(&lock) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(format!("cannot read {}", lock.display())),
    };
    let table = DeTable::parse(&text).with_context(|| format!("{} is no TOML", lock.display()))?;
    let packages = table.get_ref().get("package").map(|p| p.get_ref());
    let same = |known: &&str| known.replace('_', "-") == name;
    let found = packages
        .and_then(DeValue::as_array)
        .into_iter()
        .flatten()
        .filter_map(|package| package.get_ref().get("name")?.get_ref().as_str())
        .find(same);
    Ok(found.map(|known| format!("the workspace has a crate {known} (see Cargo.lock)")))
}

/// The workspace's `Cargo.toml` with another member, which is tested on the host as well. Comments
/// and order stay.
fn with_member(text: &str, path: &str) -> Result<String> {
    let mut out = text.to_owned();
    for key in ["members", "default-members"] {
        let start = format!("\n{key} = [");
        let Some(at) = out.find(&start) else {
            continue;
        };
        let end = out[at..]
            .find("\n]")
            .with_context(|| format!("`{key}` of Cargo.toml does not end on a line of its own"))?;
        out.insert_str(at + end, &format!("\n    \"{path}\","));
    }
    // Judged by what cargo will read, not by what was meant.
    let table = DeTable::parse(&out).context("Cargo.toml would be no TOML any more")?;
    let workspace = table.get_ref().get("workspace");
    let members = workspace.and_then(|w| w.get_ref().get("members"));
    let mut members = members
        .and_then(|m| m.get_ref().as_array())
        .into_iter()
        .flatten();
    ensure!(
        members.any(|m| m.get_ref().as_str() == Some(path)),
        "cannot find where `members` of Cargo.toml ends; add \"{path}\" by hand to an array of \
         several lines and try again"
    );
    Ok(out)
}

fn camel(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let mut letters = word.chars();
        let first = letters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_are_added_and_comments_stay() {
        let text =
            "[workspace]\n# all\nmembers = [\n    \"a\",\n]\n# host\ndefault-members = [\n]\n";
        let with = with_member(text, "b/c").unwrap();
        assert_eq!(
            with,
            "[workspace]\n# all\nmembers = [\n    \"a\",\n    \"b/c\",\n]\n# host\n\
             default-members = [\n    \"b/c\",\n]\n"
        );
        assert!(with_member("[workspace]\nmembers = [\"a\"]\n", "b").is_err());
    }

    #[test]
    fn the_way_back_has_as_many_steps() {
        assert_eq!(up("components/x").unwrap(), "../..");
        assert_eq!(up("a").unwrap(), "..");
        for bad in ["", ".", "..", "/x", "a/../b", "a b/c"] {
            assert!(up(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_name_that_is_accepted_is_an_identifier(name in "[a-zA-Z0-9_ -]{0,26}") {
            if judge_name(&name).is_ok() {
                let word = name.replace('-', "_");
                prop_assert!(word.starts_with(|c: char| c.is_ascii_lowercase()));
                prop_assert!(word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
                prop_assert!(camel(&name).starts_with(|c: char| c.is_ascii_uppercase()));
            }
        }
    }
}
