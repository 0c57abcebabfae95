//! What every decoder of untrusted bytes must keep to, as one function a decoder.
//!
//! A target is given any bytes. It panics if the decoder does, or if what was decoded breaks a
//! promise: written again it must be read as the same, it must be within the limits that were
//! stated, and no more may be taken than was given. libFuzzer looks for such bytes
//! (`cargo fuzz`, see the README); `tests/corpus.rs` replays what it has found, with every
//! toolchain.
//!
//! **Not here.** TLS, certificates, HTTP, and the journal's file format are decoded by other
//! people's crates, which have fuzz targets of their own.

#![forbid(unsafe_code)]

mod api;
mod guest;
mod machines;
mod page_code;
mod page_stream;
mod process;
mod text;
mod wire;

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The decoder took it for what it should be.
    Accepted,
    /// The decoder refused it.
    Refused,
}

impl Verdict {
    fn of(accepted: bool) -> Self {
        if accepted { Self::Accepted } else { Self::Refused }
    }
}

/// A decoder under test.
pub type Target = fn(&[u8]) -> Verdict;

/// Every target by its name, which is also that of its file in `fuzz_targets` and of its folder in
/// `corpus`.
pub const TARGETS: [(&str, Target); 21] = [
    ("api_answer", api::answer),
    ("api_request", api::request),
    ("control_stream", wire::control_stream),
    ("definition_json", guest::definition_json),
    ("definition_toml", guest::definition_toml),
    ("destination_machine", machines::destination),
    ("inquiry", wire::inquiry),
    ("inquiry_answer", wire::inquiry_answer),
    ("journal_record", api::journal_record),
    ("known_pages", wire::known_pages),
    ("monitor_line", guest::monitor_line),
    ("page_code", page_code::page_code),
    ("page_stream", page_stream::page_stream),
    ("preamble", wire::preamble),
    ("preamble_answer", wire::preamble_answer),
    ("process_files", process::process_files),
    ("receipt", api::receipt),
    ("source_machine", machines::source),
    ("synthetic_registers", guest::synthetic_registers),
    ("to_destination", wire::to_destination),
    ("to_source", wire::to_source),
];

/// Gives `data` to the target of this name.
///
/// # Panics
/// When there is no such target, or the decoder breaks a promise.
pub fn run(name: &str, data: &[u8]) -> Verdict {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("there is no target {name:?}"));
    target(data)
}
