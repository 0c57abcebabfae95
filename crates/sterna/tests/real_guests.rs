//! Real guests under real agents, moved by the `sterna` program while things go wrong.
//!
//! Each test makes two hosts in network namespaces of its own and skips itself, saying why, where
//! there is no root, no QEMU or no guest image. They are meant to run one at a time
//! (`--test-threads 1`): emulated guests need whole cores.

mod kit;
mod scenarios;
