//! A connection to QEMU's monitor.
//!
//! Commands are the `qapi` crate's; the framing is our own, for two reasons: every wait has a time
//! limit, and an event or a reply that a newer QEMU extends must not break the connection. A thread
//! reads lines and notes when each arrived; it ends when either side closes.

use crate::VmmError;
use crate::tracking::system;
use qapi::{Command, Execute, qmp::qmp_capabilities};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Bytes of one line at most; the longest QEMU sends (the list of machines) has 30 KiB.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// Messages that wait to be read at most. Events beyond that are dropped: nobody waits for them.
const MESSAGES_MAX: usize = 1024;

/// How long QEMU may take to answer a query. Its main loop may be busy with a slow disk.
pub(super) const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// One event, as it arrived.
#[derive(Clone, Debug)]
pub(super) struct QmpEvent {
    pub(super) name: String,
    pub(super) data: Value,
    pub(super) arrived: Instant,
}

impl QmpEvent {
    /// The new state, if this is an event of a migration.
    pub(super) fn migration_status(&self) -> Option<&str> {
        (self.name == "MIGRATION").then(|| self.data.get("status")?.as_str()).flatten()
    }
}

/// A line that means something.
pub(super) enum Message {
    Event(QmpEvent),
    Reply { id: Option<u64>, result: Result<Value, String> },
}

/// A connection to QEMU's monitor, which serves one at a time.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    messages: Receiver<Message>,
    events: VecDeque<QmpEvent>,
    next_id: u64,
}

impl Qmp {
    /// Connects and shakes hands; `limit` bounds both, so that a monitor that already serves
    /// another is noticed.
    pub(super) fn connect(path: &Path, limit: Duration) -> Result<Self, VmmError> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            // QEMU listens for as long as any of its threads runs.
            ErrorKind::ConnectionRefused => closed(),
            _ => system("connecting to QMP")(error),
        })?;
        Self::over(stream, limit)
    }

    /// Shakes hands on a connection that stands; `limit` bounds that.
    pub(super) fn over(stream: UnixStream, limit: Duration) -> Result<Self, VmmError> {
        stream.set_write_timeout(Some(limit)).map_err(system("connecting to QMP"))?;
        let reader = stream.try_clone().map_err(system("connecting to QMP"))?;
        let (sender, messages) = sync_channel(MESSAGES_MAX);
        std::thread::Builder::new()
            .name("qmp-reader".into())
            .spawn(move || read_messages(reader, &sender))
            .map_err(system("connecting to QMP"))?;
        let mut qmp = Self { stream, messages, events: VecDeque::new(), next_id: 1 };
        qmp.execute(&qmp_capabilities { enable: None }, limit)?;
        Ok(qmp)
    }

    /// Runs a command whose reply says nothing of use.
    pub(super) fn execute<C: Command>(
        &mut self,
        command: &C,
        limit: Duration,
    ) -> Result<(), VmmError> {
        self.request(command, limit).map(drop)
    }

    /// Runs a command and reads its reply.
    pub(super) fn query<C: Command, T: DeserializeOwned>(
        &mut self,
        command: &C,
    ) -> Result<T, VmmError> {
        let reply = self.request(command, REPLY_LIMIT)?;
        serde_json::from_value(reply).map_err(|error| VmmError::Refused {
            operation: C::NAME,
            detail: format!("unexpected reply: {error}"),
        })
    }

    fn request<C: Command>(&mut self, command: &C, limit: Duration) -> Result<Value, VmmError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_vec(&Execute::with_id(command, id))
            .map_err(|error| VmmError::Refused { operation: C::NAME, detail: error.to_string() })?;
        line.push(b'\n');
        self.stream.write_all(&line).map_err(|_| closed())?;
        let deadline = Instant::now() + limit;
        loop {
            match self.receive(C::NAME, deadline, limit)? {
                Message::Event(event) => self.keep(event),
                Message::Reply { id: Some(other), .. } if other != id => {}
                Message::Reply { result, .. } => {
                    return result
                        .map_err(|detail| VmmError::Refused { operation: C::NAME, detail });
                }
            }
        }
    }

    /// Forgets all events that have arrived.
    pub(super) fn forget_events(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            drop(message);
        }
        self.events.clear();
    }

    /// The next event for which `pick` has an answer; the others before it are forgotten.
    pub(super) fn wait_event<T>(
        &mut self,
        operation: &'static str,
        limit: Duration,
        mut pick: impl FnMut(&QmpEvent) -> Option<T>,
    ) -> Result<T, VmmError> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(event) = self.events.pop_front() {
                if let Some(picked) = pick(&event) {
                    return Ok(picked);
                }
            }
            if let Message::Event(event) = self.receive(operation, deadline, limit)? {
                self.keep(event);
            }
        }
    }

    fn keep(&mut self, event: QmpEvent) {
        if self.events.len() == MESSAGES_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn receive(
        &self,
        operation: &'static str,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Message, VmmError> {
        let rest = deadline.saturating_duration_since(Instant::now());
        self.messages.recv_timeout(rest).map_err(|error| match error {
            RecvTimeoutError::Timeout => VmmError::TimedOut { operation, limit },
            RecvTimeoutError::Disconnected => closed(),
        })
    }
}

