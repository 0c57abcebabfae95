//! What tests, demo and benches share: hosts in network namespaces, the test guest, probes.
//!
//! [`net`] makes hosts `a`, `b` (and `c`) that are joined by a migration link of a given rate and
//! by a guest network with a client in it. [`image`] finds the guest that `cargo xtask guest`
//! builds, [`recorder`] says what it is to do, [`disk`] makes a disk that it can check, [`small_disk`] one that can be full. [`probe`]
//! watches it: answers over the network and tick lines on the console. [`bare`] is a guest that needs
//! no image and no operating system. [`lab`] puts an agent on each host and drives them as an operator
//! would, by the `sterna` program; [`monitor`] asks a hypervisor past them. [`accelerator`] says what
//! their guests run on, [`tracker`] how their writes are tracked, [`huge_pages`] takes huge pages for them.
#![forbid(unsafe_code)]

pub mod accelerator;
pub mod bare;
pub mod disk;
pub mod huge_pages;
pub mod image;
pub mod lab;
pub mod monitor;
pub mod net;
pub mod probe;
pub mod recorder;
pub mod small_disk;
pub mod tracker;
