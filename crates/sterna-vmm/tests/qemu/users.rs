//! A QEMU that runs as a user of its own.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use sterna_vmm::qemu::UserId;

/// Users that nothing else of these tests has.
const FIRST: u32 = 62_000;

fn user(number: u32) -> UserId {
    UserId::new(FIRST + number).unwrap()
}

fn host() -> Option<Host> {
    let host = Host::new()?;
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root starts processes as other users");
        return None;
    }
    Some(host)
}

/// The guest's disk is root's alone, in a folder that is.
fn definition(host: &Host, format: &str, cache: DiskCache) -> GuestDefinition {
    let mut definition = host.definition();
    let folder = host.folder("disks");
    std::fs::create_dir_all(&folder).unwrap();
    let image = folder.join(format!("{format}-{cache:?}"));
    if !image.exists() {
        let from = &definition.disks[0].path;
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", format]).args([from, &image]);
        assert!(convert.status().unwrap().success());
    }
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    set(&image, 0o600);
    set(&folder, 0o700);
    set(host.folder.path(), 0o700);
    definition.disks[0].path = image;
    definition.disks[0].format = format.into();
    definition.disks[0].cache = cache;
    definition
}

fn start(host: &Host, name: &str, definition: &GuestDefinition, as_user: u32) -> Ended {
    let (folder, user) = (host.folder(name), Some(user(as_user)));
    let guest = QemuGuest::start_as(&host.binary, definition, folder, StartMode::Run, user);
    let guest = Ended(guest.unwrap());
    await_counting(&guest.memory());
    guest
}

fn destination(
    host: &Host,
    guest: &QemuGuest,
    name: &str,
    as_user: Option<u32>,
) -> QemuDestination {
    let definition = guest.definition();
    let (folder, user) = (host.folder(name), as_user.map(user));
    QemuDestination::prepare_as(&host.binary, definition, folder, None, user).unwrap()
}

/// One whole move; the old one is released.
fn moved(host: &Host, guest: &QemuGuest, name: &str, as_user: Option<u32>) -> Ended {
    let mut source = leaving(guest);
    assert_eq!(source.immovable().unwrap(), []);
    let mut destination = destination(host, guest, name, as_user);
    let arrived = Ended(destination.guest().clone());
    if !guest.definition().huge_pages {
        destination.can_serve_faults().unwrap();
    }
    copy_in_rounds(&mut source, &destination.memory());
    let state = source.save_device_state().unwrap();
    destination.load_device_state(&state).unwrap();
    assert_equal_memory(&source.memory(), &destination.memory());
    destination.activate().unwrap();
    source.release().unwrap();
    await_counting(&arrived.memory());
    arrived
}

fn has_only(guest: &QemuGuest, number: u32) {
    let id = FIRST + number;
    let ids = format!("{id}\t{id}\t{id}\t{id}\n");
    let threads = std::fs::read_dir(format!("/proc/{}/task", guest.pid())).unwrap();
    let mut looked_at = 0;
    for thread in threads {
        let Ok(status) = std::fs::read_to_string(thread.unwrap().path().join("status")) else {
            continue;
        };
        let zero = "0000000000000000\n";
        for line in [
            format!("Uid:\t{ids}"),
            format!("Gid:\t{ids}"),
            "Groups:\t \n".into(),
            format!("CapInh:\t{zero}"),
            format!("CapPrm:\t{zero}"),
            format!("CapEff:\t{zero}"),
            "NoNewPrivs:\t1\n".into(),
            "Seccomp:\t2\n".into(),
        ] {
            assert!(status.contains(&line), "{line:?} is not in {status}");
        }
        looked_at += 1;
    }
    assert!(looked_at > 2, "{looked_at} threads");
}

/// What a process of a user gets to by running `script` in `sh`.
fn as_user(number: u32, script: &str) -> std::process::Output {
    let id = FIRST + number;
    Command::new("/bin/sh").args(["-c", script]).current_dir("/").uid(id).gid(id).output().unwrap()
}

#[test]
fn a_guest_whose_disk_is_roots_alone_moves_between_users_and_root() {
    let Some(host) = host() else { return };
    for (format, cache) in [
        ("raw", DiskCache::Writeback),
        ("raw", DiskCache::None),
        ("qcow2", DiskCache::Writeback),
        ("qcow2", DiskCache::None),
    ] {
        eprintln!("{format} {cache:?}");
        let definition = definition(&host, format, cache);
        let guest = start(&host, "a", &definition, 1);
        has_only(&guest, 1);
        let second = moved(&host, &guest, "b", Some(2));
        has_only(&second, 2);
        assert!(!host.folder("a").exists(), "nothing is left at the source");
        let as_root = moved(&host, &second, "a", None);
        assert_eq!(as_root.record().user, None);
        let back = moved(&host, &as_root, "b", Some(3));
        has_only(&back, 3);
        assert!(sterna_sys::process::users().unwrap().is_disjoint(&[FIRST + 1, FIRST + 2].into()));
    }
}

