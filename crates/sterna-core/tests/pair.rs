//! Both machines in one thread under virtual time, from one seed, while everything goes wrong.
//!
//! A seed decides a plan (settings, weather, faults), and with it a run: messages are lost, late
//! and repeated, the link is cut, agents crash between any two events and come back, hypervisors
//! die, journals and hypervisors fail at what they are asked, operators cancel. The guest writes
//! all the while, and is moved again, and back, while messages of earlier attempts are still on
//! their way. `checkers` says what must hold, `follower` that what is seen is what the protocol of `commitment`
//! allows, whose every state is looked at there; `canaries` breaks rules on purpose to prove that it
//! would be noticed; `coverage` that every ending and every fault at every stage has come by.
//!
//! `STERNA_SEEDS=n` runs that many seeds, `STERNA_SEED=s` one, with a trace of what happened.
//!
//! **What the model takes for granted**, and the agent must therefore provide: a journal that
//! keeps its order; effects of one machine on one hypervisor that take place in the order in which
//! they were asked for; one move of a guest at a time on each host; and that an attempt which a
//! later one has overtaken is not taken up again (`World::effective_destination_record`, and
//! `World::restart`).

#[path = "pair/canaries.rs"]
mod canaries;
#[path = "pair/checkers.rs"]
mod checkers;
#[path = "pair/coverage.rs"]
mod coverage;
#[path = "pair/destination_side.rs"]
mod destination_side;
#[path = "pair/faults.rs"]
mod faults;
#[path = "commitment/follower.rs"]
mod follower;
#[path = "pair/following.rs"]
mod following;
#[path = "pair/guest.rs"]
mod guest;
#[path = "commitment/model.rs"]
mod model;
#[path = "pair/native.rs"]
mod native;
#[path = "pair/network.rs"]
mod network;
#[path = "pair/plan.rs"]
mod plan;
#[path = "pair/source_copy.rs"]
mod source_copy;
#[path = "pair/source_side.rs"]
mod source_side;
#[path = "pair/source_work.rs"]
mod source_work;
#[path = "pair/world.rs"]
mod world;

use crate::coverage::Coverage;
use crate::world::{Judges, Trace, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds of an ordinary run.
const SEEDS: u64 = 500_000;

/// Seeds from which on everything must have come by; what is rarest does about 30 times in these.
const SEEDS_THAT_COVER: u64 = SEEDS;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number of seeds, or a seed"))
}

/// Whether a seed's run broke a rule, or panicked.
fn fails(seed: u64, coverage: &mut Coverage) -> bool {
    let own = std::mem::take(coverage);
    match catch_unwind(AssertUnwindSafe(|| run(seed, None, Judges::All, Trace::Off, own))) {
        Ok(report) => {
            *coverage = report.coverage;
            report.violation.is_some()
        }
        Err(_) => true,
    }
}

/// Runs a seed again, and says all about it.
fn explain(seed: u64) -> ! {
    let report = run(seed, None, Judges::All, Trace::On, Coverage::default());
    println!("{}", report.trace.join("\n"));
    match report.violation {
        Some(violation) => panic!("STERNA_SEED={seed}: {violation:?}"),
        None => panic!("STERNA_SEED={seed} failed, and did not when it was run again"),
    }
}

#[test]
fn no_fault_at_any_step_duplicates_loses_or_corrupts_the_guest() {
    if let Some(seed) = number("STERNA_SEED") {
        let report = run(seed, None, Judges::All, Trace::On, Coverage::default());
        println!("{}", report.trace.join("\n"));
        assert_eq!(report.violation, None, "STERNA_SEED={seed}");
        return;
    }
    let seeds = number("STERNA_SEEDS").unwrap_or(SEEDS);
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let total = Mutex::new(Coverage::default());
    let work = || {
        let mut coverage = Coverage::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.min(failed.load(Ordering::Relaxed)) {
                break;
            }
            if fails(seed, &mut coverage) {
                failed.fetch_min(seed, Ordering::Relaxed);
            }
        }
        total.lock().expect("no thread panics with it").merge(&coverage);
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner();
    if failed != u64::MAX {
        explain(failed);
    }
    let coverage = total.into_inner().expect("no thread panicked");
    println!("{coverage}");
    if seeds >= SEEDS_THAT_COVER {
        assert_eq!(coverage.missing(), Vec::<String>::new(), "never came by");
    }
}
