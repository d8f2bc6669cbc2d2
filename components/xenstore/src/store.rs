//! The tree: absolute paths, values, permissions.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::path::{below, parent};
use crate::quota;
use crate::wire::Errno;

/// The toolstack's domain: everything is allowed to it.
pub const PRIVILEGED: u16 = 0;

/// What somebody may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Both.
    Both,
}

impl Access {
    /// The letter on the wire.
    pub const fn letter(self) -> char {
        match self {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        }
    }

    /// The access with this letter.
    pub const fn from_letter(letter: char) -> Option<Access> {
        Some(match letter {
            'n' => Access::None,
            'r' => Access::Read,
            'w' => Access::Write,
            'b' => Access::Both,
            _ => return None,
        })
    }

    const fn covers(self, wanted: Access) -> bool {
        matches!(
            (self, wanted),
            (Access::Both, _)
                | (Access::Read, Access::Read)
                | (Access::Write, Access::Write)
                | (_, Access::None)
        )
    }
}

/// One domain's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// Who.
    pub domain: u16,
    /// What.
    pub access: Access,
}

/// A node's permissions: the first names the owner, who may do everything, and what those may do
/// that no other entry names.
pub type Permissions = Vec<Permission>;

#[derive(Clone, Debug)]
struct Node {
    value: Rc<[u8]>,
    permissions: Permissions,
}

impl Node {
    fn owner(&self) -> u16 {
        self.permissions
            .first()
            .map_or(PRIVILEGED, |permission| permission.domain)
    }

    fn allows(&self, domain: u16, wanted: Access) -> bool {
        if domain == PRIVILEGED || self.owner() == domain {
            return true;
        }
        let named = self
            .permissions
            .iter()
            .skip(1)
            .find(|permission| permission.domain == domain)
            .or(self.permissions.first());
        named.is_some_and(|permission| permission.access.covers(wanted))
    }
}

/// A store.
#[derive(Clone, Debug)]
pub struct Store {
    nodes: BTreeMap<String, Node>,
    /// Counts changes.
    generation: u64,
}

impl Default for Store {
    fn default() -> Self {
        let root = Node {
            value: Rc::from([]),
            permissions: Vec::from([Permission {
                domain: PRIVILEGED,
                access: Access::None,
            }]),
        };
        Store {
            nodes: BTreeMap::from([("/".to_string(), root)]),
            generation: 0,
        }
    }
}

impl Store {
    /// An empty store.
    pub fn new() -> Store {
        Store::default()
    }

