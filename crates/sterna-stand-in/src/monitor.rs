//! The monitor: QMP, as far as the driver speaks it.

use crate::arguments::Socket;
use crate::machine::Machine;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use sterna_sys::process::Process;

/// What a move needs; with what the driver sets back.
const CAPABILITIES: [&str; 6] =
    ["x-ignore-shared", "pause-before-switchover", "events", "multifd", "xbzrle", "auto-converge"];

/// Serves all monitors, one caller of each at a time, until the process is to end.
pub(crate) fn serve(machine: &Arc<Machine>, monitors: &[Socket]) -> Result<()> {
    let mut threads = Vec::new();
    for socket in monitors {
        let (machine, socket) = (Arc::clone(machine), listening(socket)?);
        threads.push(std::thread::spawn(move || match socket {
            Open::Listening(listener) => {
                listener.incoming().map_while(Result::ok).for_each(|one| speak(&machine, one));
            }
            Open::Connected(stream) => speak(&machine, stream),
        }));
    }
    // A connected one ends when its other end does.
    threads.into_iter().for_each(|thread| drop(thread.join()));
    Ok(())
}

enum Open {
    Listening(UnixListener),
    Connected(UnixStream),
}

fn listening(socket: &Socket) -> Result<Open> {
    Ok(match socket {
        Socket::Path(path) => Open::Listening(UnixListener::bind(path)?),
        Socket::Number(number) => {
            let own = Process::open(std::process::id())?;
            Open::Connected(own.copy_descriptor(*number)?.into())
        }
    })
}

/// Speaks to one caller until it hangs up.
fn speak(machine: &Arc<Machine>, stream: UnixStream) {
    // A caller who hangs up is no error.
    let _ = try_to_speak(machine, stream);
}

fn try_to_speak(machine: &Arc<Machine>, mut stream: UnixStream) -> Result<()> {
    writeln!(stream, "{}", json!({ "QMP": { "version": version(), "capabilities": [] } }))?;
    machine.tell_events_to(stream.try_clone()?);
    for line in BufReader::new(stream.try_clone()?).lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let name = request["execute"].as_str().unwrap_or_default();
        let answer = match execute(machine, name, &request["arguments"]) {
            Ok(value) => json!({ "return": value, "id": request["id"] }),
            Err(error) => json!({
                "error": { "class": "GenericError", "desc": format!("{error:#}") },
                "id": request["id"],
            }),
        };
        // In one piece, as events are written by others.
        stream.write_all(format!("{answer}\n").as_bytes())?;
        if name == "quit" {
            std::process::exit(0);
        }
    }
    Ok(())
}

fn version() -> Value {
    json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "stand-in" })
}

fn execute(machine: &Arc<Machine>, name: &str, arguments: &Value) -> Result<Value> {
    let uri = || arguments["uri"].as_str().context("no uri");
    Ok(match name {
        "query-version" => version(),
        "query-machines" => json!([{ "name": "pc-q35-10.0", "alias": "q35" }]),
        "query-migrate-capabilities" => {
            let known = |name: &&str| json!({ "capability": name, "state": false });
            CAPABILITIES.iter().map(known).collect()
        }
        "query-status" => machine.status(),
        "query-migrate" => machine.migration(),
        "query-memdev" => json!([{ "id": "ram0", "share": true }]),
        "query-cpus-fast" | "query-yank" | "qom-list" => json!([]),
        "query-balloon" => json!({ "actual": 0 }),
        "stop" => machine.stop()?,
        "cont" => machine.cont()?,
        "migrate" => machine.migrate(uri()?)?,
        "migrate-continue" => machine.go_on()?,
        "migrate_cancel" => machine.cancel()?,
        "migrate-incoming" => machine.wait_for_guest(uri()?)?,
        "qmp_capabilities"
        | "migrate-set-capabilities"
        | "migrate-set-parameters"
        | "announce-self"
        | "balloon"
        | "system_reset"
        | "quit" => json!({}),
        other => bail!("{other} is nothing for a stand-in"),
    })
}
