//! Whether a qcow2 image names other files. Its header is its writer's word.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// `QFI\xfb`, and the bytes of the header that are read; version 2 ends earlier, but an image is longer than both.
const MAGIC: [u8; 4] = *b"QFI\xfb";
const HEADER_BYTES: usize = 80;

/// Where the header has the place of another file's name (0 for none), its version, and features that a reader must know.
const VERSION: usize = 4;
const BACKING_FILE: usize = 8;
const FEATURES: usize = 72;

/// The feature of having one's data in another file.
const DATA_FILE: u64 = 1 << 2;

/// Why an image cannot be given to a QEMU that opens nothing by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Dependent {
    /// It cannot be read, or is no image.
    #[error("no qcow2 image can be read there; see `qemu-img info`")]
    Unreadable,
    /// It holds what differs from another image.
    #[error(
        "it has a backing file, which a QEMU with a user of its own cannot open; make one image of both with `qemu-img \
         rebase -b \"\"`, or start the agent without guest-uids"
    )]
    BackingFile,
    /// Its data is in another file.
    #[error(
        "it has its data in another file, which a QEMU with a user of its own cannot open; make one image of both with \
         `qemu-img convert`, or start the agent without guest-uids"
    )]
    DataFile,
}

/// Whether the image at `path` is whole by itself.
pub(super) fn stands_alone(path: &Path) -> Result<(), Dependent> {
    let mut header = [0; HEADER_BYTES];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut header, 0));
    read.map_err(|_| Dependent::Unreadable)?;
    check(&header)
}

fn check(header: &[u8; HEADER_BYTES]) -> Result<(), Dependent> {
    if header[..VERSION] != MAGIC {
        return Err(Dependent::Unreadable);
    }
    let long = |at: usize| {
        let bytes = header[at..at + 8].try_into().expect("a slice of eight bytes");
        u64::from_be_bytes(bytes)
    };
    if long(BACKING_FILE) != 0 {
        return Err(Dependent::BackingFile);
    }
    // Version 2 has other things there.
    let has_features = header[VERSION..BACKING_FILE] != [0, 0, 0, 2];
    if has_features && long(FEATURES) & DATA_FILE != 0 {
        return Err(Dependent::DataFile);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_image_that_names_another_file_is_known_by_its_header() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, options: &[&str]| {
            let path = folder.path().join(name);
            let mut command = Command::new("qemu-img");
            command.args(["create", "-q", "-f", "qcow2"]).args(options).arg(&path).arg("1M");
            command.status().is_ok_and(|status| status.success()).then_some(path)
        };
        let Some(whole) = make("whole", &[]) else {
            return eprintln!("skipped: qemu-img makes no images");
        };
        assert_eq!(stands_alone(&whole), Ok(()));
        assert_eq!(stands_alone(&make("old", &["-o", "compat=0.10"]).unwrap()), Ok(()));
        let above = make("above", &["-F", "qcow2", "-b", "whole"]).unwrap();
        assert_eq!(stands_alone(&above), Err(Dependent::BackingFile));
        let data = format!("data_file={}", folder.path().join("data").display());
        let beside = make("beside", &["-o", &data]).unwrap();
        assert_eq!(stands_alone(&beside), Err(Dependent::DataFile));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        for content in [&b""[..], b"QFI\xfb", &[0; 200]] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(stands_alone(&path), Err(Dependent::Unreadable), "{content:?}");
        }
    }
}
