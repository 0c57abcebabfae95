//! `sterna vm check`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use std::fmt::{self, Write as _};
use sterna_api::{CheckRequest, CheckView, paths};
use sterna_proto::message::Reason;

/// Options of `sterna vm check`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Name of the guest
    name: String,
    /// Host to ask whether it would take the guest; may be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    to: Vec<String>,
}

/// Says whether and where a guest could move, and why not.
pub(crate) async fn run(args: CheckArgs, global: &Global) -> anyhow::Result<Exit> {
    let path = paths::with(paths::CHECK, &args.name);
    let request = CheckRequest { to: args.to };
    let view: CheckView = global.connection.client()?.post(&path, &request).await?;
    match global.output {
        Output::Json => output::json(&view)?,
        Output::Text => print!("{}", render(&view)),
    }
    Ok(if view.movable() { Exit::Done } else { Exit::Refused })
}

fn render(view: &CheckView) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, view);
    text
}

fn write(text: &mut String, view: &CheckView) -> fmt::Result {
    let because = |text: &mut String, reasons: &[Reason]| {
        reasons.iter().try_for_each(|reason| writeln!(text, "    because {}", reason.detail))
    };
    let guest = &view.guest;
    match (view.bound.is_empty(), view.bound_natively.is_empty()) {
        (true, _) => writeln!(text, "{guest} can leave")?,
        (false, true) => writeln!(text, "{guest} can leave with --algorithm native only")?,
        (false, false) => writeln!(text, "{guest} cannot leave")?,
    }
    because(text, &view.bound)?;
    for host in &view.hosts {
        let answer = if host.refused.is_empty() { "would take it" } else { "would refuse it" };
        writeln!(text, "  {} {answer}", host.to)?;
        because(text, &host.refused)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_api::HostCheck;
    use sterna_proto::message::ReasonCode;

    #[test]
    fn every_reason_is_shown_with_whom_it_is_from() {
        let reason = |words: &str| vec![Reason::new(ReasonCode::Missing, words)];
        let host = |to: &str, refused| HostCheck { to: to.into(), refused };
        let hosts = vec![host("b", vec![]), host("c", reason("the disk /x is not there"))];
        let (bound, bound_natively) = (reason("its memory is private"), vec![]);
        let mut view = CheckView { guest: "web".into(), bound, bound_natively, hosts };
        let expected = "web can leave with --algorithm native only\n    because its memory is private\n  \
            b would take it\n  c would refuse it\n    because the disk /x is not there\n";
        assert_eq!(render(&view), expected);
        assert!(view.movable());
        view.hosts.remove(0);
        assert!(!view.movable(), "no host takes it");
        view.hosts.clear();
        assert!(view.movable(), "nobody was asked");
        view.bound_natively = reason("a device of its host");
        assert!(!view.movable());
    }
}
