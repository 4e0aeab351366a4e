//! The machine's own package tool, used without touching its configuration.
//!
//! Invariant: lists, caches and sources lie in a private directory that goes with the value, and no address of a package
//! archive stands in this program: it is taken from the machine's own sources.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::workspace;

const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// A private view of a package archive.
pub struct Apt {
    dir: TempDir,
    options: Vec<String>,
}

impl Apt {
    /// The packages of `architecture` in `suites` of the Debian archive that the machine uses, and nothing else.
    pub fn foreign(architecture: &str, suites: &[&str]) -> Result<Self> {
        ensure!(
            workspace::find_program("apt-get").is_some() && workspace::find_program("dpkg-deb").is_some(),
            "there is no apt-get and dpkg-deb on this machine"
        );
        let mut apt = Self::private()?;
        let lines = apt.source_lines(Some(architecture), suites)?;
        apt.use_sources(&lines)?;
        apt.options.extend([
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
            // These lists are all there is: without one of them there is nothing to choose from.
            "APT::Update::Error-Mode=any".to_owned(),
        ]);
        apt.update()?;
        Ok(apt)
    }

    /// The machine's own sources and `suites` of the Debian archive beside them.
    pub fn own_with(suites: &[&str]) -> Result<Self> {
        let mut apt = Self::private()?;
        let mut lines = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        if !suites.is_empty() {
            lines.push('\n');
            lines += &apt.source_lines(None, suites)?;
        }
        apt.use_sources(&lines)?;
        apt.update()?;
        Ok(apt)
    }

    fn private() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("cloven-apt")
            .tempdir()
            .context("cannot make a directory for apt")?;
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.path().join(part))?;
        }
        let options = vec![
            format!("Dir::State::Lists={}", dir.path().join("lists").display()),
            format!("Dir::Cache={}", dir.path().join("cache").display()),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        Ok(Self { dir, options })
    }

    fn use_sources(&mut self, lines: &str) -> Result<()> {
        let file = self.dir.path().join("sources.list");
        fs::write(&file, lines).context("cannot write apt's list of sources")?;
        self.options.push(format!("Dir::Etc::sourcelist={}", file.display()));
        Ok(())
    }

    fn source_lines(&self, architecture: Option<&str>, suites: &[&str]) -> Result<String> {
        let archive = self.debian_archive()?;
        let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists());
        let keyring = keyring
            .context("the keyring of the Debian archive is missing: install debian-archive-keyring")?;
        let architecture = architecture.map_or_else(String::new, |name| format!("arch={name} "));
        let line = |suite| format!("deb [{architecture}signed-by={keyring}] {archive} {suite} main\n");
        Ok(suites.iter().map(line).collect())
    }

    /// The address of the Debian archive among the machine's own sources.
    fn debian_archive(&self) -> Result<String> {
        let targets = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
        let mut found = run(Command::new("apt-get").args(targets), "name the sources of this machine")?;
        if found.trim().is_empty() {
            self.update()?;
            found = run(self.command("apt-get").args(targets), "name the sources of this machine")?;
        }
        let archive = found.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
        Ok(archive.context("no source of this machine's apt is a Debian archive")?.to_owned())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    }

    fn update(&self) -> Result<()> {
        run(self.command("apt-get").args(["-q", "update"]), "fetch the lists of packages").map(drop)
    }

    /// The names of the packages that match a regular expression.
    pub fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache");
        let found = run(command.args(["search", "--names-only", pattern]), "search the lists of packages")?;
        Ok(found.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Installs `package` on this machine, from `suite` if one is given.
    pub fn install(&self, package: &str, suite: Option<&str>) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["-q", "-y", "--no-install-recommends", "install", package]);
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        run(&mut command, &format!("install {package}")).map(drop)
    }

    /// Downloads `package` and returns the path of its file, which lives as long as `self`. `progress` hears how many
    /// percent have come.
    pub fn download(&self, package: &str, mut progress: impl FnMut(f64)) -> Result<PathBuf> {
        let into = self.dir.path().join("packages").join(package);
        fs::create_dir_all(&into)?;
        let mut command = self.command("apt-get");
        command.args(["-q", "-o", "APT::Status-Fd=1", "download", package]).current_dir(&into);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot start apt-get")?;
        for line in
            BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines().map_while(Result::ok)
        {
            if let Some(percent) = line.strip_prefix("dlstatus:").and_then(|rest| rest.split(':').nth(1)) {
                progress(percent.parse().unwrap_or(0.0));
            }
        }
        if !child.wait()?.success() {
            bail!("apt-get could not download {package}");
        }
        let file = fs::read_dir(&into)?.filter_map(|entry| Some(entry.ok()?.path())).next();
        file.with_context(|| format!("apt-get downloaded nothing for {package}"))
    }
}

/// Runs apt and returns what it printed; its options are too many to be shown in an error.
fn run(command: &mut Command, what: &str) -> Result<String> {
    let output = command.output().context("cannot start apt")?;
    if !output.status.success() {
        let messages = String::from_utf8_lossy(&output.stderr);
        let last = messages.lines().rfind(|line| line.starts_with("E: ")).unwrap_or("E: no message");
        bail!("apt could not {what}: {}", last.trim_start_matches("E: "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Extracts from a package with `tar`, by its arguments.
fn extract(package: &Path, tar: &mut Command) -> Result<Output> {
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let archive = dpkg.stdout.take().expect("stdout is a pipe");
    let output = tar.stdin(archive).stderr(Stdio::null()).output().context("cannot start tar")?;
    dpkg.wait()?;
    Ok(output)
}

/// Unpacks the file whose path in the package matches `pattern` (a shell pattern) and returns its bytes.
pub fn unpack(package: &Path, pattern: &str) -> Result<Vec<u8>> {
    let mut tar = Command::new("tar");
    let Output { stdout, .. } =
        extract(package, tar.args(["--extract", "--to-stdout", "--wildcards", pattern]))?;
    ensure!(!stdout.is_empty(), "{} holds no {pattern}", package.display());
    Ok(stdout)
}

/// Unpacks all files whose paths in the package match `pattern` (a shell pattern) below `into`.
pub fn unpack_all(package: &Path, pattern: &str, into: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--wildcards", "--directory"]).arg(into).arg(pattern);
    ensure!(extract(package, &mut tar)?.status.success(), "{} holds no {pattern}", package.display());
    Ok(())
}
