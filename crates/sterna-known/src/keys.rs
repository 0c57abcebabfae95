//! The secrets of a host's images.

use crate::ImageError;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use sterna_page::sent::ContentHasher;
use uuid::Uuid;

/// Bytes of a seal's tag.
pub(crate) const TAG_BYTES: usize = 16;

const KEY_BYTES: usize = 32;

/// A hasher under a key that nobody else has.
///
/// # Errors
/// If there are no random numbers.
pub fn fresh_hasher() -> io::Result<ContentHasher> {
    random::<KEY_BYTES>().map(ContentHasher::new)
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| io::Error::other("no random numbers"))
}

/// Under which all images of a host are hashed and sealed.
pub(crate) struct Keys {
    pub(crate) hasher: ContentHasher,
    master: [u8; KEY_BYTES],
}

impl Keys {
    /// Those of `file`; new ones if there is no such file, or none that could be.
    pub(crate) fn open(file: &Path) -> Result<Self, ImageError> {
        let read = fs::read(file).ok().and_then(|bytes| bytes.try_into().ok());
        let bytes: [u8; 2 * KEY_BYTES] = match read {
            Some(bytes) => bytes,
            None => Self::draw(file).map_err(ImageError::io("write the keys of kept images"))?,
        };
        let (hashing, master) = bytes.split_at(KEY_BYTES);
        let half = |bytes: &[u8]| bytes.try_into().expect("half of the bytes");
        Ok(Self { hasher: ContentHasher::new(half(hashing)), master: half(master) })
    }

    fn draw(file: &Path) -> io::Result<[u8; 2 * KEY_BYTES]> {
        let bytes = random()?;
        // Beside it and renamed: half a file of keys is none.
        let new = file.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        written.write_all(&bytes)?;
        fs::rename(&new, file)?;
        Ok(bytes)
    }

    /// The key of one image; no other image has it.
    pub(crate) fn seal_of(&self, image: Uuid) -> Seal {
        let key = blake3::keyed_hash(&self.master, image.as_bytes());
        let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).expect("a key of 32 bytes");
        Seal(LessSafeKey::new(key))
    }
}

/// Seals the parts of one image. A part's number is used once only.
pub(crate) struct Seal(LessSafeKey);

impl Seal {
    fn nonce(part: u64) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&part.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals `bytes` in their place, and puts the tag into `tag`. `beside` is not sealed, but cannot be
    /// changed either.
    pub(crate) fn close(&self, part: u64, beside: &[u8], bytes: &mut [u8], tag: &mut [u8]) {
        let sealed: Tag = self
            .0
            .seal_in_place_separate_tag(Self::nonce(part), Aad::from(beside), bytes)
            .expect("parts are far shorter than what can be sealed at once");
        tag.copy_from_slice(sealed.as_ref());
    }

    /// Opens `sealed`, which ends with its tag, in its place.
    pub(crate) fn open<'a>(
        &self,
        part: u64,
        beside: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a [u8], ImageError> {
        let opened = self.0.open_in_place(Self::nonce(part), Aad::from(beside), sealed);
        opened.map(|bytes| &*bytes).map_err(|_| ImageError::Unreadable)
    }
}
