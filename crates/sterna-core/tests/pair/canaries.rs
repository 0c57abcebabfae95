//! Canaries: with a rule broken on purpose, the checkers must notice, and notice the right thing.

use crate::checkers::PROTOCOL;
use crate::coverage::Coverage;
use crate::world::{Broken, Judges, Trace, run};

/// Seeds within which a broken rule must be noticed.
const SEEDS: u64 = 50_000;

fn must_be_caught(broken: Broken, rules: &[&str]) {
    must_be_caught_by(Judges::Outcome, broken, rules);
}

fn must_be_caught_by(judges: Judges, broken: Broken, rules: &[&str]) {
    let mut coverage = Coverage::default();
    for seed in 0..SEEDS {
        let report = run(seed, Some(broken), judges, Trace::Off, coverage);
        coverage = report.coverage;
        if let Some(violation) = report.violation {
            println!("{broken:?}: seed {seed}, {violation:?}");
            assert!(rules.contains(&violation.rule), "seed {seed}: {violation:?}");
            return;
        }
    }
    panic!("{broken:?} was not noticed within {SEEDS} seeds");
}

const TWICE: &str = "the guest never runs twice";
const STANDS_STILL: &str = "the source stands still when the destination lets the guest run";
const NEVER_AGAIN: &str = "a guest that ran elsewhere never runs here again";
const ENDED_EARLY: &str = "a guest is only ended where it ran once it ran elsewhere";
const BOUNDED: &str = "everything ends in bounded time after the last fault";
const RAM: &str = "the guest begins with the RAM it was paused with";

#[test]
fn machines_that_do_not_keep_to_the_protocol_are_caught_before_anything_comes_of_it() {
    let early = [Broken::ReleaseOnCommit, Broken::ActivateUnrecorded, Broken::OwnedForgotten];
    for broken in early {
        must_be_caught_by(Judges::All, broken, &[PROTOCOL]);
    }
}

#[test]
fn a_source_that_resumes_after_it_committed_is_caught() {
    must_be_caught(Broken::ResumeAfterCommit, &[TWICE, STANDS_STILL, NEVER_AGAIN]);
}

#[test]
fn a_source_that_releases_before_the_destination_is_active_is_caught() {
    must_be_caught(Broken::ReleaseOnCommit, &[ENDED_EARLY]);
}

#[test]
fn a_source_that_asks_only_once_is_caught() {
    must_be_caught(Broken::AskOnce, &["every machine ends", BOUNDED]);
}

#[test]
fn a_restarted_source_that_takes_a_paused_guest_for_its_own_is_caught() {
    // Who does not take the move up leaves the destination waiting for its pages.
    must_be_caught(Broken::RestartResumes, &[TWICE, STANDS_STILL, NEVER_AGAIN, BOUNDED]);
}

#[test]
fn an_agent_that_takes_up_attempts_that_were_overtaken_is_caught() {
    must_be_caught(
        Broken::OvertakenAttempts,
        &[
            TWICE,
            STANDS_STILL,
            NEVER_AGAIN,
            "the source's ending is what happened",
            "the destination's ending is what happened",
        ],
    );
}

#[test]
fn a_source_that_forgets_what_it_held_back_is_caught() {
    must_be_caught(Broken::WithheldForgotten, &[RAM, "a move ends well when nothing goes wrong"]);
}

#[test]
fn a_source_that_forgets_what_a_round_had_no_time_for_is_caught() {
    must_be_caught(Broken::UnsentForgotten, &[RAM, "a move ends well when nothing goes wrong"]);
}

#[test]
fn a_destination_that_activates_without_a_record_is_caught() {
    must_be_caught(
        Broken::ActivateUnrecorded,
        &[TWICE, NEVER_AGAIN, ENDED_EARLY, "the source's ending is what happened"],
    );
}

#[test]
fn a_restarted_destination_that_forgets_what_it_owns_is_caught() {
    let early = [TWICE, NEVER_AGAIN, ENDED_EARLY, "the destination's ending is what happened"];
    must_be_caught(Broken::OwnedForgotten, &early);
}

#[test]
fn a_destination_that_echoes_the_sources_digest_is_caught() {
    must_be_caught(Broken::DigestEchoed, &[RAM]);
}

#[test]
fn a_destination_that_only_pretends_to_have_ended_a_guest_is_caught() {
    must_be_caught(
        Broken::DiscardPretended,
        &[TWICE, STANDS_STILL, "the destination's ending is what happened"],
    );
}

#[test]
fn a_control_connection_without_numbering_is_caught() {
    must_be_caught(Broken::NumberingOff, &["frames are handed on in order, each once"]);
}

#[test]
fn a_page_stream_that_swallows_a_page_is_caught() {
    must_be_caught(Broken::PageSwallowed, &[RAM]);
}

#[test]
fn a_scan_that_overlooks_a_page_is_caught() {
    // Where RAM is compared, the move is undone, although nothing goes wrong there.
    must_be_caught(Broken::ScanOverlooks, &[RAM, "a move ends well when nothing goes wrong"]);
}

#[test]
fn stale_pages_that_are_kept_at_the_hand_over_are_caught() {
    must_be_caught(Broken::StaleKept, &[RAM, "a page that follows comes once"]);
}

#[test]
fn a_source_that_releases_what_is_owed_is_caught() {
    must_be_caught(Broken::ReleaseOnOwing, &["no guest is ended while pages of it are owed"]);
}

#[test]
fn a_new_agent_that_takes_a_missing_page_for_received_is_caught() {
    must_be_caught(
        Broken::ForgottenPage,
        &[
            RAM,
            "the guest finds each page as it left it",
            "the destination's ending is what happened",
        ],
    );
}

#[test]
fn a_guest_that_is_left_slow_is_caught() {
    must_be_caught(Broken::StaysSlow, &["the source's ending is what happened"]);
}

#[test]
fn a_destination_that_does_not_wait_for_the_end_of_a_native_copy_is_caught() {
    // Where RAM is compared it is hashed too early.
    let early = "RAM is hashed as it came, before the state is loaded";
    must_be_caught(
        Broken::NativeUnfinished,
        &[RAM, early, "the guest begins with the registers it was paused with"],
    );
}

#[test]
fn a_hypervisor_that_resumes_what_it_has_sent_whole_is_caught() {
    must_be_caught(Broken::NativeResumesLate, &[TWICE, STANDS_STILL, NEVER_AGAIN]);
}
