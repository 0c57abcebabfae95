//! Whatever can be asked of an agent, each once: by method and path, who may, what is sent and what is answered.
//!
//! The server's router, what each role may do, and the document (`docs/openapi.json`) are made of this table. Whoever
//! adds an operation adds it here, serves it, and calls `cargo xtask openapi`.

use crate::content::{Content, Described, Parameter, Type};
use crate::doubt::{DoubtView, ResolveRequest};
use crate::error::ErrorCode::{
    self, AlreadyExists, BadRequest, Changed, Forbidden, Hypervisor, Internal, Invalid, MovedAway,
    NotFound, ShuttingDown, TooLarge, TooMany, TooSlow, Unable, WrongState,
};
use crate::{
    Certificate, CheckRequest, CheckView, ClusterHost, DefineGuest, DefinitionView, EditGuest,
    Event, GuestView, HostInfo, HostRevoked, ImageView, InvitationView, InviteRequest, MoveRequest,
    MoveView, PlanRequest, PlanView, RenewRequest, RunGuest, StartDefined, StartGuest,
    UpgradeRequest, UpgradeView, paths,
};
use std::fmt;

/// Everything that can be asked.
pub const OPERATIONS: &[Operation] = &[
    get(paths::HOST, "showHost", "The host, and what its agent found of it").json::<HostInfo>(),
    get(paths::METRICS, "measure", "What the host has done and has, for Prometheus")
        .raw("application/openmetrics-text"),
    get(paths::EVENTS, "watchEvents", "What happens on the host, as it happens")
        .query(&[AFTER])
        .lines::<Event>(),
    get(paths::GUESTS, "listGuests", "All guests of the host").json::<Vec<GuestView>>(),
    post(paths::GUESTS, "startGuest", "Starts a guest; 200 if it is there already")
        .takes::<StartGuest>()
        .json::<GuestView>()
        .statuses(&[201, 200])
        .fails(&[Invalid, AlreadyExists, Unable, Hypervisor]),
    get(paths::GUEST, "showGuest", "One guest").json::<GuestView>(),
    delete(
        paths::GUEST,
        "deleteGuest",
        "Forgets a guest that does not run; it is shown as it was last",
    )
    .json::<GuestView>()
    .fails(&[WrongState, Hypervisor]),
    post(
        paths::DEFINITIONS,
        "defineGuest",
        "Defines a guest that is not started; 200 if it is there already",
    )
    .takes::<DefineGuest>()
    .json::<GuestView>()
    .statuses(&[201, 200])
    .fails(&[Invalid, AlreadyExists, MovedAway]),
    get(paths::DEFINITION, "showDefinition", "What a guest is started by").json::<DefinitionView>(),
    put(
        paths::DEFINITION,
        "editDefinition",
        "Changes what a guest that does not run is started by",
    )
    .takes::<EditGuest>()
    .json::<DefinitionView>()
    .fails(&[Invalid, WrongState, Changed]),
    post(
        paths::START,
        "startDefined",
        "Starts a guest that is defined; nothing is done if it runs",
    )
    .takes::<StartDefined>()
    .json::<GuestView>()
    .fails(&[Invalid, WrongState, Unable, Hypervisor, ShuttingDown]),
    post(paths::STOP, "stopGuest", "Ends a guest at once; its definition stays")
        .json::<GuestView>()
        .fails(&[WrongState, Hypervisor]),
    get(paths::LOG, "readLog", "What a guest's hypervisor says, or said last")
        .role(Role::Operator)
        .query(&[FOLLOW_LOG])
        .raw("text/plain"),
    get(paths::CONSOLE, "readConsole", "A guest's console, from the recent past on")
        .role(Role::Admin)
        .query(&[FOLLOW])
        .raw(BYTES)
        .fails(&[WrongState]),
    post(paths::CONSOLE, "typeIntoConsole", "Types into a guest's console, at most 64 KiB at once")
        .takes_raw(BYTES)
        .statuses(&[204])
        .fails(&[WrongState, TooLarge]),
    post(paths::RUN, "runGuest", "Lets a guest run that is paused")
        .takes::<RunGuest>()
        .json::<GuestView>()
        .fails(&[WrongState, Hypervisor]),
    post(paths::PAUSE, "pauseGuest", "Makes a guest stand still until it is told to run")
        .json::<GuestView>()
        .fails(&[WrongState, Hypervisor]),
    post(paths::RESET, "resetGuest", "Presses a guest's reset button")
        .json::<GuestView>()
        .fails(&[WrongState, Hypervisor]),
    post(paths::SHUTDOWN, "shutGuestDown", "Presses a guest's power button: its system decides")
        .json::<GuestView>()
        .fails(&[WrongState, Hypervisor]),
    post(paths::UPGRADE, "upgradeGuest", "Gives a running guest a new hypervisor on its host")
        .role(Role::Operator)
        .takes::<UpgradeRequest>()
        .json::<UpgradeView>()
        .fails(&[WrongState, Unable, Hypervisor, ShuttingDown]),
    post(paths::CHECK, "checkMove", "Whether and where a guest could move")
        .role(Role::Operator)
        .takes::<CheckRequest>()
        .json::<CheckView>()
        .fails(&[Invalid, WrongState, Hypervisor]),
    post(paths::PLAN, "planMove", "What moving a guest would cost; takes some seconds")
        .role(Role::Operator)
        .takes::<PlanRequest>()
        .json::<PlanView>()
        .fails(&[Invalid, WrongState, Unable, Hypervisor]),
    post(paths::GUEST_MOVES, "beginMove", "Begins to move a guest to another host")
        .role(Role::Operator)
        .takes::<MoveRequest>()
        .json::<MoveView>()
        .statuses(&[202])
        .fails(&[Invalid, WrongState, AlreadyExists, Unable, Hypervisor, ShuttingDown]),
    get(paths::DOUBT, "showDoubt", "What is in doubt about a guest that may run elsewhere")
        .json::<DoubtView>()
        .fails(&[WrongState]),
    post(paths::DOUBT, "resolveDoubt", "Says where a guest in doubt runs, as was found out")
        .takes::<ResolveRequest>()
        .json::<GuestView>()
        .fails(&[WrongState, Hypervisor]),
    get(paths::MOVES, "listMoves", "All moves from and to the host").json::<Vec<MoveView>>(),
    get(paths::MOVE, "showMove", "One move; waits for news if it is asked to")
        .query(&[WAIT_MS, SEEN])
        .json::<MoveView>(),
    delete(paths::MOVE, "cancelMove", "Asks a move to end")
        .role(Role::Operator)
        .json::<MoveView>()
        .statuses(&[202]),
    get(paths::IMAGES, "listImages", "All kept RAM images, oldest first").json::<Vec<ImageView>>(),
    delete(paths::IMAGE, "dropImage", "Drops a guest's image, by the guest's name or identity")
        .role(Role::Operator)
        .json::<ImageView>(),
    get(paths::REVOKED, "showRevoked", "Certificates that are no longer accepted, as PEM")
        .raw("text/plain")
        .fails(&[NotFound]),
    put(paths::REVOKED, "learnRevoked", "Tells which certificates are no longer accepted")
        .takes_raw("text/plain")
        .statuses(&[204])
        .fails(&[Invalid]),
    get(paths::HOSTS, "listHosts", "All hosts of the cluster; of the authority's host only")
        .json::<Vec<ClusterHost>>()
        .fails(&[NotFound]),
    delete(paths::CLUSTER_HOST, "revokeHost", "Lets a host in no longer, and tells all others")
        .no_host()
        .json::<HostRevoked>()
        .fails(&[WrongState]),
    post(paths::INVITATIONS, "inviteHost", "Invites a host into the cluster")
        .no_host()
        .takes::<InviteRequest>()
        .json::<InvitationView>()
        .statuses(&[201])
        .fails(&[Invalid, NotFound, AlreadyExists, WrongState]),
    post(paths::CERTIFICATES, "renewCertificate", "A new certificate for the host that asks")
        .takes::<RenewRequest>()
        .json::<Certificate>()
        .fails(&[Invalid, NotFound]),
];

