//! What moving a guest would cost: the link is tried, the destination asked and the guest looked at,
//! while it runs on.

use super::leave::{Target, immovable, offer};
use super::task::{Activity, Task};
use super::{Guest, Request};
use crate::agent::{Agent, blocking, vmm_error};
use crate::hypervisor::GuestProcess;
use crate::records::{GuestRecord, Place};
use std::sync::Arc;
use std::time::{Duration, Instant};
use sterna_api::{
    ApiError, ErrorCode, MoveRequest, OBSERVE_MS_MAX, PlanRequest, PlanView, Priority,
};
use sterna_core::algorithm::AlgorithmName;
use sterna_core::balloon::Balloon;
use sterna_core::prediction::{Choice, Method, Model, Seen, Surroundings, WorkingSetCurve};
use sterna_core::push::PushOrder;
use sterna_core::working_set::HoldBack;
use sterna_engine::{LinkTrial, Observed, inquire, observe, try_link};
use sterna_page::RamLayout;
use sterna_proto::inquiry::Inquiry;
use sterna_proto::limits::STREAMS_MAX;
use sterna_proto::message::{AttemptId, NativeMode, Reason, Verify};
use tokio::sync::oneshot;
use uuid::Uuid;

/// For how long a plan is taken to tell of a move that follows it.
const PLAN_HOLDS: Duration = Duration::from_secs(600);

/// A plan that was made, to be compared with the move that follows.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    made: Instant,
    request: PlanRequest,
    choice: Choice,
}

impl Planned {
    /// What was foreseen of this move, if it is the one that was planned.
    pub(super) fn of(&self, asked: &MoveRequest) -> Option<Choice> {
        let planned = &self.request;
        let same = planned.to == asked.to
            && planned.limits == asked.limits
            && planned.bandwidth_bytes_per_second == asked.bandwidth_bytes_per_second
            && planned.streams == asked.streams
            && planned.compress == asked.compress
            && self.made.elapsed() < PLAN_HOLDS;
        let mut choice = same.then(|| self.choice.clone())?;
        if let Some(method) = Method::asked_for(asked.algorithm, &asked.limits) {
            choice.method = method;
            choice.reason = "it was asked for".into();
        }
        Some(choice)
    }
}

impl Task {
    /// Begins to plan; the answer is given when that is done, and the guest's task goes on meanwhile.
    pub(super) async fn plan(
        &mut self,
        request: PlanRequest,
        reply: oneshot::Sender<Result<PlanView, ApiError>>,
    ) {
        let begun = self.begin_plan(&request).await;
        let subject = match begun {
            Ok(begun) => begun,
            // A caller that no longer waits for its answer is no error.
            Err(error) => return drop(reply.send(Err(error))),
        };
        self.activity = Activity::Planning;
        let surroundings = self.surroundings();
        let (agent, guest) = (Arc::clone(&self.agent), self.guest.clone());
        tokio::spawn(async move {
            let (asked, to) = (request.clone(), Arc::clone(&agent));
            let found = blocking(move || look(&to, &asked, &subject)).await;
            let plan = found.map(|findings| conclude(&guest, &request, surroundings, findings));
            let made = Instant::now();
            let planned = plan
                .as_ref()
                .ok()
                .map(|plan| Box::new(Planned { made, request, choice: plan.choice.clone() }));
            guest.tell(Request::Planned(planned)).await;
            drop(reply.send(plan));
        });
    }

    async fn begin_plan(&mut self, request: &PlanRequest) -> Result<(Subject, Target), ApiError> {
        let invalid = |message: String| ApiError::new(ErrorCode::Invalid, message);
        let subject = self.subject("be looked at").await?;
        if request.streams == 0 || request.streams > STREAMS_MAX {
            return Err(invalid(format!("{} streams: 1 to {STREAMS_MAX}", request.streams)));
        }
        if request.observe_ms == 0 || request.observe_ms > OBSERVE_MS_MAX {
            let message = format!("{} ms of looking: 1 to {OBSERVE_MS_MAX}", request.observe_ms);
            return Err(invalid(message));
        }
        request.limits.check().map_err(|error| invalid(error.to_string()))?;
        Ok((subject, Target::find(&self.agent, &request.to).await?))
    }

