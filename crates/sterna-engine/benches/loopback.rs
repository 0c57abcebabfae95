//! One move of an idle synthetic guest over loopback, as fast as it goes: no link limits it.
//!
//! `--mebibytes N` is the guest's RAM, all of it random bytes; `--streams N` the page streams. Prints
//! one line of JSON: the move's milliseconds, the bytes its sockets carried, and whether all of the
//! RAM that arrived is what it should be (looked at after the clock has stopped).

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends here")]

#[path = "../tests/kit/mod.rs"]
mod kit;

use kit::identities::Cluster;
use kit::{Site, attempt, request, run};
use sterna_core::receipt::Ending;
use sterna_page::PageCount;
use sterna_proto::message::Verify;
use sterna_vmm::synthetic::{Content, SyntheticConfig, SyntheticGuest, WriteRate};

fn main() {
    let pages = PageCount(argument("--mebibytes", 1024) * 256);
    let guest = SyntheticGuest::start(SyntheticConfig {
        pages,
        populated: pages,
        content: Content::Random,
        rate: WriteRate::Idle,
        ..SyntheticConfig::default()
    })
    .unwrap();
    let cluster = Cluster::new();
    let (a, b) = (Site::new(&cluster, "a"), Site::new(&cluster, "b"));
    let mut request = request(&a, b.listener.address(), &guest, 1);
    request.offer.verify = Verify::No;
    request.offer.streams = u16::try_from(argument("--streams", 2)).unwrap();
    let receipt = run(&a, &request, &guest);
    b.host.wait_ended(attempt(1));
    let arrived = b.host.arrived(attempt(1));
    let sound = arrived.is_some_and(|guest| guest.check().unwrap().is_sound());
    let moved = receipt.ending == Ending::Moved;
    println!(
        "{}",
        serde_json::json!({
            "moved": moved,
            "sound": sound,
            "total_ms": receipt.total.as_secs_f64() * 1000.0,
            "wire_bytes": receipt.wire.sockets,
        })
    );
}

/// The number after `name` on the command line.
fn argument(name: &str, default: u64) -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next().map_or(default, |value| value.parse().unwrap())
}
