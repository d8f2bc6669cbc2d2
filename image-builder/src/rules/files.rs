//! What is wrong with files that the operator can make guests of. Part of `rules`.

use microvisor_abi::archive::NAME_BYTES;

use super::Rules;
use crate::description::Input;
use crate::manifest;

impl Rules<'_> {
    pub(super) fn files(&mut self) {
        let mut seen: Vec<&str> = Vec::new();
        let description = self.description;
        for file in &description.files {
            let name = file.name.value.as_str();
            let what = format!("file {name}");
            let good = |letter: char| letter.is_ascii_alphanumeric() || "-_.+/".contains(letter);
            let path = manifest::boot_file(name);
            if !name.is_empty()
                && (!name.chars().all(good) || name.starts_with('/') || path.len() > NAME_BYTES)
            {
                let advice = format!(
                    "use letters, digits and - _ . + /, at most {}, without a / at the beginning",
                    NAME_BYTES - manifest::boot_file("").len()
                );
                self.add(
                    &file.name.span,
                    format!("file name {name:?} cannot be used"),
                    advice,
                );
            }
            if seen.contains(&name) {
                let message = format!("two files are called {name:?}");
                self.add(&file.name.span, message, "rename one of them");
            }
            seen.push(name);
            match (&file.path, &file.text) {
                (Some(path), None)
                    if path.value == Input::BusyboxDisks
                        && description.kernel_of_files().is_none() =>
                {
                    let message = format!("{what}: no file is a kernel of Debian's");
                    let advice = "builtin:busybox+disks has modules of the first [[file]] with path = \"debian:PACKAGE\"";
                    self.add(&path.span, message, advice);
                }
                (Some(path), None) => self.input(&path.span, &what, &path.value),
                (None, Some(_)) => {}
                _ => {
                    let advice =
                        "write path = \"...\", or text = \"\"\"...\"\"\" for what is in it";
                    self.add(&file.span, format!("{what}: one of path and text"), advice);
                }
            }
        }
    }
}
