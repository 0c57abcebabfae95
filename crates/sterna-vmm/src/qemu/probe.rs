//! What this host can do, found out by trying.
//!
//! Each check is a [`Finding`]: data that a program can decide by and a person can act on.

mod boot_sector;
mod cgroups;
mod kernel;
mod kvm;
mod tracking;

pub use boot_sector::{COUNTED_FROM, boot_image};
pub use cgroups::{CGROUPS, cgroups};
pub use kvm::run_small_guest;

use super::QemuBinary;
use super::command_line::SANDBOX;
use crate::{Accelerator, Tracker};
use std::path::Path;
use std::process::{Command, Stdio};

/// Oldest major version of QEMU with all that is used.
const QEMU_MAJOR_MIN: u32 = 9;

/// The versions that the tests were run with.
const QEMU_TESTED: &str = "10.0.2";

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Good,
    /// Guests run and move, but something could be better.
    Warning,
    /// Guests cannot be moved from or to this host.
    Missing,
}

/// One check of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was checked.
    pub name: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// The command or setting that makes it good, where there is one.
    pub remedy: Option<String>,
}

impl Finding {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good, detail: detail.into(), remedy: None }
    }

    fn bad(name: &'static str, verdict: Verdict, detail: impl Into<String>, remedy: &str) -> Self {
        Self { name, verdict, detail: detail.into(), remedy: Some(remedy.to_owned()) }
    }
}

/// All that is known of a host.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Its QEMU, with the accelerator that really works; `None` if there is no usable one.
    pub binary: Option<QemuBinary>,
    /// How guests' writes are tracked; `None` if they cannot be, so that no guest can leave.
    pub tracker: Option<Tracker>,
    /// Every check, in the order in which a person would want to read them.
    pub findings: Vec<Finding>,
}

/// Tries out what this host can do, which takes up to some seconds.
///
/// `qemu` is the program; `scratch` is a folder of the agent for short-lived sockets and guests. Only `tracker` is tried, if
/// one is asked for.
#[must_use]
pub fn probe(qemu: &Path, scratch: &Path, tracker: Option<Tracker>) -> Probe {
    let mut findings = Vec::new();
    let binary = ask_qemu(qemu, &mut findings);
    let (tracking, tracker) = tracking::find(tracker);
    findings.push(tracking);
    findings.push(kernel::userfaultfd());
    let binary = binary.map(|mut binary| {
        let finding = kvm::check(&binary, scratch);
        if finding.verdict == Verdict::Good {
            binary.accelerator = Accelerator::Kvm;
        }
        findings.push(finding);
        binary
    });
    Probe { binary, tracker, findings }
}

fn ask_qemu(qemu: &Path, findings: &mut Vec<Finding>) -> Option<QemuBinary> {
    let binary = match QemuBinary::ask(qemu) {
        Ok(binary) => binary,
        Err(error) => {
            let source = std::error::Error::source(&error);
            let reason = source.map(|source| format!(": {source}")).unwrap_or_default();
            let detail = format!("{} does not start: {error}{reason}", qemu.display());
            let remedy = "apt install qemu-system-x86";
            findings.push(Finding::bad("qemu", Verdict::Missing, detail, remedy));
            return None;
        }
    };
    findings.push(version(&binary));
    let missing = binary.missing_capabilities();
    findings.push(if missing.is_empty() {
        Finding::good("qemu capabilities", super::binary::NEEDED_CAPABILITIES.join(", "))
    } else {
        let detail = format!("this QEMU lacks {}", missing.join(", "));
        let remedy = "install QEMU 9 or later";
        Finding::bad("qemu capabilities", Verdict::Missing, detail, remedy)
    });
    findings.push(sandbox(qemu));
    Some(binary)
}

fn sandbox(qemu: &Path) -> Finding {
    let mut command = Command::new(qemu);
    command.args(["-sandbox", SANDBOX, "-version"]).stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => Finding::good("qemu sandbox", "seccomp"),
        _ => {
            let detail = "this QEMU cannot confine itself by seccomp";
            let remedy = "install a QEMU that was built with seccomp, as Debian's is";
            Finding::bad("qemu sandbox", Verdict::Missing, detail, remedy)
        }
    }
}

fn version(binary: &QemuBinary) -> Finding {
    let detail = format!("QEMU {} (tested with {QEMU_TESTED})", binary.version);
    if binary.major >= QEMU_MAJOR_MIN {
        Finding::good("qemu", detail)
    } else {
        Finding::bad("qemu", Verdict::Missing, detail, "install QEMU 9 or later")
    }
}
