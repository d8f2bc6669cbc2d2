//! `[[volume]]` and a guest's `disks`, read. What they mean together is judged by `rules`.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::{Reader, Table};
use crate::description::{At, Blocks, Description, Disk, Volume};

const VOLUME: &[&str] = &["name", "backend", "source", "read-only", "overlay"];
const DISK: &[&str] = &["volume", "device", "read-only", "discard", "driver"];

/// Leaves the wire `block` away that a built-in backend has, where no volume of it is on a disk: a
/// system without a disk driver has nobody to serve it.
pub fn without_disk(into: &mut Description) {
    let Description {
        volumes,
        components,
        ..
    } = into;
    for component in components {
        let on_disk = volumes.iter().any(|volume| {
            let backend = volume.backend.as_ref();
            volume.source.value.is_on_disk()
                && backend.is_none_or(|at| at.value == component.name.value)
        });
        let span = component.span.clone();
        // What has the component's own place was not written in the file.
        let built_in = |need: &crate::description::Need| need.span == span;
        if !on_disk {
            component
                .needs
                .retain(|need| need.interface != "block" || !built_in(need));
        }
    }
}

impl Reader {
    pub(super) fn volume(&mut self, own: &DeTable<'_>, span: Range<usize>) -> Volume {
        let mut table = Table {
            what: "[[volume]]".into(),
            span: span.clone(),
            own: Some(own),
            defaults: None,
        };
        let name = self.name(&table);
        table.what = format!("volume {}", name.value);
        self.unknown_keys(&table.what, own, VOLUME);
        let source = self.string(&table, "source").map(|text| {
            let read = Blocks::parse(&text.value);
            if let Err(advice) = &read {
                let message = format!("{}: `source` is not what it should be", table.what);
                self.problems.add(&text.span, message, advice);
            }
            At::new(read.unwrap_or_default(), text.span)
        });
        if own.get("source").is_none() {
            let message = format!("{} has no source", table.what);
            let advice = "add source = \"disk\", \"partition:label=NAME\" or \"file:PATH\"";
            self.problems.add(&span, message, advice);
        }
        Volume {
            backend: self.string(&table, "backend"),
            source: source.unwrap_or_else(|| At::new(Blocks::None, span.clone())),
            read_only: self.boolean(&table, "read-only"),
            overlay_bytes: self.size(&table, "overlay", 1 << 20, 0),
            span,
            name,
        }
    }

    pub(super) fn disks(&mut self, table: &Table<'_>) -> Vec<Disk> {
        let expected = "disks = [{ volume = \"NAME\", device = \"xvda\" }]";
        self.list(table, "disks", expected, Self::disk)
    }

    fn disk(&mut self, value: &DeValue<'_>, span: Range<usize>) -> Option<Disk> {
        let table = value.as_table()?;
        self.unknown_keys("disks", table, DISK);
        let text = |key| table.get(key)?.get_ref().as_str().map(str::to_owned);
        let said = |key: &str, default| match table.get(key) {
            Some(value) => value.get_ref().as_bool(),
            None => Some(default),
        };
        let driver = match table.get("driver") {
            Some(value) => Some(value.get_ref().as_str()?.to_owned()),
            None => None,
        };
        Some(Disk {
            span,
            volume: text("volume")?,
            device: text("device")?,
            read_only: said("read-only", false)?,
            discard: said("discard", true)?,
            driver,
        })
    }
}
