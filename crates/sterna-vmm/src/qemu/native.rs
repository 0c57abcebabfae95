//! QEMU's own migration, of RAM and device state as one.

use super::instance::QemuGuest;
use super::movable;
use super::qmp::{Qmp, REPLY_LIMIT};
use super::replies::Migration;
use super::source::{QemuSource, SETUP_LIMIT, capabilities};
use crate::{
    Accelerator, Compared, Compression, Discarding, Immovable, NativeListener, NativePlan,
    NativeSent, NativeStep, NativeWay, VmmError,
};
use qapi::qmp::{MigrationCapability, MigrationStatus, migrate, migrate_continue, query_migrate};
use serde::Serialize;
use std::time::{Duration, Instant};

/// How long QEMU may take to send what is left of a paused guest. The move's own limit, which is about
/// as long, ends it by closing the connections.
const FINISH_LIMIT: Duration = Duration::from_secs(150);

/// The longest downtime, in ms, that QEMU takes.
const DOWNTIME_LONGEST_MS: u64 = 2_000_000;

/// What a guest's QEMU has come to by itself.
#[derive(Debug, Default)]
pub(super) struct Native {
    /// When the vCPUs stood still.
    stopped: Option<Instant>,
}

/// `migrate-set-parameters` with what QEMU's own migration needs. What is `None` stays as it is.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct NativeParameters {
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bandwidth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    downtime_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    multifd_channels: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    multifd_compression: Option<&'static str>,
}

impl qapi::Command for NativeParameters {
    type Ok = qapi::Empty;
    const NAME: &'static str = "migrate-set-parameters";
    const ALLOW_OOB: bool = false;
}

/// The capabilities of both sides, and the parameters that must be alike.
fn settings(way: NativeWay) -> (Vec<MigrationCapability>, NativeParameters) {
    let mut names = vec![MigrationCapability::pause_before_switchover, MigrationCapability::events];
    let mut parameters = NativeParameters::default();
    match way {
        NativeWay::PreCopy => {}
        NativeWay::Xbzrle => names.push(MigrationCapability::xbzrle),
        NativeWay::Multifd { channels, compression } => {
            names.push(MigrationCapability::multifd);
            parameters.multifd_channels = Some(channels);
            parameters.multifd_compression = Some(match compression {
                Compression::None => "none",
                Compression::Zstd => "zstd",
            });
        }
    }
    (names, parameters)
}

/// Sets what a QEMU needs to which another copies a guest. Must come before `migrate-incoming`.
pub(super) fn expect(qmp: &mut Qmp, way: NativeWay) -> Result<(), VmmError> {
    let (names, parameters) = settings(way);
    qmp.execute(&capabilities(&names), REPLY_LIMIT)?;
    if matches!(way, NativeWay::Multifd { .. }) {
        qmp.execute(&parameters, REPLY_LIMIT)?;
    }
    Ok(())
}

/// Every reason why QEMU cannot move this guest by itself, or RAM not be compared then.
pub(super) fn reasons(
    guest: &QemuGuest,
    qmp: &mut Qmp,
    ram: Compared,
) -> Result<Vec<Immovable>, VmmError> {
    let mut reasons = Vec::new();
    movable::capabilities(qmp, &mut reasons)?;
    movable::blocked(qmp, &mut reasons)?;
    if ram == Compared::Yes {
        movable::memory(guest, qmp, &mut reasons)?;
        let mut differs = |why: &str| reasons.push(Immovable::Incomparable { why: why.into() });
        if movable::discarding(qmp)? == Discarding::Possible {
            differs(
                "what the guest gives back by its balloon during the move stays as it was sent; \
                 use a guest without one",
            );
        }
        if matches!(guest.definition().accelerator, Accelerator::Kvm | Accelerator::KvmUnproven) {
            differs("KVM writes this host's clock into it when the state of the vCPUs is loaded");
        }
    }
    Ok(reasons)
}

