//! Which of the forecast methods to take, and why.

use super::{Experience, Forecast, Foreseen, Look, Method, Model};
use crate::algorithm::AlgorithmName;
use crate::limits::{Limits, Prefer, WhenStuck};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use sterna_page::PageCount;

impl Prefer {
    /// What there is to be least of, in words.
    fn of_what(self) -> &'static str {
        match self {
            Self::Guest => "lost work",
            Self::Downtime => "downtime",
            Self::Time => "total time",
            Self::Bytes => "bytes",
        }
    }

    /// The figure that counts, and the difference in it that does not.
    fn figure(self, forecast: &Forecast) -> (u64, u64) {
        match self {
            Self::Guest => (forecast.lost_work_us.expected, 20_000),
            Self::Downtime => (forecast.downtime_us.expected, 5_000),
            Self::Time => (forecast.total_us.expected, 50_000),
            Self::Bytes => (forecast.bytes.expected, 1 << 20),
        }
    }

    fn show(self, forecast: &Forecast) -> String {
        let (figure, _) = self.figure(forecast);
        match self {
            Self::Bytes => format!("{} MiB", figure >> 20),
            Self::Guest | Self::Downtime | Self::Time => format!("{} ms", figure / 1000),
        }
    }
}

/// A choice that was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Choice {
    /// Since the move was asked for.
    #[serde(with = "crate::time::Micros", rename = "after_us")]
    pub after: Duration,
    /// What was chosen.
    #[serde(flatten)]
    pub method: Method,
    /// Why, in words.
    pub reason: String,
    /// What all of it was concluded from.
    pub basis: Basis,
    /// What was foreseen of each method from there on.
    pub forecasts: Vec<Forecast>,
}

/// What forecasts were made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Basis {
    /// Bytes a second of page frames.
    pub link_bytes_per_second: f64,
    /// Pages that were still to be sent.
    pub residue: PageCount,
    /// What the guest had been seen to write: different pages, by time.
    pub looks: Vec<Look>,
    /// What moves take apart from copying.
    pub experience: Experience,
}

impl Choice {
    /// What `auto` would choose before the move, where the first round has told nothing yet.
    #[must_use]
    pub fn before_the_move(model: &Model<'_>) -> Self {
        let forecasts = model.forecasts();
        let chosen = choose(&forecasts, model.limits, model.copying_once(), None);
        let none = || (Method::ALL[0], "the limits allow no method at all".to_owned());
        let (method, reason) = chosen.unwrap_or_else(none);
        Self { after: Duration::ZERO, method, reason, basis: model.basis(), forecasts }
    }

    /// Whether what was chosen is foreseen to move the guest, with no longer a downtime than is accepted.
    #[must_use]
    pub fn keeps_to(&self, limits: &Limits) -> bool {
        self.forecast().is_some_and(|forecast| {
            forecast.moves() && forecast.downtime_us.expected_time() <= limits.downtime_at_most()
        })
    }

    /// What was foreseen of the method that was chosen.
    #[must_use]
    pub fn forecast(&self) -> Option<&Forecast> {
        self.forecasts.iter().find(|forecast| forecast.method == self.method)
    }
}

/// A move shall not take longer than this many times what it takes to copy all pages once.
const TIMES_COPYING_ONCE_MAX: u32 = 3;

/// A safer method is taken unless another needs less than this share of what it does, in percent.
const WORTH_A_RISK_PERCENT: u64 = 90;

/// A method is kept unless another needs less than this share of what it does, in percent.
const WORTH_A_CHANGE_PERCENT: u64 = 75;

