//! The first bytes of every connection: who speaks which version, and what the connection is for.
//!
//! ```text
//!  0      4         6         8      9      10       12             28
//!  | STRN | version | version | role | zero | stream | move token   |   source → destination
//!  |      | min     | max     |      |      | number | (but control)|
//!
//!  0      4         6        8
//!  | STRN | version | status |                                          destination → source
//! ```
//!
//! Up to byte 8 a preamble is the same in every version there will be, and so is the answer: without a version in common
//! each side still tells the other what it speaks.

use thiserror::Error;

/// The oldest version this release speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest version this release speaks.
pub const VERSION_MAX: u16 = 1;

const MAGIC: [u8; 4] = *b"STRN";

/// Length of a [`Preamble`] on the wire, in bytes.
pub const PREAMBLE_BYTES: usize = 28;
/// Length of a [`PreambleAnswer`] on the wire, in bytes.
pub const ANSWER_BYTES: usize = 8;

/// Names one move on all its connections; drawn by the destination, told over the control
/// connection, so that a page connection can only join a move whose source it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct MoveToken(pub [u8; 16]);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Control messages of one move.
    Control,
    /// Page stream `stream` of the move `token`.
    Pages {
        /// Number of the stream, from 0.
        stream: u16,
        /// The move it belongs to.
        token: MoveToken,
    },
    /// Owed pages of the move `token` that somebody waits for.
    Urgent {
        /// The move it belongs to.
        token: MoveToken,
    },
    /// One of the connections over which the hypervisors of the move `token` copy the guest.
    Native {
        /// Number of the connection, from 0.
        channel: u16,
        /// The move it belongs to.
        token: MoveToken,
    },
    /// A trial of the link, of no move: 64 KiB at a time, each answered with one byte.
    Probe,
    /// A question before a move, and its answer: see [`crate::inquiry`].
    Inquiry,
    /// What the destination of the move `token` can get by itself: see [`crate::known`].
    Known {
        /// The move it belongs to.
        token: MoveToken,
    },
}

/// What the connecting side says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// Oldest version it speaks.
    pub version_min: u16,
    /// Newest version it speaks.
    pub version_max: u16,
    /// What the connection is for.
    pub role: Role,
}

/// What the accepting side answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreambleAnswer {
    /// Go on in this version.
    Welcome {
        /// The version both speak.
        version: u16,
    },
    /// No version in common; the connection ends.
    NoCommonVersion {
        /// The newest version the destination speaks.
        newest: u16,
    },
    /// No such move, or not from this peer; the connection ends.
    UnknownMove,
}

/// Why the first bytes of a connection are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PreambleError {
    /// Not this protocol.
    #[error("the peer does not speak this protocol")]
    Magic,
    /// A version range from a higher to a lower number.
    #[error("the peer's versions run from {min} to {max}")]
    Versions {
        /// Its oldest.
        min: u16,
        /// Its newest.
        max: u16,
    },
    /// A role or an answer that this release does not know.
    #[error("unknown code {0}")]
    Code(u16),
    /// Bytes that must be zero are not.
    #[error("reserved bytes of a preamble are not zero")]
    Reserved,
    /// No version in common.
    #[error(
        "no protocol version in common: the peer speaks up to version {theirs}, this host {VERSION_MIN} to {VERSION_MAX}; \
         upgrade Sterna on {}",
        older(*theirs)
    )]
    NoCommonVersion {
        /// The newest version the peer speaks.
        theirs: u16,
    },
    /// The destination knows no such move.
    #[error("the peer knows no such move")]
    UnknownMove,
}

/// Where Sterna must be upgraded, with a peer whose newest version is `theirs` and none of ours.
fn older(theirs: u16) -> &'static str {
    if theirs < VERSION_MIN { "the peer" } else { "this host" }
}

