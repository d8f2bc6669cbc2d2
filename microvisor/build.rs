//! Hands the linker script to the linker when the core is built for bare metal.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    // Set by `cargo image build --control` alone (image-builder/src/controls.rs).
    if let Ok(name) = std::env::var("CARGO_CFG_CONTROL") {
        println!("cargo:rustc-env=CONTROL_BUILD={name}");
    }
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-T{directory}/link.ld");
        println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
        println!("cargo:rustc-link-arg-bins=--no-pie");
    }
}
