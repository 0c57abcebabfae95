//! Disk images of known content, which the flight recorder reads and checks.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sterna_guest::disk::{BLOCK_SIZE, block};
use sterna_guest::quantity::Bytes;

/// Writes a raw disk image whose every block is what the recorder expects there.
///
/// # Errors
/// If the size is not a whole number of 512-byte blocks or the file cannot be written.
pub fn fill(path: &Path, size: Bytes) -> Result<()> {
    let block_bytes = u64::try_from(BLOCK_SIZE)?;
    ensure!(size.0.is_multiple_of(block_bytes), "{size} is not a whole number of blocks");
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        let mut content = [0; BLOCK_SIZE];
        for number in 0..size.0 / block_bytes {
            block(number, &mut content);
            file.write_all(&content)?;
        }
        file.flush()
    };
    write().with_context(|| format!("cannot write the disk image {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_its_size_and_every_block_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        fill(&path, Bytes(8192)).unwrap();
        let image = std::fs::read(&path).unwrap();
        assert_eq!(image.len(), 8192);
        let mut expected = [0; BLOCK_SIZE];
        block(15, &mut expected);
        assert_eq!(image[15 * BLOCK_SIZE..], expected);
        assert!(fill(&path, Bytes(100)).is_err());
    }
}
