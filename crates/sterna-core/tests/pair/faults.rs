//! Faults that strike at a time or at a stage, and what an agent does that is started again.

use crate::guest::Hypervisor;
use crate::plan::{FaultKind, Role, Trigger};
use crate::world::{Action, Broken, World};
use sterna_core::journal::{DestinationRecord, SourceRecord};
use sterna_core::{destination, source};
use sterna_proto::message::{Reason, ReasonCode};

impl World {
    pub(crate) fn arm_timed_faults(&mut self) {
        for fault in 0..self.plan.faults.len() {
            if let Trigger::At(due) = self.plan.faults[fault].trigger {
                self.schedule(due, Action::Fault { fault });
            }
        }
    }

    /// A side has come to a stage: the faults that waited for it are on their way.
    pub(crate) fn stage_entered(&mut self, role: Role, stage: &'static str) {
        for index in 0..self.plan.faults.len() {
            let fault = &mut self.plan.faults[index];
            if let Trigger::Stage(side, wanted, delay) = fault.trigger
                && fault.armed
                && (side, wanted) == (role, stage)
            {
                fault.armed = false;
                self.schedule(self.now + delay, Action::Fault { fault: index });
            }
        }
    }

    /// Faults strike the newest attempt.
    pub(crate) fn strike(&mut self, fault: usize) {
        let kind = self.plan.faults[fault].kind;
        if self.now >= self.plan.faults_end {
            return;
        }
        let newest = self.attempts.len() - 1;
        let attempt = &self.attempts[newest];
        let killed = match kind {
            FaultKind::KillHypervisor(Role::Source) => Some(attempt.source_instance),
            FaultKind::KillHypervisor(Role::Destination) => attempt.destination_instance,
            FaultKind::CrashAgent(_) | FaultKind::Cancel(_) | FaultKind::CutLink => None,
        };
        let (source_host, destination_host) = (attempt.source_host, attempt.destination_host);
        self.note(|| format!("FAULT {kind:?}"));
        self.cover_fault(newest, kind, killed.is_some());
        match (kind, killed) {
            (FaultKind::CrashAgent(Role::Source), _) => self.crash(source_host),
            (FaultKind::CrashAgent(Role::Destination), _) => self.crash(destination_host),
            (FaultKind::KillHypervisor(_), Some(instance)) => self.kill(instance),
            (FaultKind::KillHypervisor(_), None) => {}
            (FaultKind::Cancel(Role::Source), _) => self.step_source(newest, source::Event::Cancel),
            (FaultKind::Cancel(Role::Destination), _) => {
                self.step_destination(newest, destination::Event::Cancel);
            }
            (FaultKind::CutLink, _) => self.cut_link(),
        }
    }

    fn cover_fault(&mut self, attempt: usize, kind: FaultKind, kills: bool) {
        if matches!(kind, FaultKind::KillHypervisor(_)) && !kills {
            return;
        }
        if let Some(stage) = self.attempts[attempt].source.as_ref().map(|s| s.machine.stage()) {
            self.coverage.fault(Role::Source, stage, kind);
        }
        if let Some(stage) = self.attempts[attempt].destination.as_ref().map(|s| s.machine.stage())
        {
            self.coverage.fault(Role::Destination, stage, kind);
        }
    }

    /// Ends a hypervisor; the agents that watch it are told a little later.
    pub(crate) fn kill(&mut self, instance: usize) {
        if self.instances[instance].hypervisor == Hypervisor::Gone {
            return;
        }
        self.instances[instance].hypervisor = Hypervisor::Gone;
        self.instances[instance].killed = true;
        self.ram_may_be_lost(instance);
        for attempt in 0..self.attempts.len() {
            let due = self.now + self.random(1..1_000);
            let a = &self.attempts[attempt];
            let source = a.source.as_ref().filter(|_| a.source_instance == instance);
            let source = source.map(|side| (Role::Source, side.life));
            let destination =
                a.destination.as_ref().filter(|_| a.destination_instance == Some(instance));
            let destination = destination.map(|side| (Role::Destination, side.life));
            for (role, life) in source.into_iter().chain(destination) {
                self.schedule(due, Action::GuestGone { attempt, role, life });
            }
        }
    }

