//! What a network interface has sent, as the kernel counts it.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;

/// Counts what the interface towards a peer sends from now on.
#[derive(Debug)]
pub(crate) struct Counter {
    file: PathBuf,
    before: u64,
}

impl Counter {
    /// Finds the interface by which `peer` is reached; `None` where that cannot be told.
    pub(crate) fn towards(peer: SocketAddr) -> Option<Self> {
        let local = local_address(peer)?;
        let name = interface_of(local)?;
        let file = PathBuf::from(format!("/sys/class/net/{name}/statistics/tx_bytes"));
        let before = read(&file)?;
        Some(Self { file, before })
    }

    /// Bytes sent since then, by everyone on that interface.
    pub(crate) fn sent(&self) -> Option<u64> {
        read(&self.file)?.checked_sub(self.before)
    }
}

fn read(file: &PathBuf) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The address the kernel would send from. Connecting a datagram socket sends nothing.
fn local_address(peer: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr =
        if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { "[::]:0".parse().ok()? };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn interface_of(address: IpAddr) -> Option<String> {
    if_addrs::get_if_addrs().ok()?.into_iter().find(|i| i.ip() == address).map(|i| i.name)
}
