//! A machine that reaches one host of a cluster, and asks another through it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sterna_testkit::lab::{GuestPlan, Hosts};
use sterna_testkit::net::Host;
use sterna_testkit::recorder::{Bytes, Workload};

use crate::kit::{GUEST, World};

/// What is said to host b, with whose identity, from a host and through another.
struct Way<'a> {
    world: &'a World,
    from: Host,
    via: &'a str,
    identity: &'a Path,
}

impl Way<'_> {
    fn command(&self, host: &str, words: &[&str]) -> Result<std::process::Command> {
        let mut command = self.world.lab.sterna(self.from, words)?;
        command.args(["--via", self.via, "--host", host, "--output", "json"]);
        command.arg("--identity").arg(self.identity);
        Ok(command)
    }

    fn said(&self, host: &str, words: &[&str]) -> Result<Value> {
        let output = self.command(host, words)?.output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sterna {words:?}: {error}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// What was said must be refused, in these words and with this exit code.
    fn refused(&self, host: &str, words: &[&str], why: &str, exit: i32) -> Result<()> {
        let output = self.command(host, words)?.output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(error.contains(why), "{error:?} does not say {why:?}");
        ensure!(output.status.code() == Some(exit), "{:?}: {error}", output.status);
        Ok(())
    }
}

/// A command that goes on until it is dropped.
struct Goes(Child);

impl Drop for Goes {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _status = self.0.wait();
    }
}

const LIST: [&str; 2] = ["vm", "list"];

#[test]
fn whoever_reaches_one_host_asks_all_of_them_and_each_decides_by_itself() -> Result<()> {
    let Some(mut world) = World::of("st-via", Hosts::Three, &[])? else { return Ok(()) };
    let identity = |name: &str| -> PathBuf { world.folder().join("cluster").join(name) };
    let (a, b) = (identity("a"), identity("b"));
    let (viewer, admin) = (identity("vera"), identity("ada"));
    let (at_a, at_b) = (world.lab.address(Host::A), world.lab.address(Host::B));
    let run = |world: &World, host, identity: &Path, words: &[&str]| -> Result<String> {
        let identity = identity.to_str().context("no text")?;
        world.lab.run(host, &[words, &["--identity", identity, "--output", "json"]].concat())
    };
    run(&world, Host::A, &a, &["cluster", "init", "--name", "a", "--address", &at_a])?;
    let agent_a = world.replace_agent(Host::A, &a, None)?;
    let invited = run(&world, Host::A, &a, &["host", "invite", "b"])?;
    let invited: Value = serde_json::from_str(&invited)?;
    let code = invited["code"].as_str().context("no code")?.to_owned();
    run(&world, Host::B, &b, &["host", "join", &code])?;
    let agent_b = world.replace_agent(Host::B, &b, None)?;
    let authority = a.join("authority");
    let authority = authority.to_str().context("no text")?;
    for (name, role, folder) in [("vera", "viewer", &viewer), ("ada", "admin", &admin)] {
        let folder = folder.to_str().context("no text")?;
        world
            .lab
            .run(Host::A, &["pki", "user", authority, name, "--role", role, "--out", folder])?;
    }

    // The third host is somebody's machine, which reaches a only.
    world.lab.topology()?.host(Host::C)?.ip(&["route", "add", "blackhole", &at_b])?;
    let directly = ["--host", at_b.as_str()];
    let error = run(&world, Host::C, &viewer, &[&LIST[..], &directly].concat());
    ensure!(error.is_err_and(|error| error.to_string().contains("cannot reach the agent")));
    let by_viewer = Way { world: &world, from: Host::C, via: &at_a, identity: &viewer };
    let by_admin = Way { identity: &admin, ..by_viewer };
    ensure!(by_viewer.said("b", &LIST)? == Value::Array(vec![]));

    // B decides who may what.
    let workload = Workload::new(Bytes::mebibytes(16));
    let plan = GuestPlan::new(GUEST, Bytes::mebibytes(128), workload);
    let file = world.lab.describe(Host::C, &plan)?;
    let create = ["vm", "create", file.to_str().context("no text")?];
    by_viewer.refused("b", &create, "not for vera, whose role is viewer", 3)?;
    let mut events = by_viewer.command("b", &["events", "--after", "0"])?;
    let mut events = Goes(events.stdout(Stdio::piped()).spawn()?);
    let mut told = BufReader::new(events.0.stdout.take().context("no output")?).lines();
    by_admin.said("b", &create)?;
    let defined = told.find(|line| line.as_ref().is_ok_and(|line| line.contains("guest-defined")));
    ensure!(defined.is_some(), "its events say nothing");
    ensure!(by_viewer.said("b", &LIST)?[0]["name"] == GUEST, "it is not there");
    ensure!(world.guests(Host::B)?.len() == 1 && world.guests(Host::A)?.is_empty());

    // What A refuses is told as A tells it.
    by_viewer.refused("nobody", &LIST, "no host of the cluster is named nobody", 1)?;
    by_viewer.refused(&at_b, &LIST, "not by its address", 1)?;
    by_viewer.refused("b:22", &LIST, "port 7400 of hosts, and not to 22", 3)?;
    let by_host = Way { from: Host::B, identity: &b, ..by_viewer };
    by_host.refused("a", &LIST, "and not the host b", 3)?;
    // B has not the authority, and asks where a is.
    let through_b = Way { from: Host::A, via: &at_b, ..by_viewer };
    through_b.said("a", &LIST)?;

    drop(agent_b);
    by_viewer.refused("b", &LIST, "b cannot be reached from a (10.77.0.2:7400: ", 1)?;
    drop(agent_a);
    by_viewer.refused("b", &LIST, "cannot reach the agent at 10.77.0.1:7400: ", 1)?;
    Ok(())
}
