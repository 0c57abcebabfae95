//! A holder of a host's certificate that speaks the protocol, and lies.
//!
//! Whatever it says, the destination refuses it or ends the connection, allocates no more than its limits, never takes a guest for
//! its own that it was not given whole, and takes the next guest as if nothing had been.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod kit;

use kit::identities::Cluster;
use kit::{Site, attempt, request, run, sites, small};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use sterna_core::journal::DestinationRecord;
use sterna_core::receipt::Ending;
use sterna_engine::Host;
use sterna_engine::identity::Identity;
use sterna_page::{PAGE_SIZE, PageCount, PageNumber, PageRun};
use sterna_proto::control::{ControlHeader, ControlKind, HEADER_BYTES};
use sterna_proto::message::{Accept, AttemptId, Epoch, GuestId};
use sterna_proto::pages::PageFrame;
use sterna_proto::preamble::{ANSWER_BYTES, MoveToken, Preamble, PreambleAnswer, Role};
use sterna_vmm::Source;
use sterna_vmm::synthetic::SyntheticGuest;
use uuid::Uuid;

/// Longer than the destination waits for anything that a liar owes it.
const LIMIT: Duration = Duration::from_secs(40);

/// One connection of the liar.
struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    number: u64,
}

impl Connection {
    /// Connects for a role; none if the destination does not want it.
    fn open(to: &Site, with: &Identity, role: Role) -> Option<Self> {
        let socket = TcpStream::connect(to.listener.address()).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let name = ServerName::try_from("b").unwrap();
        let tls = ClientConnection::new(with.client(), name).unwrap();
        let mut stream = StreamOwned::new(tls, socket);
        stream.write_all(&Preamble::new(role).encode()).unwrap();
        let mut answer = [0; ANSWER_BYTES];
        stream.read_exact(&mut answer).ok()?;
        PreambleAnswer::decode(&answer).ok()?;
        Some(Self { stream, number: 0 })
    }

    /// Sends a frame; what is hung up on hears it no longer.
    fn frame(&mut self, kind: ControlKind, length: u32, bytes: &[u8]) {
        self.number += 1;
        let header = ControlHeader { kind, length, number: self.number };
        let _ = self.stream.write_all(&[&header.encode()[..], bytes].concat());
        let _ = self.stream.flush();
    }

    fn say(&mut self, attempt: AttemptId, mut message: Value) {
        message["attempt"] = serde_json::to_value(attempt).unwrap();
        let bytes = serde_json::to_vec(&message).unwrap();
        self.frame(ControlKind::Message, u32::try_from(bytes.len()).unwrap(), &bytes);
    }

    /// The next message that says something; none once the destination has hung up.
    fn hear(&mut self) -> Option<Value> {
        loop {
            let mut header = [0; HEADER_BYTES];
            self.stream.read_exact(&mut header).ok()?;
            let header = ControlHeader::decode(&header).unwrap();
            let mut bytes = vec![0; usize::try_from(header.length).unwrap()];
            self.stream.read_exact(&mut bytes).ok()?;
            let message: Value = serde_json::from_slice(&bytes).unwrap();
            if message["message"] != "keep-alive" {
                return Some(message);
            }
        }
    }

    /// What the destination says at last: that the guest will never run there, or nothing.
    fn is_turned_away(&mut self) {
        while let Some(message) = self.hear() {
            match message["message"].as_str() {
                Some("refuse" | "never") => return,
                Some("accept" | "round-received") => {}
                _ => panic!("the destination says {message}"),
            }
        }
    }
}

fn offer(guest: &SyntheticGuest) -> Value {
    json!({
        "message": "offer", "name": "synthetic", "layout": guest.source().layout(),
        "hypervisor": "synthetic", "definition": null, "algorithm": "pre-copy",
        "codings": ["absent", "zero", "raw"], "streams": 1, "verify": "no",
    })
}

/// A move that was accepted.
fn accepted(
    to: &Site,
    with: &Identity,
    guest: &SyntheticGuest,
    epoch: u64,
) -> (Connection, Accept) {
    let mut control = Connection::open(to, with, Role::Control).unwrap();
    control.say(attempt(epoch), offer(guest));
    let answer = control.hear().unwrap();
    assert_eq!(answer["message"], "accept", "{answer}");
    (control, serde_json::from_value(answer).unwrap())
}

