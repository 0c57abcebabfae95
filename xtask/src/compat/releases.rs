//! Two builds of the program: of an earlier commit, and of what is here.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo, run};
use crate::paths;

/// Which of the two builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Old,
    New,
}

impl Age {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Old => Self::New,
            Self::New => Self::Old,
        }
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Old => "old",
            Self::New => "new",
        })
    }
}

/// Both programs.
#[derive(Debug)]
pub(super) struct Releases {
    /// The earlier commit, for people.
    pub(super) base: String,
    old: PathBuf,
    new: PathBuf,
}

impl Releases {
    /// Builds both. That of the earlier commit is kept in `target/compat`, in a folder of its commit.
    ///
    /// # Errors
    /// If there is no such commit, or something does not build.
    pub(super) fn build(revision: &str) -> Result<Self> {
        let commit = git(&["rev-parse", "--verify", "--quiet", "--end-of-options"])
            .arg(format!("{revision}^{{commit}}"))
            .output()
            .context("cannot run git")?;
        ensure!(commit.status.success(), "git knows no commit {revision:?}: is it fetched?");
        let commit = String::from_utf8(commit.stdout)?.trim().to_owned();
        let folder = paths::target().join("compat");
        let old = earlier(&commit, &folder)?;
        println!("building what is here");
        run(&mut cargo(&["build", "--quiet", "--package", "sterna"]))?;
        // Copied, so that whatever is built meanwhile does not change it.
        let new = put(&paths::target().join("debug/sterna"), &folder.join("sterna"))?;
        let base = format!("{revision} ({})", &commit[..12]);
        Ok(Self { base, old, new })
    }

    pub(super) fn program(&self, age: Age) -> &Path {
        match age {
            Age::Old => &self.old,
            Age::New => &self.new,
        }
    }
}

fn git(words: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.args(words).current_dir(paths::workspace());
    command
}

/// Builds a commit out of an archive of it: a work tree of git's would stay on git's list when `target` is removed.
///
/// All earlier commits have one build folder, apart from that of what is here: cargo tells two trees of one workspace apart by
/// nothing but the times of their files, so those of a tree that is to be built are new.
fn earlier(commit: &str, folder: &Path) -> Result<PathBuf> {
    let kept = folder.join(commit);
    if kept.exists() {
        println!("ok: {}", kept.display());
        return Ok(kept);
    }
    println!("building {commit}");
    let source = folder.join("source");
    if source.exists() {
        fs::remove_dir_all(&source)
            .with_context(|| format!("cannot remove {}", source.display()))?;
    }
    fs::create_dir_all(&source).with_context(|| format!("cannot make {}", source.display()))?;
    let archive = folder.join("source.tar");
    run(git(&["archive", "--output"]).arg(&archive).arg(commit))?;
    run(Command::new("tar").arg("--touch").arg("-xf").arg(&archive).arg("-C").arg(&source))?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    let target = folder.join("build");
    let mut command = cargo(&["build", "--quiet", "--package", "sterna"]);
    run(command.current_dir(&source).env("CARGO_TARGET_DIR", &target))?;
    put(&target.join("debug/sterna"), &kept)
}

/// Copies a program, whole or not at all.
fn put(built: &Path, place: &Path) -> Result<PathBuf> {
    let partial = place.with_extension("partial");
    fs::copy(built, &partial).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, place).with_context(|| format!("cannot write {}", place.display()))?;
    Ok(place.to_path_buf())
}
