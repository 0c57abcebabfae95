//! A datagram to the guest each so often, and when each came back.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use sterna_guest::echo::PORT;

use super::{Window, longest_gap};
use crate::net::Namespace;

/// How long the receiver waits before it looks whether it shall stop.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long answers may come after the last datagram.
const LATEST_ANSWER: Duration = Duration::from_millis(500);

/// A running probe. It sends one numbered datagram per period, on absolute deadlines; a
/// deadline that was missed is left out.
#[derive(Debug)]
pub struct UdpEcho {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<Vec<(usize, Instant)>>,
}

/// One datagram and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// When it was sent.
    pub sent: Instant,
    /// When its first answer came, if one did.
    pub answered: Option<Instant>,
}

/// What a probe has seen, in the order of sending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EchoLog {
    /// All datagrams.
    pub exchanges: Vec<Exchange>,
}

impl UdpEcho {
    /// How often datagrams are sent where nothing else is said.
    pub const PERIOD: Duration = Duration::from_millis(1);

    /// Starts sending from a namespace to a guest's echo port, one datagram per period.
    ///
    /// # Errors
    /// If the namespace cannot be entered or gives no socket.
    pub fn start(client: &Namespace, guest: Ipv4Addr, period: Duration) -> Result<Self> {
        let address = SocketAddrV4::new(guest, PORT);
        let socket = client.run_inside(|| open(address))?.context("cannot open the echo socket")?;
        let socket = Arc::new(socket);
        let stop = Arc::new(AtomicBool::new(false));
        let sender = thread::spawn({
            let (socket, stop) = (Arc::clone(&socket), Arc::clone(&stop));
            move || send(&socket, period, &stop)
        });
        let receiver = thread::spawn({
            let stop = Arc::clone(&stop);
            move || receive(&socket, &stop)
        });
        Ok(Self { stop, sender, receiver })
    }

    /// Stops sending, waits half a second for late answers and returns what was seen.
    ///
    /// # Errors
    /// If a thread of the probe died.
    pub fn finish(self) -> Result<EchoLog> {
        self.stop.store(true, Ordering::Relaxed);
        let died = |_| anyhow!("a thread of the echo probe died");
        let sent = self.sender.join().map_err(died)?;
        let answers = self.receiver.join().map_err(died)?;
        Ok(EchoLog::from_records(&sent, &answers))
    }
}

impl EchoLog {
    fn from_records(sent: &[Instant], answers: &[(usize, Instant)]) -> Self {
        let mut exchanges: Vec<Exchange> =
            sent.iter().map(|&sent| Exchange { sent, answered: None }).collect();
        for &(number, at) in answers {
            if let Some(exchange) = exchanges.get_mut(number) {
                exchange.answered = Some(exchange.answered.map_or(at, |first| first.min(at)));
            }
        }
        Self { exchanges }
    }

    /// Returns the longest time within a window in which no answer came.
    #[must_use]
    pub fn longest_gap(&self, window: Window) -> Duration {
        longest_gap(self.exchanges.iter().filter_map(|exchange| exchange.answered), window)
    }

    /// Returns how many of the datagrams sent within a window were never answered.
    #[must_use]
    pub fn lost(&self, window: Window) -> usize {
        self.sent_within(window).filter(|exchange| exchange.answered.is_none()).count()
    }

    /// Returns the round trips of the datagrams sent within a window, the shortest first.
    #[must_use]
    pub fn round_trips(&self, window: Window) -> Vec<Duration> {
        let trip = |exchange: &Exchange| Some(exchange.answered? - exchange.sent);
        let mut trips: Vec<Duration> = self.sent_within(window).filter_map(trip).collect();
        trips.sort_unstable();
        trips
    }

    fn sent_within(&self, window: Window) -> impl Iterator<Item = &Exchange> {
        self.exchanges.iter().filter(move |exchange| window.contains(exchange.sent))
    }
}

fn open(guest: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(guest)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends until told to stop; returns when each number was sent.
fn send(socket: &UdpSocket, period: Duration, stop: &AtomicBool) -> Vec<Instant> {
    let mut sent = Vec::new();
    let mut deadline = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = u64::try_from(sent.len()).expect("a usize fits into 64 bits");
        sent.push(Instant::now());
        // What cannot be sent is a datagram lost, which is what this probe counts.
        let _lost = socket.send(&number.to_be_bytes());
        deadline += period;
        let now = Instant::now();
        while deadline <= now {
            deadline += period;
        }
        thread::sleep(deadline - now);
    }
    sent
}

/// Receives until told to stop and a while longer; returns when each number came.
fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Vec<(usize, Instant)> {
    let mut answers = Vec::new();
    let mut end = None;
    let mut datagram = [0; 8];
    while end.is_none_or(|end| Instant::now() < end) {
        // All else: foreign datagrams, timeouts, refusals of a guest that is not there yet.
        if let Ok(8) = socket.recv(&mut datagram) {
            let number = usize::try_from(u64::from_be_bytes(datagram)).ok();
            answers.extend(number.map(|number| (number, Instant::now())));
        }
        if end.is_none() && stop.load(Ordering::Relaxed) {
            end = Some(Instant::now() + LATEST_ANSWER);
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of one datagram per millisecond, from pairs of number and millisecond of the answer.
    fn log(count: u64, answers: &[(usize, u64)]) -> (EchoLog, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let at = move |milliseconds: u64| start + Duration::from_millis(milliseconds);
        let sent: Vec<Instant> = (0..count).map(at).collect();
        let answers: Vec<(usize, Instant)> =
            answers.iter().map(|&(number, milliseconds)| (number, at(milliseconds))).collect();
        (EchoLog::from_records(&sent, &answers), at)
    }

    #[test]
    fn losses_are_counted_by_the_time_of_sending() {
        let (log, at) = log(10, &[(0, 1), (1, 2), (5, 9), (9, 10)]);
        assert_eq!(log.lost(Window::new(at(0), at(10))), 6);
        assert_eq!(log.lost(Window::new(at(2), at(5))), 3);
        assert_eq!(log.lost(Window::new(at(5), at(6))), 0);
    }

    #[test]
    fn the_gap_is_between_answers_and_not_between_datagrams() {
        let (log, at) = log(10, &[(0, 1), (1, 2), (2, 8), (3, 9), (9, 10)]);
        assert_eq!(log.longest_gap(Window::new(at(0), at(11))), Duration::from_millis(6));
    }

    #[test]
    fn an_answer_that_comes_twice_counts_once_and_a_number_never_sent_not_at_all() {
        let (log, at) = log(2, &[(0, 5), (0, 3), (7, 4)]);
        let window = Window::new(at(0), at(2));
        assert_eq!(log.round_trips(window), [Duration::from_millis(3)]);
        assert_eq!(log.lost(window), 1);
    }
}
