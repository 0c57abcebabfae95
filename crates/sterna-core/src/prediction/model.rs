//! The model that a policy is run against.

use super::curve::pages_f64;
use super::{Band, Basis, Experience, Forecast, Foreseen, Method, WorkingSetCurve};
use crate::algorithm::{Decision, View};
use crate::limits::{FIXED_DOWNTIME, Limits};
use crate::receipt::{PagesByCoding, Round, StopReason};
use crate::working_set::SAMPLING_PERIOD;
use std::time::Duration;
use sterna_page::PageCount;

/// Bytes of a page that is sent as it is, with its share of the header of its run.
const FRAMING_BYTES: f64 = 2.0;

/// What a round takes even if it sends nothing: marks, their answer, a scan.
const ROUND_OVERHEAD_SECONDS: f64 = 0.002;

/// Rounds after which a policy that goes on is taken to go on for ever.
const ROUNDS_MAX: usize = 500;

/// How much better, and how much worse, than seen the bounds of a band assume things to be.
const BETTER: Skew = Skew { link: 1.1, writes: 0.8, fixed: 0.7 };
const AS_SEEN: Skew = Skew { link: 1.0, writes: 1.0, fixed: 1.0 };
const WORSE: Skew = Skew { link: 0.9, writes: 1.25, fixed: 1.5 };

#[derive(Clone, Copy, Debug)]
struct Skew {
    link: f64,
    writes: f64,
    fixed: f64,
}

/// What is known before a move that no round tells.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// Virtual processors of the guest.
    pub vcpus: u32,
    /// What moves take apart from copying.
    pub experience: Experience,
}

impl Default for Surroundings {
    fn default() -> Self {
        Self { vcpus: 1, experience: Experience::default() }
    }
}

/// What a look at a guest that is not being moved tells.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// What the guest writes.
    pub curve: &'a WorkingSetCurve,
    /// Pages that exist.
    pub existing: PageCount,
    /// Bytes on the wire of one of them: many are zero.
    pub first_page_bytes: f64,
    /// Bytes on the wire of one that is not.
    pub page_bytes: f64,
}

/// One guest, one link, and how far the move has come.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    /// What the guest writes.
    pub curve: &'a WorkingSetCurve,
    /// Bytes a second of page frames.
    pub link_bytes_per_second: f64,
    /// What is known besides.
    pub surroundings: &'a Surroundings,
    /// The operator's limits.
    pub limits: &'a Limits,
    /// What the deciding policy takes for the fixed part of the downtime.
    pub assumed_fixed_downtime: Duration,
    /// Request until the first page.
    pub setup: Duration,
    /// Since the first page.
    pub elapsed: Duration,
    /// The rounds so far.
    pub rounds: &'a [Round],
    /// Pages that are still to be sent.
    pub residue: PageCount,
    /// Pages that exist.
    pub existing: PageCount,
    /// Bytes on the wire of a page that was never sent: many are zero.
    pub first_page_bytes: f64,
    /// Bytes on the wire of one that is sent again: few are.
    pub page_bytes: f64,
}

/// What a run of a policy came to; times in seconds.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    foreseen: Foreseen,
    total: f64,
    downtime: f64,
    bytes: f64,
    lost_work: f64,
    rounds: u32,
}

impl<'a> Model<'a> {
    /// The model of a move that has made rounds; `None` before one has sent anything.
    #[must_use]
    pub fn of(view: &View<'a>) -> Option<Self> {
        let first = view.rounds.first()?;
        let PagesByCoding {
            raw,
            zero,
            postponed,
            withheld,
            unsent,
            coded,
            changed,
            same,
            known,
            on_disk,
            ..
        } = first.pages;
        let sent = (raw + coded + changed + same + known + on_disk + zero).0;
        if sent == 0 {
            return None;
        }
        Some(Self {
            curve: view.curve,
            link_bytes_per_second: view.link_bytes_per_second()?,
            surroundings: view.surroundings,
            limits: view.limits,
            assumed_fixed_downtime: view.fixed_downtime,
            setup: view.setup,
            elapsed: view.elapsed,
            rounds: view.rounds,
            residue: view.residue,
            existing: PageCount(sent) + postponed + withheld + unsent,
            first_page_bytes: bytes_f64(first.bytes) / bytes_f64(sent),
            page_bytes: view.page_bytes() + FRAMING_BYTES,
        })
    }

    /// The model of a move that has not begun.
    #[must_use]
    pub fn before_the_move(
        guest: Seen<'a>,
        link_bytes_per_second: f64,
        surroundings: &'a Surroundings,
        limits: &'a Limits,
    ) -> Self {
        let Seen { curve, existing, first_page_bytes, page_bytes } = guest;
        Self {
            curve,
            link_bytes_per_second,
            surroundings,
            limits,
            assumed_fixed_downtime: FIXED_DOWNTIME,
            setup: surroundings.experience.setup,
            elapsed: Duration::ZERO,
            rounds: &[],
            residue: existing,
            existing,
            first_page_bytes,
            page_bytes,
        }
    }

