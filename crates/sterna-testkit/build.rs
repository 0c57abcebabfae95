//! Assembles the bare-metal guest, which the crate then carries inside itself.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "bare/bare.S";

/// Where the image is loaded, which is also where it is linked to.
const ADDRESS: &str = "0x100000";

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name} for build scripts: {error}"))
}

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CC");
    let image = PathBuf::from(variable("OUT_DIR")).join("bare.bin");
    if variable("CARGO_CFG_TARGET_ARCH") == "x86_64" {
        assemble(&image);
    } else {
        // The compiler at hand makes no code for the guest's processor: there is no such guest.
        std::fs::write(&image, []).unwrap_or_else(|error| panic!("cannot write it: {error}"));
    }
    println!("cargo::rustc-env=STERNA_BARE_IMAGE={}", image.display());
}

/// The C compiler is there, as Rust links with it; nothing of C's libraries is needed.
fn assemble(image: &Path) {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(&compiler)
        .args(["-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--oformat=binary"])
        .args([&format!("-Wl,-Ttext={ADDRESS}"), "-Wl,--build-id=none", "-o"])
        .arg(image)
        .arg(SOURCE)
        .status()
        .unwrap_or_else(|error| panic!("{compiler} runs, as Rust links with it: {error}"));
    assert!(status.success(), "the bare-metal guest must assemble");
}
