//! What is run in the lane's machine, and when that counts as passed.

use std::fmt;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sterna_testkit::probe::RESET_BY_ITSELF;

use super::image::Image;
use crate::cargo::build_tests_of;
use crate::machine::{Answer, Echo, End, Machine};
use crate::paths;

/// What a test says whose guest came to nothing before anything was done to it. Of emulated guests
/// under nesting that happens to one in twenty, for an unknown reason.
const NOT_BOOTED: &str = "the guest did not boot";

/// What stands before the words of a test that ends with an error.
const ERROR: &str = "Error: ";

/// What a test says when it could not be run.
const SKIPPED: &str = "skipped:";

/// How long one program's tests may take; they take a minute or two.
const LIMIT: Duration = Duration::from_secs(900);

/// A program of tests to run inside.
struct Check {
    /// For people.
    what: &'static str,
    /// The crate, whose folder has its name.
    package: &'static str,
    /// Its name among the package's programs.
    program: &'static str,
    /// Words for the program: which tests.
    tests: &'static str,
    /// What a shell does before.
    before: &'static str,
}

/// Swap that the kernel can put memory into, once.
const WITH_SWAP: &str = "test -e /swap || { fallocate -l 256M /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap; }";

const NOTHING: &str = "true";

const BY_SOFT_DIRTY: &str = "export STERNA_TEST_TRACKER=soft-dirty";

const CHECKS: [Check; 7] = [
    Check {
        what: "the tracker and cgroups (v2), on the machine's kernel",
        package: "sterna-sys",
        program: "sterna_sys",
        tests: "uffd:: pagemap:: memory:: cgroup::",
        before: NOTHING,
    },
    Check {
        what: "huge pages, as memory and as a guest's",
        package: "sterna-vmm",
        program: "huge_pages",
        tests: "",
        before: NOTHING,
    },
    Check {
        what: "the QEMU driver, with guests on KVM",
        package: "sterna-vmm",
        program: "qemu",
        // The bare-metal guest is for hosts that this machine is not; see docs/kvm-lane.md.
        tests: "--skip bare:: --skip soft_dirty::",
        before: NOTHING,
    },
    Check {
        what: "a busy Linux guest between two agents, there and back, all RAM compared",
        package: "sterna",
        program: "real_guests",
        tests: "page_sizes::",
        before: NOTHING,
    },
    Check {
        what: "the soft-dirty tracker, on memory that the kernel puts into swap",
        package: "sterna-sys",
        program: "sterna_sys",
        tests: "soft_dirty:: frozen::",
        before: WITH_SWAP,
    },
    Check {
        what: "the QEMU driver, tracking by soft-dirty bits",
        package: "sterna-vmm",
        program: "qemu",
        tests: "soft_dirty:: a_guest_moves_there_and_on a_guest_goes_on_in_another_qemu \
                memory_that_was_never_touched a_guest_is_resumed_after_any_step \
                a_new_agent_finds_the_guest a_new_agent_goes_on a_killed_qemu",
        before: BY_SOFT_DIRTY,
    },
    Check {
        what: "a busy Linux guest, there and back, all RAM compared, tracked by soft-dirty bits",
        package: "sterna",
        program: "real_guests",
        tests: "page_sizes::a_busy_guest_of_ordinary_pages",
        before: BY_SOFT_DIRTY,
    },
];

/// Programs that were built to be run inside.
pub(super) struct Programs {
    sterna: PathBuf,
    checks: Vec<(Check, PathBuf)>,
}

/// Builds the tests and the program they drive.
///
/// # Errors
/// If something does not build.
pub(super) fn build() -> Result<Programs> {
    let mut packages = CHECKS.map(|check| check.package).to_vec();
    packages.sort_unstable();
    packages.dedup();
    let built = build_tests_of(&packages)?;
    let find = |name: &str, is_test| -> Result<PathBuf> {
        let found = built.iter().find(|program| program.name == name && program.is_test == is_test);
        Ok(found.with_context(|| format!("cargo built no {name}"))?.path.clone())
    };
    let checks = CHECKS.into_iter().map(|check| Ok((find(check.program, true)?, check)));
    let checks = checks.map(|found: Result<_>| found.map(|(path, check)| (check, path)));
    Ok(Programs { sterna: find("sterna", false)?, checks: checks.collect::<Result<_>>()? })
}

