//! Processors, where guests see them as they are: whoever has used a feature of one host must find it
//! on the next.

use procfs::{CpuInfo, Current};
use sterna_proto::message::{HostCpu, Reason, ReasonCode};
use sterna_vmm::{Accelerator, GuestDefinition};

/// Features that a refusal names at most.
const NAMED_MAX: usize = 12;

/// Whether a guest sees its host's processor as it is.
pub(crate) fn is_seen_by(definition: &GuestDefinition) -> bool {
    let model = definition.cpu.as_deref().unwrap_or_default();
    let model = model.split(',').next().unwrap_or_default();
    // An emulated processor is the same everywhere.
    definition.accelerator == Accelerator::Kvm && matches!(model, "host" | "max")
}

/// This host's processor; `None` if the kernel does not tell.
pub(crate) fn here() -> Option<HostCpu> {
    let info = CpuInfo::current().inspect_err(|error| tracing::warn!(%error, "no cpuinfo")).ok()?;
    Some(HostCpu {
        vendor: info.vendor_id(0)?.to_owned(),
        model: info.model_name(0)?.to_owned(),
        flags: info.flags(0)?.into_iter().map(str::to_owned).collect(),
    })
}

/// Why a guest that has seen the processor `theirs` cannot go on with `ours`.
pub(crate) fn unlike(theirs: &HostCpu, ours: Option<&HostCpu>) -> Option<Reason> {
    let detail = match ours {
        None => "this host's processor is not known, and the guest has seen its host's".to_owned(),
        Some(ours) if ours.vendor != theirs.vendor => format!(
            "the guest has seen a processor of {} ({}), here it is {} ({})",
            theirs.vendor, theirs.model, ours.vendor, ours.model
        ),
        Some(ours) => {
            let missing: Vec<&str> =
                theirs.flags.difference(&ours.flags).map(String::as_str).collect();
            if missing.is_empty() {
                return None;
            }
            let more = missing.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let named = missing[..missing.len().min(NAMED_MAX)].join(", ");
            format!(
                "the guest has seen a processor ({}) with features that are missing here ({}): \
                 {named}{more}; give it a cpu model that both hosts have",
                theirs.model, ours.model
            )
        }
    };
    Some(Reason::new(ReasonCode::Incompatible, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(vendor: &str, flags: &[&str]) -> HostCpu {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        HostCpu { vendor: vendor.into(), model: "m".into(), flags }
    }

    #[test]
    fn a_host_with_all_that_the_guest_has_seen_is_as_good() {
        let old = cpu("A", &["sse", "avx"]);
        let newer = cpu("A", &["sse", "avx", "avx2"]);
        assert_eq!(unlike(&old, Some(&newer)), None);
        let lacks = unlike(&newer, Some(&old)).unwrap();
        assert_eq!(lacks.code, ReasonCode::Incompatible);
        assert!(lacks.detail.contains("avx2") && !lacks.detail.contains("sse"), "{lacks}");
        assert!(unlike(&old, Some(&cpu("B", &["sse", "avx"]))).unwrap().detail.contains("of A"));
        assert!(unlike(&old, None).is_some());
    }

    #[test]
    fn a_refusal_does_not_name_a_hundred_features() {
        let names: Vec<String> = (0..100).map(|n| format!("feature{n}")).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let reason = unlike(&cpu("A", &all), Some(&cpu("A", &[]))).unwrap();
        assert!(reason.detail.contains("and 88 more"), "{reason}");
    }

    #[test]
    fn only_a_guest_on_kvm_with_its_hosts_processor_sees_it() {
        let guest = |accelerator: &str, cpu: &str| -> GuestDefinition {
            let text = format!(
                r#"{{"name":"web-1","memory_bytes":16777216,"accelerator":"{accelerator}","cpu":"{cpu}"}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        assert!(is_seen_by(&guest("kvm", "host")) && is_seen_by(&guest("kvm", "host,-vmx")));
        assert!(!is_seen_by(&guest("kvm", "EPYC-v4")) && !is_seen_by(&guest("tcg", "max")));
    }

    #[test]
    fn this_hosts_processor_is_like_itself() {
        let here = here().unwrap();
        assert_eq!(unlike(&here, Some(&here)), None);
    }
}
