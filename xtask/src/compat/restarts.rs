//! An agent of one program takes over from one of the other, under a guest that runs on.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::pair::{Ended, GUEST, Pair, Replaced};
use super::releases::Age;

/// Upgrades the guest's agent, takes that back, and upgrades it again; then the guest moves there and back.
pub(super) fn run(mut pair: Pair, ended: Ended) -> Result<()> {
    let at = pair.at;
    let hypervisors = pair.lab.hypervisors(at)?;
    ensure!(pair.replace(at, ended)? == Replaced::Yes, "an upgrade was refused");
    pair.runs_in_one_place().context("after the upgrade")?;
    ensure!(pair.lab.hypervisors(at)? == hypervisors, "the guest has another hypervisor");
    new_hypervisor(&mut pair).context("after the upgrade")?;

    let taken_back = pair.replace(at, ended)?;
    pair.runs_in_one_place().context("after the upgrade was taken back")?;
    if taken_back == Replaced::Yes {
        new_hypervisor(&mut pair).context("after the upgrade was taken back")?;
        ensure!(pair.replace(at, ended)? == Replaced::Yes, "an upgrade was refused");
        pair.runs_in_one_place().context("after the second upgrade")?;
    }
    new_hypervisor(&mut pair).context("after the second upgrade")?;
    pair.moves_well(&["--algorithm", "pre-copy", "--verify"])?;
    pair.moves_well(&["--algorithm", "pre-copy", "--verify"]).map(drop)
}

/// Gives the guest a new hypervisor on its host. An old agent may refuse that of one that a new agent has started, which
/// nobody can mend any more: then the guest has the one that it had.
fn new_hypervisor(pair: &mut Pair) -> Result<()> {
    let before = pair.lab.hypervisors(pair.at)?;
    let words = ["vm", "upgrade", GUEST, "--verify", "--output", "json"];
    let told = match pair.lab.run(pair.at, &words) {
        Err(refused) if pair.age(pair.at) == Age::Old => {
            println!("   no new hypervisor by the old agent: {refused:#}");
            ensure!(pair.lab.hypervisors(pair.at)? == before, "it has another one all the same");
            return pair.runs_in_one_place();
        }
        told => told?,
    };
    let told: Value = serde_json::from_str(&told)?;
    ensure!(told["ram_digest"] == "equal", "{told:#}");
    pair.runs_in_one_place()?;
    ensure!(pair.lab.hypervisors(pair.at)? != before, "the guest has the hypervisor it had");
    println!("   a new hypervisor by the {} agent", pair.age(pair.at));
    Ok(())
}
