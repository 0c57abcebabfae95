//! Every input that was ever found worth keeping, given to its target again.

use std::collections::BTreeSet;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use sterna_fuzz::{TARGETS, Verdict, run};

/// Names of inputs that must be accepted begin with this. Those of the journal were written by
/// this release or an earlier one, and are read by every later one.
const VALID: &str = "valid-";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = folder.read_dir().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let name = |entry: std::io::Result<DirEntry>| entry.expect("a readable folder").file_name();
    entries.map(|entry| name(entry).into_string().expect("names are plain text")).collect()
}

fn names_of_targets(suffix: &str) -> BTreeSet<String> {
    TARGETS.iter().map(|(name, _)| format!("{name}{suffix}")).collect()
}

#[test]
fn no_known_input_breaks_a_decoder() {
    for (name, _) in TARGETS {
        let folder = root().join("corpus").join(name);
        let mut verdicts = Vec::new();
        for file in names_in(&folder) {
            println!("{name}/{file}");
            let verdict = run(name, &std::fs::read(folder.join(&file)).unwrap());
            let must = file.starts_with(VALID);
            assert!(!must || verdict == Verdict::Accepted, "{name}/{file} is no longer accepted");
            verdicts.push(verdict);
        }
        // A corpus that all goes one way has ceased to say anything about the decoder.
        for verdict in [Verdict::Accepted, Verdict::Refused] {
            assert!(verdicts.contains(&verdict), "no input of {name} is {verdict:?}");
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_a_file_and_no_other_has() {
    assert_eq!(names_in(&root().join("corpus")), names_of_targets(""));
    assert_eq!(names_in(&root().join("fuzz_targets")), names_of_targets(".rs"));
}
