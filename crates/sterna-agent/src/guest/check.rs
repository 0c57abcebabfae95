//! Whether and where a guest could move: its hypervisor is asked, and each of the other hosts.

use super::leave::Target;
use super::plan::Subject;
use super::task::{Activity, Task};
use super::{Guest, Request};
use crate::agent::{Agent, blocking, vmm_error};
use crate::hypervisor::Running;
use std::sync::Arc;
use sterna_api::{ApiError, CheckRequest, CheckView, ErrorCode, HOSTS_MAX, HostCheck, PlanRequest};
use sterna_engine::inquire;
use sterna_proto::message::{Reason, ReasonCode};
use sterna_vmm::{Compared, Immovable};
use tokio::sync::oneshot;

impl Task {
    /// Begins to ask; the answer is given when that is done, and the guest's task goes on meanwhile.
    pub(super) async fn check(
        &mut self,
        request: CheckRequest,
        reply: oneshot::Sender<Result<CheckView, ApiError>>,
    ) {
        let subject = match self.begin_check(&request).await {
            Ok(subject) => subject,
            // A caller that no longer waits for its answer is no error.
            Err(error) => return drop(reply.send(Err(error))),
        };
        self.activity = Activity::Planning;
        let (agent, guest) = (Arc::clone(&self.agent), self.guest.clone());
        tokio::spawn(async move {
            let mut targets = Vec::new();
            for to in request.to {
                targets.push((Target::find(&agent, &to).await, to));
            }
            let asked = guest.clone();
            let checked = blocking(move || ask_all(&agent, &asked, &subject, targets)).await;
            guest.tell(Request::Planned(None)).await;
            drop(reply.send(checked));
        });
    }

    async fn begin_check(&self, request: &CheckRequest) -> Result<Subject, ApiError> {
        if request.to.len() > HOSTS_MAX {
            let message = format!("{} hosts at once: {HOSTS_MAX} at most", request.to.len());
            return Err(ApiError::new(ErrorCode::Invalid, message));
        }
        self.subject("be looked at").await
    }
}

/// What the hypervisor says, then what each host says. A host that cannot be asked is a reason, and no error.
fn ask_all(
    agent: &Agent,
    guest: &Guest,
    subject: &Subject,
    targets: Vec<(Result<Target, ApiError>, String)>,
) -> Result<CheckView, ApiError> {
    let mut source = subject.process.source().map_err(|error| vmm_error(&error))?;
    let in_words = |reasons: &[Immovable]| {
        let reasons = reasons.iter().map(ToString::to_string);
        reasons.map(|words| Reason::new(ReasonCode::Incompatible, words)).collect::<Vec<_>>()
    };
    let mut bound = in_words(&source.immovable().map_err(|error| vmm_error(&error))?);
    let natively = source.immovable_natively(Compared::No).map_err(|error| vmm_error(&error))?;
    let mut bound_natively = in_words(&natively);
    if let Running::No(why) = subject.process.running().map_err(|error| vmm_error(&error))? {
        let reason = Reason::new(ReasonCode::Incompatible, format!("it does not run ({why})"));
        bound.push(reason.clone());
        bound_natively.push(reason);
    }
    let refused = |target: Result<Target, ApiError>, to: &str| -> Result<Vec<Reason>, ApiError> {
        let Target { address, name } = match target {
            Ok(target) => target,
            Err(error) => return Ok(vec![Reason::new(ReasonCode::LinkLost, error.message)]),
        };
        let inquiry = subject.inquiry(agent, &PlanRequest::to(to), source.layout())?;
        let answer = inquire(address, &name, &agent.identity, &inquiry);
        Ok(answer.unwrap_or_else(|unreachable| vec![unreachable]))
    };
    let mut hosts = Vec::new();
    for (target, to) in targets {
        let refused = refused(target, &to)?;
        hosts.push(HostCheck { to, refused });
    }
    Ok(CheckView { guest: guest.name.clone(), bound, bound_natively, hosts })
}