impl Preamble {
    /// The preamble of this release for a connection of `role`.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self { version_min: VERSION_MIN, version_max: VERSION_MAX, role }
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.version_min.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.version_max.to_le_bytes());
        match self.role {
            Role::Control => bytes[8] = 1,
            Role::Probe => bytes[8] = 5,
            Role::Inquiry => bytes[8] = 6,
            Role::Pages { stream, token } => {
                bytes[8] = 2;
                bytes[10..12].copy_from_slice(&stream.to_le_bytes());
                bytes[12..28].copy_from_slice(&token.0);
            }
            Role::Urgent { token } => {
                bytes[8] = 3;
                bytes[12..28].copy_from_slice(&token.0);
            }
            Role::Known { token } => {
                bytes[8] = 7;
                bytes[12..28].copy_from_slice(&token.0);
            }
            Role::Native { channel, token } => {
                bytes[8] = 4;
                bytes[10..12].copy_from_slice(&channel.to_le_bytes());
                bytes[12..28].copy_from_slice(&token.0);
            }
        }
        bytes
    }

    /// Reads the bytes on the wire. What a connection is for is read only of a peer that has a version of ours: others may
    /// have roles that this release does not know.
    ///
    /// # Errors
    /// When they are no preamble, or no version is in common.
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, PreambleError> {
        if bytes[0..4] != MAGIC {
            return Err(PreambleError::Magic);
        }
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (min, max) = (word(4), word(6));
        if min == 0 || min > max {
            return Err(PreambleError::Versions { min, max });
        }
        if max < VERSION_MIN || min > VERSION_MAX {
            return Err(PreambleError::NoCommonVersion { theirs: max });
        }
        let role = match bytes[8] {
            1..=7 if bytes[9] != 0 => return Err(PreambleError::Reserved),
            1 | 5 | 6 if bytes[10..] != [0; 18] => return Err(PreambleError::Reserved),
            3 | 7 if bytes[10..12] != [0; 2] => return Err(PreambleError::Reserved),
            1 => Role::Control,
            5 => Role::Probe,
            6 => Role::Inquiry,
            role @ (2..=4 | 7) => {
                let mut token = [0; 16];
                token.copy_from_slice(&bytes[12..28]);
                let token = MoveToken(token);
                match role {
                    2 => Role::Pages { stream: word(10), token },
                    3 => Role::Urgent { token },
                    7 => Role::Known { token },
                    _ => Role::Native { channel: word(10), token },
                }
            }
            other => return Err(PreambleError::Code(other.into())),
        };
        Ok(Self { version_min: min, version_max: max, role })
    }

    /// The newest version both sides speak: there is one with whom a preamble was read of.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version_max.min(VERSION_MAX)
    }
}

