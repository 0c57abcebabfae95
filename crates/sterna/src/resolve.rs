//! `sterna migrate resolve`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use sterna_api::doubt::{DoubtView, ResolveRequest, Verdict};
use sterna_api::{GuestView, paths};

/// Options of `sterna migrate resolve`.
#[derive(Debug, clap::Args)]
pub(crate) struct ResolveArgs {
    /// Name of the guest
    guest: String,
    /// You have seen that the guest runs at the destination: what is left of it here is ended. If it is not so, the
    /// guest is lost
    #[arg(long, conflicts_with = "runs_nowhere_else")]
    runs_there: bool,
    /// You have made sure that the guest neither runs nor arrives on another host: it runs on here. If it is not so,
    /// there are two of it, and they destroy its disks
    #[arg(long)]
    runs_nowhere_else: bool,
}

/// Shows what is known of a guest in doubt, or ends the doubt.
pub(crate) async fn run(args: ResolveArgs, global: &Global) -> anyhow::Result<Exit> {
    let client = global.connection.client()?;
    let path = paths::with(paths::DOUBT, &args.guest);
    let runs = match (args.runs_there, args.runs_nowhere_else) {
        (true, _) => Verdict::There,
        (false, true) => Verdict::Nowhere,
        (false, false) => {
            let doubt: DoubtView = client.get(&path).await?;
            match global.output {
                Output::Json => output::json(&doubt)?,
                Output::Text => print!("{}", text(&doubt)),
            }
            return Ok(Exit::Doubt);
        }
    };
    let view: GuestView = client.post(&path, &ResolveRequest { runs }).await?;
    crate::vm::print(&view, global.output)
}

fn text(doubt: &DoubtView) -> String {
    let DoubtView { guest, move_id, destination, reason, is_asking } = doubt;
    let asking = match is_asking {
        true => format!(
            "{destination} is asked again and again; as soon as it answers, the doubt is over"
        ),
        false => format!("{destination} is asked no longer"),
    };
    format!(
        "{guest} stays paused here: {reason}\n\
         \n\
         what is known: it was to move to {destination} by the move {move_id}, all of it was sent, and {destination} may\n\
         have been told to run it. {asking}.\n\
         \n\
         look at {destination}: `sterna vm list` there shows whether {guest} runs, arrives, or is not there\n\
         \n\
         if it runs there     sterna migrate resolve {guest} --runs-there\n\
         \x20                    ends what is left of it here; if it does not run there, the guest is lost\n\
         if it arrives there  sterna moves cancel ID, there, with the id that `sterna moves list` shows there; then as below\n\
         if it is not there,  sterna migrate resolve {guest} --runs-nowhere-else\n\
         \x20 or {destination} is off    lets it run on here; if it runs there, or {destination} comes back with it, there are two,\n\
         \x20                    and they destroy its disks\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_answer_would_do_is_said_with_the_command_for_it() {
        let doubt = DoubtView {
            guest: "web".into(),
            move_id: uuid::Uuid::nil(),
            destination: "b".into(),
            reason: "b does not say".into(),
            is_asking: true,
        };
        let text = text(&doubt);
        for words in [
            "sterna migrate resolve web --runs-there\n",
            "sterna migrate resolve web --runs-nowhere-else\n",
            "the guest is lost",
            "there are two",
            "sterna moves cancel ID, there",
            "asked again and again",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }
}