    pub(crate) fn guest_gone(&mut self, attempt: usize, role: Role) {
        let reason = Reason::new(ReasonCode::Hypervisor, "the hypervisor ended");
        match role {
            Role::Source => self.step_source(attempt, source::Event::GuestGone(reason)),
            Role::Destination => {
                self.step_destination(attempt, destination::Event::GuestGone(reason));
            }
        }
    }

    /// The agent of a host dies with its machines. What they had under way takes place or not.
    fn crash(&mut self, host: usize) {
        if !std::mem::replace(&mut self.hosts[host].up, false) {
            return;
        }
        for attempt in 0..self.attempts.len() {
            if self.attempts[attempt].source_host == host {
                self.crash_source(attempt);
            } else {
                self.crash_destination(attempt);
            }
        }
        for index in 0..self.connections.len() {
            let attempt = &self.attempts[self.connections[index].attempt];
            let role = if attempt.source_host == host { Role::Source } else { Role::Destination };
            self.close(index, role);
        }
        for stream in 0..self.streams.len() {
            self.break_stream(stream);
        }
        let due = (self.now + self.random(100..20_000)).min(self.plan.faults_end.max(self.now));
        self.schedule(due, Action::Restart { host });
    }

    /// A new agent reads the journal and takes up what it finds unfinished.
    pub(crate) fn restart(&mut self, host: usize) {
        self.note(|| format!("h{host} agent starts again"));
        self.hosts[host].up = true;
        self.hosts[host].journal_free = self.now;
        for attempt in 0..self.attempts.len() {
            if self.attempts[attempt].source_host == host {
                self.restart_source(attempt);
            } else {
                let record = self.effective_destination_record(attempt);
                let unfinished = [
                    DestinationRecord::Receiving,
                    DestinationRecord::Owned,
                    DestinationRecord::Owing,
                ];
                if record.is_some_and(|record| unfinished.contains(&record)) {
                    self.recover_destination(attempt);
                }
            }
        }
        self.wake_guests();
    }

    /// What the newest attempt that has a record says about a guest decides; older ones are over.
    ///
    /// Without a record, or with `Undone`, a paused guest may run on: pages are only sent, and the
    /// guest only paused, after `Moving` is durable, and `Undone` is only recorded by a machine
    /// that had not committed or had been told `Never`. With `Released` the destination has run
    /// the guest, so whatever is left of it here must go.
    fn restart_source(&mut self, attempt: usize) {
        let instance = self.attempts[attempt].source_instance;
        let overtaken = self.attempts[attempt + 1..]
            .iter()
            .any(|a| a.source_instance == instance && a.source_record.is_some());
        if overtaken && self.broken != Some(Broken::OvertakenAttempts) {
            return;
        }
        let hypervisor = self.instances[instance].hypervisor;
        let pretend = self.broken == Some(Broken::RestartResumes);
        match self.attempts[attempt].source_record {
            Some(SourceRecord::Moving { .. }) if !pretend => self.recover_source(attempt),
            Some(SourceRecord::Released) => self.instances[instance].hypervisor = Hypervisor::Gone,
            Some(SourceRecord::Moving { .. } | SourceRecord::Undone) | None
                if hypervisor == Hypervisor::Paused =>
            {
                self.note(|| format!("a{attempt} the restarted agent resumes the guest"));
                self.instances[instance].run();
            }
            Some(SourceRecord::Moving { .. } | SourceRecord::Undone) | None => {}
        }
    }

    /// What this host's journal says of an attempt to come here, with later ones in mind: a guest
    /// that has since begun to move on from here was active here, whatever the older record says.
    pub(crate) fn effective_destination_record(&self, attempt: usize) -> Option<DestinationRecord> {
        let a = &self.attempts[attempt];
        let moved_on = self.attempts[attempt + 1..].iter().any(|later| {
            Some(later.source_instance) == a.destination_instance
                && (later.source_record.is_some() || later.source.is_some())
        });
        if moved_on && self.broken != Some(Broken::OvertakenAttempts) {
            return Some(DestinationRecord::Active);
        }
        a.destination_record
    }
}
