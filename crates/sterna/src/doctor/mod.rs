//! `sterna doctor`

mod here;
mod mtu;
mod test_move;
mod there;

use crate::agent::TrackerName;
use crate::agent::file::File;
use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use std::path::PathBuf;
use sterna_api::{Finding, Verdict, paths};
use sterna_engine::identity::Identity;

/// Options of `sterna doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// QEMU program; looked for if not given
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
    /// How writes are tracked: only that is tried; as the agent's configuration says if not given
    #[arg(long, value_enum)]
    tracker: Option<TrackerName>,
    /// Another host to examine from here; may be repeated
    #[arg(long = "to", value_name = "HOST[:PORT]")]
    to: Vec<String>,
    /// Folder of what must survive a reboot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/sterna")]
    state: PathBuf,
    /// Start no guest: leave out the move of a small one between two agents that are there for nothing else
    #[arg(long)]
    quick: bool,
}

/// Examines this host; needs no agent, but for what only an agent can tell of itself.
pub(crate) async fn run(args: &DoctorArgs, global: &Global) -> anyhow::Result<Exit> {
    let tracker = args.tracker.or_else(|| File::find(None).ok()?.tracker());
    let mut findings = sterna_agent::examine(args.qemu.as_deref(), tracker.map(Into::into));
    let folder = global.connection.identity_folder();
    // What is missing by then has its own remedy, and would be in the way.
    if !args.quick && !is_missing(&findings) {
        findings.push(test_move::examine(args.qemu.as_deref(), tracker).await);
    }
    findings.extend([here::identity(&folder), here::space(&args.state), here::users()]);
    let agent = global.connection.local_client()?;
    findings.push(here::cgroups(agent.get(paths::HOST).await));
    if !args.to.is_empty() {
        let identity = Identity::load(&folder)?;
        for host in &args.to {
            findings.extend(there::examine(host, &identity).await);
        }
    }
    match global.output {
        Output::Json => output::json(&findings)?,
        Output::Text => print!("{}", text(&findings)),
    }
    Ok(if is_missing(&findings) { Exit::Error } else { Exit::Done })
}

fn is_missing(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.verdict == Verdict::Missing)
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Good => "good   ",
            Verdict::Limited => "limited",
            Verdict::Missing => "MISSING",
        };
        text.push_str(&format!("{mark}  {}: {}\n", finding.check, finding.detail));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("         remedy: {remedy}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_its_remedy() {
        let finding = Finding {
            check: "kernel".into(),
            verdict: Verdict::Missing,
            detail: "6.1, needs 6.7".into(),
            remedy: Some("apt install linux-image-amd64/bookworm-backports".into()),
        };
        let expected = "MISSING  kernel: 6.1, needs 6.7\n         \
            remedy: apt install linux-image-amd64/bookworm-backports\n";
        assert_eq!(text(&[finding]), expected);
    }
}
