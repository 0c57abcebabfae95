//! Codes by which hosts join: where, whom to trust, and a secret.

use crate::PkiError;
use data_encoding::BASE32_NOPAD;
use rand::Rng as _;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;

/// Bytes of an authority's fingerprint. An authority that has the same ones takes 2^128 tries to make.
const FINGERPRINT_BYTES: usize = 16;
/// Bytes of a secret: 80 bits, which nobody guesses in ten minutes over a network.
const SECRET_BYTES: usize = 10;
/// Letters between two dashes.
const GROUP: usize = 6;

/// What only the authority's host and whoever was given the code know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// A new one.
    #[must_use]
    pub fn draw() -> Self {
        let mut bytes = [0; SECRET_BYTES];
        rand::rng().fill(&mut bytes);
        Self(bytes)
    }

    /// What is kept instead of it. Comparing these takes as long wherever they differ.
    #[must_use]
    pub fn hash(&self) -> blake3::Hash {
        blake3::hash(&self.0)
    }

    pub(crate) fn text(&self) -> String {
        BASE32_NOPAD.encode(&self.0)
    }

    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let bytes = BASE32_NOPAD.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// By what an authority is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; FINGERPRINT_BYTES]);

impl Fingerprint {
    pub(crate) fn of(authority: &CertificateDer<'_>) -> Self {
        let mut bytes = [0; FINGERPRINT_BYTES];
        bytes.copy_from_slice(&blake3::hash(authority).as_bytes()[..FINGERPRINT_BYTES]);
        Self(bytes)
    }
}

/// A code. As text it is `HOST[:PORT]/LETTERS`; letters may be small, and dashes may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinCode {
    /// Where hosts join.
    pub at: String,
    pub(crate) authority: Fingerprint,
    pub(crate) secret: Secret,
}

impl JoinCode {
    /// A code for joining at `at` the cluster of an authority.
    #[must_use]
    pub fn new(at: String, authority: &CertificateDer<'_>, secret: Secret) -> Self {
        Self { at, authority: Fingerprint::of(authority), secret }
    }
}

impl fmt::Display for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = BASE32_NOPAD.encode(&[&self.authority.0[..], &self.secret.0].concat());
        write!(f, "{}/", self.at)?;
        for (index, letter) in letters.chars().enumerate() {
            if index > 0 && index % GROUP == 0 {
                f.write_str("-")?;
            }
            write!(f, "{letter}")?;
        }
        Ok(())
    }
}

impl FromStr for JoinCode {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let is_none = || PkiError::not(format!("{text:?}"), "code of `sterna host invite`");
        let (at, letters) = text.trim().rsplit_once('/').ok_or_else(is_none)?;
        let letters = letters.replace('-', "").to_ascii_uppercase();
        let bytes = BASE32_NOPAD.decode(letters.as_bytes()).map_err(|_| is_none())?;
        let (authority, secret) = bytes.split_at_checked(FINGERPRINT_BYTES).ok_or_else(is_none)?;
        let authority = Fingerprint(authority.try_into().map_err(|_| is_none())?);
        let secret = Secret(secret.try_into().map_err(|_| is_none())?);
        if at.is_empty() {
            return Err(is_none());
        }
        Ok(Self { at: at.to_owned(), authority, secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(at: &str) -> JoinCode {
        JoinCode::new(at.into(), &CertificateDer::from(vec![1, 2, 3]), Secret::draw())
    }

    #[test]
    fn a_code_is_read_as_it_was_shown_and_as_people_retype_it() {
        for at in ["192.0.2.1", "a.example.org:9", "[fd00::1]:7402", "fd00::1"] {
            let code = code(at);
            let text = code.to_string();
            assert_eq!(text.parse::<JoinCode>().unwrap(), code, "{text}");
            let retyped = format!(" {}\n", text.to_lowercase().replace('-', ""));
            assert_eq!(retyped.parse::<JoinCode>().unwrap(), code, "{retyped}");
        }
    }

    #[test]
    fn a_secret_is_not_in_logs() {
        let code = code("a");
        assert!(!format!("{code:?}").contains(&code.secret.text()));
    }

    proptest! {
        #[test]
        fn what_is_no_code_is_an_error(text in ".{0,80}", cut in 0usize..50) {
            let _ = text.parse::<JoinCode>();
            let whole = code("a").to_string();
            if let Some(part) = whole.get(..cut).filter(|part| part.len() < whole.len()) {
                prop_assert!(part.parse::<JoinCode>().is_err(), "{part}");
            }
        }
    }
}