fn closed() -> VmmError {
    VmmError::Gone { detail: "its monitor connection was closed".into() }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        // Ends the reader, which holds a copy of the socket, and lets QEMU serve the next.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn read_messages(stream: UnixStream, sender: &SyncSender<Message>) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match stream.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(length) if length > 0 && line.ends_with(b"\n") => {}
            Ok(_) | Err(_) => return,
        }
        let delivered = match parse(&line) {
            Some(Message::Event(event)) => match sender.try_send(Message::Event(event)) {
                Err(TrySendError::Disconnected(_)) => Err(()),
                Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
            },
            Some(reply) => sender.send(reply).map_err(drop),
            None => Ok(()),
        };
        if delivered.is_err() {
            return;
        }
    }
}

/// Reads a line; `None` for the greeting and for anything that is neither event nor reply.
pub(super) fn parse(line: &[u8]) -> Option<Message> {
    let arrived = Instant::now();
    let mut value: Value = serde_json::from_slice(line).ok()?;
    let id = value.get("id").and_then(Value::as_u64);
    if let Some(name) = value.get("event").and_then(Value::as_str) {
        let name = name.to_owned();
        let data = value.get_mut("data").map(Value::take).unwrap_or_default();
        return Some(Message::Event(QmpEvent { name, data, arrived }));
    }
    if let Some(reply) = value.get_mut("return") {
        return Some(Message::Reply { id, result: Ok(reply.take()) });
    }
    let error = value.get("error")?;
    let text = error.get("desc").and_then(Value::as_str).map(str::to_owned);
    Some(Message::Reply { id, result: Err(text.unwrap_or_else(|| error.to_string())) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn lines_are_told_apart_and_nonsense_is_passed_over() {
        assert!(parse(br#"{"QMP":{"version":{}}}"#).is_none());
        assert!(parse(b"not json").is_none());
        assert!(parse(b"[1]").is_none());
        let event = parse(br#"{"event":"MIGRATION","data":{"status":"new-in-12"},"timestamp":{}}"#);
        let Some(Message::Event(event)) = event else { panic!("an event") };
        assert_eq!(event.migration_status(), Some("new-in-12"));
        let reply = parse(br#"{"id":3,"error":{"class":"GenericError","desc":"no"}}"#);
        let Some(Message::Reply { id: Some(3), result: Err(text) }) = reply else {
            panic!("a reply")
        };
        assert_eq!(text, "no");
    }

    /// A monitor that answers each line with what `answer` gives for its id.
    fn monitor(answer: impl Fn(u64) -> String + Send + 'static) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\":{}}\n").unwrap();
            for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
                let id = serde_json::from_str::<Value>(&line).unwrap()["id"].as_u64().unwrap();
                stream.write_all(answer(id).as_bytes()).unwrap();
            }
        });
        folder
    }

    #[test]
    fn a_late_reply_is_not_taken_for_the_next_one() {
        let folder = monitor(|id| match id {
            2 => String::new(),
            3 => "{\"id\":2,\"return\":{\"status\":\"old\",\"running\":false}}\n\
                  {\"event\":\"X\"}\n\
                  {\"id\":3,\"return\":{\"status\":\"new\",\"running\":true}}\n"
                .into(),
            id => format!("{{\"id\":{id},\"return\":{{}}}}\n"),
        });
        let mut qmp = Qmp::connect(&folder.path().join("qmp"), REPLY_LIMIT).unwrap();
        let late = qmp.execute(&qapi::qmp::query_status {}, Duration::from_millis(20));
        assert!(matches!(late, Err(VmmError::TimedOut { .. })));
        let status: super::super::replies::RunStatus =
            qmp.query(&qapi::qmp::query_status {}).unwrap();
        assert_eq!(status.status, "new");
    }

    #[test]
    fn a_monitor_that_goes_away_means_the_guest_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || drop(listener.accept()));
        assert!(matches!(Qmp::connect(&path, REPLY_LIMIT), Err(VmmError::Gone { .. })));
    }
}
