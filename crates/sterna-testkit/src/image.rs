//! Where the test guest's kernel and initramfs are.

use std::path::{Path, PathBuf};

/// The image that `cargo xtask guest` builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// The kernel, for QEMU's `-kernel`.
    pub kernel: PathBuf,
    /// The initramfs, for QEMU's `-initrd`.
    pub initramfs: PathBuf,
}

/// There is no guest image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no guest image in {}: run `cargo xtask guest`", folder.display())]
pub struct NoGuestImage {
    /// Where it was looked for.
    pub folder: PathBuf,
}

impl GuestImage {
    /// Finds the image in the target folder: `CARGO_TARGET_DIR` if set, else `target`.
    ///
    /// # Errors
    /// If it has not been built.
    pub fn find() -> Result<Self, NoGuestImage> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let workspace = manifest.ancestors().nth(2).unwrap_or(manifest);
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        Self::find_in(&workspace.join(target).join("guest"))
    }

    fn find_in(folder: &Path) -> Result<Self, NoGuestImage> {
        let (kernel, initramfs) = (folder.join("vmlinuz"), folder.join("initrd.gz"));
        if kernel.exists() && initramfs.exists() {
            Ok(Self { kernel, initramfs })
        } else {
            Err(NoGuestImage { folder: folder.to_path_buf() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_initramfs_is_no_image() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vmlinuz"), "").unwrap();
        let error = GuestImage::find_in(folder.path()).unwrap_err();
        assert!(error.to_string().contains("cargo xtask guest"), "{error}");
        std::fs::write(folder.path().join("initrd.gz"), "").unwrap();
        assert!(GuestImage::find_in(folder.path()).is_ok());
    }
}
