//! `sterna vm console`

use crate::cli::Global;
use crate::client::Client;
use crate::exit::Exit;
use futures_util::StreamExt as _;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{self, Read, Write};
use sterna_api::paths;
use tokio::sync::mpsc;

/// The key that leaves a console: Ctrl-].
const LEAVE: u8 = 0x1d;

/// Options of `sterna vm console`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConsoleArgs {
    /// Name of the guest
    name: String,
    /// Print what the console showed lately and do not wait for more
    #[arg(long)]
    no_follow: bool,
    /// Do not pass on what is typed
    #[arg(long)]
    read_only: bool,
}

/// Connects the terminal to a guest's console.
pub(crate) async fn run(args: ConsoleArgs, global: &Global) -> anyhow::Result<Exit> {
    let client = global.connection.client()?;
    let path = paths::with(paths::CONSOLE, &args.name);
    if args.no_follow {
        let past = client.stream(&format!("{path}?follow=false")).await?.bytes().await?;
        io::stdout().write_all(&past)?;
        return Ok(Exit::Done);
    }
    let output = client.stream(&path).await?;
    let _raw = if args.read_only { None } else { RawTerminal::enter() };
    let typed = if args.read_only { mpsc::channel(1).1 } else { keyboard() };
    tokio::select! {
        ended = print(output) => ended?,
        ended = pass_on(&client, &path, typed) => ended?,
    }
    Ok(Exit::Done)
}

async fn print(output: reqwest::Response) -> anyhow::Result<()> {
    let mut output = output.bytes_stream();
    while let Some(bytes) = output.next().await {
        let mut stdout = io::stdout().lock();
        stdout.write_all(&bytes?)?;
        stdout.flush()?;
    }
    Ok(())
}

/// Reads what is typed in a thread of its own, as a terminal cannot be read otherwise.
fn keyboard() -> mpsc::Receiver<Vec<u8>> {
    let (sender, typed) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    typed
}

/// Returns when the operator leaves the console; what is typed may also just end.
async fn pass_on(
    client: &Client,
    path: &str,
    mut typed: mpsc::Receiver<Vec<u8>>,
) -> anyhow::Result<()> {
    while let Some(mut bytes) = typed.recv().await {
        let leave = bytes.iter().position(|byte| *byte == LEAVE);
        bytes.truncate(leave.unwrap_or(bytes.len()));
        if !bytes.is_empty() {
            client.post_bytes(path, bytes).await?;
        }
        if leave.is_some() {
            return Ok(());
        }
    }
    std::future::pending().await
}

/// A terminal that passes every key on; becomes as before when it is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    /// `None` where there is no terminal.
    fn enter() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
        println!();
    }
}
