//! Asking a guest's hypervisor past its agent, to check what the agent says.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long the monitor may take to answer; it serves one connection at a time.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs a QMP command without arguments on a monitor's socket and returns its answer.
///
/// # Errors
/// If the monitor cannot be reached or refuses.
pub fn ask(socket: &Path, command: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("no monitor at {}", socket.display()))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut replies = BufReader::new(stream.try_clone()?).lines();
    for command in ["qmp_capabilities", command] {
        writeln!(stream, "{}", json!({ "execute": command }))?;
        let reply = loop {
            let line = replies.next().context("the monitor ended the connection")??;
            let reply: Value = serde_json::from_str(&line)?;
            // Its greeting and events come in between.
            if reply.get("return").is_some() || reply.get("error").is_some() {
                break reply;
            }
        };
        match (reply.get("return"), command) {
            (Some(_), "qmp_capabilities") => {}
            (Some(answer), _) => return Ok(answer.clone()),
            (None, _) => bail!("{command}: {}", reply["error"]["desc"]),
        }
    }
    bail!("{command} is no question")
}

/// Whether a hypervisor really runs its guest with KVM.
///
/// # Errors
/// If it cannot be asked.
pub fn runs_with_kvm(socket: &Path) -> Result<bool> {
    let answer = ask(socket, "query-kvm")?;
    answer["enabled"].as_bool().with_context(|| format!("{answer} does not say"))
}
