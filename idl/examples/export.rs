//! `cargo run -p idl --example export`: writes `idl/schema/*.json`. Refuses to overwrite a
//! released schema with an incompatible one unless `--break` says that this is meant.
use std::path::Path;

#[path = "../tests/common/compatible.rs"]
#[allow(dead_code)]
mod compatible;

fn main() -> Result<(), String> {
    let breaking = std::env::args().any(|argument| argument == "--break");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    for (name, now) in idl::exports() {
        let path = folder.join(format!("{name}.json"));
        if let Ok(released) = std::fs::read_to_string(&path)
            && !breaking
        {
            compatible::check(&released, &now).map_err(|error| format!("{name}: {error}"))?;
        }
        std::fs::write(&path, now).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
