//! The tree: absolute paths, what is there, when it changed, and who has how much of it.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};

use crate::path::parent;
use crate::record::Content;

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it holds.
    pub content: Content,
    /// When it, or the list of its children, changed last: a count of changes.
    pub changed: u64,
}

/// What a domain's nodes come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many.
    pub nodes: usize,
    /// Their bytes in the journal.
    pub bytes: usize,
}

/// All nodes.
#[derive(Clone, Debug, Default)]
pub struct Store {
    nodes: BTreeMap<String, Node>,
    clock: u64,
    usage: BTreeMap<u16, Usage>,
}

impl Store {
    /// The node there.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// All paths and nodes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Paths and nodes below `path`, without itself, in order.
    pub fn below(&self, path: &str) -> impl Iterator<Item = (&str, &Node)> {
        let prefix = match path {
            "/" => path.to_string(),
            _ => alloc::format!("{path}/"),
        };
        self.nodes
            .range(prefix.clone()..)
            .take_while(move |(name, _)| name.starts_with(prefix.as_str()))
            .map(|(name, node)| (name.as_str(), node))
            .filter(|(name, _)| *name != "/")
    }

    /// What a domain has.
    pub fn usage(&self, domain: u16) -> Usage {
        self.usage.get(&domain).copied().unwrap_or_default()
    }

    /// Bytes of all nodes in the journal.
    pub fn bytes(&self) -> usize {
        self.usage.values().map(|usage| usage.bytes).sum()
    }

    fn charge(&mut self, path: &str, content: &Content) {
        let usage = self.usage.entry(content.owner()).or_default();
        usage.nodes += 1;
        usage.bytes += content.cost(path);
    }

    fn refund(&mut self, path: &str, content: &Content) {
        let owner = content.owner();
        if let Some(usage) = self.usage.get_mut(&owner) {
            usage.nodes = usage.nodes.saturating_sub(1);
            usage.bytes = usage.bytes.saturating_sub(content.cost(path));
            if usage.nodes == 0 {
                self.usage.remove(&owner);
            }
        }
    }

    fn touch_parent(&mut self, path: &str) {
        let clock = self.clock;
        if let Some(node) = parent(path).and_then(|path| self.nodes.get_mut(path)) {
            node.changed = clock;
        }
    }

    /// Sets what is at `path`.
    pub fn put(&mut self, path: String, content: Content) {
        self.clock += 1;
        self.charge(&path, &content);
        let node = Node {
            content,
            changed: self.clock,
        };
        match self.nodes.insert(path.clone(), node) {
            Some(old) => self.refund(&path, &old.content),
            None => self.touch_parent(&path),
        }
    }

    /// Removes a node and everything below; the root stays.
    pub fn remove(&mut self, path: &str) {
        if path == "/" {
            return;
        }
        self.clock += 1;
        let mut gone: alloc::vec::Vec<String> =
            self.below(path).map(|(name, _)| name.to_string()).collect();
        gone.push(path.to_string());
        for path in gone {
            if let Some(old) = self.nodes.remove(&path) {
                self.refund(&path, &old.content);
            }
        }
        self.touch_parent(path);
    }
}
