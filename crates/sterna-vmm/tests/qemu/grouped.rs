//! Each QEMU in a cgroup of its own.

use super::*;
use sterna_sys::cgroup::CpuLimit;
use sterna_sys::process::Process;
use sterna_vmm::qemu::{QemuRecord, cgroups_below, end_strays};

/// This host, if it has groups to give.
fn host() -> Option<Host> {
    let host = Host::new()?;
    match cgroups_below(host.folder.path()) {
        Ok(groups) => assert_eq!(groups, Vec::<PathBuf>::new()),
        Err(why) => {
            eprintln!("skipped: {why}");
            return None;
        }
    }
    Some(host)
}

fn groups(host: &Host) -> Vec<PathBuf> {
    cgroups_below(host.folder.path()).unwrap()
}

fn groups_of(host: &Host, name: &str) -> Vec<PathBuf> {
    let is_its = |group: &PathBuf| group.to_string_lossy().ends_with(&format!(",{name}"));
    groups(host).into_iter().filter(is_its).collect()
}

fn has_only(group: &Path, guest: &QemuGuest) {
    let pids = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    assert_eq!(pids, format!("{}\n", guest.pid()), "{}", group.display());
}

#[test]
fn a_qemu_is_bounded_in_a_group_of_its_own_until_it_has_ended() {
    let Some(host) = host() else { return };
    let vcpus = 3;
    let guest = host.start_as(&GuestDefinition { vcpus, ..host.definition() });
    let its = groups_of(&host, "a");
    assert!(!its.is_empty());
    its.iter().for_each(|group| has_only(group, &guest));
    let bounds =
        its.iter().filter_map(|group| std::fs::read_to_string(group.join("pids.max")).ok());
    assert_eq!(bounds.collect::<Vec<_>>(), ["4099\n"]);
    // Another one has another, also beside it in the same RAM, and both go with their guests.
    let arrived = move_guest(&host, &guest, "b");
    assert_eq!(groups_of(&host, "a"), Vec::<PathBuf>::new(), "it has been released");
    let upgraded = beside::upgrade(&host, &arrived, "b@");
    let now = groups_of(&host, "b@");
    assert_eq!(now, groups(&host));
    now.iter().for_each(|group| has_only(group, &upgraded));
    upgraded.end().unwrap();
    assert_eq!(groups(&host), Vec::<PathBuf>::new());
}

#[test]
fn a_qemu_that_is_killed_while_it_is_slowed_down_leaves_no_group() {
    let Some(host) = host() else { return };
    for found_by in ["its own agent", "a new one"] {
        let guest = host.start();
        let limit = CpuLimit::of(guest.pid()).unwrap();
        limit.set(&[guest.pid()], 50).unwrap();
        let below = format!("sterna-{}", guest.pid());
        assert!(groups(&host).iter().any(|group| group.join(&below).exists()), "not within");
        let process = Process::open(guest.pid()).unwrap();
        process.kill().unwrap();
        let _ = process.wait_for_end(LIMIT);
        assert!(!groups(&host).is_empty());
        if found_by == "a new one" {
            QemuGuest::reattach(guest.record().clone()).unwrap_err();
        } else {
            guest.end().unwrap();
        }
        assert_eq!(groups(&host), Vec::<PathBuf>::new(), "{found_by}");
    }
}

#[test]
fn groups_that_killed_agents_left_go_with_the_next_one_and_those_of_guests_stay() {
    let Some(host) = host() else { return };
    let guest = host.start();
    guest.on_record().unwrap();
    let its = groups(&host);
    let (_, stray) = host.destination(&guest, "b");
    assert_eq!(groups_of(&host, "b").len(), its.len());
    // One in which nothing runs, as that of a QEMU that was never started, and one of another agent.
    let beside = |group: &PathBuf, name: &str| {
        let text = group.to_string_lossy();
        PathBuf::from(text.strip_suffix(",a").unwrap().to_owned() + name)
    };
    let (left, others): (Vec<_>, Vec<_>) =
        its.iter().map(|group| (beside(group, ",left"), beside(group, "2,other"))).unzip();
    left.iter().chain(&others).for_each(|group| std::fs::create_dir(group).unwrap());
    let records: [QemuRecord; 1] = [guest.record().clone()];
    assert_eq!(end_strays(host.folder.path(), &records).unwrap(), [stray.pid()]);
    let others_stay = others.iter().all(|group| std::fs::remove_dir(group).is_ok());
    assert!(others_stay, "they are not this agent's");
    assert_eq!(groups(&host), its);
    assert_eq!(guest.status().unwrap(), QemuStatus::Running);
    // Also of an agent whose folders are gone, with all that ran there.
    guest.kill().unwrap();
    left.iter().for_each(|group| std::fs::create_dir(group).unwrap());
    assert!(end_strays(&host.folder("nothing"), &[]).unwrap().is_empty());
    assert_eq!(groups(&host), left, "of other folders");
    assert!(end_strays(host.folder.path(), &[]).unwrap().is_empty());
    assert_eq!(groups(&host), Vec::<PathBuf>::new());
}

#[test]
fn a_guest_that_does_not_start_leaves_no_group() {
    let Some(host) = host() else { return };
    let qemu_args = vec!["-device".into(), "no-such-device".into()];
    let definition = GuestDefinition { qemu_args, ..host.definition() };
    QemuGuest::start(&host.binary, &definition, host.folder("a"), StartMode::Run).unwrap_err();
    assert_eq!(groups(&host), Vec::<PathBuf>::new());
}
