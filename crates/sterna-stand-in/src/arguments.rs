//! QEMU's command line, as far as the driver uses it; all else is passed over.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;

/// Where a monitor or console is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Socket {
    /// It listens here.
    Path(PathBuf),
    /// It is connected, by a descriptor of this number.
    Number(i32),
}

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) is_asked_for_version: bool,
    /// RAM's file and its bytes; none without a machine.
    pub(crate) ram: Option<(PathBuf, u64)>,
    /// The kernel's command line.
    pub(crate) append: String,
    pub(crate) monitors: Vec<Socket>,
    pub(crate) console: Option<PathBuf>,
    /// Whether the guest is to run at once.
    pub(crate) runs: bool,
    /// Whether it waits for a guest.
    pub(crate) waits: bool,
}

impl Arguments {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self { runs: true, ..Self::default() };
        let mut sockets = HashMap::new();
        let mut machine = false;
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} has no value"));
            match word.as_str() {
                "-version" => parsed.is_asked_for_version = true,
                "-S" => parsed.runs = false,
                "-incoming" => {
                    value()?;
                    parsed.waits = true;
                }
                "-append" => parsed.append = value()?,
                "-object" => parsed.object(&value()?)?,
                "-machine" => {
                    value()?;
                    machine = true;
                }
                "-chardev" => {
                    let (id, socket) = chardev(&value()?)?;
                    sockets.insert(id, socket);
                }
                "-mon" => {
                    let value = value()?;
                    let id = option(&value, "chardev").context("a monitor without a chardev")?;
                    let socket = sockets.get(id).context("a monitor of an unknown chardev")?;
                    parsed.monitors.push(socket.clone());
                }
                "-nodefaults" | "-no-user-config" => {}
                // All others that the driver uses have a value.
                _ => drop(value()?),
            }
        }
        if let Some(Socket::Path(path)) = sockets.remove("console") {
            parsed.console = Some(path);
        }
        parsed.runs &= machine;
        Ok(parsed)
    }

    fn object(&mut self, text: &str) -> Result<()> {
        // A throttle group is one too.
        let object: Value = serde_json::from_str(text)?;
        if let (Some(path), Some(size)) = (object["mem-path"].as_str(), object["size"].as_u64()) {
            self.ram = Some((path.into(), size));
        }
        Ok(())
    }
}

fn chardev(value: &str) -> Result<(String, Socket)> {
    let id = option(value, "id").context("a chardev without an id")?;
    let number = option(value, "fd").map(str::parse).transpose()?;
    let socket = match (number, option(value, "path")) {
        (Some(number), _) => Socket::Number(number),
        (None, Some(path)) => Socket::Path(path.into()),
        (None, None) => anyhow::bail!("a chardev that is no socket: {value}"),
    };
    Ok((id.into(), socket))
}

fn option<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    value.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_asks_for_is_understood_and_all_else_passed_over() {
        let line = "-nodefaults -sandbox on -machine q35,memory-backend=ram0 -object \
            {\"id\":\"ram0\",\"size\":1048576,\"mem-path\":\"/proc/self/fd/9\"} -append fill=1M \
            -chardev socket,id=control,path=/run/c,server=on,wait=off -mon chardev=control,mode=control \
            -chardev socket,id=first,fd=10 -mon chardev=first,mode=control \
            -chardev socket,id=console,path=/run/t,server=on,wait=off -serial chardev:console \
            -netdev tap,id=net0,fd=11 -S -incoming defer";
        let parsed = Arguments::parse(line.split_whitespace().map(str::to_owned)).unwrap();
        assert_eq!(parsed.ram, Some(("/proc/self/fd/9".into(), 1 << 20)));
        assert_eq!(parsed.monitors, [Socket::Path("/run/c".into()), Socket::Number(10)]);
        assert_eq!(parsed.console, Some("/run/t".into()));
        assert_eq!(parsed.append, "fill=1M");
        assert!(parsed.waits && !parsed.runs);
        assert!(Arguments::parse(["-append".to_owned()].into_iter()).is_err());
    }
}
