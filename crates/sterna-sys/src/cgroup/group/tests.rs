use super::*;
use crate::cgroup::CpuLimit;
use crate::process::{Process, spawn_detached};
use std::io::Read;
use std::ops::{Deref, DerefMut};
use std::process::{Child, Command, Stdio};

/// Groups of one test, removed when it ends.
struct Groups {
    parents: Parents,
    prefix: String,
}

impl Groups {
    /// Those of a test of this name, or nothing, with the reason printed.
    fn of(test: &str) -> Option<Self> {
        match Parents::of(std::process::id()) {
            Ok(parents) => {
                let prefix = format!("sterna-test-{}-{test}", std::process::id());
                Some(Self { parents, prefix })
            }
            Err(why) => {
                eprintln!("skipped: {why}");
                None
            }
        }
    }

    fn group(&self, name: &str) -> Group {
        self.parents.group(&format!("{}-{name}", self.prefix))
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // What says nothing any more may still be about to end.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.parents.named(&self.prefix).unwrap();
            if left.iter().all(|group| group.remove().is_ok()) {
                return;
            }
            assert!(Instant::now() < deadline || std::thread::panicking(), "{left:?} are left");
            if std::thread::panicking() {
                return;
            }
        }
    }
}

/// A process that a failing test does not leave behind.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Deref for Ended {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Ended {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

const WIDE: Bounds = Bounds { tasks_max: 100, weight: 2 };

fn spawn_in(group: &Group, bounds: Bounds, script: &str) -> Ended {
    let entrances = group.make(bounds).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    Ended(spawn_detached(command, vec![], None, entrances).unwrap())
}

/// What a child says until all in its group have ended, which the end of its input makes them.
fn said(mut child: Ended) -> String {
    drop(child.stdin.take());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    text
}

#[test]
fn a_process_is_in_its_group_from_the_first_and_the_group_goes_after_it() {
    let Some(groups) = Groups::of("first") else { return };
    let group = groups.group("a");
    assert_eq!(group.folders(), Vec::<PathBuf>::new());
    let child = spawn_in(&group, WIDE, "cat /proc/self/cgroup; read line");
    assert!(group.has(child.id()).unwrap() && !group.has(std::process::id()).unwrap());
    let error = group.remove().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy, "{error}");
    assert!(group.make(WIDE).is_err(), "somebody has it");
    assert_eq!(group.folders().len(), groups.parents.0.len());
    assert_eq!(groups.parents.named(&groups.prefix).unwrap(), std::slice::from_ref(&group));
    let text = said(child);
    let inside = text.lines().filter(|line| line.contains(&format!("{}-a", groups.prefix)));
    assert_eq!(inside.count(), groups.parents.0.len(), "{text}");
    group.remove().unwrap();
    assert_eq!(group.folders(), Vec::<PathBuf>::new());
    group.remove().unwrap();
}

#[test]
fn no_more_processes_run_in_a_group_than_it_may_have() {
    let Some(groups) = Groups::of("bound") else { return };
    let script = "exec 3<&0; for i in 1 2 3 4 5 6; do (read line <&3) & done; echo done";
    let refused = |group: &Group| {
        let folders = group.folders().into_iter();
        let events = |folder: PathBuf| fs::read_to_string(folder.join("pids.events")).ok();
        let events = folders.filter_map(events).next().unwrap();
        events.trim() != "max 0"
    };
    // One of them is the shell itself.
    for (name, tasks_max, all) in [("a", 4, false), ("b", 7, true)] {
        let group = groups.group(name);
        let text = said(spawn_in(&group, Bounds { tasks_max, ..WIDE }, script));
        assert_eq!(text.contains("done"), all, "{text:?}");
        assert_eq!(refused(&group), !all);
    }
}

#[test]
fn limited_threads_stay_within_their_group_and_leave_nothing_when_they_are_killed() {
    let Some(groups) = Groups::of("limited") else { return };
    let group = groups.group("a");
    let mut child = spawn_in(&group, WIDE, "while :; do :; done");
    let limit = CpuLimit::of(child.id()).unwrap();
    limit.set(&[child.id()], 20).unwrap();
    while limit.held_back().unwrap() < Duration::from_millis(20) {
        std::thread::yield_now();
    }
    limit.lift().unwrap();
    limit.set(&[child.id()], 20).unwrap();
    let within = |folder: &PathBuf| folder.join(format!("sterna-{}", child.id())).exists();
    assert!(group.folders().iter().any(within), "{:?}", group.folders());
    assert!(group.remove().is_err(), "it runs");
    let process = Process::open(child.id()).unwrap();
    process.kill().unwrap();
    // As soon as it is known to have ended, whoever reaps it.
    let _ = process.wait_for_end(Duration::from_secs(10));
    group.remove().unwrap();
    assert_eq!(group.folders(), Vec::<PathBuf>::new());
    child.wait().unwrap();
}

