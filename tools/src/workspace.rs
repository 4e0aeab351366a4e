//! Where the project's files are and how other programs are started.
//!
//! Invariant: nothing here depends on the current directory, so `cargo xtask` works from anywhere in the tree.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// The target that all images are built for.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";

/// The target of programs for a Linux host.
pub const LINUX_TARGET: &str = "aarch64-unknown-linux-musl";

/// The crates that build for this machine, with tests and documentation.
pub const HOST_CRATES: [&str; 7] = ["hyp", MODEL, ABI, SHIM, "vmm-logic", "tools", "bench"];

/// The machine model: its tests are a part of their own.
pub const MODEL: &str = "hyp-model";

/// What hosts, realms and the RMM exchange: a leaf that others of both kinds use.
pub const ABI: &str = "rmm-abi";

/// What serves hosts and realms in place of the RMM.
pub const SHIM: &str = "rmm-shim";

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tools crate lies in the workspace")
}

/// Cargo's target directory: `CARGO_TARGET_DIR`, or `target` in the workspace.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(&dir).unwrap_or_else(|_| dir.into()),
        None => root().join("target"),
    }
}

/// The directory of finished images, made if it is not there.
pub fn images_dir() -> Result<PathBuf> {
    let dir = target_dir().join("images");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// The features of `hyp`.
pub fn hyp_features() -> Result<Vec<String>> {
    let path = root().join("hyp/Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    feature_names(&text).with_context(|| format!("cannot understand {}", path.display()))
}

/// The names under `[features]` but `default`, in order.
fn feature_names(manifest: &str) -> Result<Vec<String>> {
    let manifest: toml::Table = manifest.parse()?;
    let features = manifest.get("features").and_then(|features| features.as_table());
    let names = features.into_iter().flat_map(|features| features.keys()).filter(|name| *name != "default");
    Ok(names.cloned().collect())
}

/// A `cargo` command in the workspace, with the target directory of this run.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root()).env("CARGO_TARGET_DIR", target_dir());
    // They would take the place of those in .cargo/config.toml, without which an image neither relocates nor backtraces.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

/// As [`cargo`], of the nightly toolchain, with a target directory of its own.
pub fn cargo_nightly() -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly").current_dir(root()).env("CARGO_TARGET_DIR", target_dir().join("nightly"));
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    // The toolchain that runs this program would stand before the one that is named.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    command
}

/// The same command, which takes what others leave of the CPUs.
pub fn at_leisure(command: Command) -> Command {
    if find_program("nice").is_none() {
        return command;
    }
    let mut nice = Command::new("nice");
    nice.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        nice.current_dir(dir);
    }
    nice
}

/// Installs Miri for the nightly toolchain unless it is there.
pub fn ensure_miri() -> Result<()> {
    let has_miri = || output(cargo_nightly().args(["miri", "--version"])).is_ok();
    if has_miri() {
        return Ok(());
    }
    if find_program("rustup").is_some() {
        eprintln!("installing Miri for the nightly toolchain");
        let mut add = Command::new("rustup");
        add.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "miri,rust-src"]);
        run(add.current_dir(root()))?;
    }
    if !has_miri() {
        bail!("Miri is missing: `rustup toolchain install nightly --component miri,rust-src` installs it");
    }
    Ok(())
}

/// Runs `command` to its end; a status other than 0 is an error that names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs `command` and returns what it printed; a status other than 0 is an error with the last line of its
/// standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
        bail!("`{}` failed ({}): {last}", shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words
        .map(|word| {
            let word = word.to_string_lossy();
            if word.is_empty() || word.contains([' ', '$', '\'', '"', '*', '(', ';']) {
                format!("'{}'", word.replace('\'', r"'\''"))
            } else {
                word.into_owned()
            }
        })
        .collect();
    words.join(" ")
}

/// The program `name` in `PATH`, if it is there.
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Installs a Rust target unless it is there.
pub fn ensure_target(target: &str) -> Result<()> {
    let libraries = output(cargo_rustc().args(["--print", "target-libdir", "--target", target]))?;
    if Path::new(libraries.trim()).is_dir() {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!("the Rust target {target} is missing: install it with the tool that installed Rust");
    }
    eprintln!("installing the Rust target {target}");
    run(Command::new("rustup").current_dir(root()).args(["target", "add", target]))
}

fn cargo_rustc() -> Command {
    let mut command = Command::new("rustc");
    command.current_dir(root());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_of_a_manifest_are_listed_without_the_default() {
        let manifest = "[features]\ndefault = [\"a\"]\na = []\nb = [\"dep:c\"]\n";
        assert_eq!(feature_names(manifest).unwrap(), ["a", "b"]);
        assert!(feature_names("[package]\nname = \"x\"\n").unwrap().is_empty());
    }

    #[test]
    fn a_shown_command_can_be_pasted() {
        let mut command = Command::new("qemu");
        command.args(["-append", "a b", "-smp", "4"]);
        assert_eq!(shown(&command), "qemu -append 'a b' -smp 4");
    }
}
