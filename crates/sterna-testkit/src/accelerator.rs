//! What tests' guests run on.

use std::fs;
use std::io;
use std::path::Path;

/// The variable that says it: `tcg` or `kvm`; emulation if it is not set.
pub const VARIABLE: &str = "STERNA_TEST_ACCELERATOR";

/// What a test's guests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// Emulation: the same on every machine.
    Tcg,
    /// Hardware virtualization.
    Kvm,
}

impl Accelerator {
    /// What the environment asks for.
    ///
    /// # Panics
    /// If it asks for something else: a test must not quietly run on what nobody asked for.
    #[must_use]
    pub fn wanted() -> Self {
        match std::env::var(VARIABLE).as_deref() {
            Err(_) | Ok("" | "tcg") => Self::Tcg,
            Ok("kvm") => Self::Kvm,
            Ok(other) => panic!("{VARIABLE} is {other:?}, neither tcg nor kvm"),
        }
    }

    /// What a process really runs its guest on: KVM gives it a file for each vCPU.
    ///
    /// # Errors
    /// If the process cannot be looked at.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        for entry in fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))? {
            // One that was closed meanwhile is no vCPU of a guest that runs.
            let target = fs::read_link(entry?.path()).unwrap_or_default();
            if target.to_string_lossy().starts_with("anon_inode:kvm-vcpu") {
                return Ok(Self::Kvm);
            }
        }
        Ok(Self::Tcg)
    }
}
