//! What the store's state consists of, and what changes it, one piece at a time: as the journal
//! keeps it.

use alloc::string::String;
use alloc::vec::Vec;

use idl::serde::{Deserialize, Serialize};

/// What somebody may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "idl::serde")]
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

    /// Who has this may do `wanted`.
    pub const fn covers(self, wanted: Access) -> bool {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "idl::serde")]
pub struct Permission {
    /// Who.
    pub domain: u16,
    /// What.
    pub access: Access,
}

/// A node's permissions: the first names the owner, who may do everything, and what those may do
/// that no other entry names.
pub type Permissions = Vec<Permission>;

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "idl::serde")]
pub struct Content {
    /// Its value.
    pub value: Vec<u8>,
    /// Who may do what with it.
    pub permissions: Permissions,
}

impl Content {
    /// Who owns it.
    pub fn owner(&self) -> u16 {
        let first = self.permissions.first();
        first.map_or(crate::PRIVILEGED, |permission| permission.domain)
    }

    /// At least the bytes that it takes in the journal.
    pub fn cost(&self, path: &str) -> usize {
        RECORD_COST + path.len() + self.value.len() + 6 * self.permissions.len()
    }
}

/// At least the bytes that a record takes beside names and values.
pub const RECORD_COST: usize = 48;

/// One change. Paths are absolute. Applying one that does not fit the state changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "idl::serde")]
pub enum Record {
    /// A node has this content now.
    Put(String, Content),
    /// A node and everything below is gone.
    Drop(String),
    /// A domain is there, built so many times.
    Introduce(u16, u32),
    /// A domain has the rights of another, too.
    Target(u16, u16),
    /// A domain is gone, and its sessions with it.
    Release(u16),
    /// A client begins anew, and speaks as this domain.
    Open(u32, u16),
    /// A client watches a path, as it wrote it, with this token.
    Watch(u32, String, Vec<u8>),
    /// It does not any more.
    Unwatch(u32, String, Vec<u8>),
    /// It has neither watches nor transactions.
    Reset(u32),
    /// It began a transaction.
    Start(u32, u32),
    /// In its transaction a node has this content, or is gone.
    Change(u32, u32, String, Option<Content>),
    /// The transaction is over.
    End(u32, u32),
    /// Its request of this number was carried out and answered so.
    Answered(u32, u32, Vec<u8>),
}

impl Record {
    /// What it may add to the bytes that the state takes in the journal.
    pub fn cost(&self) -> usize {
        match self {
            Record::Put(path, content) | Record::Change(_, _, path, Some(content)) => {
                content.cost(path)
            }
            Record::Change(_, _, path, None) => RECORD_COST + path.len(),
            Record::Watch(_, path, token) => RECORD_COST + path.len() + token.len(),
            Record::Start(..) | Record::Open(..) | Record::Introduce(..) => RECORD_COST,
            _ => 0,
        }
    }
}
