//! Debian packages: asking for versions, installing, downloading without installing.
//!
//! Every call of apt is non-interactive and waits for another apt's lock. The package lists are
//! refreshed at most once per run, and only after a call has failed without that: lists that
//! have grown old name files that the mirror no longer has.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where apt looks for the source that [`Apt::add_backports`] writes.
pub(crate) const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/sterna-backports.sources";
/// Debian's own key ring, named in the source so that no other key can sign for it.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Whether the package lists have been refreshed by this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    AsFound,
    Fresh,
}

/// The machine's apt.
#[derive(Debug)]
pub(crate) struct Apt {
    lists: Lists,
}

/// A package archive that apt knows of: one suite of one mirror.
#[derive(Debug, PartialEq, Eq)]
struct Archive {
    mirror: String,
    suite: String,
}

impl Apt {
    /// Returns the machine's apt.
    ///
    /// # Errors
    /// If this system has no apt.
    pub(crate) fn new() -> Result<Self> {
        ensure!(Path::new("/usr/bin/apt-get").exists(), "this system has no apt-get");
        Ok(Self { lists: Lists::AsFound })
    }

    /// Returns the major version that a plain install of `package` would bring, if it is known.
    pub(crate) fn candidate_major(&mut self, package: &str) -> Result<Option<u32>> {
        let ask = || output("apt-cache", ["policy", package]).map(|text| candidate(&text));
        if let Some(version) = ask()? {
            return Ok(major(&version));
        }
        self.update();
        Ok(ask()?.and_then(|version| major(&version)))
    }

    /// Installs packages, from `release` (such as `bookworm-backports`) if one is given.
    ///
    /// # Errors
    /// If apt fails, also after its lists have been refreshed.
    pub(crate) fn install(&mut self, packages: &[&str], release: Option<&str>) -> Result<()> {
        let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
        if let Some(release) = release {
            arguments.extend(["-t", release]);
        }
        arguments.extend(packages);
        self.run_or_update(&arguments, Path::new("/"))
    }

    /// Downloads one package into a folder and returns its file; installs nothing.
    ///
    /// # Errors
    /// If apt fails, also after its lists have been refreshed.
    pub(crate) fn download(&mut self, package: &str, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        self.run_or_update(&["download", package], folder)?;
        package_file(package, folder)?
            .with_context(|| format!("apt-get download left no file of {package}"))
    }

    /// Returns the versioned kernel package that a meta package stands for today.
    ///
    /// # Errors
    /// If apt does not know the meta package.
    pub(crate) fn kernel_behind(&mut self, meta: &str) -> Result<String> {
        let ask = || -> Option<String> {
            let text = output("apt-cache", ["depends", meta]).ok()?;
            let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
            depends.into_iter().find(|name| name.starts_with("linux-image-")).map(str::to_owned)
        };
        if let Some(name) = ask() {
            return Ok(name);
        }
        self.update();
        ask().with_context(|| format!("apt knows no package {meta}"))
    }

    /// Makes sure that apt knows `<codename>-backports`, on the mirror this machine already uses.
    ///
    /// # Errors
    /// If no mirror of the release is configured or the source cannot be written.
    pub(crate) fn add_backports(&mut self, codename: &str) -> Result<String> {
        let release = format!("{codename}-backports");
        let Some(source) = missing_backports(codename)? else { return Ok(release) };
        println!("adding {BACKPORTS_FILE}");
        fs::write(BACKPORTS_FILE, source)
            .with_context(|| format!("cannot write {BACKPORTS_FILE}"))?;
        // The new source alone: the machine's other sources may be slow or out of reach.
        apt_get(
            &[
                "update",
                "-o",
                &format!("Dir::Etc::sourcelist={BACKPORTS_FILE}"),
                "-o",
                "Dir::Etc::sourceparts=/dev/null",
                "-o",
                "APT::Get::List-Cleanup=0",
            ],
            Path::new("/"),
        )?;
        Ok(release)
    }

    /// Runs apt; if it fails and the lists are as found, refreshes them and tries once more.
    fn run_or_update(&mut self, arguments: &[&str], folder: &Path) -> Result<()> {
        let first = apt_get(arguments, folder);
        if first.is_ok() || self.lists == Lists::Fresh {
            return first;
        }
        self.update();
        apt_get(arguments, folder)
    }

    /// Refreshes the package lists once. A failure is only told: one broken source among many is
    /// common, and whether it matters is seen at the next install.
    fn update(&mut self) {
        if self.lists == Lists::AsFound {
            self.lists = Lists::Fresh;
            if let Err(error) = apt_get(&["update"], Path::new("/")) {
                eprintln!("warning: {error:#}");
            }
        }
    }
}

/// Returns the suites that apt has been told of, by apt's own reading of its sources.
fn archives() -> Result<Vec<Archive>> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let text = output("apt-get", ["indextargets", "--format", format, "Created-By: Packages"])?;
    Ok(main_archives(&text))
}

