//! Builds the preload library, which the crate then carries inside itself.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "preload/preload.rs";

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name} for build scripts: {error}"))
}

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    let library = PathBuf::from(variable("OUT_DIR")).join("libsterna_preload.so");
    let status = Command::new(variable("RUSTC"))
        .args(["--edition", "2024", "--crate-name", "sterna_preload", "--crate-type", "cdylib"])
        .args(["--target", &variable("TARGET"), "-C", "opt-level=s", "-C", "panic=abort"])
        .args(["-C", "target-feature=-crt-static", "-C", "strip=symbols"])
        // Linked against nothing: the functions it needs come from the process that loads it.
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles"])
        .args(linker())
        .arg("-o")
        .arg(&library)
        .arg(SOURCE)
        .status()
        .unwrap_or_else(|error| panic!("rustc runs, as it compiled this script: {error}"));
    assert!(status.success(), "the preload library must compile");
    println!("cargo::rustc-env=STERNA_PRELOAD_LIBRARY={}", library.display());
}

/// The linker that cargo was told to use, when cross-compiling.
fn linker() -> Vec<String> {
    let linker = env::var("RUSTC_LINKER").ok();
    linker.map(|linker| vec!["-C".into(), format!("linker={linker}")]).unwrap_or_default()
}
