use super::*;
use crate::probe::Window;

/// What consoles said, as it was recorded, each line after the host's milliseconds and the
/// console's number.
fn heard(start: Instant, texts: &[&str]) -> Vec<Heard> {
    let lines = texts.iter().flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty());
    let mut heard: Vec<Heard> = lines
        .map(|line| {
            let mut words = line.trim().splitn(3, ' ');
            let at = words.next().unwrap().parse().unwrap();
            let console = words.next().unwrap().parse().unwrap();
            let line = Line::read(words.next().unwrap());
            Heard { at: start + Duration::from_millis(at), console, line }
        })
        .collect();
    heard.sort_by_key(|heard| heard.at);
    heard
}

/// Ticks of a console, each hundredth: the first is said at `at`, and the last after as long as the
/// guest takes to it.
fn ticks(at: u64, console: usize, numbers: std::ops::Range<u64>) -> String {
    let first = numbers.start;
    let lines = numbers.step_by(100).map(|n| format!("{} {console} t {n} {n} 5\n", at + n - first));
    lines.collect()
}

/// A move that was asked for at a time, with these times until pause, resume and end.
fn moved(start: Instant, asked: u64, after: [u64; 3]) -> KnownMove {
    let at = |after: u64| start + Duration::from_millis(asked + after);
    KnownMove {
        asked: at(0),
        switchover: Some(Window::new(at(after[0]), at(after[1]))),
        ended: Some(at(after[2])),
        ram: RamCheck::Equal,
    }
}

/// The first boot, as a guest tells it on its console.
const BOOT: &str = "100 0 [    0.912345] hvc: a word of every boot\n2000 0 READY fill=48M ws=16M\n";

/// A guest that ticks for 10 s, is moved there within 9 s, of which it stands still for 3 s, and
/// ticks on for `after` ms.
fn there(start: Instant, after: u64) -> (Vec<String>, Vec<KnownMove>) {
    let source = ticks(2_000, 0, 100..16_000);
    let destination = ticks(21_000, 1, 17_000..17_000 + after);
    (vec![BOOT.into(), source, destination], vec![moved(start, 12_000, [6_000, 9_000, 9_200])])
}

fn verdict(start: Instant, texts: &[String], moves: &[KnownMove]) -> Result<(), NotOneLife> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    examine(&heard(start, &texts), moves)
}

/// The words of a fault.
fn words(verdict: Result<(), NotOneLife>) -> String {
    verdict.expect_err("it did not live one life").to_string()
}

/// Why a reset is not the host's.
fn suspected(verdict: Result<(), NotOneLife>) -> Suspicion {
    match verdict {
        Err(NotOneLife::Reset { suspicion, .. }) => suspicion,
        other => panic!("not suspected: {other:?}"),
    }
}

fn second_boot(at: u64, console: usize) -> String {
    let boot = format!("{} {console} [    1.000001] hvc: a word of every boot\n", at - 500);
    format!("{boot}{at} {console} READY fill=48M ws=16M\n{}", ticks(at, console, 300..8_000))
}

#[test]
fn a_guest_that_is_moved_lives_one_life() {
    let start = Instant::now();
    let (texts, moves) = there(start, 20_000);
    verdict(start, &texts, &moves).unwrap();
}

#[test]
fn lost_ticks_are_neither_a_reset_nor_a_second_place() {
    let start = Instant::now();
    let lost = ticks(30_000, 0, 20_000..22_000);
    verdict(start, &[BOOT.into(), ticks(2_000, 0, 100..9_000), lost], &[]).unwrap();
}

#[test]
fn a_guest_that_runs_on_at_its_source_ran_in_two_places() {
    let start = Instant::now();
    let (mut texts, moves) = there(start, 20_000);
    texts.push(ticks(21_000, 0, 17_050..19_000));
    let words = words(verdict(start, &texts, &moves));
    assert!(words.contains("ran in two places") && !words.contains(RESET_BY_ITSELF), "{words}");
}

#[test]
fn a_guest_that_was_taken_back_to_an_older_state_lived_a_time_twice() {
    let start = Instant::now();
    let (mut texts, moves) = there(start, 0);
    texts.push(ticks(21_000, 1, 15_050..40_000));
    let twice = verdict(start, &texts, &moves);
    assert!(matches!(twice, Err(NotOneLife::SeenTwice { .. })), "{twice:?}");
}

#[test]
fn a_reset_without_any_move_is_no_moves_fault() {
    let start = Instant::now();
    let texts = [BOOT.into(), ticks(2_000, 0, 100..9_000), second_boot(40_000, 0)];
    let words = words(verdict(start, &texts, &[]));
    assert!(words.starts_with(RESET_BY_ITSELF), "{words}");
    assert!(words.contains("last tick was 8900, before any move"), "{words}");
    assert!(words.contains("anew 29200 ms later"), "{words}");
}

#[test]
fn a_reset_long_after_a_move_is_told_with_the_time_since_the_move() {
    let start = Instant::now();
    let (mut texts, moves) = there(start, 3_500);
    texts.push(second_boot(60_000, 1));
    let words = words(verdict(start, &texts, &moves));
    assert!(words.starts_with(RESET_BY_ITSELF), "{words}");
    assert!(words.contains("3200 ms after the end of move 1"), "{words}");
}

#[test]
fn a_reset_soon_after_a_move_may_be_its_fault() {
    let start = Instant::now();
    let (mut texts, moves) = there(start, 2_500);
    texts.push(second_boot(60_000, 1));
    let fault = verdict(start, &texts, &moves);
    assert!(matches!(suspected(fault), Suspicion::JustArrived(ran) if ran < AWAY));
    let (mut texts, moves) = there(start, 0);
    texts.push(second_boot(60_000, 1));
    assert_eq!(suspected(verdict(start, &texts, &moves)), Suspicion::UnderWay, "not one tick");
}

