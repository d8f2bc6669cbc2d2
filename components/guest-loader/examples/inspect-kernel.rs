//! Says what the loader finds in a kernel file, and loads it into 512 MiB:
//! `cargo run --release -p guest-loader --example inspect-kernel -- /boot/vmlinuz`.

use guest_loader::{Guest, bzimage, load, payload};

fn main() {
    for path in std::env::args().skip(1) {
        let file = match std::fs::read(&path) {
            Ok(file) => file,
            Err(why) => {
                eprintln!("{path}: {why}");
                std::process::exit(1);
            }
        };
        println!("{path}: {} bytes", file.len());
        if let Ok(found) = bzimage::payload(&file) {
            let how = payload::compression(found.bytes);
            println!(
                "  payload: {how:?}, {} bytes to {}",
                found.bytes.len(),
                found.unpacked
            );
        }
        let mut ram = vec![0; 512 << 20];
        let guest = Guest {
            kernel: &file,
            initrd: None,
            cmdline: b"",
            vcpus: 2,
            ram: 512 << 20,
        };
        let start = std::time::Instant::now();
        match load(&guest, &mut ram) {
            Ok(loaded) => println!("  {loaded:x?} in {:?}", start.elapsed()),
            Err(why) => println!("  {why}"),
        }
    }
}