#[test]
fn a_group_counts_for_as_many_threads_as_it_is_said_to() {
    let Some(groups) = Groups::of("weight") else { return };
    let group = groups.group("a");
    group.make(WIDE).unwrap();
    let read = |folder: PathBuf| {
        let read = |(file, one): (&str, u32)| {
            let weight = fs::read_to_string(folder.join(file)).ok()?;
            Some(weight.trim().parse::<u32>().unwrap() / one)
        };
        [("cpu.weight", 100), ("cpu.shares", 1024)].into_iter().find_map(read)
    };
    let weights: Vec<u32> = group.folders().into_iter().filter_map(read).collect();
    assert_eq!(weights, [WIDE.weight]);
}

#[test]
fn a_process_in_a_delegated_leaf_makes_groups_beside_it_and_no_other_does() {
    let Ok(Some(place)) = Place::of(std::process::id(), "pids") else {
        return eprintln!("skipped: no cgroups");
    };
    if place.version == Version::One || place.home != place.mount {
        return eprintln!("skipped: this process has no hierarchy of v2 to itself");
    }
    let Some(groups) = Groups::of("leaf") else { return };
    let delegated = groups.group("delegated");
    delegated.make(WIDE).unwrap();
    let [folder] = &delegated.folders()[..] else { panic!("not one folder") };
    let enter = |group: &Path| {
        let child = Ended(Command::new("sleep").arg("1000").spawn().unwrap());
        let entered = fs::write(group.join("cgroup.procs"), child.id().to_string());
        (child, entered)
    };
    let inside = |leaf: &str| {
        let leaf = folder.join(leaf);
        fs::create_dir_all(&leaf).unwrap();
        let (child, entered) = enter(&leaf);
        entered.unwrap();
        child
    };
    let mut maker = inside(LEAF);
    let parents = Parents::of(maker.id());
    assert!(matches!(parents, Err(NoGroups::NotDelegated { .. })), "{parents:?}");
    rustix::fs::setxattr(folder, DELEGATED[1], b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let mut other = inside("other");
    let parents = Parents::of(other.id());
    assert!(matches!(parents, Err(NoGroups::NotDelegated { .. })), "{parents:?}");
    let parents = Parents::of(maker.id()).unwrap();
    let group = parents.group("guest");
    // Guests of an agent that was in no leaf yet: while one is there nothing can be bounded.
    let mut older = [0, 1].map(|number| {
        let (child, entered) = enter(folder);
        entered.unwrap();
        (child, parents.group(&format!("older-{number}")))
    });
    assert!(group.make(WIDE).is_err() && group.folders().is_empty());
    for (child, group) in &older {
        group.adopt(child.id(), WIDE).unwrap();
        assert!(group.has(child.id()).unwrap());
    }
    group.adopt(other.id(), WIDE).unwrap();
    assert!(group.folders().is_empty(), "it is somewhere else");
    let mut child = spawn_in(&group, WIDE, "while :; do :; done");
    assert_eq!(group.folders(), [folder.join("guest")]);
    let (mut outside, entered) = enter(folder);
    assert_eq!(entered.unwrap_err().kind(), ErrorKind::ResourceBusy, "nobody gets in any more");
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap().trim().to_owned();
    assert_eq!(read("guest/pids.max"), "100");
    assert_eq!([read("older-0/pids.max"), read("older-1/pids.max")], ["max", "100"]);
    older[0].1.adopt(older[0].0.id(), WIDE).unwrap();
    assert_eq!(read("older-0/pids.max"), "100", "as the next agent does");
    let processors = std::thread::available_parallelism().unwrap().get();
    assert_eq!(read("agent/cpu.weight"), (100 * processors).to_string());
    let limit = CpuLimit::of(child.id()).unwrap();
    limit.set(&[child.id()], 20).unwrap();
    while limit.held_back().unwrap() < Duration::from_millis(20) {
        std::thread::yield_now();
    }
    // Whoever comes to the leaf anew, as an agent that is started again, is let in.
    let mut again = inside(LEAF);
    let [(first, _), (second, _)] = &mut older;
    for child in [&mut child, &mut maker, &mut other, &mut again, &mut outside, first, second] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    group.remove().unwrap();
    assert!(!folder.join("guest").exists());
}

#[test]
fn version_two_is_given_its_controllers_before_a_group_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let leaf = folder.path().join(LEAF);
    fs::create_dir(&leaf).unwrap();
    fs::write(folder.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
    let place =
        Place { version: Version::Two, mount: folder.path().join(".."), home: leaf.clone() };
    assert!(matches!(Parent::for_groups_of(&place), Err(NoGroups::NotDelegated { .. })));
    let parent = Parent { version: Version::Two, folder: folder.path().into(), leaf: Some(leaf) };
    parent.enable().unwrap();
    let control = fs::read_to_string(folder.path().join("cgroup.subtree_control")).unwrap();
    assert_eq!(control, "+cpu", "the last that was written");
}
