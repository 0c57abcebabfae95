//! Hosts that join a cluster by a code, and one that is let in no longer.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sterna_core::receipt::Ending;
use sterna_pki::{Authority, HostCertificate, Subject, Validity};
use sterna_testkit::net::Host;

use crate::kit::{GUEST, World, small_guest, until};

/// Says `sterna` something on a host, with the identity that it is about to have or has.
fn say(world: &World, host: Host, identity: &Path, words: &[&str]) -> Result<Output> {
    let mut command: Command = world.lab.sterna(host, words)?;
    Ok(command.arg("--identity").arg(identity).output()?)
}

fn said(world: &World, host: Host, identity: &Path, words: &[&str]) -> Result<Value> {
    let words = [words, &["--output", "json"]].concat();
    let output = say(world, host, identity, &words)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sterna {words:?}: {error}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn refused(world: &World, host: Host, identity: &Path, words: &[&str], why: &str) -> Result<()> {
    let output = say(world, host, identity, words)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "sterna {words:?} was done");
    ensure!(error.contains(why), "{error:?} does not say {why:?}");
    Ok(())
}

fn identity(world: &World, host: Host) -> PathBuf {
    world.folder().join("joined").join(host.name())
}

/// `sterna doctor` moves a guest of its own, beside whatever this host's agent does.
fn test_move_leaves_nothing(world: &World) -> Result<()> {
    let scratch = world.folder().join("scratch");
    std::fs::create_dir(&scratch)?;
    let mut doctor = world.lab.sterna(Host::A, &["doctor", "--output", "json"])?;
    let found: Vec<Value> =
        serde_json::from_slice(&doctor.env("TMPDIR", &scratch).output()?.stdout)?;
    let moved = found.iter().find(|one| one["check"] == "test move").context("no test move")?;
    ensure!(moved["verdict"] == "good", "{moved}");
    ensure!(std::fs::read_dir(&scratch)?.next().is_none(), "its folder is left");
    let name = world.lab.topology()?.host(Host::A)?.name();
    let pids = Command::new("ip").args(["netns", "pids", name]).output()?.stdout;
    for pid in String::from_utf8(pids)?.lines() {
        let words = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.trim()));
        ensure!(!words.unwrap_or_default().contains("sterna-doctor"), "process {pid} is left");
    }
    Ok(())
}

