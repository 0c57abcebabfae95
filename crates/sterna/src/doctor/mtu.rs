//! Whether packets of full size reach another host. Those that vanish on the way make a connection that was set up well
//! stand still with the first page that it carries.
//!
//! A datagram that may not be split is sent to a port on which nobody hears datagrams: a host that gets it answers that
//! nobody does (ICMP), and a router for which it is too big says so (RFC 1191).

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;

/// How long an answer is waited for.
const ANSWER_MAX: Duration = Duration::from_millis(700);

/// How often each size is tried: hosts answer some datagrams a second.
const TRIES: u32 = 2;

/// Sizes of packets in bytes that are tried one after the other where full ones vanish: jumbo frames, Ethernet, VXLAN over
/// Ethernet, WireGuard, and what every IPv6 link takes.
const USUAL: [u32; 5] = [9000, 1500, 1450, 1420, 1280];

/// What was found, in bytes of IP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathMtu {
    /// Packets of this size get there, and none that is larger leaves here.
    Through(u32),
    /// Packets of the first size leave here and vanish; those of the second get there.
    Vanish(u32, Option<u32>),
    /// Packets of this size leave here; the host does not say whether it gets any.
    Unknown(u32),
}

/// What became of a datagram.
enum Fate {
    Arrived,
    TooBig,
    Silence,
}

/// Finds how large packets to a host can be.
///
/// # Errors
/// If there is no way to it.
pub(super) async fn find(host: SocketAddr) -> io::Result<PathMtu> {
    let probe = Probe::to(host).await?;
    let full = probe.largest()?;
    if !probe.gets_there(probe.headers).await? {
        return Ok(PathMtu::Unknown(full));
    }
    // A router that says what it takes is asked again with that.
    let mut size = full;
    loop {
        match probe.fate(size).await? {
            Fate::Arrived => return Ok(PathMtu::Through(size)),
            Fate::TooBig if probe.largest()? < size => size = probe.largest()?,
            Fate::TooBig | Fate::Silence => break,
        }
    }
    for smaller in USUAL.into_iter().filter(|usual| *usual < size) {
        if probe.gets_there(smaller).await? {
            return Ok(PathMtu::Vanish(size, Some(smaller)));
        }
    }
    Ok(PathMtu::Vanish(size, None))
}

/// A socket whose datagrams are not split.
struct Probe {
    socket: UdpSocket,
    is_v4: bool,
    /// Bytes of a packet that are not the datagram's.
    headers: u32,
}

impl Probe {
    async fn to(host: SocketAddr) -> io::Result<Self> {
        let is_v4 = host.is_ipv4();
        let any = if is_v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        match is_v4 {
            true => sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?,
            false => sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?,
        }
        socket.connect(host).await?;
        Ok(Self { socket, is_v4, headers: if is_v4 { 28 } else { 48 } })
    }

    /// The largest packet on the way to the host, as far as this host knows by now.
    fn largest(&self) -> io::Result<u32> {
        let known = match self.is_v4 {
            true => sockopt::ip_mtu(&self.socket)?,
            false => sockopt::ipv6_mtu(&self.socket)?,
        };
        // The loopback interface takes a byte more than IP can say.
        Ok(known.min(u16::MAX.into()))
    }

    async fn gets_there(&self, size: u32) -> io::Result<bool> {
        Ok(matches!(self.fate(size).await?, Fate::Arrived))
    }

    async fn fate(&self, size: u32) -> io::Result<Fate> {
        let bytes = size.saturating_sub(self.headers);
        let datagram = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        for _ in 0..TRIES {
            let said = match self.socket.send(&datagram).await {
                Ok(_) => self.answer().await,
                Err(error) => Some(error),
            };
            match said {
                Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return Ok(Fate::Arrived);
                }
                Some(error) if is_too_big(&error) => return Ok(Fate::TooBig),
                Some(error) => return Err(error),
                None => {}
            }
        }
        Ok(Fate::Silence)
    }

    /// What is said of a datagram; nothing if it is not said in time, or if somebody did hear it.
    async fn answer(&self) -> Option<io::Error> {
        let heard = tokio::time::timeout(ANSWER_MAX, self.socket.recv(&mut [0])).await;
        heard.ok()?.err()
    }
}

fn is_too_big(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port on which nobody hears.
    async fn closed(address: &str) -> SocketAddr {
        let socket = UdpSocket::bind(address).await.unwrap();
        socket.local_addr().unwrap()
    }

    #[tokio::test]
    async fn all_that_leaves_for_this_host_gets_there() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let found = find(closed(address).await).await.unwrap();
            assert!(matches!(found, PathMtu::Through(size) if size > 1500), "{address}: {found:?}");
        }
    }

    #[tokio::test]
    async fn a_host_that_says_nothing_is_told_from_one_that_answers() {
        let deaf = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let found = find(deaf.local_addr().unwrap()).await.unwrap();
        assert!(matches!(found, PathMtu::Unknown(_)), "{found:?}");
    }
}
