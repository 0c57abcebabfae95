//! `sterna migrate`

use crate::cli::{Global, Output};
use crate::exit::Exit;
use crate::resolve::ResolveArgs;
use crate::terms::TermsArgs;
use crate::{output, resolve, watch};
use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use rand::seq::IteratorRandom;
use sterna_api::{MoveRequest, MoveView, Priority, paths};
use sterna_core::algorithm::{ALGORITHMS, AlgorithmName, UnknownAlgorithm};
use sterna_core::balloon::Balloon;
use sterna_core::push::PushOrder;
use sterna_core::working_set::HoldBack;
use sterna_proto::message::{NativeMode, Verify};
use uuid::Uuid;

/// Options of `sterna migrate`: a guest that is to be moved, or what there is to do besides.
#[derive(Debug)]
pub(crate) enum MigrateArgs {
    Begin(Box<BeginArgs>),
    Resolve(ResolveArgs),
}

/// What there is to do besides moving.
const RESOLVE: &str = "resolve";

// By hand, as the derived way needs every required option also where there is a subcommand.
impl Args for MigrateArgs {
    fn augment_args(command: Command) -> Command {
        let resolve = ResolveArgs::augment_args(Command::new(RESOLVE)).about(
            "Show what is known of a guest in doubt and what each answer would do, or end the doubt",
        );
        let command = BeginArgs::augment_args(command).subcommand(resolve);
        command.args_conflicts_with_subcommands(true).subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for MigrateArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand() {
            Some((RESOLVE, matches)) => ResolveArgs::from_arg_matches(matches).map(Self::Resolve),
            _ => Ok(Self::Begin(Box::new(BeginArgs::from_arg_matches(matches)?))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// How a guest is to be moved.
#[derive(Debug, clap::Args)]
pub(crate) struct BeginArgs {
    /// Name of the guest
    #[arg(value_name = "VM")]
    guest: String,
    #[command(flatten)]
    terms: TermsArgs,
    /// Algorithm: auto (whichever is foreseen to cost least), pre-copy, hybrid (rounds while they pay,
    /// then the guest goes and the rest follows it), post-copy (the guest goes first), stop-and-copy,
    /// native (QEMU copies by itself: also guests whose memory is out of reach), or random (any of
    /// these but auto and native: for experiments)
    #[arg(long, value_parser = parse_algorithm, default_value = "auto")]
    algorithm: AlgorithmName,
    /// How QEMU copies by itself: pre-copy, xbzrle, multifd (a channel for each stream) or
    /// multifd-zstd; it slows the guest down with --when-stuck throttle
    #[arg(long, value_name = "MODE", value_parser = parse_native_mode, default_value = "pre-copy")]
    native_mode: NativeMode,
    /// Compare all RAM of both hosts before the guest resumes; lengthens the downtime
    #[arg(long)]
    verify: bool,
    /// Which of the moves that wait on this host begins first
    #[arg(long, value_enum, default_value_t = PriorityArg::Normal)]
    priority: PriorityArg,
    /// Order in which pages follow the guest: bubbling (around those it has just waited for) or
    /// linear
    #[arg(long, value_name = "ORDER", value_parser = parse_push, default_value = "bubbling")]
    push: PushOrder,
    /// Send pages that the guest is likely to write again soon at the pause, as many as fit half of
    /// the longest downtime: none, lru or aged; fewer bytes, but more downtime
    #[arg(long, value_name = "HOW", default_value_t)]
    hold_back: HoldBack,
    /// Ask the guest first to give back memory that it can do without, such as its caches, so that
    /// it need not be sent; the guest gets it back at the end
    #[arg(long)]
    balloon: bool,
    /// Identity of the move, so that asking again moves once; drawn if not given
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Print the id of the move and do not wait for its end
    #[arg(long)]
    detach: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PriorityArg {
    Low,
    Normal,
    High,
}

fn parse_algorithm(text: &str) -> Result<AlgorithmName, UnknownAlgorithm> {
    if text == "random" {
        let ours =
            |name: &AlgorithmName| !matches!(name, AlgorithmName::Auto | AlgorithmName::Native);
        let drawn = ALGORITHMS.into_iter().filter(ours);
        return Ok(drawn.choose(&mut rand::rng()).unwrap_or_default());
    }
    text.parse()
}

fn parse_native_mode(text: &str) -> Result<NativeMode, String> {
    match text {
        "pre-copy" => Ok(NativeMode::PreCopy),
        "xbzrle" => Ok(NativeMode::Xbzrle),
        "multifd" => Ok(NativeMode::Multifd),
        "multifd-zstd" => Ok(NativeMode::MultifdZstd),
        "auto-converge" => Err("is --native-mode pre-copy with --when-stuck throttle".into()),
        "post-copy" => {
            Err("QEMU's own post-copy can lose or double a guest whose link breaks; use \
             --algorithm post-copy or hybrid"
                .into())
        }
        other => Err(format!("{other:?} is not pre-copy, xbzrle, multifd or multifd-zstd")),
    }
}

fn parse_push(text: &str) -> Result<PushOrder, String> {
    match text {
        "bubbling" => Ok(PushOrder::Bubbling),
        "linear" => Ok(PushOrder::Linear),
        other => Err(format!("{other:?} is not bubbling or linear")),
    }
}

impl BeginArgs {
    /// The request these options describe.
    pub(crate) fn request(&self) -> MoveRequest {
        MoveRequest {
            id: self.id.unwrap_or_else(Uuid::new_v4),
            to: self.terms.to.clone(),
            algorithm: self.algorithm,
            native_mode: self.native_mode,
            limits: self.terms.limits(),
            hold_back: self.hold_back,
            compress: self.terms.compress,
            balloon: if self.balloon { Balloon::Inflate } else { Balloon::Leave },
            bandwidth_bytes_per_second: self.terms.bandwidth,
            push: self.push,
            streams: self.terms.streams,
            priority: match self.priority {
                PriorityArg::Low => Priority::Low,
                PriorityArg::Normal => Priority::Normal,
                PriorityArg::High => Priority::High,
            },
            verify: if self.verify { Verify::RamDigest } else { Verify::No },
        }
    }
}

/// Moves a guest and prints the receipt.
pub(crate) async fn run(args: MigrateArgs, global: &Global) -> anyhow::Result<Exit> {
    let args = match args {
        MigrateArgs::Resolve(args) => return resolve::run(args, global).await,
        MigrateArgs::Begin(args) => args,
    };
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
