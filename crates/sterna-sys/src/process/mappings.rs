//! Where a process has mapped a file.

use super::FileIdentity;
use crate::AddressRange;
use rustix::fs::makedev;
use std::io;

/// A part of a file, mapped by a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMapping {
    /// Where, in that process.
    pub addresses: AddressRange,
    /// From which offset of the file on, in bytes.
    pub offset: u64,
}

/// All mappings that process `pid` has of the file `identity`, in the order of their addresses.
/// The kernel may show one mapping in parts.
///
/// # Errors
/// When there is no such process or it may not be looked into.
pub fn mappings_of(pid: u32, identity: FileIdentity) -> io::Result<Vec<FileMapping>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(mappings_in(&maps, identity))
}

/// The mappings of the file `identity` that `maps`, the text of a `/proc/PID/maps`, lists.
#[must_use]
pub fn mappings_in(maps: &str, identity: FileIdentity) -> Vec<FileMapping> {
    maps.lines().filter_map(|line| parse(line, identity)).collect()
}

/// One line: `start-end permissions offset major:minor inode path`.
fn parse(line: &str, identity: FileIdentity) -> Option<FileMapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let offset = hex(fields.nth(1)?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let device = makedev(number(major)?, number(minor)?);
    let inode = fields.next()?.parse::<u64>().ok()?;
    if (FileIdentity { device, inode }) != identity {
        return None;
    }
    Some(FileMapping { addresses: AddressRange::new(hex(start)?, hex(end)?)?, offset })
}

/// Whether process `pid` has all of `range` mapped as shared memory.
///
/// # Errors
/// When there is no such process or it may not be looked into.
pub(crate) fn is_shared(pid: u32, range: AddressRange) -> io::Result<bool> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(shared_in(&maps, range))
}

/// Whether all of `range` is shared by `maps`, which lists mappings by ascending addresses.
fn shared_in(maps: &str, range: AddressRange) -> bool {
    let shared_until = maps.lines().filter_map(shared).fold(range.start(), |until, mapping| {
        if mapping.start() <= until { until.max(mapping.end()) } else { until }
    });
    shared_until >= range.end()
}

/// The addresses of a line's mapping if it is shared.
fn shared(line: &str) -> Option<AddressRange> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let permissions = fields.next()?;
    permissions.ends_with('s').then_some(AddressRange::new(hex(start)?, hex(end)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_shared_only_if_all_of_it_is() {
        let maps = "1000-3000 rw-p 0 00:01 1\n3000-5000 rw-s 0 00:01 1\n5000-6000 r--s 0 00:01 2\n\
                    8000-9000 rw-s 0 00:01 1\n9000-a000 rw-p 0 00:01 1\nnot a line\n";
        let is_shared = |start, end| shared_in(maps, AddressRange::new(start, end).unwrap());
        assert!(
            is_shared(0x3000, 0x6000) && is_shared(0x4000, 0x5000) && is_shared(0x8000, 0x9000)
        );
        for (start, end) in [(0x2000, 0x4000), (0x5000, 0x9000), (0x8000, 0xa000), (0x6000, 0x7000)]
        {
            assert!(!is_shared(start, end), "{start:x}");
        }
    }

    #[test]
    fn a_line_is_of_a_file_by_numbers_not_by_name() {
        let line = "7f00-8f00 rw-s 2000 00:01 1234 /memfd:ram0 (deleted)";
        let line = line.replacen("7f00-8f00", "7f0000-7f8000", 1);
        let identity = FileIdentity { device: makedev(0, 1), inode: 1234 };
        let mapping = parse(&line, identity).unwrap();
        assert_eq!(mapping.addresses, AddressRange::new(0x7f_0000, 0x7f_8000).unwrap());
        assert_eq!(mapping.offset, 0x2000);
        assert_eq!(parse(&line, FileIdentity { inode: 1235, ..identity }), None);
        assert_eq!(parse(&line, FileIdentity { device: makedev(0, 2), ..identity }), None);
    }

    #[test]
    fn lines_that_are_cut_short_are_no_mappings() {
        let identity = FileIdentity { device: makedev(0, 1), inode: 1234 };
        let line = "7f0000-7f8000 rw-s 2000 00:01 1234";
        assert!(parse(line, identity).is_some());
        for end in 0..line.len() {
            let cut = &line[..end];
            assert!(parse(cut, identity).is_none(), "{cut:?}");
        }
    }
}
