//! The network between the two hosts: control connections and page streams.
//!
//! A control connection delivers in order, like TCP. A lost frame is one that vanished with nobody
//! noticing until a later one shows the gap; a repeated one comes again later. A cut ends delivery
//! at once, while each side finds out in its own time. What a closed end had sent before still
//! arrives, unless the other end has closed meanwhile.

use crate::guest::{Hypervisor, Pages};
use crate::plan::Role;
use crate::world::{Action, Broken, World};
use sterna_core::{destination, source};
use sterna_proto::control::{Arrival, Numbering};
use sterna_proto::message::{Reason, ReasonCode, ToDestination, ToSource};

/// What travels on a control connection.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    ToDestination(ToDestination),
    ToSource(ToSource),
    DeviceState(u64),
}

/// One end of a control connection.
#[derive(Debug, Default)]
pub(crate) struct End {
    pub(crate) open: bool,
    sent: Numbering,
    received: Numbering,
    /// When the last frame towards this end arrives.
    last_arrival: u64,
    /// Frames this end's machine was handed; a checker's own count.
    pub(crate) handed: u64,
}

/// A control connection of one attempt.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) attempt: usize,
    /// Indexed by [`Role::index`].
    pub(crate) ends: [End; 2],
    cut: bool,
}

/// What travels on a page stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Item {
    Page {
        page: usize,
        content: u64,
    },
    /// These are not sent now; they follow.
    Owed(Pages),
    Mark(u32),
    /// The registers, with which hypervisors end what they copy among themselves.
    NativeEnd(u64),
    /// A page that was owed.
    Follow {
        page: usize,
        content: u64,
    },
}

/// The page connections of one attempt, taken as one.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) attempt: usize,
    pub(crate) source_life: u64,
    pub(crate) destination_life: u64,
    pub(crate) broken: bool,
    last_arrival: u64,
}

fn link_lost() -> Reason {
    Reason::new(ReasonCode::LinkLost, "lost")
}

impl World {
    fn latency(&mut self) -> u64 {
        let base = self.random(20..300);
        if self.mishap(self.plan.weather.slow_message) {
            base + self.random(1_000..30_000)
        } else {
            base
        }
    }

    /// How long a side takes to find out that a connection is gone.
    fn detection(&mut self) -> u64 {
        let slow = self.random(0..3) == 0;
        self.random(if slow { 1_000..15_000 } else { 50..1_000 })
    }

    /// A new connection, if the network and the destination's agent let it come about.
    pub(crate) fn connect(&mut self, attempt: usize) -> Option<usize> {
        let destination = self.attempts[attempt].destination_host;
        if self.now < self.link_mended || !self.hosts[destination].up {
            return None;
        }
        let end = || End { open: true, ..End::default() };
        self.connections.push(Connection { attempt, ends: [end(), end()], cut: false });
        Some(self.connections.len() - 1)
    }

    /// Sends a frame from one end of a connection; nothing happens if that end is closed.
    pub(crate) fn send(&mut self, connection: Option<usize>, from: Role, frame: Frame) {
        let Some(index) = connection.filter(|c| self.connections[*c].ends[from.index()].open)
        else {
            return;
        };
        let number = self.connections[index].ends[from.index()].sent.number_next();
        let lost = self.mishap(self.plan.weather.lose_message);
        self.note(|| {
            let mark = if lost { "LOST " } else { "" };
            format!("c{index} {from:?} sends #{number} {mark}{}", brief(&frame))
        });
        if lost || self.connections[index].cut {
            return;
        }
        let to = from.other();
        let due = self.now + self.latency();
        let end = &mut self.connections[index].ends[to.index()];
        let due = due.max(end.last_arrival);
        end.last_arrival = due;
        if self.mishap(self.plan.weather.repeat_message) {
            let later = due + self.random(0..2_000);
            let frame = frame.clone();
            self.schedule(later, Action::Arrive { connection: index, to, number, frame });
        }
        self.schedule(due, Action::Arrive { connection: index, to, number, frame });
    }

    /// A frame has come to an end of a connection.
    pub(crate) fn arrive(&mut self, index: usize, to: Role, number: u64, frame: Frame) {
        let connection = &mut self.connections[index];
        let attempt = connection.attempt;
        let end = &mut connection.ends[to.index()];
        if connection.cut || !end.open {
            return;
        }
        match end.received.arrived(number) {
            Ok(Arrival::Next) => {}
            _ if self.broken == Some(Broken::NumberingOff) => {}
            Ok(Arrival::Repeated) => return,
            Err(_) => {
                self.note(|| format!("c{index} {to:?} sees a gap before #{number}"));
                self.close(index, to);
                self.link_down(index, to);
                return;
            }
        }
        let end = &mut self.connections[index].ends[to.index()];
        end.handed += 1;
        let handed = end.handed;
        self.check(handed == number, "frames are handed on in order, each once");
        match frame {
            Frame::ToDestination(message) => self.route_to_destination(index, attempt, message),
            Frame::ToSource(message) => {
                if self.attempts[attempt]
                    .source
                    .as_ref()
                    .is_some_and(|s| s.connection == Some(index))
                {
                    if self.broken == Some(Broken::ReleaseOnOwing)
                        && matches!(message, ToSource::Owing { .. })
                    {
                        let instance = self.attempts[attempt].source_instance;
                        self.instances[instance].hypervisor = Hypervisor::Gone;
                    }
                    self.step_source(attempt, source::Event::Message(message));
                }
            }
            Frame::DeviceState(registers) => self.state_arrived(index, attempt, registers),
        }
    }