/// Chooses among forecasts of methods, the safest first (as in [`Method::ALL`]). Methods that would
/// not end, or not within the operator's downtime, or that take more than three times as long as
/// copying all pages once, are taken only if there is no other, and none that would pause the guest for
/// longer than the operator accepts. Among the rest the one that needs
/// least of what the operator prefers is taken; a safer one if it needs hardly more, and the `current`
/// one unless it needs much more.
///
/// `None` if no method is allowed at all.
#[must_use]
pub fn choose(
    forecasts: &[Forecast],
    limits: &Limits,
    copying_once: Duration,
    current: Option<Method>,
) -> Option<(Method, String)> {
    let prefer = limits.prefer;
    let allowed: Vec<&Forecast> =
        forecasts.iter().filter(|forecast| is_allowed(forecast.method, limits)).collect();
    let longest = u64::try_from(copying_once.saturating_mul(TIMES_COPYING_ONCE_MAX).as_micros())
        .unwrap_or(u64::MAX);
    let downtime_max = limits.downtime_at_most();
    let short = |forecast: &&Forecast| forecast.downtime_us.expected_time() <= downtime_max;
    let soon = |forecast: &&Forecast| forecast.total_us.expected <= longest;
    let moving: Vec<&Forecast> =
        allowed.iter().copied().filter(|forecast| forecast.moves()).collect();
    let mut candidates: Vec<&Forecast> =
        moving.iter().copied().filter(short).filter(soon).collect();
    if candidates.is_empty() {
        candidates = moving.iter().copied().filter(short).collect();
    }
    if candidates.is_empty() {
        // The first one that keeps to the limits by itself will say what is in its way.
        let keeps_to_them = |forecast: &&&Forecast| {
            forecast.method.algorithm != AlgorithmName::StopAndCopy
                || limits.when_stuck == Some(WhenStuck::StopAndCopy)
        };
        let taken = allowed.iter().find(keeps_to_them)?;
        let reason = "no method that is allowed is foreseen to move the guest within its limits";
        return Some((taken.method, reason.into()));
    }
    let best = candidates.iter().map(|forecast| prefer.figure(forecast).0).min()?;
    let is_near = |forecast: &Forecast, percent: u64| {
        let (figure, slack) = prefer.figure(forecast);
        figure <= best.saturating_add(slack) || figure.saturating_mul(percent) / 100 <= best
    };
    let kept = |forecast: &&&Forecast| {
        Some(forecast.method) == current && is_near(forecast, WORTH_A_CHANGE_PERCENT)
    };
    let safest = |forecast: &&&Forecast| is_near(forecast, WORTH_A_RISK_PERCENT);
    let taken = candidates.iter().find(kept).or_else(|| candidates.iter().find(safest))?;
    Some((taken.method, words(taken, &allowed, &candidates, prefer)))
}

fn is_allowed(method: Method, limits: &Limits) -> bool {
    match limits.when_stuck {
        None => true,
        Some(WhenStuck::Abort) => !method.owes() && !method.throttles(),
        Some(WhenStuck::Throttle) => !method.owes(),
        Some(WhenStuck::PostCopy) => !method.throttles(),
        Some(WhenStuck::StopAndCopy) => !method.owes() && !method.throttles(),
    }
}