/// Reads lines of `mirror suite component`, keeping those of the component `main`.
fn main_archives(text: &str) -> Vec<Archive> {
    let read = |line: &str| {
        let mut fields = line.split_whitespace();
        let (mirror, suite, component) = (fields.next()?, fields.next()?, fields.next()?);
        let archive = Archive { mirror: mirror.to_owned(), suite: suite.to_owned() };
        (component == "main").then_some(archive)
    };
    text.lines().filter_map(read).collect()
}

/// Returns the source that apt lacks for `<codename>-backports`, or nothing if it has one.
///
/// # Errors
/// If no mirror of the release itself is configured.
pub(crate) fn missing_backports(codename: &str) -> Result<Option<String>> {
    let archives = archives()?;
    if archives.iter().any(|archive| archive.suite == format!("{codename}-backports")) {
        return Ok(None);
    }
    backports_source(&archives, codename).map(Some)
}

/// Returns the mirror from which apt takes a release.
///
/// # Errors
/// If none is configured.
pub(crate) fn mirror(codename: &str) -> Result<String> {
    Ok(mirror_of(&archives()?, codename)?.to_owned())
}

fn mirror_of<'a>(archives: &'a [Archive], codename: &str) -> Result<&'a str> {
    let base = archives.iter().find(|archive| archive.suite == codename);
    let base = base.with_context(|| format!("apt has no source of {codename} main"))?;
    Ok(&base.mirror)
}

/// Writes the source of a release's backports, on the mirror that serves the release itself.
fn backports_source(archives: &[Archive], codename: &str) -> Result<String> {
    let mirror = mirror_of(archives, codename).context("the mirror of backports is unknown")?;
    let mut source =
        format!("Types: deb\nURIs: {mirror}\nSuites: {codename}-backports\nComponents: main\n");
    if Path::new(KEYRING).exists() {
        source.push_str(&format!("Signed-By: {KEYRING}\n"));
    }
    Ok(source)
}

/// Returns the version after `Candidate:` in the words of `apt-cache policy`.
fn candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Returns the first number of a Debian version, after its epoch.
fn major(version: &str) -> Option<u32> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let digits = upstream.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Returns the newest downloaded file of a package in a folder, if there is one.
pub(crate) fn package_file(package: &str, folder: &Path) -> Result<Option<PathBuf>> {
    if !folder.exists() {
        return Ok(None);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if name.starts_with(&format!("{package}_")) && name.ends_with(".deb") {
            files.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    files.sort();
    Ok(files.pop().map(|(_, path)| path))
}

/// Unpacks a package's files into a folder; runs none of its scripts.
///
/// # Errors
/// If dpkg-deb fails.
pub(crate) fn unpack(package: &Path, folder: &Path) -> Result<()> {
    let mut command = Command::new("dpkg-deb");
    command.arg("--extract").arg(package).arg(folder);
    run(&mut command)
}

/// Runs apt-get in a folder, with its output shown.
fn apt_get(arguments: &[&str], folder: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.current_dir(folder).env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"]);
    if rustix::process::geteuid().is_root() {
        // As root apt fetches as the user _apt, which may not write into a build folder.
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    run(command.args(arguments))
}

/// Shows a command, runs it and requires that it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    println!("+ {shown}");
    let status = command.status().with_context(|| format!("cannot start {shown}"))?;
    ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

/// Returns a command as one would type it.
fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(OsStr::to_string_lossy));
    words.join(" ")
}

/// Returns what a program prints, in the C locale.
fn output<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C");
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    ensure!(output.status.success(), "{}: {}", shown(&command), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_major_version_is_read_behind_the_epoch() {
        assert_eq!(major("1:10.0.2+ds-2+deb13u1~bpo12+1"), Some(10));
        assert_eq!(major("7.2+dfsg"), Some(7));
        assert_eq!(major("unknown"), None);
    }

    #[test]
    fn a_package_without_candidate_has_none() {
        assert_eq!(candidate("qemu:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        let known = "qemu:\n  Installed: (none)\n  Candidate: 1:7.2\n";
        assert_eq!(candidate(known), Some("1:7.2".to_owned()));
    }

    #[test]
    fn backports_are_taken_from_the_mirror_of_the_release_and_not_of_its_security_suite() {
        let text = "http://security.example/s/ bookworm-security main\n\
                    http://mirror.example/debian/ bookworm main\n";
        let source = backports_source(&main_archives(text), "bookworm").unwrap();
        assert!(source.contains("URIs: http://mirror.example/debian/\n"), "{source}");
        assert!(source.contains("Suites: bookworm-backports\n"), "{source}");
    }

    #[test]
    fn a_machine_without_a_source_of_its_release_gets_no_backports() {
        let archives = main_archives("http://mirror.example/debian/ bookworm contrib\n");
        assert!(backports_source(&archives, "bookworm").is_err());
    }
}
