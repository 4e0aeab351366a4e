//! `cargo xtask check`: what must hold of the source before it is tested.
//!
//! Invariant: every step is carried out whatever became of those before it, so that one run shows all there is to mend.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::{
    images, placement, report,
    workspace::{self, ABI, HOST_CRATES, LINUX_TARGET, SHIM, TARGET},
};

/// The images, which build for the target only.
const IMAGE_CRATES: [&str; 2] = ["qemu-virt", "guest-tests"];

/// The options of `cargo xtask check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The result of one step.
#[derive(Debug, Serialize)]
struct Step {
    name: String,
    result: &'static str,
    seconds: f64,
}

/// Carries out `cargo xtask check`; returns whether all held.
pub fn run(args: &CheckArgs) -> Result<bool> {
    workspace::ensure_target(TARGET)?;
    workspace::ensure_target(LINUX_TARGET)?;
    let features = workspace::hyp_features()?;
    let mut steps = Vec::new();
    let mut step = |name: &str, action: &mut dyn FnMut() -> Result<()>| {
        let start = Instant::now();
        let outcome = action();
        let seconds = report::rounded(start.elapsed().as_secs_f64());
        let result = if outcome.is_ok() { "ok" } else { "FAIL" };
        println!("{result:4}  {name}, {seconds} s");
        if let Err(error) = outcome {
            println!("{error:#}");
        }
        steps.push(Step { name: name.to_owned(), result, seconds });
    };

    step("placement of unsafe code and assembly", &mut place);
    step("formatting", &mut || quietly(workspace::cargo().args(["fmt", "--all", "--check"])));
    step("lints, host", &mut || {
        let mut clippy = clippy();
        clippy.args(packages(&HOST_CRATES)).args(["--all-targets", "--all-features"]);
        deny(&mut clippy)
    });
    step("lints, target, hyp", &mut || {
        deny(clippy().args(["-p", "hyp", "--target", TARGET, "--all-features"]))
    });
    step("lints, target, hyp's example of an embedder", &mut || {
        deny(clippy().args(["-p", "hyp", "--target", TARGET, "--example", "embedder"]))
    });
    step("the example of an embedder links for the target", &mut || {
        let mut build = workspace::cargo();
        build.args(["build", "--quiet", "-p", "hyp", "--target", TARGET, "--example", "embedder"]);
        quietly(&mut build)
    });
    for name in [ABI, SHIM] {
        step(&format!("lints, target, {name}"), &mut || {
            deny(clippy().args(["-p", name, "--target", TARGET]))
        });
    }
    step("lints, fuzz target", &mut || {
        let mut fuzz = clippy();
        fuzz.args(["--manifest-path", "hyp/fuzz/Cargo.toml"]);
        deny(&mut fuzz)
    });
    for image in IMAGE_CRATES {
        step(&format!("lints, target, {image}"), &mut || {
            let mut clippy = clippy();
            clippy.args(["-p", image, "--target", TARGET, "--all-features"]);
            deny(with_payload(&mut clippy)?)
        });
    }
    step("lints, Linux target, host-work", &mut || {
        deny(clippy().args(["-p", "host-work", "--target", LINUX_TARGET]))
    });
    step("documentation, host", &mut || {
        let mut doc = doc();
        quietly(doc.args(packages(&HOST_CRATES)).arg("--all-features"))
    });
    step("documentation, target", &mut || {
        let mut doc = doc();
        doc.args(["-p", "hyp", "-p", ABI, "-p", SHIM, "--target", TARGET, "--all-features"])
            .args(packages(&IMAGE_CRATES));
        quietly(with_payload(&mut doc)?)
    });
    for (place, target) in [("host", None), ("target", Some(TARGET))] {
        for combination in combinations(&features) {
            let shown = if combination.is_empty() { "none" } else { &combination };
            step(&format!("features of hyp, {place}: {shown}"), &mut || {
                let mut clippy = clippy();
                clippy.args(["-p", "hyp", "--no-default-features", "--features", &combination]);
                clippy.args(target.iter().flat_map(|target| ["--target", target]));
                deny(&mut clippy)
            });
        }
    }

    let failed = steps.iter().filter(|step| step.result != "ok").count();
    match failed {
        0 => println!("\npass: {} steps", steps.len()),
        _ => println!("\nfail: {failed} of {} steps", steps.len()),
    }
    report::write_json(args.json.as_deref(), &steps)?;
    Ok(failed == 0)
}

/// None, each alone, and all.
fn combinations(features: &[String]) -> Vec<String> {
    let mut combinations = vec![String::new()];
    combinations.extend(features.iter().cloned());
    if features.len() > 1 {
        combinations.push(features.join(","));
    }
    combinations
}

fn packages<'a>(names: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    names.iter().flat_map(|name| ["-p", name])
}

fn clippy() -> Command {
    let mut command = workspace::cargo();
    command.args(["clippy", "--quiet"]);
    command
}

fn doc() -> Command {
    let mut command = workspace::cargo();
    command
        .args(["doc", "--quiet", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-Dwarnings");
    command
}

/// Gives a build of the hypervisor's image the payload that it embeds.
fn with_payload(command: &mut Command) -> Result<&mut Command> {
    let payload =
        images::payload(images::Payload::Host, &[]).context("the embedded payload does not build")?;
    Ok(command.env("CLOVEN_HOST_PAYLOAD", payload.path))
}

/// Runs clippy with all warnings as errors, and a `SAFETY:` comment demanded of each unsafe block.
fn deny(clippy: &mut Command) -> Result<()> {
    quietly(clippy.args(["--", "-D", "warnings", "-D", "clippy::undocumented_unsafe_blocks"]))
}

/// Runs a command; what it prints is the error if it fails.
fn quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start `{}`", workspace::shown(command)))?;
    if !output.status.success() {
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("`{}` failed:\n{stdout}{stderr}", workspace::shown(command));
    }
    Ok(())
}

fn place() -> Result<()> {
    let findings = placement::scan(workspace::root())?;
    if !findings.is_empty() {
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        bail!("{}", lines.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_combined_as_none_each_and_all() {
        let names = ["a".to_owned(), "b".to_owned()];
        assert_eq!(combinations(&names), ["", "a", "b", "a,b"]);
        assert_eq!(combinations(&names[..1]), ["", "a"]);
        assert_eq!(combinations(&[]), [""]);
    }
}
