//! Claims about the objects, checked by system calls against the real code: one module for each idea.

#[path = "../world/mod.rs"]
mod world;

mod endings;
mod made;
mod mapped;
mod memory;
mod messages;
mod rights;
mod sent;
mod spaces;
mod taken;
mod threads;
mod vcpus;

use microvisor_abi::cap::Map;

const RW: u64 = Map::READ | Map::WRITE;