/// The destination has no guest by this attempt, and takes one that is honest.
fn is_none_the_worse((a, b): (&Site, &Site), guest: &SyntheticGuest, epochs: std::ops::Range<u64>) {
    for epoch in epochs.clone() {
        use DestinationRecord::{Receiving, Refused};
        let record = b.host.record_of(attempt(epoch));
        assert!(matches!(record, None | Some(Receiving | Refused)), "{epoch}: {record:?}");
        assert!(b.host.arrived(attempt(epoch)).is_none_or(|guest| !guest.is_running()));
    }
    let receipt = run(a, &request(a, b.listener.address(), guest, epochs.end), guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    assert!(b.host.arrived(attempt(epochs.end)).unwrap().check().unwrap().is_sound());
}

#[test]
fn an_offer_of_a_guest_that_cannot_be_is_refused() {
    let (a, b) = sites();
    let guest = small();
    let good = offer(&guest);
    let block = |size: u64| json!({ "name": "ram0", "size_bytes": size, "host_page_bytes": 4096 });
    let with = |field: &str, value: Value| {
        let mut offer = good.clone();
        offer[field] = value;
        offer
    };
    let layouts = [
        json!([]),
        json!([block(0)]),
        json!([block(1 << 63)]),
        json!([block(u64::MAX)]),
        json!([block(4097)]),
        json!([block(4096), block(4096)]),
        json!(vec![block(4096); 5000]),
        json!([{ "name": "ram0", "size_bytes": 4096, "host_page_bytes": 0 }]),
        json!([{ "name": "ram0", "size_bytes": -1, "host_page_bytes": 4096 }]),
    ];
    let mut offers: Vec<Value> =
        layouts.iter().map(|layout| with("layout", json!({ "blocks": layout }))).collect();
    offers.extend(layouts.iter().map(|layout| with("layout", layout.clone())));
    offers.push(with("streams", json!(0)));
    offers.push(with("streams", json!(65535)));
    offers.push(with("name", json!("x".repeat(1 << 19))));
    offers.push(json!({ "message": "offer" }));
    offers.push(json!({ "message": "no such message" }));
    let epochs = 1..1 + offers.len() as u64;
    for (epoch, offer) in epochs.clone().zip(offers) {
        let mut control = Connection::open(&b, &a.identity, Role::Control).unwrap();
        let text = offer.to_string();
        control.say(attempt(epoch), offer);
        let heard = control.hear();
        let refused = heard.as_ref().is_none_or(|answer| answer["message"] == "refuse");
        // A number of streams that is too high may be lowered.
        let lowered = heard.as_ref().is_some_and(|answer| answer["streams"].as_u64() <= Some(64));
        assert!(refused || lowered, "{heard:?} to {}", &text[..text.len().min(300)]);
    }
    is_none_the_worse((&a, &b), &guest, epochs);
}

#[test]
fn pages_that_are_not_the_guests_or_not_due_end_the_move() {
    let (a, b) = sites();
    let guest = small();
    let pages = guest.memory().pages().0;
    let run =
        |first: u64, count: u64| PageRun { first: PageNumber(first), count: PageCount(count) };
    let lies = [
        PageFrame::Raw(run(pages, 1)),
        PageFrame::Raw(run(pages - 1, 2)),
        PageFrame::Raw(run(u64::MAX, 1)),
        PageFrame::Raw(run(255, 2)),
        PageFrame::Zero(run(u64::MAX - 1, 1)),
        PageFrame::Mark { round: 7 },
        PageFrame::Owed(run(0, 1)),
        PageFrame::Wanted(PageNumber(0)),
        PageFrame::Same(run(0, 1)),
        PageFrame::Known(run(0, 1)),
    ];
    let epochs = 1..1 + lies.len() as u64;
    for (epoch, lie) in epochs.clone().zip(lies) {
        let (mut control, accept) = accepted(&b, &a.identity, &guest, epoch);
        let role = Role::Pages { stream: 0, token: accept.token };
        let mut stream = Connection::open(&b, &a.identity, role).unwrap().stream;
        let _ = stream.write_all(&lie.encode());
        let _ = stream.write_all(&vec![1; 2 * PAGE_SIZE]);
        let _ = stream.flush();
        control.is_turned_away();
    }
    is_none_the_worse((&a, &b), &guest, epochs);
}

#[test]
fn device_states_and_words_out_of_turn_end_the_move() {
    let (a, b) = sites();
    let guest = small();
    let state = |state_type| ControlKind::DeviceState { state_type };
    let commit = json!({ "message": "commit" });
    let switchover = json!({ "message": "switchover", "round": 0 });
    type Lie = Box<dyn Fn(&mut Connection, AttemptId)>;
    let lies: Vec<Lie> = vec![
        // Longer than any may be, of no known type, of the wrong one, none at all.
        Box::new(move |c, _| c.frame(state(1), u32::MAX, &[])),
        Box::new(move |c, _| c.frame(state(99), 4, b"what")),
        Box::new(move |c, _| c.frame(state(1), 4, b"what")),
        Box::new(move |c, _| c.frame(ControlKind::Message, 3, b"{]}")),
        Box::new(move |c, _| c.frame(ControlKind::Message, 2 << 20, b"{")),
        // Words of another attempt, a number left out, the end before the beginning.
        Box::new({
            let commit = commit.clone();
            move |c, a| c.say(AttemptId { epoch: Epoch(a.epoch.0 + 1000), ..a }, commit.clone())
        }),
        Box::new({
            let commit = commit.clone();
            move |c, a| {
                c.number += 5;
                c.say(a, commit.clone());
            }
        }),
        Box::new(move |c, a| c.say(a, commit.clone())),
        Box::new(move |c, a| {
            c.frame(state(2), 9, b"registers");
            c.say(a, switchover.clone());
            // Without a single page: the marks that it names never come.
            c.say(
                a,
                json!({ "message": "abort", "reason": { "code": "cancelled", "detail": "" } }),
            );
        }),
        Box::new(|c, a| c.say(a, json!({ "message": "farewell" }))),
        Box::new(|c, a| {
            let reason = json!({ "code": "cancelled", "detail": "" });
            c.say(a, json!({ "message": "pages-lost", "reason": reason }));
        }),
    ];
    let epochs = 1..1 + lies.len() as u64;
    for (epoch, lie) in epochs.clone().zip(lies) {
        let (mut control, _) = accepted(&b, &a.identity, &guest, epoch);
        lie(&mut control, attempt(epoch));
        control.is_turned_away();
    }
    is_none_the_worse((&a, &b), &guest, epochs);
}

#[test]
fn nobody_joins_a_move_that_is_not_his() {
    let cluster = Cluster::new();
    let (a, b, c) = (Site::new(&cluster, "a"), Site::new(&cluster, "b"), Site::new(&cluster, "c"));
    let guest = small();
    let (control, accept) = accepted(&b, &a.identity, &guest, 1);
    let guessed = MoveToken([0; 16]);
    for (with, token) in [(&c.identity, accept.token), (&a.identity, guessed)] {
        for role in [
            Role::Pages { stream: 0, token },
            Role::Urgent { token },
            Role::Known { token },
            Role::Native { channel: 0, token },
        ] {
            assert!(Connection::open(&b, with, role).is_none(), "{role:?}");
        }
    }
    // One of its own, but of no stream that there is.
    let role = Role::Pages { stream: 9, token: accept.token };
    let joined = Connection::open(&b, &a.identity, role);
    assert!(joined.is_none_or(|mut stream| stream.hear().is_none()));
    drop(control);
    // Questions about what never was are answered by whom they are for: it never will. Of another journal nobody knows.
    let stranger = AttemptId { guest: GuestId(Uuid::from_u128(9)), epoch: Epoch(1) };
    for (journal, answer) in [(b.host.journal().0, "never"), (Uuid::from_u128(5), "lost")] {
        let mut asking = Connection::open(&b, &c.identity, Role::Control).unwrap();
        asking.say(stranger, json!({ "message": "query", "asked_of": journal }));
        assert_eq!(asking.hear().unwrap()["message"], answer);
    }
    is_none_the_worse((&a, &b), &guest, 1..2);
}
