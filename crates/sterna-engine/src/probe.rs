//! A short trial of the link to a host, before a guest is moved there.
//!
//! Over as many connections as the move will have, the source sends chunks for half a second, and the
//! destination answers each with one byte once it has all of it. The rate is that of the answers, from
//! a quarter of the time on: by then the connections have found their speed. It includes what TLS takes
//! of both processors, as the move will.

use crate::identity::Identity;
use crate::link::{Link, LinkError, Meter, split};
use crate::words;
use rustls::pki_types::ServerName;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use sterna_proto::limits::STREAMS_MAX;
use sterna_proto::message::{Reason, ReasonCode};
use sterna_proto::preamble::Role;

/// Bytes that are answered at once.
const CHUNK_BYTES: usize = 64 << 10;

/// How long the source sends.
const TRIAL: Duration = Duration::from_millis(500);

/// How long the source waits for answers after that: on a link that carries less than a chunk a
/// second no move would end.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a destination lets itself be tried over one connection.
const TRIAL_MAX: Duration = Duration::from_secs(10);

/// What the link was found to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkTrial {
    /// Bytes a second, before encryption, over all connections together.
    pub bytes_per_second: f64,
    /// A round trip, in microseconds, with what the peer's processor took.
    pub round_trip_us: u64,
}

/// Tries the link to the agent that listens at `to`, over `streams` connections.
///
/// # Errors
/// When the host cannot be reached, is no agent of this cluster, or does not answer.
pub fn try_link(
    to: SocketAddr,
    to_name: &ServerName<'static>,
    identity: &Identity,
    streams: u16,
) -> Result<LinkTrial, Reason> {
    let lost = |error: &LinkError| {
        let detail = format!("the link could not be tried: {}", words::chain(error));
        Reason::new(ReasonCode::LinkLost, detail)
    };
    let meter = Meter::default();
    let connect = |_| Link::connect(to, to_name, identity, Role::Probe, &meter);
    let links: Result<Vec<Link>, LinkError> =
        (0..streams.clamp(1, STREAMS_MAX)).map(connect).collect();
    let links = links.map_err(|error| lost(&error))?;
    let round_trip = links.iter().map(|link| link.round_trip).min().unwrap_or_default();
    let began = Instant::now();
    let answers: Result<Vec<Vec<Duration>>, LinkError> = thread::scope(|scope| {
        let trials: Vec<_> =
            links.into_iter().map(|link| scope.spawn(move || try_one(link, began))).collect();
        let done = trials.into_iter().map(|trial| {
            trial.join().unwrap_or_else(|_| Err(io::Error::other("a trial failed").into()))
        });
        done.collect()
    });
    let mut answers: Vec<Duration> =
        answers.map_err(|error| lost(&error))?.into_iter().flatten().collect();
    answers.sort_unstable();
    let chunks_per_second = rate(&answers).ok_or_else(|| lost(&no_answer()))?;
    Ok(LinkTrial {
        bytes_per_second: chunks_per_second * CHUNK_BYTES as f64,
        round_trip_us: u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX),
    })
}

fn no_answer() -> LinkError {
    io::Error::new(io::ErrorKind::TimedOut, "the destination does not answer").into()
}

/// Sends chunks over one connection; returns when each was answered, since `began`.
fn try_one(link: Link, began: Instant) -> Result<Vec<Duration>, LinkError> {
    let (mut out, mut back) = split(link, Some(PATIENCE))?;
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        let ending = out.ending()?;
        scope.spawn(|| {
            // Nothing that a link could make smaller.
            let mut chunk = vec![0; CHUNK_BYTES];
            rand::fill(&mut chunk[..]);
            while !enough.load(Ordering::Relaxed) {
                if out.send(&chunk).is_err() {
                    // It ends the answers, too.
                    break;
                }
            }
        });
        let mut answers = Vec::new();
        let mut byte = [0];
        let result = loop {
            if let Err(error) = back.read_exact(&mut byte) {
                break if answers.is_empty() { Err(error.into()) } else { Ok(()) };
            }
            let now = began.elapsed();
            answers.push(now);
            // One more than the first, so that there is a rate.
            if now >= TRIAL && answers.len() > 1 {
                break Ok(());
            }
        };
        enough.store(true, Ordering::Relaxed);
        ending.shut_down();
        result.map(|()| answers)
    })
}

/// Answers a second, from a quarter of the time on; from the first on, where there are few.
fn rate(answers: &[Duration]) -> Option<f64> {
    let last = *answers.last()?;
    let settled: Vec<Duration> = answers.iter().copied().filter(|at| *at * 4 >= last).collect();
    let counted = if settled.len() > 2 { &settled[..] } else { answers };
    let (first, more) = (*counted.first()?, counted.len() - 1);
    let took = last.saturating_sub(first).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let more = more as f64;
    (took > 0.0).then(|| more / took)
}

/// Answers the chunks of a trial until it ends, or has taken too long.
pub(crate) fn answer(mut link: Link) {
    let until = Instant::now() + TRIAL_MAX;
    let mut chunk = vec![0; CHUNK_BYTES];
    while Instant::now() < until {
        let answered = link
            .socket
            .set_read_limit(TRIAL_MAX)
            .and_then(|()| link.read_exact(&mut chunk))
            .and_then(|()| link.write_all(&[1]))
            .and_then(|()| link.flush());
        if answered.is_err() {
            // The source has heard enough, or is gone: the same to us.
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(times: &[u64]) -> Vec<Duration> {
        times.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn the_rate_is_that_of_connections_that_have_found_their_speed() {
        let mut answers = millis(&[100, 120]);
        answers.extend((200..=500).map(Duration::from_millis));
        let found = rate(&answers).unwrap();
        assert!((found - 1000.0).abs() < 1.0, "without the first answers: {found}");
    }

    #[test]
    fn a_slow_link_is_told_by_the_few_answers_that_there_are() {
        assert_eq!(rate(&millis(&[600, 1100])), Some(2.0));
        assert_eq!(rate(&millis(&[600])), None);
        assert_eq!(rate(&[]), None);
    }
}