    /// Changes so far.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    fn node(&self, path: &str, domain: u16, wanted: Access) -> Result<&Node, Errno> {
        match self.nodes.get(path) {
            Some(node) if node.allows(domain, wanted) => Ok(node),
            Some(_) => Err(Errno::Acces),
            // Whether something is there is told to those who may read the parent.
            None => match self.ancestor(path) {
                Some(node) if node.allows(domain, Access::Read) => Err(Errno::NoEnt),
                _ => Err(Errno::Acces),
            },
        }
    }

    fn ancestor(&self, path: &str) -> Option<&Node> {
        let mut path = path;
        loop {
            path = parent(path)?;
            if let Some(node) = self.nodes.get(path) {
                return Some(node);
            }
        }
    }

    /// A node's value.
    pub fn read(&self, path: &str, domain: u16) -> Result<&[u8], Errno> {
        Ok(&self.node(path, domain, Access::Read)?.value)
    }

    /// A node's permissions.
    pub fn permissions(&self, path: &str, domain: u16) -> Result<&Permissions, Errno> {
        Ok(&self.node(path, domain, Access::Read)?.permissions)
    }

    /// Names of a node's children, in order.
    pub fn directory(
        &self,
        path: &str,
        domain: u16,
    ) -> Result<impl Iterator<Item = &str> + use<'_>, Errno> {
        self.node(path, domain, Access::Read)?;
        let prefix = if path == "/" {
            path.to_string()
        } else {
            alloc::format!("{path}/")
        };
        let start = prefix.clone();
        Ok(self
            .nodes
            .range(start..)
            .map_while(move |(name, _)| name.strip_prefix(prefix.as_str()))
            .filter(|rest| !rest.is_empty() && !rest.contains('/')))
    }

    fn check_quota(&self, path: &str, value: usize, domain: u16) -> Result<(), Errno> {
        if domain == PRIVILEGED {
            return Ok(());
        }
        let owned = self
            .nodes
            .iter()
            .filter(|(_, node)| node.owner() == domain)
            .map(|(path, node)| path.len() + node.value.len())
            .sum::<usize>();
        let entry = path.len() + value;
        if entry > quota::ENTRY || owned + entry > quota::BYTES {
            return Err(Errno::NoSpc);
        }
        Ok(())
    }

    /// Makes a node with what is missing above it. New nodes inherit the permissions of what they
    /// are below, and belong to who made them. Answers whether it is new.
    pub fn make(&mut self, path: &str, domain: u16) -> Result<bool, Errno> {
        match self.node(path, domain, Access::Write) {
            Ok(_) => return Ok(false),
            Err(Errno::NoEnt) => {}
            Err(error) if self.nodes.contains_key(path) => return Err(error),
            Err(_) => {}
        }
        let above = self.ancestor(path).ok_or(Errno::NoEnt)?;
        if !above.allows(domain, Access::Write) {
            return Err(Errno::Acces);
        }
        let mut permissions = above.permissions.clone();
        if domain != PRIVILEGED
            && let Some(owner) = permissions.first_mut()
        {
            owner.domain = domain;
        }
        let mut missing = Vec::new();
        let mut next = Some(path);
        while let Some(path) = next
            && !self.nodes.contains_key(path)
        {
            missing.push(path.to_string());
            next = parent(path);
        }
        if domain != PRIVILEGED {
            let owned = self
                .nodes
                .values()
                .filter(|node| node.owner() == domain)
                .count();
            if owned + missing.len() > quota::NODES {
                return Err(Errno::NoSpc);
            }
        }
        self.check_quota(path, 0, domain)?;
        for path in missing {
            let node = Node {
                value: Rc::from([]),
                permissions: permissions.clone(),
            };
            self.nodes.insert(path, node);
        }
        self.generation += 1;
        Ok(true)
    }

    /// Sets a value, making the node if need be.
    pub fn write(&mut self, path: &str, value: &[u8], domain: u16) -> Result<(), Errno> {
        self.check_quota(path, value.len(), domain)?;
        self.make(path, domain)?;
        let node = self.nodes.get_mut(path).ok_or(Errno::NoEnt)?;
        node.value = Rc::from(value);
        self.generation += 1;
        Ok(())
    }

    /// Removes a node and everything below. Removing what is not there is fine if its parent is.
    pub fn remove(&mut self, path: &str, domain: u16) -> Result<(), Errno> {
        if path == "/" {
            return Err(Errno::Inval);
        }
        match self.node(path, domain, Access::Write) {
            Err(Errno::NoEnt) => {
                let above = parent(path).and_then(|path| self.nodes.get(path));
                return match above {
                    Some(node) if node.allows(domain, Access::Write) => Ok(()),
                    Some(_) => Err(Errno::Acces),
                    None => Err(Errno::NoEnt),
                };
            }
            other => other?,
        };
        self.nodes.retain(|name, _| !below(name, path));
        self.generation += 1;
        Ok(())
    }

    /// Sets permissions; only the owner may, and only the privileged may give a node away.
    pub fn set_permissions(
        &mut self,
        path: &str,
        permissions: Permissions,
        domain: u16,
    ) -> Result<(), Errno> {
        let owner = self.node(path, domain, Access::Write)?.owner();
        if domain != PRIVILEGED {
            if owner != domain {
                return Err(Errno::Acces);
            }
            if permissions.len() > quota::PERMISSIONS {
                return Err(Errno::NoSpc);
            }
            if permissions
                .first()
                .is_none_or(|first| first.domain != owner)
            {
                return Err(Errno::Acces);
            }
        }
        let node = self.nodes.get_mut(path).ok_or(Errno::NoEnt)?;
        node.permissions = permissions;
        self.generation += 1;
        Ok(())
    }
}
