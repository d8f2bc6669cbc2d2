//! Schema hashes and the schema export. A hash covers the normalised text of an interface and,
//! recursively, of every type it mentions, so that two ends that disagree about a field's type
//! find out when they connect.

use alloc::string::String;
use core::fmt::Write;

/// A type that may appear in an interface.
pub trait Schema {
    /// Hash of its definition and of the types inside.
    const HASH: u64;
    /// Reports name and definition of this and every inner message type.
    fn collect(_into: &mut dyn FnMut(&'static str, &'static str)) {}
}

/// A method, for documentation and export.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Its label.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// Normalised signature.
    pub signature: &'static str,
}

/// FNV-1a, 64 bits: <http://www.isthe.com/chongo/tech/comp/fnv/>.
pub const fn hash(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut state = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < bytes.len() {
        state = step(state, bytes[at]);
        at += 1;
    }
    state
}

/// A hash over a hash and those of the parts, in order.
pub const fn mix(own: u64, parts: &[u64]) -> u64 {
    let mut state = own;
    let mut at = 0;
    while at < parts.len() {
        let bytes = parts[at].to_le_bytes();
        let mut byte = 0;
        while byte < bytes.len() {
            state = step(state, bytes[byte]);
            byte += 1;
        }
        at += 1;
    }
    state
}

const fn step(state: u64, byte: u8) -> u64 {
    (state ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3)
}

macro_rules! plain {
    ($($ty:ty)*) => {$(impl Schema for $ty { const HASH: u64 = hash(stringify!($ty)); })*};
}
plain!(() bool u8 u16 u32 u64 i8 i16 i32 i64);

impl<T: Schema> Schema for Option<T> {
    const HASH: u64 = mix(hash("Option"), &[T::HASH]);
    fn collect(into: &mut dyn FnMut(&'static str, &'static str)) {
        T::collect(into);
    }
}
impl<T: Schema, const N: usize> Schema for [T; N] {
    const HASH: u64 = mix(hash("array"), &[T::HASH, N as u64]);
    fn collect(into: &mut dyn FnMut(&'static str, &'static str)) {
        T::collect(into);
    }
}
impl<T: Schema, const N: usize> Schema for heapless::Vec<T, N> {
    const HASH: u64 = mix(hash("Vec"), &[T::HASH, N as u64]);
    fn collect(into: &mut dyn FnMut(&'static str, &'static str)) {
        T::collect(into);
    }
}
impl<const N: usize> Schema for heapless::String<N> {
    const HASH: u64 = mix(hash("String"), &[N as u64]);
}
impl<const N: usize> Schema for crate::Piece<N> {
    const HASH: u64 = mix(hash("Piece"), &[N as u64]);
}
impl<const N: usize> Schema for crate::Bytes<N> {
    const HASH: u64 = mix(hash("Bytes"), &[N as u64]);
}

/// The interface as JSON, with the same spacing every time.
pub fn export<I: crate::Interface>() -> String {
    let mut out = String::new();
    // Writing to a `String` cannot fail.
    let _ = write!(
        out,
        "{{\n  \"interface\": {:?},\n  \"hash\": \"{:016x}\",\n  \"methods\": [",
        I::NAME,
        I::HASH
    );
    for (index, method) in I::METHODS.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(
            out,
            "{comma}\n    {{ \"number\": {}, \"name\": {:?}, \"signature\": {:?} }}",
            method.number, method.name, method.signature
        );
    }
    out.push_str("\n  ],\n  \"types\": {");
    let mut types = alloc::collections::BTreeMap::new();
    I::types(&mut |name, definition| {
        types.insert(name, definition);
    });
    for (index, (name, definition)) in types.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(out, "{comma}\n    {name:?}: {definition:?}");
    }
    out.push_str("\n  }\n}\n");
    out
}
