//! What struck at which stage, and how moves ended.

use std::collections::BTreeMap;

use super::fault::Fault;

/// What has been seen so far.
#[derive(Debug)]
pub(super) struct Report {
    seed: u64,
    moves: u32,
    struck: BTreeMap<(Fault, String), u32>,
    endings: BTreeMap<String, u32>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, moves: 0, struck: BTreeMap::new(), endings: BTreeMap::new() }
    }

    pub(super) fn struck(&mut self, fault: Fault, stage: &str) {
        *self.struck.entry((fault, stage.to_owned())).or_default() += 1;
    }

    pub(super) fn ended(&mut self, ending: &str) {
        self.moves += 1;
        *self.endings.entry(ending.to_owned()).or_default() += 1;
    }

    /// Tables of Markdown.
    pub(super) fn text(&self) -> String {
        let mut text = format!("# Torment, seed {}: {} moves\n\n", self.seed, self.moves);
        text.push_str("| ending | moves |\n|---|---|\n");
        for (ending, count) in &self.endings {
            text.push_str(&format!("| {ending} | {count} |\n"));
        }
        text.push_str("\n| fault | while | times |\n|---|---|---|\n");
        for ((fault, stage), count) in &self.struck {
            text.push_str(&format!("| {fault} | {stage} | {count} |\n"));
        }
        text
    }
}
