//! Bounds on what a peer can make us hold.

/// Bytes of one JSON control message at most. The largest is an offer with a guest's definition.
pub const MESSAGE_BYTES_MAX: u32 = 1 << 20;

/// Bytes of a device state at most. QEMU's is 0.1 to 1 MB; a GPU's could be hundreds.
pub const DEVICE_STATE_BYTES_MAX: u32 = 256 << 20;

/// Pages of one frame at most: 1 MiB, so that no stream is held up by one frame for long.
pub const RUN_PAGES_MAX: u32 = 256;

/// Page streams of one move at most.
pub const STREAMS_MAX: u16 = 64;

/// Refusal reasons in one answer at most.
pub const REASONS_MAX: usize = 64;

/// Runs of pages that an answer says could not be got, at most.
pub const LACKING_RUNS_MAX: usize = 4096;
