//! Links the image with the hypervisor's script, and hands the payload that `cargo xtask` has built on to the source.

use std::env;
use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../..");
    let script = root.join("linker/hyp.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    for argument in ["-pie", "--no-dynamic-linker", "-znotext", "-zmax-page-size=4096"] {
        println!("cargo::rustc-link-arg={argument}");
    }
    println!("cargo::rustc-link-arg=-T{}", script.display());

    // Without a payload (clippy, docs) the image has none: it then needs a kernel from a boot loader.
    println!("cargo::rerun-if-env-changed=CLOVEN_HOST_PAYLOAD");
    let payload = env::var_os("CLOVEN_HOST_PAYLOAD").map(PathBuf::from).unwrap_or_else(|| {
        let empty = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("no-payload");
        std::fs::write(&empty, []).expect("OUT_DIR is writable");
        empty
    });
    println!("cargo::rerun-if-changed={}", payload.display());
    println!("cargo::rustc-env=CLOVEN_HOST_PAYLOAD={}", payload.display());
}
