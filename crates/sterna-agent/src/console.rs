//! A guest's console: one connection to its hypervisor, many readers.
//!
//! ```text
//!   hypervisor's socket ──▶ task ──▶ ring of the recent past (RING_BYTES)
//!                             │  └─▶ broadcast ──▶ readers, each with its own position
//!                             ◀──── typed bytes
//! ```
//!
//! A guest that is handed over to another process of this host has two sockets for a moment: what the first one still has
//! to say is read to its end before the second one is read.
//!
//! The guest is never held up: the task always reads, and a reader that falls behind is dropped
//! with a note. A guest that prints is read every few milliseconds, not every byte: an emulated
//! serial port delivers single bytes, and a wake-up for each would cost more than the guest does.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;

/// Recent output that a new reader sees.
const RING_BYTES: usize = 256 << 10;

/// Chunks by which a reader may lag: at one each [`GATHER`] it has some two seconds.
const LAG_CHUNKS: usize = 256;

/// Bytes of one chunk at most.
const CHUNK_BYTES: usize = 64 << 10;

/// How long output is gathered before it is read.
const GATHER: Duration = Duration::from_millis(8);

/// Typed pieces that wait for the guest to take them.
const INPUT_QUEUE: usize = 16;

/// How often and at what distance a lost connection is made anew while the guest lives.
const RECONNECTS_MAX: u32 = 20;
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

type Chunk = Arc<[u8]>;

#[derive(Debug)]
struct Output {
    ring: VecDeque<u8>,
    news: broadcast::Sender<Chunk>,
}

/// What was typed; whoever has it serves the guest.
type Typed = Arc<tokio::sync::Mutex<mpsc::Receiver<Vec<u8>>>>;

/// A guest's console. Dropping it ends the connection and its readers.
#[derive(Debug)]
pub(crate) struct Console {
    output: Arc<Mutex<Output>>,
    input: mpsc::Sender<Vec<u8>>,
    typed: Typed,
    connection: Connection,
    /// That to a process that is about to end.
    former: Option<Connection>,
}

/// A connection to one process. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Connection {
    task: JoinHandle<()>,
    /// Whether it is not made anew when it ends.
    last: Arc<AtomicBool>,
}

/// What a reader gets next.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Output.
    Bytes(Chunk),
    /// The reader was too slow; this many chunks are lost to it.
    Lagged(u64),
}

/// One reader: the recent past, then what comes.
#[derive(Debug)]
pub(crate) struct Reader {
    past: Option<Chunk>,
    news: broadcast::Receiver<Chunk>,
}

