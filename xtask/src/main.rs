//! The repository's own commands: `cargo xtask <command>`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod cargo;
mod ci;
mod compat;
mod debian;
mod demo;
mod fuzz_interface;
mod guest_image;
mod host;
mod initramfs;
mod lane;
mod machine;
mod newcomer;
mod openapi;
mod packages;
mod paths;
mod setup;
mod test;
mod torment;

/// Commands for building, testing and measuring Sterna
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check this machine and install what is missing
    Setup,
    /// Move a real guest between two hosts on this machine and back, and show how it went
    Demo,
    /// Run all tests, quick ones first
    Test(test::TestArgs),
    /// Measure moves of real guests, ours and QEMU's own, side by side
    Bench(Box<bench::BenchArgs>),
    /// Move a real guest round three hosts while whatever can fail does
    Torment(torment::TormentArgs),
    /// Move real guests between agents of an earlier commit and of this one, and let these replace each other
    Compat(compat::CompatArgs),
    /// Type README's commands, from the package to the first move, on two bare machines
    Newcomer,
    /// Build Sterna as a Debian package into target/debian
    Package,
    /// Write the interface as a document, docs/openapi.json
    Openapi,
    /// Ask an agent with a fake hypervisor for whatever the interface's document allows and forbids
    FuzzInterface(fuzz_interface::FuzzInterfaceArgs),
    /// Check everything that must hold before a change lands
    Ci,
    /// Build the guest's kernel and initramfs into target/guest
    Guest,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Setup => {
            setup::run_setup().and_then(|()| fuzz_interface::ensure_installed().map(drop))
        }
        Command::Guest => guest_image::run_guest(),
        Command::Demo => demo::run_demo(),
        Command::Test(args) => test::run_test(&args),
        Command::Bench(args) => bench::run_bench(&args),
        Command::Torment(args) => torment::run_torment(&args),
        Command::Compat(args) => compat::run_compat(&args),
        Command::Newcomer => newcomer::run_newcomer(),
        Command::Package => debian::run_package().map(drop),
        Command::Openapi => openapi::run_openapi(),
        Command::FuzzInterface(args) => fuzz_interface::run_fuzz_interface(&args),
        Command::Ci => ci::run_ci(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
