//! Whichever method is foreseen to cost least, as far as can be told by now.
//!
//! The first round is cut short: it sends what fits half a second, which none of the methods sends in
//! vain, and tells the link's rate and what the guest writes. Then the methods of the pool are forecast
//! and one is chosen ([`choose`]); it decides as it would have alone. At each round end the forecasts
//! are made anew, and another method takes over if what is foreseen of the one so far is much worse,
//! or if that gives up.

use super::{Algorithm, AlgorithmName, Decision, Tracking, View};
use crate::limits::{Limits, WhenStuck};
use crate::prediction::{Choice, Forecast, Method, Model, choose};
use crate::receipt::StopReason;
use crate::speed::VcpuSpeed;
use std::time::Duration;

/// How long the first round is: long enough for eight looks at what the guest writes.
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// The policy of choosing among the others.
#[derive(Debug, Default)]
pub struct Auto {
    current: Option<Current>,
    choices: Vec<Choice>,
    cannot_owe: bool,
    /// Those that have given up.
    tried: Vec<Method>,
}

#[derive(Debug)]
struct Current {
    method: Method,
    algorithm: Box<dyn Algorithm>,
}

impl Current {
    fn begin(method: Method) -> Self {
        Self { method, algorithm: method.algorithm.start() }
    }
}

impl Auto {
    /// What may still be chosen.
    fn forecasts(&self, model: &Model<'_>) -> Vec<Forecast> {
        let may = |forecast: &Forecast| {
            let cannot = self.cannot_owe && forecast.method.owes();
            !cannot && !self.tried.contains(&forecast.method)
        };
        model.forecasts().into_iter().filter(may).collect()
    }

    /// Looks again which method is best. `false` if none is left.
    fn reconsider(&mut self, view: &View<'_>, model: &Model<'_>) -> bool {
        let forecasts = self.forecasts(model);
        let current = self.current.as_ref().map(|current| current.method);
        let best = choose(&forecasts, view.limits, model.copying_once(), current);
        let Some((method, reason)) = best else { return false };
        if current != Some(method) || self.choices.is_empty() {
            self.current = Some(Current::begin(method));
            let after = view.setup.saturating_add(view.elapsed);
            let basis = model.basis();
            self.choices.push(Choice { after, method, reason, basis, forecasts });
        }
        true
    }

    fn decide(&mut self, view: &View<'_>) -> Decision {
        let Some(Current { method, algorithm }) = &mut self.current else {
            return Decision::GiveUp(StopReason::NoProgress);
        };
        let limits = Limits { when_stuck: method.when_stuck_within(view.limits), ..*view.limits };
        algorithm.next(&View { limits: &limits, ..*view })
    }
}

impl Algorithm for Auto {
    fn name(&self) -> AlgorithmName {
        AlgorithmName::Auto
    }

    fn tracking(&self) -> Tracking {
        Tracking::Needed
    }

    fn may_owe(&self, limits: &Limits) -> bool {
        matches!(limits.when_stuck, None | Some(WhenStuck::PostCopy))
    }

    fn must_owe(&self, _limits: &Limits) -> bool {
        false
    }

    fn cannot_owe(&mut self) {
        self.cannot_owe = true;
    }

    fn downtime_limit(&self, limits: &Limits) -> Duration {
        let current = self.current.as_ref();
        current.map_or(limits.downtime_max, |current| current.algorithm.downtime_limit(limits))
    }

