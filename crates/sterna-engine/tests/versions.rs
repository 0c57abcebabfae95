//! Hosts without a version of the protocol in common: each is told what the other speaks, and no guest is the worse for it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod kit;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use kit::identities::Cluster;
use kit::{Site, goes_on_whole, request, run, small, the_one_that_runs};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use sterna_core::receipt::Ending;
use sterna_engine::identity::Identity;
use sterna_proto::preamble::{
    ANSWER_BYTES, PREAMBLE_BYTES, Preamble, PreambleAnswer, PreambleError, Role, VERSION_MAX,
    VERSION_MIN,
};

/// It bounds a test that fails.
const LIMIT: Duration = Duration::from_secs(40);
/// What a later release may speak.
const LATER: u16 = VERSION_MAX + 2;

/// A destination of a later release: it answers one connection, and ends it.
fn later_destination(identity: Identity) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let tls = ServerConnection::new(identity.server()).unwrap();
        let mut stream = StreamOwned::new(tls, socket);
        let mut preamble = [0; PREAMBLE_BYTES];
        stream.read_exact(&mut preamble).unwrap();
        let answer = PreambleAnswer::NoCommonVersion { newest: LATER };
        stream.write_all(&answer.encode()).unwrap();
        stream.flush().unwrap();
        // Until the source has read it, and hangs up.
        let _end = stream.read(&mut [0]);
    });
    (address, serving)
}

#[test]
fn a_source_says_which_versions_there_are_and_keeps_its_guest() {
    let cluster = Cluster::new();
    let (a, b) = (Site::new(&cluster, "a"), Site::new(&cluster, "b"));
    let guest = small();
    let (address, serving) = later_destination(cluster.identity("b"));
    let receipt = run(&a, &request(&a, address, &guest, 1), &guest);
    serving.join().unwrap();
    let Ending::Undone { reasons } = &receipt.ending else { panic!("{receipt:#?}") };
    let said = reasons.iter().map(ToString::to_string).collect::<String>();
    assert!(said.contains(&format!("the peer speaks up to version {LATER}")), "{said}");
    assert!(said.contains(&format!("this host {VERSION_MIN} to {VERSION_MAX}")), "{said}");
    assert!(said.contains("upgrade Sterna on this host"), "{said}");
    goes_on_whole(&the_one_that_runs(&receipt, &b, &guest, "without a version in common"));

    let receipt = run(&a, &request(&a, b.listener.address(), &guest, 2), &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
    goes_on_whole(&the_one_that_runs(&receipt, &b, &guest, "a move after that"));
}

#[test]
fn a_destination_tells_a_later_source_what_it_speaks_whatever_that_wants() {
    let cluster = Cluster::new();
    let (a, b) = (Site::new(&cluster, "a"), Site::new(&cluster, "b"));
    let preamble =
        Preamble { version_min: VERSION_MAX + 1, version_max: LATER, role: Role::Control };
    for role in [1, 6, 200] {
        let mut bytes = preamble.encode();
        bytes[8] = role;
        let socket = TcpStream::connect(b.listener.address()).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let name = ServerName::try_from("b").unwrap();
        let tls = ClientConnection::new(a.identity.client(), name).unwrap();
        let mut stream = StreamOwned::new(tls, socket);
        stream.write_all(&bytes).unwrap();
        let mut answer = [0; ANSWER_BYTES];
        stream.read_exact(&mut answer).unwrap();
        // As the later source reads it, so does this one.
        let error = PreambleAnswer::decode(&answer).unwrap_err();
        assert_eq!(error, PreambleError::NoCommonVersion { theirs: VERSION_MAX }, "role {role}");
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)), "the connection goes on");
    }
    let guest = small();
    let receipt = run(&a, &request(&a, b.listener.address(), &guest, 1), &guest);
    assert_eq!(receipt.ending, Ending::Moved, "{receipt:#?}");
}
