//! The topology's promises, in real network namespaces. Skipped without leave to make them.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::Duration;

use sterna_testkit::net::{Host, LinkRate, Namespace, Topology, namespaces_allowed};

/// How long a datagram may take before it counts as not arriving.
const ARRIVAL: Duration = Duration::from_millis(500);
const PORT: u16 = 9_000;

fn skipped(test: &str) -> bool {
    match namespaces_allowed() {
        Ok(()) => false,
        Err(why) => {
            eprintln!("skipped {test}: {why}");
            true
        }
    }
}

fn socket(namespace: &Namespace, port: u16) -> UdpSocket {
    let open = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(ARRIVAL))?;
        Ok(socket)
    };
    let opened = namespace.run_inside(open).expect("a namespace just made can be entered");
    opened.expect("the port is free in a namespace just made")
}

/// Sends until a datagram arrives; the first ones may be lost while addresses are resolved.
fn arrives(from: &UdpSocket, to: &UdpSocket, address: Ipv4Addr) -> bool {
    let mut datagram = [0; 1200];
    (0..6).any(|_| {
        let sent = from.send_to(&[7; 1000], SocketAddrV4::new(address, PORT));
        sent.is_ok() && to.recv(&mut datagram).is_ok_and(|size| size == 1000)
    })
}

#[test]
fn the_migration_link_carries_is_counted_is_cut_and_mended() {
    if skipped("the migration link") {
        return;
    }
    let topology = Topology::new("sterna-tk-link", LinkRate::megabits(1000)).unwrap();
    let a = socket(topology.host(Host::A).unwrap(), 0);
    let b = socket(topology.host(Host::B).unwrap(), PORT);
    let before = topology.link_bytes(Host::A).unwrap();
    assert!(arrives(&a, &b, Host::B.migration_address()));
    let after = topology.link_bytes(Host::A).unwrap();
    assert!(after.sent.0 - before.sent.0 >= 1000, "{before:?} {after:?}");
    assert!(topology.link_bytes(Host::B).unwrap().received.0 >= 1000);

    topology.cut(Host::A).unwrap();
    assert!(!arrives(&a, &b, Host::B.migration_address()));
    topology.mend(Host::A).unwrap();
    assert!(arrives(&a, &b, Host::B.migration_address()));
}

#[test]
fn the_client_reaches_the_guest_network_of_each_host_and_not_the_migration_link() {
    if skipped("the guest network") {
        return;
    }
    let topology = Topology::new("sterna-tk-guest", LinkRate::Unshaped).unwrap();
    let client = socket(topology.client(), 0);
    for (host, address) in [(Host::A, [10, 78, 0, 21]), (Host::B, [10, 78, 0, 22])] {
        let namespace = topology.host(host).unwrap();
        let address = Ipv4Addr::from(address);
        namespace.ip(&["address", "add", &format!("{address}/24"), "dev", "br0"]).unwrap();
        let there = socket(namespace, PORT);
        assert!(arrives(&client, &there, address), "{host:?}");
        assert!(!arrives(&client, &there, host.migration_address()), "{host:?}");
    }
    topology.tap(Host::A, "tap0").unwrap();
    assert!(topology.tap(Host::A, "tap0").is_err());
}

#[test]
fn three_hosts_reach_one_another() {
    if skipped("three hosts") {
        return;
    }
    let topology = Topology::of_three("sterna-tk-three", LinkRate::megabits(100)).unwrap();
    let hosts = [Host::A, Host::B, Host::C];
    for to in hosts {
        let there = socket(topology.host(to).unwrap(), PORT);
        for from in hosts.into_iter().filter(|&from| from != to) {
            let here = socket(topology.host(from).unwrap(), 0);
            assert!(arrives(&here, &there, to.migration_address()), "{from:?} to {to:?}");
        }
    }
}

#[test]
fn a_shaped_link_is_shaped_at_both_ends() {
    if skipped("shaping") {
        return;
    }
    let topology = Topology::new("sterna-tk-shape", LinkRate::megabits(250)).unwrap();
    for host in [Host::A, Host::B] {
        let mut show = topology.command_in(host, "tc").unwrap();
        let output = show.args(["qdisc", "show", "dev", "mig"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("tbf") && text.contains("rate 250Mbit"), "{text}");
    }
}

#[test]
fn nothing_is_left_behind_and_what_a_killed_run_left_is_removed() {
    if skipped("removal") {
        return;
    }
    let names = Path::new("/run/netns");
    let topology = Topology::new("sterna-tk-left", LinkRate::Unshaped).unwrap();
    let mut command = topology.command_in(Host::A, "sleep").unwrap();
    let mut left = command.arg("600").spawn().unwrap();
    assert!(names.join("sterna-tk-left-a").exists());
    // As if this run had been killed: nothing of it is dropped.
    std::mem::forget(topology);

    let again = Topology::new("sterna-tk-left", LinkRate::Unshaped).unwrap();
    assert!(!left.wait().unwrap().success(), "the process was to be killed");
    drop(again);
    let found = std::fs::read_dir(names).unwrap();
    let found = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(found.filter(|name| name.starts_with("sterna-tk-left-")).count(), 0);
}
