//! What an agent is told when it starts.

use std::net::IpAddr;
use std::path::PathBuf;

/// Whether hypervisor arguments are taken from other hosts.
///
/// `qemu_args` of a definition can name any file and run any program as the agent's user. The
/// operator of this host may give them through the unix socket. A cluster peer is trusted to hand
/// over a guest, which runs inside its hypervisor, but not with this host itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeerArguments {
    /// A guest with such arguments can neither arrive nor be started over the network.
    #[default]
    Refused,
    /// All hosts of the cluster have the same operator, who wants such guests to move.
    Accepted,
}

/// Settings of an agent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this host, as in its certificate and in receipts.
    pub name: String,
    /// Folder of what must survive a reboot: the journal.
    pub state: PathBuf,
    /// Folder of what need not: sockets.
    pub runtime: PathBuf,
    /// Folder of certificates and key.
    pub identity: PathBuf,
    /// Address on which other hosts are served.
    pub listen: IpAddr,
    /// Port of the HTTPS interface.
    pub api_port: u16,
    /// Port on which guests arrive.
    pub move_port: u16,
    /// The hypervisor's program; `None` to look for it.
    pub qemu: Option<PathBuf>,
    /// Whether hypervisor arguments are taken from other hosts.
    pub peer_arguments: PeerArguments,
    /// Bytes of disk for the RAM of guests that have left, at most; none is kept if 0.
    pub images_bytes_max: u64,
}

/// Name of the unix socket in the runtime folder.
pub const SOCKET_FILE: &str = "agent.sock";
