//! A control connection: messages in both directions at once, over one TLS session.
//!
//! One thread reads ([`Incoming`]) while any thread sends ([`Control`]). The TLS state is behind a
//! lock that is held only while bytes are turned into records or back, never while waiting for
//! the network to deliver.

use super::{KEEP_ALIVE_INTERVAL, Link, LinkError, Metered, SILENCE_MAX, SocketControl};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use sterna_proto::control::{
    Arrival, ControlError, ControlHeader, ControlKind, HEADER_BYTES, Numbering, decode_message,
    encode_message,
};
use sterna_vmm::{DeviceState, DeviceStateKind};

/// Bytes read from the socket at once.
const READ_BYTES: usize = 32 << 10;

/// The sending half, shared by the threads of a move.
#[derive(Debug)]
pub(crate) struct Control {
    tls: Arc<Mutex<rustls::Connection>>,
    sending: Mutex<Sending>,
    ending: SocketControl,
}

#[derive(Debug)]
struct Sending {
    socket: Metered,
    numbering: Numbering,
    last: Instant,
}

/// The receiving half, for one thread.
#[derive(Debug)]
pub(crate) struct Incoming<M> {
    tls: Arc<Mutex<rustls::Connection>>,
    socket: Metered,
    /// Records that TLS has not taken yet: it holds only so much that nobody has read.
    records: Vec<u8>,
    numbering: Numbering,
    message: PhantomData<M>,
}

/// What came over a control connection.
#[derive(Debug)]
pub(crate) enum Received<M> {
    /// A message.
    Message(M),
    /// A device state.
    State(DeviceState),
}

impl Control {
    /// Makes two halves of a connection.
    pub(crate) fn split<M>(link: Link) -> io::Result<(Self, Incoming<M>)> {
        link.socket.set_read_limit(SILENCE_MAX)?;
        let tls = Arc::new(Mutex::new(link.tls));
        let sending = Sending {
            socket: link.socket.try_clone()?,
            numbering: Numbering::default(),
            last: Instant::now(),
        };
        let ending = link.socket.control()?;
        let control = Self { tls: Arc::clone(&tls), sending: Mutex::new(sending), ending };
        let incoming = Incoming {
            tls,
            socket: link.socket,
            records: Vec::new(),
            numbering: Numbering::default(),
            message: PhantomData,
        };
        Ok((control, incoming))
    }

    /// Sends a message.
    pub(crate) fn send<M: Serialize>(&self, message: &M) -> Result<(), LinkError> {
        let bytes = encode_message(message).map_err(invalid)?;
        self.send_frame(ControlKind::Message, &bytes)
    }

    /// Sends a device state.
    pub(crate) fn send_state(&self, state: &DeviceState) -> Result<(), LinkError> {
        let state_type = match state.kind {
            DeviceStateKind::QemuVmstate => 1,
            DeviceStateKind::Synthetic => 2,
        };
        self.send_frame(ControlKind::DeviceState { state_type }, &state.bytes)
    }

    /// Sends `message` whenever nothing else was sent for [`KEEP_ALIVE_INTERVAL`], from a thread of
    /// its own: whoever uses the connection may be busy for longer, hashing all RAM for one.
    pub(crate) fn keep_alive<M: Serialize + Send + 'static>(
        control: &Arc<Self>,
        message: M,
    ) -> io::Result<()> {
        let control = Arc::downgrade(control);
        thread::Builder::new().name("keep-alive".into()).spawn(move || {
            while let Some(control) = control.upgrade() {
                if control.is_quiet() && control.send(&message).is_err() {
                    return;
                }
                drop(control);
                thread::sleep(KEEP_ALIVE_INTERVAL / 2);
            }
        })?;
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        self.lock().last.elapsed() >= KEEP_ALIVE_INTERVAL
    }

    /// Ends the connection; both halves fail from now on.
    pub(crate) fn shut_down(&self) {
        self.ending.shut_down();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_frame(&self, kind: ControlKind, body: &[u8]) -> Result<(), LinkError> {
        let length = u32::try_from(body.len()).map_err(invalid)?;
        let mut sending = self.lock();
        let number = sending.numbering.number_next();
        let mut frame = ControlHeader { kind, length, number }.encode().to_vec();
        frame.extend_from_slice(body);
        let mut rest = frame.as_slice();
        let mut records = Vec::new();
        while !rest.is_empty() {
            {
                let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = tls.writer().write(rest)?;
                rest = &rest[taken..];
                while tls.wants_write() {
                    tls.write_tls(&mut records)?;
                }
            }
            sending.socket.write_all(&records)?;
            records.clear();
        }
        sending.last = Instant::now();
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl<M: DeserializeOwned> Incoming<M> {
    /// Waits for the next message or device state; repeated frames are dropped here.
    pub(crate) fn receive(&mut self) -> Result<Received<M>, LinkError> {
        let mut numbering = self.numbering;
        let received = receive(self, &mut numbering);
        self.numbering = numbering;
        received
    }
}

/// Reads the next message or device state from `stream`; repeated frames are passed over.
pub(crate) fn receive<M: DeserializeOwned>(
    stream: &mut impl Read,
    numbering: &mut Numbering,
) -> Result<Received<M>, LinkError> {
    loop {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header)?;
        let header = ControlHeader::decode(&header).map_err(invalid)?;
        let body = body(stream, header.length)?;
        if numbering.arrived(header.number).map_err(invalid)? == Arrival::Repeated {
            continue;
        }
        return match header.kind {
            ControlKind::Message => Ok(Received::Message(decode_message(&body).map_err(invalid)?)),
            ControlKind::DeviceState { state_type } => {
                let kind = match state_type {
                    1 => DeviceStateKind::QemuVmstate,
                    2 => DeviceStateKind::Synthetic,
                    other => return Err(invalid(ControlError::Kind(other))),
                };
                Ok(Received::State(DeviceState { kind, bytes: body }))
            }
        };
    }
}

/// Reads a body as it arrives, so that a length alone makes nobody allocate.
fn body(stream: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    let read = stream.take(length.into()).read_to_end(&mut body)?;
    if read as u64 == u64::from(length) {
        Ok(body)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl<M> Read for Incoming<M> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(done) = self.take_plaintext(buffer)? {
                return Ok(done);
            }
            let mut records = [0; READ_BYTES];
            let count = match self.socket.read(&mut records) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let limit: Duration = SILENCE_MAX;
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

impl<M> Incoming<M> {
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

fn invalid<E: std::error::Error + Send + Sync + 'static>(error: E) -> LinkError {
    LinkError::Io(io::Error::new(io::ErrorKind::InvalidData, error))
}
