//! `sterna plan`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::output;
use crate::terms::TermsArgs;
use crate::units::{rate, size, time};
use std::fmt::Write as _;
use std::time::Duration;
use sterna_api::{OBSERVE_MS_DEFAULT, PlanRequest, PlanView, paths};
use sterna_core::prediction::{Band, Forecast, Foreseen};

/// Options of `sterna plan`.
#[derive(Debug, clap::Args)]
pub(crate) struct PlanArgs {
    /// Name of the guest
    #[arg(value_name = "VM")]
    guest: String,
    #[command(flatten)]
    terms: TermsArgs,
    /// Look at what the guest writes for this long (3 s if not given): longer tells more of a guest
    /// with much RAM
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    observe: Option<Duration>,
}

/// Says what moving a guest would cost, and does not move it.
pub(crate) async fn run(args: PlanArgs, global: &Global) -> anyhow::Result<Exit> {
    let terms = &args.terms;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let observe_ms = args.observe.map_or(OBSERVE_MS_DEFAULT, millis);
    let request = PlanRequest {
        to: terms.to.clone(),
        limits: terms.limits(),
        compress: terms.compress,
        bandwidth_bytes_per_second: terms.bandwidth,
        streams: terms.streams,
        observe_ms,
    };
    let path = paths::with(paths::PLAN, &args.guest);
    let plan: PlanView = global.connection.client()?.post(&path, &request).await?;
    match global.output {
        Output::Json => output::json(&plan)?,
        Output::Text => print!("{}", render(&plan)),
    }
    Ok(if plan.feasible { Exit::Done } else { Exit::Refused })
}

fn render(plan: &PlanView) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, plan);
    text
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shown to people")]
fn write(text: &mut String, plan: &PlanView) -> std::fmt::Result {
    let PlanView { guest, to, choice, .. } = plan;
    let micros = Duration::from_micros;
    if !plan.refused.is_empty() {
        writeln!(text, "{guest} to {to}: {to} would refuse it")?;
        for reason in &plan.refused {
            writeln!(text, "  because {}", reason.detail)?;
        }
        writeln!(text, "  otherwise {}: {}", choice.method, choice.reason)?;
    } else if plan.feasible {
        writeln!(text, "{guest} to {to}: {}", choice.method)?;
        writeln!(text, "  because {}", choice.reason)?;
    } else {
        writeln!(text, "{guest} to {to}: not within these limits")?;
        writeln!(text, "  because {}", choice.reason)?;
        writeln!(text, "  next: allow more with --max-downtime, or another --when-stuck")?;
    }
    let round_trip = time(micros(plan.round_trip_us));
    let link = rate(choice.basis.link_bytes_per_second as u64);
    writeln!(text, "  link         {link}, round trip {round_trip}")?;
    let existing = size(plan.existing_bytes);
    let zero = f64::from(plan.zero_permille) / 10.0;
    let once = time(micros(plan.copying_once_us));
    writeln!(text, "  RAM          {existing}, {zero:.0} % of it zero; copied once in {once}")?;
    writeln!(text, "  writes       {}", writes(plan))?;
    let moves = match choice.basis.experience.moves {
        0 => "none so far: what a move takes apart from copying is assumed".to_owned(),
        moves => format!("what {moves} earlier moves from here took apart from copying"),
    };
    writeln!(text, "  experience   {moves}\n")?;
    let head = ["METHOD", "TOTAL", "DOWNTIME", "SENT", "LOST WORK", ""];
    let rows: Vec<Vec<String>> = choice.forecasts.iter().map(row).collect();
    text.push_str(&output::columns(&head, &rows));
    writeln!(text, "expected (least to most); lost work: of all vCPUs together")
}

/// Different pages that the guest wrote within some times.
fn writes(plan: &PlanView) -> String {
    let mut shown: Vec<String> = Vec::new();
    for look in plan.choice.basis.looks.iter().filter(|look| !look.after.is_zero()) {
        shown.push(format!("{} in {}", size(look.pages.bytes()), time(look.after)));
    }
    let every = shown.len().div_ceil(4).max(1);
    let mut few: Vec<String> = shown.iter().rev().step_by(every).cloned().collect();
    few.reverse();
    few.join(", ")
}

fn row(forecast: &Forecast) -> Vec<String> {
    let times = |band: &Band| {
        let [low, expected, high] =
            [band.low, band.expected, band.high].map(|us| time(Duration::from_micros(us)));
        format!("{expected} ({low} to {high})")
    };
    let method = forecast.method.to_string();
    match forecast.foreseen {
        Foreseen::GivesUp { reason } => {
            let after = format!("gives up after {}", time(forecast.total_us.expected_time()));
            vec![method, after, "–".into(), "–".into(), "–".into(), reason.as_str().into()]
        }
        Foreseen::Moves => vec![
            method,
            times(&forecast.total_us),
            times(&forecast.downtime_us),
            size(forecast.bytes.expected),
            times(&forecast.lost_work_us),
            String::new(),
        ],
    }
}
