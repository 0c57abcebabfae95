//! Pages that a host has already when a guest comes to it: of guests of its kind that run here, of disks that
//! the guest has here as well as where it comes from, and of its own RAM, kept when it left (memory reuse: Akiyama et al., CLOUD 2012; Knauth and Fetzer, VeCycle,
//! Middleware 2015).
//!
//! Nothing is trusted: whoever reads a page makes sure of its hash.
//!
//! # Guests that run here
//!
//! [`RunningGuests`] is an index of what their RAM held when a guest began to come, made within a given time.
//! What they have written since is not found, or found wrong.
//!
//! # Disks
//!
//! [`CachedBlocks`] tells the source which blocks of the guest's disks hold what, [`SharedDisks`] reads them at
//! the destination (Jo et al., VEE 2013, who watch the guest's requests instead of hashing what is cached).
//!
//! # Kept images
//!
//! ```text
//!   a guest leaves ─▶ ImageStore::keep ─▶ <guest>.writing ─▶ <guest>.image
//!   it comes back  ─▶ ImageStore::find ─▶ Image: what is there, and its pages by content
//!   it runs here   ─▶ ImageStore::remove
//! ```
//!
//! An image is a set of pages, not a copy of a guest: each content is there once, zero pages and those that
//! are likely to change are not.
//!
//! **At rest** images are sealed with AES-256-GCM under keys that stand only in a file of the runtime folder,
//! which does not survive a reboot. A disk that is stolen or thrown away tells nothing; images whose keys are
//! gone are removed when the store is opened.
//!
//! **Budget.** All images together have at most the bytes that the store was given. Room is made by removing
//! the oldest; an image that does not fit by itself ends where the room does.

#![forbid(unsafe_code)]

mod disks;
mod image;
mod index;
mod keys;
mod running;
mod store;
mod union;
mod writing;

pub use disks::{CachedBlocks, Places, SharedDisks};
pub use image::Image;
pub use index::Effort;
pub use keys::fresh_hasher;
pub use running::RunningGuests;
pub use store::{ImageInfo, ImageStore, Kept};
pub use union::Union;

use std::io;
use thiserror::Error;

/// Why an image cannot be kept or read.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file system.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file is not what its name says, was damaged, or sealed under other keys.
    #[error("this is no image of these keys")]
    Unreadable,
    /// The guest's memory cannot be read.
    #[error("cannot read the guest's memory")]
    Memory(#[from] sterna_sys::memory::MemoryError),
    /// It is wanted no more.
    #[error("the image is wanted no more")]
    Cancelled,
}

impl ImageError {
    fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