/// Why `taken` was, with what the others would need.
fn words(taken: &Forecast, all: &[&Forecast], candidates: &[&Forecast], prefer: Prefer) -> String {
    let other = |forecast: &&&Forecast| forecast.method != taken.method;
    let told = |forecast: &&Forecast| {
        let method = forecast.method;
        match forecast.foreseen {
            Foreseen::GivesUp { reason } => format!("{method} would give up: {}", reason.as_str()),
            Foreseen::Moves if candidates.iter().all(|one| one.method != method) => format!(
                "{method} is out of the limits: {} ms of downtime, {} ms in all",
                forecast.downtime_us.expected / 1000,
                forecast.total_us.expected / 1000,
            ),
            Foreseen::Moves => format!("{method} {}", prefer.show(forecast)),
        }
    };
    let others: Vec<String> = all.iter().filter(other).map(told).collect();
    let others =
        if others.is_empty() { "nothing else is allowed".into() } else { others.join("; ") };
    format!("{} of {} ({others})", prefer.show(taken), prefer.of_what())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prediction::Band;
    use crate::receipt::StopReason;

    const ONCE: Duration = Duration::from_secs(10);

    /// Times in milliseconds.
    fn forecast(index: usize, total: u64, downtime: u64, lost: u64, mebibytes: u64) -> Forecast {
        let band = |expected| Band { low: expected, expected, high: expected };
        Forecast {
            method: Method::ALL[index],
            foreseen: Foreseen::Moves,
            total_us: band(total * 1000),
            downtime_us: band(downtime * 1000),
            bytes: band(mebibytes << 20),
            lost_work_us: band(lost * 1000),
            rounds: 1,
        }
    }

    fn gives_up(index: usize) -> Forecast {
        let foreseen = Foreseen::GivesUp { reason: StopReason::NoProgress };
        Forecast { foreseen, ..forecast(index, 20_000, 0, 0, 2000) }
    }

    fn chosen(forecasts: &[Forecast], prefer: Prefer, limits: &Limits) -> (String, String) {
        let limits = Limits { prefer, ..*limits };
        let (method, reason) = choose(forecasts, &limits, ONCE, None).unwrap();
        (method.to_string(), reason)
    }

    fn converging() -> [Forecast; 5] {
        [
            forecast(0, 16_000, 20, 20, 1600),
            forecast(1, 16_000, 20, 20, 1600),
            forecast(2, 10_100, 10_000, 10_000, 1000),
            forecast(3, 12_000, 40, 500, 1100),
            forecast(4, 10_300, 60, 2000, 1000),
        ]
    }

    fn faster_than_the_link() -> [Forecast; 5] {
        [
            gives_up(0),
            forecast(1, 25_000, 30, 9000, 2400),
            forecast(2, 10_100, 10_000, 10_000, 1000),
            forecast(3, 12_500, 40, 1500, 1200),
            forecast(4, 10_300, 60, 4000, 1000),
        ]
    }

    #[test]
    fn each_objective_finds_its_own_method() {
        let limits = Limits::default();
        for (prefer, method) in [
            (Prefer::Guest, "pre-copy"),
            (Prefer::Downtime, "pre-copy"),
            (Prefer::Time, "post-copy"),
            (Prefer::Bytes, "hybrid"),
        ] {
            assert_eq!(chosen(&converging(), prefer, &limits).0, method, "{prefer}");
        }
        let (method, reason) = chosen(&faster_than_the_link(), Prefer::Guest, &limits);
        assert_eq!(method, "hybrid");
        assert!(reason.starts_with("1500 ms of lost work (pre-copy would give up"), "{reason}");
        assert!(
            reason.contains("stop-and-copy is out of the limits: 10000 ms of down"),
            "{reason}"
        );
    }

    #[test]
    fn what_the_operator_rules_out_is_not_taken() {
        let stuck = |when| Limits { when_stuck: Some(when), ..Limits::default() };
        let taken = |when| chosen(&faster_than_the_link(), Prefer::Guest, &stuck(when)).0;
        assert_eq!(taken(WhenStuck::Throttle), "pre-copy with throttle");
        assert_eq!(taken(WhenStuck::PostCopy), "hybrid");
        let (method, reason) =
            chosen(&faster_than_the_link(), Prefer::Time, &stuck(WhenStuck::Abort));
        assert_eq!(method, "pre-copy", "which will say that it does not converge");
        assert!(reason.contains("no method that is allowed"), "{reason}");
    }

    #[test]
    fn a_move_that_would_take_for_ever_is_not_taken_where_another_ends() {
        let mut forecasts = converging();
        forecasts[0].total_us.expected = 31_000_000;
        forecasts[1].total_us.expected = 31_000_000;
        assert_eq!(chosen(&forecasts, Prefer::Guest, &Limits::default()).0, "hybrid");
        let only = &forecasts[..2];
        assert_eq!(chosen(only, Prefer::Guest, &Limits::default()).0, "pre-copy");
    }

    #[test]
    fn a_safer_method_is_taken_if_another_is_hardly_better() {
        let mut forecasts = converging();
        forecasts[3].lost_work_us.expected = 5_000;
        assert_eq!(chosen(&forecasts, Prefer::Guest, &Limits::default()).0, "pre-copy");
        forecasts[0].lost_work_us.expected = 100_000;
        forecasts[1].lost_work_us.expected = 100_000;
        assert_eq!(chosen(&forecasts, Prefer::Guest, &Limits::default()).0, "hybrid");
    }
}
