//! What the guest does while it is moved.

use std::path::PathBuf;

use anyhow::{Context, Result};
use sterna_testkit::recorder::{Bytes, Kind, Mix, Rate, Share, Workload};

const MIB: u64 = 1 << 20;

/// A guest of a given size with a workload.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) memory: Bytes,
    pub(crate) workload: Workload,
    /// An image of a disk that the guest only reads.
    pub(crate) disk: Option<PathBuf>,
    /// How often the guest moves before it is measured.
    pub(crate) journey: Journey,
    /// Whether it is reckoned how few bytes the move could have.
    pub(crate) bound: bool,
}

/// Which of a guest's moves is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Journey {
    /// The first.
    Away,
    /// The second, back to where its RAM was kept, after it has rewritten its working set once.
    Back,
    /// The first, to where so many guests of its group have moved before, each of which differs from all others in a
    /// quarter of its pages.
    AfterSiblings(u16),
}

/// A scenario given on the command line, for `--suite custom`; its sizes also for `--suite pool`.
#[derive(Debug, clap::Args)]
pub(crate) struct ScenarioArgs {
    /// RAM of the guest; 1G if not given, in `working-set` 256M
    #[arg(long)]
    ram: Option<String>,
    /// Memory in use; 512M if not given, in `working-set` 128M
    #[arg(long)]
    fill: Option<String>,
    /// Percents of the memory in use by kind of page
    #[arg(long, default_value = "zero:0,text:100,random:0,dup:0")]
    mix: String,
    /// Memory that is rewritten
    #[arg(long, default_value = "256M")]
    working_set: String,
    /// Kind of the rewritten pages: zero, text, random, dup or heap; of the mix if not given
    #[arg(long)]
    working_set_kind: Option<String>,
    /// Bytes a second that are rewritten; 0 for none
    #[arg(long, default_value = "50M")]
    rate: String,
    /// Share of writes that go to the hottest tenth of the working set, none if not given; may be
    /// repeated for the suites `pool` and `working-set`, whose default is 0 and 0.9
    #[arg(long = "locality")]
    pub(crate) localities: Vec<Share>,
}

impl ScenarioArgs {
    /// RAM of the guest and memory in use; of `unless_given` what was not given.
    pub(crate) fn sizes<'a>(&'a self, unless_given: (&'a str, &'a str)) -> (&'a str, &'a str) {
        let (ram, fill) = unless_given;
        (self.ram.as_deref().unwrap_or(ram), self.fill.as_deref().unwrap_or(fill))
    }

    pub(crate) fn scenario(&self) -> Result<Scenario> {
        let (ram, fill) = self.sizes(("1G", "512M"));
        let memory: Bytes = ram.parse().context("--ram")?;
        let locality = match self.localities[..] {
            [] => Share::NONE,
            [locality] => locality,
            _ => anyhow::bail!("a custom scenario has one locality"),
        };
        let mut workload = Workload::new(fill.parse().context("--fill")?)
            .mix(self.mix.parse::<Mix>().context("--mix")?)
            .locality(locality);
        let rate: Rate = self.rate.parse().context("--rate")?;
        if rate.0 > 0 {
            workload = workload.rewrite(self.working_set.parse().context("--working-set")?, rate);
        }
        if let Some(kind) = &self.working_set_kind {
            workload = workload.working_set_kind(kind.parse().context("--working-set-kind")?);
        }
        let Self { mix, working_set, rate, .. } = self;
        let name = format!(
            "{ram} RAM, {fill} of {mix}, {rate}/s over {working_set} (locality {locality})"
        );
        Ok(Scenario::new(&name, memory, workload))
    }
}

impl Scenario {
    /// The first move of a guest without a disk.
    pub(crate) fn new(name: &str, memory: Bytes, workload: Workload) -> Self {
        Self {
            name: name.into(),
            memory,
            workload,
            disk: None,
            journey: Journey::Away,
            bound: false,
        }
    }

    /// The table of the design: 1 GiB, 512 MB of text; idle, slower and faster than 1 Gbit/s.
    pub(crate) fn first_suite() -> Vec<Self> {
        let text = || {
            let mix = "zero:0,text:100,random:0,dup:0".parse().expect("a mix that adds up");
            Workload::new(Bytes(512 * MIB)).mix(mix)
        };
        let busy = |rate| text().rewrite(Bytes(256 * MIB), Rate(rate));
        let scenario = |name: &str, workload| Self::new(name, Bytes(1024 * MIB), workload);
        vec![
            scenario("512 MB of text, idle", text()),
            scenario("+ 50 MB/s over 256 MB of text", busy(50_000_000)),
            scenario(
                "+ 200 MB/s over 256 MB of random",
                busy(200_000_000).working_set_kind(Kind::Random),
            ),
        ]
    }
}
