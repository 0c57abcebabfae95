//! The agent's HTTP interface: its paths and the JSON that travels.
//!
//! What can be asked is a table ([`OPERATIONS`]), of which with the feature `schema` a document in OpenAPI's form is
//! made (`openapi::document`).
//!
//! Whatever fails is answered with an [`ApiError`] and the status of its code. Writes carry ids
//! that the caller draws: the same request twice does the same thing once. Fields may be added
//! within `/v1`; readers pass over what they do not know.

#![forbid(unsafe_code)]

pub mod address;
mod check;
mod cluster;
mod content;
mod definition;
pub mod doubt;
mod error;
mod events;
mod guest;
mod host;
mod images;
mod moves;
#[cfg(feature = "schema")]
pub mod openapi;
mod operations;
pub mod paths;
mod plan;
mod upgrade;

pub use check::{CheckRequest, CheckView, HOSTS_MAX, HostCheck};
pub use cluster::{
    Certificate, ClusterHost, HostRevoked, InvitationView, InviteRequest, NotTold, RenewRequest,
};
pub use content::{Content, Described, Parameter, Type};
pub use definition::{DefineGuest, DefinitionView, EditGuest, StartDefined};
pub use error::{ApiError, ErrorCode};
pub use events::{Event, Happened};
pub use guest::{GuestState, GuestView, RunGuest, StartGuest};
pub use host::{Finding, HostInfo, Verdict};
pub use images::ImageView;
pub use moves::{Direction, MoveRequest, MoveState, MoveView, Priority, STREAMS_DEFAULT};
pub use operations::{Hosts, Method, OPERATIONS, Operation, Role, operation};
pub use plan::{OBSERVE_MS_DEFAULT, OBSERVE_MS_MAX, PlanRequest, PlanView};
pub use upgrade::{UpgradeRequest, UpgradeView};