    /// The guest, if it is this host's and no move has it.
    pub(super) async fn subject(&self, what: &str) -> Result<Subject, ApiError> {
        self.idle(what)?;
        let (Place::Here, Some(process)) = (&self.record.place, self.process.clone()) else {
            return Err(self.wrong_state(what).await);
        };
        let attempt = AttemptId { guest: self.guest.id, epoch: self.record.epoch.next() };
        Ok(Subject { attempt, record: self.record.clone(), process })
    }
}

/// The guest that a plan or a question is about.
pub(super) struct Subject {
    attempt: AttemptId,
    record: GuestRecord,
    pub(super) process: Arc<dyn GuestProcess>,
}

/// What was seen.
struct Findings {
    /// Why the destination would refuse the guest.
    refused: Vec<Reason>,
    link: LinkTrial,
    guest: Observed,
}

impl Subject {
    /// What another host is asked of a move like this one.
    pub(super) fn inquiry(
        &self,
        agent: &Agent,
        request: &PlanRequest,
        layout: &RamLayout,
    ) -> Result<Inquiry, ApiError> {
        let as_move = MoveRequest {
            id: Uuid::nil(),
            to: request.to.clone(),
            algorithm: AlgorithmName::Auto,
            native_mode: NativeMode::default(),
            limits: request.limits,
            hold_back: HoldBack::default(),
            compress: request.compress,
            balloon: Balloon::default(),
            bandwidth_bytes_per_second: request.bandwidth_bytes_per_second,
            streams: request.streams,
            priority: Priority::default(),
            verify: Verify::default(),
            push: PushOrder::default(),
        };
        let offer = offer(agent, &self.record, &as_move, layout)?;
        Ok(Inquiry { attempt: self.attempt, offer })
    }
}

/// Tries the link, asks the destination, then looks at the guest: one after the other, as all need the
/// processors.
fn look(
    agent: &Agent,
    request: &PlanRequest,
    (subject, target): &(Subject, Target),
) -> Result<Findings, ApiError> {
    let Target { address, name } = target;
    let unreachable = |reason: Reason| {
        let message = format!("{} cannot be reached", request.to);
        ApiError::new(ErrorCode::Unable, message).reasons(vec![reason])
    };
    let link = try_link(*address, name, &agent.identity, request.streams).map_err(unreachable)?;
    let mut source = subject.process.source().map_err(|error| vmm_error(&error))?;
    let reasons = source.immovable().map_err(|error| vmm_error(&error))?;
    if !reasons.is_empty() {
        return Err(immovable(&reasons));
    }
    let inquiry = subject.inquiry(agent, request, source.layout())?;
    let refused = inquire(*address, name, &agent.identity, &inquiry).map_err(unreachable)?;
    let time = Duration::from_millis(request.observe_ms);
    let guest = observe(source.as_mut(), time).map_err(|error| vmm_error(&error))?;
    Ok(Findings { refused, link, guest })
}

fn conclude(
    guest: &Guest,
    request: &PlanRequest,
    surroundings: Surroundings,
    findings: Findings,
) -> PlanView {
    let Findings { refused, link: trial, guest: observed } = findings;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let allowed = request.bandwidth_bytes_per_second.map_or(f64::MAX, |rate| rate as f64);
    let link_bytes_per_second = trial.bytes_per_second.min(allowed);
    let curve = WorkingSetCurve::new(&observed.looks);
    let PlanRequest { compress, streams, .. } = *request;
    let sample = &observed.sample;
    let seen = Seen {
        curve: &curve,
        existing: observed.existing,
        first_page_bytes: sample.first_page_bytes(compress, link_bytes_per_second, streams),
        page_bytes: sample.page_bytes(compress, link_bytes_per_second, streams),
    };
    let model = Model::before_the_move(seen, link_bytes_per_second, &surroundings, &request.limits);
    let choice = Choice::before_the_move(&model);
    let once = model.copying_once();
    PlanView {
        guest: guest.name.clone(),
        to: request.to.clone(),
        feasible: refused.is_empty() && choice.keeps_to(&request.limits),
        refused,
        choice,
        copying_once_us: u64::try_from(once.as_micros()).unwrap_or(u64::MAX),
        round_trip_us: trial.round_trip_us,
        existing_bytes: observed.existing.bytes(),
        zero_permille: observed.sample.zero_permille(),
        dirty_bytes_per_second: observed.dirty_bytes_per_second(),
    }
}