    fn may_hold_back(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.algorithm.may_hold_back())
    }

    fn choices(&self) -> &[Choice] {
        &self.choices
    }

    fn next(&mut self, view: &View<'_>) -> Decision {
        if view.rounds.is_empty() {
            return Decision::Copy { vcpus: VcpuSpeed::FULL, at_most: Some(FIRST_LOOK) };
        }
        let Some(model) = Model::of(view) else {
            // Nothing could be sent, as nothing exists, or all of it is written all the time.
            let untold = || Current::begin(Method::ALL[0]);
            self.current.get_or_insert_with(untold);
            return self.decide(view);
        };
        let mut gave_up = StopReason::NoProgress;
        while self.reconsider(view, &model) {
            match (self.decide(view), &self.current) {
                (Decision::GiveUp(reason), Some(current)) => {
                    gave_up = reason;
                    self.tried.push(current.method);
                }
                (decision, _) => return decision,
            }
        }
        Decision::GiveUp(gave_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::WhenStuck;
    use crate::prediction::{Look, Surroundings, WorkingSetCurve};
    use crate::receipt::{PagesByCoding, Round};
    use sterna_page::PageCount;

    /// Pages a second of the link, and of the guest: 100 MB/s.
    const LINK: f64 = 25_000.0;
    const PAGES: f64 = 250_000.0;

    struct Guest {
        rate: f64,
        set: f64,
    }

    impl Guest {
        fn written(&self, seconds: f64) -> f64 {
            self.set * (1.0 - (-self.rate * seconds / self.set).exp())
        }
    }

    struct Ended {
        decision: Decision,
        choices: Vec<Choice>,
        seconds: f64,
        sent: f64,
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a model")]
    fn count(pages: f64) -> PageCount {
        PageCount(pages as u64)
    }

    /// Moves a guest whose behaviour may change with each round.
    fn moves(
        guest: impl Fn(usize) -> Guest,
        limits: &Limits,
        prepare: impl Fn(&mut Auto),
    ) -> Ended {
        let mut auto = Auto::default();
        prepare(&mut auto);
        let (mut rounds, mut curve) = (Vec::<Round>::new(), WorkingSetCurve::default());
        let (mut residue, mut elapsed, mut total) = (0.0, 0.0, 0.0);
        let surroundings = Surroundings { vcpus: 1, ..Surroundings::default() };
        loop {
            let decision = auto.next(&View {
                rounds: &rounds,
                residue: count(residue),
                elapsed: Duration::from_secs_f64(elapsed),
                fixed_downtime: Duration::from_millis(15),
                limits,
                setup: Duration::from_millis(300),
                curve: &curve,
                surroundings: &surroundings,
            });
            let Decision::Copy { vcpus, at_most } = decision else {
                let choices = auto.choices().to_vec();
                return Ended { decision, choices, seconds: elapsed, sent: total };
            };
            if rounds.is_empty() {
                residue = PAGES;
            }
            let guest = guest(rounds.len());
            let speed = f64::from(vcpus.as_percent()) / 100.0;
            let took = (residue / LINK).min(at_most.map_or(f64::MAX, |most| most.as_secs_f64()));
            let sent = took * LINK;
            let dirtied = guest.written(took * speed);
            let looks: Vec<Look> = (1..=10)
                .map(|part| took * f64::from(part) / 10.0)
                .map(|at| Look {
                    after: Duration::from_secs_f64(at),
                    pages: count(guest.written(at * speed)),
                })
                .collect();
            curve = WorkingSetCurve::new(&looks);
            let unsent = residue - sent;
            // Of what was written all but its share of the unsent had been sent.
            let again = dirtied * (1.0 - unsent / PAGES);
            rounds.push(Round {
                pages: PagesByCoding {
                    raw: count(sent),
                    unsent: count(unsent),
                    ..PagesByCoding::default()
                },
                bytes: count(sent).bytes(),
                took: Duration::from_secs_f64(took),
                dirtied: count(again),
                vcpus,
                ..Round::default()
            });
            residue = unsent + again;
            elapsed += took;
            total += sent;
        }
    }

    fn steady(rate: f64, set: f64, limits: &Limits) -> Ended {
        moves(|_| Guest { rate, set: set * PAGES }, limits, |_| {})
    }

    fn names(ended: &Ended) -> Vec<String> {
        ended.choices.iter().map(|choice| choice.method.to_string()).collect()
    }

    #[test]
    fn a_guest_slower_than_the_link_is_copied_before_it_goes() {
        for share in [0.1, 0.3, 0.6] {
            for set in [0.05, 0.2, 0.6] {
                let ended = steady(share * LINK, set, &Limits::default());
                assert_eq!(
                    ended.decision,
                    Decision::Pause(StopReason::GoalReached),
                    "{share} {set}"
                );
                assert_eq!(names(&ended), ["pre-copy"], "{share} {set}");
            }
        }
    }

    #[test]
    fn every_guest_gets_there_within_three_times_one_copy() {
        for share in [0.1, 0.6, 0.9, 1.2, 2.0, 20.0] {
            for set in [0.05, 0.2, 0.6, 1.0] {
                let ended = steady(share * LINK, set, &Limits::default());
                assert!(!matches!(ended.decision, Decision::GiveUp(_)), "{share} {set}");
                let mut seconds = ended.seconds;
                if let Decision::HandOver(_) = ended.decision {
                    // At most all of it follows.
                    seconds += PAGES / LINK;
                }
                assert!(seconds <= 3.0 * PAGES / LINK, "{share} {set}: {seconds:.1} s");
            }
        }
    }

    #[test]
    fn a_guest_faster_than_the_link_goes_at_once_and_no_round_is_lost() {
        let ended = steady(2.0 * LINK, 0.6, &Limits::default());
        assert!(matches!(ended.decision, Decision::HandOver(_)), "{:?}", ended.decision);
        assert!(ended.sent <= PAGES * 1.05, "{} pages before the hand-over", ended.sent);
        let reason = &ended.choices[0].reason;
        assert!(reason.contains("pre-copy would give up"), "{reason}");
    }

    #[test]
    fn what_is_foreseen_is_what_happens() {
        for share in [0.1, 0.3, 0.6] {
            let ended = steady(share * LINK, 0.6, &Limits::default());
            let forecast = ended.choices[0].forecast().unwrap();
            let foreseen = forecast.total_us.expected_time().as_secs_f64();
            let happened = ended.seconds + 0.3 + 0.015;
            let off = (foreseen / happened - 1.0).abs();
            assert!(off < 0.1, "{share}: foreseen {foreseen:.2} s, took {happened:.2} s");
        }
    }

    #[test]
    fn where_pages_cannot_follow_the_guest_is_slowed_down() {
        let ended = moves(
            |_| Guest { rate: 2.0 * LINK, set: 0.6 * PAGES },
            &Limits::default(),
            Algorithm::cannot_owe,
        );
        assert!(matches!(ended.decision, Decision::Pause(_)), "{:?}", ended.decision);
        assert_eq!(names(&ended), ["pre-copy with throttle"]);
        let limits = Limits { when_stuck: Some(WhenStuck::Throttle), ..Limits::default() };
        assert!(!Auto::default().may_owe(&limits));
        assert_eq!(names(&steady(2.0 * LINK, 0.6, &limits)), ["pre-copy with throttle"]);
    }

    #[test]
    fn a_move_that_nothing_allowed_can_end_is_given_up() {
        let limits = Limits { when_stuck: Some(WhenStuck::Abort), ..Limits::default() };
        let ended = steady(2.0 * LINK, 0.6, &limits);
        assert_eq!(ended.decision, Decision::GiveUp(StopReason::NoProgress));
        let limits = Limits { when_stuck: Some(WhenStuck::StopAndCopy), ..Limits::default() };
        let ended = steady(2.0 * LINK, 0.6, &limits);
        assert!(matches!(ended.decision, Decision::Pause(_)), "{:?}", ended.decision);
    }

    #[test]
    fn another_method_takes_over_when_the_guest_changes() {
        let guest =
            |round| Guest { rate: if round < 2 { 0.2 } else { 5.0 } * LINK, set: 0.5 * PAGES };
        let ended = moves(guest, &Limits::default(), |_| {});
        assert!(matches!(ended.decision, Decision::HandOver(_)), "{:?}", ended.decision);
        assert_eq!(names(&ended)[0], "pre-copy");
        assert!(ended.choices.len() > 1, "{:?}", names(&ended));
    }
}