/// What befell guests and machine, that no test found and no test of ours is to blame for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mishaps {
    /// Guests that never booted.
    not_booted: usize,
    /// Guests that were reset while no move can have done it.
    resets: usize,
    /// Crashes of the machine's own kernel.
    crashes: usize,
}

impl Mishaps {
    fn of(answer: &Answer) -> Self {
        Self {
            not_booted: answer.text.matches(NOT_BOOTED).count(),
            resets: answer.text.matches(&format!("{ERROR}{RESET_BY_ITSELF}")).count(),
            // Emulated SVM now and then lets an interrupt through where it must not.
            crashes: usize::from(answer.end == End::Machine),
        }
    }
}

impl AddAssign for Mishaps {
    fn add_assign(&mut self, other: Self) {
        self.not_booted += other.not_booted;
        self.resets += other.resets;
        self.crashes += other.crashes;
    }
}

impl fmt::Display for Mishaps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { not_booted, resets, crashes } = self;
        write!(formatter, "guests reset by themselves: {resets}, guests that did not boot: ")?;
        write!(formatter, "{not_booted}, crashes of the machine's kernel: {crashes}")
    }
}

/// Boots a machine and runs every check in it; the first that fails ends it. What happened besides
/// is added to `mishaps`.
///
/// # Errors
/// If the machine does not boot or a check fails.
pub(super) fn run(image: &Image, programs: &Programs, mishaps: &mut Mishaps) -> Result<()> {
    let mut machine = boot(image)?;
    finds_kvm(&mut machine, &programs.sterna)?;
    for (check, program) in &programs.checks {
        println!("── {}", check.what);
        let began = Instant::now();
        let command = command(check, program);
        let mut verdict = attempt(&mut machine, &command, mishaps)?;
        if let Verdict::Mishap(befell) = verdict {
            println!("ONCE MORE, as no test failed by what it found; {befell}");
            if befell.crashes > 0 {
                println!("what its kernel said: {}", machine.keep_console()?.display());
                machine = boot(image)?;
            }
            verdict = attempt(&mut machine, &command, mishaps)?;
        }
        accept(verdict)?;
        println!("passed after {:.0?}", began.elapsed());
    }
    Ok(())
}

/// Runs a program's tests; adds what befell them, also where they fail otherwise.
fn attempt(machine: &mut Machine, command: &str, mishaps: &mut Mishaps) -> Result<Verdict> {
    let answer = machine.run(command, LIMIT, Echo::Yes)?;
    *mishaps += Mishaps::of(&answer);
    Ok(verdict(&answer))
}

fn boot(image: &Image) -> Result<Machine> {
    println!("── starting the machine");
    let began = Instant::now();
    let machine = super::boot::boot(image)?;
    println!("it answers after {:.0?}", began.elapsed());
    Ok(machine)
}

/// An agent must choose KVM by itself: everything else here builds on that.
fn finds_kvm(machine: &mut Machine, sterna: &Path) -> Result<()> {
    println!("── what an agent finds in the machine");
    let doctor = format!("'{}' doctor --output json 2>&1", sterna.display());
    let answer = machine.run(&doctor, LIMIT, Echo::No)?;
    let findings: Value = serde_json::from_str(answer.text.trim())
        .with_context(|| format!("not what a doctor says: {}", answer.text))?;
    let findings = findings.as_array().context("the doctor found nothing")?;
    for finding in findings {
        println!("   {finding}");
    }
    let kvm = findings.iter().find(|finding| finding["check"] == "kvm");
    ensure!(kvm.is_some_and(|kvm| kvm["verdict"] == "good"), "KVM does not run guests in there");
    Ok(())
}

/// Runs tests as cargo would: in the package's folder, one at a time.
fn command(check: &Check, program: &Path) -> String {
    let folder = paths::workspace().join("crates").join(check.package);
    // Where the guest image is looked for.
    let target = paths::target();
    format!(
        "{} && cd '{}' && CARGO_TARGET_DIR='{}' STERNA_TEST_ACCELERATOR=kvm RUST_BACKTRACE=0 '{}' \
         --test-threads 1 --nocapture {}",
        check.before,
        folder.display(),
        target.display(),
        program.display(),
        check.tests,
    )
}

/// How tests went.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// Every test that failed did so by what befell its guest, or the machine.
    Mishap(Mishaps),
    Skipped,
    None,
    Failed(End),
}

