//! A model of a hypervisor that copies its guest by itself: rounds over one connection, a pause of its
//! own, then what is left and the registers. One whose connection breaks before it has sent all of it
//! lets its guest run again by itself, as QEMU does.
//!
//! On the wire: the number of a page and its content, again and again; then `u64::MAX`, a length of 4
//! bytes, and the registers.

use super::machine::{Machine, Phase};
use crate::tracking::system;
use crate::{NativeListener, NativePlan, NativeSent, VmmError};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use sterna_page::{PAGE_SIZE, PAGE_SIZE_BYTES, PageCount, PageNumber, PageSet};
use sterna_sys::memory::GuestMemory;

/// Stands in place of a page's number before the registers.
const END: u64 = u64::MAX;

/// Pages sent between two looks at the time.
const PIECE_PAGES: usize = 32;

/// Pages that fit any downtime.
const FEW: PageCount = PageCount(16);

/// Bytes of registers at most.
const REGISTERS_BYTES_MAX: u32 = 1 << 20;

/// How often is looked whether a connection is still waited for.
const BEAT: Duration = Duration::from_millis(50);

/// What a source has under way.
#[derive(Debug)]
pub(super) struct Copying {
    stream: UnixStream,
    plan: NativePlan,
    began: Instant,
    /// Pages of this round that are still to be sent.
    left: PageSet,
    hurried: bool,
    sent: NativeSent,
}

/// What a piece of copying has come to.
pub(super) enum Piece {
    /// There is more of the round, or it is too early for more.
    More,
    /// All of the round was sent.
    RoundSent,
}

/// A path that no other socket has.
fn socket_path() -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("sterna-synthetic-{}-{number}", std::process::id()))
}

impl Copying {
    /// Begins with all of `pages`.
    pub(super) fn begin(
        plan: NativePlan,
        pages: PageSet,
    ) -> Result<(Self, NativeListener), VmmError> {
        let path = socket_path();
        let listener = NativeListener::bind(&path)?;
        let connected = UnixStream::connect(&path).map_err(system("connecting"));
        // It is connected, or will never be.
        let _ = std::fs::remove_file(&path);
        let sent = NativeSent { vcpu_percent: 100, ..NativeSent::default() };
        let began = Instant::now();
        let copying = Self { stream: connected?, plan, began, left: pages, hurried: false, sent };
        Ok((copying, listener))
    }

    pub(super) fn hurry(&mut self) {
        self.hurried = true;
    }

    /// Pages that are still to be sent.
    pub(super) fn left(&self) -> &PageSet {
        &self.left
    }

    pub(super) fn sent(&self) -> NativeSent {
        NativeSent { left_bytes: self.left.count().bytes(), ..self.sent }
    }

    /// Sends some pages as they are now, unless it is too early within `wait`.
    pub(super) fn send_piece(
        &mut self,
        memory: &GuestMemory,
        wait: Duration,
    ) -> Result<Piece, VmmError> {
        if let Some(rate) = self.plan.bandwidth_bytes_per_second {
            let due =
                Duration::from_micros(self.sent.bytes.saturating_mul(1_000_000) / rate.max(1));
            let early = due.saturating_sub(self.began.elapsed());
            std::thread::sleep(early.min(wait));
            if early > wait {
                return Ok(Piece::More);
            }
        }
        let piece: Vec<PageNumber> = self.left.iter().take(PIECE_PAGES).collect();
        for page in piece {
            self.left.remove(page);
            self.send_page(memory, page)?;
        }
        Ok(if self.left.is_empty() { Piece::RoundSent } else { Piece::More })
    }

    fn send_page(&mut self, memory: &GuestMemory, page: PageNumber) -> Result<(), VmmError> {
        let mut frame = vec![0; 8 + PAGE_SIZE];
        frame[..8].copy_from_slice(&page.0.to_le_bytes());
        memory.read(page, &mut frame[8..])?;
        self.write(&frame)?;
        self.sent.pages += 1;
        self.sent.bytes += frame.len() as u64;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), VmmError> {
        self.stream.write_all(bytes).map_err(|error| VmmError::Refused {
            operation: "copying",
            detail: format!("the connection broke: {error}"),
        })
    }

