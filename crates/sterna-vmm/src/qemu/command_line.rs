//! The command line of a QEMU whose guest can be moved.
//!
//! It must come out alike on both sides of a move, but for descriptors, the folder, and the
//! mode: device addresses are fixed by the order in the definition, names are fixed, and nothing
//! depends on the host. Whether QEMU opens things by name or inherits them open is none of the guest's.

use super::balloon::NAME as BALLOON;
use super::folder::Folder;
use crate::{
    Accelerator, ConsoleKind, DiskCache, DiskDefinition, GuestDefinition, NetworkDefinition,
    VmmError,
};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What QEMU may not do once its guest runs, by seccomp filters: start programs, change users, and what no program of
/// today does. A guest that has taken its QEMU over has none of it either.
pub(super) const SANDBOX: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Name of the one RAM block.
pub(super) const RAM_BLOCK: &str = "ram0";

/// Devices of a kind get consecutive slots of the root bus. Slot 2 is the console's; 1 belongs to
/// the chipset of older machine types, 31 to that of q35.
const CONSOLE_SLOT: usize = 0x02;
const NETWORK_SLOTS: std::ops::Range<usize> = 0x03..0x10;
const DISK_SLOTS: std::ops::Range<usize> = 0x10..0x1f;
/// The balloon has the slot of the last network card, which guests without a balloon may have.
const BALLOON_SLOT: usize = NETWORK_SLOTS.end - 1;

/// Namespace of the ids that guests show in their firmware tables; drawn once, at random.
const GUEST_IDS: Uuid = Uuid::from_u128(0x9f1c_6f0e_5d0b_4c58_a4f7_3d1d_84c2_66b1);

/// What QEMU does when it has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// Lets the guest boot.
    Run,
    /// Waits with the guest ready to boot.
    Paused,
    /// Waits for the state of a guest that arrives.
    Incoming,
}

/// What the process inherits, by the numbers that it will have there.
#[derive(Clone, Debug)]
pub(super) struct Descriptors {
    /// The guest's RAM.
    pub(super) ram: RawFd,
    /// A socket whose other end is the first to speak to the monitor.
    pub(super) first_monitor: RawFd,
    /// Open taps for the definition's networks in their order; none if QEMU is to open them.
    pub(super) taps: Vec<RawFd>,
    /// What it inherits if it runs as a user of its own. It then opens nothing by name, and has its sockets where it
    /// begins.
    pub(super) opened: Option<Numbers>,
}

/// What only root can open.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    /// `/dev/null`: a set holds something.
    pub(super) nothing: RawFd,
    pub(super) kvm: Option<RawFd>,
    pub(super) kernel: Option<RawFd>,
    pub(super) initrd: Option<RawFd>,
    /// In the order of the definition.
    pub(super) disks: Vec<RawFd>,
}

/// Sets of descriptors, by which QEMU opens what it has inherited: `/dev/fdset/N`.
const NAME_SET: usize = 0;
const KVM_SET: usize = 1;
const DISK_SETS: usize = 2;

/// The arguments, as they are built up.
struct Arguments<'a> {
    definition: &'a GuestDefinition,
    folder: &'a Folder,
    opened: Option<Numbers>,
    list: Vec<OsString>,
}

/// The arguments for a resolved definition.
pub(super) fn arguments(
    definition: &GuestDefinition,
    folder: &Folder,
    descriptors: &Descriptors,
    mode: StartMode,
) -> Result<Vec<OsString>, VmmError> {
    let opened = descriptors.opened.clone();
    let mut arguments = Arguments { definition, folder, opened, list: Vec::new() };
    arguments.machine();
    arguments.ram(descriptors.ram);
    arguments.boot();
    arguments.monitors(descriptors.first_monitor);
    arguments.console();
    for (number, disk) in definition.disks.iter().enumerate() {
        arguments.disk(number, disk)?;
    }
    for (number, network) in definition.networks.iter().enumerate() {
        arguments.network(number, network, descriptors.taps.get(number).copied())?;
    }
    if definition.has_balloon() {
        arguments.balloon();
    }
    arguments.mode(mode);
    arguments.list.extend(definition.qemu_args.iter().map(OsString::from));
    Ok(arguments.list)
}

