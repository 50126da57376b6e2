//! What [`ahead`](crate::ahead) waits with. The model test compiles that file a second time, over shuttle's versions of these.

pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};

/// The time.
pub(crate) fn now() -> std::time::Instant {
    std::time::Instant::now()
}
