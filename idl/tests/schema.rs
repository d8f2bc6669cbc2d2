//! The committed schemas are today's, and today's break nothing that was released.
use std::path::Path;

#[path = "common/compatible.rs"]
mod compatible;
use compatible::check;

#[test]
fn released_interfaces_are_unchanged() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    for (name, now) in idl::exports() {
        let path = folder.join(format!("{name}.json"));
        let released = std::fs::read_to_string(&path).unwrap_or_else(|_| {
            panic!("{name} has no schema: run `cargo run -p idl --example export`")
        });
        if let Err(error) = check(&released, &now) {
            panic!(
                "{name}: {error}\nIf that is meant: cargo run -p idl --example export -- --break"
            );
        }
        assert_eq!(
            released, now,
            "{name} has grown: run `cargo run -p idl --example export`"
        );
    }
}

const OLD: &str = r#"{"methods":[{"number":1,"name":"a","signature":"fn a(&self)"}],
    "types":{"T":"struct T{a:u8}"}}"#;

#[test]
fn a_new_method_is_compatible() {
    let now = r#"{"methods":[{"number":1,"name":"a","signature":"fn a(&self)"},
        {"number":2,"name":"b","signature":"fn b(&self)"}],"types":{"T":"struct T{a:u8}"}}"#;
    assert_eq!(check(OLD, now), Ok(()));
}

#[test]
fn a_renumbered_method_and_a_changed_type_are_not() {
    for now in [
        r#"{"methods":[{"number":2,"name":"a","signature":"fn a(&self)"}],"types":{"T":"struct T{a:u8}"}}"#,
        r#"{"methods":[{"number":1,"name":"a","signature":"fn a(&self)"}],"types":{"T":"struct T{a:u16}"}}"#,
        r#"{"methods":[],"types":{}}"#,
    ] {
        assert!(check(OLD, now).is_err());
    }
}
