//! Another hypervisor copies a guest to this host's: its connections are carried to where that listens.

use super::driver::Input;
use crate::link::Link;
use crate::native::{Broken, Cuts, carry};
use std::collections::HashSet;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use sterna_proto::message::{Reason, ReasonCode};

/// What connections of one move join.
#[derive(Debug)]
pub(crate) struct Native {
    /// Where the hypervisor listens.
    socket: PathBuf,
    /// Connections at most.
    connections: u16,
    joined: Mutex<HashSet<u16>>,
    cuts: Cuts,
}

impl Native {
    pub(crate) fn new(socket: PathBuf, connections: u16) -> Self {
        Self { socket, connections, joined: Mutex::default(), cuts: Cuts::default() }
    }

    /// Whether this connection is one of the move, and has not come before.
    pub(crate) fn admits(&self, channel: u16) -> bool {
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        channel < self.connections && joined.insert(channel)
    }

    /// Carries a connection until it has ended; tells if it broke.
    pub(crate) fn carry(&self, link: Link, inputs: &Sender<Input>) {
        let inputs = Mutex::new(inputs);
        let told = |broken| {
            let reason = match broken {
                Broken::Link(error) => {
                    let detail = format!("a connection between the hypervisors was lost: {error}");
                    Reason::new(ReasonCode::LinkLost, detail)
                }
                Broken::Hypervisor(error) => {
                    let detail = format!("the hypervisor takes no more of the guest: {error}");
                    Reason::new(ReasonCode::Hypervisor, detail)
                }
            };
            let inputs = inputs.lock().unwrap_or_else(PoisonError::into_inner);
            // A move that has ended needs no connection.
            let _ = inputs.send(Input::NativeDown(reason));
        };
        let carried = UnixStream::connect(&self.socket)
            .and_then(|inner| carry(link, &inner, &self.cuts, told));
        if let Err(error) = carried {
            told(Broken::Hypervisor(error));
        }
    }

    /// Ends all connections.
    pub(crate) fn end(&self) {
        self.cuts.end();
    }
}