impl Arguments<'_> {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.list.push(option.into());
        self.list.push(value.into());
    }

    fn flag(&mut self, option: &str) {
        self.list.push(option.into());
    }

    /// Puts a descriptor into a set; returns the name by which QEMU opens it.
    fn set(&mut self, set: usize, descriptor: RawFd) -> String {
        self.add("-add-fd", format!("fd={descriptor},set={set}"));
        format!("/dev/fdset/{set}")
    }

    /// A socket's path as QEMU is told it.
    fn socket(&self, path: PathBuf) -> PathBuf {
        match (&self.opened, path.file_name()) {
            (Some(_), Some(name)) => name.into(),
            _ => path,
        }
    }

    fn machine_name(&self) -> &str {
        self.definition.machine.as_deref().unwrap_or("q35")
    }

    /// The bus that devices are put on.
    fn bus(&self) -> &'static str {
        let machine = self.machine_name();
        let i440fx = machine == "pc" || machine.starts_with("pc-i440fx");
        if i440fx { "pci.0" } else { "pcie.0" }
    }

    fn machine(&mut self) {
        let definition = self.definition;
        for option in ["-nodefaults", "-no-user-config"] {
            self.flag(option);
        }
        if let Some(opened) = &self.opened {
            // By the folder's name in it the process is found, see `strays`: no other argument has that.
            let socket = self.folder.control_socket();
            let words = format!("opaque={},fd={},set={NAME_SET}", socket.display(), opened.nothing);
            self.add("-add-fd", words);
        }
        // Whose own arguments say something of it knows better.
        if !definition.qemu_args.iter().any(|word| word == "-sandbox") {
            self.add("-sandbox", SANDBOX);
        }
        self.add("-display", "none");
        self.add("-vga", "none");
        self.add("-name", format!("guest={},debug-threads=on", definition.name));
        let id = Uuid::new_v5(&GUEST_IDS, definition.name.as_bytes());
        self.add("-uuid", id.to_string());
        self.add("-machine", format!("{},memory-backend={RAM_BLOCK}", self.machine_name()));
        let kvm = self.opened.as_ref().and_then(|opened| opened.kvm);
        let kvm = kvm.map(|number| self.set(KVM_SET, number));
        let accelerator = match (definition.accelerator, kvm) {
            (Accelerator::Kvm | Accelerator::KvmUnproven, None) => "kvm".to_owned(),
            (Accelerator::Kvm | Accelerator::KvmUnproven, Some(device)) => {
                format!("kvm,device={device}")
            }
            (Accelerator::Tcg | Accelerator::Auto, _) => "tcg".to_owned(),
        };
        self.add("-accel", accelerator);
        self.add("-cpu", definition.cpu.as_deref().unwrap_or("max"));
        self.add("-smp", definition.vcpus.to_string());
    }

    /// A named shared file, so that QEMU leaves its content to us; see the design, section 3.
    fn ram(&mut self, descriptor: i32) {
        let size = self.definition.memory_bytes;
        self.add("-m", format!("{}M", size >> 20));
        let backend = json!({
            "qom-type": "memory-backend-file", "id": RAM_BLOCK, "size": size, "share": true,
            "mem-path": format!("/proc/self/fd/{descriptor}"), "dump": false, "merge": false,
        });
        self.add_json("-object", &backend);
    }

    fn add_json(&mut self, option: &str, value: &Value) {
        self.add(option, value.to_string());
    }

    fn boot(&mut self) {
        let definition = self.definition;
        let (kernel, initrd) = match &self.opened {
            None => (definition.kernel.clone(), definition.initrd.clone()),
            Some(opened) => {
                let path = |number: RawFd| format!("/proc/self/fd/{number}").into();
                (opened.kernel.map(path), opened.initrd.map(path))
            }
        };
        if let Some(kernel) = kernel {
            self.add("-kernel", kernel);
        }
        if let Some(initrd) = initrd {
            self.add("-initrd", initrd);
        }
        if let Some(append) = &definition.append {
            self.add("-append", append);
        }
    }

    /// The monitors that listen, and one on a socket that is connected. Whoever connects to one that
    /// listens while QEMU hands it from its main thread to the monitors' own may find it, and all of
    /// QEMU, hanging (seen with QEMU 10.0.2 on a slow machine). So nobody does before QEMU has
    /// answered on the connected one, which is made last.
    fn monitors(&mut self, first: RawFd) {
        let sockets =
            [("mover", self.folder.mover_socket()), ("control", self.folder.control_socket())];
        for (name, path) in sockets {
            let path = self.socket(path);
            let path = path.display();
            self.add("-chardev", format!("socket,id={name},path={path},server=on,wait=off"));
            self.add("-mon", format!("chardev={name},mode=control"));
        }
        self.add("-chardev", format!("socket,id=first,fd={first}"));
        self.add("-mon", "chardev=first,mode=control");
    }

    fn console(&mut self) {
        let path = self.socket(self.folder.console_socket());
        let path = path.display();
        self.add("-chardev", format!("socket,id=console,path={path},server=on,wait=off"));
        match self.definition.console {
            ConsoleKind::Serial => self.add("-serial", "chardev:console"),
            ConsoleKind::Virtio => {
                let at = format!("bus={},addr={CONSOLE_SLOT:#x}", self.bus());
                // With ioeventfd the guest spins for each write until the main loop wakes: emulated,
                // a busy console then costs twice the processor time.
                let bus = format!("virtio-serial-pci,id=console-bus,ioeventfd=off,{at}");
                self.add("-device", bus);
                self.add("-device", "virtconsole,chardev=console,id=console0");
            }
        }
    }

    fn disk(&mut self, number: usize, disk: &DiskDefinition) -> Result<(), VmmError> {
        let slot = slot(DISK_SLOTS, number, "disks")?;
        let direct = disk.cache == DiskCache::None;
        let (driver, aio) = (file_driver(&disk.path), if direct { "native" } else { "threads" });
        let cache = json!({ "direct": direct });
        let inherited = self.opened.as_ref().and_then(|opened| opened.disks.get(number).copied());
        let filename = match inherited {
            None => disk.path.to_string_lossy().into_owned(),
            Some(descriptor) => self.set(DISK_SETS + number, descriptor),
        };
        let file = json!({ "driver": driver, "filename": filename, "aio": aio, "cache": cache });
        let image = json!({ "driver": disk.format, "file": file, "cache": cache });
        let node = format!("disk{number}");
        let top = match disk.iops_max {
            None => named(image, &node),
            Some(iops) => {
                let group = format!("limit{number}");
                let limits = json!({ "iops-total": iops });
                let object = json!({ "qom-type": "throttle-group", "id": group, "limits": limits });
                self.add_json("-object", &object);
                let throttle =
                    json!({ "driver": "throttle", "throttle-group": group, "file": image });
                named(throttle, &node)
            }
        };
        self.add_json("-blockdev", &top);
        let at = format!("bus={},addr={slot:#x}", self.bus());
        self.add("-device", format!("virtio-blk-pci,id=disk{number}-device,drive={node},{at}"));
        Ok(())
    }

    fn network(
        &mut self,
        number: usize,
        network: &NetworkDefinition,
        open: Option<RawFd>,
    ) -> Result<(), VmmError> {
        let end = if self.definition.has_balloon() { BALLOON_SLOT } else { NETWORK_SLOTS.end };
        let slot = slot(NETWORK_SLOTS.start..end, number, "networks")?;
        let tap = &network.tap;
        // vhost-net writes RAM through QEMU's page tables, so that tracking should see it; it is
        // off because no test of ours has shown that it does.
        let tap = match open {
            None => format!("ifname={tap},script=no,downscript=no"),
            Some(descriptor) => format!("fd={descriptor}"),
        };
        self.add("-netdev", format!("tap,id=net{number},{tap},vhost=off"));
        let at = format!("bus={},addr={slot:#x}", self.bus());
        let mac = &network.mac;
        let device = format!("virtio-net-pci,id=net{number}-device,netdev=net{number},mac={mac}");
        // Without a boot ROM: its file may differ from host to host.
        self.add("-device", format!("{device},romfile=,{at}"));
        Ok(())
    }

    /// The guest tells of its free pages by itself, 2 MiB at a time; QEMU frees them at once. Whether
    /// it takes back what else is in its balloon when it runs out of memory is part of what the device
    /// is, so that a guest that was started without goes on without.
    fn balloon(&mut self) {
        let at = format!("bus={},addr={BALLOON_SLOT:#x}", self.bus());
        let yields = self.definition.balloon_yields == Some(true);
        let yields = if yields { "deflate-on-oom=on," } else { "" };
        let device = format!("virtio-balloon-pci,id={BALLOON},free-page-reporting=on");
        self.add("-device", format!("{device},{yields}{at}"));
    }

    fn mode(&mut self, mode: StartMode) {
        match mode {
            StartMode::Run => {}
            StartMode::Paused => self.flag("-S"),
            StartMode::Incoming => {
                self.flag("-S");
                self.add("-incoming", "defer");
            }
        }
    }
}

