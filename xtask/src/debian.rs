//! `cargo xtask package`: Sterna as a Debian package.
//!
//! The program, its systemd unit, manual pages and shell completion. The agent is not started by installing it: it
//! needs the host's certificate first (`sterna cluster init`, `sterna host join`).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::{build_sterna, run};
use crate::paths;

const CONTROL: &str = include_str!("../../packaging/debian/control");
const CONFFILES: &str = include_str!("../../packaging/debian/conffiles");
const POSTINST: &str = include_str!("../../packaging/debian/postinst");
const PRERM: &str = include_str!("../../packaging/debian/prerm");
const UNIT: &str = include_str!("../../packaging/sterna.service");
const OPTIONS: &str = include_str!("../../packaging/sterna.default");
const CONFIGURATION: &str = include_str!("../../packaging/agent.toml");

const VERSION: &str = env!("CARGO_PKG_VERSION");
const HOMEPAGE: &str = env!("CARGO_PKG_REPOSITORY");

/// Where each shell looks for completion.
const COMPLETION: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/sterna"),
    ("fish", "usr/share/fish/vendor_completions.d/sterna.fish"),
    ("zsh", "usr/share/zsh/vendor-completions/_sterna"),
];

/// Builds the package; says where it is, and returns that.
///
/// # Errors
/// If something does not build.
pub(crate) fn run_package() -> Result<PathBuf> {
    let package = build(&build_sterna()?, &paths::target().join("debian"))?;
    println!("package: {}", package.display());
    Ok(package)
}

/// Makes the package of a program in a folder.
fn build(program: &Path, folder: &Path) -> Result<PathBuf> {
    let stage = tempfile::tempdir()?;
    let root = stage.path();
    // The folder itself is the package's root folder, which is everyone's to read.
    fs::set_permissions(root, Permissions::from_mode(0o755))?;
    let binary = fs::read(program).with_context(|| format!("no {}", program.display()))?;
    put(root, "usr/bin/sterna", 0o755, &binary)?;
    put(root, "usr/lib/systemd/system/sterna.service", 0o644, UNIT.as_bytes())?;
    put(root, "etc/default/sterna", 0o644, OPTIONS.as_bytes())?;
    put(root, "etc/sterna/agent.toml", 0o644, CONFIGURATION.as_bytes())?;
    for (shell, path) in COMPLETION {
        let script = Command::new(program).args(["completion", shell]).output()?;
        anyhow::ensure!(script.status.success(), "no completion for {shell}");
        put(root, path, 0o644, &script.stdout)?;
    }
    run(Command::new(program).arg("manual").arg(root.join("usr/share/man/man1")))?;
    let control = CONTROL.replace("{version}", VERSION).replace("{homepage}", HOMEPAGE);
    put(root, "DEBIAN/control", 0o644, control.as_bytes())?;
    put(root, "DEBIAN/conffiles", 0o644, CONFFILES.as_bytes())?;
    put(root, "DEBIAN/postinst", 0o755, POSTINST.as_bytes())?;
    put(root, "DEBIAN/prerm", 0o755, PRERM.as_bytes())?;
    fs::create_dir_all(folder)?;
    let package = folder.join(format!("sterna_{VERSION}_amd64.deb"));
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", "--build"]).arg(root).arg(&package);
    run(&mut pack)?;
    Ok(package)
}

/// Writes a file of the package.
fn put(root: &Path, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let path = root.join(path);
    fs::create_dir_all(path.parent().context("a path in the package")?)?;
    fs::write(&path, content)?;
    Ok(fs::set_permissions(&path, Permissions::from_mode(mode))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo::cargo;

    /// The program as tests have it: it was built with them, unless these are run alone.
    fn program() -> PathBuf {
        let program = paths::target().join("debug").join("sterna");
        if !program.exists() {
            run(&mut cargo(&["build", "--quiet", "--package", "sterna"])).unwrap();
        }
        program
    }

    #[test]
    fn a_package_holds_all_that_a_host_needs() {
        let folder = tempfile::tempdir().unwrap();
        let package = build(&program(), folder.path()).unwrap();
        let unpacked = folder.path().join("unpacked");
        run(Command::new("dpkg-deb").arg("--raw-extract").arg(&package).arg(&unpacked)).unwrap();
        let version = Command::new(unpacked.join("usr/bin/sterna")).arg("--version").output();
        assert!(String::from_utf8(version.unwrap().stdout).unwrap().contains(VERSION));
        let page = unpacked.join("usr/share/man/man1/sterna-agent.1");
        assert!(page.exists(), "{} is missing", page.display());
        for (_, path) in COMPLETION {
            assert!(fs::metadata(unpacked.join(path)).unwrap().len() > 0, "{path}");
        }
        let control = fs::read_to_string(unpacked.join("DEBIAN/control")).unwrap();
        assert!(!control.contains('{'), "{control}");
        for script in ["postinst", "prerm"] {
            let path = unpacked.join("DEBIAN").join(script);
            run(Command::new("sh").arg("-n").arg(path)).unwrap();
        }
    }

    #[test]
    fn whoever_has_started_the_agent_may_ask_it() {
        // Started otherwise, the command after `sterna cluster init` finds nobody.
        assert!(UNIT.lines().any(|line| line == "Type=notify"), "{UNIT}");
    }

    #[test]
    fn restarting_the_agent_ends_no_guest() {
        // By systemd's default all processes of the unit are ended, guests' hypervisors too.
        assert!(UNIT.lines().any(|line| line == "KillMode=process"), "{UNIT}");
    }
}