    /// What `method` will cost from here on, with what the move has cost so far.
    #[must_use]
    pub fn forecast(&self, method: Method) -> Forecast {
        let seen = self.run(method, AS_SEEN);
        // One that ends otherwise tells nothing of what this end costs.
        let moves = |outcome: &Outcome| outcome.foreseen == Foreseen::Moves;
        let others = [BETTER, WORSE].map(|skew| self.run(method, skew));
        let others: Vec<Outcome> =
            others.into_iter().filter(|other| moves(other) == moves(&seen)).collect();
        let band = |of: fn(&Outcome) -> f64| {
            Band::around(whole(of(&seen)), others.iter().map(|other| whole(of(other))))
        };
        Forecast {
            method,
            foreseen: seen.foreseen,
            total_us: band(|outcome| outcome.total * 1e6),
            downtime_us: band(|outcome| outcome.downtime * 1e6),
            bytes: band(|outcome| outcome.bytes),
            lost_work_us: band(|outcome| outcome.lost_work * 1e6),
            rounds: seen.rounds,
        }
    }

    /// What is known here, to be told with what is concluded from it.
    #[must_use]
    pub fn basis(&self) -> Basis {
        Basis {
            link_bytes_per_second: self.link_bytes_per_second,
            residue: self.residue,
            looks: self.curve.looks(),
            experience: self.surroundings.experience,
        }
    }

    /// Forecasts of all methods.
    #[must_use]
    pub fn forecasts(&self) -> Vec<Forecast> {
        Method::ALL.into_iter().map(|method| self.forecast(method)).collect()
    }

    /// How long all that exists takes to copy once, in seconds.
    #[must_use]
    pub fn copying_once(&self) -> Duration {
        let seconds = pages_f64(self.existing) * self.first_page_bytes / self.link_bytes_per_second;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    fn run(&self, method: Method, skew: Skew) -> Outcome {
        let limits = Limits { when_stuck: method.when_stuck_within(self.limits), ..*self.limits };
        let mut algorithm = method.algorithm.start();
        let mut state = Running::of(self, skew);
        while state.rounds.len() < ROUNDS_MAX {
            let decision = algorithm.next(&state.view(&limits));
            match decision {
                Decision::Copy { vcpus, .. } => state.copy(f64::from(vcpus.as_percent()) / 100.0),
                Decision::Pause(_) => return state.pause(),
                Decision::HandOver(_) => return state.hand_over(),
                Decision::GiveUp(reason) => return state.give_up(reason),
                // No method of ours does, and of QEMU's nothing is foreseen.
                Decision::Delegate => break,
            }
        }
        state.give_up(StopReason::NoProgress)
    }
}

/// A move that is being run.
struct Running<'a> {
    model: &'a Model<'a>,
    skew: Skew,
    link: f64,
    rounds: Vec<Round>,
    /// Since the first page, in seconds.
    elapsed: f64,
    residue: f64,
    /// Of the residue, those that were never sent.
    fresh: f64,
    bytes: f64,
    lost_work: f64,
}

impl<'a> Running<'a> {
    fn of(model: &'a Model<'a>, skew: Skew) -> Self {
        let unsent = model.rounds.last().map_or(model.residue, |round| round.pages.unsent);
        Self {
            model,
            skew,
            link: model.link_bytes_per_second * skew.link,
            rounds: model.rounds.to_vec(),
            elapsed: model.elapsed.as_secs_f64(),
            residue: pages_f64(model.residue),
            fresh: pages_f64(unsent.min(model.residue)),
            bytes: model.rounds.iter().map(|round| bytes_f64(round.bytes)).sum(),
            lost_work: model.rounds.iter().map(|round| round.held_back.as_secs_f64()).sum(),
        }
    }

    fn view<'v>(&'v self, limits: &'v Limits) -> View<'v> {
        View {
            rounds: &self.rounds,
            residue: PageCount(whole(self.residue)),
            elapsed: Duration::try_from_secs_f64(self.elapsed).unwrap_or(Duration::MAX),
            fixed_downtime: self.model.assumed_fixed_downtime,
            limits,
            setup: self.model.setup,
            curve: self.model.curve,
            surroundings: self.model.surroundings,
        }
    }

    /// Pages that a guest at `speed` writes within `seconds`: no more than exist.
    fn written(&self, seconds: f64, speed: f64) -> f64 {
        let pages = self.model.curve.pages_within(seconds * speed * self.skew.writes);
        pages.min(pages_f64(self.model.existing))
    }

