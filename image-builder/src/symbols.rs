//! Symbol blobs (`microvisor_abi::symbols`) out of ELF files, with readable names.

use anyhow::{Context, Result};
use microvisor_abi::symbols::ENTRY_BYTES;
use object::{Object, ObjectSymbol, SymbolKind};

/// A function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// Where it starts.
    pub address: u64,
    /// Its length in bytes.
    pub size: u32,
    /// Its name, demangled, without the hash.
    pub name: String,
}

/// The functions of an ELF file, by address, one for each address.
pub fn functions(file: &[u8]) -> Result<Vec<Function>> {
    let elf = object::File::parse(file).context("not an ELF file")?;
    let mut out: Vec<Function> = elf
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let name = symbol.name().ok().filter(|name| !name.is_empty())?;
            Some(Function {
                address: symbol.address(),
                size: u32::try_from(symbol.size()).ok()?,
                name: format!("{:#}", rustc_demangle::demangle(name)),
            })
        })
        .collect();
    // At one address the longest wins; entry stubs in assembly often have no size.
    out.sort_by(|a, b| (a.address, b.size, &a.name).cmp(&(b.address, a.size, &b.name)));
    out.dedup_by_key(|function| function.address);
    let next: Vec<u64> = out
        .iter()
        .skip(1)
        .map(|f| f.address)
        .chain([u64::MAX])
        .collect();
    for (function, next) in out.iter_mut().zip(next) {
        if function.size == 0 {
            function.size = (next - function.address).min(4096) as u32;
        }
    }
    Ok(out)
}

/// The blob.
pub fn blob(functions: &[Function]) -> Vec<u8> {
    let mut head = Vec::from((functions.len() as u32).to_le_bytes());
    let mut names = Vec::new();
    let start = 4 + functions.len() * ENTRY_BYTES;
    for function in functions {
        head.extend(function.address.to_le_bytes());
        head.extend(function.size.to_le_bytes());
        head.extend(((start + names.len()) as u32).to_le_bytes());
        head.extend((function.name.len() as u32).to_le_bytes());
        names.extend_from_slice(function.name.as_bytes());
    }
    head.extend(names);
    head
}
