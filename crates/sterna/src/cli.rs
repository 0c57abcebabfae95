//! The command line.

use crate::exit::{self, Exit};
use crate::{
    agent, client, cluster, completion, doctor, events, history, host, images, manual, migrate,
    moves, pki, plan, vm,
};
use clap::{Parser, Subcommand, ValueEnum};

/// Move running virtual machines between hosts
#[derive(Debug, Parser)]
#[command(name = "sterna", version, after_help = exit::HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    #[command(flatten)]
    pub(crate) connection: client::ConnectionArgs,
    /// Print results as text for people or as JSON
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this host
    Agent(agent::AgentArgs),
    /// Define, start, list, show, stop, edit and delete guests
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Say what moving a guest would cost, by each method, and do not move it
    Plan(Box<plan::PlanArgs>),
    /// Move a running guest to another host
    Migrate(Box<migrate::MigrateArgs>),
    /// Show what happens on a host, as it happens
    Events(events::EventsArgs),
    /// Show what was foreseen of moves beside what happened
    History(history::HistoryArgs),
    /// List, show and cancel moves
    #[command(subcommand)]
    Moves(moves::MovesCommand),
    /// List and drop the RAM that is kept of guests that have left
    #[command(subcommand)]
    Images(images::ImagesCommand),
    /// Say what this host, and others as seen from here, lack to run and move guests, and how to get it
    Doctor(doctor::DoctorArgs),
    /// Make a cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Invite, join, list and revoke hosts of the cluster
    #[command(subcommand)]
    Host(host::HostCommand),
    /// Make by hand the certificates by which hosts and users are known
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// Print what makes a shell complete these commands
    Completion(completion::CompletionArgs),
    /// Write the manual pages of these commands
    Manual(manual::ManualArgs),
}

impl Cli {
    /// Runs the command.
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let global = self.global;
        match self.command {
            Command::Agent(args) => agent::run(args),
            Command::Pki(command) => pki::run(command),
            Command::Cluster(command) => cluster::run(command, &global),
            Command::Host(command) => block_on(host::run(command, &global)),
            Command::Completion(args) => completion::run(&args),
            Command::Manual(args) => manual::run(&args),
            Command::Doctor(args) => block_on(doctor::run(&args, &global)),
            Command::Vm(command) => block_on(vm::run(command, &global)),
            Command::Plan(args) => block_on(plan::run(*args, &global)),
            Command::Events(args) => block_on(events::run(args, &global)),
            Command::History(args) => block_on(history::run(args, &global)),
            Command::Migrate(args) => block_on(migrate::run(*args, &global)),
            Command::Moves(command) => block_on(moves::run(command, &global)),
            Command::Images(command) => block_on(images::run(command, &global)),
        }
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A thread that waits for the keyboard would hold an orderly shutdown up.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::MigrateArgs;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_exit_with_two() {
        let error = Cli::try_parse_from(["sterna", "migrate", "web-1"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_move_is_described_in_units_people_use() {
        let line = "sterna migrate web-1 --to b:7401 --max-downtime 250ms --bandwidth 100MB/s \
            --streams 4 --verify --when-stuck stop-and-copy --max-time 5m --output json";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(cli.global.output, Output::Json);
        let Command::Migrate(args) = cli.command else { panic!("{cli:?}") };
        let MigrateArgs::Begin(args) = *args else { panic!("{args:?}") };
        let request = args.request();
        assert_eq!(request.limits.downtime_max.as_millis(), 250);
        assert_eq!(request.bandwidth_bytes_per_second, Some(100_000_000));
        assert_eq!(request.limits.copy_time_max.unwrap().as_secs(), 300);
        assert_eq!((request.streams, request.to.as_str()), (4, "b:7401"));
    }

    #[test]
    fn a_doubt_is_resolved_by_one_answer_or_shown() {
        for (line, is_well_formed) in [
            ("sterna migrate resolve web", true),
            ("sterna migrate resolve web --runs-there", true),
            ("sterna migrate resolve web --runs-nowhere-else", true),
            ("sterna migrate resolve web --runs-there --runs-nowhere-else", false),
            ("sterna migrate resolve", false),
            ("sterna migrate web --to b --runs-there", false),
        ] {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert_eq!(parsed.is_ok(), is_well_formed, "{line}: {parsed:?}");
        }
    }

    #[test]
    fn a_host_is_asked_through_another_only_if_it_is_named() {
        for (line, is_well_formed) in [
            ("sterna vm list --via a --host b --identity id", true),
            ("sterna --via a:7500 --host b --identity id vm list", true),
            ("sterna vm list --via a --identity id", false),
            ("sterna vm list --via a --host b", false),
        ] {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert_eq!(parsed.is_ok(), is_well_formed, "{line}: {parsed:?}");
        }
    }

    #[test]
    fn a_random_algorithm_is_drawn_by_the_caller() {
        let line = "sterna migrate web-1 --to b --algorithm random";
        let mut drawn = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
            let Command::Migrate(args) = cli.command else { panic!("{cli:?}") };
            let MigrateArgs::Begin(args) = *args else { panic!("{args:?}") };
            drawn.insert(args.request().algorithm.as_str());
        }
        assert!(drawn.len() >= 4 && !drawn.contains("auto"), "{drawn:?}");
    }

    #[test]
    fn the_exit_codes_are_in_the_help() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("5  cancelled"), "{help}");
    }
}