#[test]
fn two_commands_add_a_host_guests_move_to_it_and_revoked_it_is_let_in_no_longer() -> Result<()> {
    let Some(mut world) = World::empty("st-join")? else { return Ok(()) };
    let (a, b) = (identity(&world, Host::A), identity(&world, Host::B));
    let address = world.lab.address(Host::A);
    said(&world, Host::A, &a, &["cluster", "init", "--name", "a", "--address", &address])?;
    refused(&world, Host::A, &a, &["cluster", "init"], "is there already")?;
    let _agent_a = world.replace_agent(Host::A, &a, None)?;

    let invitation = said(&world, Host::A, &a, &["host", "invite", "b"])?;
    let code = invitation["code"].as_str().context("no code")?.to_owned();
    ensure!(code.starts_with(&format!("{address}/")), "{code}");
    let altered = format!("{}A", &code[..code.len() - 1]);
    let altered = if altered == code { format!("{}Q", &code[..code.len() - 1]) } else { altered };
    refused(&world, Host::B, &b, &["host", "join", &altered], "not valid")?;
    let joined = said(&world, Host::B, &b, &["host", "join", &code])?;
    ensure!(joined["name"] == "b" && joined["agent"]["state"] == "yours", "{joined}");
    ensure!(joined["addresses"][0] == world.lab.address(Host::B).as_str(), "{joined}");
    // The code was for one host, once; and nobody is invited any more.
    let other = world.folder().join("joined").join("other");
    refused(&world, Host::B, &other, &["host", "join", &code], "cannot talk to")?;
    refused(&world, Host::B, &b, &["host", "join", &code], "is there already")?;
    ensure!(!other.exists(), "a refused host has written something");
    refused(&world, Host::A, &a, &["host", "invite", "b"], "is a host of the cluster")?;
    let agent_b = world.replace_agent(Host::B, &b, None)?;

    let address_b = world.lab.address(Host::B);
    let examined = |what: &str| -> Result<Value> {
        let words = ["doctor", "--quick", "--to", &address_b, "--output", "json"];
        let found = say(&world, Host::A, &a, &words)?;
        let found: Vec<Value> = serde_json::from_slice(&found.stdout)?;
        let check = format!("{address_b} {what}");
        let one = found.into_iter().find(|one| one["check"] == check.as_str());
        one.with_context(|| format!("{what} was not examined"))
    };
    for what in ["interface", "clock", "version", "moves", "MTU"] {
        let found = examined(what)?;
        ensure!(found["verdict"] == "good", "{found}");
    }
    // Now large packets leave here, and the other end of the link drops them without a word.
    let link = ["link", "set", "dev", "mig", "mtu"];
    world.lab.topology()?.host(Host::A)?.ip(&[&link[..], &["9000"]].concat())?;
    let found = examined("MTU")?;
    ensure!(found["verdict"] == "missing", "{found}");
    let remedy = found["remedy"].as_str().context("no remedy")?;
    ensure!(remedy.starts_with("ip link set DEVICE mtu 1500 "), "{remedy}");
    world.lab.topology()?.host(Host::A)?.ip(&[&link[..], &["1500"]].concat())?;

    test_move_leaves_nothing(&world)?;

    // From here on all is as with certificates that were carried by hand.
    world.start(&small_guest())?;
    world.moves_well(Host::A, Host::B)?;
    world.runs_only_on(Host::B)?;

    // A host may not say who is a host: not even this one's certificate invites another.
    let at_a = ["host", "invite", "c", "--host", &address];
    refused(&world, Host::B, &b, &at_a, "not for the host b")?;
    let hosts = said(&world, Host::A, &a, &["host", "list"])?;
    let names: Vec<_> = hosts.as_array().context("no list")?.iter().map(|h| &h["name"]).collect();
    ensure!(names == ["a", "b"], "{hosts}");

    // The guest comes home before its host is let in no longer.
    world.moves_well(Host::B, Host::A)?;
    let revoked = said(&world, Host::A, &a, &["host", "revoke", "b"])?;
    ensure!(revoked["certificates"] == 1 && revoked["told"][0] == "a", "{revoked}");
    refused(&world, Host::A, &a, &["host", "revoke", "b"], "no host of the cluster is named b")?;
    let look = ["vm", "list", "--host", &address];
    refused(&world, Host::B, &b, &look, "cannot reach the agent")?;
    let migrated = world.lab.migrate(Host::A, Host::B, GUEST, &[])?;
    let ending = &migrated.receipt()?.ending;
    ensure!(matches!(ending, Ending::Undone { .. }), "{ending:?}");
    world.runs_only_on(Host::A)?;
    world.nothing_is_wrong(Host::A)?;

    // It may be invited again, and is another one then.
    drop(agent_b);
    let invitation = said(&world, Host::A, &a, &["host", "invite", "b"])?;
    let code = invitation["code"].as_str().context("no code")?.to_owned();
    let b = world.folder().join("joined").join("b-again");
    said(&world, Host::B, &b, &["host", "join", &code])?;
    said(&world, Host::B, &b, &["vm", "list", "--host", &address])?;
    Ok(())
}

#[test]
fn a_certificate_is_renewed_in_time_and_what_is_revoked_is_known_after_each_start() -> Result<()> {
    let Some(mut world) = World::empty("st-renew")? else { return Ok(()) };
    let (a, b) = (identity(&world, Host::A), identity(&world, Host::B));
    let address = world.lab.address(Host::A);
    said(&world, Host::A, &a, &["cluster", "init", "--name", "a", "--address", &address])?;
    let authority = Authority::read(&a.join("authority"))?;
    // Certificates of which more than two thirds are over.
    let Validity { from, until: end } = Validity::renewed();
    let lasts = end - from;
    let old = Validity { from: from - lasts * 4, until: end - lasts / 2 };
    for (host, folder) in [(Host::A, &a), (Host::B, &b)] {
        let addresses = vec![world.lab.address(host).parse()?];
        let subject = Subject { name: host.name().into(), addresses };
        for file in ["ca.pem", "host.pem", "host.key"] {
            let _there_or_not = std::fs::remove_file(folder.join(file));
        }
        authority.issue(&subject, old)?.write(folder)?;
    }
    std::fs::write(b.join("authority.host"), format!("{address}\n"))?;
    authority.revoke([vec![1, 2, 3]])?;
    let is_due = |folder: &Path| -> Result<bool> {
        let certificate = HostCertificate::read(&folder.join("host.pem"))?;
        Ok(certificate.validity.is_due(std::time::SystemTime::now().into()))
    };
    ensure!(is_due(&a)? && is_due(&b)?, "they are not old");
    let _agent_a = world.replace_agent(Host::A, &a, None)?;
    let _agent_b = world.replace_agent(Host::B, &b, None)?;
    for folder in [&a, &b] {
        until("a renewed certificate", || Ok((!is_due(folder)?).then_some(())))?;
        until("the list of what is revoked", || Ok(folder.join("crl.pem").exists().then_some(())))?;
    }
    let subject = HostCertificate::read(&b.join("host.pem"))?.subject;
    ensure!(subject.name == "b" && subject.addresses.len() == 1, "{subject:?}");
    // It is the renewed certificate by which b is known.
    said(&world, Host::B, &b, &["vm", "list", "--host", &address])?;
    Ok(())
}
