//! The scenarios, by the stage at which something happens.

mod at_commitment;
mod at_switchover;
mod coded;
mod defined;
mod direct_io;
mod following;
mod free_pages;
mod held_back;
mod inflated;
mod joined;
mod kept;
mod native;
mod on_disk;
mod page_sizes;
mod paused;
mod planning;
mod queued;
mod refusals;
mod round_trips;
mod slowed_down;
mod through;
mod undone;
mod upgraded;
mod users;
mod while_copying;