const BYTES: &str = "application/octet-stream";

const AFTER: Parameter = Parameter::new::<u64>(
    "after",
    "Goes on behind the event of this number; without it, with the next that happens",
);
const FOLLOW: Parameter =
    Parameter::new::<bool>("follow", "Whether to wait for more output, as without it");
const FOLLOW_LOG: Parameter =
    Parameter::new::<bool>("follow", "Whether to wait for more; not without it");
const WAIT_MS: Parameter = Parameter::new::<u64>(
    "wait_ms",
    "Waits for news for so many milliseconds, 30000 at most; not at all without it",
);
const SEEN: Parameter = Parameter::new::<String>("seen", "The version that is known already");

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Looks.
    Get,
    /// Begins or does something.
    Post,
    /// Replaces something.
    Put,
    /// Changes a part of something.
    Patch,
    /// Ends something.
    Delete,
}

impl Method {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Get, Self::Post, Self::Put, Self::Patch, Self::Delete];

    /// As it is written in a request.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// What a user may do; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look.
    Viewer,
    /// Also move guests.
    Operator,
    /// Everything.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// Whether hosts of the cluster may ask for it, as they may for nearly everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// They may.
    Allowed,
    /// It is for people.
    Refused,
}

/// Something that can be asked.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// The method.
    pub method: Method,
    /// The path, as a pattern.
    pub path: &'static str,
    /// Its name, for programs that are made from the document.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// The least role that it needs.
    pub role: Role,
    /// Whether hosts may ask for it.
    pub hosts: Hosts,
    /// Parameters behind the path.
    pub query: &'static [Parameter],
    /// What is sent.
    pub request: Content,
    /// What is answered.
    pub answer: Content,
    /// Statuses with which that is answered, the usual one first.
    pub statuses: &'static [u16],
    /// How it may fail, beside what any request like it does; see [`Operation::errors`].
    fails: &'static [ErrorCode],
}