fn verdict(answer: &Answer) -> Verdict {
    let text = &answer.text;
    let befell = Mishaps::of(answer);
    // Each test that fails so says it once. One that failed otherwise must not be lost.
    let excused = Some(befell.not_booted + befell.resets);
    match answer.end {
        End::Machine if Some(complaints(text)) == excused => Verdict::Mishap(befell),
        End::Exit(0) if text.contains(SKIPPED) => Verdict::Skipped,
        // The harness is content with a filter that fits no test.
        End::Exit(0) if text.contains("running 0 tests") => Verdict::None,
        End::Exit(0) => Verdict::Passed,
        End::Exit(_) if failures(text) == excused => Verdict::Mishap(befell),
        end => Verdict::Failed(end),
    }
}

/// How many tests failed, by the harness's last line; nothing if it did not come that far.
fn failures(text: &str) -> Option<usize> {
    let (_, result) = text.rsplit_once("test result: FAILED.")?;
    let (count, _) = result.split_once(" failed")?;
    count.rsplit(' ').next()?.parse().ok()
}

/// How many tests failed by what they said, where the harness did not come to its last line. Such
/// as say more than one thing, or nothing, count more often than a mishap does.
fn complaints(text: &str) -> usize {
    let said = text.matches(ERROR).count() + text.matches("panicked at").count();
    said.max(text.matches("FAILED").count())
}

fn accept(verdict: Verdict) -> Result<()> {
    match verdict {
        Verdict::Passed => Ok(()),
        Verdict::Mishap(befell) => bail!("once more was not enough; {befell}"),
        Verdict::Skipped => bail!("a test was skipped: the machine lacks what it was made for"),
        Verdict::None => bail!("no such tests"),
        Verdict::Failed(end) => bail!("the tests failed: {end:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: i32, text: &str) -> Verdict {
        verdict(&Answer { end: End::Exit(status), text: text.into() })
    }

    #[test]
    fn only_what_befalls_a_guest_is_tried_once_more() {
        let result =
            |failed| format!("test result: FAILED. 3 passed; {failed} failed; 0 ignored\n");
        let boot = "test a ... Error: the guest did not boot\nFAILED\n";
        let reset = "test b ... a to b: 4 rounds\nError: the guest was reset by itself: its last \
                     tick was 9\nFAILED\n";
        let failed = Verdict::Failed(End::Exit(101));
        let mishap =
            |not_booted, resets| Verdict::Mishap(Mishaps { not_booted, resets, crashes: 0 });
        assert_eq!(of(101, &format!("{boot}{}", result(1))), mishap(1, 0));
        assert_eq!(of(101, &format!("{boot}{reset}{}", result(2))), mishap(1, 1));
        for other in [
            "RAM: Different",
            "9 ticks were seen twice: the guest ran in two places",
            "the guest was reset, and that may be a move's fault (2 resets): its last tick was 9",
            "the guest says Checked { pages: 1, wrong: 1 }",
        ] {
            let other = format!("test c ... Error: {other}\nFAILED\n");
            assert_eq!(of(101, &format!("{other}{}", result(1))), failed);
            assert_eq!(of(101, &format!("{boot}{reset}{other}{}", result(3))), failed);
        }
        assert_eq!(of(134, boot), Verdict::Failed(End::Exit(134)), "the harness itself ended");
    }

    #[test]
    fn a_machine_that_crashed_does_not_hide_a_test_that_failed() {
        let of = |text: &str| verdict(&Answer { end: End::Machine, text: text.into() });
        let mishap = |resets| Verdict::Mishap(Mishaps { not_booted: 0, resets, crashes: 1 });
        assert_eq!(of("test a ... ok\ntest b ... "), mishap(0));
        let reset =
            "test a ... Error: the guest was reset by itself: its last tick was 9\nFAILED\n";
        assert_eq!(of(reset), mishap(1));
        for other in ["Error: RAM: Different\n", "thread 'b' panicked at x.rs:\n", "FAILED\n"] {
            assert_eq!(of(&format!("test b ... {other}")), Verdict::Failed(End::Machine));
            let both = of(&format!("{reset}test b ... {other}"));
            assert_eq!(both, Verdict::Failed(End::Machine), "{other}");
        }
    }

    #[test]
    fn a_skipped_or_missing_test_is_not_a_passed_one() {
        assert_eq!(of(0, "running 1 test\ntest a ... ok\n"), Verdict::Passed);
        assert_eq!(of(0, "running 1 test\nskipped: no root\ntest a ... ok\n"), Verdict::Skipped);
        assert_eq!(of(0, "running 0 tests\n"), Verdict::None);
    }
}
