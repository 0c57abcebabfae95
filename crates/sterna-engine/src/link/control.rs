//! A control connection: messages in both directions at once, over one TLS session.
//!
//! One thread reads ([`Incoming`]) while any thread sends ([`Control`]).

use super::duplex::{ReadHalf, WriteHalf, split};
use super::{KEEP_ALIVE_INTERVAL, Link, LinkError, SILENCE_MAX, SocketControl};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;
use sterna_proto::control::{
    Arrival, ControlError, ControlHeader, ControlKind, HEADER_BYTES, Numbering, decode_message,
    encode_message,
};
use sterna_vmm::{DeviceState, DeviceStateKind};

/// The sending half, shared by the threads of a move.
#[derive(Debug)]
pub(crate) struct Control {
    sending: Mutex<Sending>,
    ending: SocketControl,
}

#[derive(Debug)]
struct Sending {
    half: WriteHalf,
    numbering: Numbering,
    last: Instant,
}

/// The receiving half, for one thread.
#[derive(Debug)]
pub(crate) struct Incoming<M> {
    half: ReadHalf,
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
        let (write, read) = split(link, Some(SILENCE_MAX))?;
        let ending = write.ending()?;
        let sending =
            Sending { half: write, numbering: Numbering::default(), last: Instant::now() };
        let control = Self { sending: Mutex::new(sending), ending };
        let incoming =
            Incoming { half: read, numbering: Numbering::default(), message: PhantomData };
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
        sending.half.send(&frame)?;
        sending.last = Instant::now();
        Ok(())
    }
}

impl<M: DeserializeOwned> Incoming<M> {
    /// Waits for the next message or device state; repeated frames are dropped here.
    pub(crate) fn receive(&mut self) -> Result<Received<M>, LinkError> {
        receive(&mut self.half, &mut self.numbering)
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

fn invalid<E: std::error::Error + Send + Sync + 'static>(error: E) -> LinkError {
    LinkError::Io(io::Error::new(io::ErrorKind::InvalidData, error))
}
