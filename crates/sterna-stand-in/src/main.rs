//! A program that passes for QEMU: its command line, its monitor and its migration stream, with a synthetic guest in place of a
//! machine.
//!
//! The agent, the driver, the engine and the kernel do what they always do: RAM is a memfd that is tracked from outside, pages
//! may follow the guest, processes are killed and found again. What is spared is the emulated machine: a guest starts
//! in a millisecond, so that thousands of moves take minutes. On its console it says what the flight recorder says, so
//! whoever watches that one watches this one.
//!
//! **Not here.** Disks, networks, balloons, QEMU's own migration of RAM: asked for, they are there in name and do nothing, or are
//! refused. Nothing that is claimed of the product rests on this.

mod arguments;
mod console;
mod guest;
mod machine;
mod monitor;

use anyhow::Result;
use arguments::Arguments;
use machine::Machine;
use std::sync::Arc;

/// As the kernel shows QEMU's name.
const NAME: &std::ffi::CStr = c"qemu-system-x86";

/// What it says of itself.
const VERSION: &str = "QEMU emulator version 10.0.2 (stand-in)";

fn main() -> Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    if arguments.is_asked_for_version {
        println!("{VERSION}");
        return Ok(());
    }
    rustix::thread::set_name(NAME)?;
    let machine = Arc::new(Machine::new(&arguments)?);
    console::serve(&machine, arguments.console.as_deref())?;
    if arguments.runs {
        machine.boot()?;
    }
    monitor::serve(&machine, &arguments.monitors)
}
