//! What it means that an interface stays compatible: every released method keeps its number, name
//! and signature, every released type its definition. New methods may follow, new types may come.
use serde_json::Value;

/// Compares a released schema with today's.
pub fn check(released: &str, now: &str) -> Result<(), String> {
    let parse = |text| serde_json::from_str::<Value>(text).map_err(|error| error.to_string());
    let (released, now) = (parse(released)?, parse(now)?);
    let list = |schema: &Value| schema["methods"].as_array().cloned().unwrap_or_default();
    let methods = list(&now);
    for old in list(&released) {
        if !methods.contains(&old) {
            return Err(format!("released method changed or gone: {old}"));
        }
    }
    let types = released["types"].as_object().cloned().unwrap_or_default();
    for (name, old) in types {
        if now["types"][&name] != old {
            return Err(format!(
                "released type {name} changed from {old} to {}",
                now["types"][&name]
            ));
        }
    }
    Ok(())
}
