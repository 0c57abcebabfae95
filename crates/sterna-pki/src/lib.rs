//! Who belongs to a cluster: its certificate authority, its register of hosts, and how a host joins.
//!
//! ```text
//!   authority ── signs ──▶ certificates of hosts and users     recorded in issued/ before they are handed over
//!             ── signs ──▶ the list of those no longer accepted
//!
//!   new host ── code ──▶ join ── request, secret ──▶ authority's host
//!                             ◀── certificate, list ──
//! ```
//!
//! What hosts do with their certificates is `sterna_engine::identity`.

#![forbid(unsafe_code)]

mod authority;
mod certificate;
mod code;
mod error;
mod files;
pub mod join;
mod revoked;
#[cfg(test)]
mod tests;

pub use authority::{AUTHORITY_FOLDER, AUTHORITY_KEY_FILE, Authority, SignedIdentity};
pub use certificate::{HostCertificate, Subject, Validity};
pub use code::{JoinCode, Secret};
pub use error::PkiError;
pub use files::replace;
pub use revoked::RevokedList;