impl QemuSource {
    pub(super) fn start_native(&mut self, plan: &NativePlan) -> Result<NativeListener, VmmError> {
        let (mut names, parameters) = settings(plan.way);
        if plan.slow_down {
            names.push(MigrationCapability::auto_converge);
        }
        let downtime = u64::try_from(plan.downtime_max.as_millis()).unwrap_or(u64::MAX);
        let parameters = NativeParameters {
            max_bandwidth: Some(plan.bandwidth_bytes_per_second.unwrap_or(0)),
            downtime_limit: Some(downtime.min(DOWNTIME_LONGEST_MS)),
            ..parameters
        };
        self.note_whether_it_runs()?;
        self.qmp.execute(&capabilities(&names), REPLY_LIMIT)?;
        self.qmp.execute(&parameters, REPLY_LIMIT)?;
        self.qmp.forget_events();
        let path = self.guest.folder().transfer_socket();
        let listener = NativeListener::bind(&path)?;
        self.guest.offer_transfer()?;
        let uri = Some(self.guest.transfer_uri());
        let command = migrate { channels: None, detach: None, resume: None, uri };
        self.qmp.execute(&command, REPLY_LIMIT)?;
        self.native = Native::default();
        // A connection that ends earlier may keep QEMU from ever migrating again.
        self.await_status("connecting", "active", SETUP_LIMIT, |_| {})?;
        Ok(listener)
    }

    pub(super) fn watch_native(&mut self, wait: Duration) -> Result<NativeStep, VmmError> {
        enum News {
            Pass,
            Paused(Instant),
            Ended,
        }
        let stopped = &mut self.native.stopped;
        let news = self.qmp.wait_event("copying", wait, |event| {
            match (event.name.as_str(), event.migration_status()) {
                ("STOP", _) => {
                    *stopped = Some(event.arrived);
                    None
                }
                // The first one is when it begins: nothing was sent yet.
                ("MIGRATION_PASS", _) => (event.data["pass"].as_u64()? > 1).then_some(News::Pass),
                (_, Some("pre-switchover")) => Some(News::Paused(event.arrived)),
                (_, Some("failed" | "cancelled" | "completed")) => Some(News::Ended),
                _ => None,
            }
        });
        match news {
            Err(VmmError::TimedOut { .. }) => Ok(NativeStep::Copying(self.native_sent()?)),
            Err(error) => Err(error),
            Ok(News::Pass) => Ok(NativeStep::RoundEnded(self.native_sent()?)),
            Ok(News::Paused(at)) => {
                let stopped = self.native.stopped.unwrap_or(at);
                let drained = at.saturating_duration_since(stopped);
                Ok(NativeStep::Paused { stopped, drained, sent: self.native_sent()? })
            }
            Ok(News::Ended) => Err(self.migration_failed("copying")?),
        }
    }

    pub(super) fn hurry(&mut self) -> Result<(), VmmError> {
        let parameters =
            NativeParameters { downtime_limit: Some(DOWNTIME_LONGEST_MS), ..Default::default() };
        self.qmp.execute(&parameters, REPLY_LIMIT)
    }

    pub(super) fn complete_native(&mut self) -> Result<NativeSent, VmmError> {
        self.qmp.forget_events();
        let state = MigrationStatus::pre_switchover;
        self.qmp.execute(&migrate_continue { state }, REPLY_LIMIT)?;
        self.await_status("sending what is left", "completed", FINISH_LIMIT, |_| {})?;
        self.native_sent()
    }

    fn native_sent(&mut self) -> Result<NativeSent, VmmError> {
        let migration: Migration = self.qmp.query(&query_migrate {})?;
        let ram = migration.ram.unwrap_or_default();
        let differences = migration.xbzrle_cache.unwrap_or_default().pages;
        Ok(NativeSent {
            pages: ram.normal.saturating_add(differences),
            zero_pages: ram.duplicate,
            bytes: ram.transferred,
            left_bytes: ram.remaining,
            vcpu_percent: 100u8.saturating_sub(migration.cpu_throttle_percentage).max(1),
        })
    }
}

/// Waits until a QEMU to which another copies a guest has all of it.
pub(super) fn arrived(qmp: &mut Qmp, limit: Duration) -> Result<(), VmmError> {
    let deadline = Instant::now() + limit;
    loop {
        let migration: Migration = qmp.query(&query_migrate {})?;
        match migration.status.as_deref() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let detail = migration.error_desc.unwrap_or_else(|| "migration failed".into());
                return Err(VmmError::Refused { operation: "taking the guest", detail });
            }
            _ => {}
        }
        let rest = deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Err(VmmError::TimedOut { operation: "taking the guest", limit });
        }
        // Woken by the event that says so; asked again now and then, as one may have been missed.
        let changed = |event: &super::qmp::QmpEvent| event.migration_status().map(drop);
        match qmp.wait_event("taking the guest", rest.min(ASK_AGAIN), changed) {
            Ok(()) | Err(VmmError::TimedOut { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

/// How often a QEMU that has said nothing is asked.
const ASK_AGAIN: Duration = Duration::from_millis(500);
