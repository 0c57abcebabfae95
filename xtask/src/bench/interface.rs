//! What many guests cost the agent: how long its interface takes to answer, and how much memory it has.
//!
//! 500 guests are defined on a host, 50 of them run and 8 are on the move to another, slowly, while the interface is asked one
//! thing after another. The guests are synthetic, in a program that passes for QEMU: what is measured is the agent.
//!
//! ```text
//! target/bench/NAME.json   what was seen
//! ```

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use sterna_testkit::lab::{Hosts, Lab};
use sterna_testkit::net::{Host, LinkRate};

use super::measure::millis;
use super::usage::Usage;

const DEFINED: usize = 500;
const RUNNING: usize = 50;
const MOVING: usize = 8;
/// Bytes of each guest.
const MEMORY: u64 = 64 << 20;
/// A moving guest has so much that this takes nine minutes for the first round alone: a move that comes to its
/// second may end, or find that the guest is faster than the link, before it is measured.
const BANDWIDTH: &str = "100KB/s";

/// How long answers to one question took.
#[derive(Debug, Serialize)]
struct Answers {
    question: &'static str,
    count: usize,
    median_ms: f64,
    p99_ms: f64,
    longest_ms: f64,
}

/// The state of the host while it was asked.
#[derive(Debug, Serialize)]
struct Stage {
    defined: usize,
    running: usize,
    moving: usize,
    agent_resident_bytes: f64,
    agent_cpu_s: f64,
    took_s: f64,
    answers: Vec<Answers>,
}

/// Measures; leaves what was seen in `folder`.
///
/// # Errors
/// If a guest cannot be defined, started or moved, or a question is not answered.
pub(crate) fn measure(
    (sterna, stand_in): (&Path, &Path),
    asked: usize,
    folder: &Path,
    name: &str,
) -> Result<()> {
    fs::create_dir_all(folder)?;
    let runtime = tempfile::tempdir()?;
    let file = runtime.path().join("agent.toml");
    fs::write(
        &file,
        format!("[moves]\nfrom-here = {MOVING}\nto-one-host = {MOVING}\nto-here = {MOVING}\n"),
    )?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is text");
    let (program, file) = (text(stand_in)?, text(&file)?);
    let options = ["--qemu", program.as_str(), "--config", file.as_str()];
    let hosts = (Hosts::Two, LinkRate::Unshaped);
    let lab = Lab::with("sterna-bi", hosts, &options, (sterna, runtime.path()))?;
    let mut asking = Asking::of(&lab, Host::A)?;
    let mut stages = vec![asking.stage(&lab, (0, 0, 0), asked)?];
    for number in 0..DEFINED {
        let id = uuid::Uuid::new_v4();
        let fill = if number < MOVING { "56M" } else { "2M" };
        let append = format!("sterna.fill={fill} sterna.ws=1M sterna.rate=1M");
        let definition = json!({
            "name": guest(number), "memory_bytes": MEMORY, "append": append, "balloon": false,
            "accelerator": "tcg",
        });
        asking.ask("POST", "/v1/definitions", &json!({ "id": id, "definition": definition }))?;
    }
    stages.push(asking.stage(&lab, (DEFINED, 0, 0), asked)?);
    for number in 0..RUNNING {
        let path = format!("/v1/guests/{}/start", guest(number));
        asking.ask("POST", &path, &json!({}))?;
    }
    stages.push(asking.stage(&lab, (DEFINED, RUNNING, 0), asked)?);
    let begin = |number| {
        let words = ["--algorithm", "pre-copy", "--bandwidth", BANDWIDTH];
        lab.begin_migrate(Host::A, Host::B, &guest(number), &words)
    };
    let moves = (0..MOVING).map(begin).collect::<Result<Vec<Child>>>()?;
    asking.wait_for_moves(MOVING)?;
    stages.push(asking.stage(&lab, (DEFINED, RUNNING, MOVING), asked)?);
    let moving = asking.moving()?;
    ensure!(
        moving == MOVING,
        "of {MOVING} moves {} ended before they were measured",
        MOVING - moving
    );
    for mut one in moves {
        // Its guest ends with the lab.
        one.kill()?;
        one.wait()?;
    }
    for stage in &stages {
        println!("{stage:?}");
    }
    fs::write(folder.join(format!("{name}.json")), serde_json::to_vec_pretty(&stages)?)?;
    Ok(())
}

fn guest(number: usize) -> String {
    format!("g{number}")
}

/// A connection to the agent's own socket, that stays.
struct Asking {
    stream: BufReader<UnixStream>,
}

impl Asking {
    fn of(lab: &Lab, host: Host) -> Result<Self> {
        let socket = lab.folder(host).join("run").join("agent.sock");
        Ok(Self { stream: BufReader::new(UnixStream::connect(socket)?) })
    }

    fn ask(&mut self, method: &str, path: &str, body: &Value) -> Result<Vec<u8>> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length, mut line) = (String::new(), 0, String::new());
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "the agent hung up at {path}");
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if status.is_empty() {
                text.clone_into(&mut status);
            }
            if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        ensure!(status.starts_with("HTTP/1.1 2"), "{method} {path}: {status}: {text}");
        Ok(answer)
    }

    fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        self.ask("GET", path, &Value::Null)
    }

    /// Moves that are copying.
    fn moving(&mut self) -> Result<usize> {
        let moves: Vec<Value> = serde_json::from_slice(&self.get("/v1/moves")?)?;
        let copies =
            |one: &&Value| one["state"] == "moving" && one["progress"]["stage"] == "copying";
        Ok(moves.iter().filter(copies).count())
    }

    fn wait_for_moves(&mut self, count: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.moving()? != count {
            ensure!(Instant::now() < deadline, "the moves do not begin to copy");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Asks everything so often, and looks what it costs.
    fn stage(
        &mut self,
        lab: &Lab,
        (defined, running, moving): (usize, usize, usize),
        asked: usize,
    ) -> Result<Stage> {
        let usage = Usage::of(&[lab.agent_pid(Host::A)?])?;
        let began = Instant::now();
        let one = format!("/v1/guests/{}", guest(0));
        let mut questions = vec![
            ("the host", "/v1/host"),
            ("all guests", "/v1/guests"),
            ("all moves", "/v1/moves"),
            ("metrics", "/metrics"),
        ];
        if defined > 0 {
            questions.push(("one guest", &one));
        }
        let mut answers = Vec::new();
        for (question, path) in questions {
            let mut took = Vec::with_capacity(asked);
            for _ in 0..asked {
                let before = Instant::now();
                self.get(path)?;
                took.push(before.elapsed());
            }
            took.sort_unstable();
            let at = |share: usize| millis(took[(took.len() * share / 100).min(took.len() - 1)]);
            answers.push(Answers {
                question,
                count: asked,
                median_ms: at(50),
                p99_ms: at(99),
                longest_ms: at(100),
            });
        }
        let took_s = began.elapsed().as_secs_f64();
        let (agent_cpu_s, agent_resident_bytes) = usage.finish()?;
        Ok(Stage { defined, running, moving, agent_resident_bytes, agent_cpu_s, took_s, answers })
    }
}
