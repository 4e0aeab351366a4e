//! Links each payload with the script for guests.

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
}
