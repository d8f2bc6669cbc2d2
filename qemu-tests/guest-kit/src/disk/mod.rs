//! A disk's front end, as `blkfront` is one, opened by hand, with the store and the events that it needs. For
//! guests that measure, and for those that misbehave.

pub mod event;
pub mod front;
pub mod store;