    /// Takes over what was written since; whether that fits the downtime.
    pub(super) fn next_round(&mut self, written: PageSet) -> bool {
        self.left = written;
        let rate = self.plan.bandwidth_bytes_per_second.unwrap_or(0);
        let micros = u64::try_from(self.plan.downtime_max.as_micros()).unwrap_or(u64::MAX);
        let fits = u128::from(rate) * u128::from(micros) / 1_000_000;
        self.hurried || self.left.count() <= FEW || u128::from(self.left.count().bytes()) <= fits
    }

    /// Sends all that is left of a paused guest, and its registers.
    pub(super) fn finish(&mut self, machine: &Machine) -> Result<NativeSent, VmmError> {
        let pages: Vec<PageNumber> = self.left.iter().collect();
        for page in pages {
            self.left.remove(page);
            self.send_page(&machine.memories.outside, page)?;
        }
        let registers = machine.registers().to_device_state()?.bytes;
        let length = u32::try_from(registers.len()).unwrap_or(u32::MAX);
        let frame = [&END.to_le_bytes()[..], &length.to_le_bytes(), &registers].concat();
        self.write(&frame)?;
        self.sent.bytes += frame.len() as u64;
        // The end of the connection may be noticed at any time after that.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        Ok(self.sent())
    }
}

/// A hypervisor that gives up lets its guest run.
pub(super) fn runs_again(machine: &Machine) {
    if machine.phase() == Phase::Paused {
        machine.set_phase(Phase::Running);
    }
}

/// A destination that waits for what another hypervisor copies to it.
#[derive(Debug)]
pub(super) struct Arriving {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    registers: Receiver<io::Result<Vec<u8>>>,
}

impl Arriving {
    /// Listens, and fills `memory` with what comes.
    pub(super) fn begin(memory: Arc<GuestMemory>) -> Result<Self, VmmError> {
        let path = socket_path();
        let listener = NativeListener::bind(&path)?;
        let ended = Arc::new(AtomicBool::new(false));
        let (told, registers) = sync_channel(1);
        let stop = Arc::clone(&ended);
        let take = move || -> io::Result<Vec<u8>> {
            while !stop.load(Ordering::Acquire) {
                if let Some(stream) = listener.accept(BEAT)? {
                    return receive(stream, &memory);
                }
            }
            Err(io::ErrorKind::NotConnected.into())
        };
        std::thread::Builder::new()
            .name("synthetic-native".into())
            .spawn(move || drop(told.send(take())))
            .map_err(system("starting a thread"))?;
        Ok(Self { path, ended, registers })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The registers, once all has come.
    pub(super) fn wait(&self, limit: Duration) -> Result<Vec<u8>, VmmError> {
        let operation = "taking the guest";
        let refused = |detail: String| VmmError::Refused { operation, detail };
        match self.registers.recv_timeout(limit) {
            Ok(received) => received.map_err(|error| refused(error.to_string())),
            Err(RecvTimeoutError::Timeout) => Err(VmmError::TimedOut { operation, limit }),
            Err(RecvTimeoutError::Disconnected) => Err(refused("it has failed before".into())),
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn receive(mut stream: UnixStream, memory: &GuestMemory) -> io::Result<Vec<u8>> {
    let mut number = [0; 8];
    let mut content = vec![0; PAGE_SIZE];
    loop {
        stream.read_exact(&mut number)?;
        let page = u64::from_le_bytes(number);
        if page == END {
            break;
        }
        if page >= memory.pages().0 {
            let text = format!("page {page} of {}", memory.pages().0 * PAGE_SIZE_BYTES);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        stream.read_exact(&mut content)?;
        memory.write(PageNumber(page), &content).map_err(io::Error::other)?;
    }
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length).min(REGISTERS_BYTES_MAX);
    let mut registers = Vec::new();
    let read = (&mut stream).take(length.into()).read_to_end(&mut registers)?;
    if read as u64 == u64::from(length) {
        Ok(registers)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}
