//! The agent's HTTP interface: its paths and the JSON that travels.
//!
//! ```text
//!   GET    /v1/host                        HostInfo
//!   GET    /metrics                        text in the format OpenMetrics
//!   GET    /v1/events                      an Event in each line, as they happen; ?after=NUMBER goes on behind one
//!   GET    /v1/guests                      [GuestView]
//!   POST   /v1/guests                      StartGuest     → 201 GuestView (200 if it runs already)
//!   GET    /v1/guests/{name}               GuestView
//!   DELETE /v1/guests/{name}               GuestView, as it was last
//!   GET    /v1/guests/{name}/console       bytes, from the recent past on; ?follow=false ends there
//!   POST   /v1/guests/{name}/console       bytes typed       → 204
//!   POST   /v1/guests/{name}/run           RunGuest          → GuestView
//!   POST   /v1/guests/{name}/pause         → GuestView; until it is told to run
//!   POST   /v1/guests/{name}/reset         → GuestView; as by its reset button
//!   POST   /v1/guests/{name}/shutdown      → GuestView; as by its power button, so its system decides
//!   POST   /v1/guests/{name}/upgrade       UpgradeRequest    → UpgradeView, once it has a new hypervisor
//!   POST   /v1/guests/{name}/check         CheckRequest      → CheckView
//!   POST   /v1/guests/{name}/plan          PlanRequest       → PlanView, after some seconds
//!   POST   /v1/guests/{name}/moves         MoveRequest       → 202 MoveView
//!   GET    /v1/guests/{name}/doubt         DoubtView, of a guest that may run elsewhere
//!   POST   /v1/guests/{name}/doubt         ResolveRequest    → GuestView, once it is resolved
//!   GET    /v1/moves                       [MoveView]
//!   GET    /v1/moves/{id}                  MoveView; ?wait_ms=N&seen=VERSION waits for news
//!   DELETE /v1/moves/{id}                  asks the move to end → 202 MoveView
//!   GET    /v1/images                      [ImageView], oldest first
//!   DELETE /v1/images/{guest}              by name or id → ImageView, as it was
//!   GET    /v1/revoked                     certificates that are no longer accepted, as PEM
//!   PUT    /v1/revoked                     such a list, if it is newer  → 204
//!
//!   of the host that has the authority:
//!   GET    /v1/hosts                       [ClusterHost]
//!   DELETE /v1/hosts/{name}                HostRevoked
//!   POST   /v1/invitations                 InviteRequest     → 201 InvitationView
//!   POST   /v1/certificates                RenewRequest      → Certificate, for the host that asks
//! ```
//!
//! Whatever fails is answered with an [`ApiError`] and the status of its code. Writes carry ids
//! that the caller draws: the same request twice does the same thing once. Fields may be added
//! within `/v1`; readers pass over what they do not know.

#![forbid(unsafe_code)]

pub mod address;
mod check;
mod cluster;
pub mod doubt;
mod error;
mod events;
mod guest;
mod host;
mod images;
mod moves;
pub mod paths;
mod plan;
mod upgrade;

pub use check::{CheckRequest, CheckView, HOSTS_MAX, HostCheck};
pub use cluster::{
    Certificate, ClusterHost, HostRevoked, InvitationView, InviteRequest, NotTold, RenewRequest,
};
pub use error::{ApiError, ErrorCode};
pub use events::{Event, Happened};
pub use guest::{GuestState, GuestView, RunGuest, StartGuest};
pub use host::{Finding, HostInfo, Verdict};
pub use images::ImageView;
pub use moves::{Direction, MoveRequest, MoveState, MoveView, Priority, STREAMS_DEFAULT};
pub use plan::{OBSERVE_MS_DEFAULT, OBSERVE_MS_MAX, PlanRequest, PlanView};
pub use upgrade::{UpgradeRequest, UpgradeView};
