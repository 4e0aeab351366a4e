//! Links each payload with the script for guests, and hands the realm that `cargo xtask` has built on to the host payload.

use std::env;
use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    let script = root.join("linker/guest.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    for argument in ["-pie", "--no-dynamic-linker", "-znotext", "-zmax-page-size=4096"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());

    // Without one (clippy, docs, and while it is being built) the host payload makes no realm.
    println!("cargo::rerun-if-env-changed=CLOVEN_REALM_PAYLOAD");
    let payload = env::var_os("CLOVEN_REALM_PAYLOAD").map(PathBuf::from).unwrap_or_else(|| {
        let empty = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("no-realm");
        std::fs::write(&empty, []).expect("OUT_DIR is writable");
        empty
    });
    println!("cargo::rerun-if-changed={}", payload.display());
    println!("cargo::rustc-env=CLOVEN_REALM_PAYLOAD={}", payload.display());
}