impl Reader {
    /// The next piece; `None` once the console is gone.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        if let Some(past) = self.past.take() {
            return Some(Piece::Bytes(past));
        }
        match self.news.recv().await {
            Ok(chunk) => Some(Piece::Bytes(chunk)),
            Err(broadcast::error::RecvError::Lagged(chunks)) => Some(Piece::Lagged(chunks)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The recent past alone.
    pub(crate) fn past(self) -> Chunk {
        self.past.unwrap_or_default()
    }
}

impl Console {
    /// Connects to the socket at `path` and reads from now on, in a task of its own.
    pub(crate) fn attach(path: &Path) -> Self {
        let (news, _) = broadcast::channel(LAG_CHUNKS);
        let output = Arc::new(Mutex::new(Output { ring: VecDeque::new(), news }));
        let (input, typed) = mpsc::channel(INPUT_QUEUE);
        let typed = Arc::new(tokio::sync::Mutex::new(typed));
        let connection = Connection::make(path, &output, &typed);
        Self { output, input, typed, connection, former: None }
    }

    /// Connects to the process at `path` as well, which is to take the guest over. It is read, and gets what is typed,
    /// once the first connection has ended; [`Console::follow`] says that it will, dropping it that it will not.
    pub(crate) fn connect(&self, path: &Path) -> Connection {
        Connection::make(path, &self.output, &self.typed)
    }

    /// The guest is with the process of `connection` now.
    pub(crate) fn follow(&mut self, connection: Connection) {
        let former = std::mem::replace(&mut self.connection, connection);
        former.last.store(true, Ordering::Release);
        self.former = Some(former);
    }

    /// A new reader.
    pub(crate) fn read(&self) -> Reader {
        // Under one lock, so that no byte is missed or seen twice.
        let output = lock(&self.output);
        let (front, back) = output.ring.as_slices();
        let past = [front, back].concat();
        Reader { past: Some(past.into()), news: output.news.subscribe() }
    }

    /// Where typed bytes go.
    pub(crate) fn input(&self) -> mpsc::Sender<Vec<u8>> {
        self.input.clone()
    }
}

impl Connection {
    fn make(path: &Path, output: &Arc<Mutex<Output>>, typed: &Typed) -> Self {
        let last = Arc::new(AtomicBool::new(false));
        let (output, typed) = (Arc::clone(output), Arc::clone(typed));
        let task = tokio::spawn(serve(path.into(), output, typed, Arc::clone(&last)));
        Self { task, last }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(output: &Mutex<Output>) -> MutexGuard<'_, Output> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(path: PathBuf, output: Arc<Mutex<Output>>, typed: Typed, last: Arc<AtomicBool>) {
    for _ in 0..RECONNECTS_MAX {
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                let mut typed = typed.lock().await;
                let ended = relay(&stream, &output, &mut typed).await;
                tracing::debug!(console = %path.display(), error = ?ended.err(), "console lost");
            }
            Err(error) => tracing::debug!(console = %path.display(), %error, "no console"),
        }
        if last.load(Ordering::Acquire) {
            return;
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn relay(
    stream: &UnixStream,
    output: &Mutex<Output>,
    typed: &mut mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let read = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            stream.readable().await?;
            match stream.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    publish(output, &buffer[..length]);
                    if length < CHUNK_BYTES {
                        tokio::time::sleep(GATHER).await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    let write = async {
        while let Some(bytes) = typed.recv().await {
            write_all(stream, &bytes).await?;
        }
        std::future::pending::<io::Result<()>>().await
    };
    tokio::select! { ended = read => ended, ended = write => ended }
}

async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn publish(output: &Mutex<Output>, bytes: &[u8]) {
    let mut output = lock(output);
    let surplus = (output.ring.len() + bytes.len()).saturating_sub(RING_BYTES);
    let surplus = surplus.min(output.ring.len());
    output.ring.drain(..surplus);
    output.ring.extend(bytes);
    // An error only says that nobody reads.
    let _ = output.news.send(bytes.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    async fn console() -> (Console, UnixStream, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("console")).unwrap();
        let console = Console::attach(&folder.path().join("console"));
        let (guest, _) = listener.accept().await.unwrap();
        (console, guest, folder)
    }

    async fn read_until(reader: &mut Reader, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            match reader.next().await.unwrap() {
                Piece::Bytes(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
                Piece::Lagged(chunks) => panic!("lagged by {chunks}"),
            }
        }
        text
    }

    #[tokio::test]
    async fn a_late_reader_sees_the_past_then_the_present_without_gap() {
        let (console, mut guest, _folder) = console().await;
        let mut early = console.read();
        guest.write_all(b"one two ").await.unwrap();
        assert_eq!(read_until(&mut early, "two ").await, "one two ");
        let mut late = console.read();
        guest.write_all(b"three").await.unwrap();
        assert_eq!(read_until(&mut late, "three").await, "one two three");
    }

    #[tokio::test]
    async fn typed_bytes_reach_the_guest() {
        let (console, mut guest, _folder) = console().await;
        console.input().send(b"ls\n".to_vec()).await.unwrap();
        let mut bytes = [0; 3];
        guest.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ls\n");
    }

    #[tokio::test]
    async fn a_guest_that_is_handed_over_is_read_on_without_gap_and_typed_to() {
        let (mut console, mut old, folder) = console().await;
        let path = folder.path().join("second");
        let listener = UnixListener::bind(&path).unwrap();
        let mut reader = console.read();
        // One that comes to nothing changes nothing.
        drop((console.connect(&path), listener.accept().await.unwrap()));
        let second = console.connect(&path);
        let (mut new, _) = listener.accept().await.unwrap();
        old.write_all(b"one ").await.unwrap();
        new.write_all(b"three ").await.unwrap();
        console.follow(second);
        old.write_all(b"two ").await.unwrap();
        drop(old);
        assert_eq!(read_until(&mut reader, "three ").await, "one two three ");
        console.input().send(b"ls\n".to_vec()).await.unwrap();
        let mut bytes = [0; 3];
        new.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ls\n");
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_and_the_guest_is_not_held_up() {
        let (console, mut guest, _folder) = console().await;
        let mut slow = console.read();
        let mut fast = console.read();
        let watcher = tokio::spawn(async move { read_until(&mut fast, "end").await.len() });
        for _ in 0..LAG_CHUNKS + 8 {
            guest.write_all(b"x").await.unwrap();
            tokio::time::sleep(GATHER + Duration::from_millis(2)).await;
        }
        guest.write_all(b"end").await.unwrap();
        assert_eq!(watcher.await.unwrap(), LAG_CHUNKS + 8 + 3);
        assert!(matches!(slow.next().await, Some(Piece::Bytes(past)) if past.is_empty()));
        assert!(matches!(slow.next().await, Some(Piece::Lagged(_))));
    }

    #[test]
    fn the_past_is_bounded() {
        let (news, _) = broadcast::channel(1);
        let output = Mutex::new(Output { ring: VecDeque::new(), news });
        for _ in 0..9 {
            publish(&output, &[b'x'; CHUNK_BYTES]);
        }
        publish(&output, b"last");
        let output = output.into_inner().unwrap();
        assert_eq!(output.ring.len(), RING_BYTES);
        assert_eq!(output.ring.range(RING_BYTES - 4..).copied().collect::<Vec<_>>(), b"last");
    }
}
