//! The `sterna` program: parses the command line, runs one command, exits with its code.

#![forbid(unsafe_code)]

mod agent;
mod cli;
mod client;
mod cluster;
mod completion;
mod doctor;
mod events;
mod exit;
mod history;
mod host;
mod images;
mod manual;
mod migrate;
mod moves;
mod output;
mod pki;
mod plan;
mod progress;
mod receipt_text;
mod resolve;
mod service;
mod terms;
mod units;
mod vm;
mod watch;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(exit) => exit.into(),
        Err(error) => output::failure(&error).into(),
    }
}
