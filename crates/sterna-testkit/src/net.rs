//! Hosts in network namespaces: a migration link of a given rate, and a guest network.
//!
//! ```text
//!        migration link, shaped at both ends          with a third host:
//!   ┌─ a ─ mig 10.77.0.1 ═══════ mig 10.77.0.2 ─ b ─┐   a ═╗
//!   │  br0 ── tap of a guest                   br0  │   b ═╬═ bridge in `link`
//!   └───┼───────────────── switch ──────────────┼───┘   c ═╝
//!       └──────────────────  br0  ──────────────┘
//!                             │
//!                      client 10.78.0.1
//! ```
//!
//! The two networks are apart, so that what is measured on the migration link is the migration,
//! and so that cutting it leaves the guest in reach of its clients. The guest network's bridges
//! learn and forward at once (no spanning tree), as a data centre's do after a guest has moved.
//!
//! Nothing is made in the machine's own network namespace. All of it is removed on drop; what a
//! killed run left behind is removed when the next topology of the same prefix is made, with the
//! processes that still run in it. So a prefix must not be used twice at the same time.

mod namespace;

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result};
use sterna_guest::quantity::Bytes;

pub use namespace::{Namespace, Why, namespaces_allowed};

/// The migration link's interface in each host.
const LINK: &str = "mig";
/// The bridge of the guest network in each host and in the switch.
const BRIDGE: &str = "br0";
/// A bucket large enough that the largest segment passes whole, small enough that a burst at
/// full speed is over within 2 ms at 1 Gbit/s.
const SHAPER_BURST: &str = "256kb";
/// How long a packet may wait in the shaper before it is dropped: a shallow switch's queue.
const SHAPER_LATENCY: &str = "20ms";

/// A host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// 10.77.0.1, mostly where a guest starts.
    A,
    /// 10.77.0.2, mostly where it goes.
    B,
    /// 10.77.0.3, where a guest may go on to; only in a topology of three.
    C,
}

/// How fast the migration link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRate {
    /// As fast as the kernel can.
    Unshaped,
    /// Bits per second in each direction.
    BitsPerSecond(u64),
}

/// What has gone over a host's end of the migration link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkBytes {
    /// From this host, with all headers.
    pub sent: Bytes,
    /// To this host, with all headers.
    pub received: Bytes,
}

/// Hosts, their networks and a client.
#[derive(Debug)]
pub struct Topology {
    hosts: Vec<(Host, Namespace)>,
    client: Namespace,
    _switch: Namespace,
    _link: Option<Namespace>,
}

impl Host {
    /// Returns the host's address on the migration link.
    #[must_use]
    pub fn migration_address(self) -> Ipv4Addr {
        match self {
            Self::A => Ipv4Addr::new(10, 77, 0, 1),
            Self::B => Ipv4Addr::new(10, 77, 0, 2),
            Self::C => Ipv4Addr::new(10, 77, 0, 3),
        }
    }

    /// Returns the host's letter.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
        }
    }
}

impl LinkRate {
    /// Returns a link of so many megabits (10^6) per second.
    #[must_use]
    pub fn megabits(count: u32) -> Self {
        Self::BitsPerSecond(u64::from(count) * 1_000_000)
    }
}

