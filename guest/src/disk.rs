//! A disk of known content: what every block must hold, and the thread that reads and compares.
//!
//! The content depends on the place alone, so that a disk image can be made by anybody. Reading
//! it makes the host write into the guest's memory: into its page cache, or with `O_DIRECT`
//! straight into the recorder's own pages, where a migration may miss it.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;

use crate::console::Console;
use crate::content::{fill_random, scramble};
use crate::line::Line;
use crate::quantity::Rate;
use crate::settings::DiskUse;

/// The disk that is read.
pub const DEVICE: &str = "/dev/vda";
/// Bytes of a block, the unit of the content.
pub const BLOCK_SIZE: usize = 512;
/// Bytes read at once.
const CHUNK: usize = 64 << 10;
const CHUNK_BYTES: u64 = 64 << 10;
/// What `O_DIRECT` wants buffers to be aligned to, at most.
const ALIGNMENT: usize = 4096;
/// Keeps the blocks of a disk apart from pages of the same number.
const DISK_KEY: u64 = 0x6469_736b_6469_736b;

/// Writes what the block of this number must hold.
pub fn block(number: u64, into: &mut [u8; BLOCK_SIZE]) {
    let mut words = [0; BLOCK_SIZE / 8];
    fill_random(scramble(number ^ DISK_KEY), &mut words);
    for (bytes, word) in into.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// Reads the disk over and over at a rate, forever, and compares every byte. Ends each pass with
/// a line `DISK pass=<n> blocks=<n> wrong=<n>`; each wrong block is a line `WRONG disk …`.
///
/// # Errors
/// If the disk cannot be opened or read.
pub fn run(console: &Console, how: DiskUse, rate: Rate) -> io::Result<()> {
    let mut disk = open(Path::new(DEVICE), how)?;
    let mut room = vec![0; CHUNK + ALIGNMENT];
    let start = room.as_ptr().align_offset(ALIGNMENT);
    let buffer = &mut room[start..start + CHUNK];
    let pause = pause_per_chunk(rate);
    for pass in 1_u64.. {
        disk.rewind()?;
        let (mut blocks, mut wrong) = (0, 0);
        loop {
            let size = disk.read(buffer)?;
            if size == 0 {
                break;
            }
            for found in buffer[..size].chunks_exact(BLOCK_SIZE) {
                if let Some(offset) = first_wrong(blocks, found) {
                    wrong += 1;
                    console.line(format_args!("WRONG disk block={blocks} offset={offset}"));
                }
                blocks += 1;
            }
            thread::sleep(pause);
        }
        console.line(Line::Disk { pass, blocks, wrong });
    }
    Ok(())
}

/// Reads the disk once: all of it is then in the guest's page cache, for as long as anybody has it open.
///
/// # Errors
/// If the disk cannot be opened or read.
pub fn fill_cache() -> io::Result<File> {
    let mut disk = open(Path::new(DEVICE), DiskUse::Cache)?;
    io::copy(&mut disk, &mut io::sink())?;
    Ok(disk)
}

fn open(path: &Path, how: DiskUse) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    match how {
        DiskUse::Direct => {
            let flags = i32::try_from(OFlags::DIRECT.bits()).expect("open's flags are an int");
            options.custom_flags(flags);
        }
        DiskUse::Off | DiskUse::Read | DiskUse::Cache => {}
    }
    options.open(path)
}

/// Returns the pause after each chunk that keeps reading below a rate.
fn pause_per_chunk(rate: Rate) -> Duration {
    Duration::from_nanos(CHUNK_BYTES.saturating_mul(1_000_000_000) / rate.0.max(1))
}

fn first_wrong(number: u64, found: &[u8]) -> Option<usize> {
    let mut expected = [0; BLOCK_SIZE];
    block(number, &mut expected);
    expected.iter().zip(found).position(|(expected, found)| expected != found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(number: u64) -> [u8; BLOCK_SIZE] {
        let mut bytes = [0; BLOCK_SIZE];
        block(number, &mut bytes);
        bytes
    }

    #[test]
    fn blocks_differ_and_are_the_same_every_time() {
        assert_eq!(content(7), content(7));
        assert_ne!(content(7), content(8));
    }

    #[test]
    fn one_wrong_byte_of_a_block_is_found() {
        let mut found = content(9);
        assert_eq!(first_wrong(9, &found), None);
        found[300] ^= 1;
        assert_eq!(first_wrong(9, &found), Some(300));
    }

    #[test]
    fn the_pause_keeps_to_the_rate() {
        let pause = pause_per_chunk(Rate::mebibytes_per_second(16));
        assert_eq!(pause, Duration::from_micros(3906) + Duration::from_nanos(250));
        assert!(pause_per_chunk(Rate(0)) > Duration::from_secs(60));
    }
}
