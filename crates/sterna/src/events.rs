//! `sterna events`

use crate::cli::{Global, Output};
use crate::client::{Client, is_broken_off};
use crate::exit::Exit;
use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use std::time::{Duration, UNIX_EPOCH};
use sterna_api::{Direction, Event, Happened, MoveState, paths};

/// A line that is longer is none of an agent's.
const LINE_BYTES_MAX: usize = 1 << 20;

/// How often and at what distance an agent that does not answer is asked again.
const RETRIES_MAX: u32 = 60;
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Options of `sterna events`.
#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Begin behind the event of this number, as far as the host remembers; 0 for all of them
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
}

/// Prints what happens on a host until it is interrupted. An agent that is restarted meanwhile is waited for.
pub(crate) async fn run(args: EventsArgs, global: &Global) -> anyhow::Result<Exit> {
    let client = global.connection.client()?;
    let (mut after, mut tries) = (args.after, 0);
    loop {
        let before = after;
        match follow(&client, &mut after, global.output).await {
            Err(error) if !is_broken_off(&error) || tries >= RETRIES_MAX => return Err(error),
            Ok(()) | Err(_) => {}
        }
        tries = if after == before { tries + 1 } else { 0 };
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Prints events until the stream ends.
async fn follow(client: &Client, after: &mut Option<u64>, output: Output) -> anyhow::Result<()> {
    let question = after.map_or_else(String::new, |after| format!("?after={after}"));
    let response = client.stream(&format!("{}{question}", paths::EVENTS)).await?;
    let mut pieces = response.bytes_stream();
    let mut unread = Vec::new();
    while let Some(piece) = pieces.next().await {
        unread.extend_from_slice(&piece?);
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            if line.len() > 1 {
                let event: Event =
                    serde_json::from_slice(&line).context("cannot read the agent's answer")?;
                print(&event, output)?;
                *after = Some(event.number);
            }
        }
        ensure!(unread.len() <= LINE_BYTES_MAX, "the agent's answer has no lines");
    }
    Ok(())
}

fn print(event: &Event, output: Output) -> anyhow::Result<()> {
    match output {
        // In one line each, as they come one after the other without an end.
        Output::Json => println!("{}", serde_json::to_string(event)?),
        Output::Text => println!("{}", line(event)),
    }
    Ok(())
}

/// An event in a line for people.
fn line(event: &Event) -> String {
    let when = UNIX_EPOCH + Duration::from_millis(event.unix_ms);
    let what = match &event.what {
        Happened::Guest { name, state, .. } => match state.reason() {
            Some(reason) => format!("{name}: {} ({reason})", state.word()),
            None => format!("{name}: {}", state.word()),
        },
        Happened::GuestDefined { name, .. } => format!("{name}: defined anew"),
        Happened::GuestGone { name, .. } => format!("{name}: no longer here"),
        Happened::Move { id, guest, direction, peer, state } => {
            let way = match direction {
                Direction::Outgoing => "to",
                Direction::Incoming => "from",
            };
            let how = match state {
                MoveState::Moving => "begins",
                MoveState::InDoubt { reason } => &format!("is in doubt: {reason}"),
                MoveState::Ended { summary } => &format!("has ended: {summary}"),
            };
            format!("{guest}: its move {way} {peer} {how} ({id})")
        }
        Happened::Missed => "more has happened than is remembered".into(),
        Happened::Unknown => "something that this release does not know".into(),
    };
    format!("{}  {what}", humantime::format_rfc3339_seconds(when))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_with_its_time() {
        let text = r#"{"number":7,"unix_ms":1764331200000,"event":"move","guest":"web-1",
            "id":"00000000-0000-0000-0000-000000000007","direction":"outgoing","peer":"b",
            "state":"ended","summary":"moved"}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        let expected = "2025-11-28T12:00:00Z  web-1: its move to b has ended: moved \
            (00000000-0000-0000-0000-000000000007)";
        assert_eq!(line(&event), expected);
    }
}
