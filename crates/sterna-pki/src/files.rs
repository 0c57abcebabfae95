//! Files of certificates and keys.

use crate::PkiError;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Modes of files.
pub(crate) const PUBLIC: u32 = 0o644;
pub(crate) const SECRET: u32 = 0o600;

/// A file's text.
pub(crate) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::Read { path: path.into(), source })
}

/// Writes files of a folder that their owner alone may enter, in this order; replaces nothing.
pub(crate) fn write_new(folder: &Path, files: &[(&str, &str, u32)]) -> Result<(), PkiError> {
    make_folder(folder)?;
    for (file, _, _) in files {
        let path = folder.join(file);
        if path.exists() {
            return Err(PkiError::Exists(path));
        }
    }
    for (file, text, mode) in files {
        let path = folder.join(file);
        write(&path, text, *mode).map_err(|source| PkiError::Write { path, source })?;
    }
    Ok(())
}

/// Makes a folder that its owner alone may enter.
pub(crate) fn make_folder(folder: &Path) -> Result<(), PkiError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| PkiError::Write { path: folder.into(), source })
}

/// Puts a public file in place of the one of that name, if there is one: whoever reads it meanwhile, or after the power
/// has failed, finds the one or the other.
///
/// # Errors
/// When it cannot be written.
pub fn replace(path: &Path, text: &str) -> Result<(), PkiError> {
    let unfinished = path.with_added_extension("new");
    let replaced = || {
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        write(&unfinished, text, PUBLIC)?;
        fs::rename(&unfinished, path)
    };
    replaced().map_err(|source| PkiError::Write { path: path.into(), source })
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
