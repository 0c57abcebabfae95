//! Begins to send the pages that follow a guest, over page streams and an urgent connection.

use super::driver::Input;
use crate::link::Link;
use crate::pages::{Follow, SenderPool};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use sterna_core::push::PushOrder;
use sterna_core::source::Event;
use sterna_proto::message::{Reason, ReasonCode};
use sterna_sys::memory::GuestMemory;

/// Has the streams of `pool` push owed pages and `urgent` send those that are asked for, until one of
/// them fails, which is told as [`Event::ServingFailed`], or the [`Follow`] is closed.
pub(super) fn begin(
    pool: &SenderPool,
    urgent: Link,
    memory: &Arc<GuestMemory>,
    order: PushOrder,
    inputs: &Sender<Input>,
) -> io::Result<Arc<Follow>> {
    let inputs = inputs.clone();
    let failed = move |error: io::Error| {
        let detail = format!("a connection over which pages follow was lost: {error}");
        let reason = Reason::new(ReasonCode::LinkLost, detail);
        // A machine that has ended needs no pages.
        let _ = inputs.send(Input::Event(Event::ServingFailed(reason)));
    };
    let follow = Follow::new(memory.pages(), order, Box::new(failed));
    let (urgently, memory) = (Arc::clone(&follow), Arc::clone(memory));
    thread::Builder::new()
        .name("pages-urgent".into())
        .spawn(move || urgently.serve_urgent(urgent, &memory))?;
    pool.follow(&follow);
    Ok(follow)
}