#[test]
fn a_guest_of_huge_pages_runs_and_moves_as_a_user() {
    let Some(host) = host() else { return };
    let _pool = match HugePages::reserve(Bytes(2 * MEMORY_BYTES)) {
        Ok(pool) => pool,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let definition = definition(&host, "raw", DiskCache::Writeback);
    let guest = start(&host, "a", &GuestDefinition { huge_pages: true, ..definition }, 1);
    drop(moved(&host, &guest, "b", Some(2)));
}

#[test]
fn an_image_is_one_guests_also_where_each_has_its_own_user() {
    let Some(host) = host() else { return };
    let definition = definition(&host, "raw", DiskCache::Writeback);
    let guest = start(&host, "a", &definition, 1);
    let (folder, other) = (host.folder("b"), Some(user(2)));
    let second = QemuGuest::start_as(&host.binary, &definition, folder, StartMode::Run, other);
    let Err(VmmError::Gone { detail }) = second else { panic!("{second:?}") };
    assert!(detail.contains("lock"), "{detail}");
    drop(guest);
    drop(start(&host, "a", &definition, 2));
}

#[test]
fn a_user_reaches_nothing_of_another_guest_nor_of_root() {
    let Some(host) = host() else { return };
    let definition = definition(&host, "raw", DiskCache::Writeback);
    // Nothing above the guest's folder hides it: it must be safe by itself.
    std::fs::set_permissions(host.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let guest = start(&host, "a", &definition, 1);
    let folder = host.folder("a");
    let pid = guest.pid();
    for script in [
        format!("ls {0}", folder.display()),
        format!("cat {0}/qemu.log", folder.display()),
        format!("ls {0}/own", folder.display()),
        format!("touch {0}/own/file", folder.display()),
        format!("cat {}", definition.disks[0].path.display()),
        format!("ls /proc/{pid}/fd/"),
        format!("cat /proc/{pid}/environ"),
        format!("cat /proc/{pid}/maps"),
        format!("head -c 1 /proc/{pid}/mem"),
        format!("kill -0 {pid}"),
    ] {
        for number in [1, 2] {
            let of_own_process = number == 1 && script.contains(&pid.to_string());
            let output = as_user(number, &script);
            let said = String::from_utf8_lossy(&output.stderr);
            let denied = said.contains("ermi");
            assert_eq!(!output.status.success() && denied, !of_own_process, "{script}: {output:?}");
        }
    }
    // Its QEMU has no place to write to, and no socket there that it could change.
    let own = std::fs::metadata(folder.join("own")).unwrap();
    assert_eq!(own.permissions().mode() & 0o022, 0);
    let output = as_user(1, &format!("cd /proc/{pid}/cwd && echo in && > file"));
    assert_eq!(output.stdout, b"in\n");
    assert!(!output.status.success() && !folder.join("own/file").exists());
}

#[test]
fn what_a_user_cannot_be_given_is_refused_with_what_to_do() {
    let Some(host) = host() else { return };
    let plain = definition(&host, "qcow2", DiskCache::Writeback);
    let begin = |definition: &GuestDefinition| {
        let user = Some(user(1));
        let folder = host.folder("a");
        let guest = QemuGuest::start_as(&host.binary, definition, folder, StartMode::Paused, user);
        guest.map(Ended)
    };
    let mut above = plain.clone();
    above.disks[0].path = host.folder("above");
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
    create.args([&plain.disks[0].path, &above.disks[0].path]);
    assert!(create.status().unwrap().success());
    let refused = begin(&above).err().unwrap();
    assert!(refused.to_string().contains("qemu-img rebase"), "{refused}");
    assert!(!host.folder("a").exists(), "nothing is left");
    let secret = host.folder("secret");
    std::fs::write(&secret, vec![0; 1 << 20]).unwrap();
    let drive = format!("file={},if=none,format=raw,id=extra", secret.display());
    let qemu_args = vec!["-drive".into(), drive];
    let refused = begin(&GuestDefinition { qemu_args, ..plain }).err().unwrap();
    assert!(refused.to_string().contains("guest-uids"), "{refused}");
}

#[test]
fn a_new_agent_finds_a_guest_with_its_user_and_the_stray_of_another() {
    let Some(host) = host() else { return };
    let definition = definition(&host, "raw", DiskCache::Writeback);
    let guests = host.folder("guests");
    let guest = start(&host, "guests/known", &definition, 1);
    guest.on_record().unwrap();
    let mut other = definition.clone();
    other.disks.clear();
    other.name = "other".into();
    let mode = StartMode::Paused;
    let stray =
        QemuGuest::start_as(&host.binary, &other, guests.join("stray"), mode, Some(user(2)));
    let stray = Ended(stray.unwrap());
    let record = serde_json::to_string(guest.record()).unwrap();
    let record: sterna_vmm::qemu::QemuRecord = serde_json::from_str(&record).unwrap();
    let ended = sterna_vmm::qemu::end_strays(&guests, std::slice::from_ref(&record)).unwrap();
    assert_eq!(ended, [stray.pid()]);
    assert!(!guests.join("stray").exists());
    let again = QemuGuest::reattach(record).unwrap();
    let twice =
        QemuGuest::start_as(&host.binary, &definition, guests.join("known"), mode, Some(user(3)));
    assert!(matches!(twice, Err(VmmError::Refused { .. })), "{twice:?}");
    drop(moved(&host, &again, "guests/moved", Some(2)));
}

#[test]
fn a_guest_that_gets_a_new_qemu_keeps_its_user() {
    let Some(host) = host() else { return };
    let guest = start(&host, "a", &definition(&host, "raw", DiskCache::Writeback), 1);
    let upgraded = beside::upgrade(&host, &guest, "b");
    has_only(&upgraded, 1);
    drop(moved(&host, &upgraded, "a", Some(2)));
}
