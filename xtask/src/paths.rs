//! Where things lie: the workspace and its target folder.

use std::path::{Path, PathBuf};

/// Returns the root folder of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies one folder below the workspace root").to_path_buf()
}

/// Returns the folder of build results: `CARGO_TARGET_DIR` if set, else `target`.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}

/// Returns the folder of the guest image: `vmlinuz`, `initrd.gz` and what they are made of.
pub(crate) fn guest() -> PathBuf {
    target().join("guest")
}