impl PreambleAnswer {
    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; ANSWER_BYTES] {
        let (version, status) = match self {
            Self::Welcome { version } => (version, 1u16),
            Self::NoCommonVersion { newest } => (newest, 2),
            Self::UnknownMove => (0, 3),
        };
        let mut bytes = [0; ANSWER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&version.to_le_bytes());
        bytes[6..8].copy_from_slice(&status.to_le_bytes());
        bytes
    }

    /// Reads the answer: the version to speak.
    ///
    /// # Errors
    /// When the bytes are no answer, or the answer is no.
    pub fn decode(bytes: &[u8; ANSWER_BYTES]) -> Result<u16, PreambleError> {
        if bytes[0..4] != MAGIC {
            return Err(PreambleError::Magic);
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        match u16::from_le_bytes([bytes[6], bytes[7]]) {
            1 if (VERSION_MIN..=VERSION_MAX).contains(&version) => Ok(version),
            // Zero is what destinations of version 1 have answered that told no version.
            1 | 2 => Err(PreambleError::NoCommonVersion { theirs: version.max(1) }),
            3 => Err(PreambleError::UnknownMove),
            other => Err(PreambleError::Code(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_preamble_survives_the_wire() {
        let token = MoveToken([9; 16]);
        for role in [
            Role::Control,
            Role::Pages { stream: 7, token },
            Role::Urgent { token },
            Role::Native { channel: 3, token },
            Role::Probe,
            Role::Inquiry,
            Role::Known { token },
        ] {
            let preamble = Preamble::new(role);
            assert_eq!(Preamble::decode(&preamble.encode()), Ok(preamble));
        }
    }

    #[test]
    fn bytes_that_mean_nothing_yet_are_refused() {
        let pages = Role::Pages { stream: 7, token: MoveToken([9; 16]) };
        let urgent = Role::Urgent { token: MoveToken([9; 16]) };
        let known = Role::Known { token: MoveToken([9; 16]) };
        let native = Role::Native { channel: 3, token: MoveToken([9; 16]) };
        for (role, reserved) in [
            (Role::Control, 9..PREAMBLE_BYTES),
            (Role::Probe, 9..PREAMBLE_BYTES),
            (Role::Inquiry, 9..PREAMBLE_BYTES),
            (pages, 9..10),
            (urgent, 9..12),
            (known, 9..12),
            (native, 9..10),
        ] {
            for at in reserved {
                let mut bytes = Preamble::new(role).encode();
                bytes[at] = 1;
                assert_eq!(Preamble::decode(&bytes), Err(PreambleError::Reserved), "byte {at}");
            }
        }
    }

    fn of_versions(version_min: u16, version_max: u16) -> [u8; PREAMBLE_BYTES] {
        Preamble { version_min, version_max, role: Role::Control }.encode()
    }

    #[test]
    fn versions_are_negotiated_to_the_newest_common_one() {
        let version =
            |min, max| Preamble::decode(&of_versions(min, max)).map(|read| read.version());
        assert_eq!(version(1, 9), Ok(VERSION_MAX));
        assert_eq!(version(VERSION_MIN, VERSION_MAX), Ok(VERSION_MAX));
        let newer = PreambleError::NoCommonVersion { theirs: 9 };
        assert_eq!(version(VERSION_MAX + 1, 9), Err(newer));
    }

    #[test]
    fn a_peer_without_a_version_in_common_is_told_so_whatever_its_connection_is_for() {
        let mut bytes = of_versions(VERSION_MAX + 1, VERSION_MAX + 3);
        (bytes[8], bytes[9]) = (200, 1);
        let error = Preamble::decode(&bytes).unwrap_err();
        assert_eq!(error, PreambleError::NoCommonVersion { theirs: VERSION_MAX + 3 });
    }

    #[test]
    fn an_error_names_both_versions_and_the_host_to_upgrade() {
        let newer = PreambleError::NoCommonVersion { theirs: VERSION_MAX + 3 }.to_string();
        let theirs = format!("the peer speaks up to version {}", VERSION_MAX + 3);
        let ours = format!("this host {VERSION_MIN} to {VERSION_MAX}");
        assert!(newer.contains(&theirs) && newer.contains(&ours), "{newer}");
        assert!(newer.ends_with("upgrade Sterna on this host"), "{newer}");
        let older = PreambleError::NoCommonVersion { theirs: VERSION_MIN - 1 }.to_string();
        assert!(older.ends_with("upgrade Sterna on the peer"), "{older}");
    }

    #[test]
    fn a_welcome_to_a_version_we_do_not_speak_is_refused() {
        let theirs = VERSION_MAX + 1;
        let none = Err(PreambleError::NoCommonVersion { theirs });
        let welcome = PreambleAnswer::Welcome { version: theirs };
        assert_eq!(PreambleAnswer::decode(&welcome.encode()), none);
        let refusal = PreambleAnswer::NoCommonVersion { newest: theirs };
        assert_eq!(PreambleAnswer::decode(&refusal.encode()), none);
        let silent = PreambleAnswer::NoCommonVersion { newest: 0 };
        let first = Err(PreambleError::NoCommonVersion { theirs: 1 });
        assert_eq!(PreambleAnswer::decode(&silent.encode()), first);
        let unknown = PreambleAnswer::UnknownMove.encode();
        assert_eq!(PreambleAnswer::decode(&unknown), Err(PreambleError::UnknownMove));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in any::<[u8; PREAMBLE_BYTES]>()) {
            if let Ok(preamble) = Preamble::decode(&bytes) {
                prop_assert_eq!(preamble.encode(), bytes);
            }
        }
    }
}
