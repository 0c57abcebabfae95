//! What is told of a move: its progress while it goes, its receipt when it has ended.

use super::{BEAT, Driver};
use crate::interface;
use crate::pages::Followed;
use std::time::{Duration, Instant};
use sterna_core::receipt::{Downtime, Ending, Following, Receipt, Round, WireBytes};
use sterna_core::source::Source;
use sterna_page::PAGE_SIZE_BYTES;
use sterna_proto::message::Rest;

impl Driver<'_> {
    pub(super) fn show(&self, machine: &Source) {
        let rounds = machine.rounds();
        let done_pages = self.shared.pages_done();
        let ram_pages = self.request.offer.layout.pages().0;
        let last = rounds.last();
        let dirty = last.map_or(0, |round| rate(round.dirtied.bytes(), round.took));
        let sent: u64 = rounds.iter().map(|round| round.bytes).sum();
        self.watch.update(|progress| {
            let elapsed = self.began.elapsed();
            let sent_now = sent.max(self.meter.sent());
            let since = elapsed.saturating_sub(progress.elapsed);
            if since >= BEAT {
                let new = sent_now.saturating_sub(progress.sent_bytes);
                let old = progress.link_bytes_per_second;
                progress.link_bytes_per_second = (old * 7 + rate(new, since) * 3) / 10;
                progress.elapsed = elapsed;
                progress.sent_bytes = sent_now;
            }
            progress.stage = machine.stage().into();
            progress.method = machine.chosen().map(|method| method.to_string());
            progress.round = u32::try_from(rounds.len()).unwrap_or(u32::MAX);
            progress.ram_done_bytes = done_pages * PAGE_SIZE_BYTES;
            let again: u64 = rounds.iter().map(|round| round.dirtied.bytes()).sum();
            let total = ram_pages * PAGE_SIZE_BYTES + again;
            progress.ram_total_bytes = total.max(progress.ram_done_bytes);
            progress.dirty_bytes_per_second = dirty;
            progress.vcpus = machine.vcpus();
            let left = progress.ram_total_bytes - progress.ram_done_bytes;
            progress.eta = eta(left, progress.link_bytes_per_second, dirty);
        });
    }

    pub(super) fn receipt(&self, machine: &Source, ending: Ending) -> Receipt {
        let offer = &self.request.offer;
        let rounds: Vec<Round> = machine.rounds().to_vec();
        let downtime = self.downtime(machine);
        let state_bytes = downtime.map_or(0, |d| d.state_bytes);
        let following = self.following(machine);
        Receipt {
            guest: offer.name.clone(),
            attempt: self.request.attempt,
            source: self.request.source_name.clone(),
            destination: self.request.destination_name.clone(),
            ending,
            algorithm: self.request.algorithm,
            choices: machine.choices(),
            native_mode: offer.native,
            stopped: machine.stopped(),
            limits: self.request.limits,
            streams: self.streams,
            vcpus: self.request.surroundings.vcpus,
            ram_bytes: offer.layout.pages().bytes(),
            started_unix_ms: u64::try_from(self.began_unix.as_millis()).unwrap_or(u64::MAX),
            total: self.began.elapsed(),
            negotiation: self.negotiation,
            ballooning: self.shared.ballooning(),
            coders: self.shared.coders(),
            tracking: self.shared.tracking(),
            downtime,
            wire: WireBytes {
                payload: rounds.iter().map(|round| round.bytes).sum::<u64>()
                    + state_bytes
                    + following.map_or(0, |following| following.bytes),
                sockets: self.meter.sent(),
                interface: self.interface.as_ref().and_then(interface::Counter::sent),
            },
            rounds,
            following,
            ram_digest: machine.ram_check(),
        }
    }

    /// What followed the guest, if it was handed over with pages owed.
    fn following(&self, machine: &Source) -> Option<Following> {
        let active = self.active.filter(|_| machine.rest() == Rest::Owed)?;
        let Followed { pages, bytes, wanted } = self.shared.followed();
        let waits = machine.arrival().map(|arrival| arrival.waits).unwrap_or_default();
        let until = self.complete.unwrap_or_else(Instant::now);
        Some(Following { took: until - active, pages, bytes, wanted, waits })
    }

    fn downtime(&self, machine: &Source) -> Option<Downtime> {
        let times = self.shared.times();
        let stopped = times.stopped?;
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        Some(Downtime {
            total: self.active.map_or_else(|| stopped.elapsed(), |at| at - stopped),
            pause_lead: times.pause_lead,
            pause: times.pause,
            copy: times.copy,
            save: times.save,
            digest: times.digest,
            ready: between(times.sent, self.ready),
            // Both sides hash at the same time; the later one decides when the source commits.
            commit: between(self.ready.max(self.hashed), self.active),
            destination: machine.activation(),
            state_bytes: times.state_bytes,
        })
    }
}

fn rate(bytes: u64, time: Duration) -> u64 {
    let micros = time.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

/// Time left if the guest goes on writing as it does: the geometric sum of the rounds to come.
fn eta(left: u64, link: u64, dirty: u64) -> Option<Duration> {
    let gain = link.checked_sub(dirty).filter(|gain| *gain > 0)?;
    Some(Duration::from_millis(left.saturating_mul(1000) / gain))
}
