//! Watches a move until it has ended, and lets the operator cancel it.
//!
//! The first Ctrl-C cancels the move and goes on watching, since only its end says where the guest
//! runs; the second leaves the watch. An agent that is restarted meanwhile is waited for.

use crate::cli::Output;
use crate::client::{Client, is_broken_off};
use crate::exit::Exit;
use crate::output;
use crate::progress::Display;
use crate::receipt_text;
use std::time::Duration;
use sterna_api::{MoveState, MoveView, paths};

/// How long one question waits for news: also how often a line of progress is due.
const NEWS_WAIT_MS: u64 = 1000;

/// How often and at what distance an agent that does not answer is asked again.
const RETRIES_MAX: u32 = 60;
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Whether the operator has cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Watch,
    Cancelled,
}

/// Watches a move and prints how it ended.
pub(crate) async fn until_ended(
    client: &Client,
    mut view: MoveView,
    output: Output,
) -> anyhow::Result<Exit> {
    let path = paths::with(paths::MOVE, &view.id.to_string());
    let mut display = Display::new();
    let mut wish = Wish::Watch;
    while !matches!(view.state, MoveState::Ended { .. }) {
        display.show(&view);
        tokio::select! {
            news = news(client, &path, &view.version) => view = news?,
            _ = tokio::signal::ctrl_c() => match wish {
                Wish::Watch => {
                    wish = Wish::Cancelled;
                    display.note("cancelling; press Ctrl-C again to leave the move to itself");
                    view = client.delete(&path).await?;
                }
                Wish::Cancelled => return Ok(left(&view, &mut display)),
            },
        }
    }
    display.finish();
    print(&view, output)
}

/// The move's next version; repeated while the agent is away.
async fn news(client: &Client, path: &str, seen: &str) -> anyhow::Result<MoveView> {
    let question = format!("{path}?wait_ms={NEWS_WAIT_MS}&seen={seen}");
    let mut tries = 0;
    loop {
        match client.get(&question).await {
            Err(error) if is_broken_off(&error) && tries < RETRIES_MAX => {
                tries += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

fn left(view: &MoveView, display: &mut Display) -> Exit {
    display.finish();
    eprintln!("the move goes on; `sterna moves show {}` says how it stands", view.id);
    match view.state {
        MoveState::InDoubt { .. } => Exit::Doubt,
        MoveState::Moving | MoveState::Ended { .. } => Exit::Error,
    }
}

/// Prints a move that has ended.
pub(crate) fn print(view: &MoveView, output: Output) -> anyhow::Result<Exit> {
    match (&view.receipt, output) {
        (Some(receipt), Output::Json) => output::json(receipt)?,
        (Some(receipt), Output::Text) => print!("{}", receipt_text::render(receipt)),
        (None, Output::Json) => output::json(view)?,
        (None, Output::Text) => {
            if let MoveState::Ended { summary } = &view.state {
                println!("{}: {summary}", view.guest);
            }
        }
    }
    // Without a receipt the agent was restarted; the guest's own state says what became of it.
    Ok(view.receipt.as_ref().map_or(Exit::Doubt, Exit::of_move))
}
