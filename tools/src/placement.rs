//! Where `unsafe` and assembly may stand.
//!
//! Invariant: files are read as Rust tokens, so comments and strings neither hide a use nor make one; a file that cannot be
//! read is a finding itself.

use std::{fmt, fs, path::Path};

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};

/// A place where something may stand: a path in which `*` is any part of one name and `**` any number of folders; a path
/// that ends in `/` is a whole folder.
struct Place {
    path: &'static str,
    #[expect(dead_code, reason = "it is for those who read the table")]
    reason: &'static str,
}

const fn place(path: &'static str, reason: &'static str) -> Place {
    Place { path, reason }
}

/// Where assembly may stand. `unsafe` may stand here too, because assembly needs it.
const ASSEMBLY: &[Place] = &[
    place("hyp/src/el2/", "what needs the CPU: vectors, entry and exit, system registers"),
    place("hyp/src/stage1/install*", "the install point: translation registers and invalidation"),
    place("hyp/src/stage2/install*", "the install point: translation registers and invalidation"),
    place("hyp/src/owner/memory.rs", "access to granules: copies, wiping, cache maintenance"),
    place("hyp/src/start.rs", "assembler macros that the entries share"),
    place("hyp/examples/", "an embedder's own invalidation"),
    place("platform/*/src/entry*", "the first instructions of an image"),
    place("guest-tests/src/**/entry*", "the first instructions and the vectors of a payload"),
    place("guest-tests/work/src/doorbell.rs", "accesses of which the hypervisor must know the register"),
];

/// Where `unsafe` may stand besides.
const UNSAFE: &[Place] = &[
    place(
        "platform/*/src/main.rs",
        "the boot story: each step that needs the CPU, and the console's registers",
    ),
    place("guest-tests/src/", "a payload's side: accesses that may fault are what it is for"),
    place("guest-tests/work/src/", "a program's side: memory whose translations change, system calls"),
    place("hyp/src/mapping/mmu.rs", "the contracts of an embedder; tables at an offset from their addresses"),
    place("hyp/src/mapping/update.rs", "the one place that stores to a table"),
    place("hyp/src/mapping/map.rs", "taking over a live root, and giving a map up: the caller's word"),
    place("hyp/src/mapping/pool.rs", "table memory"),
    place("hyp/src/mapping/fake.rs", "table memory of the tests"),
    place("hyp/src/mapping/tests/", "the contracts of an embedder, fulfilled by tests"),
    place("hyp/src/stage2/mod.rs", "the contract of a table pool, fulfilled by one without tables"),
    place("hyp/src/realm/fake.rs", "structures that a fake monitor writes where its caller says"),
    place("hyp/src/trial.rs", "memory whose translations change meanwhile"),
    place("hyp/examples/", "an embedder's side"),
    place("hyp/fuzz/", "an embedder's side"),
    place(
        "hyp/model/src/memory.rs",
        "the contracts of an embedder, fulfilled by a model; CPUs as coroutines",
    ),
    place("rmm-shim/src/granule.rs", "descriptors and RECs in their granules, tables that the host gives"),
    place("rmm-shim/src/by_stage2.rs", "what the world vouches for: memory that nobody else has"),
    place("rmm-shim/src/world.rs", "the contract of a world"),
    place("rmm-shim/src/target.rs", "running a realm over its own stage 2"),
    place("rmm-shim/src/fake.rs", "the machine of the tests: tables and granules in memory of their own"),
    place("tools/bench/src/", "table memory that subjects share, and what they ask for"),
];

/// A use of `unsafe` or assembly outside its places.
#[derive(Debug, Eq, PartialEq)]
pub struct Finding {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// All findings in the files under `root`, built and hidden folders left out.
pub fn scan(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(path);
                }
                continue;
            }
            let file = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            if name.ends_with(".rs") {
                let source = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
                findings.extend(scan_source(&file, &source));
            } else if is_assembly_file(&name) && !stands(ASSEMBLY, &file) {
                findings.push(Finding {
                    file,
                    line: 1,
                    what: "an assembly file may not stand here".to_owned(),
                });
            }
        }
    }
    findings.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    Ok(findings)
}

fn is_assembly_file(name: &str) -> bool {
    name.ends_with(".s") || name.ends_with(".S")
}

/// The findings in one Rust file.
fn scan_source(file: &str, source: &str) -> Vec<Finding> {
    let mut uses = Vec::new();
    match source.parse::<TokenStream>() {
        Ok(tokens) => collect(tokens, &mut uses),
        Err(error) => {
            let line = error.span().start().line;
            return vec![Finding { file: file.to_owned(), line, what: format!("this is no Rust: {error}") }];
        }
    }
    let assembly = stands(ASSEMBLY, file);
    let allowed = |what: &str| assembly || (what == "unsafe" && stands(UNSAFE, file));
    let refused = uses.into_iter().filter(|(what, _)| !allowed(what));
    refused
        .map(|(what, line)| Finding {
            file: file.to_owned(),
            line,
            what: format!("`{what}` may not stand here"),
        })
        .collect()
}

