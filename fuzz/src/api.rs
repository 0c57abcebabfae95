//! What travels over the HTTP interface, and what the agent keeps of it.

use crate::Verdict;
use crate::guest::check_definition;
use crate::text::reread;
use sterna_agent::fuzzing::{RecordKind, read_and_write};
use sterna_api::{ApiError, GuestView, HostInfo, MoveRequest, MoveView, RunGuest, StartGuest};
use sterna_core::receipt::Receipt;
use sterna_report::{About, MoveReport};

/// A request to an agent.
pub(crate) fn request(data: &[u8]) -> Verdict {
    let start: Option<StartGuest> = reread(data);
    if let Some(start) = &start {
        check_definition(&start.definition);
    }
    let others = [reread::<MoveRequest>(data).is_some(), reread::<RunGuest>(data).is_some()];
    Verdict::of(start.is_some() || others.contains(&true))
}

/// An answer of an agent.
pub(crate) fn answer(data: &[u8]) -> Verdict {
    let read = [
        reread::<GuestView>(data).is_some(),
        reread::<Vec<GuestView>>(data).is_some(),
        reread::<MoveView>(data).is_some(),
        reread::<Vec<MoveView>>(data).is_some(),
        reread::<HostInfo>(data).is_some(),
        reread::<ApiError>(data).is_some(),
    ];
    Verdict::of(read.contains(&true))
}

/// A receipt: read, and drawn as a page.
pub(crate) fn receipt(data: &[u8]) -> Verdict {
    let Some(receipt) = reread::<Receipt>(data) else { return Verdict::Refused };
    let texts = format!("{receipt:?}");
    let report = MoveReport { receipt, measured: None };
    let page = sterna_report::html(&[report], &About::default());
    assert!(!page.contains("<script"), "no text of a receipt becomes markup");
    assert!(texts.contains("NaN") || !page.contains("NaN"), "every coordinate is finite");
    Verdict::Accepted
}

/// A record of the journal, of any kind.
pub(crate) fn journal_record(data: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(data) else { return Verdict::Refused };
    let kinds = [RecordKind::Guest, RecordKind::Outgoing, RecordKind::Incoming];
    let read = kinds.map(|kind| {
        let Ok(written) = read_and_write(kind, text) else { return false };
        let again = read_and_write(kind, &written)
            .unwrap_or_else(|error| panic!("{written} is not read again: {error:?}"));
        assert_eq!(again, written, "{kind:?}");
        true
    });
    Verdict::of(read.contains(&true))
}
