//! `cargo image new` in a folder that looks like the workspace: what it writes, and what it refuses.

use std::fs;
use std::path::PathBuf;

use image_builder::new;

/// A workspace with nothing in it but what `new` looks at; gone when dropped.
struct Workspace(PathBuf);

impl Workspace {
    fn new(name: &str) -> Workspace {
        let root = std::env::temp_dir().join(format!("image-new-{}-{name}", std::process::id()));
        fs::create_dir_all(root.join("sdk")).unwrap();
        fs::write(root.join("sdk/component.ld"), "").unwrap();
        let manifest =
            "[workspace]\nmembers = [\n    \"sdk\",\n]\ndefault-members = [\n    \"sdk\",\n]\n";
        fs::write(root.join("Cargo.toml"), manifest).unwrap();
        let lock =
            "version = 4\n\n[[package]]\nname = \"sdk\"\n\n[[package]]\nname = \"linked_list\"\n";
        fs::write(root.join("Cargo.lock"), lock).unwrap();
        Workspace(root)
    }

    fn refused(&self, name: &str, path: Option<&str>) -> String {
        let before = fs::read_to_string(self.0.join("Cargo.toml")).unwrap();
        let error = new::component(&self.0, name, path).unwrap_err();
        let after = fs::read_to_string(self.0.join("Cargo.toml")).unwrap();
        assert_eq!(before, after, "{name} is refused and leaves nothing");
        format!("{error:#}")
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_component_is_made_and_becomes_a_member() {
    let workspace = Workspace::new("made");
    let made = new::component(&workspace.0, "clock-face", None).unwrap();
    assert_eq!(made.path, "components/clock-face");
    for file in &made.files {
        let text = fs::read_to_string(workspace.0.join(&made.path).join(file)).unwrap();
        assert!(!text.contains('@'), "{file} has a placeholder left");
    }
    let library = fs::read_to_string(workspace.0.join("components/clock-face/src/lib.rs")).unwrap();
    assert!(
        library.starts_with("//! `clock-face`:"),
        "it says what it is"
    );
    let manifest = fs::read_to_string(workspace.0.join("Cargo.toml")).unwrap();
    assert_eq!(manifest.matches("\"components/clock-face\",").count(), 2);
    assert!(new::next_steps("clock-face", &made).contains("cargo test -p clock-face"));
}

#[test]
fn another_folder_finds_its_way_back_to_the_sdk() {
    let workspace = Workspace::new("path");
    let made = new::component(&workspace.0, "deep", Some("a/b/deep")).unwrap();
    let build = fs::read_to_string(workspace.0.join(&made.path).join("build.rs")).unwrap();
    assert!(build.contains("../../../sdk/component.ld"), "{build}");
    let error = workspace.refused("deeper", Some("../outside"));
    assert!(error.contains("leads out of the workspace"), "{error}");
}

#[test]
fn a_name_that_is_taken_or_no_name_is_refused() {
    let workspace = Workspace::new("names");
    for taken in ["sdk", "linked-list"] {
        let error = workspace.refused(taken, None);
        assert!(error.contains("is taken"), "{error}");
    }
    new::component(&workspace.0, "twice", None).unwrap();
    assert!(
        workspace
            .refused("twice", None)
            .contains("is there already")
    );
    for bad in [
        "", "Upper", "9lives", "a--b", "a-", "a_b", "../x", "-x", "ä",
    ] {
        let error = workspace.refused(bad, None);
        assert!(error.contains("lower case"), "{bad}: {error}");
    }
    assert!(workspace.refused("match", None).contains("something else"));
    assert!(
        workspace
            .refused(&"x".repeat(25), None)
            .contains("too long")
    );
}

#[test]
fn a_folder_in_no_workspace_is_said_to_be_in_none() {
    let workspace = Workspace::new("none");
    let inside = workspace.0.join("sdk");
    assert_eq!(new::workspace(&inside).unwrap(), workspace.0);
    let error = new::workspace(&std::env::temp_dir()).unwrap_err();
    assert!(
        error.to_string().contains("not in a cargo workspace"),
        "{error}"
    );
    fs::remove_file(workspace.0.join("sdk/component.ld")).unwrap();
    let error = new::workspace(&inside).unwrap_err();
    assert!(error.to_string().contains("has no sdk/"), "{error}");
}
