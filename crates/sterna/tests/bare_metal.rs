//! The bare-metal guest under real agents: under KVM wherever `/dev/kvm` runs it, else emulated.
//!
//! It needs no guest image, and no root either: without network namespaces both hosts are on
//! loopback.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sterna_core::receipt::{Ending, RamCheck};
use sterna_testkit::bare::{BareGuest, CPU};
use sterna_testkit::lab::Lab;
use sterna_testkit::monitor::runs_with_kvm;
use sterna_testkit::net::{Host, LinkRate};
use sterna_testkit::probe::{ConsoleLog, MoveLog, Window};
use sterna_vmm::qemu::QemuBinary;
use sterna_vmm::qemu::probe::run_small_guest;

const STERNA: &str = env!("CARGO_BIN_EXE_sterna");
const GUEST: &str = "bare";
/// Within this time everything happens that must happen: it bounds a test that fails.
const LIMIT: Duration = Duration::from_secs(90);
/// Ticks that must come anew before the guest is taken to run.
const NEW_TICKS: usize = 100;
/// There and back again, and once more.
const MOVES: usize = 6;

/// How the guest can be executed on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Executed {
    /// With KVM, though perhaps with one that runs no stock guest.
    Kvm,
    /// Emulated by QEMU.
    Tcg,
}

/// Says it where the test harness does not hide it; nothing where there is no QEMU.
fn executed(scratch: &Path) -> Option<Executed> {
    let said = |text: &str| {
        // Whoever closed standard error does not want to know.
        let _said = writeln!(std::io::stderr(), "{text}");
    };
    let binary = match QemuBinary::ask(Path::new("qemu-system-x86_64")) {
        Ok(binary) => binary,
        Err(error) => {
            said(&format!("skipped the bare-metal guest: {error}"));
            return None;
        }
    };
    Some(match run_small_guest(&binary, scratch) {
        Ok(took) => {
            said(&format!("bare-metal guest under KVM: a boot sector ran within {took:.1?}"));
            Executed::Kvm
        }
        Err(error) => {
            said(&format!("bare-metal guest under TCG: KVM runs no guest: {error}"));
            Executed::Tcg
        }
    })
}

fn define(lab: &Lab, bare: BareGuest, executed: Executed) -> Result<Value> {
    let mut definition = bare.define(GUEST, &lab.folder(Host::A).join("bare.img"))?;
    match executed {
        Executed::Kvm => {
            definition["accelerator"] = json!("kvm-unproven");
            definition["cpu"] = json!(CPU);
        }
        Executed::Tcg => definition["accelerator"] = json!("tcg"),
    }
    Ok(definition)
}

/// Waits until the guest writes ticks anew.
fn runs_on(console: &ConsoleLog) -> Result<()> {
    let seen = console.ticks().samples().len();
    console.wait_for_ticks(seen + NEW_TICKS, LIMIT).context("the guest stands still")
}

fn executed_with(lab: &Lab, host: Host) -> Result<Executed> {
    let monitor = lab.folder(host).join("run/guests").join(GUEST).join("control.qmp");
    Ok(if runs_with_kvm(&monitor)? { Executed::Kvm } else { Executed::Tcg })
}

/// Moves the guest, which must run on at its new place, executed as before.
fn moves_well(
    lab: &Lab,
    (from, to): (Host, Host),
    (console, moves): (&ConsoleLog, &MoveLog),
    executed: Executed,
) -> Result<()> {
    let following = lab.follow_arrival(to, GUEST, console);
    let begin = Instant::now();
    let known = moves.begin();
    let migrated = lab.migrate(from, to, GUEST, &["--verify"])?;
    let receipt = migrated.receipt()?;
    known.ended(receipt);
    ensure!(receipt.ending == Ending::Moved, "{:?}", receipt.ending);
    ensure!(receipt.ram_digest == RamCheck::Equal, "RAM: {:?}", receipt.ram_digest);
    runs_on(console)?;
    drop(following);
    ensure!(executed_with(lab, to)? == executed, "it is not executed as before the move");
    let gap = console.ticks().longest_gap(Window::new(begin, Instant::now()));
    println!("total {:.1?}, ticks {gap:.1?}, {:.1?}", receipt.total, receipt.downtime);
    Ok(())
}

#[test]
fn a_bare_metal_guest_goes_there_and_back_under_agents_and_stays_whole() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(executed) = executed(folder.path()) else { return Ok(()) };
    let lab = Lab::anywhere("st-bare", LinkRate::Unshaped, Path::new(STERNA), folder.path())?;
    let bare = BareGuest::default();
    lab.start_defined(Host::A, &define(&lab, bare, executed)?)?;
    let (console, moves) = (ConsoleLog::new(), MoveLog::default());
    lab.follow_console(Host::A, GUEST, &console)?;
    runs_on(&console)?;
    ensure!(executed_with(&lab, Host::A)? == executed, "it is not executed as asked for");
    let (mut from, mut to) = (Host::A, Host::B);
    for _ in 0..MOVES {
        moves_well(&lab, (from, to), (&console, &moves), executed)?;
        (from, to) = (to, from);
    }
    let checked = || console.ticks().samples().last().map_or(0, |sample| sample.tick.checked);
    // Of the pages compared half are rewritten ones, so that the others need twice their number.
    let all = checked() + u64::from(2 * (bare.pages - bare.hot));
    while checked() < all {
        runs_on(&console)?;
    }
    ensure!(console.complaints().is_empty(), "the guest complains: {:?}", console.complaints());
    Ok(console.lived_once(&moves.moves())?)
}

#[test]
fn an_agent_takes_kvm_at_its_word_only_where_stock_guests_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let flags = std::fs::read_to_string("/proc/cpuinfo")?;
    if flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        eprintln!("skipped: the processor shows virtualization");
        return Ok(());
    }
    let Some(executed) = executed(folder.path()) else { return Ok(()) };
    let lab = Lab::anywhere("st-stock", LinkRate::Unshaped, Path::new(STERNA), folder.path())?;
    let mut stock = define(&lab, BareGuest::default(), executed)?;
    stock["accelerator"] = json!("kvm");
    let refused = lab.start_defined(Host::A, &stock).err().context("KVM was believed")?;
    ensure!(refused.to_string().contains("needs KVM"), "{refused:#}");
    stock["accelerator"] = json!("auto");
    stock["cpu"] = Value::Null;
    let fields = stock.as_object_mut().context("a definition is an object")?;
    fields.retain(|_, value| !value.is_null());
    lab.start_defined(Host::A, &stock)?;
    ensure!(executed_with(&lab, Host::A)? == Executed::Tcg, "a stock guest was given to KVM");
    Ok(())
}
