//! The matrix of the pool of algorithms: how much a guest writes, over how much of its memory, and
//! how unevenly.
//!
//! A write rewrites 64 bytes of a page, and checking is held to a rate, so that an emulated guest
//! has the time to write as many pages as the ratio asks for; each write counts as a page, as it
//! does for whoever has to send it. What the guest really wrote is measured and stands in the
//! table: an emulated one that shares its processors falls short of the greater ratios of 1 Gbit/s,
//! and reaches them where `--link` is slower. Work that falls due while a guest stands still is never caught up with, so lost work is
//! lost all the same; only a guest that is a little slower may lose none.

use anyhow::{Context, Result, ensure};
use sterna_testkit::net::LinkRate;
use sterna_testkit::recorder::{Bytes, Mix, Rate, Share, Workload, WriteSize};

use super::scenario::{Scenario, ScenarioArgs};

/// Words of 8 bytes that a write rewrites.
const WRITE: WriteSize = WriteSize::Words(8);
/// How much memory the guest checks at most, which is the work that it can lose. Of an emulated
/// processor's second 23 MiB of it took all, as did 170 MiB of writes at random.
const CHECKS_MIB_PER_S: u32 = 4;
const PAGE_BYTES: u64 = 4096;

/// Which part of the matrix is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct PoolArgs {
    /// What the guest writes, over what the link carries; may be repeated; 0.1, 0.3, 0.6, 0.9, 1.2
    /// and 2 if not given, in `working-set` 1.2 and 2
    #[arg(long = "ratio")]
    ratios: Vec<f64>,
    /// Percents of the memory in use that are rewritten; may be repeated; 5, 20 and 60 if not given,
    /// in `working-set` 20 and 60
    #[arg(long = "set")]
    sets: Vec<u64>,
}

/// What a suite measures where nothing else is asked for.
pub(crate) struct Matrix {
    ratios: &'static [f64],
    sets: &'static [u64],
    /// RAM and memory in use.
    sizes: (&'static str, &'static str),
}

impl Matrix {
    pub(crate) const POOL: Self =
        Self { ratios: &[0.1, 0.3, 0.6, 0.9, 1.2, 2.0], sets: &[5, 20, 60], sizes: ("1G", "512M") };
    /// Guests that no round helps, for they are whose pages are worth holding back, and small, so
    /// that most of a recording is not the first round.
    pub(crate) const WORKING_SET: Self =
        Self { ratios: &[1.2, 2.0], sets: &[20, 60], sizes: ("256M", "128M") };
}

impl PoolArgs {
    /// All scenarios over a link, of guests with the RAM and the memory in use of `sizes`; those of
    /// `matrix` where no others were chosen.
    ///
    /// # Errors
    /// If the link has no rate, or a selector makes no sense.
    pub(crate) fn scenarios(
        &self,
        matrix: &Matrix,
        sizes: &ScenarioArgs,
        link: LinkRate,
    ) -> Result<Vec<Scenario>> {
        let LinkRate::BitsPerSecond(bits) = link else {
            anyhow::bail!(
                "the pool's guests write a share of what the link carries: it needs a rate"
            );
        };
        let (memory, fill) = sizes.sizes(matrix.sizes);
        let memory: Bytes = memory.parse().context("--ram")?;
        let fill: Bytes = fill.parse().context("--fill")?;
        let sets = if self.sets.is_empty() { matrix.sets } else { &self.sets };
        let ratios = if self.ratios.is_empty() { matrix.ratios } else { &self.ratios };
        let localities = match &sizes.localities[..] {
            [] => &[Share::NONE, Share::new(0.9).expect("a share")],
            chosen => chosen,
        };
        let mut scenarios = Vec::new();
        for &locality in localities {
            for &percent in sets {
                ensure!((1..=100).contains(&percent), "--set {percent} is not 1 to 100 percent");
                let pages = fill.0 * percent / 100 / PAGE_BYTES;
                for &ratio in ratios {
                    ensure!((0.0..=100.0).contains(&ratio), "--ratio {ratio} is not 0 to 100");
                    let workload = Workload::new(fill)
                        .mix("zero:0,text:100,random:0,dup:0".parse::<Mix>()?)
                        .write_size(WRITE)
                        .check_at_most(Rate::mebibytes_per_second(CHECKS_MIB_PER_S))
                        .locality(locality)
                        .rewrite(Bytes(pages * PAGE_BYTES), share_of(bits, ratio));
                    let name = format!(
                        "writes {ratio} of the link over {percent} % of {fill}, locality {locality}"
                    );
                    scenarios.push(Scenario::new(&name, memory, workload));
                }
            }
        }
        Ok(scenarios)
    }
}

/// Bytes a second that are `ratio` of a link's bits a second.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100 of a link")]
fn share_of(bits: u64, ratio: f64) -> Rate {
    Rate((bits as f64 / 8.0 * ratio) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        pool: PoolArgs,
        #[command(flatten)]
        sizes: ScenarioArgs,
    }

    fn scenarios(words: &[&str]) -> Vec<Scenario> {
        let words = Words::parse_from([&["bench"], words].concat());
        words.pool.scenarios(&Matrix::POOL, &words.sizes, LinkRate::megabits(1000)).unwrap()
    }

    #[test]
    fn the_whole_matrix_has_every_ratio_set_and_locality_once() {
        let mut names: Vec<String> = scenarios(&[]).into_iter().map(|one| one.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 6 * 3 * 2);
    }

    #[test]
    fn selectors_leave_one_scenario_that_the_guest_understands() {
        let words = ["--ratio", "0.5", "--set", "20", "--locality", "0.9", "--fill", "100M"];
        let [one] = &scenarios(&words)[..] else { panic!("one scenario") };
        let line = one.workload.command_line().unwrap();
        for word in ["ws=20M", "rate=62500000", "locality=0.9", "write=word", "stride=64"] {
            assert!(line.contains(&format!("sterna.{word}")), "{word} is not in {line}");
        }
    }

    #[test]
    fn what_is_recorded_are_few_and_small_guests_unless_others_are_chosen() {
        let recorded = |words: &[&str]| {
            let words = Words::parse_from([&["bench"], words].concat());
            let link = LinkRate::megabits(150);
            words.pool.scenarios(&Matrix::WORKING_SET, &words.sizes, link).unwrap()
        };
        let scenarios = recorded(&[]);
        assert_eq!((scenarios.len(), scenarios[0].memory), (2 * 2 * 2, Bytes::mebibytes(256)));
        let [one, _uneven] = &recorded(&["--ratio", "1", "--set", "5", "--ram", "1G"])[..] else {
            panic!("one ratio and set, both localities")
        };
        assert_eq!(one.memory, Bytes::mebibytes(1024));
    }

    #[test]
    fn a_ratio_to_a_link_without_a_rate_is_refused() {
        let words = Words::parse_from(["bench"]);
        assert!(words.pool.scenarios(&Matrix::POOL, &words.sizes, LinkRate::Unshaped).is_err());
    }

    #[test]
    fn a_working_set_of_more_than_all_is_refused() {
        let words = Words::parse_from(["bench", "--set", "101"]);
        assert!(
            words.pool.scenarios(&Matrix::POOL, &words.sizes, LinkRate::megabits(1000)).is_err()
        );
    }
}