    /// Bytes of `pages` of the residue.
    fn bytes_of(&self, pages: f64) -> f64 {
        let fresh = self.fresh * pages / self.residue.max(1.0);
        fresh * self.model.first_page_bytes + (pages - fresh) * self.model.page_bytes
    }

    /// How many of the pages of a round of `took` seconds are written again, and seen to be, before
    /// their turn: they wait for a later round. A page whose turn comes at a time *u* has been with a
    /// chance of *W(u)* over the pages that the guest may write.
    fn postponed(&self, took: f64, speed: f64) -> f64 {
        let existing = pages_f64(self.model.existing);
        let may_write = self.model.curve.working_set().min(existing).max(self.residue).max(1.0);
        let seen_before = SAMPLING_PERIOD.as_secs_f64() / 2.0;
        const PARTS: u32 = 8;
        let chance = |part: u32| {
            let turn = took * (f64::from(part) + 0.5) / f64::from(PARTS);
            (self.written((turn - seen_before).max(0.0), speed) / may_write).min(1.0)
        };
        self.residue * (0..PARTS).map(chance).sum::<f64>() / f64::from(PARTS)
    }

    fn copy(&mut self, speed: f64) {
        let mut sent = self.residue;
        let mut took = 0.0;
        // Fewer pages take less time, in which fewer are postponed.
        for _ in 0..4 {
            took = ROUND_OVERHEAD_SECONDS + self.bytes_of(sent) / self.link;
            sent = self.residue - self.postponed(took, speed);
        }
        let bytes = self.bytes_of(sent);
        let dirtied = self.written(took, speed);
        let held_back = took * (1.0 - speed) * f64::from(self.model.surroundings.vcpus);
        // As many as the bytes are of pages that are not zero; the others go with next to none.
        let raw = (bytes / self.model.page_bytes).min(sent);
        let (raw, zero) = (PageCount(whole(raw)), PageCount(whole(sent - raw)));
        self.rounds.push(Round {
            pages: PagesByCoding { raw, zero, ..PagesByCoding::default() },
            bytes: whole(bytes),
            took: Duration::try_from_secs_f64(took).unwrap_or(Duration::MAX),
            dirtied: PageCount(whole(dirtied)),
            vcpus: crate::speed::VcpuSpeed::nearest(speed * 100.0),
            ..Round::default()
        });
        self.elapsed += took;
        self.bytes += bytes;
        self.lost_work += held_back;
        self.residue = dirtied;
        self.fresh = 0.0;
    }

    fn pause(self) -> Outcome {
        let (fixed, bytes) = (
            self.fixed(self.model.surroundings.experience.fixed_downtime),
            self.bytes_of(self.residue),
        );
        let downtime = fixed + bytes / self.link;
        self.moved(downtime, 0.0, bytes, 0.0)
    }

    fn hand_over(self) -> Outcome {
        let experience = &self.model.surroundings.experience;
        let bytes = self.bytes_of(self.residue);
        let follow = bytes / self.link;
        let most = follow * f64::from(self.model.surroundings.vcpus);
        let waits = (follow * experience.waits_per_second * self.skew.fixed).min(most);
        let downtime = self.fixed(experience.hand_over);
        self.moved(downtime, follow, bytes, waits)
    }

    fn moved(self, downtime: f64, follow: f64, bytes: f64, waits: f64) -> Outcome {
        let release = self.fixed(self.model.surroundings.experience.release);
        Outcome {
            foreseen: Foreseen::Moves,
            total: self.began() + downtime + follow + release,
            downtime,
            bytes: self.bytes + bytes,
            lost_work: self.lost_work + downtime * f64::from(self.model.surroundings.vcpus) + waits,
            rounds: self.rounds(),
        }
    }

    fn give_up(self, reason: StopReason) -> Outcome {
        Outcome {
            foreseen: Foreseen::GivesUp { reason },
            total: self.began(),
            downtime: 0.0,
            bytes: self.bytes,
            lost_work: self.lost_work,
            rounds: self.rounds(),
        }
    }

    fn fixed(&self, seen: Duration) -> f64 {
        seen.as_secs_f64() * self.skew.fixed
    }

    /// Request until now. Before the first round the set-up is still to come.
    fn began(&self) -> f64 {
        let setup = self.model.setup;
        let setup =
            if self.model.rounds.is_empty() { self.fixed(setup) } else { setup.as_secs_f64() };
        setup + self.elapsed
    }

