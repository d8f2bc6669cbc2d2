//! The tree as one request sees it: what is there, with the changes of its transaction over it, and
//! what the one who asks may do. Notes every path that it looks at, which a transaction depends on.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;

use idl::xs_wire::Errno;

use crate::PRIVILEGED;
use crate::path::parent;
use crate::record::{Access, Content};
use crate::session::Changes;
use crate::store::Store;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its domain.
    pub domain: u16,
    /// The domain whose rights it has, too.
    pub target: Option<u16>,
}

impl Who {
    /// Whether everything is allowed to it.
    pub fn is_privileged(self) -> bool {
        self.domain == PRIVILEGED
    }

    /// Whether it counts as the owner.
    pub fn owns(self, content: &Content) -> bool {
        let owner = content.owner();
        self.is_privileged() || owner == self.domain || Some(owner) == self.target
    }

    /// Whether it may do this with a node.
    pub fn may(self, content: &Content, wanted: Access) -> bool {
        if self.owns(content) {
            return true;
        }
        let mut named = content.permissions.iter().skip(1);
        let entry = named.find(|permission| permission.domain == self.domain);
        let entry = entry.or(content.permissions.first());
        entry.is_some_and(|permission| permission.access.covers(wanted))
    }
}

/// The tree for one request.
pub struct View<'a> {
    store: &'a Store,
    changes: Option<&'a Changes>,
    /// Who asks.
    pub who: Who,
    seen: RefCell<BTreeMap<String, u64>>,
}

impl<'a> View<'a> {
    /// `changes` are those of a transaction.
    pub fn new(store: &'a Store, changes: Option<&'a Changes>, who: Who) -> View<'a> {
        View {
            store,
            changes,
            who,
            seen: RefCell::default(),
        }
    }

    /// Nodes of the tree that were looked at, and when each had changed. For what was not there that
    /// is the nearest node above, which changes when it comes to be.
    pub fn seen(self) -> BTreeMap<String, u64> {
        self.seen.into_inner()
    }

    /// What is there.
    pub fn get(&self, path: &str) -> Option<&'a Content> {
        let node = self.store.get(path);
        let Some(changes) = self.changes else {
            return node.map(|node| &node.content);
        };
        let mut there = path;
        while self.store.get(there).is_none()
            && let Some(above) = parent(there)
        {
            there = above;
        }
        if let Some(node) = self.store.get(there) {
            let mut seen = self.seen.borrow_mut();
            seen.insert(there.to_string(), node.changed);
        }
        match changes.get(path) {
            Some(content) => content.as_ref(),
            None => node.map(|node| &node.content),
        }
    }

    /// What is there, if the one who asks may do that with it.
    pub fn node(&self, path: &str, wanted: Access) -> Result<&'a Content, Errno> {
        match self.get(path) {
            Some(content) if self.who.may(content, wanted) => Ok(content),
            Some(_) => Err(Errno::Acces),
            // Whether something is there is told to those who could make it or see it.
            None => match self.above(path) {
                Some((_, content)) if self.who.may(content, wanted) => Err(Errno::NoEnt),
                _ => Err(Errno::Acces),
            },
        }
    }

    /// The nearest node above.
    pub fn above(&self, path: &str) -> Option<(String, &'a Content)> {
        let mut path = path;
        loop {
            path = parent(path)?;
            if let Some(content) = self.get(path) {
                return Some((path.to_string(), content));
            }
        }
    }

    /// Every path below `path`.
    pub fn below(&self, path: &str) -> BTreeSet<String> {
        let there = self.store.below(path).map(|(name, _)| name.to_string());
        let mut all: BTreeSet<String> = there.collect();
        for (name, content) in self.changes.into_iter().flatten() {
            if name != path && crate::path::below(name, path) {
                match content {
                    Some(_) => all.insert(name.clone()),
                    None => all.remove(name),
                };
            }
        }
        all
    }

    /// Names of a node's children, each with a zero byte behind it.
    pub fn directory(&self, path: &str) -> Result<Vec<u8>, Errno> {
        self.node(path, Access::Read)?;
        let skip = if path == "/" { 1 } else { path.len() + 1 };
        let mut list = Vec::new();
        for below in self.below(path) {
            let name = below.get(skip..).unwrap_or("");
            if !name.is_empty() && !name.contains('/') {
                list.extend_from_slice(name.as_bytes());
                list.push(0);
            }
        }
        Ok(list)
    }
}
