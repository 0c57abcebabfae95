//! A look at a guest that runs, before it is moved: what it writes, and what there is of it.

use crate::sample::Sample;
use std::thread;
use std::time::{Duration, Instant};
use sterna_core::prediction::Look;
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageCount, PageSet};
use sterna_vmm::{Source, VmmError};

/// When to look, in 32nds of the time.
const LOOKS: [u32; 10] = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32];

/// Pages that are read to learn what those that exist are like.
const SAMPLE_PAGES: u64 = 2048;

/// What was seen of a guest.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Different pages written, by time.
    pub looks: Vec<Look>,
    /// Pages that exist.
    pub existing: PageCount,
    /// Some of them.
    pub sample: Sample,
}

impl Observed {
    /// Bytes a second of different pages that the guest wrote, over the whole time of looking.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn dirty_bytes_per_second(&self) -> f64 {
        let longest = self.looks.iter().max_by_key(|look| look.after);
        longest.filter(|look| !look.after.is_zero()).map_or(0.0, |look| {
            look.pages.0 as f64 * PAGE_SIZE_BYTES as f64 / look.after.as_secs_f64()
        })
    }
}

/// Looks at a guest for `time`, which slows it down a little: the first write to each page costs it a
/// fault. It is tracked no longer when this returns.
///
/// # Errors
/// When the hypervisor or the kernel refuses.
pub fn observe(guest: &mut dyn Source, time: Duration) -> Result<Observed, VmmError> {
    let existing = guest.populated()?;
    let sample = sample(guest, &existing)?;
    let looks = look_at(guest, time);
    guest.stop_tracking()?;
    Ok(Observed { looks: looks?, existing: existing.count(), sample })
}

fn look_at(guest: &mut dyn Source, time: Duration) -> Result<Vec<Look>, VmmError> {
    guest.start_tracking()?;
    let began = Instant::now();
    let mut written = PageSet::empty(guest.layout().pages());
    let mut looks = Vec::new();
    for part in LOOKS {
        thread::sleep((time * part / 32).saturating_sub(began.elapsed()));
        guest.peek(&mut written)?;
        looks.push(Look { after: began.elapsed(), pages: written.count() });
    }
    Ok(looks)
}

/// Some of the pages that exist, all over RAM.
fn sample(guest: &dyn Source, existing: &PageSet) -> Result<Sample, VmmError> {
    let memory = guest.memory();
    let every = (existing.count().0 / SAMPLE_PAGES).max(1);
    let every = usize::try_from(every).unwrap_or(usize::MAX);
    Sample::of(existing.iter().step_by(every).map(|page| {
        let mut bytes = [0; PAGE_SIZE];
        memory.read(page, &mut bytes)?;
        Ok(bytes)
    }))
}
