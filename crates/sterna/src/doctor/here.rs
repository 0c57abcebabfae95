//! What this host has beside its hypervisor: an identity, and space.

use crate::agent::file::{File, USUAL};
use std::path::Path;
use std::time::SystemTime;
use sterna_agent::{GUEST_USERS_SUGGESTED, GuestUsers};
use sterna_api::{Finding, HostInfo, Verdict};
use sterna_engine::identity::{AUTHORITY_HOST_FILE, CERTIFICATE_FILE};
use sterna_pki::{AUTHORITY_FOLDER, HostCertificate};
use sterna_vmm::qemu::probe::CGROUPS;

/// Bytes that should be free where the journal is.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// Whether this host is one of a cluster, and for how long.
pub(super) fn identity(folder: &Path) -> Finding {
    let check = "identity".to_owned();
    let join = "`sterna host join CODE`, or `sterna cluster init` on the first host of a cluster";
    let certificate = match HostCertificate::read(&folder.join(CERTIFICATE_FILE)) {
        Ok(certificate) => certificate,
        Err(error) => {
            let detail = format!("no guest can move yet: {error}");
            return Finding { check, verdict: Verdict::Limited, detail, remedy: Some(join.into()) };
        }
    };
    let until = certificate.validity.until;
    let renews =
        folder.join(AUTHORITY_HOST_FILE).exists() || folder.join(AUTHORITY_FOLDER).exists();
    let detail = format!("{}, until {}", certificate.subject.name, until.date());
    if !certificate.validity.is_due(SystemTime::now().into()) {
        return Finding { check, verdict: Verdict::Good, detail, remedy: None };
    }
    let (detail, remedy) = match renews {
        true => (
            format!("{detail}: its agent should have renewed it"),
            "see in the agent's log why it could not: `journalctl -u sterna`",
        ),
        false => (
            format!("{detail}: it was made by hand, and is soon over"),
            "`sterna pki host`, then `systemctl reload sterna`",
        ),
    };
    Finding { check, verdict: Verdict::Limited, detail, remedy: Some(remedy.into()) }
}

/// Whether there is space for what must survive a reboot.
pub(super) fn space(state: &Path) -> Finding {
    let check = "space".to_owned();
    // The folder is made by the agent; until then its nearest ancestor says it.
    let there = state.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let (verdict, detail) = match rustix::fs::statvfs(there) {
        Ok(system) => {
            let free = system.f_bavail.saturating_mul(system.f_frsize);
            let detail = format!("{} free in {}", crate::units::size(free), there.display());
            let has_enough = free >= FREE_BYTES_MIN;
            (if has_enough { Verdict::Good } else { Verdict::Limited }, detail)
        }
        Err(error) => (Verdict::Limited, format!("{} cannot be asked: {error}", there.display())),
    };
    let remedy = (verdict != Verdict::Good)
        .then(|| "free a GiB there: without space no move can be recorded, and none begins".into());
    Finding { check, verdict, detail, remedy }
}

/// Whether a hypervisor that was taken over has more than its guest.
pub(super) fn users() -> Finding {
    match File::find(None) {
        Ok(file) => users_of(file.guest_users()),
        Err(error) => limited("guest users", format!("{error:#}"), "sterna agent --check"),
    }
}

fn users_of(users: Option<&GuestUsers>) -> Finding {
    let Some(users) = users else {
        let detail =
            "hypervisors run as root: one that its guest has taken over has the whole host";
        let remedy = format!(
            "sed -i '1i guest-uids = \"{GUEST_USERS_SUGGESTED}\"' {USUAL} && systemctl restart sterna; guests that run go on \
             as root until they are started anew or move"
        );
        return limited("guest users", detail.into(), &remedy);
    };
    match users.check() {
        Ok(()) => {
            let detail = "each guest's hypervisor is started as a user of its own".into();
            let check = "guest users".into();
            Finding { check, verdict: Verdict::Good, detail, remedy: None }
        }
        Err(error) => limited("guest users", error.to_string(), "sterna agent --check"),
    }
}

/// Whether hypervisors are in cgroups of their own, as this host's agent has found: they lie beside its own, and no other
/// process is there to look.
pub(super) fn cgroups(agent: anyhow::Result<HostInfo>) -> Finding {
    match agent {
        Ok(info) => {
            let found = info.findings.into_iter().find(|finding| finding.check == CGROUPS);
            found.unwrap_or_else(|| {
                let detail = "the agent that runs is of an older release".into();
                limited(CGROUPS, detail, "systemctl restart sterna")
            })
        }
        Err(error) => {
            let detail = format!("no agent says whether hypervisors are bounded: {error:#}");
            limited(CGROUPS, detail, "systemctl start sterna")
        }
    }
}

fn limited(check: &str, detail: String, remedy: &str) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Limited, detail, remedy: Some(remedy.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_pki::{Authority, Subject, Validity};

    #[test]
    fn an_identity_is_missing_good_or_nearly_over() {
        let folder = tempfile::tempdir().unwrap();
        let identity_folder = folder.path().join("id");
        let found = identity(&identity_folder);
        assert_eq!(found.verdict, Verdict::Limited);
        assert!(found.remedy.unwrap().contains("sterna host join"));
        let authority = Authority::create(&folder.path().join("authority")).unwrap();
        let subject = Subject { name: "a".into(), addresses: vec![] };
        let (good, now) = (Validity::by_hand(), SystemTime::now().into());
        authority.issue(&subject, good).unwrap().write(&identity_folder).unwrap();
        assert_eq!(identity(&identity_folder).verdict, Verdict::Good);
        let old = Validity { from: good.from - (good.until - good.from) * 4, ..good };
        assert!(old.is_due(now));
        let identity_folder = folder.path().join("old");
        authority.issue(&subject, old).unwrap().write(&identity_folder).unwrap();
        assert!(identity(&identity_folder).remedy.unwrap().contains("sterna pki host"));
        std::fs::write(identity_folder.join("authority.host"), "a\n").unwrap();
        assert!(identity(&identity_folder).detail.contains("should have renewed"));
    }

    #[test]
    fn hypervisors_that_run_as_root_are_told_of_with_the_command_that_ends_it() {
        let found = users_of(None);
        assert_eq!(found.verdict, Verdict::Limited);
        assert!(found.remedy.unwrap().starts_with("sed -i '1i guest-uids = \"1900000000-"));
        let found = users_of(Some(&GUEST_USERS_SUGGESTED.parse().unwrap()));
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(found.verdict == Verdict::Good, is_root, "{found:?}");
    }

    #[test]
    fn what_the_agent_has_found_of_cgroups_is_told_or_how_to_ask_it() {
        let found = cgroups(Err(anyhow::anyhow!("nobody")));
        assert_eq!(found.remedy.as_deref(), Some("systemctl start sterna"));
        let mut info: HostInfo = serde_json::from_value(serde_json::json!({
            "name": "a", "version": "1", "journal": "j", "move_port": 1, "guests": 0, "findings": []
        }))
        .unwrap();
        assert_eq!(cgroups(Ok(info.clone())).remedy.as_deref(), Some("systemctl restart sterna"));
        let told = limited(CGROUPS, "none".into(), "mount them");
        info.findings = vec![limited("qemu", "old".into(), "install it"), told.clone()];
        assert_eq!(cgroups(Ok(info)), told);
    }

    #[test]
    fn space_is_told_of_a_folder_that_is_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let found = space(&folder.path().join("not/yet"));
        assert!(found.detail.contains(&folder.path().display().to_string()), "{found:?}");
    }
}
