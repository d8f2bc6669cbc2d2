//! Gives the linker the layout that every component has.
fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!(
            "cargo::rustc-link-arg-bins=-T{}/../../sdk/component.ld",
            env!("CARGO_MANIFEST_DIR")
        );
    }
    println!("cargo::rerun-if-changed=../../sdk/component.ld");
}
