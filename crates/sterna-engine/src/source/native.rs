//! The guest's hypervisor copies by itself: its connections are carried to the destination, and what it
//! says of its rounds becomes events.

use super::Move;
use super::mover::Shared;
use crate::link::{Link, Meter};
use crate::native::{Broken, Cuts, carry};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use sterna_core::receipt::PagesByCoding;
use sterna_core::source::{Event, HypervisorRound, RoundSent};
use sterna_core::speed::VcpuSpeed;
use sterna_page::{PAGE_SIZE_BYTES, PageCount};
use sterna_proto::message::{Reason, ReasonCode};
use sterna_proto::preamble::{MoveToken, Role};
use sterna_vmm::{NativeListener, NativeSent, NativeStep};

/// How often orders are looked for while the hypervisor copies.
pub(super) const BEAT: Duration = Duration::from_millis(100);

/// Rounds that end sooner than this after the last are told as one with the next: where little is
/// written a hypervisor makes hundreds of them.
const ROUND_SHORTEST: Duration = Duration::from_millis(200);

/// How often is looked whether a hypervisor that does not connect is still waited for.
const CONNECT_BEAT: Duration = Duration::from_millis(100);

/// What the hypervisor has under way.
#[derive(Debug)]
pub(super) struct Native {
    /// Whether it copies, and its news are waited for.
    pub(super) copying: bool,
    /// What had been sent when a round was last told of, and when.
    told: NativeSent,
    told_at: Instant,
    carried: Carried,
}

/// The connections.
#[derive(Clone, Debug, Default)]
struct Carried {
    cuts: Arc<Cuts>,
    /// Why one of them broke.
    broken: Arc<Mutex<Option<Reason>>>,
}

impl Carried {
    fn breaks(&self, reason: Reason) {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        // The hypervisor notices that nothing gets through, and gives up.
        self.cuts.end();
    }
}

impl Native {
    /// Carries each of the `connections` that the hypervisor makes to `listener`.
    pub(super) fn begin(
        listener: NativeListener,
        connections: u16,
        token: MoveToken,
        request: &Move,
        meter: &Meter,
    ) -> io::Result<Self> {
        let carried = Carried::default();
        let (request, meter, all) = (request.clone(), meter.clone(), carried.clone());
        thread::Builder::new().name("native-accept".into()).spawn(move || {
            for channel in 0..connections {
                let inner = loop {
                    match listener.accept(CONNECT_BEAT) {
                        Ok(Some(inner)) => break inner,
                        Ok(None) if all.cuts.is_ended() => return,
                        Ok(None) => {}
                        Err(error) => return all.breaks(agent(&error)),
                    }
                };
                let (request, meter, one) = (request.clone(), meter.clone(), all.clone());
                let role = Role::Native { channel, token };
                let spawned = thread::Builder::new()
                    .name("native-out".into())
                    .spawn(move || connect(inner, role, &request, &meter, &one));
                if let Err(error) = spawned {
                    return all.breaks(agent(&error));
                }
            }
        })?;
        let (told, told_at) = (NativeSent::default(), Instant::now());
        Ok(Self { copying: true, told, told_at, carried })
    }

    /// What ends the connections.
    pub(super) fn cuts(&self) -> Arc<Cuts> {
        Arc::clone(&self.carried.cuts)
    }

    /// Why a connection broke, if one did: the reason of what the hypervisor says then.
    pub(super) fn broken(&self) -> Option<Event> {
        let broken = self.carried.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.clone().map(Event::Failed)
    }

    /// What the hypervisor's news mean.
    pub(super) fn events(&mut self, step: NativeStep, shared: &Shared) -> Vec<Event> {
        match step {
            NativeStep::Copying(sent) => {
                shared.copied(sent.pages.saturating_add(sent.zero_pages));
                vec![]
            }
            NativeStep::RoundEnded(now) => {
                shared.copied(now.pages.saturating_add(now.zero_pages));
                if self.told_at.elapsed() < ROUND_SHORTEST || now.bytes <= self.told.bytes {
                    return vec![];
                }
                let left = PageCount(now.left_bytes / PAGE_SIZE_BYTES);
                let vcpus = VcpuSpeed::percent(now.vcpu_percent);
                let sent = self.since_told(now);
                vec![Event::RoundPassed(Box::new(HypervisorRound { sent, left, vcpus }))]
            }
            NativeStep::Paused { stopped, drained, .. } => {
                self.copying = false;
                shared.paused(stopped, drained);
                vec![Event::Paused]
            }
        }
    }

    /// What was sent since this was last asked.
    pub(super) fn since_told(&mut self, now: NativeSent) -> RoundSent {
        self.told_at = Instant::now();
        let told = std::mem::replace(&mut self.told, now);
        RoundSent {
            pages: PagesByCoding {
                raw: PageCount(now.pages.saturating_sub(told.pages)),
                zero: PageCount(now.zero_pages.saturating_sub(told.zero_pages)),
                ..PagesByCoding::default()
            },
            bytes: now.bytes.saturating_sub(told.bytes),
            ..RoundSent::default()
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.carried.cuts.end();
    }
}

fn connect(inner: UnixStream, role: Role, request: &Move, meter: &Meter, all: &Carried) {
    let Move { to, to_name, identity, .. } = request;
    let lost = |words: String| {
        let detail = format!("a connection between the hypervisors was lost: {words}");
        all.breaks(Reason::new(ReasonCode::LinkLost, detail));
    };
    let link = match Link::connect(*to, to_name, identity, role, meter) {
        Ok(link) => link,
        // The hypervisor's end is dropped after that, which ends it.
        Err(error) => return lost(error.in_words()),
    };
    let carried = carry(link, &inner, &all.cuts, |broken| match broken {
        // Its own words say more.
        Broken::Hypervisor(_) => all.cuts.end(),
        Broken::Link(_) if all.cuts.is_ended() => {}
        Broken::Link(error) => lost(error.to_string()),
    });
    if let Err(error) = carried {
        all.breaks(agent(&error));
    }
}

fn agent(error: &io::Error) -> Reason {
    Reason::new(ReasonCode::Agent, error.to_string())
}
