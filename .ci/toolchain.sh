#!/usr/bin/env bash
# Makes `cargo` work in this repository with the target x86_64-unknown-none, stable only.
#
#   1. rustup: the toolchain that rust-toolchain.toml pins, with the target.
#   2. Where rustup's server cannot be reached, on Debian 12: the compiler that bookworm-security
#      ships for browsers, with core, alloc and compiler_builtins built once for the target. It
#      goes under a prefix of its own and into rustup by a link; nothing is installed system-wide.
#
# usage: toolchain.sh [--fallback-only | --undo]
set -euo pipefail

target=x86_64-unknown-none
host=x86_64-unknown-linux-gnu
repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
name=microvisor-debian
prefix=${MICROVISOR_TOOLCHAIN:-${XDG_DATA_HOME:-$HOME/.local/share}/microvisor-toolchain}
version=1.96.0 # Debian's; core and compiler must be of one version
mode=${1:-}

say() { printf '%12s %s\n' Toolchain "$*" >&2; }
die() { say "error: $*"; exit 1; }

cd "$repo"
command -v rustup >/dev/null || die "rustup is needed: apt-get install rustup, or see rustup.rs"

if [ "$mode" = --undo ]; then
    rustup override unset --path "$repo" || true
    rustup toolchain uninstall "$name" || true
    rm -rf -- "${prefix:?}"
    exit 0
fi

# Builds a program with an allocator and LTO: compiler, libraries and linker agree, or it fails.
try() {
    local folder status=0
    folder=$(mktemp -d)
    cat >"$folder/t.rs" <<'RUST'
#![no_std]
#![no_main]
extern crate alloc;
use core::alloc::{GlobalAlloc, Layout};
struct Nothing;
unsafe impl GlobalAlloc for Nothing {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 { core::ptr::null_mut() }
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
#[global_allocator]
static HEAP: Nothing = Nothing;
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
#[unsafe(no_mangle)]
pub extern "C" fn _start(n: u64) -> ! { drop(alloc::format!("{n}")); loop {} }
RUST
    rustc --edition 2024 --target "$target" -O -Cpanic=abort -Clto=thin \
        "$folder/t.rs" -o "$folder/t" >"$folder/log" 2>&1 || status=1
    [ "$status" = 0 ] || [ "${1:-}" != loud ] || cat "$folder/log" >&2
    rm -rf "$folder"
    return $status
}

by_rustup() {
    local channel
    channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
    timeout 600 rustup toolchain install "$channel" --profile minimal \
        -c rustfmt -c clippy -t "$target" --no-self-update
}

debian_version() {
    apt-cache madison rustc-web | awk -F' *\\| *' -v v="$version+" 'index($2, v) == 1 { print $2; exit }'
}

by_debian() {
    [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || die "the second way needs Debian 12 on amd64"
    command -v cc >/dev/null || die "a C linker is needed: apt-get install gcc libc6-dev"
    local deb top=$prefix/usr
    deb=$(debian_version)
    if [ -z "$deb" ] && [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        deb=$(debian_version)
    fi
    [ -n "$deb" ] || die "apt knows no rustc-web $version; enable bookworm-security and run apt-get update"
    say "fetching rustc-web $deb"
    rm -rf -- "${prefix:?}"
    mkdir -p "$prefix/debs" "$top/lib/rustlib/$host/bin"
    (
        cd "$prefix/debs"
        # apt checks every package against the signed index.
        apt-get -qq -o APT::Sandbox::User=root download \
            rustc-web="$deb" rust-web-src="$deb" cargo-web="$deb" libstd-rust-web-dev="$deb" \
            "libstd-rust-web-${version%.*}=$deb" rust-web-clippy="$deb" rustfmt-web="$deb" \
            libllvm22 libgit2-1.5 libmbedtls14 libmbedx509-1 libmbedcrypto7 libhttp-parser2.9 \
            lld-19 libllvm19
        for file in *.deb; do dpkg -x "$file" "$prefix"; done
    )
    rm -rf "$prefix/debs"
    # rustup lets programs find libraries in <toolchain>/lib, Debian has them one folder down.
    local library
    for library in "$top"/lib/x86_64-linux-gnu/*.so*; do
        ln -sfn "x86_64-linux-gnu/$(basename "$library")" "$top/lib/$(basename "$library")"
    done
    # The target's linker is rust-lld; Debian's lld is the same program.
    local lld
    lld=$(ls "${RUSTUP_HOME:-$HOME/.rustup}"/toolchains/*/lib/rustlib/$host/bin/rust-lld 2>/dev/null | head -1 || true)
    ln -sfn "$(readlink -f "${lld:-$top/lib/llvm-19/bin/lld}")" "$top/lib/rustlib/$host/bin/rust-lld"
    rustup toolchain link "$name" "$top"

    say "building core, alloc and compiler_builtins for $target (minutes)"
    local build=$prefix/build source hash
    mkdir -p "$build/src"
    source=$(readlink -f "$top/lib/rustlib/src/rust")
    hash=$(RUSTUP_TOOLCHAIN=$name rustc -vV | sed -n 's/^commit-hash: //p')
    printf '[package]\nname="b"\nversion="0.0.0"\nedition="2024"\n[workspace]\n[profile.release]\npanic="abort"\ncodegen-units=1\n' >"$build/Cargo.toml"
    printf '#![no_std]\n' >"$build/src/lib.rs"
    # Without bitcode, dependants could not use LTO.
    (
        cd "$build"
        env -u CARGO_BUILD_TARGET -u CARGO_ENCODED_RUSTFLAGS RUSTUP_TOOLCHAIN="$name" RUSTC_BOOTSTRAP=1 \
            RUSTFLAGS="-Cembed-bitcode=yes -Cforce-frame-pointers=yes --remap-path-prefix=$source=/rustc/$hash" \
            cargo build --quiet --release --target "$target" --target-dir "$build/target" \
            -Zbuild-std=core,alloc,compiler_builtins -Zbuild-std-features=compiler-builtins-mem
    )
    local libraries=$top/lib/rustlib/$target/lib crate
    mkdir -p "$libraries"
    for crate in core alloc compiler_builtins; do
        cp "$build/target/$target/release/deps/lib$crate"-*.rlib "$libraries/"
    done
    rm -rf "$build"
    rustup override set "$name" --path "$repo" # goes before rust-toolchain.toml
    say "undo with: .ci/toolchain.sh --undo"
}

if [ "$mode" != --fallback-only ]; then
    if try; then
        say "$(rustc -V)"
        exit 0
    fi
    if by_rustup; then
        try loud || die "rustup installed $target, but a test program does not build"
        say "$(rustc -V), by rustup"
        exit 0
    fi
    say "rustup cannot provide $target; trying Debian's packages"
fi
by_debian
try loud || die "Debian's compiler does not work here"
say "$(rustc -V), by Debian"
