//! What the kernel tells of a process, whose name and files are its own to choose.

use crate::Verdict;
use sterna_page::PAGE_SIZE_BYTES;
use sterna_sys::process::{FileIdentity, StartTime, mappings_in};

/// The file whose mappings are looked for: `00:01 1234`.
const FILE: FileIdentity = FileIdentity { device: 1, inode: 1234 };

/// A `/proc/PID/maps`, or a `/proc/PID/stat`.
pub(crate) fn process_files(data: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(data) else { return Verdict::Refused };
    let mappings = mappings_in(text, FILE);
    assert!(mappings.len() <= text.lines().count());
    for mapping in &mappings {
        let (start, end) = (mapping.addresses.start(), mapping.addresses.end());
        assert!(start < end && start % PAGE_SIZE_BYTES == 0 && end % PAGE_SIZE_BYTES == 0);
        let line = format!("{start:x}-{end:x} rw-s {:x} 00:01 1234 x", mapping.offset);
        assert_eq!(mappings_in(&line, FILE), [*mapping]);
    }
    let start_time = StartTime::in_stat(text);
    if start_time.is_some() {
        let (_, fields) = text.rsplit_once(')').expect("a name in parentheses");
        let renamed = format!("1 (a) b) c) {fields}");
        assert_eq!(StartTime::in_stat(&renamed), start_time, "whatever the process is called");
    }
    Verdict::of(!mappings.is_empty() || start_time.is_some())
}