fn slot(slots: std::ops::Range<usize>, number: usize, what: &str) -> Result<usize, VmmError> {
    let room = slots.len();
    slots.clone().nth(number).ok_or_else(|| VmmError::Refused {
        operation: "starting QEMU",
        detail: format!("more than {room} {what}"),
    })
}

fn named(mut node: Value, name: &str) -> Value {
    node["node-name"] = name.into();
    node
}

fn file_driver(path: &Path) -> &'static str {
    let is_device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    if is_device { "host_device" } else { "file" }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESCRIPTORS: Descriptors =
        Descriptors { ram: 9, first_monitor: 10, taps: Vec::new(), opened: None };

    fn definition(extra: &str) -> GuestDefinition {
        let text = format!("{{\"name\":\"web\",\"memory_bytes\":134217728{extra}}}");
        serde_json::from_str(&text).unwrap()
    }

    fn line(definition: &GuestDefinition, mode: StartMode) -> String {
        let folder = Folder::existing("/run/x".into());
        let arguments = arguments(definition, &folder, &DESCRIPTORS, mode).unwrap();
        let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn both_sides_differ_in_the_mode_alone() {
        let guest = definition(
            r#","disks":[{"path":"/a.img","iops_max":9}],
            "networks":[{"tap":"t0","mac":"52:54:0:0:0:1"}]"#,
        );
        let source = line(&guest, StartMode::Run);
        let destination = line(&guest, StartMode::Incoming);
        assert_eq!(destination, format!("{source} -S -incoming defer"));
        assert!(source.contains("vhost=off"));
        assert!(source.contains(r#""iops-total":9"#));
        assert!(!source.contains("-daemonize"), "the userfaultfd would stay with the parent");
    }

    #[test]
    fn taps_that_are_open_are_used_and_change_nothing_that_the_guest_sees() {
        let guest = definition(
            r#","networks":[{"tap":"t0","mac":"52:54:0:0:0:1"},{"tap":"t1","mac":"52:54:0:0:0:2"}]"#,
        );
        let folder = Folder::existing("/run/x".into());
        let open = Descriptors { taps: vec![11, 12], ..DESCRIPTORS };
        let arguments = arguments(&guest, &folder, &open, StartMode::Incoming).unwrap();
        let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        let by_name = line(&guest, StartMode::Incoming)
            .replace("ifname=t0,script=no,downscript=no", "fd=11")
            .replace("ifname=t1,script=no,downscript=no", "fd=12");
        assert_eq!(words.join(" "), by_name);
    }

    #[test]
    fn a_hypervisor_is_confined_unless_its_arguments_say_otherwise() {
        let usual = format!(" -sandbox {SANDBOX} ");
        assert!(line(&definition(""), StartMode::Run).contains(&usual));
        let own = definition(r#","qemu_args":["-sandbox","on,spawn=allow"]"#);
        assert!(!line(&own, StartMode::Run).contains(&usual));
    }

    #[test]
    fn who_runs_as_a_user_of_its_own_opens_nothing_by_name_and_has_the_same_devices() {
        let guest = definition(
            r#","accelerator":"kvm","kernel":"/boot/k","initrd":"/boot/i","disks":[{"path":"/a.img"},
            {"path":"/b.img"}],"networks":[{"tap":"t0","mac":"52:54:0:0:0:1"}]"#,
        );
        let numbers = Numbers {
            nothing: 8,
            kvm: Some(11),
            kernel: Some(12),
            initrd: Some(13),
            disks: vec![14, 15],
        };
        let folder = Folder::existing("/run/x".into());
        let words = |opened: Option<Numbers>| {
            let taps = if opened.is_some() { vec![16] } else { Vec::new() };
            let descriptors = Descriptors { taps, opened, ..DESCRIPTORS };
            let words = arguments(&guest, &folder, &descriptors, StartMode::Run).unwrap();
            words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>()
        };
        let (by_name, inherited) = (words(None), words(Some(numbers)));
        let devices = |words: &[String]| {
            let pairs = words.windows(2).filter(|pair| pair[0] == "-device");
            pairs.map(|pair| pair[1].clone()).collect::<Vec<_>>()
        };
        assert_eq!(devices(&by_name), devices(&inherited));
        let names = ["/boot", ".img", "ifname", "path=/run"];
        let named = |words: &[String], name| words.iter().any(|word| word.contains(name));
        for name in names {
            assert!(named(&by_name, name) && !named(&inherited, name), "{name}: {inherited:?}");
        }
        for given in ["kvm,device=/dev/fdset/1", "fd=11,set=1", "/proc/self/fd/12", "fd=15,set=3"] {
            assert!(named(&inherited, given), "{given}: {inherited:?}");
        }
        assert!(named(&inherited, "tap,id=net0,fd=16,vhost=off"), "{inherited:?}");
        assert!(named(&inherited, "=/run/x/control.qmp,"), "it would not be found again");
    }

    #[test]
    fn a_disk_path_is_data_not_options() {
        let guest = definition(r#","disks":[{"path":"/a\",readonly=on"}]"#);
        assert!(line(&guest, StartMode::Run).contains(r#""filename":"/a\",readonly=on""#));
    }

    #[test]
    fn a_balloon_takes_the_place_of_the_last_network_and_changes_no_other() {
        let networks = |count| vec![r#"{"tap":"t0","mac":"52:54:0:0:0:1"}"#; count].join(",");
        let guest = |count| definition(&format!(",\"networks\":[{}]", networks(count)));
        let with = |guest| GuestDefinition { balloon: Some(true), ..guest };
        let (line_without, line_with) =
            (line(&guest(12), StartMode::Run), line(&with(guest(12)), StartMode::Run));
        let balloon =
            " -device virtio-balloon-pci,id=balloon,free-page-reporting=on,bus=pcie.0,addr=0xf";
        assert_eq!(line_with, line_without + balloon);
        let yielding = GuestDefinition { balloon_yields: Some(true), ..with(guest(12)) };
        let device = line(&yielding, StartMode::Run).replace(",deflate-on-oom=on", "");
        assert_eq!(device, line_with, "in nothing else does it differ");
        let folder = Folder::existing("/run/x".into());
        let start = |guest| arguments(&guest, &folder, &DESCRIPTORS, StartMode::Run);
        assert!(start(guest(13)).is_ok());
        assert!(start(with(guest(13))).is_err());
    }

    #[test]
    fn more_devices_than_slots_are_refused() {
        let disks = vec![r#"{"path":"/a"}"#; 16].join(",");
        let guest = definition(&format!(",\"disks\":[{disks}]"));
        let folder = Folder::existing("/run/x".into());
        assert!(arguments(&guest, &folder, &DESCRIPTORS, StartMode::Run).is_err());
    }
}
