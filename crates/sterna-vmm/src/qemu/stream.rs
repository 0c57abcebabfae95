//! The stream in which QEMU sends its device state, read as it comes.

use crate::tracking::system;
use crate::{NativeListener, VmmError};
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

/// Bytes of device state at most. A usual guest has 0.3 MB; each vCPU and device adds some KiB.
pub(super) const STATE_BYTES_MAX: u64 = 64 << 20;

/// A socket that QEMU is to connect to.
#[derive(Debug)]
pub(super) struct StreamListener(NativeListener);

/// The stream of one attempt. A thread reads it, as QEMU would otherwise wait for room in the
/// socket while the guest is paused.
#[derive(Debug)]
pub(super) struct StateStream {
    socket: UnixStream,
    result: Receiver<io::Result<Vec<u8>>>,
}

impl StreamListener {
    /// Listens at `path`, in place of any earlier attempt's socket.
    pub(super) fn bind(path: &Path) -> Result<Self, VmmError> {
        NativeListener::bind(path).map(Self)
    }

    /// Takes QEMU's connection and starts to read it.
    pub(super) fn accept(self, limit: Duration) -> Result<StateStream, VmmError> {
        let operation = "waiting for QEMU to connect";
        match self.0.accept(limit).map_err(system(operation))? {
            Some(socket) => StateStream::read_from(socket),
            None => Err(VmmError::TimedOut { operation, limit }),
        }
    }
}

impl StateStream {
    fn read_from(socket: UnixStream) -> Result<Self, VmmError> {
        let reader = socket.try_clone().map_err(system("reading QEMU's stream"))?;
        let (sender, result) = sync_channel(1);
        std::thread::Builder::new()
            .name("qemu-stream".into())
            .spawn(move || {
                let _ = sender.send(read_all(reader));
            })
            .map_err(system("reading QEMU's stream"))?;
        Ok(Self { socket, result })
    }

    /// All that QEMU sent, once it has closed the stream.
    pub(super) fn finish(self, limit: Duration) -> Result<Vec<u8>, VmmError> {
        let result = self.result.recv_timeout(limit).map_err(|_| VmmError::TimedOut {
            operation: "reading QEMU's stream to its end",
            limit,
        })?;
        result.map_err(system("reading QEMU's stream"))
    }
}

impl Drop for StateStream {
    fn drop(&mut self) {
        // Ends the thread that reads.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn read_all(stream: UnixStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(1 << 20);
    let length = (&stream).take(STATE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if length as u64 > STATE_BYTES_MAX {
        // QEMU then fails at once, instead of waiting for room with the guest paused.
        let _ = stream.shutdown(Shutdown::Both);
        let text = format!("more than {STATE_BYTES_MAX} bytes of device state: RAM is among them");
        return Err(io::Error::other(text));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn what_was_sent_before_the_end_is_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        for _ in 0..2 {
            let listener = StreamListener::bind(&path).unwrap();
            let mut sender = UnixStream::connect(&path).unwrap();
            let stream = listener.accept(LIMIT).unwrap();
            sender.write_all(&vec![3; 3 << 20]).unwrap();
            drop(sender);
            assert_eq!(stream.finish(LIMIT).unwrap(), vec![3; 3 << 20]);
        }
    }

    #[test]
    fn a_stream_that_carries_ram_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = StreamListener::bind(&path).unwrap();
        let mut sender = UnixStream::connect(&path).unwrap();
        let stream = listener.accept(LIMIT).unwrap();
        let chunk = vec![0; 1 << 20];
        while sender.write_all(&chunk).is_ok() {}
        assert!(stream.finish(LIMIT).is_err());
    }

    #[test]
    fn nobody_connecting_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let listener = StreamListener::bind(&folder.path().join("s")).unwrap();
        let result = listener.accept(Duration::from_millis(10));
        assert!(matches!(result, Err(VmmError::TimedOut { .. })));
    }
}
