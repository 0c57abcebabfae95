//! Builds the preload libraries, which the crate then carries inside itself.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name} for build scripts: {error}"))
}

fn main() {
    build("preload", "STERNA_PRELOAD_LIBRARY");
    build("taps", "STERNA_TAPS_LIBRARY");
}

/// Builds `preload/NAME.rs`; the crate finds its path in the variable.
fn build(name: &str, path_variable: &str) {
    let source = format!("preload/{name}.rs");
    println!("cargo::rerun-if-changed={source}");
    let library = PathBuf::from(variable("OUT_DIR")).join(format!("libsterna_{name}.so"));
    let crate_name = format!("sterna_{name}");
    let status = Command::new(variable("RUSTC"))
        .args(["--edition", "2024", "--crate-name", &crate_name, "--crate-type", "cdylib"])
        .args(["--target", &variable("TARGET"), "-C", "opt-level=s", "-C", "panic=abort"])
        .args(["-C", "target-feature=-crt-static", "-C", "strip=symbols"])
        // Linked against nothing: the functions it needs come from the process that loads it.
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles"])
        .args(linker())
        .arg("-o")
        .arg(&library)
        .arg(&source)
        .status()
        .unwrap_or_else(|error| panic!("rustc runs, as it compiled this script: {error}"));
    assert!(status.success(), "{source} must compile");
    println!("cargo::rustc-env={path_variable}={}", library.display());
}

/// The linker that cargo was told to use, when cross-compiling.
fn linker() -> Vec<String> {
    let linker = env::var("RUSTC_LINKER").ok();
    linker.map(|linker| vec!["-C".into(), format!("linker={linker}")]).unwrap_or_default()
}
