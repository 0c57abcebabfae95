//! `cargo xtask setup`: makes this machine able to run the demo, the tests and the benches.
//!
//! It looks at what there is, installs the packages that are missing (as root) and builds the
//! guest image. What it cannot mend (another kernel, rights of an ordinary user) it lists, each
//! with the command that mends it, and then fails. Nothing missing: it says so within a second.
//! The guest's kernel and busybox are unpacked below `target/` and never installed: the host's
//! own kernel and tools stay as they are.

use anyhow::{Result, bail};

use crate::guest_image;
use crate::host::{self, Distribution, KERNEL_NEEDED, Userfaultfd};
use crate::packages::{self, Apt, BACKPORTS_FILE};

/// The oldest QEMU that Sterna drives.
const QEMU_NEEDED: u32 = 10;

/// All packages built from QEMU's source that may be present, and its firmware. They are named
/// together because they conflict across versions: a `qemu-utils` of version 10 cannot stay
/// beside a `qemu-system-x86` of version 7.
const QEMU_PACKAGES: [&str; 5] =
    ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "qemu-utils", "seabios"];

/// Something that is missing and that this program did not mend.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    what: String,
    mend: String,
}

impl Missing {
    fn new(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what: what.into(), mend: mend.into() }
    }
}

/// Checks this machine, installs what is missing and builds the guest image.
///
/// # Errors
/// If something is missing that could not be installed; it has then been printed.
pub(crate) fn run_setup() -> Result<()> {
    let mut missing = kernel_features();
    missing.extend(programs()?);
    match guest_image::ensure() {
        Ok(image) => println!("ok: guest image {}", image.folder.display()),
        Err(error) => {
            missing.push(Missing::new(format!("the guest image ({error:#})"), "cargo xtask guest"));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    for Missing { what, mend } in &missing {
        eprintln!("missing: {what}\n   mend: {mend}");
    }
    bail!("{} of the things Sterna needs are missing", missing.len())
}

/// Checks the kernel: its version, userfaultfd, tap devices.
fn kernel_features() -> Vec<Missing> {
    let release = host::kernel_release();
    let mut missing = Vec::new();
    missing.extend(kernel_too_old(&release, &Distribution::of_this_host()));
    missing.extend(userfaultfd_missing(host::userfaultfd()));
    if !std::path::Path::new("/dev/net/tun").exists() {
        missing.push(Missing::new("/dev/net/tun, for guests' networks", "sudo modprobe tun"));
    }
    if missing.is_empty() {
        println!("ok: Linux {release} with userfaultfd and tap devices");
    }
    missing
}

fn kernel_too_old(release: &str, distribution: &Distribution) -> Option<Missing> {
    let (major, minor) = KERNEL_NEEDED;
    if host::kernel_version(release).is_some_and(|version| version >= KERNEL_NEEDED) {
        return None;
    }
    let mend = match distribution.codename.as_str() {
        "bookworm" => {
            "sudo apt-get install -t bookworm-backports linux-image-amd64 && sudo reboot".to_owned()
        }
        _ => format!("install and boot a kernel of {major}.{minor} or newer"),
    };
    let what = format!(
        "Linux {major}.{minor} or newer, for UFFD_FEATURE_WP_ASYNC and PAGEMAP_SCAN \
         (this is {release})"
    );
    Some(Missing::new(what, mend))
}

fn userfaultfd_missing(found: Userfaultfd) -> Option<Missing> {
    match found {
        Userfaultfd::Usable => None,
        Userfaultfd::Forbidden => Some(Missing::new(
            "leave for this user to open a userfaultfd",
            "sudo setfacl -m u:$USER:rw /dev/userfaultfd \
             (or: sudo sysctl vm.unprivileged_userfaultfd=1)",
        )),
        Userfaultfd::Absent => Some(Missing::new(
            "userfaultfd in this kernel",
            "boot a kernel built with CONFIG_USERFAULTFD=y",
        )),
    }
}

/// Checks the host's packages and installs those that are missing.
fn programs() -> Result<Vec<Missing>> {
    let mut missing = Vec::new();
    match host::qemu_major() {
        Some(major) if major >= QEMU_NEEDED => println!("ok: QEMU {major}"),
        found => missing.extend(install_qemu(found)?),
    }
    if ["ip", "tc"].iter().all(|name| host::has_program(name)) {
        println!("ok: iproute2");
    } else {
        missing.extend(install_iproute()?);
    }
    Ok(missing)
}

/// Installs QEMU from the release, or from its backports where the release's own is too old.
fn install_qemu(found: Option<u32>) -> Result<Option<Missing>> {
    let state = found.map_or("not installed".to_owned(), |major| format!("this is {major}"));
    let what = format!("QEMU {QEMU_NEEDED} or newer ({state})");
    println!("missing: {what}");
    let distribution = Distribution::of_this_host();
    if !host::is_root() {
        let source = packages::missing_backports(&distribution.codename).unwrap_or_default();
        return Ok(Some(Missing::new(what, qemu_command(&distribution, source))));
    }
    let Ok(mut apt) = Apt::new() else {
        let mend = "install qemu-system-x86_64 and qemu-img with this system's package manager";
        return Ok(Some(Missing::new(what, mend)));
    };
    let candidate = apt.candidate_major(QEMU_PACKAGES[0])?;
    if candidate.is_some_and(|major| major >= QEMU_NEEDED) {
        apt.install(&QEMU_PACKAGES, None)?;
    } else if distribution.id == "debian" && !distribution.codename.is_empty() {
        let release = apt.add_backports(&distribution.codename)?;
        apt.install(&QEMU_PACKAGES, Some(&release))?;
    }
    let installed = host::qemu_major();
    Ok(match installed {
        Some(major) if major >= QEMU_NEEDED => None,
        _ => Some(Missing::new(what, format!("build QEMU {QEMU_NEEDED} or newer from source"))),
    })
}

/// Returns what an ordinary user has to ask root for; `source` is the one of the release's
/// backports, where apt lacks it.
fn qemu_command(distribution: &Distribution, source: Option<String>) -> String {
    let packages = QEMU_PACKAGES.join(" ");
    let install = "sudo apt-get install --no-install-recommends";
    match (distribution.id.as_str(), distribution.codename.as_str()) {
        ("debian", "bookworm") => {
            let add = source.map(|source| {
                let text = source.replace('\n', "\\n");
                format!("printf '{text}' | sudo tee {BACKPORTS_FILE} && sudo apt-get update && ")
            });
            format!("{}{install} -t bookworm-backports {packages}", add.unwrap_or_default())
        }
        ("debian" | "ubuntu", _) => format!("{install} {packages}"),
        _ => "install qemu-system-x86_64 and qemu-img with this system's package manager".into(),
    }
}

fn install_iproute() -> Result<Option<Missing>> {
    let missing = Missing::new("the programs ip and tc", "sudo apt-get install iproute2");
    println!("missing: {}", missing.what);
    if !host::is_root() {
        return Ok(Some(missing));
    }
    let Ok(mut apt) = Apt::new() else {
        return Ok(Some(missing));
    };
    apt.install(&["iproute2"], None)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bookworm() -> Distribution {
        Distribution { id: "debian".into(), codename: "bookworm".into() }
    }

    #[test]
    fn an_old_kernel_is_named_with_the_command_that_replaces_it() {
        let missing = kernel_too_old("6.1.0-56-amd64", &bookworm()).unwrap();
        assert!(missing.what.contains("6.1.0-56-amd64"), "{missing:?}");
        assert!(missing.mend.contains("-t bookworm-backports linux-image-amd64"), "{missing:?}");
    }

    #[test]
    fn a_new_enough_kernel_is_not_missing() {
        assert_eq!(kernel_too_old("6.7.0", &bookworm()), None);
        assert_eq!(kernel_too_old("7.0.1-generic", &Distribution::default()), None);
    }

    #[test]
    fn a_kernel_release_that_cannot_be_read_counts_as_too_old() {
        assert!(kernel_too_old("strange", &Distribution::default()).is_some());
    }

    #[test]
    fn a_forbidden_userfaultfd_is_told_apart_from_an_absent_one() {
        assert_eq!(userfaultfd_missing(Userfaultfd::Usable), None);
        let forbidden = userfaultfd_missing(Userfaultfd::Forbidden).unwrap();
        let absent = userfaultfd_missing(Userfaultfd::Absent).unwrap();
        assert!(forbidden.mend.contains("setfacl"), "{forbidden:?}");
        assert!(absent.mend.contains("CONFIG_USERFAULTFD"), "{absent:?}");
    }

    #[test]
    fn an_ordinary_user_is_told_to_take_qemu_from_backports_on_bookworm_only() {
        let command = qemu_command(&bookworm(), None);
        assert!(command.starts_with("sudo apt-get install"), "{command}");
        assert!(command.contains("-t bookworm-backports qemu-system-x86"), "{command}");
        let trixie = Distribution { id: "debian".into(), codename: "trixie".into() };
        assert!(!qemu_command(&trixie, None).contains("backports"));
    }

    #[test]
    fn a_missing_source_is_part_of_the_command() {
        let command = qemu_command(&bookworm(), Some("Types: deb\nURIs: x\n".to_owned()));
        assert!(command.starts_with("printf 'Types: deb\\nURIs: x\\n' | sudo tee "), "{command}");
    }
}