/// The uses of `unsafe`, of assembly macros and of included assembly files, with their lines.
fn collect(tokens: TokenStream, uses: &mut Vec<(String, usize)>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Group(group) => collect(group.stream(), uses),
            TokenTree::Ident(name) => {
                let name_text = name.to_string();
                let line = name.span().start().line;
                let is_macro = matches!(tokens.peek(), Some(TokenTree::Punct(mark)) if mark.as_char() == '!');
                if name_text == "unsafe" {
                    uses.push((name_text, line));
                } else if is_macro && ["asm", "global_asm", "naked_asm"].contains(&name_text.as_str()) {
                    uses.push((format!("{name_text}!"), line));
                } else if is_macro && name_text == "include_str" {
                    tokens.next();
                    let argument = tokens.peek().map(ToString::to_string).unwrap_or_default();
                    if is_assembly_file(argument.trim_end_matches([')', ']', '}', ' ', '"', '#', ','])) {
                        uses.push(("include_str! of assembly".to_owned(), line));
                    }
                }
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

fn stands(places: &[Place], file: &str) -> bool {
    places.iter().any(|place| matches(place.path, file))
}

/// Whether a path is the place that a pattern describes.
fn matches(pattern: &str, file: &str) -> bool {
    if let Some(rest) = pattern.strip_prefix("**/") {
        return matches(rest, file) || file.split_once('/').is_some_and(|(_, below)| matches(pattern, below));
    }
    let (name, below) = file.split_once('/').map_or((file, None), |(name, below)| (name, Some(below)));
    match pattern.split_once('/') {
        // A module may be a file, or a folder of the same name.
        None => name_matches(pattern, name),
        Some((folder, rest)) => {
            name_matches(folder, name) && below.is_some_and(|below| rest.is_empty() || matches(rest, below))
        }
    }
}

/// Whether one name in a path fits a pattern with at most one `*`.
fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, source: &str) -> Vec<(usize, String)> {
        scan_source(file, source).into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    #[test]
    fn unsafe_code_is_found_outside_its_places() {
        let source = "fn f(p: *const u8) -> u8 {\n    unsafe { *p }\n}\nunsafe impl Send for X {}\n";
        let what = "`unsafe` may not stand here".to_owned();
        assert_eq!(found("hyp/src/mapping/edit.rs", source), [(2, what.clone()), (4, what)]);
        for file in
            ["platform/fvp-base/src/main.rs", "guest-tests/src/host/checks.rs", "hyp/src/el2/vcpu/exit.rs"]
        {
            assert!(found(file, source).is_empty(), "{file}");
        }
    }

    #[test]
    fn assembly_is_found_outside_its_places() {
        let source = "use core::arch::asm;\nfn f() { asm!(\"nop\"); core::arch::global_asm!(\"nop\") }";
        assert_eq!(found("guest-tests/src/host/checks.rs", source).len(), 2);
        assert_eq!(found("platform/fvp-base/src/main.rs", source).len(), 2);
        for file in
            ["platform/fvp-base/src/entry.rs", "guest-tests/src/host/entry.rs", "hyp/src/stage2/install.rs"]
        {
            assert!(found(file, source).is_empty(), "{file}");
        }
    }

    #[test]
    fn an_included_assembly_file_is_found() {
        assert_eq!(found("hyp/src/lib.rs", "const A: &str = include_str!(\"a.S\");").len(), 1);
        assert_eq!(found("hyp/src/lib.rs", "const A: &str = include_str!(\"a.sh\");").len(), 0);
    }

    #[test]
    fn comments_strings_and_lint_names_are_no_use() {
        let source = "//! unsafe { asm!() }\n/// unsafe\n#![deny(unsafe_op_in_unsafe_fn)]\n/* unsafe /* asm!() */ */\n\
                      const A: &str = \"unsafe asm!()\"; const B: &str = r#\"unsafe \" asm!()\"#; const C: char = '\"';";
        assert_eq!(found("hyp/src/lib.rs", source), []);
    }

    #[test]
    fn unsafe_code_in_macros_and_attributes_is_found() {
        let source = "macro_rules! m { () => { unsafe { f() } } }\n#[unsafe(no_mangle)] fn g() {}";
        assert_eq!(found("hyp/src/lib.rs", source).len(), 2);
    }

    #[test]
    fn a_file_that_is_no_rust_is_a_finding() {
        let findings = found("hyp/src/lib.rs", "fn f() {\n");
        assert_eq!(findings.len(), 1);
        assert!(findings[0].1.contains("no Rust"));
    }

    #[test]
    fn files_are_found_in_folders_but_not_in_built_or_hidden_ones() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("a/b/c.rs", "unsafe fn f() {}"),
            ("a/start.S", "nop"),
            ("target/d.rs", "unsafe fn f() {}"),
            (".git/e.rs", "unsafe fn f() {}"),
            ("platform/x/src/entry.S", "nop"),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let findings: Vec<String> = scan(dir.path()).unwrap().iter().map(ToString::to_string).collect();
        let what =
            ["a/b/c.rs:1: `unsafe` may not stand here", "a/start.S:1: an assembly file may not stand here"];
        assert_eq!(findings, what);
    }

    #[test]
    fn patterns_name_files_folders_and_modules() {
        assert!(matches("hyp/src/el2/", "hyp/src/el2/a/b.rs"));
        assert!(!matches("hyp/src/el2/", "hyp/src/el2.rs"));
        assert!(matches("platform/*/src/entry*", "platform/qemu-virt/src/entry.rs"));
        assert!(!matches("platform/*/src/entry*", "platform/a/b/src/entry.rs"));
        assert!(matches("guest-tests/src/**/entry*", "guest-tests/src/entry.S"));
        assert!(matches("guest-tests/src/**/entry*", "guest-tests/src/a/b/entry/vectors.rs"));
        assert!(!matches("guest-tests/src/**/entry*", "guest-tests/src/host/main.rs"));
        assert!(!matches("hyp/src/mapping/pool*", "hyp/src/mapping/map.rs"));
    }
}
