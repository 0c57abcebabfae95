//! The folder in which a guest's sockets and log lie while it runs.
//!
//! It is root's alone. A QEMU that runs as a user of its own begins in a folder within, [`Folder::own`], which it
//! enters by a descriptor: it needs no folder above that. There it makes its sockets, and may do so only while that is
//! asked of it and its guest cannot have taken it over; then they are moved out here, so that whoever connects to one finds it
//! and nothing that was put in its place.

use super::cgroup;
use super::user::UserId;
use crate::VmmError;
use crate::tracking::system;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

/// Bytes of a unix socket's path at most, without the ending zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Rights to a QEMU's own folder: while it is lent, and else. It may always look up what it knows there.
const LENT: u32 = 0o700;
const OWN: u32 = 0o711;

/// A guest's runtime folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// The folder of a guest that exists already.
    pub(super) fn existing(path: PathBuf) -> Self {
        Self(path)
    }

    /// Makes the folder, for this user only, and marks it. One that is left over from a dead guest is emptied.
    pub(super) fn create(path: PathBuf) -> Result<Self, VmmError> {
        let refused = |detail: String| VmmError::Refused { operation: "starting QEMU", detail };
        let text = path.as_os_str().as_bytes();
        // The loader splits LD_PRELOAD at colons and spaces; QEMU splits options at commas.
        let unsafe_byte = |byte: &u8| b":, \t\n".contains(byte);
        if !path.is_absolute() || text.iter().any(unsafe_byte) {
            return Err(refused(format!(
                "runtime folder {path:?} must be absolute, without colons, commas and spaces"
            )));
        }
        let folder = Self(path);
        let longest = folder.transfer_socket();
        if longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(refused(format!("socket path {longest:?} is too long")));
        }
        if folder.0.exists() {
            std::fs::remove_dir_all(&folder.0).map_err(system("emptying the runtime folder"))?;
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder.0)
            .map_err(system("making the runtime folder"))?;
        File::create(folder.mark()).map_err(system("marking the runtime folder"))?;
        Ok(folder)
    }

    /// Says that nobody has yet on record what is started here.
    fn mark(&self) -> PathBuf {
        self.0.join("not-on-record")
    }

    /// Whether what is started here was never on record.
    pub(super) fn is_marked(&self) -> bool {
        self.mark().exists()
    }

    /// What was started here is on record. Harmless if that was said before.
    pub(super) fn unmark(&self) -> Result<(), VmmError> {
        remove_file(&self.mark(), "taking the mark from the runtime folder")
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The monitor of whoever moves the guest.
    pub(super) fn mover_socket(&self) -> PathBuf {
        self.0.join("mover.qmp")
    }

    /// The monitor for everything else.
    pub(super) fn control_socket(&self) -> PathBuf {
        self.0.join("control.qmp")
    }

    pub(super) fn console_socket(&self) -> PathBuf {
        self.0.join("console.sock")
    }

    /// Where a source listens for QEMU's stream, or a destination's QEMU for ours.
    pub(super) fn transfer_socket(&self) -> PathBuf {
        self.0.join("transfer.sock")
    }

    /// The sockets that QEMU makes when it starts.
    pub(super) fn served(&self) -> [PathBuf; 3] {
        [self.mover_socket(), self.control_socket(), self.console_socket()]
    }

    pub(super) fn log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }

    /// Says that another QEMU uses this one's taps; returns by which name this one, run by `user`, finds what says so.
    pub(super) fn mark_taps_in_use(&self, user: Option<UserId>) -> Result<PathBuf, VmmError> {
        let (mark, there) = self.taps_in_use(user);
        File::create(&mark).map_err(system("marking taps as in use"))?;
        Ok(there)
    }

    /// The taps are this QEMU's own from now on. Harmless if they were.
    pub(super) fn unmark_taps(&self, user: Option<UserId>) -> Result<(), VmmError> {
        remove_file(&self.taps_in_use(user).0, "taking the mark from taps")
    }

    fn taps_in_use(&self, user: Option<UserId>) -> (PathBuf, PathBuf) {
        self.found_by(user, "taps-in-use")
    }

    /// Where a file for QEMU lies, and by which name QEMU, run by `user`, finds it.
    fn found_by(&self, user: Option<UserId>, name: &str) -> (PathBuf, PathBuf) {
        match user {
            None => (self.0.join(name), self.0.join(name)),
            Some(_) => (self.own().join(name), Path::new(".").join(name)),
        }
    }

    /// Where a QEMU begins that runs as a user of its own.
    fn own(&self) -> PathBuf {
        self.0.join("own")
    }

    /// Makes that folder, lent to `user` until [`Folder::while_lent`] ends: it makes sockets as soon as it begins.
    /// Whoever has a descriptor of the folder enters it, and through nothing else.
    pub(super) fn make_own(&self, user: UserId) -> Result<OwnedFd, VmmError> {
        let make = || {
            std::fs::create_dir(self.own())?;
            self.give_own(user.number(), LENT)?;
            File::open(self.own()).map(OwnedFd::from)
        };
        make().map_err(system("making QEMU's own folder"))
    }

    /// Lets the QEMU of `user` make sockets while `make` runs, and moves these `sockets` of this folder to their places.
    pub(super) fn while_lent<T>(
        &self,
        user: UserId,
        sockets: &[PathBuf],
        make: impl FnOnce() -> Result<T, VmmError>,
    ) -> Result<T, VmmError> {
        let failed = system("lending QEMU its folder");
        self.give_own(user.number(), LENT).map_err(&failed)?;
        let made = make();
        self.give_own(0, OWN).map_err(&failed)?;
        let made = made?;
        for socket in sockets {
            self.take(user, socket).map_err(system("taking over a socket of QEMU"))?;
        }
        Ok(made)
    }

    fn give_own(&self, owner: u32, mode: u32) -> io::Result<()> {
        lchown(self.own(), Some(owner), Some(owner))?;
        std::fs::set_permissions(self.own(), Permissions::from_mode(mode))
    }

    /// Moves a socket here that `user` has made, and nothing else: what lies here is what root connects to.
    fn take(&self, user: UserId, socket: &Path) -> io::Result<()> {
        let name = socket.file_name().ok_or(ErrorKind::InvalidInput)?;
        std::fs::rename(self.own().join(name), socket)?;
        let found = socket.symlink_metadata()?;
        if found.file_type().is_socket() && found.uid() == user.number() {
            return Ok(());
        }
        std::fs::remove_file(socket)?;
        Err(io::Error::other(format!("{} is no socket of user {user}", socket.display())))
    }

    /// Puts a socket of this folder where the QEMU of `user` finds it, and may connect.
    pub(super) fn offer(&self, user: UserId, socket: &Path) -> Result<(), VmmError> {
        let offer = || {
            let name = socket.file_name().ok_or(ErrorKind::InvalidInput)?;
            lchown(socket, Some(user.number()), Some(user.number()))?;
            std::fs::rename(socket, self.own().join(name))
        };
        offer().map_err(system("handing QEMU a socket"))
    }

    /// Removes the folder and all in it, and the cgroup of what has run there. Harmless when they are gone.
    pub(super) fn remove(&self) -> Result<(), VmmError> {
        cgroup::remove(self);
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(system("removing the runtime folder")(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Removes a file, if there is one.
fn remove_file(path: &Path, operation: &'static str) -> Result<(), VmmError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(system(operation)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_was_put_in_a_sockets_place_is_not_taken_for_it() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root gives files away");
        }
        let base = tempfile::tempdir().unwrap();
        let folder = Folder::create(base.path().join("a")).unwrap();
        let (user, other) = (UserId::new(61_002).unwrap(), UserId::new(61_003).unwrap());
        folder.make_own(user).unwrap();
        let socket = folder.control_socket();
        let inside = folder.own().join("control.qmp");
        let lend = |make: &dyn Fn()| {
            folder.while_lent(user, std::slice::from_ref(&socket), || {
                assert_eq!(folder.own().metadata().unwrap().uid(), user.number());
                make();
                Ok(())
            })
        };
        let bind = |owner: UserId| {
            drop(UnixListener::bind(&inside).unwrap());
            lchown(&inside, Some(owner.number()), None).unwrap();
        };
        let elsewhere = base.path().join("elsewhere");
        drop(UnixListener::bind(&elsewhere).unwrap());
        assert!(lend(&|| ()).is_err(), "there is nothing");
        assert!(lend(&|| std::os::unix::fs::symlink(&elsewhere, &inside).unwrap()).is_err());
        assert!(lend(&|| std::fs::write(&inside, "").unwrap()).is_err());
        assert!(lend(&|| bind(other)).is_err());
        assert!(!socket.exists(), "none of them stays");
        lend(&|| bind(user)).unwrap();
        assert!(socket.exists() && !inside.exists());
        let own = folder.own().metadata().unwrap();
        assert_eq!((own.uid(), own.mode() & 0o777), (0, OWN), "it is no longer lent");
        folder.offer(user, &socket).unwrap();
        assert_eq!(inside.symlink_metadata().unwrap().uid(), user.number());
    }

    #[test]
    fn a_folder_whose_name_would_be_read_as_options_is_refused() {
        let base = tempfile::tempdir().unwrap();
        for name in ["a,b", "a:b", "a b", &"x".repeat(120)] {
            assert!(Folder::create(base.path().join(name)).is_err(), "{name:?}");
        }
        assert!(Folder::create(PathBuf::from("relative")).is_err());
        let folder = Folder::create(base.path().join("good")).unwrap();
        std::fs::write(folder.log(), "old").unwrap();
        let again = Folder::create(base.path().join("good")).unwrap();
        assert!(!again.log().exists(), "nothing is left of the guest before");
        assert!(again.is_marked());
        again.unmark().unwrap();
        again.unmark().unwrap();
        assert!(!again.is_marked());
        again.remove().unwrap();
        again.remove().unwrap();
    }
}
