//! Frames of the control connection, and the numbering that finds lost and repeated ones.
//!
//! ```text
//!  0      2      4        8          16
//!  | kind | type | length | number   |  then `length` bytes
//! ```
//!
//! Kind 1 is a JSON message; kind 2 a device state of the type that `type` names. Numbers start at
//! 1 on every connection and count up by one in each direction.

use crate::limits::{DEVICE_STATE_BYTES_MAX, MESSAGE_BYTES_MAX};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Length of a frame's header, in bytes.
pub const HEADER_BYTES: usize = 16;

/// What follows a control header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlKind {
    /// A JSON message.
    Message,
    /// A device state of this type.
    DeviceState {
        /// The type's number: 1 a QEMU vmstate, 2 a synthetic guest's registers.
        state_type: u16,
    },
}

/// Header of a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlHeader {
    /// What follows.
    pub kind: ControlKind,
    /// Its length in bytes.
    pub length: u32,
    /// Number of the frame on this connection and in this direction.
    pub number: u64,
}

/// Why a control frame is refused.
#[derive(Debug, Error)]
pub enum ControlError {
    /// A kind that this version does not have.
    #[error("unknown control frame kind {0}")]
    Kind(u16),
    /// A type where none belongs.
    #[error("reserved bytes of a control frame are not zero")]
    Reserved,
    /// Longer than its kind may be.
    #[error("a control frame of {length} bytes, at most {max} are allowed")]
    Length {
        /// The length that was announced.
        length: u32,
        /// The bound.
        max: u32,
    },
    /// Frames are missing.
    #[error("control frame {got} came where {expected} was due")]
    Gap {
        /// The number that was due.
        expected: u64,
        /// The number that came.
        got: u64,
    },
    /// Not a message of this version.
    #[error("unreadable control message")]
    Json(#[source] serde_json::Error),
}

impl ControlHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let (kind, state_type) = match self.kind {
            ControlKind::Message => (1u16, 0),
            ControlKind::DeviceState { state_type } => (2, state_type),
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..2].copy_from_slice(&kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&state_type.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// When its kind is unknown or its length beyond the bound of its kind.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ControlError> {
        let state_type = u16::from_le_bytes([bytes[2], bytes[3]]);
        let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[8..16]);
        let (kind, max) = match u16::from_le_bytes([bytes[0], bytes[1]]) {
            1 if state_type != 0 => return Err(ControlError::Reserved),
            1 => (ControlKind::Message, MESSAGE_BYTES_MAX),
            2 => (ControlKind::DeviceState { state_type }, DEVICE_STATE_BYTES_MAX),
            other => return Err(ControlError::Kind(other)),
        };
        if length > max {
            return Err(ControlError::Length { length, max });
        }
        Ok(Self { kind, length, number: u64::from_le_bytes(number) })
    }
}

/// Writes a message as JSON.
///
/// # Errors
/// When it would be longer than a peer accepts.
pub fn encode_message<M: Serialize>(message: &M) -> Result<Vec<u8>, ControlError> {
    let bytes = serde_json::to_vec(message).map_err(ControlError::Json)?;
    match u32::try_from(bytes.len()) {
        Ok(length) if length <= MESSAGE_BYTES_MAX => Ok(bytes),
        Ok(length) => Err(ControlError::Length { length, max: MESSAGE_BYTES_MAX }),
        Err(_) => Err(ControlError::Length { length: u32::MAX, max: MESSAGE_BYTES_MAX }),
    }
}

/// Reads a message. Fields that this version does not know are passed over.
///
/// # Errors
/// When it is no message of this version.
pub fn decode_message<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, ControlError> {
    serde_json::from_slice(bytes).map_err(ControlError::Json)
}

/// Checks the numbers of arriving frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbering {
    last: u64,
}

/// What the number of an arriving frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Arrival {
    /// It is the next one.
    Next,
    /// It was here before.
    Repeated,
}

impl Numbering {
    /// The number for the next frame to send.
    #[must_use]
    pub fn number_next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Takes note of an arriving frame.
    ///
    /// # Errors
    /// When frames before it are missing.
    pub fn arrived(&mut self, number: u64) -> Result<Arrival, ControlError> {
        if number <= self.last {
            return Ok(Arrival::Repeated);
        }
        let expected = self.last + 1;
        if number != expected {
            return Err(ControlError::Gap { expected, got: number });
        }
        self.last = number;
        Ok(Arrival::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_beyond_the_bound_are_refused_before_anything_is_allocated() {
        let header = ControlHeader { kind: ControlKind::Message, length: u32::MAX, number: 1 };
        assert!(matches!(
            ControlHeader::decode(&header.encode()),
            Err(ControlError::Length { length: u32::MAX, max: MESSAGE_BYTES_MAX })
        ));
    }

    #[test]
    fn repeated_frames_are_told_from_lost_ones() {
        let mut numbering = Numbering::default();
        assert_eq!(numbering.arrived(1).unwrap(), Arrival::Next);
        assert_eq!(numbering.arrived(1).unwrap(), Arrival::Repeated);
        assert_eq!(numbering.arrived(2).unwrap(), Arrival::Next);
        assert!(matches!(numbering.arrived(4), Err(ControlError::Gap { expected: 3, got: 4 })));
        assert!(numbering.arrived(u64::MAX).is_err());
        assert_eq!(numbering.arrived(0).unwrap(), Arrival::Repeated);
    }

    proptest! {
        #[test]
        fn what_is_decoded_is_what_was_encoded(bytes in any::<[u8; HEADER_BYTES]>()) {
            if let Ok(header) = ControlHeader::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
