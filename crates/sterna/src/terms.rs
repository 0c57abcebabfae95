//! On what terms a guest is to be moved: what `sterna migrate` and `sterna plan` have in common.

use crate::units::{parse_rate, parse_size};
use std::time::Duration;
use sterna_api::STREAMS_DEFAULT;
use sterna_core::compress::Compress;
use sterna_core::limits::{Limits, Prefer, WhenStuck};

/// Where a guest is to go, and what that may cost.
#[derive(Debug, clap::Args)]
pub(crate) struct TermsArgs {
    /// Host to move it to, as its certificate names it, with a port if it is not 7401
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) to: String,
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
    pub(crate) bandwidth: Option<u64>,
    /// Send pages in fewer bytes than they have where that is faster, as measured on the way: none or
    /// auto
    #[arg(long, value_name = "HOW", default_value_t)]
    pub(crate) compress: Compress,
    /// Send pages over this many connections
    #[arg(long, value_name = "N", default_value_t = STREAMS_DEFAULT)]
    pub(crate) streams: u16,
    /// When the guest writes faster than the link: abort, throttle (slow its vCPUs down until the
    /// move converges), post-copy (hand it over, the rest follows) or stop-and-copy; if not given, auto
    /// does what costs least and the other algorithms abort
    #[arg(long, value_name = "WHAT", value_parser = parse_when_stuck)]
    when_stuck: Option<WhenStuck>,
    /// Make this many rounds at most
    #[arg(long, value_name = "N")]
    max_rounds: Option<u32>,
    /// Copy for this long at most
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_time: Option<Duration>,
    /// Send this much at most while the guest runs
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_bytes: Option<u64>,
}

impl TermsArgs {
    /// The limits that these options describe.
    pub(crate) fn limits(&self) -> Limits {
        let usual = Limits::default();
        let downtime_max = self.max_downtime.unwrap_or(usual.downtime_max);
        Limits {
            downtime_max,
            downtime_stretch: self.stretch_downtime_to,
            downtime_goal: self.downtime_goal.unwrap_or(usual.downtime_goal.min(downtime_max)),
            rounds_max: self.max_rounds.unwrap_or(usual.rounds_max),
            copy_time_max: self.max_time,
            bytes_max: self.max_bytes,
            when_stuck: self.when_stuck,
            prefer: self.prefer,
        }
    }
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
