//! Whether an agent has groups to give to its hypervisors.

use super::super::cgroup::TASKS_BESIDE_VCPUS_MAX;
use super::{Finding, Verdict};
use std::error::Error;
use sterna_sys::cgroup::{NoGroups, Parents};

/// Name of the check.
pub const CGROUPS: &str = "cgroups";

/// Whether the agent that is process `pid` starts hypervisors in cgroups of their own.
#[must_use]
pub fn cgroups(pid: u32) -> Finding {
    match Parents::of(pid) {
        Ok(_) => Finding::good(
            CGROUPS,
            format!(
                "each hypervisor has one, with {TASKS_BESIDE_VCPUS_MAX} threads at most beside its vCPUs"
            ),
        ),
        Err(why) => {
            let source = why.source().map(|source| format!(": {source}")).unwrap_or_default();
            let detail = format!("nothing bounds how many threads a hypervisor has: {why}{source}");
            Finding::bad(CGROUPS, Verdict::Warning, detail, &remedy(&why))
        }
    }
}

fn remedy(why: &NoGroups) -> String {
    match why {
        NoGroups::NotMounted => "mount -t cgroup2 cgroup2 /sys/fs/cgroup".into(),
        NoGroups::NotDelegated { .. } => {
            "systemctl restart sterna, with systemd 254 or newer (`systemctl --version`): an agent that was started in \
             another way, or by an older one, has no group that it may divide"
                .into()
        }
        NoGroups::NoController { group } => {
            let above = group.parent().unwrap_or(group).display();
            format!("echo +pids > {above}/cgroup.subtree_control")
        }
        NoGroups::Refused { .. } => {
            "mount -o remount,rw /sys/fs/cgroup, and run the agent as root".into()
        }
        NoGroups::Unknown { .. } => "systemctl start sterna".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_sys::cgroup::LEAF;

    #[test]
    fn the_unit_has_the_agent_begin_where_it_may_make_groups() {
        let unit = include_str!("../../../../../packaging/sterna.service");
        let has = |line: &str| unit.lines().any(|found| found == line);
        assert!(has("Delegate=yes") && has(&format!("DelegateSubgroup={LEAF}")));
    }

    #[test]
    fn an_agent_that_is_none_has_no_groups_and_a_remedy() {
        let found = cgroups(u32::MAX >> 2);
        assert_eq!(found.verdict, Verdict::Warning);
        assert_eq!(found.remedy.as_deref(), Some("systemctl start sterna"));
        let group = "/sys/fs/cgroup/a/b".into();
        let told = remedy(&NoGroups::NoController { group });
        assert_eq!(told, "echo +pids > /sys/fs/cgroup/a/cgroup.subtree_control");
    }
}
