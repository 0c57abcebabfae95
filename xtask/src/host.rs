//! What this machine is and has: distribution, kernel, programs.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The first kernel with `UFFD_FEATURE_WP_ASYNC` and `PAGEMAP_SCAN`.
pub(crate) const KERNEL_NEEDED: (u32, u32) = (6, 7);

/// The fields of os-release that tell where packages come from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Distribution {
    /// `debian`, `ubuntu`, …
    pub(crate) id: String,
    /// `bookworm`, `trixie`, …; empty where the distribution has no such names.
    pub(crate) codename: String,
}

impl Distribution {
    /// Reads `/etc/os-release`; empty fields if there is none.
    pub(crate) fn of_this_host() -> Self {
        Self::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches('"').to_owned()
        };
        Self { id: field("ID"), codename: field("VERSION_CODENAME") }
    }
}

/// Returns the running kernel's release, such as `6.12.5-amd64`.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Returns major and minor number of a kernel release.
pub(crate) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// How a program of this user may get a userfaultfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Userfaultfd {
    /// By the system call or the device: everything works.
    Usable,
    /// The kernel has it, but not for this user.
    Forbidden,
    /// The kernel was built without it.
    Absent,
}

/// Finds out whether this user may have a userfaultfd.
pub(crate) fn userfaultfd() -> Userfaultfd {
    let Ok(setting) = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd") else {
        return Userfaultfd::Absent;
    };
    let device = fs::File::options().read(true).write(true).open("/dev/userfaultfd");
    if is_root() || setting.trim() == "1" || device.is_ok() {
        Userfaultfd::Usable
    } else {
        Userfaultfd::Forbidden
    }
}

/// Tells whether this process runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns QEMU's major version, or nothing if it is not installed.
pub(crate) fn qemu_major() -> Option<u32> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_once("version ")?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Tells whether a program lies in the search path or where system programs do.
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let searched = std::env::split_paths(&path).any(|folder| folder.join(name).exists());
    searched || ["/usr/sbin", "/sbin"].iter().any(|folder| Path::new(folder).join(name).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_os_release_is_read() {
        let text = "ID=\"debian\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n";
        let expected = Distribution { id: "debian".into(), codename: "bookworm".into() };
        assert_eq!(Distribution::parse(text), expected);
    }

    #[test]
    fn an_empty_os_release_names_no_distribution() {
        assert_eq!(Distribution::parse(""), Distribution::default());
    }

    #[test]
    fn kernel_versions_compare_by_number_and_not_by_text() {
        assert_eq!(kernel_version("6.18.44-custom"), Some((6, 18)));
        assert!(kernel_version("6.18.44").unwrap() > KERNEL_NEEDED);
        assert!(kernel_version("6.1.0-56-amd64").unwrap() < KERNEL_NEEDED);
        assert_eq!(kernel_version("strange"), None);
    }
}
