//! Whether the guest runs, where it runs, and whether it is whole.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sterna_testkit::lab::GUEST_ADDRESS;
use sterna_testkit::net::Host;
use sterna_testkit::probe::{Told, UdpEcho, Window};
use sterna_testkit::recorder::{Command, Line};

use super::{GUEST, LIMIT, World, until};

/// How long the guest is watched for answers at a time.
const WATCH: Duration = Duration::from_millis(300);
/// Ticks that must come anew before the guest is taken to run.
const NEW_TICKS: usize = 200;
/// How long one answer to `check` is waited for before it is asked again: an overfull console may
/// have lost it.
const CHECK_PATIENCE: Duration = Duration::from_secs(30);

impl World {
    /// Follows the console of a guest that is on a host.
    pub(crate) fn follow(&mut self, host: Host) -> Result<()> {
        self.following.remove(&host);
        self.lab.follow_console(host, GUEST, &self.console)
    }

    /// Follows the console of the guest that is about to come to a host.
    pub(crate) fn follow_arrival(&mut self, host: Host) {
        if self.following.remove(&host).is_some() {
            // One that looked just now must not find the console as well: it would read it twice.
            std::thread::sleep(WATCH);
        }
        let following = self.lab.follow_arrival(host, GUEST, &self.console);
        self.following.insert(host, following);
    }

    /// Waits until the guest runs on this host, by its agent, its own ticks and its answers, and
    /// nowhere else: no other hypervisor exists.
    pub(crate) fn runs_only_on(&self, host: Host) -> Result<()> {
        self.becomes(host, "running")?;
        for other in self.lab.hosts().iter().filter(|other| **other != host) {
            self.becomes_empty(*other)?;
        }
        ensure!(self.qemus(host)?.len() == 1, "hypervisors on {}: not one", host.name());
        self.is_grouped(host)?;
        self.runs_on_what_was_asked_for(host)?;
        self.ticks_and_answers()
    }

    /// Waits until new ticks come and the guest answers over the network.
    pub(crate) fn ticks_and_answers(&self) -> Result<()> {
        let before = self.ticks();
        self.console
            .wait_for_ticks(before + NEW_TICKS, LIMIT)
            .with_context(|| format!("the guest stands still{}", self.told()))?;
        until("an answer over the network", || Ok(self.answers()?.then_some(())))
    }

    /// Whether the guest does nothing: no tick comes and no datagram is answered.
    pub(crate) fn stands_still(&self) -> Result<()> {
        let before = self.ticks();
        ensure!(!self.answers()?, "the guest answers while it must stand still");
        let ticks = self.ticks() - before;
        ensure!(ticks == 0, "{ticks} ticks of a guest that must stand still");
        Ok(())
    }

    fn answers(&self) -> Result<bool> {
        let echo = UdpEcho::start(self.lab.topology()?.client(), GUEST_ADDRESS, UdpEcho::PERIOD)?;
        std::thread::sleep(WATCH);
        let log = echo.finish()?;
        Ok(log.exchanges.iter().any(|exchange| exchange.answered.is_some()))
    }

    fn ticks(&self) -> usize {
        self.console.ticks().samples().len()
    }

    /// Lets the guest, which must be on this host, check all its memory, and looks at all it ever
    /// said: no wrong byte, no moment that it lived through twice, no second beginning.
    pub(crate) fn nothing_is_wrong(&self, host: Host) -> Result<()> {
        let line = self.checked(host)?;
        ensure!(matches!(line, Line::Checked { wrong: 0, .. }), "the guest says {line:?}");
        let complaints = self.console.complaints();
        ensure!(complaints.is_empty(), "the guest complains: {complaints:?}");
        // Last: a reset is told as one only where nothing else is wrong. And without more words, as
        // the KVM lane goes by the first.
        Ok(self.console.lived_once(&self.moves.moves())?)
    }

    fn checked(&self, host: Host) -> Result<Line> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let skip = self.console.lines().len();
            self.lab.type_line(host, GUEST, &Command::Check.to_string())?;
            let checked = |line: &Line| matches!(line, Line::Checked { .. });
            match self.console.wait_for(skip, CHECK_PATIENCE, checked) {
                Ok(line) => return Ok(line),
                Err(error) if Instant::now() > deadline => {
                    bail!("the guest does not answer: {error}{}", self.told())
                }
                Err(_) => {}
            }
        }
    }

    /// Tells the guest, which must be on this host, to do something, and waits for its answer.
    pub(crate) fn ask(
        &self,
        host: Host,
        command: Command,
        answer: impl Fn(&Line) -> bool,
    ) -> Result<Line> {
        let skip = self.console.lines().len();
        self.lab.type_line(host, GUEST, &command.to_string())?;
        self.console.wait_for(skip, LIMIT, answer)
    }

    /// What was heard of it and when it was moved, for whoever has to find out why a test failed.
    fn told(&self) -> Told {
        self.console.told(&self.moves.moves())
    }

    /// The longest time within a window in which the guest wrote no tick.
    pub(crate) fn tick_gap(&self, window: Window) -> Duration {
        self.console.ticks().longest_gap(window)
    }
}