#[test]
fn time_on_the_source_after_a_move_is_not_time_at_the_destination() {
    let start = Instant::now();
    let (mut texts, moves) = there(start, 0);
    // The source ran on while its destination was reset at once.
    texts.push(ticks(21_000, 0, 17_000..27_000));
    texts.push(second_boot(60_000, 1));
    assert_eq!(suspected(verdict(start, &texts, &moves)), Suspicion::Elsewhere);
}

#[test]
fn a_reset_is_not_the_hosts_if_ram_was_not_compared() {
    let start = Instant::now();
    for ram in [RamCheck::NotChecked, RamCheck::Different] {
        let (mut texts, mut moves) = there(start, 20_000);
        moves[0].ram = ram;
        texts.push(second_boot(80_000, 1));
        assert_eq!(suspected(verdict(start, &texts, &moves)), Suspicion::RamNotEqual);
    }
}

#[test]
fn a_guest_that_fell_silent_while_pages_were_copied_was_reset_long_before_the_pause() {
    let start = Instant::now();
    let before = [BOOT.into(), ticks(2_000, 0, 100..12_000), second_boot(60_000, 1)];
    // Its last tick comes at 13.8 s.
    let long = moved(start, 12_000, [5_000, 8_000, 8_200]);
    let words = words(verdict(start, &before, std::slice::from_ref(&long)));
    assert!(words.starts_with(RESET_BY_ITSELF), "{words}");
    assert!(words.contains("1800 ms after the begin of move 1"), "{words}");
    let short = moved(start, 12_000, [4_000, 8_000, 8_200]);
    assert_eq!(suspected(verdict(start, &before, &[short])), Suspicion::UnderWay);
    let unknown = KnownMove { switchover: None, ..long.clone() };
    assert_eq!(suspected(verdict(start, &before, &[unknown])), Suspicion::UnderWay);
    let unequal = KnownMove { ram: RamCheck::Different, ..long };
    assert_eq!(suspected(verdict(start, &before, &[unequal])), Suspicion::RamNotEqual);
}

#[test]
fn a_reset_that_a_nested_kvm_did_while_pages_were_copied_is_told_as_recorded() {
    let start = Instant::now();
    // Times, ticks and consoles as they were; consoles that were looked for in vain have numbers.
    let texts = [
        "0 0 READY fill=48M ws=16M\n".into(),
        ticks(28, 0, 789..13_622),
        "12857 0 t 13622 27000 5000\n23387 0 READY fill=48M ws=16M\n".into(),
        ticks(23_413, 0, 929..22_900),
        ticks(57_235, 5, 23_940..27_300),
    ];
    let moves = [moved(start, 532, [44_917, 55_938, 56_866])];
    let words = words(verdict(start, &texts, &moves));
    let expected = "the guest was reset by itself: its last tick was 13622, 12325 ms after the begin of \
                    move 1, and it began anew 10530 ms later\n";
    assert!(words.starts_with(expected), "{words}");
}

#[test]
fn a_guest_whose_kernel_said_why_was_not_reset_by_the_host() {
    let start = Instant::now();
    let (mut texts, moves) = there(start, 20_000);
    texts.push("41100 1 [   99.100000] Kernel panic - not syncing: Fatal exception\n".into());
    texts.push(second_boot(80_000, 1));
    let expected = "Kernel panic - not syncing: Fatal exception".to_owned();
    assert_eq!(suspected(verdict(start, &texts, &moves)), Suspicion::Spoke(vec![expected]));
}

#[test]
fn wrong_memory_before_a_reset_is_not_passed_over() {
    let start = Instant::now();
    let (mut texts, moves) = there(start, 20_000);
    texts.push("41100 1 WRONG page=1\n".into());
    texts.push(second_boot(80_000, 1));
    assert!(matches!(suspected(verdict(start, &texts, &moves)), Suspicion::Spoke(_)));
}

#[test]
fn a_tick_that_the_reset_cut_off_says_nothing() {
    let start = Instant::now();
    let cut = "10950 0 t 9021 44\n".into();
    let texts = [BOOT.into(), ticks(2_000, 0, 100..9_000), cut, second_boot(40_000, 0)];
    assert!(words(verdict(start, &texts, &[])).starts_with(RESET_BY_ITSELF));
}

#[test]
fn two_resets_are_not_taken_for_chance() {
    let start = Instant::now();
    let twice = [second_boot(40_000, 0), second_boot(90_000, 0)];
    let texts = [&[BOOT.into(), ticks(2_000, 0, 100..9_000)], &twice[..]].concat();
    assert_eq!(suspected(verdict(start, &texts, &[])), Suspicion::Again(2));
}

#[test]
fn a_reset_does_not_hide_that_the_old_guest_runs_on_elsewhere() {
    let start = Instant::now();
    let (mut texts, moves) = there(start, 20_000);
    texts.push(second_boot(80_000, 1));
    texts.push(ticks(81_000, 0, 40_000..41_000));
    let doubled = verdict(start, &texts, &moves);
    // Its ticks stretch over what was heard on the other console.
    assert!(matches!(doubled, Err(NotOneLife::SeenTwice { .. })), "{doubled:?}");
    let texts = [BOOT.into(), second_boot(80_000, 1), ticks(81_000, 0, 40_000..41_000)];
    let ran_on = verdict(start, &texts, &moves);
    assert!(matches!(ran_on, Err(NotOneLife::RanOn { .. })), "{ran_on:?}");
}
