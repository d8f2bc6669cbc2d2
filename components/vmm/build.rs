//! Gives the linker the sdk's layout of a component.

fn main() {
    println!(
        "cargo::rustc-link-arg-bins=-T{}/../../sdk/component.ld",
        env!("CARGO_MANIFEST_DIR")
    );
}