impl Topology {
    /// The client's address on the guest network.
    pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
    /// The guest's address, unless its workload says otherwise.
    pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);

    /// Makes two hosts, joined directly.
    ///
    /// # Errors
    /// If a namespace or device cannot be made; see [`namespaces_allowed`].
    pub fn new(prefix: &str, rate: LinkRate) -> Result<Self> {
        let topology = Self::hosts_and_guest_network(prefix, &[Host::A, Host::B])?;
        let (a, b) = (topology.host(Host::A)?, topology.host(Host::B)?);
        a.veth(LINK, b, LINK)?;
        for (host, namespace) in &topology.hosts {
            bring_up(namespace, host.migration_address())?;
            shape(namespace, LINK, rate)?;
        }
        Ok(topology)
    }

    /// Makes three hosts, whose migration links meet in a switch. Each link is shaped at both
    /// ends, so that two hosts that send to a third share its rate.
    ///
    /// # Errors
    /// If a namespace or device cannot be made; see [`namespaces_allowed`].
    pub fn of_three(prefix: &str, rate: LinkRate) -> Result<Self> {
        let hosts = [Host::A, Host::B, Host::C];
        let mut topology = Self::hosts_and_guest_network(prefix, &hosts)?;
        let link = Namespace::create(&format!("{prefix}-link"))?;
        add_bridge(&link)?;
        for (host, namespace) in &topology.hosts {
            namespace.veth(LINK, &link, host.name())?;
            attach(&link, host.name())?;
            bring_up(namespace, host.migration_address())?;
            shape(namespace, LINK, rate)?;
            shape(&link, host.name(), rate)?;
        }
        topology._link = Some(link);
        Ok(topology)
    }

    fn hosts_and_guest_network(prefix: &str, hosts: &[Host]) -> Result<Self> {
        Namespace::remove_all(prefix)?;
        let create = |name: &str| Namespace::create(&format!("{prefix}-{name}"));
        let switch = create("switch")?;
        add_bridge(&switch)?;
        let client = create("client")?;
        client.veth("eth0", &switch, "client")?;
        attach(&switch, "client")?;
        client.ip(&["address", "add", &format!("{}/24", Self::CLIENT), "dev", "eth0"])?;
        client.ip(&["link", "set", "dev", "eth0", "up"])?;
        let mut made = Vec::new();
        for host in hosts {
            let namespace = create(host.name())?;
            add_bridge(&namespace)?;
            namespace.veth("up0", &switch, host.name())?;
            attach(&switch, host.name())?;
            attach(&namespace, "up0")?;
            made.push((*host, namespace));
        }
        Ok(Self { hosts: made, client, _switch: switch, _link: None })
    }

    /// Returns a host's namespace.
    ///
    /// # Errors
    /// If this topology has no such host.
    pub fn host(&self, host: Host) -> Result<&Namespace> {
        let found = self.hosts.iter().find(|(known, _)| *known == host);
        let (_, namespace) =
            found.with_context(|| format!("this topology has no host {}", host.name()))?;
        Ok(namespace)
    }

    /// Returns the namespace of the client on the guest network.
    #[must_use]
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// Returns a command that will run a program on a host.
    ///
    /// # Errors
    /// If this topology has no such host.
    pub fn command_in(&self, host: Host, program: &str) -> Result<Command> {
        Ok(self.host(host)?.command(program))
    }

    /// Makes a tap device on a host's guest bridge, for QEMU's
    /// `-netdev tap,ifname=<name>,script=no,downscript=no`.
    ///
    /// # Errors
    /// If there is no such host or the device cannot be made.
    pub fn tap(&self, host: Host, name: &str) -> Result<()> {
        let namespace = self.host(host)?;
        namespace.ip(&["tuntap", "add", "dev", name, "mode", "tap"])?;
        attach(namespace, name)
    }

    /// Takes a host's end of the migration link down: both sides lose the carrier.
    ///
    /// # Errors
    /// If there is no such host or the link cannot be changed.
    pub fn cut(&self, host: Host) -> Result<()> {
        self.host(host)?.ip(&["link", "set", "dev", LINK, "down"])
    }

    /// Brings a host's end of the migration link up again.
    ///
    /// # Errors
    /// If there is no such host or the link cannot be changed.
    pub fn mend(&self, host: Host) -> Result<()> {
        self.host(host)?.ip(&["link", "set", "dev", LINK, "up"])
    }

    /// Changes how fast a host's end of the migration link sends; what it receives is the other end's.
    ///
    /// # Errors
    /// If there is no such host or the link cannot be changed.
    pub fn set_rate(&self, host: Host, rate: LinkRate) -> Result<()> {
        shape(self.host(host)?, LINK, rate)
    }

    /// Returns what has gone over a host's end of the migration link since it was made.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn link_bytes(&self, host: Host) -> Result<LinkBytes> {
        // The thread's own view: /sys/class/net would show the namespace of whoever mounted it.
        let read = || std::fs::read_to_string("/proc/thread-self/net/dev");
        let text = self.host(host)?.run_inside(read)??;
        interface_bytes(&text, LINK).with_context(|| format!("no interface {LINK} in {text}"))
    }
}

/// Adds the guest network's bridge to a namespace. Without spanning tree a new port forwards at
/// once; snooping off, because nobody here answers its questions.
fn add_bridge(namespace: &Namespace) -> Result<()> {
    let bridge = ["stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"];
    let mut arguments = vec!["link", "add", BRIDGE, "type", "bridge"];
    arguments.extend(bridge);
    namespace.ip(&arguments)?;
    namespace.ip(&["link", "set", "dev", BRIDGE, "up"])
}

fn attach(namespace: &Namespace, port: &str) -> Result<()> {
    namespace.ip(&["link", "set", "dev", port, "master", BRIDGE, "up"])
}

fn bring_up(namespace: &Namespace, address: Ipv4Addr) -> Result<()> {
    namespace.ip(&["address", "add", &format!("{address}/24"), "dev", LINK])?;
    namespace.ip(&["link", "set", "dev", LINK, "up"])
}

fn shape(namespace: &Namespace, interface: &str, rate: LinkRate) -> Result<()> {
    let LinkRate::BitsPerSecond(bits) = rate else { return Ok(()) };
    let rate = format!("{bits}bit");
    let bucket = ["tbf", "rate", &rate, "burst", SHAPER_BURST, "latency", SHAPER_LATENCY];
    let mut arguments = vec!["qdisc", "replace", "dev", interface, "root"];
    arguments.extend(bucket);
    namespace.tc(&arguments)
}

/// Reads the byte counters of one interface from `/proc/net/dev`.
fn interface_bytes(text: &str, interface: &str) -> Option<LinkBytes> {
    let fields = text.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        (name.trim() == interface).then_some(counters)
    })?;
    let mut counters = fields.split_whitespace().map(|word| word.parse().ok());
    let received = Bytes(counters.next()??);
    let sent = Bytes(counters.nth(7)??);
    Some(LinkBytes { sent, received })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counters_are_read_from_the_kernels_table() {
        let text = "Inter-|   Receive          |  Transmit\n\
             face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n\
             lo:     100    1    0    0    0     0          0         0     100    1    0\n  \
             mig: 4096000 3000   0    0    0     0          0         0 8192000 6000    0\n";
        let expected = LinkBytes { sent: Bytes(8_192_000), received: Bytes(4_096_000) };
        assert_eq!(interface_bytes(text, "mig"), Some(expected));
        assert_eq!(interface_bytes(text, "ig"), None);
    }
}
