//! Two hosts with a real guest that moves between them, and everything that watches it.
//!
//! A [`World`] is made for one test. It has two agents in network namespaces, the flight recorder
//! as guest, and one console log for both hosts. Whatever a test does to hosts, link and
//! hypervisors, [`World::runs_only_on`] and [`World::nothing_is_wrong`] say what must hold
//! afterwards: the guest runs in one place, it never ran in two, and no byte of it is wrong.

mod fault;
mod host;
mod journey;
mod watch;

pub(crate) use journey::{PRE_COPY, Underway};

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sterna_testkit::image::GuestImage;
use sterna_testkit::lab::{Following, GuestPlan, Hosts, Lab};
use sterna_testkit::net::{Host, LinkRate, namespaces_allowed};
use sterna_testkit::probe::{ConsoleLog, MoveLog};
use sterna_testkit::recorder::{Bytes, Line, Rate, Workload};
use tempfile::TempDir;

/// The program under test.
pub(crate) const STERNA: &str = env!("CARGO_BIN_EXE_sterna");
/// Name of the guest.
pub(crate) const GUEST: &str = "web";
/// Within this time everything happens that must happen: it bounds a test that fails. A guest that
/// is emulated twice takes a minute to boot.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);
/// How often is looked whether something has happened.
const INTERVAL: Duration = Duration::from_millis(30);

/// Hosts, link, guest and probes of one test.
pub(crate) struct World {
    following: BTreeMap<Host, Following>,
    pub(crate) console: ConsoleLog,
    moves: MoveLog,
    pub(crate) lab: Lab,
    folder: TempDir,
}

/// A guest of 256 MiB of which half is in use: small, so that many tests can have one.
pub(crate) fn small_guest() -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(128))
        .rewrite(Bytes::mebibytes(16), Rate::mebibytes_per_second(4))
        .check_at_most(Rate::mebibytes_per_second(20));
    GuestPlan::new(GUEST, Bytes::mebibytes(256), workload)
}

/// A guest large enough that hashing its RAM takes many times as long as noticing that it begins.
pub(crate) fn large_guest() -> GuestPlan {
    let workload = Workload::new(Bytes::mebibytes(560))
        .rewrite(Bytes::mebibytes(16), Rate::mebibytes_per_second(4))
        .check_at_most(Rate::mebibytes_per_second(20));
    GuestPlan::new(GUEST, Bytes::mebibytes(768), workload)
}

/// Looks again and again until something is there.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {LIMIT:?}");
        }
        std::thread::sleep(INTERVAL);
    }
}

impl World {
    /// Makes hosts whose namespaces carry `prefix`, without a guest; nothing, with the reason
    /// printed, where that is not possible.
    pub(crate) fn empty(prefix: &str) -> Result<Option<Self>> {
        Self::of(prefix, Hosts::Two, &[])
    }

    /// As [`World::empty`], with as many hosts, and options of their agents.
    pub(crate) fn of(prefix: &str, hosts: Hosts, agent_options: &[&str]) -> Result<Option<Self>> {
        if let Err(why) = possible() {
            eprintln!("skipped: {why:#}");
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        let network = (hosts, LinkRate::Unshaped);
        // Any scenario can be tried with guests that have users of their own.
        let users = std::env::var("STERNA_TEST_GUEST_UIDS").ok();
        let users = users.as_deref().filter(|_| !agent_options.contains(&"--guest-uids"));
        let users = users.map(|users| ["--guest-uids", users]);
        let tracker = sterna_testkit::tracker::wanted().map(|tracker| ["--tracker", tracker]);
        let more =
            [&users, &tracker].map(|words| words.as_ref().map_or(&[][..], |words| &words[..]));
        let agent_options = &[agent_options, more[0], more[1]].concat();
        let lab = Lab::with(prefix, network, agent_options, (Path::new(STERNA), folder.path()))?;
        lab.make_taps()?;
        let (following, console, moves) = (BTreeMap::new(), ConsoleLog::new(), MoveLog::default());
        Ok(Some(Self { following, console, moves, lab, folder }))
    }

    /// As [`World::empty`], with a guest that works on host a.
    pub(crate) fn with(prefix: &str, plan: &GuestPlan) -> Result<Option<Self>> {
        let Some(mut world) = Self::empty(prefix)? else { return Ok(None) };
        world.start(plan)?;
        Ok(Some(world))
    }

    /// Starts a guest on host a, and waits until it works.
    pub(crate) fn start(&mut self, plan: &GuestPlan) -> Result<()> {
        self.lab.start_guest(Host::A, plan)?;
        self.follow(Host::A)?;
        let begun = |line: &Line| matches!(line, Line::Ready { .. } | Line::Error(_));
        let line = self.console.wait_for(0, LIMIT, begun).context("the guest did not boot")?;
        ensure!(matches!(line, Line::Ready { .. }), "the guest does not begin: {line:?}");
        self.console.wait_for_ticks(100, LIMIT)?;
        self.is_confined(Host::A)?;
        self.runs_on_what_was_asked_for(Host::A)
    }

    /// A folder of the test's own.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn possible() -> Result<()> {
    namespaces_allowed()?;
    GuestImage::find()?;
    let qemu = std::process::Command::new("qemu-system-x86_64").arg("--version").output();
    qemu.context("no qemu-system-x86_64").map(drop)
}
