//! Files that the operator can make guests of. Part of `read`.

use std::ops::Range;

use toml::de::DeTable;

use super::{Reader, Table};
use crate::description::File;

const FILE: &[&str] = &["name", "path", "text"];

impl Reader {
    pub(super) fn archive_file(&mut self, own: &DeTable<'_>, span: Range<usize>) -> File {
        let table = Table {
            what: "[[file]]".into(),
            span: span.clone(),
            own: Some(own),
            defaults: None,
        };
        self.unknown_keys(&table.what, own, FILE);
        File {
            name: self.name(&table),
            path: self.input(&table, "path"),
            text: self.string(&table, "text"),
            span,
        }
    }
}
