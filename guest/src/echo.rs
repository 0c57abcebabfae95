//! The UDP echo: answers every datagram with itself.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};

/// The echo service's port.
pub const PORT: u16 = 7;
/// The largest datagram there can be.
const LARGEST: usize = 65_535;

/// Answers datagrams on all addresses, forever.
///
/// # Errors
/// If the port cannot be had. A datagram that cannot be answered is dropped: to whoever sent it,
/// that is a lost datagram like any other.
pub fn run() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    let mut datagram = vec![0; LARGEST];
    loop {
        if let Ok((size, sender)) = socket.recv_from(&mut datagram) {
            let _unanswered = socket.send_to(&datagram[..size], sender);
        }
    }
}
