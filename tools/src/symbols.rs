//! Names for the addresses of a backtrace.
//!
//! Invariant: the offset given is an offset from the start of the image, which is the address in the ELF file.

use std::path::{Path, PathBuf};

use addr2line::Loader;

use crate::workspace;

/// An AArch64 instruction: a return address less this is the call.
const INSTRUCTION: u64 = 4;

/// The symbols of one image, read when first asked for.
pub struct Symbols {
    elf: PathBuf,
    loader: Option<Option<Loader>>,
}

impl Symbols {
    /// The symbols of the ELF file at `elf`.
    pub fn new(elf: &Path) -> Self {
        Self { elf: elf.to_owned(), loader: None }
    }

    /// What `return_address` returns to: the functions (inlined ones first) with file and line, or nothing if the ELF
    /// file does not know.
    pub fn describe(&mut self, return_address: u64) -> Option<String> {
        let loader = self.loader.get_or_insert_with(|| Loader::new(&self.elf).ok()).as_ref()?;
        let address = return_address.checked_sub(INSTRUCTION)?;
        let mut calls = Vec::new();
        if let Ok(mut frames) = loader.find_frames(address) {
            while let Ok(Some(frame)) = frames.next() {
                let Some(function) = frame.function else { continue };
                let name = function.demangle().map_or_else(|_| "?".to_owned(), |name| without_hash(&name));
                let place = frame.location.and_then(|location| Some((location.file?, location.line?)));
                calls.push(match place {
                    Some((file, line)) => format!("{name} ({}:{line})", short(file)),
                    None => name,
                });
            }
        }
        if calls.is_empty() {
            let symbol = loader.find_symbol(address)?;
            calls.push(without_hash(&addr2line::demangle_auto(symbol.into(), None)));
        }
        Some(calls.join(" < "))
    }
}

/// A demangled name without the hash that legacy mangling adds.
fn without_hash(name: &str) -> String {
    match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            path.to_owned()
        }
        _ => name.to_owned(),
    }
}

/// A path relative to the workspace where it lies inside.
fn short(file: &str) -> &str {
    let root = workspace::root().to_str().unwrap_or_default();
    file.strip_prefix(root).map_or(file, |rest| rest.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_mangled_name_is_dropped() {
        assert_eq!(without_hash("hyp::el2::fault::h0123456789abcdef"), "hyp::el2::fault");
        assert_eq!(without_hash("hyp::hold"), "hyp::hold");
    }

    #[test]
    fn a_path_in_the_workspace_is_shown_from_its_root() {
        let inside = workspace::root().join("hyp/src/lib.rs");
        assert_eq!(short(inside.to_str().unwrap()), "hyp/src/lib.rs");
        assert_eq!(short("/rustc/abc/core.rs"), "/rustc/abc/core.rs");
    }

    #[test]
    fn an_elf_file_that_is_missing_gives_no_names() {
        assert_eq!(Symbols::new(Path::new("/nonexistent")).describe(0x1000), None);
    }

    #[test]
    fn this_program_can_describe_its_own_functions() {
        let own = std::env::current_exe().unwrap();
        let loader = Loader::new(&own).unwrap();
        let base = object_address(&own, "this_program_can_describe_its_own_functions");
        drop(loader);
        let described = Symbols::new(&own).describe(base + INSTRUCTION).unwrap();
        assert!(described.contains("this_program_can_describe_its_own_functions"), "{described}");
        assert!(described.contains("tools/src/symbols.rs:"), "{described}");
    }

    /// The address of the first symbol whose mangled name contains `part`.
    fn object_address(path: &Path, part: &str) -> u64 {
        use object::{Object, ObjectSymbol};
        let bytes = std::fs::read(path).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let symbol = file
            .symbols()
            .find(|s| s.name().is_ok_and(|name| name.contains(part) && !name.contains("closure")));
        symbol.unwrap().address()
    }
}
