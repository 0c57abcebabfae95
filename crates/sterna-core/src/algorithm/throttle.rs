//! Slowing the vCPUs just enough.
//!
//! The guest shall dirty a set part of what the link carries: with link rate *B* and the dirty rate
//! *D* seen at speed *s*, the next speed is *s · k · B / D* (after Jin et al., JNCA 34, 2011). *D*
//! does not grow in proportion to *s* where the same pages are written several times a round, so the
//! speed is found anew after each round, and may rise again.

use super::View;
use crate::speed::VcpuSpeed;

/// *k*: rounds become shorter by this factor. See docs/design/0002 for what other values cost.
const DIRTY_SHARE_OF_LINK: f64 = 0.5;

/// The speed below which no guest is slowed down: one that seems dead is no better than paused.
const SPEED_MIN: VcpuSpeed = VcpuSpeed::percent(2);

/// A speed that differs by less than this part is not worth a change: rates are noisy.
const HYSTERESIS: f64 = 0.1;

/// The speed of a guest that is being slowed down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Throttle {
    speed: VcpuSpeed,
}

impl Throttle {
    /// Begins, after rounds at full speed did not help.
    pub(super) fn begin(view: &View<'_>) -> Self {
        let mut throttle = Self { speed: VcpuSpeed::FULL };
        throttle.adjust(view);
        if throttle.speed == VcpuSpeed::FULL {
            throttle.halve();
        }
        throttle
    }

    pub(super) fn speed(self) -> VcpuSpeed {
        self.speed
    }

    /// Takes the newest round into account.
    pub(super) fn adjust(&mut self, view: &View<'_>) {
        let (Some(link), Some(dirty)) = (view.pages_per_second(), view.dirty_pages_per_second())
        else {
            return;
        };
        let now = f64::from(self.speed.as_percent());
        // A guest that dirtied nothing wants an infinite speed, which is the full one.
        let wanted = now * DIRTY_SHARE_OF_LINK * link / dirty;
        if wanted.is_nan() || (wanted - now).abs() <= now * HYSTERESIS {
            return;
        }
        self.speed = VcpuSpeed::nearest(wanted).max(SPEED_MIN);
    }

    /// Goes below what the rates ask for, because rounds still do not help. `false` if that was the
    /// least already.
    pub(super) fn harder(&mut self) -> bool {
        let before = self.speed;
        self.halve();
        self.speed < before
    }

    fn halve(&mut self) {
        let half = f64::from(self.speed.as_percent()) / 2.0;
        self.speed = VcpuSpeed::nearest(half).max(SPEED_MIN);
    }
}
