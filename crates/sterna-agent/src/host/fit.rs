//! Whether a guest fits this host: every reason why not, at once.

use crate::settings::PeerArguments;
use std::path::Path;
use sterna_proto::message::{Epoch, Reason, ReasonCode};
use sterna_vmm::GuestDefinition;

/// What this host has, as far as it matters to one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Bytes of memory of the guest's kind that nobody uses or was promised.
    pub(crate) memory_free_bytes: u64,
    /// What the hypervisor has against it.
    pub(crate) objections: Vec<Reason>,
    /// What the guest needs and this host lacks.
    pub(crate) missing: Vec<String>,
}

/// Why a guest of this definition cannot run on a host like this.
pub(crate) fn unfit(definition: &GuestDefinition, facts: &Facts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if definition.memory_bytes > facts.memory_free_bytes {
        let kind = if definition.huge_pages { "huge pages" } else { "memory" };
        let detail = format!(
            "the guest needs {} bytes of {kind}, {} are free",
            definition.memory_bytes, facts.memory_free_bytes
        );
        reasons.push(Reason::new(ReasonCode::NoRoom, detail));
    }
    reasons.extend(facts.objections.iter().cloned());
    let missing = facts.missing.iter();
    reasons.extend(missing.map(|what| Reason::new(ReasonCode::Missing, what.clone())));
    reasons
}

/// Why an offer is stale: this host has seen as new an attempt to move the guest.
pub(crate) fn stale(offered: Epoch, seen: Option<Epoch>) -> Option<Reason> {
    let seen = seen?;
    (seen >= offered).then(|| {
        let detail =
            format!("the offer is attempt {}, this host has seen attempt {}", offered.0, seen.0);
        Reason::new(ReasonCode::StaleEpoch, detail)
    })
}

/// Why a definition is not taken from another host.
pub(crate) fn forbidden(definition: &GuestDefinition, policy: PeerArguments) -> Option<Reason> {
    let refused = policy == PeerArguments::Refused && !definition.qemu_args.is_empty();
    refused.then(|| {
        let detail = "the guest has hypervisor arguments of its own, which this host takes from \
            its own operator only (see --accept-peer-arguments)";
        Reason::new(ReasonCode::Forbidden, detail)
    })
}

/// What a guest needs of this host's file system and network, and does not find.
pub(crate) fn missing(definition: &GuestDefinition) -> Vec<String> {
    let mut missing = Vec::new();
    let disks = definition.disks.iter().map(|disk| ("disk", disk.path.as_path()));
    let kernel = definition.kernel.iter().map(|path| ("kernel", path.as_path()));
    let initrd = definition.initrd.iter().map(|path| ("initial RAM disk", path.as_path()));
    for (what, path) in disks.chain(kernel).chain(initrd) {
        if !path.exists() {
            missing.push(format!("the {what} {} is not there", path.display()));
        }
    }
    for network in &definition.networks {
        if !Path::new("/sys/class/net").join(&network.tap).exists() {
            missing.push(format!("the tap device {} is not there", network.tap));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> GuestDefinition {
        serde_json::from_str(
            r#"{"name":"web-1","memory_bytes":1073741824,"qemu_args":["-s"],
            "disks":[{"path":"/nowhere/disk.qcow2"}],"networks":[{"tap":"nowhere0","mac":"x"}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn every_reason_is_told_at_once() {
        let definition = definition();
        let facts = Facts {
            memory_free_bytes: 1 << 20,
            objections: vec![Reason::new(ReasonCode::Incompatible, "no such machine type")],
            missing: missing(&definition),
        };
        let codes: Vec<ReasonCode> = unfit(&definition, &facts).iter().map(|r| r.code).collect();
        use ReasonCode::{Incompatible, Missing, NoRoom};
        assert_eq!(codes, [NoRoom, Incompatible, Missing, Missing]);
    }

    #[test]
    fn a_guest_that_fits_has_no_reason_against_it() {
        let definition = GuestDefinition { disks: vec![], networks: vec![], ..definition() };
        let facts = Facts {
            memory_free_bytes: definition.memory_bytes,
            objections: vec![],
            missing: missing(&definition),
        };
        assert_eq!(unfit(&definition, &facts), []);
    }

    #[test]
    fn an_attempt_this_host_has_seen_is_stale() {
        let seen = Some(Epoch(3));
        assert_eq!(stale(Epoch(3), seen).unwrap().code, ReasonCode::StaleEpoch);
        assert_eq!(stale(Epoch(4), seen), None);
        assert_eq!(stale(Epoch(1), None), None);
    }

    #[test]
    fn hypervisor_arguments_are_not_taken_from_a_peer() {
        let reason = forbidden(&definition(), PeerArguments::Refused).unwrap();
        assert_eq!(reason.code, ReasonCode::Forbidden);
        assert_eq!(forbidden(&definition(), PeerArguments::Accepted), None);
    }
}
