//! A guest without an operating system, for hosts whose KVM runs no stock one.
//!
//! It needs no guest image: a multiboot kernel of some hundred bytes (`bare/bare.S`) that rewrites
//! memory at a pace, checks it, and speaks the recorder's lines on its serial console, so that
//! [`crate::probe::ConsoleLog`] reads it: `READY`, ticks of at least a millisecond, and `WRONG`
//! with the place and the words. It takes no commands.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sterna_guest::quantity::Bytes;

/// The assembled guest, empty where it could not be assembled.
const IMAGE: &[u8] = include_bytes!(env!("STERNA_BARE_IMAGE"));

/// Where in the image its settings stand: after the multiboot header.
const SETTINGS_AT: usize = 32;

/// Guest physical address of the first page of its memory; consecutive pages follow.
pub const MEMORY_FROM: u64 = 16 << 20;

/// One word of every so many bytes of a page is written and checked.
pub const STRIDE_BYTES: usize = 64;

/// Bytes of a page.
const PAGE_BYTES: u32 = 4096;

/// The CPU for such a guest under KVM: a paravirtual KVM may claim the feature that is left out
/// without having it.
pub const CPU: &str = "host,-arch-capabilities";

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareGuest {
    /// Pages that it fills and checks.
    pub pages: u32,
    /// The first so many of them are rewritten; not all.
    pub hot: u32,
    /// So many hot and so many other pages are done in a step, which takes at least 1 ms.
    pub per_step: u32,
    /// After so many steps it writes a tick line, numbered by steps.
    pub steps_per_line: u32,
}

impl Default for BareGuest {
    /// 64 MiB of which 8 MiB are rewritten every second: as much as emulated code can do.
    fn default() -> Self {
        Self { pages: 16384, hot: 2048, per_step: 2, steps_per_line: 5 }
    }
}

impl BareGuest {
    /// The RAM it needs.
    #[must_use]
    pub fn memory(&self) -> Bytes {
        Bytes(MEMORY_FROM + u64::from(self.pages) * u64::from(PAGE_BYTES))
    }

    /// Writes the kernel and returns a definition of the guest, without accelerator and CPU.
    ///
    /// # Errors
    /// If the settings make no guest, the file cannot be written, or this build has no such guest.
    pub fn define(&self, name: &str, kernel: &Path) -> Result<Value> {
        std::fs::write(kernel, self.image()?)
            .with_context(|| format!("cannot write the kernel {}", kernel.display()))?;
        Ok(json!({ "name": name, "memory_bytes": self.memory().0, "kernel": kernel }))
    }

    fn image(&self) -> Result<Vec<u8>> {
        ensure!(!IMAGE.is_empty(), "the bare-metal guest is built on x86-64 only");
        let Self { pages, hot, per_step, steps_per_line } = *self;
        ensure!(0 < hot && hot < pages, "{hot} of {pages} pages cannot be the hot ones");
        ensure!(per_step > 0 && steps_per_line > 0, "a step or a line would never end");
        let last = u32::try_from(self.memory().0);
        ensure!(last.is_ok(), "{pages} pages end beyond 4 GiB");
        let mut image = IMAGE.to_vec();
        for (number, value) in [pages, hot, per_step, steps_per_line].into_iter().enumerate() {
            let at = SETTINGS_AT + 4 * number;
            image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_stand_where_the_guest_reads_them() {
        let image = BareGuest::default().image().unwrap();
        assert_eq!(image[..4], 0x1bad_b002_u32.to_le_bytes());
        assert_eq!(IMAGE[SETTINGS_AT..SETTINGS_AT + 16], [0; 16], "nothing else stands there");
        assert_eq!(image[SETTINGS_AT..SETTINGS_AT + 4], 16384_u32.to_le_bytes());
        assert_eq!(image.len(), IMAGE.len());
    }

    #[test]
    fn a_guest_that_would_never_come_to_an_end_is_refused() {
        let good = BareGuest::default();
        let bad = [
            BareGuest { hot: 0, ..good },
            BareGuest { hot: good.pages, ..good },
            BareGuest { per_step: 0, ..good },
            BareGuest { steps_per_line: 0, ..good },
            BareGuest { pages: u32::MAX, ..good },
        ];
        for guest in bad {
            assert!(guest.image().is_err(), "{guest:?}");
        }
    }
}