/// The operation of a method on a path, which is a pattern.
#[must_use]
pub fn operation(method: &str, path: &str) -> Option<&'static Operation> {
    OPERATIONS.iter().find(|known| known.method.as_str() == method && known.path == path)
}

const fn get(path: &'static str, name: &'static str, summary: &'static str) -> Operation {
    Operation {
        method: Method::Get,
        path,
        name,
        summary,
        role: Role::Viewer,
        hosts: Hosts::Allowed,
        query: &[],
        request: Content::Nothing,
        answer: Content::Nothing,
        statuses: &[200],
        fails: &[],
    }
}

// What changes something is for an admin, unless it says otherwise.

const fn post(path: &'static str, name: &'static str, summary: &'static str) -> Operation {
    Operation { method: Method::Post, role: Role::Admin, ..get(path, name, summary) }
}

const fn put(path: &'static str, name: &'static str, summary: &'static str) -> Operation {
    Operation { method: Method::Put, role: Role::Admin, ..get(path, name, summary) }
}

const fn delete(path: &'static str, name: &'static str, summary: &'static str) -> Operation {
    Operation { method: Method::Delete, role: Role::Admin, ..get(path, name, summary) }
}

impl Operation {
    const fn role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    const fn no_host(self) -> Self {
        Self { hosts: Hosts::Refused, ..self }
    }

    const fn query(self, query: &'static [Parameter]) -> Self {
        Self { query, ..self }
    }

    const fn takes<T: Described>(self) -> Self {
        Self { request: Content::Json(Type::of::<T>()), ..self }
    }

    const fn takes_raw(self, media: &'static str) -> Self {
        Self { request: Content::Raw(media), ..self }
    }

    const fn json<T: Described>(self) -> Self {
        Self { answer: Content::Json(Type::of::<T>()), ..self }
    }

    const fn lines<T: Described>(self) -> Self {
        Self { answer: Content::Lines(Type::of::<T>()), ..self }
    }

    const fn raw(self, media: &'static str) -> Self {
        Self { answer: Content::Raw(media), ..self }
    }

    const fn statuses(self, statuses: &'static [u16]) -> Self {
        Self { statuses, ..self }
    }

    const fn fails(self, fails: &'static [ErrorCode]) -> Self {
        Self { fails, ..self }
    }

    /// Every code with which it may be refused or fail.
    #[must_use]
    pub fn errors(&self) -> Vec<ErrorCode> {
        let mut codes = vec![Forbidden, Internal, TooMany];
        if self.path.contains('{') {
            codes.extend([BadRequest, NotFound]);
        }
        if self.path.starts_with(paths::GUEST) {
            codes.push(MovedAway);
        }
        if !self.query.is_empty() {
            codes.push(BadRequest);
        }
        if !matches!(self.request, Content::Nothing) {
            codes.extend([BadRequest, TooLarge, TooSlow]);
        }
        codes.extend(self.fails);
        codes.sort_by_key(|code| (code.status(), *code as u8));
        codes.dedup();
        codes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_operation_is_there_once_and_has_a_name_of_its_own() {
        let routes: BTreeSet<_> =
            OPERATIONS.iter().map(|one| (one.path, one.method.as_str())).collect();
        let names: BTreeSet<_> = OPERATIONS.iter().map(|one| one.name).collect();
        assert_eq!((routes.len(), names.len()), (OPERATIONS.len(), OPERATIONS.len()));
        for one in OPERATIONS {
            let found = operation(one.method.as_str(), one.path).unwrap();
            assert_eq!(found.name, one.name);
        }
        assert!(operation("PUT", paths::MOVES).is_none());
    }

    #[test]
    fn whoever_only_looks_changes_nothing() {
        for one in OPERATIONS.iter().filter(|one| one.role == Role::Viewer) {
            assert_eq!(one.method, Method::Get, "{}", one.name);
        }
    }
}
