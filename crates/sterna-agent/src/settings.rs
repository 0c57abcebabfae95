//! What an agent is told when it starts.

use crate::users::GuestUsers;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use sterna_vmm::Tracker;

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

/// How many moves there may be at once, and how fast they may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveLimits {
    /// Moves from this host; more wait for their turn.
    pub from_here: NonZeroU32,
    /// Of these, moves to one other host.
    pub to_one_host: NonZeroU32,
    /// Moves to this host; more are refused.
    pub to_here: NonZeroU32,
    /// Bytes a second at most for the pages of all moves from this host together; `None` for no limit.
    pub bandwidth_bytes_per_second: Option<u64>,
}

impl Default for MoveLimits {
    /// Two from a host, as the second keeps the link busy while the first begins and ends; as many to each other
    /// host. Twice as many may come, so that hosts that are emptied into one seldom meet a refusal.
    fn default() -> Self {
        const TWO: NonZeroU32 = NonZeroU32::new(2).expect("it is not zero");
        const FOUR: NonZeroU32 = NonZeroU32::new(4).expect("it is not zero");
        Self { from_here: TWO, to_one_host: TWO, to_here: FOUR, bandwidth_bytes_per_second: None }
    }
}

/// Says anew how many moves there may be, when the agent is asked to read its configuration again (SIGHUP).
///
/// An error is logged, and what held before goes on.
pub type ReadLimits = Box<dyn Fn() -> Result<MoveLimits, String> + Send + Sync>;

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
    /// Address on which the interface is served, and hosts join.
    pub listen: IpAddr,
    /// Address on which guests arrive, so that moves have a network of their own.
    pub move_listen: IpAddr,
    /// Port of the HTTPS interface.
    pub api_port: u16,
    /// Port on which guests arrive.
    pub move_port: u16,
    /// Port on which hosts join, on the host that has the authority.
    pub join_port: u16,
    /// The hypervisor's program; `None` to look for it.
    pub qemu: Option<PathBuf>,
    /// Users that guests' hypervisors run as, each as one of its own; `None` for all as the agent's.
    pub guest_users: Option<GuestUsers>,
    /// How guests' writes are tracked; the best that this host's kernel can if not given.
    pub tracker: Option<Tracker>,
    /// Whether hypervisor arguments are taken from other hosts.
    pub peer_arguments: PeerArguments,
    /// Bytes of disk for the RAM of guests that have left, at most; none is kept if 0.
    pub images_bytes_max: u64,
    /// How many moves there may be at first.
    pub moves: MoveLimits,
}

/// Name of the unix socket in the runtime folder.
pub const SOCKET_FILE: &str = "agent.sock";
