//! Users for hypervisors: each guest's is its own while it is here.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use sterna_sys::process;
use sterna_vmm::VmmError;
use sterna_vmm::qemu::UserId;

/// Numbers that the kernel, or what maps users, takes for none.
const NOBODY: [u32; 3] = [65_534, 65_535, u32::MAX];

/// Files that say which numbers this host has given away: in which of their fields, and whether a count follows.
const GIVEN_AWAY: [(&str, usize, Follows); 4] = [
    ("passwd", 2, Follows::Nothing),
    ("group", 2, Follows::Nothing),
    ("subuid", 1, Follows::Count),
    ("subgid", 1, Follows::Count),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    Nothing,
    Count,
}

/// User ids that guests may have, and the group ids of the same numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestUsers(RangeInclusive<u32>);

impl fmt::Display for GuestUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

/// Why ids cannot be those of guests.
#[derive(Debug, thiserror::Error)]
pub enum GuestUsersError {
    /// Not two numbers.
    #[error("{0:?} is not FIRST-LAST, such as {SUGGESTED}")]
    Form(String),
    /// Numbers of whoever is privileged, or nobody.
    #[error("{number} cannot be a guest's: take others, such as {SUGGESTED}")]
    Special {
        /// The number.
        number: u32,
    },
    /// They are somebody's.
    #[error("{number} is given away in {file}: take others for guest-uids, such as {SUGGESTED}")]
    GivenAway {
        /// The first number that is.
        number: u32,
        /// Where it says so.
        file: PathBuf,
    },
    /// It is not known whose they are.
    #[error("cannot read {file}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody but root starts processes as other users.
    #[error("guest-uids needs an agent that runs as root: start it so, or leave them out")]
    NotRoot,
}

/// Ids that a usual host gives nobody: systemd's containers end below them (`systemd.io/UIDS-GIDS`), and those of subordinate
/// users far below.
pub const SUGGESTED: &str = "1900000000-1900004095";

impl FromStr for GuestUsers {
    type Err = GuestUsersError;

    fn from_str(text: &str) -> Result<Self, GuestUsersError> {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let ends = text.split_once('-').and_then(|(a, b)| Some((number(a)?, number(b)?)));
        let (first, last) =
            ends.filter(|(a, b)| a <= b).ok_or_else(|| GuestUsersError::Form(text.into()))?;
        let range = first..=last;
        let special = [0].into_iter().chain(NOBODY).find(|number| range.contains(number));
        match special {
            Some(number) => Err(GuestUsersError::Special { number }),
            None => Ok(Self(range)),
        }
    }
}

impl GuestUsers {
    /// Whether this host can give them to guests, as far as its files in `/etc` say, and this process's rights.
    ///
    /// # Errors
    /// With the first reason why not.
    pub fn check(&self) -> Result<(), GuestUsersError> {
        if !rustix::process::geteuid().is_root() {
            return Err(GuestUsersError::NotRoot);
        }
        self.check_in(Path::new("/etc"))
    }

    fn check_in(&self, folder: &Path) -> Result<(), GuestUsersError> {
        for (name, field, follows) in GIVEN_AWAY {
            let file = folder.join(name);
            let text = match std::fs::read_to_string(&file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(GuestUsersError::Unreadable { file, source }),
                Ok(text) => text,
            };
            if let Some(number) = text.lines().find_map(|line| self.given(line, field, follows)) {
                return Err(GuestUsersError::GivenAway { number, file });
            }
        }
        Ok(())
    }

    /// The first of these numbers that a line gives away.
    fn given(&self, line: &str, field: usize, follows: Follows) -> Option<u32> {
        let mut fields = line.split(':').skip(field).map(|field| field.trim().parse::<u32>().ok());
        let first = fields.next()??;
        let count = match follows {
            Follows::Nothing => 1,
            Follows::Count => fields.next()??,
        };
        let last = first.saturating_add(count.checked_sub(1)?);
        let number = first.max(*self.0.start());
        (number <= last && self.0.contains(&number)).then_some(number)
    }
}

/// Which users are guests' now.
#[derive(Debug)]
pub(crate) struct Users {
    range: GuestUsers,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    users: BTreeSet<UserId>,
    /// The one that was given last.
    last: Option<u32>,
}

/// A user that is one guest's until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    users: Arc<Users>,
    pub(crate) user: UserId,
}

impl Users {
    pub(crate) fn new(range: GuestUsers) -> Arc<Self> {
        Arc::new(Self { range, taken: Mutex::default() })
    }

