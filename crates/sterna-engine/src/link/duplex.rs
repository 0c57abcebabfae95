//! A connection on which one thread reads while others write.
//!
//! The TLS state is behind a lock that is held only while bytes are turned into records or back,
//! never while waiting for the network to deliver.

use super::{Link, Metered, SocketControl};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes read from the socket at once.
const READ_BYTES: usize = 32 << 10;

type Tls = Arc<Mutex<rustls::Connection>>;

/// The half that writes. Ends the connection when it is dropped.
#[derive(Debug)]
pub(crate) struct WriteHalf {
    tls: Tls,
    socket: Metered,
    ending: SocketControl,
    records: Vec<u8>,
}

/// The half that reads.
#[derive(Debug)]
pub(crate) struct ReadHalf {
    tls: Tls,
    socket: Metered,
    silence_max: Option<Duration>,
    /// Records that TLS has not taken yet: it holds only so much that nobody has read.
    records: Vec<u8>,
}

/// Makes two halves of a connection. A peer that says nothing for `silence_max` is taken for gone.
pub(crate) fn split(
    link: Link,
    silence_max: Option<Duration>,
) -> io::Result<(WriteHalf, ReadHalf)> {
    if let Some(limit) = silence_max {
        link.socket.set_read_limit(limit)?;
    }
    let tls = Arc::new(Mutex::new(link.tls));
    let write = WriteHalf {
        tls: Arc::clone(&tls),
        socket: link.socket.try_clone()?,
        ending: link.socket.control()?,
        records: Vec::new(),
    };
    Ok((write, ReadHalf { tls, socket: link.socket, silence_max, records: Vec::new() }))
}

impl WriteHalf {
    /// Writes all of `bytes`.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            {
                let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = tls.writer().write(rest)?;
                rest = &rest[taken..];
                while tls.wants_write() {
                    tls.write_tls(&mut self.records)?;
                }
            }
            self.socket.write_all(&self.records)?;
            self.records.clear();
        }
        Ok(())
    }

    /// Says that nothing more comes; the other direction goes on.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        {
            let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
            tls.send_close_notify();
            while tls.wants_write() {
                tls.write_tls(&mut self.records)?;
            }
        }
        self.socket.write_all(&self.records)?;
        self.records.clear();
        Ok(())
    }

    /// What ends the connection from another thread.
    pub(crate) fn ending(&self) -> io::Result<SocketControl> {
        self.ending.try_clone()
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        self.ending.shut_down();
    }
}

impl Read for ReadHalf {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(done) = self.take_plaintext(buffer)? {
                return Ok(done);
            }
            let mut records = [0; READ_BYTES];
            let count = match self.socket.read(&mut records) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let limit = self.silence_max.unwrap_or_default();
                    let text = format!("the peer said nothing for {limit:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                done => done?,
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.records.extend_from_slice(&records[..count]);
        }
    }
}

impl ReadHalf {
    /// Reads what TLS holds or can make of the records that are here; `None` if it needs more.
    fn take_plaintext(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done.map(Some),
            }
            if self.records.is_empty() {
                return Ok(None);
            }
            let taken = tls.read_tls(&mut self.records.as_slice())?;
            self.records.drain(..taken);
            tls.process_new_packets().map_err(io::Error::other)?;
        }
    }
}