    fn rounds(&self) -> u32 {
        u32::try_from(self.rounds.len()).unwrap_or(u32::MAX)
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn bytes_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn whole(figure: f64) -> u64 {
    figure.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prediction::Look;
    use proptest::prelude::*;

    /// 1 GiB over 100 MB/s: 10.7 s.
    const PAGES: u64 = 262_144;
    const LINK: f64 = 100e6;

    /// What is foreseen of a guest that writes `rate` different pages a second, without end or to no
    /// more than `set`.
    fn foreseen(rate: u64, set: u64, limits: &Limits) -> Vec<Forecast> {
        let looks: Vec<Look> = (1..=30)
            .map(|tenths| Look {
                after: Duration::from_millis(tenths * 100),
                pages: PageCount((rate * tenths / 10).min(set)),
            })
            .collect();
        let (curve, surroundings) = (WorkingSetCurve::new(&looks), Surroundings::default());
        let existing = PageCount(PAGES);
        let (first_page_bytes, page_bytes) = (4098.0, 4098.0);
        let seen = Seen { curve: &curve, existing, first_page_bytes, page_bytes };
        let model = Model::before_the_move(seen, LINK, &surroundings, limits);
        let forecasts = model.forecasts();
        for Forecast { total_us, downtime_us, bytes, lost_work_us, .. } in &forecasts {
            for Band { low, expected, high } in [total_us, downtime_us, bytes, lost_work_us] {
                assert!(low <= expected && expected <= high, "{forecasts:#?}");
            }
        }
        forecasts
    }

    fn seconds(band: &Band) -> f64 {
        band.expected_time().as_secs_f64()
    }

    #[test]
    fn an_idle_guest_is_copied_once_by_whatever_method() {
        let Experience { setup, fixed_downtime, release, .. } = Experience::default();
        let fixed = (setup + fixed_downtime + release).as_secs_f64();
        for forecast in foreseen(0, 0, &Limits::default()) {
            let once = PAGES as f64 * 4098.0 / LINK;
            let total = seconds(&forecast.total_us);
            assert!((total - once - fixed).abs() < 0.1, "{forecast:#?}");
            assert!(forecast.bytes.expected.abs_diff(PAGES * 4098) < 1 << 20, "{forecast:#?}");
        }
    }

    #[test]
    fn a_guest_faster_than_the_link_is_foreseen_to_need_what_it_needs() {
        let limits = Limits::default();
        let [pre_copy, throttled, stopped, hybrid, post_copy] =
            &foreseen(50_000, u64::MAX, &limits)[..]
        else {
            panic!("a forecast for each method");
        };
        assert_eq!(pre_copy.foreseen, Foreseen::GivesUp { reason: StopReason::NoProgress });
        assert!(throttled.moves() && seconds(&throttled.lost_work_us) > 5.0, "{throttled:#?}");
        assert!(seconds(&stopped.downtime_us) > 10.0, "{stopped:#?}");
        assert!(seconds(&hybrid.downtime_us) < 0.1, "{hybrid:#?}");
        assert!(post_copy.bytes.expected <= hybrid.bytes.expected);
        assert!(post_copy.total_us.expected <= hybrid.total_us.expected);
    }

    #[test]
    fn a_small_hot_set_is_sent_at_the_pause() {
        // 2000 pages are 82 ms.
        let [pre_copy, ..] = foreseen(100_000, 2000, &Limits::default())[..] else { panic!() };
        assert!(pre_copy.moves());
        assert!((0.08..0.15).contains(&seconds(&pre_copy.downtime_us)), "{pre_copy:#?}");
    }

    fn extreme() -> impl Strategy<Value = u64> {
        prop::sample::select(vec![0, 1, 255, 1 << 20, 1 << 40, u64::MAX])
    }

    proptest! {
        #[test]
        fn whatever_is_known_is_forecast_without_end_or_panic(
            looks in prop::collection::vec((extreme(), extreme()), 0..5),
            link in prop::sample::select(vec![0.0, 1e-9, 1.0, 1e8, 1e300, f64::INFINITY]),
            pages in extreme(), bytes in prop::sample::select(vec![0.0, 0.1, 4098.0, 1e300]),
            vcpus in any::<u32>(),
        ) {
            let look = |(after, pages)| {
                Look { after: Duration::from_micros(after), pages: PageCount(pages) }
            };
            let looks: Vec<Look> = looks.into_iter().map(look).collect();
            let curve = WorkingSetCurve::new(&looks);
            let surroundings = Surroundings { vcpus, ..Surroundings::default() };
            let model = Model {
                curve: &curve,
                link_bytes_per_second: link,
                surroundings: &surroundings,
                limits: &Limits::default(),
                assumed_fixed_downtime: Duration::MAX,
                setup: Duration::MAX,
                elapsed: Duration::MAX,
                rounds: &[],
                residue: PageCount(pages),
                existing: PageCount(pages),
                first_page_bytes: bytes,
                page_bytes: bytes.clamp(1.0, 4098.0),
            };
            prop_assert_eq!(model.forecasts().len(), Method::ALL.len());
            let _any = model.copying_once();
        }
    }
}