    /// Closes one end; the other finds out after what is still on its way to it.
    pub(crate) fn close(&mut self, index: usize, role: Role) {
        let wait = self.detection();
        let connection = &mut self.connections[index];
        if !std::mem::replace(&mut connection.ends[role.index()].open, false) {
            return;
        }
        let other = &connection.ends[role.other().index()];
        let due = other.last_arrival.max(self.now + wait);
        if other.open {
            self.schedule(due, Action::PeerClosed { connection: index, role: role.other() });
        }
    }

    /// An end finds out that its connection is gone.
    pub(crate) fn peer_closed(&mut self, index: usize, role: Role) {
        let end = &mut self.connections[index].ends[role.index()];
        if std::mem::replace(&mut end.open, false) {
            self.link_down(index, role);
        }
    }

    fn link_down(&mut self, index: usize, role: Role) {
        let attempt = self.connections[index].attempt;
        match role {
            Role::Source => {
                let side = self.attempts[attempt].source.as_mut();
                if let Some(side) = side.filter(|s| s.connection == Some(index)) {
                    side.connection = None;
                    self.step_source(attempt, source::Event::LinkDown(link_lost()));
                }
            }
            Role::Destination => {
                let side = self.attempts[attempt].destination.as_mut();
                if let Some(side) = side.filter(|s| s.connection == Some(index)) {
                    side.connection = None;
                    self.step_destination(attempt, destination::Event::LinkDown(link_lost()));
                }
            }
        }
    }

    /// Nothing gets through any more on any connection, and new ones fail for a while.
    pub(crate) fn cut_link(&mut self) {
        for index in 0..self.connections.len() {
            self.connections[index].cut = true;
            for role in [Role::Source, Role::Destination] {
                let due = self.now + self.detection();
                if self.connections[index].ends[role.index()].open {
                    self.schedule(due, Action::PeerClosed { connection: index, role });
                }
            }
        }
        for stream in 0..self.streams.len() {
            self.break_stream(stream);
        }
        let mended = self.now + self.random(100..20_000);
        self.link_mended = mended.min(self.plan.faults_end.max(self.now));
    }

    /// Opens the page connections of an attempt, if its destination is there to accept them.
    pub(crate) fn open_stream(&mut self, attempt: usize, source_life: u64) -> Option<usize> {
        let destination_life = self.attempts[attempt].destination.as_ref()?.life;
        if self.now < self.link_mended {
            return None;
        }
        let stream =
            Stream { attempt, source_life, destination_life, broken: false, last_arrival: 0 };
        self.streams.push(stream);
        Some(self.streams.len() - 1)
    }

    /// Ends a stream; each side finds out in its own time.
    pub(crate) fn break_stream(&mut self, index: usize) {
        if std::mem::replace(&mut self.streams[index].broken, true) {
            return;
        }
        for role in [Role::Source, Role::Destination] {
            let due = self.now + self.detection();
            self.schedule(due, Action::StreamBroken { stream: index, role });
        }
    }

    /// A side finds out that its page connections are gone.
    pub(crate) fn stream_broken(&mut self, index: usize, role: Role) {
        let Stream { attempt, source_life, destination_life, .. } = self.streams[index];
        let reason = Reason::new(ReasonCode::LinkLost, "the page connections were lost");
        match role {
            Role::Source if self.source_lives(attempt, source_life) => {
                let side = self.side(attempt);
                // One that was replaced means nothing any more.
                if side.stream == Some(index) {
                    self.native_fails(attempt);
                    let side = self.side(attempt);
                    let event = match side.follows {
                        Some(_) => source::Event::ServingFailed(reason),
                        None => source::Event::Failed(reason),
                    };
                    self.step_source(attempt, event);
                }
            }
            Role::Destination if self.destination_lives(attempt, destination_life) => {
                self.destination_stream_broken(attempt, index, reason);
            }
            Role::Source | Role::Destination => {}
        }
    }

    pub(crate) fn send_item(&mut self, index: usize, item: Item) {
        let latency = self.random(20..200);
        let flip = matches!(item, Item::Page { .. }) && self.mishap(self.plan.weather.corrupt_page);
        let stream = &mut self.streams[index];
        let due = stream.last_arrival.max(self.now + latency);
        stream.last_arrival = due;
        let item = match item {
            Item::Page { page, content } if flip => Item::Page { page, content: content ^ 1 << 40 },
            other => other,
        };
        if flip {
            self.note(|| format!("s{index} a page is corrupted: {item:?}"));
        }
        let swallowed = self.broken == Some(Broken::PageSwallowed)
            && matches!(item, Item::Page { .. })
            && self.random(0..50) == 0;
        if !swallowed {
            self.schedule(due, Action::Item { stream: index, item });
        }
    }
}

fn brief(frame: &Frame) -> String {
    match frame {
        Frame::ToDestination(ToDestination::Offer(_)) => "Offer".into(),
        Frame::ToSource(ToSource::Accept(_)) => "Accept".into(),
        Frame::ToDestination(message) => format!("{message:?}"),
        Frame::ToSource(message) => format!("{message:?}"),
        Frame::DeviceState(registers) => format!("DeviceState({registers})"),
    }
}
