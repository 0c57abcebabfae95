//! A guest moves from an old agent to a new one and back, by each algorithm.

use anyhow::{Context, Result, ensure};
use sterna_core::receipt::RamCheck;

use super::pair::{Ended, GUEST, Pair, Replaced};

/// QEMU's own way compares no RAM of a guest with a balloon; that guest checks its memory all the same.
const WAYS: [&[&str]; 5] = [
    &["--algorithm", "pre-copy", "--verify"],
    &["--algorithm", "post-copy", "--verify"],
    &["--algorithm", "hybrid", "--verify", "--compress", "auto"],
    &["--algorithm", "native"],
    &["--verify", "--when-stuck", "stop-and-copy"],
];

/// Moves the guest of a, which stays old, to b, which becomes new, and back, each way.
pub(super) fn run(mut pair: Pair) -> Result<()> {
    let b = pair.other();
    ensure!(pair.replace(b, Ended::Orderly)? == Replaced::Yes, "an upgrade was refused");
    for words in WAYS {
        for _there_and_back in 0..2 {
            let (from, to) = (pair.age(pair.at), pair.age(pair.other()));
            let which = || format!("{from} → {to}, {}", words.join(" "));
            let address = pair.lab.address(pair.other());
            pair.lab.run(pair.at, &["plan", GUEST, "--to", &address]).with_context(which)?;
            let receipt = pair.moves_well(words).with_context(which)?;
            let is_right = receipt.ram_digest == RamCheck::Equal || !words.contains(&"--verify");
            ensure!(is_right, "{}: RAM was {:?}", which(), receipt.ram_digest);
        }
    }
    Ok(())
}
