//! `sterna moves list`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::{output, progress};
use sterna_api::{Direction, MoveState, MoveView, paths};

/// Options of `sterna moves list`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Show only moves that have not ended
    #[arg(long)]
    running: bool,
}

/// Lists moves.
pub(crate) async fn run(args: ListArgs, global: &Global) -> anyhow::Result<Exit> {
    let mut moves: Vec<MoveView> = global.connection.client()?.get(paths::MOVES).await?;
    if args.running {
        moves.retain(|view| !matches!(view.state, MoveState::Ended { .. }));
    }
    match global.output {
        Output::Json => output::json(&moves)?,
        Output::Text => {
            let rows: Vec<Vec<String>> = moves.iter().map(row).collect();
            output::table(&["ID", "GUEST", "WAY", "HOST", "STATE"], &rows);
        }
    }
    Ok(Exit::Done)
}

fn row(view: &MoveView) -> Vec<String> {
    let way = match view.direction {
        Direction::Outgoing => "to",
        Direction::Incoming => "from",
    };
    let state = match &view.state {
        MoveState::Ended { summary } => summary.clone(),
        MoveState::Moving | MoveState::InDoubt { .. } => progress::line(view),
    };
    vec![view.id.to_string(), view.guest.clone(), way.into(), view.peer.clone(), state]
}
