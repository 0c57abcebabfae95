//! `sterna migrate`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::units::{parse_rate, parse_size};
use crate::{output, watch};
use rand::seq::IteratorRandom;
use std::time::Duration;
use sterna_api::{MoveRequest, MoveView, STREAMS_DEFAULT, paths};
use sterna_core::algorithm::{ALGORITHMS, AlgorithmName, UnknownAlgorithm};
use sterna_core::limits::{Limits, WhenStuck};
use sterna_core::prediction::Prefer;
use sterna_core::push::PushOrder;
use sterna_core::working_set::HoldBack;
use sterna_proto::message::Verify;
use uuid::Uuid;

/// Options of `sterna migrate`.
#[derive(Debug, clap::Args)]
pub(crate) struct MigrateArgs {
    /// Name of the guest
    #[arg(value_name = "VM")]
    guest: String,
    /// Host to move it to, as its certificate names it, with a port if it is not 7401
    #[arg(long, value_name = "HOST[:PORT]")]
    to: String,
    /// Algorithm: auto (whichever is foreseen to cost least), pre-copy, hybrid (rounds while they pay,
    /// then the guest goes and the rest follows it), post-copy (the guest goes first), stop-and-copy,
    /// or random (any of these but auto: for experiments)
    #[arg(long, value_parser = parse_algorithm, default_value = "auto")]
    algorithm: AlgorithmName,
    /// What auto shall spare most: guest (work that the guest loses), downtime, time or bytes
    #[arg(long, value_name = "WHAT", default_value_t)]
    prefer: Prefer,
    /// Accept no longer downtime than this
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_downtime: Option<Duration>,
    /// When rounds no longer help, accept more downtime in steps, up to this
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stretch_downtime_to: Option<Duration>,
    /// Make rounds while they help, until the copying part of the downtime is this short
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    downtime_goal: Option<Duration>,
    /// Send pages no faster than this, such as 100MB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    bandwidth: Option<u64>,
    /// Send pages over this many connections
    #[arg(long, value_name = "N", default_value_t = STREAMS_DEFAULT)]
    streams: u16,
    /// Compare all RAM of both hosts before the guest resumes; lengthens the downtime
    #[arg(long)]
    verify: bool,
    /// When the guest writes faster than the link: abort, throttle (slow its vCPUs down until the
    /// move converges), post-copy (hand it over, the rest follows) or stop-and-copy; if not given, auto
    /// does what costs least and the other algorithms abort
    #[arg(long, value_name = "WHAT", value_parser = parse_when_stuck)]
    when_stuck: Option<WhenStuck>,
    /// Order in which pages follow the guest: bubbling (around those it has just waited for) or
    /// linear
    #[arg(long, value_name = "ORDER", value_parser = parse_push, default_value = "bubbling")]
    push: PushOrder,
    /// Make this many rounds at most
    #[arg(long, value_name = "N")]
    max_rounds: Option<u32>,
    /// Copy for this long at most
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_time: Option<Duration>,
    /// Send this much at most while the guest runs
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_bytes: Option<u64>,
    /// Send pages that the guest is likely to write again soon at the pause, as many as fit half of
    /// the longest downtime: none, lru or aged; fewer bytes, but more downtime
    #[arg(long, value_name = "HOW", default_value_t)]
    hold_back: HoldBack,
    /// Identity of the move, so that asking again moves once; drawn if not given
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Print the id of the move and do not wait for its end
    #[arg(long)]
    detach: bool,
}

fn parse_when_stuck(text: &str) -> Result<WhenStuck, String> {
    match text {
        "abort" => Ok(WhenStuck::Abort),
        "throttle" => Ok(WhenStuck::Throttle),
        "post-copy" => Ok(WhenStuck::PostCopy),
        "stop-and-copy" => Ok(WhenStuck::StopAndCopy),
        other => Err(format!("{other:?} is not abort, throttle, post-copy or stop-and-copy")),
    }
}

fn parse_algorithm(text: &str) -> Result<AlgorithmName, UnknownAlgorithm> {
    if text == "random" {
        let drawn = ALGORITHMS.into_iter().filter(|name| *name != AlgorithmName::Auto);
        return Ok(drawn.choose(&mut rand::rng()).unwrap_or_default());
    }
    text.parse()
}

fn parse_push(text: &str) -> Result<PushOrder, String> {
    match text {
        "bubbling" => Ok(PushOrder::Bubbling),
        "linear" => Ok(PushOrder::Linear),
        other => Err(format!("{other:?} is not bubbling or linear")),
    }
}

impl MigrateArgs {
    /// The request these options describe.
    pub(crate) fn request(&self) -> MoveRequest {
        let usual = Limits::default();
        let downtime_max = self.max_downtime.unwrap_or(usual.downtime_max);
        let limits = Limits {
            downtime_max,
            downtime_stretch: self.stretch_downtime_to,
            downtime_goal: self.downtime_goal.unwrap_or(usual.downtime_goal.min(downtime_max)),
            rounds_max: self.max_rounds.unwrap_or(usual.rounds_max),
            copy_time_max: self.max_time,
            bytes_max: self.max_bytes,
            when_stuck: self.when_stuck,
            prefer: self.prefer,
        };
        MoveRequest {
            id: self.id.unwrap_or_else(Uuid::new_v4),
            to: self.to.clone(),
            algorithm: self.algorithm,
            limits,
            hold_back: self.hold_back,
            bandwidth_bytes_per_second: self.bandwidth,
            push: self.push,
            streams: self.streams,
            verify: if self.verify { Verify::RamDigest } else { Verify::No },
        }
    }
}

/// Moves a guest and prints the receipt.
pub(crate) async fn run(args: MigrateArgs, global: &Global) -> anyhow::Result<Exit> {
    let client = global.connection.client()?;
    let path = paths::with(paths::GUEST_MOVES, &args.guest);
    let begun: MoveView = client.post(&path, &args.request()).await?;
    if args.detach {
        match global.output {
            Output::Json => output::json(&begun)?,
            Output::Text => println!("{}", begun.id),
        }
        return Ok(Exit::Done);
    }
    watch::until_ended(&client, begun, global.output).await
}