    /// A user that no guest has and no process is. The one given longest ago comes first: what an ended guest may have left
    /// is nobody's for as long as can be.
    pub(crate) fn lend(self: &Arc<Self>) -> Result<Lease, VmmError> {
        let mut taken = self.lock();
        let in_use = process::users().map_err(|source| VmmError::System {
            operation: "looking for a user that no process is",
            source,
        })?;
        let (first, last) = (*self.range.0.start(), *self.range.0.end());
        let after = taken.last.filter(|given| *given < last).map_or(first, |given| given + 1);
        let mut numbers = (after..=last).chain(first..after);
        let is_free =
            |user: &UserId| !taken.users.contains(user) && !in_use.contains(&user.number());
        let free = numbers.find_map(|number| UserId::new(number).filter(is_free));
        let user = free.ok_or_else(|| VmmError::Refused {
            operation: "choosing a user for the guest",
            detail: format!("all from {first} to {last} are in use; give guest-uids more of them"),
        })?;
        taken.users.insert(user);
        taken.last = Some(user.number());
        Ok(Lease { users: Arc::clone(self), user })
    }

    /// The user of a guest that is on record.
    pub(crate) fn lend_again(self: &Arc<Self>, user: UserId) -> Lease {
        self.hold(user);
        Lease { users: Arc::clone(self), user }
    }

    /// This user is given to nobody until a lease of it ends.
    pub(crate) fn hold(&self, user: UserId) {
        self.lock().users.insert(user);
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.users.lock().users.remove(&self.user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> GuestUsers {
        text.parse().unwrap()
    }

    #[test]
    fn only_ids_that_can_be_a_guests_are_taken() {
        range(SUGGESTED);
        range("70000-70000");
        for text in ["", "7", "9-8", "a-b", "-5-9", "1-4294967296"] {
            let error = text.parse::<GuestUsers>().unwrap_err();
            assert!(matches!(error, GuestUsersError::Form(_)), "{text:?}: {error}");
        }
        for text in ["0-9", "65000-66000", "70000-4294967295"] {
            let error = text.parse::<GuestUsers>().unwrap_err();
            assert!(matches!(error, GuestUsersError::Special { .. }), "{text:?}: {error}");
        }
    }

    #[test]
    fn ids_that_the_host_has_given_away_are_not_guests() {
        let folder = tempfile::tempdir().unwrap();
        let etc = folder.path();
        let users = range("70000-70009");
        users.check_in(etc).unwrap();
        let given = |file: &str, text: &str| {
            std::fs::write(etc.join(file), text).unwrap();
            let checked = users.check_in(etc);
            std::fs::remove_file(etc.join(file)).unwrap();
            match checked {
                Ok(()) => None,
                Err(GuestUsersError::GivenAway { number, file: told }) => {
                    assert_eq!(told, etc.join(file));
                    Some(number)
                }
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(given("passwd", "a:x:69999:1::/:\nb:x:70003:2::/:\n"), Some(70_003));
        assert_eq!(given("group", "a:x:70009:\n"), Some(70_009));
        assert_eq!(given("subuid", "a:60000:10001\n"), Some(70_000));
        assert_eq!(given("subgid", "a:70010:65536\nb:60000:10000\n"), None);
        assert_eq!(given("subuid", "a:0:4294967295\n"), Some(70_000));
        assert_eq!(given("subuid", "\nnonsense\na:b:c\na:70000:0\na:70000\n"), None);
    }

    #[test]
    fn a_user_is_one_guests_until_that_is_over_and_then_the_last_to_be_given() {
        let users = Users::new(range("1999999900-1999999902"));
        let number = |lease: &Lease| lease.user.number() - 1_999_999_900;
        let (first, second) = (users.lend().unwrap(), users.lend().unwrap());
        assert_eq!((number(&first), number(&second)), (0, 1));
        drop(first);
        let third = users.lend().unwrap();
        assert_eq!(number(&third), 2, "one that was not given yet comes first");
        let again = users.lend().unwrap();
        assert_eq!(number(&again), 0);
        let error = users.lend().unwrap_err().to_string();
        assert!(error.contains("guest-uids"), "{error}");
        drop(second);
        users.hold(UserId::new(1_999_999_901).unwrap());
        assert!(users.lend().is_err(), "it is on record");
        drop(users.lend_again(UserId::new(1_999_999_901).unwrap()));
        assert_eq!(number(&users.lend().unwrap()), 1);
    }

    #[test]
    fn a_user_that_a_process_is_is_no_guests() {
        use std::os::unix::process::CommandExt;
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root changes users");
        }
        let users = Users::new(range("1999999910-1999999911"));
        let mut child =
            std::process::Command::new("sleep").arg("1000").uid(1_999_999_910).spawn().unwrap();
        assert_eq!(users.lend().unwrap().user.number(), 1_999_999_911);
        assert_eq!(users.lend().unwrap().user.number(), 1_999_999_911);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
