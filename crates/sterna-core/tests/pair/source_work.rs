//! The work of the source's host that takes time: done, failed, or cut short when the agent dies.

use crate::guest::Hypervisor;
use crate::network::Frame;
use crate::plan::Role;
use crate::source_side::{Work, injected};
use crate::world::{Broken, World};
use sterna_core::algorithm::Tracking;
use sterna_core::source::Event;
use sterna_core::speed::VcpuSpeed;
use sterna_page::PageCount;

impl World {
    pub(crate) fn source_done(&mut self, attempt: usize, life: u64, token: u64) {
        if !self.source_lives(attempt, life) {
            return;
        }
        let side = self.side(attempt);
        let Some(place) = side.pending.iter().position(|(t, _)| *t == token) else { return };
        let (_, work) = side.pending.remove(place);
        let event = self.source_work(attempt, life, work);
        self.step_source(attempt, event);
    }

    /// Does a piece of work, or fails at it.
    fn source_work(&mut self, attempt: usize, life: u64, work: Work) -> Event {
        let instance = self.attempts[attempt].source_instance;
        let fails = self.mishap(self.plan.weather.fail_effect);
        let gone = self.instances[instance].hypervisor == Hypervisor::Gone;
        match work {
            Work::NoLink => Event::LinkDown(injected("no connection")),
            Work::Reconnect => self.reconnect(attempt),
            Work::Record(record) => {
                let fails = self.mishap(self.plan.weather.fail_record);
                if !fails || self.coin() {
                    self.attempts[attempt].source_record = Some(record);
                }
                if fails { Event::RecordFailed(injected("record")) } else { Event::Recorded }
            }
            Work::Prepare(tracking) => match self.open_stream(attempt, life) {
                Some(stream) if !fails => {
                    self.side(attempt).stream = Some(stream);
                    self.instances[instance].tracking = tracking == Tracking::Needed;
                    self.instances[instance].dirty = 0;
                    Event::Prepared
                }
                _ => Event::Failed(injected("prepare")),
            },
            Work::Scan if fails => Event::Failed(injected("scan")),
            Work::Scan => Event::Scanned(PageCount(self.scan(attempt).count_ones().into())),
            Work::Pause => {
                let done = !gone && (!fails || self.coin());
                if done {
                    self.pause(instance);
                }
                if fails || gone { Event::Failed(injected("pause")) } else { Event::Paused }
            }
            Work::SaveState if fails || gone => Event::Failed(injected("save")),
            Work::SaveState => {
                let registers = self.instances[instance].guest.registers;
                let connection = self.side(attempt).connection;
                self.send(connection, Role::Source, Frame::DeviceState(registers));
                Event::StateSent
            }
            Work::Serve => match self.open_stream(attempt, life) {
                Some(stream) if !fails => self.serves_again(attempt, stream),
                _ => Event::ServingFailed(injected("serve")),
            },
            Work::Digest => Event::Digest(self.instances[instance].digest()),
            Work::Resume if gone => Event::ResumeFailed(injected("no hypervisor")),
            Work::Resume if fails => {
                self.attempts[attempt].resume_failed = true;
                Event::ResumeFailed(injected("resume"))
            }
            Work::Resume => {
                if self.broken != Some(Broken::StaysSlow) {
                    self.instances[instance].speed = VcpuSpeed::FULL;
                }
                self.instances[instance].run();
                self.wake_guests();
                Event::Resumed
            }
            Work::Release => {
                self.instances[instance].hypervisor = Hypervisor::Gone;
                Event::Released
            }
        }
    }

    fn reconnect(&mut self, attempt: usize) -> Event {
        let fails = self.mishap(self.plan.weather.fail_reconnect);
        match self.connect(attempt) {
            Some(connection) if !fails => {
                self.side(attempt).connection = Some(connection);
                Event::LinkUp
            }
            _ => Event::LinkDown(injected("reconnect")),
        }
    }

    /// The agent dies: what was under way takes place or not; the journal keeps its order.
    pub(crate) fn crash_source(&mut self, attempt: usize) {
        let Some(side) = self.attempts[attempt].source.take() else { return };
        let instance = self.attempts[attempt].source_instance;
        let mut journal_writes = true;
        // What it relayed ends with it.
        if let Some(copy) = side.native {
            self.resumes_by_itself(instance, copy);
        }
        for (_, work) in side.pending {
            match work {
                Work::Record(record) => {
                    journal_writes = journal_writes && self.coin();
                    if journal_writes {
                        self.attempts[attempt].source_record = Some(record);
                    }
                }
                Work::Pause if self.coin() => self.pause(instance),
                Work::Resume if self.coin() => self.unpause(instance),
                Work::Release if self.coin() => {
                    self.instances[instance].hypervisor = Hypervisor::Gone;
                }
                _ => {}
            }
        }
        if self.instances[instance].hypervisor == Hypervisor::Gone {
            self.instances[instance].ram_lost = true;
        }
        // Tracking needs an agent that reads it.
        self.instances[instance].tracking = false;
        self.note(|| format!("a{attempt} source's agent is gone"));
    }
}
